//! [`Faults`]: what befalls nodes, clients, links and the store, drawn from a seed.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use lockservice_core::testing::Planted;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use super::World;
use super::network::Weather;
use super::node::{Disk, Stop};
use super::store::Trouble;

/// The pause between two faults, in milliseconds.
const PAUSE_MS: (u64, u64) = (100, 2_500);

/// Which kinds of faults come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Focus {
    /// All.
    All,
    /// Those that make another node lead, while the leader lives.
    Leadership,
    /// Those that break connections.
    Links,
    /// Those that end sessions whose clients live, or seem to.
    Clients,
}

impl Focus {
    /// The kinds, by their numbers in `strike`.
    const fn kinds(self) -> &'static [u32] {
        match self {
            Self::All => {
                &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]
            }
            Self::Leadership => &[6, 12, 15],
            Self::Links => &[6, 10, 14],
            Self::Clients => &[8, 9, 10],
        }
    }
}

/// The faults that show a planted one soonest.
pub fn focus_of(planted: Planted) -> Focus {
    match planted {
        Planted::OldEpochAccepted | Planted::GrantWithoutLease | Planted::TwoOwners => {
            Focus::Leadership
        }
        Planted::ReplayTakenTwice => Focus::Links,
        Planted::WaiterNotFenced | Planted::OrphanReleasedEarly => Focus::Clients,
        Planted::BindNotChecked
        | Planted::LostWakeUp
        | Planted::VictimOutsideCycle
        | Planted::TokenUsedTwice => Focus::All,
    }
}

/// Faults that come, and those that last.
#[derive(Debug)]
pub struct Faults {
    focus: Focus,
    random: StdRng,
    befallen: BTreeMap<&'static str, u64>,
    /// What ends a fault, and when.
    ends: Vec<(Instant, Ending)>,
}

/// What ends a fault.
#[derive(Debug)]
enum Ending {
    StartNode(usize, bool),
    StartWorker(usize),
    ThawNode(usize),
    ThawWorker(usize),
    Heal(String, String),
    StoreLink(usize),
    Weather,
    Trouble,
}

