//! The outage that started it all: the first start, and the first after an upgrade, under full
//! concurrent load.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, BindSlot, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Registration,
};
use lockservice_core::clock::{Clock, Time};
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, Head, Leadership, MemoryStore, Renewal, StoreState,
    WriteAck,
};
use lockservice_core::testing::ManualClock;
use lockservice_core::{
    BindVersion, CommitAttempt, Epoch, ErrorKind, NodeName, Nonce, Result, ServiceId, TableId,
    TableRef, TxnId, TxnNumber, WriteNumber,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

const COMMITS: u64 = 400;
const BINDS: u64 = 100;

/// A store whose acquisition and loading are held open until they are let go, as by a long
/// migration.
#[derive(Debug)]
struct Migrating {
    inner: MemoryStore,
    gate: Arc<Semaphore>,
    reached: watch::Sender<bool>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BindStore for Migrating {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn load(&self) -> Result<StoreState> {
        self.gate.acquire().await.expect("never closed").forget();
        self.inner.load().await
    }
    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        self.reached.send_replace(true);
        self.gate.acquire().await.expect("never closed").forget();
        self.inner.acquire_leadership(candidate, ttl).await
    }
    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.inner.renew(epoch).await
    }
    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.inner.resign(epoch).await
    }
    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        self.inner.write(epoch, number, batch).await
    }
    async fn applied(&self) -> Result<Applied> {
        self.inner.applied().await
    }
    async fn head(&self) -> Result<Option<Head>> {
        self.inner.head().await
    }
    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.inner.wait_for_change(poll).await
    }
}

fn start(store: Arc<dyn BindStore>) -> Arc<LocalAllocator> {
    let node = NodeName::new("n").expect("a name");
    LocalAllocator::start(store, Arc::new(ManualClock::new()), AllocatorSettings::default(), node)
        .expect("defaults")
}

fn register(node: &str) -> Registration {
    Registration {
        node: NodeName::new(node).expect("a name"),
        nonce: Nonce::new(1),
        address: String::new(),
        replaces: None,
    }
}

/// A commit that presents binds of tables that were never seen.
fn unseen(origin: ServiceId, n: u64) -> BeginCommit {
    BeginCommit {
        txn: TxnId::new(origin, TxnNumber::new(n), true),
        binds: (0..4)
            .map(|i| PresentedBind {
                table: TableId::new(1 << 50 | (n * 4 + i)),
                partition: 0,
                owner: origin,
                version: BindVersion::new(n),
                slot: BindSlot::NONE,
            })
            .collect(),
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
    }
}

