//! What a node counts: locks, waits, deadlocks, sessions, its lease, its store.
//!
//! Tokio's paused clock drives everything, so the times are exact.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::ops::Bound;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, ElectedAllocator, LocalAllocator, LockTableAllocator,
};
use lockservice_core::metrics::{
    Distribution, MeteredStore, ServiceCounts, SessionEnd, StoreCall, StoreMetrics,
};
use lockservice_core::service::{LockService, LockSpec, ServiceParts, TxnOptions};
use lockservice_core::store::{BindStore as _, MemoryStore};
use lockservice_core::table::WaitPolicy;
use lockservice_core::testing::{LocalPeers, SharedStore, TokioClock};
use lockservice_core::{ErrorKind, Key, KeyRange, LockItem, LockMode, NodeName, TableRef};

const SECOND: Duration = Duration::from_secs(1);

struct Node {
    parts: ServiceParts,
    service: LockService,
    store: Arc<StoreMetrics>,
    allocator: Arc<LocalAllocator>,
}

async fn node() -> Node {
    let (clock, name) = (Arc::new(TokioClock::new()), NodeName::new("n").expect("a name"));
    let store = Arc::<StoreMetrics>::default();
    let metered =
        MeteredStore::new(Arc::new(MemoryStore::new(1)), Arc::clone(&store), Arc::clone(&clock));
    let settings = AllocatorSettings::default();
    let allocator =
        LocalAllocator::open(Arc::new(metered), Arc::clone(&clock), settings, name.clone())
            .await
            .expect("a fresh store opens");
    let shared = Arc::clone(&allocator) as Arc<dyn LockTableAllocator>;
    let parts = ServiceParts::new(shared, clock, name);
    let service = LockService::start(parts.clone()).await.expect("it starts");
    Node { parts, service, store, allocator }
}

impl Node {
    /// All counts, those of the engine included.
    fn counts(&self) -> ServiceCounts {
        self.service.gauges();
        self.parts.metrics.counts()
    }
}

fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

fn row(name: &str) -> LockItem {
    LockItem::Row(Key::new(name).expect("a key"))
}

fn spec(name: &str) -> LockSpec {
    LockSpec::new(table("t"), vec![row(name)])
}

fn refused(counts: &ServiceCounts, kind: ErrorKind) -> u64 {
    counts.refused.iter().find(|(of, _)| *of == kind).expect("every kind").1
}

/// The bounds of the buckets with values, and the values in them.
fn filled(values: &Distribution) -> Vec<(f64, u64)> {
    values.buckets.iter().copied().filter(|(_, count)| *count > 0).collect()
}

#[tokio::test(start_paused = true)]
async fn the_changes_that_wait_for_the_store_are_known_until_they_are_written() {
    let node = node().await;
    assert_eq!(node.allocator.queued_changes(), 0);
    let tables: Vec<_> = (0..3).map(|number| table(&number.to_string())).collect();
    let binds = tables.iter().map(|table| node.allocator.bind(node.service.id(), table));
    let mut binds: Vec<_> = binds.map(Box::pin).collect();
    // The writer has no turn on this thread before the test waits.
    let mut cx = Context::from_waker(Waker::noop());
    assert!(binds.iter_mut().all(|bind| bind.as_mut().poll(&mut cx).is_pending()));
    assert_eq!(node.allocator.queued_changes(), 3);
    for bind in binds {
        bind.await.expect("it is written");
    }
    assert_eq!(node.allocator.queued_changes(), 0);
}

