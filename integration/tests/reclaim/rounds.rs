//! Fifty commands write a journal under their locks while their server is killed or stopped, again
//! and again, and is back within their guards.
//!
//! - `INTEGRATION_RESTARTS` is the number of times, 4 if it is not set.
//! - `INTEGRATION_TEST_SEED` repeats the choices of a run.
//!
//! After a kill a table grants nothing new before the lease has run out, so a round takes as long
//! as the lease, and about three seconds after a stop.

use std::collections::HashMap;
use std::time::Duration;

use integration::journal::{Journal, Turn};
use integration::load::{KEYS, Load, LoadOptions, Waiter, is_in_order, seed};
use integration::on_each_store;
use integration::server::{Place, Server};
use integration::within;
use lockservice::client::AdminClient;
use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::WRITER;

/// The commands, of which most wait.
const COMMANDS: usize = 50;

/// The default of an exclusive store. A guard that was renewed a third of this ago covers the
/// absence, a leadership TTL and the start.
const LEASE: Duration = Duration::from_secs(15);

/// The longest absence.
const AWAY_MAX: Duration = Duration::from_secs(3);

/// Calls that arrived closer together may be served in either order after a restart.
const MARGIN: Duration = Duration::from_millis(200);

on_each_store! {
    fifty_commands_go_on_over_restarts_and_exclude_each_other;
    fifty_commands_go_on_while_their_server_is_frozen_for_a_while;
}

mod check {
    use integration::store::StoreKind;

    use super::*;

    pub(super) async fn fifty_commands_go_on_over_restarts_and_exclude_each_other(
        store: StoreKind,
    ) {
        let place = Place::new(store).with_lease(LEASE);
        Box::pin(they_go_on(&place, &RESTARTS)).await;
    }

    pub(super) async fn fifty_commands_go_on_while_their_server_is_frozen_for_a_while(
        store: StoreKind,
    ) {
        let place = Place::new(store).with_lease(LEASE);
        Box::pin(they_go_on(&place, &[End::Freeze])).await;
    }
}

mod shared {
    use super::*;

    integration::on_each_server! {
        fifty_commands_go_on_over_restarts_and_exclude_each_other;
    }

    mod check {
        use super::*;

        pub(super) async fn fifty_commands_go_on_over_restarts_and_exclude_each_other(store: &str) {
            let place = Place::joining(store, "a").with_lease(LEASE);
            Box::pin(they_go_on(&place, &RESTARTS)).await;
        }
    }
}

/// `INTEGRATION_RESTARTS`, or 4.
fn rounds() -> usize {
    std::env::var("INTEGRATION_RESTARTS")
        .map_or(4, |text| text.parse().expect("INTEGRATION_RESTARTS is a number"))
}

/// P3, P6, F1.
async fn they_go_on(place: &Place, ends: &[End]) {
    let seed = seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut server = place.start().await;
    let mut journal = Journal::new(place.directory());
    let mut load = Load::start(&LoadOptions {
        address: place.address.clone(),
        writer: WRITER,
        journal: journal.path().to_owned(),
        commands: COMMANDS,
        ttl: LEASE,
        hold_max: Duration::from_secs(5),
        seed,
        deaf: false,
    });
    within("all keys are held", journal.wait_until(|turns| keys(turns) == KEYS)).await;
    let mut queues = Queues::default();
    let rounds = rounds();
    for round in 0..rounds {
        // Some more turns, so that every restart is seen to serve, and then any moment.
        let turns = journal.turns().len() + rng.random_range(1..=KEYS);
        within("turns go on", journal.wait_until(|now| now.len() >= turns)).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        let served = journal.turns().len();
        let before = load.queues(&place.client().await.admin()).await;
        let end = ends[rng.random_range(0..ends.len())];
        println!("round {round}: {end:?}, {served} turns, {} queues", before.len());
        server = end.make(place, server, &mut rng).await;
        let ended = load.ended_early();
        if !ended.is_empty() {
            let logs = Box::pin(place.last_logs(3)).await;
            panic!("seed {seed}, round {round}, {end:?}: {ended:?}\n{logs}");
        }
        let admin = place.client().await.admin();
        queues.add(served, before, end, &load, &admin, &mut journal).await;
    }
    let turns = journal.turns().len() + KEYS;
    within("turns go on", journal.wait_until(|now| now.len() >= turns)).await;
    journal.stop_writers();
    load.stop().await;
    assert_eq!(load.ended_early(), [], "seed {seed}: {}", server.log());
    let turned_away = load.turned_away();
    let worked = journal.turns().iter().find(|turn| turned_away.contains(&turn.name));
    assert_eq!(worked, None, "seed {seed}: it had met a server");
    let (ordered, passed) = queues.check(journal.turns(), seed);
    assert!(ordered > 0 || rounds == 0, "seed {seed}: some queue tells something");
    println!(
        "{} commands did their work, in {} lines; {} found no server; {ordered} queues were \
            served in order; {} had another order after a stop; in {passed} a waiter was passed",
        load.done(),
        journal.lines(),
        turned_away.len(),
        queues.reordered
    );
    assert!(server.stop().await.success());
}

/// The number of keys in which something has happened.
fn keys(turns: &[Turn]) -> usize {
    turns.iter().map(|turn| turn.key.as_str()).collect::<std::collections::HashSet<_>>().len()
}

/// How a server ends, and is back within [`AWAY_MAX`].
#[derive(Clone, Copy, Debug)]
enum End {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Stop,
    /// SIGKILL, and once more while the holders claim.
    KillTwice,
    /// SIGTERM, and SIGKILL while the holders claim.
    StopAndKill,
    /// SIGSTOP. It is the same server afterwards.
    Freeze,
}

