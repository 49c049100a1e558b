//! The world of a model: a service over a real allocator, a clock that the model moves, and rows
//! that notice if two of their holders exclude each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
use lockservice_core::env::{ClockRate, Env};
use lockservice_core::service::{
    LockService, LockSpec, OpResponse, Operation, Pending, ServiceParts, Session, Txn, TxnOp,
    TxnOptions,
};
use lockservice_core::store::{ClusterConstants, MemoryStore};
use lockservice_core::table::WaitPolicy;
use lockservice_core::testing::ManualClock;
use lockservice_core::{
    Key, KeyRange, LockItem, LockMode, NodeName, Result, Sequence, TableRef, TxnId, TxnNumber,
};
use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::{Config, Runner, thread};

/// The schedules of a model, of each kind, unless `SHUTTLE_ITERATIONS` says otherwise.
const ITERATIONS: usize = 1_000;
/// Forced switches of a schedule of the second kind.
const DEPTH: usize = 4;

/// Room for three rows of one transaction: a fourth one may make a range of them.
const TXN_BYTES_MAX: usize = 3 * 310 + 155;

pub(crate) const TTL: Duration = Duration::from_secs(10);

/// Runs a model under many schedules: purely random ones, and those that switch threads at few
/// random points. A schedule that fails is printed.
pub(crate) fn check(model: fn(World)) {
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    // It takes every atomic as sequentially consistent. The orderings are loom's business.
    config.silence_warnings = true;
    let run = move || model(World::new());
    if let Ok(schedule) = std::env::var("SHUTTLE_REPLAY") {
        Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(run);
        return;
    }
    let iterations = std::env::var("SHUTTLE_ITERATIONS").map_or(ITERATIONS, |iterations| {
        iterations.parse().expect("SHUTTLE_ITERATIONS is a number")
    });
    Runner::new(RandomScheduler::new(iterations), config.clone()).run(run);
    Runner::new(PctScheduler::new(DEPTH, iterations), config).run(run);
}

/// A node, and the rows that its locks protect. Clones are handles.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) service: LockService,
    allocator: Arc<LocalAllocator>,
    clock: ManualClock,
    env: Env,
    store: Arc<MemoryStore>,
    rows: Arc<[Row; 2]>,
    /// It is a later process, which may have been bound for claims without knowing it.
    is_later: bool,
}

/// Longer than a model lasts, unless it moves the clock by it.
const LEASE: Duration = Duration::from_secs(3_600);

impl World {
    fn new() -> Self {
        let clock = ManualClock::new();
        let env = Env::simulated(Arc::new(clock.clone()), 1, ClockRate::EXACT);
        let store = Arc::new(MemoryStore::new(1));
        let (service, allocator) = block_on(start(&store, &env));
        Self { service, allocator, clock, env, store, rows: Arc::default(), is_later: false }
    }

    /// The next process, after a stop for a restart.
    pub(crate) fn restarts(self) -> Self {
        let stopped = block_on(self.service.stop_for_restart(TTL));
        assert!(stopped.resigned, "{stopped:?}");
        block_on(self.allocator.shutdown(stopped.confirmed, TTL)).expect("the store responds");
        self.starts_again()
    }

    /// The next process, on the same store.
    fn starts_again(self) -> Self {
        let Self { service, allocator, clock, env, store, rows, .. } = self;
        drop((service, allocator));
        let (service, allocator) = block_on(start(&store, &env));
        Self { service, allocator, clock, env, store, rows, is_later: true }
    }

    /// Has the table bound, so that no call of the model stands in its line.
    pub(crate) fn bound(self) -> Self {
        let txn = self.service.begin(TxnOptions::default()).expect("it serves");
        block_on(txn.lock(spec("a", LockMode::Exclusive))).expect("it is free");
        let table = self.service.table(&table()).expect("it is bound");
        let key = Key::new("b").expect("a key");
        // Rows are locked at once as soon as the line has ended.
        while txn.lock_row(&table, &key, LockMode::Exclusive).is_none() {
            thread::yield_now();
        }
        txn.end(None);
        self
    }

    /// The session of a client.
    pub(crate) fn session(&self) -> Session {
        self.service.open_session(Some(TTL), "client").expect("it serves")
    }

    /// Lets time pass.
    pub(crate) fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.env.fire_timers();
    }

    /// Works on the rows under a lock on `item`, and fails if another does that does not agree
    /// with it.
    pub(crate) fn work(&self, item: &str, mode: LockMode) {
        let rows =
            || self.rows.iter().zip(["a", "b"]).filter(|(_, name)| ["*", name].contains(&item));
        rows().for_each(|(row, _)| row.enter(mode));
        thread::yield_now();
        rows().for_each(|(row, _)| row.leave(mode));
    }

    /// That nothing is left of the model, and stops the service. The task of a call that was
    /// answered by the end of its session may still have to drop it: what stays would be waited for
    /// until the schedule has too many steps.
    pub(crate) fn ends_clean(self) {
        while !self.service.locks(None).is_empty() || !self.service.waits(None).is_empty() {
            thread::yield_now();
        }
        let txn = self.service.begin(TxnOptions::default()).expect("it serves");
        let all = LockSpec { wait: WaitPolicy::NoWait, ..spec("*", LockMode::Exclusive) };
        block_on(txn.lock(all)).expect("everything is free");
        txn.end(None);
        self.stops();
    }

    /// Stops the service, in which nothing is in use.
    pub(crate) fn stops(self) {
        let stopped = block_on(self.service.shutdown(TTL));
        // A process that may have been bound for claims without knowing it does not resign (P6).
        assert!(stopped.confirmed && (stopped.resigned || self.is_later), "{stopped:?}");
        if stopped.resigned {
            // Otherwise it would wait for the lease, and no time passes here.
            block_on(self.allocator.shutdown(true, TTL)).expect("the store responds");
        }
    }
}