#[tokio::test(start_paused = true)]
async fn grants_are_counted_by_mode_however_they_are_made_and_when_their_table_is_gone() {
    let node = node().await;
    let granted = || node.counts().granted.map(|(_, count)| count);
    let held = || node.service.gauges().held;
    let txn = node.service.begin(TxnOptions::default()).expect("begin");
    // The first call binds the table, the second finds the row free, the third is a range.
    txn.lock(spec("a")).await.expect("free");
    txn.lock(LockSpec { mode: LockMode::Shared, ..spec("b") }).await.expect("free");
    assert_eq!((granted(), held()), ([1, 0, 1], 2));
    let ends = ["c", "d"].map(|end| Key::new(end).expect("a key"));
    let [from, to] = ends;
    let range = KeyRange::new(Bound::Included(from), Bound::Excluded(to)).expect("in order");
    let range = LockSpec::new(table("t"), vec![LockItem::Range(range), row("d")]);
    txn.lock(range).await.expect("free");
    let bound = node.service.table(&table("t")).expect("bound");
    let key = Key::new("e").expect("a key");
    txn.lock_row(&bound, &key, LockMode::Update).expect("free");
    assert_eq!((granted(), held()), ([1, 1, 3], 5));
    // An upgrade is a grant, and no further hold. What is held already is no grant.
    txn.lock(spec("b")).await.expect("its own");
    txn.lock(spec("b")).await.expect("its own");
    assert_eq!((granted(), held()), ([1, 1, 4], 5));
    // A row that was met by its own upgrade, and one that was not.
    assert_eq!(txn.unlock(&table("t"), &[row("b"), row("a")], None), 2);
    assert_eq!(held(), 3);
    txn.end(None);
    assert_eq!(held(), 0);
    drop(bound);
    // Grants that nobody has asked for are not lost with their table.
    let other = node.service.begin(TxnOptions::default()).expect("begin");
    other.lock(spec("x")).await.expect("free");
    other.lock(LockSpec::new(table("u"), vec![row("y")])).await.expect("free");
    other.end(None);
    node.service.drop_table(&table("u")).await.expect("unused");
    assert_eq!((granted(), held()), ([1, 1, 6], 0));
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_counted_with_its_time_and_its_outcome() {
    let node = node().await;
    let holder = node.service.begin(TxnOptions::default()).expect("begin");
    holder.lock(spec("k")).await.expect("free");
    let waiter = node.service.begin(TxnOptions::default()).expect("begin");
    let conflict = LockSpec { wait: WaitPolicy::NoWait, ..spec("k") };
    waiter.lock(conflict).await.expect_err("held");
    let limited = LockSpec { timeout: Some(2 * SECOND), ..spec("k") };
    waiter.lock(limited).await.expect_err("held");
    let (granted, ()) = tokio::join!(waiter.lock(spec("k")), async {
        tokio::time::sleep(SECOND / 2).await;
        assert_eq!(node.service.gauges().waiting, 1);
        holder.end(None);
    });
    granted.expect("free again");
    let counts = node.counts();
    assert_eq!(refused(&counts, ErrorKind::Conflict), 1);
    assert_eq!(refused(&counts, ErrorKind::Timeout), 1);
    assert_eq!(counts.refused.iter().map(|(_, count)| count).sum::<u64>(), 2);
    assert_eq!(filled(&counts.waited_for_grant), [(0.524_288, 1)]);
    assert_eq!(filled(&counts.waited_in_vain), [(2.097_152, 1)]);
    assert_eq!(filled(&counts.hand_over), [(16e-6, 1)], "at the same moment");
    assert_eq!(node.service.gauges().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_deadlock_is_counted_once_by_its_length() {
    let node = node().await;
    let begin = || node.service.begin(TxnOptions::default()).expect("begin");
    let txns = [begin(), begin(), begin()];
    for (txn, name) in txns.iter().zip(["0", "1", "2"]) {
        txn.lock(spec(name)).await.expect("free");
    }
    let [a, b, c] = txns;
    // Each ends when it has got its second lock, or failed, and lets the next one in.
    let second = async |txn: lockservice_core::service::Txn, name| {
        let locked = txn.lock(spec(name)).await;
        txn.end(None);
        locked
    };
    let (a, b, c) = tokio::join!(second(a, "1"), second(b, "2"), second(c, "0"));
    assert_eq!([&a, &b, &c].iter().filter(|locked| locked.is_err()).count(), 1);
    let counts = node.counts();
    assert_eq!(filled(&counts.deadlocks), [(3.0, 1)]);
    assert_eq!(refused(&counts, ErrorKind::Deadlock), 1);
}

#[tokio::test(start_paused = true)]
async fn one_of_sixteen_transactions_is_measured_from_its_first_grant_to_its_end() {
    let node = node().await;
    for _ in 0..32 {
        let txn = node.service.begin(TxnOptions::default()).expect("begin");
        tokio::time::advance(SECOND / 10).await;
        txn.lock(spec("k")).await.expect("free");
        tokio::time::advance(SECOND / 100).await;
        txn.end(None);
    }
    assert_eq!(filled(&node.counts().held), [(0.016_384, 2)]);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_counted_with_what_was_left_at_each_renewal_and_how_they_ended() {
    let node = node().await;
    let open = || node.service.open_session(Some(10 * SECOND), "c").expect("room");
    let (closed, lapses) = (open(), open());
    assert_eq!(node.service.gauges().sessions, 2);
    tokio::time::sleep(8 * SECOND).await;
    closed.renew().expect("in time");
    assert_eq!(filled(&node.counts().session_left), [(0.2, 1)]);
    closed.close().await;
    lapses.lost().await;
    let left_open = open();
    node.service.shutdown(SECOND).await;
    left_open.lost().await;
    let counts = node.counts();
    let expected = [1, 1, 0, 1, 0, 0];
    assert_eq!(
        counts.sessions_ended,
        std::array::from_fn(|at| (SessionEnd::ALL[at], expected[at]))
    );
    assert_eq!((counts.sessions_opened, node.service.gauges().sessions), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_counted_over_incarnations_and_a_stop_is_no_loss() {
    let node = node().await;
    tokio::time::sleep(4 * SECOND).await;
    let counts = node.counts();
    assert!(counts.lease_renewals >= 2, "{counts:?}");
    // A third of 5 s has passed when a renewal is due, of lo(5 s).
    assert_eq!(counts.lease_left.count(), counts.lease_renewals);
    assert_eq!(filled(&counts.lease_left)[0].0, 4.194_304);
    let gauges = node.service.gauges();
    assert!(gauges.serves && gauges.lease_left > 3 * SECOND, "{gauges:?}");
    let txn = node.service.begin(TxnOptions::default()).expect("begin");
    txn.lock(spec("k")).await.expect("free");
    txn.end(None);
    node.service.shutdown(SECOND).await;
    let gauges = node.service.gauges();
    assert!(!gauges.serves && gauges.lease_left.is_zero(), "{gauges:?}");
    let next = LockService::start(node.parts.clone()).await.expect("the name is free");
    next.gauges();
    let counts = node.parts.metrics.counts();
    assert_eq!((counts.leases_lost, counts.granted[2].1), (0, 1));
    assert!(counts.lease_renewals >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_finds_the_lease_lost_is_a_failed_one() {
    let node = node().await;
    let (id, nonce) = (node.service.id(), node.service.nonce());
    // Behind the back of the service.
    node.parts.allocator.resign(id, nonce).await.expect("it has the lease");
    assert_eq!(node.service.sealed().await.kind(), ErrorKind::LeaseLost);
    let counts = node.counts();
    assert_eq!((counts.lease_renewals_failed, counts.leases_lost), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn calls_of_the_store_are_counted_with_their_failures() {
    let node = node().await;
    let writes = node.store.counts(StoreCall::Write);
    assert!(writes.times.count() >= 1 && node.store.ops_written() >= 1, "{writes:?}");
    assert_eq!(node.store.counts(StoreCall::Load).times.count(), 1);
    assert!(writes.failed.iter().all(|(_, count)| *count == 0));
    let (cut, metrics) = (SharedStore::new(), Arc::<StoreMetrics>::default());
    cut.set_cut(true);
    let clock = Arc::new(TokioClock::new());
    let metered = MeteredStore::new(Arc::new(cut), Arc::clone(&metrics), clock);
    let kind = metered.applied().await.expect_err("it does not respond").kind();
    let counts = metrics.counts(StoreCall::Applied);
    assert_eq!(counts.times.count(), 1);
    let failed: Vec<_> = counts.failed.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(failed, [(kind, 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_leadership_of_a_shared_store_is_counted_with_its_renewals_and_their_failures() {
    let (store, peers) = (SharedStore::new(), LocalPeers::default());
    let (clock, name) = (Arc::new(TokioClock::new()), NodeName::new("n").expect("a name"));
    let settings = AllocatorSettings::default();
    let ttl = settings.constants.leadership_ttl();
    let allocator = ElectedAllocator::start(
        Arc::new(store.clone()),
        clock,
        settings,
        name,
        "n:1",
        Arc::new(peers),
    )
    .expect("valid settings");
    allocator.elected().await.expect("alone");
    tokio::time::sleep(2 * ttl).await;
    let counts = allocator.metrics().counts();
    assert!((5..=6).contains(&counts.renewals), "every third of the TTL: {counts:?}");
    assert_eq!((counts.acquired, counts.renewals_failed), (1, 0));
    assert_eq!(counts.left.count(), counts.renewals);
    let mean = counts.left.sum / counts.left.count() as f64;
    assert!((0.6..0.7).contains(&(mean / ttl.as_secs_f64())), "two thirds are left: {counts:?}");
    store.set_cut(true);
    // A call of a store that is cut off waits before it fails.
    tokio::time::sleep(4 * ttl).await;
    assert!(allocator.metrics().counts().renewals_failed >= 1);
}