/// Hundreds of commits of unseen tables beside binds. Returns when all have their responses.
async fn storm(
    allocator: &Arc<LocalAllocator>,
    origin: ServiceId,
    while_running: impl Future<Output = ()>,
) {
    let mut tasks = JoinSet::new();
    for n in 0..COMMITS {
        let allocator = Arc::clone(allocator);
        tasks.spawn(async move {
            // Both forms; the first may say that the store is being opened.
            let at_once = allocator.begin_commit_now(&unseen(origin, n)).expect_err("never seen");
            assert_ne!(at_once.kind(), ErrorKind::Internal);
            let refused = allocator.begin_commit(&unseen(origin, n)).await.expect_err("never seen");
            assert!(
                matches!(refused.kind(), ErrorKind::BindChanged | ErrorKind::CannotCommit),
                "{refused:?}"
            );
            allocator
                .finish_commit(unseen(origin, n).txn, CommitAttempt::new(1))
                .await
                .expect("no error");
        });
    }
    let request = register("binder");
    let (binder, ()) = tokio::join!(allocator.register(&request), while_running);
    let binder = binder.expect("a free name").service;
    for n in 0..BINDS {
        let allocator = Arc::clone(allocator);
        tasks.spawn(async move {
            let table = TableRef::new("bound", format!("t{n}")).expect("names");
            let bound = allocator.bind(binder, &table).await.expect("free");
            let txn = TxnId::new(binder, TxnNumber::new(n), true);
            let mut request = unseen(binder, n);
            request.binds = vec![PresentedBind::from(&bound.bind)];
            allocator.begin_commit(&request).await.expect("current");
            allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("admitted");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no caller fails");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_first_start_on_an_empty_store_serves_commits_of_tables_never_seen_before() {
    let allocator = start(Arc::new(MemoryStore::new(1)));
    let origin = allocator.register(&register("origin")).await.expect("a free name").service;
    let (tables, services, transactions) = allocator.entries();
    assert_eq!((tables, services, transactions), (0, 1, 0));
    storm(&allocator, origin, async {}).await;
    assert_eq!(
        allocator.entries(),
        (BINDS as usize, services + 1, 0),
        "only binds create tables, only registrations create control state"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_migration_that_takes_long_carries_the_same_load_and_loses_no_session() {
    let gate = Arc::new(Semaphore::new(0));
    let (reached, mut at_gate) = watch::channel(false);
    let store = Migrating { inner: MemoryStore::new(1), gate: Arc::clone(&gate), reached };
    let allocator = start(Arc::new(store));
    // An origin of an earlier time: the commits come before anyone can have registered.
    let origin = ServiceId::new(3);
    storm(&allocator, origin, async {
        at_gate.wait_for(|reached| *reached).await.expect("the store lives");
        let early =
            allocator.begin_commit_now(&unseen(origin, 1)).expect_err("the store is being opened");
        assert_eq!(early.kind(), ErrorKind::Unavailable);
        assert_eq!(
            allocator.entries(),
            (0, 0, 0),
            "nothing is created while the store is being opened"
        );
        gate.add_permits(1);
        tokio::task::yield_now().await;
        gate.add_permits(1);
    })
    .await;
    assert_eq!(allocator.entries(), (BINDS as usize, 1, 0));
}

/// A clock that stops threads of this name when they read it, until it is released.
#[derive(Debug)]
struct Held {
    clock: ManualClock,
    inside: mpsc::Sender<()>,
    release: Mutex<mpsc::Receiver<()>>,
}

const HELD: &str = "held inside";

impl Clock for Held {
    fn now(&self) -> Time {
        if std::thread::current().name() == Some(HELD) {
            self.inside.send(()).expect("the test waits");
            self.release.lock().expect("one caller is held").recv().expect("the test releases");
        }
        self.clock.now()
    }
}

/// The longest time for a commit that is not held up: only to fail rather than hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `commit` in a thread of its own; panics if it does not come back.
fn comes_back<T: Send>(
    commit: impl FnOnce() -> T + Send,
    meanwhile: &str,
    release: impl FnOnce(),
) -> T {
    let (done, response) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(done.send(commit())));
        let response = response.recv_timeout(PATIENCE);
        // Else the scope would wait for ever for what is held up.
        release();
        response.unwrap_or_else(|_| panic!("a commit is held up by {meanwhile}"))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_commit_held_in_the_allocator_holds_up_no_other_of_the_same_table() {
    let (inside, entered) = mpsc::channel();
    let (release, held) = mpsc::channel();
    let clock = Arc::new(Held { clock: ManualClock::new(), inside, release: Mutex::new(held) });
    let node = NodeName::new("n").expect("a name");
    let allocator = LocalAllocator::open(
        Arc::new(MemoryStore::new(1)),
        clock,
        AllocatorSettings::default(),
        node,
    );
    let allocator = allocator.await.expect("opens");
    let origin = allocator.register(&register("origin")).await.expect("a free name").service;
    let bound =
        allocator.bind(origin, &TableRef::new("g", "t").expect("names")).await.expect("free");
    let request =
        |n| BeginCommit { binds: vec![PresentedBind::from(&bound.bind)], ..unseen(origin, n) };
    let held = request(1);
    std::thread::scope(|scope| {
        let first = std::thread::Builder::new()
            .name(HELD.to_owned())
            .spawn_scoped(scope, || allocator.begin_commit_now(&held))
            .expect("a thread");
        entered.recv().expect("the first is inside");
        let second = comes_back(
            || allocator.begin_commit_now(&request(2)),
            "another that reads the clock",
            || release.send(()).expect("the first waits"),
        );
        second.expect("current");
        first.join().expect("no panic").expect("current");
    });
}
