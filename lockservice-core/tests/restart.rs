//! An allocator after a restart: L1, B3, B4, F2, L4; and with a store whose responses get lost: L2.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Progress, Registration,
};
use lockservice_core::clock::hi;
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, ClusterConstants, Head, Leadership, MemoryStore, Renewal,
    ServiceState, StoreState, WriteAck,
};
use lockservice_core::testing::ManualClock;
use lockservice_core::{
    CommitAttempt, Epoch, Error, ErrorKind, NodeName, Nonce, Result, TableRef, TxnId, TxnNumber,
    WriteNumber,
};

/// A memory store that behaves as one on disk (its tokens begin with the epoch), counts its writes,
/// and loses responses on demand.
#[derive(Debug, Clone)]
struct Disk {
    inner: MemoryStore,
    writes: Arc<AtomicUsize>,
    /// The responses of the next so many writes are lost: of even ones after they landed, of odd
    /// ones before.
    lose: Arc<AtomicUsize>,
}

impl Disk {
    fn new() -> Self {
        Self { inner: MemoryStore::new(0), writes: Arc::default(), lose: Arc::default() }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BindStore for Disk {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn load(&self) -> Result<StoreState> {
        Ok(StoreState { volatile_tokens_from: None, ..self.inner.load().await? })
    }
    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        self.inner.acquire_leadership(candidate, ttl).await
    }
    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.inner.renew(epoch).await
    }
    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.inner.resign(epoch).await
    }
    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let lose = self.lose.load(Ordering::SeqCst);
        if lose > 0 {
            self.lose.store(lose - 1, Ordering::SeqCst);
            if lose.is_multiple_of(2) {
                self.inner.write(epoch, number, batch).await?;
            }
            return Err(Error::new(ErrorKind::UnknownOutcome, "the response was lost"));
        }
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

/// C4: their marks stay until their origin is fenced, and there is an end to what is kept of one
/// origin.
#[tokio::test(start_paused = true)]
async fn silent_clients_never_fill_an_incarnation_up() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let settings = AllocatorSettings { commits_max: 1, ..AllocatorSettings::default() };
    let node = NodeName::new("n").expect("a name");
    let open = LocalAllocator::open(Arc::new(disk.clone()), Arc::new(clock), settings, node);
    let allocator = open.await.expect("opens");
    let origin = allocator.register(&register(1)).await.expect("leads").service;
    let txns: Vec<TxnId> =
        (0..10_000).map(|number| TxnId::new(origin, TxnNumber::new(number), true)).collect();
    for some in txns.chunks(100) {
        let response = allocator.cannot_commit(some).await.expect("there is always room");
        assert_eq!((response.tombstoned.len(), response.committing.len()), (100, 0));
    }
    for txn in txns {
        let window = CommitWindow { least: Duration::from_millis(1), most: Duration::from_secs(1) };
        let request =
            BeginCommit { txn, binds: Vec::new(), attempt: CommitAttempt::new(1), window };
        assert_eq!(
            allocator.begin_commit(&request).await.expect_err("never").kind(),
            ErrorKind::CannotCommit
        );
    }
    let lost = allocator
        .keepalive(origin, Nonce::new(1), Progress::default())
        .await
        .expect_err("fenced as a whole");
    assert_eq!(lost.kind(), ErrorKind::LeaseLost);
    let next = allocator.register(&register(2)).await.expect("its node starts again").service;
    let response =
        allocator.cannot_commit(&[TxnId::new(next, TxnNumber::new(1), true)]).await.expect("room");
    assert_eq!(response.tombstoned.len(), 1);
    let forgotten = async {
        while allocator.entries().2 > 1 || disk.load().await.expect("readable").tombstones.len() > 1
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), forgotten)
        .await
        .expect("nothing is kept of the fenced one");
}

