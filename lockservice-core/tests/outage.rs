//! The outage that started it all (spec J1): the first start, and the first after an upgrade, under full concurrent load.
#![cfg(not(loom))]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, LocalAllocator, LockTableAllocator, PresentedBind, Resume,
};
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, Leadership, MemoryStore, Renewal, StoreState, WriteAck,
};
use lockservice_core::testing::ManualClock;
use lockservice_core::{
    BindVersion, CommitAttempt, Epoch, ErrorKind, GuardedMap, NodeName, Nonce, Result, ServiceId, TableRef, TxnId,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

const COMMITS: u64 = 400;
const BINDS: u64 = 100;

/// A store whose acquisition and loading are held open until they are let go, as by a long migration.
#[derive(Debug)]
struct Migrating {
    inner: MemoryStore,
    gate: Arc<Semaphore>,
    reached: watch::Sender<bool>,
}

#[async_trait]
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
    async fn write(&self, epoch: Epoch, number: u64, batch: &Batch) -> Result<WriteAck> {
        self.inner.write(epoch, number, batch).await
    }
    async fn applied(&self) -> Result<Applied> {
        self.inner.applied().await
    }
}

fn start(store: Arc<dyn BindStore>) -> Arc<LocalAllocator> {
    let node = NodeName::new("n").expect("a name");
    LocalAllocator::start(store, Arc::new(ManualClock::new()), AllocatorSettings::default(), node).expect("defaults")
}

fn resume(node: &str) -> Resume {
    Resume { node: NodeName::new(node).expect("a name"), nonce: Nonce::new(1), address: String::new(), replaces: None }
}

/// A commit that presents binds of a group that nobody has ever seen.
fn unseen(origin: ServiceId, n: u64) -> BeginCommit {
    BeginCommit {
        txn: TxnId::new(origin, n, true),
        binds: (0..4)
            .map(|i| PresentedBind {
                table: TableRef::new(format!("never-seen-{n}"), format!("t{i}")).expect("names"),
                partition: 0,
                owner: origin,
                version: BindVersion::new(n),
            })
            .collect(),
        attempt: CommitAttempt::new(1),
        asked: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
    }
}

/// Hundreds of commits of unseen groups beside binds. Answers when all have been answered.
async fn storm(allocator: &Arc<LocalAllocator>, origin: ServiceId, while_running: impl Future<Output = ()>) {
    let mut tasks = JoinSet::new();
    for n in 0..COMMITS {
        let allocator = Arc::clone(allocator);
        tasks.spawn(async move {
            // Both forms; the first may say that the store is being opened.
            let at_once = allocator.begin_commit_now(&unseen(origin, n)).expect_err("never seen");
            assert_ne!(at_once.kind(), ErrorKind::Internal);
            let refused = allocator.begin_commit(&unseen(origin, n)).await.expect_err("never seen");
            assert!(matches!(refused.kind(), ErrorKind::BindChanged | ErrorKind::CannotCommit), "{refused:?}");
            allocator.finish_commit(unseen(origin, n).txn, CommitAttempt::new(1)).await.expect("no error");
        });
    }
    let request = resume("binder");
    let (binder, ()) = tokio::join!(allocator.resume(&request), while_running);
    let binder = binder.expect("a free name").service;
    for n in 0..BINDS {
        let allocator = Arc::clone(allocator);
        tasks.spawn(async move {
            let table = TableRef::new("bound", format!("t{n}")).expect("names");
            let bound = allocator.bind(binder, &table).await.expect("free");
            let txn = TxnId::new(binder, n, true);
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
async fn the_first_start_on_an_empty_store_bears_commits_of_groups_never_seen_before() {
    let allocator = start(Arc::new(MemoryStore::new(1)));
    let origin = allocator.resume(&resume("origin")).await.expect("a free name").service;
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
async fn a_migration_that_takes_long_bears_the_same_load_and_nobody_is_lost() {
    let gate = Arc::new(Semaphore::new(0));
    let (reached, mut at_gate) = watch::channel(false);
    let store = Migrating { inner: MemoryStore::new(1), gate: Arc::clone(&gate), reached };
    let allocator = start(Arc::new(store));
    // An origin of an earlier time: the commits come before anyone can have registered.
    let origin = ServiceId::new(3);
    storm(&allocator, origin, async {
        at_gate.wait_for(|reached| *reached).await.expect("the store lives");
        let early = allocator.begin_commit_now(&unseen(origin, 1)).expect_err("the store is being opened");
        assert_eq!(early.kind(), ErrorKind::Unavailable);
        assert_eq!(allocator.entries(), (0, 0, 0), "nothing is created while the store is being opened");
        gate.add_permits(1);
        tokio::task::yield_now().await;
        gate.add_permits(1);
    })
    .await;
    assert_eq!(allocator.entries(), (BINDS as usize, 1, 0));
}

#[test]
fn a_validation_held_inside_does_not_hold_up_another_of_the_same_group() {
    let map: GuardedMap<TableRef, u64> = GuardedMap::with_shards(1);
    let key = TableRef::new("g", "t").expect("names");
    map.upsert(key.clone(), || 1, |_| ());
    let (inside, entered) = std::sync::mpsc::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (map, key) = (&map, &key);
        scope.spawn(move || {
            map.read(key, |_| {
                inside.send(()).expect("the test waits");
                held.recv().expect("the test releases");
            });
        });
        entered.recv().expect("the first is inside");
        // One shard for everything: the worst case. A lock that excluded readers would stop here.
        assert_eq!(map.read(key, |version| version.copied()), Some(1));
        assert_eq!(map.read(&TableRef::new("g", "unseen").expect("names"), |version| version.copied()), None);
        release.send(()).expect("the first waits");
    });
}