/// Starts a process of the node.
async fn start(store: &Arc<MemoryStore>, env: &Env) -> (LockService, Arc<LocalAllocator>) {
    let node = NodeName::new("node").expect("a name");
    let lease_ttl_ms = LEASE.as_millis() as u64;
    let constants = ClusterConstants { lease_ttl_ms, ..ClusterConstants::default() };
    let settings = AllocatorSettings { constants, ..AllocatorSettings::default() };
    let opened =
        LocalAllocator::open(Arc::<MemoryStore>::clone(store), env.clone(), settings, node.clone());
    let allocator = opened.await.expect("it opens");
    let mut parts = ServiceParts::new(Arc::clone(&allocator) as _, env.clone(), node);
    parts.settings.engine.txn_lock_bytes_max = TXN_BYTES_MAX;
    (LockService::start(parts).await.expect("the service starts"), allocator)
}

/// The transactions that work on a row: what its locks protect.
#[derive(Default)]
struct Row {
    readers: AtomicUsize,
    updaters: AtomicUsize,
    writers: AtomicUsize,
}

impl Row {
    fn of(&self, mode: LockMode) -> &AtomicUsize {
        match mode {
            LockMode::Shared => &self.readers,
            LockMode::Update => &self.updaters,
            LockMode::Exclusive => &self.writers,
        }
    }

    fn enter(&self, mode: LockMode) {
        self.of(mode).fetch_add(1, SeqCst);
        self.check();
    }

    fn leave(&self, mode: LockMode) {
        self.check();
        self.of(mode).fetch_sub(1, SeqCst);
    }

    fn check(&self) {
        let now = [&self.readers, &self.updaters, &self.writers].map(|count| count.load(SeqCst));
        let agree = matches!(now, [_, 0 | 1, 0] | [0, 0, 1]);
        assert!(agree, "readers, updaters, writers: {now:?}");
    }
}

fn table() -> TableRef {
    TableRef::new("g", "t").expect("names")
}

fn items(item: &str) -> Vec<LockItem> {
    vec![match item {
        "*" => LockItem::Range(KeyRange::whole_table()),
        row => LockItem::Row(Key::new(row).expect("a key")),
    }]
}

/// A lock on a row, or on the whole table: `*`.
pub(crate) fn spec(item: &str, mode: LockMode) -> LockSpec {
    LockSpec { mode, ..LockSpec::new(table(), items(item)) }
}

/// An operation of transaction 1 of a client that numbers its transactions and operations.
pub(crate) fn op(sequence: u64) -> TxnOp {
    let (number, sequence) = (TxnNumber::new(1), Sequence::new(sequence));
    TxnOp { number, sequence, ..TxnOp::default() }
}

pub(crate) fn unlock(item: &str) -> Operation {
    Operation::Unlock { table: table(), items: items(item), commit: None }
}

/// A transaction of a client.
pub(crate) struct ClientTxn {
    session: Session,
    number: TxnNumber,
    id: TxnId,
}

impl ClientTxn {
    pub(crate) fn begin(session: &Session) -> Self {
        let (number, id) = session.begin(&TxnOptions::default()).expect("the session is open");
        Self { session: session.clone(), number, id }
    }

    pub(crate) fn id(&self) -> TxnId {
        self.id
    }

    pub(crate) fn number(&self) -> TxnNumber {
        self.number
    }

    pub(crate) fn submit(&self, operation: Operation) -> Pending {
        self.session.submit(TxnOp { number: self.number, ..TxnOp::default() }, operation)
    }

    pub(crate) fn lock(&self, item: &str, mode: LockMode) -> Pending {
        self.submit(Operation::Lock(spec(item, mode)))
    }

    /// Locks what is free, or will be.
    pub(crate) fn locks(&self, item: &str, mode: LockMode) {
        block_on(self.lock(item, mode)).expect("the holders end");
    }

    /// Returns how many locks were released.
    fn release(&self, operation: Operation) -> Result<usize> {
        match block_on(self.submit(operation))? {
            OpResponse::Done { released } => Ok(released),
            other => panic!("a release gets the response {other:?}"),
        }
    }

    pub(crate) fn unlock(&self, item: &str) -> Result<usize> {
        self.release(unlock(item))
    }

    pub(crate) fn end(&self) -> Result<usize> {
        self.release(Operation::End { commit: None })
    }
}

/// Locks as an embedder: at once if the row is free, else in the general way.
pub(crate) fn lock_embedded(world: &World, item: &str, mode: LockMode) -> Txn {
    let txn = world.service.begin(TxnOptions::default()).expect("it serves");
    let at_once = match (items(item).pop(), world.service.table(&table())) {
        (Some(LockItem::Row(key)), Some(table)) => txn.lock_row(&table, &key, mode).is_some(),
        _ => false,
    };
    if !at_once {
        block_on(txn.lock(spec(item, mode))).expect("the holders end");
    }
    txn
}