/// Restarts of any kind, the plain ones more often.
const RESTARTS: [End; 6] =
    [End::Kill, End::Kill, End::Stop, End::Stop, End::KillTwice, End::StopAndKill];

impl End {
    /// Ends the server, and starts it again.
    async fn make(self, place: &Place, server: Server, rng: &mut SmallRng) -> Server {
        let away = rng.random_range(0..=AWAY_MAX.as_millis() as u64);
        match self {
            Self::Kill | Self::KillTwice => server.kill().await,
            Self::Stop | Self::StopAndKill => assert!(server.stop().await.success()),
            Self::Freeze => {
                server.signal(Signal::SIGSTOP);
                tokio::time::sleep(Duration::from_millis(away)).await;
                server.signal(Signal::SIGCONT);
                return server;
            }
        }
        if matches!(self, Self::Kill | Self::Stop) {
            tokio::time::sleep(Duration::from_millis(away)).await;
            return place.start().await;
        }
        // The three parts together are no longer than one absence.
        let mut parts = [rng.random_range(0..=away), rng.random_range(0..=away)];
        parts.sort_unstable();
        tokio::time::sleep(Duration::from_millis(parts[0])).await;
        let again = place.start().await;
        tokio::time::sleep(Duration::from_millis(parts[1] - parts[0])).await;
        again.kill().await;
        tokio::time::sleep(Duration::from_millis(away - parts[1])).await;
        place.start().await
    }

    /// True if no waiter can lose its place: none went away, or no table grants before its lease
    /// has run out, long after every waiter is back.
    fn keeps_queues(self) -> bool {
        matches!(self, Self::Freeze | Self::Kill | Self::KillTwice)
    }
}

/// A queue whose order tells who is served first.
#[derive(Debug)]
struct Queue {
    key: String,
    waiters: Vec<Waiter>,
    /// How many turns there had been before it was looked at.
    from: usize,
    /// How many there had been before the next restart that may have changed it.
    to: Option<usize>,
    /// A row that was free as the table was opened may have gone to one that was back earlier.
    may_be_passed: bool,
}

/// The queues over all restarts.
#[derive(Debug, Default)]
struct Queues {
    all: Vec<Queue>,
    /// How many were in another order when all were back.
    reordered: usize,
}

impl Queues {
    /// Adds the queues as they were before a restart, if the restart cannot have changed their
    /// order. After a stop a table grants as soon as its holders have claimed, and a waiter that is
    /// back later than that has lost its place. Then all of them have to be back, and those queues
    /// are added as they are now.
    async fn add(
        &mut self,
        from: usize,
        before: HashMap<String, Vec<Waiter>>,
        end: End,
        load: &Load,
        admin: &AdminClient,
        journal: &mut Journal,
    ) {
        let may_be_passed = !end.keeps_queues();
        let queue = |from, may_be_passed| {
            move |(key, waiters)| Queue { key, waiters, from, to: None, may_be_passed }
        };
        if may_be_passed {
            for queue in &mut self.all {
                queue.to.get_or_insert(from);
            }
        }
        self.all.extend(before.clone().into_iter().map(queue(from, may_be_passed)));
        if !may_be_passed {
            return;
        }
        let all_are_back = async {
            loop {
                let looked = journal.turns().len();
                let now = load.queues(admin).await;
                let turns = &journal.turns()[from..];
                let is_served = |waiter: &Waiter| turns.iter().any(|turn| turn.name == waiter.name);
                let is_back = |(key, waiters): (&String, &Vec<Waiter>)| {
                    waiters.iter().all(|waiter| is_served(waiter) || waits(waiter, now.get(key)))
                };
                if before.iter().all(is_back) {
                    return (looked, now);
                }
            }
        };
        let (looked, now) = within("the waiters are back", Box::pin(all_are_back)).await;
        for (key, queue) in &now {
            let names: Vec<&str> = queue.iter().map(|waiter| waiter.name.as_str()).collect();
            let earlier: Vec<Waiter> = before.get(key).into_iter().flatten().cloned().collect();
            let waiting: Vec<Waiter> =
                earlier.into_iter().filter(|waiter| names.contains(&&*waiter.name)).collect();
            self.reordered += usize::from(is_in_order(&waiting, &names, MARGIN).is_err());
        }
        self.all.extend(now.into_iter().map(queue(looked, false)));
    }

    /// Checks each against the turns. Returns how many there were to check, and in how many of them
    /// a waiter was passed that may have been.
    fn check(&self, turns: &[Turn], seed: u64) -> (usize, usize) {
        let (mut checked, mut passed) = (0, 0);
        for queue in &self.all {
            let served: Vec<&str> = turns[queue.from..queue.to.unwrap_or(turns.len())]
                .iter()
                .filter(|turn| turn.key == queue.key)
                .map(|turn| turn.name.as_str())
                .collect();
            let order = is_in_order(&queue.waiters, &served, MARGIN);
            if queue.may_be_passed && order.is_err() {
                passed += 1;
                continue;
            }
            assert_eq!(order, Ok(()), "seed {seed}, key {}", queue.key);
            checked += usize::from(queue.waiters.len() > 1 && !served.is_empty());
        }
        (checked, passed)
    }
}

/// True if a call of this command waits.
fn waits(waiter: &Waiter, queue: Option<&Vec<Waiter>>) -> bool {
    queue.is_some_and(|queue| queue.iter().any(|other| other.name == waiter.name))
}