impl Faults {
    /// None yet.
    pub fn new(seed: u64, focus: Focus) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { focus, random, befallen: BTreeMap::new(), ends: Vec::new() }
    }

    /// How often each kind came.
    pub fn befallen(&self) -> BTreeMap<&'static str, u64> {
        self.befallen.clone()
    }

    /// Lets faults come, one after the other, for `time`. Each ends by itself.
    pub async fn befall(&mut self, world: &World, time: Duration) {
        let until = Instant::now() + time;
        let mut next = Instant::now();
        while Instant::now() < until {
            let ending = self.ends.iter().map(|(at, _)| *at).min();
            tokio::time::sleep_until(ending.map_or(next, |at| at.min(next)).min(until)).await;
            self.end_due(world);
            if Instant::now() >= next {
                if let Some(stop) = self.strike(world) {
                    tokio::spawn(stop);
                }
                next = Instant::now() + self.millis(PAUSE_MS.0, PAUSE_MS.1);
            }
        }
    }

    /// Ends every fault at once; every node and every client runs then.
    pub async fn end_all(&mut self, world: &World) {
        for (_, ending) in std::mem::take(&mut self.ends) {
            self.end(world, &ending);
        }
        world.network.set_weather(Weather::default());
        world.troubles.set(Trouble::default());
        // Stops that are under way end by themselves.
        tokio::time::sleep(Duration::from_secs(14)).await;
        for node in &world.nodes {
            let mut node = node.lock();
            node.thaw();
            node.live_on();
            if !node.runs() {
                node.start(true);
            }
        }
        for worker in &world.workers {
            let mut worker = worker.lock();
            worker.set_frozen(false);
            if !worker.runs() {
                worker.start();
            }
        }
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    /// A time: short, long enough to give a connection up, or longer than a promise.
    fn some_time(&mut self, world: &World) -> Duration {
        match self.random.random_range(0..10) {
            0..=4 => self.millis(50, 2_000),
            5 | 6 => self.millis(2_000, 5_000),
            _ => world.lease + self.millis(0, 4_000),
        }
    }

    fn later(&mut self, after: Duration, ending: Ending) {
        self.ends.push((Instant::now() + after, ending));
    }

    fn end_due(&mut self, world: &World) {
        let now = Instant::now();
        let (due, rest) = std::mem::take(&mut self.ends).into_iter().partition(|end| end.0 <= now);
        self.ends = rest;
        let due: Vec<(Instant, Ending)> = due;
        for (_, ending) in due {
            self.end(world, &ending);
        }
    }

    fn end(&mut self, world: &World, ending: &Ending) {
        match ending {
            Ending::StartNode(n, file) => {
                let mut node = world.nodes[*n].lock();
                if !node.runs() {
                    node.start(*file);
                }
            }
            Ending::StartWorker(n) => {
                let mut worker = world.workers[*n].lock();
                if !worker.runs() {
                    worker.start();
                }
            }
            Ending::ThawNode(n) => world.nodes[*n].lock().thaw(),
            Ending::ThawWorker(n) => world.workers[*n].lock().set_frozen(false),
            Ending::Heal(from, to) => world.network.heal(from, to),
            Ending::StoreLink(n) => world.nodes[*n].lock().set_store_cut(false),
            Ending::Weather => world.network.set_weather(Weather::default()),
            Ending::Trouble => world.troubles.set(Trouble::default()),
        }
    }

    fn note(&mut self, world: &World, fault: &'static str, what: impl FnOnce() -> String) {
        *self.befallen.entry(fault).or_default() += 1;
        world.checks.note(|| format!("FAULT {fault}: {}", what()));
    }

    /// One fault. Returns what it does over time.
    fn strike(&mut self, world: &World) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let n = self.random.random_range(0..world.nodes.len());
        let c = self.random.random_range(0..world.workers.len());
        let (node, client) =
            (world.nodes[n].lock().name().to_owned(), world.workers[c].lock().name().to_owned());
        let shared = matches!(world.disk, Disk::Shared(_));
        let kinds = self.focus.kinds();
        match kinds[self.random.random_range(0..kinds.len())] {
            0 | 1 => {
                self.note(world, "node killed", || node);
                world.nodes[n].lock().kill();
                let (after, file) = (self.some_time(world), self.random.random_bool(0.7));
                self.later(after, Ending::StartNode(n, file));
            }
            2 | 3 => {
                let steps = self.random.random_range(0..400);
                self.note(world, "node killed at a step", || format!("{node} after {steps}"));
                world.nodes[n].lock().kill_after(steps);
                let (after, file) = (self.some_time(world), self.random.random_bool(0.7));
                self.later(after + Duration::from_secs(1), Ending::StartNode(n, file));
            }
            4 | 5 => {
                let how = if self.random.random_bool(0.7) { Stop::Restart } else { Stop::Drain };
                self.note(world, "node stopped", || format!("{node} {how:?}"));
                let stop = world.nodes[n].lock().stop(how);
                let after = match how {
                    Stop::Restart => Duration::from_secs(1) + self.millis(0, 2_000),
                    Stop::Drain => Duration::from_secs(13) + self.millis(0, 3_000),
                };
                self.later(after, Ending::StartNode(n, true));
                return Some(Box::pin(stop));
            }
            6 | 7 => {
                let time = self.some_time(world);
                self.note(world, "node frozen", || format!("{node} for {time:?}"));
                world.nodes[n].lock().freeze();
                self.later(time, Ending::ThawNode(n));
            }
            8 | 20..=22 => {
                let time = self.some_time(world);
                self.note(world, "client frozen", || format!("{client} for {time:?}"));
                world.workers[c].lock().set_frozen(true);
                self.later(time, Ending::ThawWorker(c));
            }
            9 => {
                self.note(world, "client killed", || client);
                world.workers[c].lock().kill();
                let after = self.some_time(world);
                self.later(after, Ending::StartWorker(c));
            }
            10 | 11 => {
                let (a, b) = (node, client);
                self.cut(world, "client cut off", a, b);
            }
            12 | 13 => {
                let other = self.random.random_range(0..world.nodes.len());
                let other = world.nodes[other].lock().name().to_owned();
                if other != node {
                    self.cut(world, "nodes cut off", node, other);
                }
            }
            14 => {
                self.note(world, "connections reset", || format!("{node} {client}"));
                world.network.reset(&node, &client);
            }
            15 | 16 if shared => {
                let time = self.some_time(world);
                self.note(world, "store cut off", || format!("{node} for {time:?}"));
                world.nodes[n].lock().set_store_cut(true);
                self.later(time, Ending::StoreLink(n));
            }
            17 if shared => {
                let time = self.millis(500, 5_000);
                let trouble = Trouble {
                    refused: self.random.random_range(0..150),
                    unknown: self.random.random_range(0..150),
                    late: self.random.random_range(0..50),
                    again: self.random.random_range(0..50),
                    slow: self.random.random_range(0..200),
                    slow_max: self.millis(10, 2_000),
                };
                self.note(world, "store in trouble", || format!("for {time:?}: {trouble:?}"));
                world.troubles.set(trouble);
                self.later(time, Ending::Trouble);
            }
            18 | 19 => {
                let time = self.millis(500, 6_000);
                let weather = Weather {
                    lost: self.random.random_range(0..150),
                    repeated: self.random.random_range(0..150),
                    slow: self.random.random_range(0..300),
                    slow_max: self.millis(10, 3_000),
                };
                self.note(world, "bad weather", || format!("for {time:?}: {weather:?}"));
                world.network.set_weather(weather);
                self.later(time, Ending::Weather);
            }
            _ => {}
        }
        None
    }

    /// Cuts one or both directions between two processes.
    fn cut(&mut self, world: &World, fault: &'static str, a: String, b: String) {
        let time = self.some_time(world);
        let both = self.random.random_bool(0.5);
        self.note(world, fault, || format!("{a} and {b}, both ways: {both}, for {time:?}"));
        world.network.cut(&a, &b);
        self.later(time, Ending::Heal(a.clone(), b.clone()));
        if both {
            world.network.cut(&b, &a);
            self.later(time, Ending::Heal(b, a));
        }
    }
}
