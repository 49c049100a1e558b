//! A simulation of whole nodes and clients: one thread, simulated time, and one seed that repeats a
//! run.
//!
//! Everything between the network and the store is the product's own code: the client with its
//! driver and its outbox, the server's session streams, the service, the elected allocator, the
//! engine. The simulation has the rest: the [`network`] carries calls in place of sockets, the
//! [`store`] stands for PostgreSQL or Redis, [`node`]s and [`client`]s are processes that can be
//! frozen and killed between any two steps, and their clocks run up to 1 % apart (`env` of the
//! core). [`faults`] befall all of them; then they end, and everything must go on.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Plan`], [`run`], [`Report`] |
//! | `node`, `client` | the processes |
//! | `network`, `pipe`, `store` | what is between them |
//! | `faults` | what befalls them |
//! | `invariants` | what must hold all the same |
//! | `log` | what happened, to compare two runs of one seed |
//!
//! # A run
//! 1. A few seconds without faults.
//! 2. Faults of all kinds, at random.
//! 3. All faults end, all nodes and clients run. Each call ends within a bound, and each client
//!    does some work.
//! 4. The clients end. Nothing is left locked.
//!
//! # What it does not show
//! A thread that is stopped between reading the clock and acting on it (shuttle shows that, with a
//! clock that stalls); the frames of HTTP/2 and their flow control (tests on sockets show them); a
//! disk (`file:` and `rocks:` have tests of their own).

pub mod client;
pub mod faults;
pub mod invariants;
pub mod log;
pub mod network;
pub mod node;
mod pipe;
pub mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::AllocatorSettings;
use lockservice_core::clock::Clock;
use lockservice_core::env::ClockRate;
use lockservice_core::store::MemoryStore;
use lockservice_core::testing::{SharedStore, TokioClock};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;

use self::client::{Office, Work, Worker};
use self::faults::{Faults, Focus};
use self::invariants::{Checks, leftovers};
use self::log::Log;
use self::network::Network;
use self::node::{Disk, Node, Site};
use self::store::Troubles;

/// The time before the first fault.
const CALM: Duration = Duration::from_secs(3);
/// The time for which everything must go on after the last.
const SERVE: Duration = Duration::from_secs(60);
/// The longest time in which the clients end.
const END_MAX: Duration = Duration::from_secs(100);
/// The time in which what silent clients held is released.
const LAPSE: Duration = Duration::from_secs(40);

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything that is random.
    pub seed: u64,
    /// The time of the faults.
    pub faults: Duration,
    /// Their kinds.
    pub focus: Focus,
    /// Print each line of the log as it comes.
    pub echo: bool,
}

/// The outcome of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed that repeats it.
    pub seed: u64,
    /// The first violation.
    pub violation: Option<String>,
    /// The last lines of its log.
    pub tail: Vec<String>,
    /// What happened, and how often.
    pub counts: BTreeMap<&'static str, u64>,
    /// The faults, by their kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The time that was simulated.
    pub simulated: Duration,
    /// The number of lines of the log, and what they hash to.
    pub digest: (u64, u64),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(violation) = &self.violation {
            for line in &self.tail {
                writeln!(f, "{line}")?;
            }
            writeln!(f, "\nseed {}: {violation}", self.seed)?;
            return write!(f, "again: integration/simulate --seed {}", self.seed);
        }
        write!(f, "seed {}: {:?} {:?}", self.seed, self.counts, self.faults)
    }
}

/// Nodes and clients, and what is between them.
#[derive(Debug)]
pub struct World {
    /// The nodes.
    pub nodes: Vec<Mutex<Node>>,
    /// The clients.
    pub workers: Vec<Mutex<Worker>>,
    /// The network.
    pub network: Network,
    /// Where the binds are.
    pub disk: Disk,
    /// The troubles of the store.
    pub troubles: Troubles,
    /// What must hold.
    pub checks: Checks,
    /// The longest promise.
    pub lease: Duration,
    log: Log,
    closing: watch::Sender<bool>,
}

/// Runs a plan to its end, or to the first violation.
///
/// # Panics
/// If the runtime cannot be made.
pub fn run(plan: &Plan) -> Report {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    // Without it the order in which tokio wakes those who wait for one event is not determined.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&plan.seed.to_le_bytes()));
    let runtime = builder.build().expect("a runtime on this thread");
    let report = runtime.block_on(World::run(plan));
    // Tasks that are left end with it.
    drop(runtime);
    report
}