#[tokio::test(start_paused = true)]
async fn one_transaction_that_fails_does_not_keep_the_others_from_a_response() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let settings = AllocatorSettings { commits_max: 1, ..AllocatorSettings::default() };
    let node = NodeName::new("n").expect("a name");
    let open = LocalAllocator::open(Arc::new(disk), Arc::new(clock), settings, node);
    let allocator = open.await.expect("opens");
    let origin = allocator.register(&register(1)).await.expect("leads").service;
    // All of one stripe, which has no room for another one then.
    for number in 0..64 {
        let txn = TxnId::new(origin, TxnNumber::new(number * 64), true);
        allocator.begin_commit(&commit(txn, Vec::new())).await.expect("room");
    }
    let txns = [65, 64 * 64, 66].map(|number| TxnId::new(origin, TxnNumber::new(number), true));
    let response = allocator.cannot_commit(&txns).await.expect("a response for each");
    assert_eq!((response.tombstoned, response.committing), (vec![txns[0], txns[2]], vec![]));
    let (failed, why) = &response.failed[0];
    assert_eq!(
        (response.failed.len(), *failed, why.kind()),
        (1, txns[1], ErrorKind::ResourceExhausted)
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_start_takes_off_the_store_goes_in_writes_of_bounded_size() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let settings = AllocatorSettings { batch_max: 8, ..AllocatorSettings::default() };
    let open = || {
        let (store, clock) = (Arc::new(disk.clone()), Arc::new(clock.clone()));
        LocalAllocator::open(store, clock, settings.clone(), NodeName::new("n").expect("a name"))
    };
    let first = open().await.expect("opens");
    let origin = first.register(&register(1)).await.expect("leads").service;
    let txns: Vec<TxnId> =
        (0..100).map(|number| TxnId::new(origin, TxnNumber::new(number), true)).collect();
    first.cannot_commit(&txns).await.expect("marked");
    drop(first);
    assert_eq!(disk.load().await.expect("readable").tombstones.len(), 100);
    let before = disk.writes.load(Ordering::SeqCst);
    let second = open().await.expect("opens");
    let found = disk.load().await.expect("readable");
    assert_eq!((found.tombstones.len(), found.services[0].state), (0, ServiceState::Fenced));
    assert!(disk.writes.load(Ordering::SeqCst) - before >= 100 / 8);
    second.register(&register(2)).await.expect("the numbers of its writes follow");
}

async fn open(disk: &Disk, clock: &ManualClock, lease_ttl_ms: u64) -> Arc<LocalAllocator> {
    let settings = AllocatorSettings {
        constants: ClusterConstants { lease_ttl_ms, ..ClusterConstants::default() },
        ..AllocatorSettings::default()
    };
    let node = NodeName::new("n").expect("a name");
    LocalAllocator::open(Arc::new(disk.clone()), Arc::new(clock.clone()), settings, node)
        .await
        .expect("opens")
}

fn register(nonce: u64) -> Registration {
    Registration {
        node: NodeName::new("n").expect("a name"),
        nonce: Nonce::new(nonce),
        address: String::new(),
        replaces: None,
    }
}

fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

fn commit(txn: TxnId, binds: Vec<PresentedBind>) -> BeginCommit {
    let window = CommitWindow { least: Duration::ZERO, most: Duration::from_secs(60) };
    BeginCommit { txn, binds, attempt: CommitAttempt::new(1), window }
}

#[tokio::test]
async fn after_an_unclean_stop_old_tables_wait_out_the_lease_and_new_ones_do_not() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let first = open(&disk, &clock, 5_000).await;
    let a = first.register(&register(1)).await.expect("free");
    let old = first.bind(a.service, &table("t")).await.expect("free");
    let txn = TxnId::new(a.service, TxnNumber::new(1), true);
    first.shutdown(false, Duration::ZERO).await.expect("stops without resigning");
    drop(first);

    let second = open(&disk, &clock, 5_000).await;
    let b = second
        .register(&register(2))
        .await
        .expect("whoever holds the store replaces the process before (B1)");
    assert!(b.service > a.service);
    let stale = second
        .begin_commit(&commit(txn, vec![PresentedBind::from(&old.bind)]))
        .await
        .expect_err("void");
    assert!(matches!(stale.kind(), ErrorKind::BindChanged | ErrorKind::CannotCommit));
    let response = second.cannot_commit(&[txn]).await.expect("a response");
    assert_eq!(response.committing, vec![txn], "it may be in flight (L1)");
    second.bind(b.service, &table("new")).await.expect("a new table does not wait");
    let wait = second
        .bind(b.service, &table("t"))
        .await
        .expect_err("the old owner's clients may be at work (B3)");
    assert_eq!((wait.kind(), wait.retry_after()), (ErrorKind::Reassigning, Some(hi(a.lease_ttl))));
    clock.advance(hi(a.lease_ttl) / 2);
    second.keepalive(b.service, Nonce::new(2), Progress::default()).await.expect("in time");
    clock.advance(hi(a.lease_ttl) / 2 - Duration::from_millis(1));
    assert!(second.bind(b.service, &table("t")).await.is_err(), "a millisecond too early");
    clock.advance(Duration::from_millis(1));
    let new = second.bind(b.service, &table("t")).await.expect("reassigned");
    assert_eq!(new.bind.id, old.bind.id, "the table is known");
    assert!(new.bind.version > old.bind.version, "versions grow over restarts");
    assert!(new.tokens.expect("fresh").next >= old.tokens.expect("fresh").end, "tokens too");
    assert_eq!(second.cannot_commit(&[txn]).await.expect("a response").tombstoned, vec![txn]);
}

#[tokio::test]
async fn after_a_clean_stop_nothing_waits() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let first = open(&disk, &clock, 5_000).await;
    let a = first.register(&register(1)).await.expect("free");
    let old = first.bind(a.service, &table("t")).await.expect("free");
    first.resign(a.service, Nonce::new(1)).await.expect("live");
    assert!(first.shutdown(true, Duration::from_secs(1)).await.expect("stops").resigned);
    let gone = first.bind(a.service, &table("t")).await.expect_err("it has stopped");
    assert!(matches!(gone.kind(), ErrorKind::ShuttingDown | ErrorKind::LeaseLost));
    drop(first);

    let second = open(&disk, &clock, 5_000).await;
    let b = second.register(&register(2)).await.expect("free");
    let new = second.bind(b.service, &table("t")).await.expect("no wait");
    assert!(new.bind.version > old.bind.version);
    assert!(new.tokens.expect("fresh").next >= old.tokens.expect("fresh").end);
    assert_eq!(
        second
            .cannot_commit(&[TxnId::new(a.service, TxnNumber::new(1), true)])
            .await
            .expect("a response")
            .committing,
        vec![]
    );
}

#[tokio::test]
async fn after_a_clean_stop_nothing_waits_for_an_incarnation_that_lapsed_before_it() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let first = open(&disk, &clock, 5_000).await;
    let a = first.register(&register(1)).await.expect("free");
    first.bind(a.service, &table("t")).await.expect("free");
    clock.advance(hi(a.lease_ttl));
    assert!(
        first.shutdown(true, Duration::ZERO).await.expect("stops").resigned,
        "its promise is over"
    );
    let second = open(&disk, &clock, 5_000).await;
    let b = second.register(&register(2)).await.expect("free");
    second.bind(b.service, &table("t")).await.expect("no wait");
}

#[tokio::test]
async fn a_stop_whose_caller_does_not_say_that_all_is_quiet_does_not_resign() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let first = open(&disk, &clock, 5_000).await;
    let a = first.register(&register(1)).await.expect("free");
    first.resign(a.service, Nonce::new(1)).await.expect("live");
    let stopped = first.shutdown(false, Duration::from_secs(1)).await.expect("stops");
    assert!(!stopped.resigned, "nobody gave the word (P5)");
}

#[tokio::test]
async fn tombstones_of_an_earlier_life_go_with_the_fence_of_their_origin() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let first = open(&disk, &clock, 5_000).await;
    let a = first.register(&register(1)).await.expect("free");
    let txn = TxnId::new(a.service, TxnNumber::new(1), true);
    assert_eq!(first.cannot_commit(&[txn]).await.expect("a response").tombstoned, vec![txn]);
    assert_eq!(
        disk.load().await.expect("load").tombstones,
        vec![txn],
        "durable when it is answered (C4)"
    );
    first.shutdown(false, Duration::ZERO).await.expect("stops");
    drop(first);
    let second = open(&disk, &clock, 5_000).await;
    let stored = disk.load().await.expect("load");
    assert_eq!(stored.tombstones, vec![], "the fence says the same, for ever (C4)");
    assert!(
        stored.services.iter().all(|service| service.state == ServiceState::Fenced),
        "and it is durable"
    );
    let refused = second.begin_commit(&commit(txn, vec![])).await.expect_err("still");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
}

#[tokio::test]
async fn tokens_of_a_store_in_memory_go_on_over_restarts_of_its_allocator() {
    let (store, clock) = (MemoryStore::new(1), ManualClock::new());
    let node = NodeName::new("n").expect("a name");
    let mut last = 0;
    for life in 1..4 {
        let (store, clock) = (Arc::new(store.clone()), Arc::new(clock.clone()));
        let allocator =
            LocalAllocator::open(store, clock, AllocatorSettings::default(), node.clone()).await;
        let allocator = allocator.expect("opens");
        let a = allocator.register(&register(life)).await.expect("free");
        let bound = allocator.bind(a.service, &table("t")).await.expect("free");
        let more = allocator
            .reserve_tokens(a.service, bound.bind.id, bound.bind.version)
            .await
            .expect("current")
            .tokens;
        for block in [bound.tokens.expect("fresh"), more] {
            assert!(block.next.get() >= last, "life {life}: tokens only grow (F1, B7)");
            last = block.end.get();
        }
        allocator.resign(a.service, Nonce::new(life)).await.expect("live");
        assert!(allocator.shutdown(true, Duration::from_secs(1)).await.expect("stops").resigned);
    }
}