impl World {
    fn new(plan: &Plan, random: &mut StdRng) -> Self {
        let log = Log::new(plan.echo);
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::new());
        let network = Network::new(random.random(), log.clone());
        let troubles = Troubles::new(random.random());
        let checks = Checks::new(log.clone());
        let alone = random.random_bool(0.25);
        let mut settings = AllocatorSettings::default();
        if random.random_bool(0.5) {
            settings.constants.leadership_ttl_ms = 1_000;
            settings.constants.lease_ttl_ms = 2_000;
        }
        let lease = settings.constants.lease_ttl();
        let (disk, count) = if alone {
            (Disk::Alone(MemoryStore::new(1_000)), 1)
        } else {
            (Disk::Shared(SharedStore::new()), random.random_range(1..=3))
        };
        let site = Site {
            clock: Arc::clone(&clock),
            network: network.clone(),
            disk: disk.clone(),
            troubles: troubles.clone(),
            allocator: settings,
            log: log.clone(),
        };
        let mut rate = {
            let mut random = StdRng::seed_from_u64(random.random());
            move || ClockRate::faster_by_ppm(random.random_range(-4_900..=4_900))
        };
        let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
        let nodes = names
            .iter()
            .map(|name| Node::new(name, &site, rate(), random.random()))
            .map(Mutex::new);
        let nodes = nodes.collect();
        let closing = watch::Sender::new(false);
        let office = Office {
            clock,
            network: network.clone(),
            addresses: names.iter().map(|name| Node::address(name)).collect(),
            checks: checks.clone(),
            closing: closing.subscribe(),
            ttl: Duration::from_millis(random.random_range(3_000..10_000)),
        };
        let works = [
            Work::Bank,
            Work::Bank,
            Work::Bank,
            Work::Reader,
            Work::Job,
            Work::Job,
            Work::Ranger,
            Work::Ranger,
            Work::Upgrader,
            Work::Upgrader,
        ];
        let workers = works.iter().enumerate().map(|(n, work)| {
            let name = format!("c{n}-{work:?}").to_lowercase();
            Mutex::new(Worker::new(&name, *work, &office, rate(), random.random()))
        });
        let workers = workers.collect();
        Self { nodes, workers, network, disk, troubles, checks, lease, log, closing }
    }

    async fn run(plan: &Plan) -> Report {
        let began = tokio::time::Instant::now();
        let mut random = StdRng::seed_from_u64(plan.seed);
        let world = Self::new(plan, &mut random);
        let mut faults = Faults::new(random.random(), plan.focus);
        tokio::select! {
            biased;
            () = world.checks.violated() => {}
            () = world.live(plan, &mut faults) => {}
        }
        let mut befallen = faults.befallen();
        befallen.extend(world.network.faults());
        befallen.extend(world.troubles.faults());
        Report {
            seed: plan.seed,
            violation: world.checks.violation(),
            tail: world.log.tail(400),
            counts: world.checks.counts(),
            faults: befallen,
            simulated: began.elapsed(),
            digest: world.log.digest(),
        }
    }

    async fn live(&self, plan: &Plan, faults: &mut Faults) {
        for node in &self.nodes {
            node.lock().start(true);
        }
        for worker in &self.workers {
            worker.lock().start();
        }
        tokio::time::sleep(CALM).await;
        self.log.note(|| "faults begin".to_owned());
        faults.befall(self, plan.faults).await;
        faults.end_all(self).await;
        self.log.note(|| "faults are over".to_owned());
        self.checks.healed();
        self.watch(SERVE).await;
        let names: Vec<String> =
            self.workers.iter().map(|it| it.lock().name().to_owned()).collect();
        self.checks.all_work(&names);
        self.log.note(|| "the clients end".to_owned());
        self.closing.send_replace(true);
        self.end().await;
    }

    /// Lets time pass while no call may hang.
    async fn watch(&self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(500)).await;
            self.checks.no_call_hangs();
        }
    }

    /// Waits for the end of all clients. Then nothing is left.
    async fn end(&self) {
        for worker in &self.workers {
            let (name, mut ended) = {
                let worker = worker.lock();
                (worker.name().to_owned(), worker.watch_ended())
            };
            let ended = ended.wait_for(|ended| *ended);
            if tokio::time::timeout(END_MAX, ended).await.is_err() {
                self.checks.violate(format!("{name} does not end"));
                return;
            }
        }
        tokio::time::sleep(LAPSE).await;
        for node in &self.nodes {
            let (name, service) = {
                let node = node.lock();
                (node.name().to_owned(), node.service())
            };
            let Some(service) = service else {
                self.checks.violate(format!("{name} does not serve after all faults are over"));
                return;
            };
            let left = leftovers(&name, &service, 10);
            if !left.is_empty() {
                self.checks.violate(format!("everybody has gone, and this is left: {left:#?}"));
            }
        }
    }
}