#[tokio::test]
async fn a_stop_beside_a_live_incarnation_does_not_resign() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let allocator = open(&disk, &clock, 5_000).await;
    allocator.register(&register(1)).await.expect("free");
    let stopped = allocator.shutdown(true, Duration::ZERO).await.expect("stops");
    assert!(!stopped.resigned, "its promises still hold (P5)");
}

#[tokio::test]
async fn a_shorter_ttl_waits_out_the_longer_one_over_two_restarts() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let first = open(&disk, &clock, 60_000).await;
    let a = first.register(&register(1)).await.expect("free");
    first.bind(a.service, &table("t")).await.expect("free");
    first.shutdown(false, Duration::ZERO).await.expect("stops");
    open(&disk, &clock, 1_000).await.shutdown(false, Duration::ZERO).await.expect("stops");
    let third = open(&disk, &clock, 1_000).await;
    let b = third.register(&register(2)).await.expect("free");
    assert_eq!(b.lease_ttl, Duration::from_secs(1));
    let wait = third.bind(b.service, &table("t")).await.expect_err("the old promise");
    assert_eq!(
        wait.retry_after(),
        Some(hi(Duration::from_secs(60))),
        "changing a TTL waits out the old (B4)"
    );
}

#[tokio::test]
async fn a_store_with_a_lease_of_five_seconds_opens_with_fifteen_and_waits_those_out() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let first = open(&disk, &clock, 5_000).await;
    let a = first.register(&register(1)).await.expect("free");
    let before = first.bind(a.service, &table("t")).await.expect("free").bind;
    first.shutdown(false, Duration::ZERO).await.expect("stops");
    let settings = AllocatorSettings::for_exclusive_store();
    let second = open(&disk, &clock, settings.constants.lease_ttl_ms).await;
    let b = second.register(&register(2)).await.expect("replaced");
    assert_eq!(b.lease_ttl, Duration::from_secs(15));
    let wait = second.bind(b.service, &table("t")).await.expect_err("the old promise");
    assert_eq!(wait.retry_after(), Some(hi(b.lease_ttl)));
    clock.advance(hi(b.lease_ttl));
    // Nothing has renewed the second one meanwhile.
    let c = second.register(&register(3)).await.expect("lapsed");
    let after = second.bind(c.service, &table("t")).await.expect("run out").bind;
    assert!(after.version > before.version);
    let kept = disk.load().await.expect("load").constants.expect("set");
    assert_eq!(kept, settings.constants);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_a_write_says_whether_it_landed_after_a_lost_response() {
    for lost in [1, 2, 3, 4] {
        let (disk, clock) = (Disk::new(), ManualClock::new());
        let allocator = open(&disk, &clock, 5_000).await;
        let a = allocator.register(&register(1)).await.expect("free");
        disk.lose.store(lost, Ordering::SeqCst);
        let bound = allocator.bind(a.service, &table("t")).await.expect("settled (L2)");
        assert!(bound.tokens.is_some());
        let stored = disk.load().await.expect("load");
        assert_eq!(stored.tables.len(), 1, "written exactly once");
        assert_eq!(stored.applied.get(), 3, "the constants, the incarnation and the bind");
        allocator.bind(a.service, &table("u")).await.expect("numbers go on");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_keeps_its_bind() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let allocator = open(&disk, &clock, 5_000).await;
    let a = allocator.register(&register(1)).await.expect("free");
    let t = table("t");
    {
        let bind = allocator.bind(a.service, &t);
        tokio::pin!(bind);
        // Polled once: its write is queued.
        assert!(futures_poll_once(bind.as_mut()).await.is_none());
    }
    let bound = allocator.bind(a.service, &t).await.expect("bound");
    assert_eq!(bound.bind.owner, a.service);
    assert_eq!(disk.load().await.expect("load").tables.len(), 1);
    let block = allocator
        .reserve_tokens(a.service, bound.bind.id, bound.bind.version)
        .await
        .expect("current")
        .tokens;
    assert!(block.left() > 0, "the tokens that went with the caller are replaced");
}

async fn futures_poll_once<F: Future + Unpin>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

#[tokio::test]
async fn ten_thousand_binds_at_once_take_at_most_one_write_per_hundred() {
    let (disk, clock) = (Disk::new(), ManualClock::new());
    let allocator = open(&disk, &clock, 60_000).await;
    let a = allocator.register(&register(1)).await.expect("free");
    let before = disk.writes.load(Ordering::SeqCst);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..10_000 {
        let (allocator, service) = (Arc::clone(&allocator), a.service);
        tasks.spawn(async move {
            allocator.bind(service, &table(&format!("t{n}"))).await.expect("free")
        });
    }
    while let Some(bound) = tasks.join_next().await {
        bound.expect("no panic");
    }
    let writes = disk.writes.load(Ordering::SeqCst) - before;
    assert!(writes <= 100, "{writes} writes");
}
