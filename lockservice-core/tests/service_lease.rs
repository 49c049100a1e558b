//! The lease under a service: how it is kept while the allocator hangs, is slow or fails, and how
//! it is given up.
//!
//! Tokio's paused clock drives everything, the service's clock included: no test waits for real
//! time.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, LeaseAck, LocalAllocator, LockTableAllocator,
    PresentedBind, Progress,
};
use lockservice_core::clock::lo;
use lockservice_core::service::{LockService, LockSpec, ServiceParts, TxnOptions};
use lockservice_core::store::MemoryStore;
use lockservice_core::table::Commit;
use lockservice_core::testing::{AllocatorHooks, HookedAllocator, TokioClock};
use lockservice_core::{
    CommitAttempt, CommitTimestamp, Error, ErrorKind, Key, LockItem, NodeName, Nonce, Result,
    ServiceId, TableRef,
};
use tokio::sync::watch;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
/// The default lease.
const LEASE: Duration = Duration::from_secs(5);

/// The treatment of a request to renew a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Fine,
    /// It renews, and responds this much later.
    Slow(Duration),
    Hangs,
    Fails,
}

/// A local allocator that treats renewals on demand. Its mood counts from the moment of the
/// request.
#[derive(Debug)]
struct Moods {
    mood: watch::Sender<Mood>,
    /// The times at which renewals were requested.
    keepalives: watch::Sender<Vec<Instant>>,
    resigning_hangs: bool,
}

#[async_trait]
impl AllocatorHooks for Moods {
    async fn keepalive(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
        progress: Progress,
    ) -> Result<LeaseAck> {
        self.keepalives.send_modify(|keepalives| keepalives.push(Instant::now()));
        let mood = *self.mood.borrow();
        match mood {
            Mood::Fine => inner.keepalive(service, nonce, progress).await,
            Mood::Slow(late) => {
                let response = inner.keepalive(service, nonce, progress).await;
                tokio::time::sleep(late).await;
                response
            }
            Mood::Hangs => std::future::pending().await,
            Mood::Fails => Err(Error::new(ErrorKind::Unavailable, "not now")),
        }
    }

    async fn resign(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
    ) -> Result<Progress> {
        if self.resigning_hangs {
            std::future::pending().await
        }
        inner.resign(service, nonce).await
    }
}

type Moody = HookedAllocator<Moods>;

fn node() -> NodeName {
    NodeName::new("node-1").expect("a name")
}

async fn allocator(resigning_hangs: bool) -> Arc<Moody> {
    let (store, clock) = (Arc::new(MemoryStore::new(1)), Arc::new(TokioClock::new()));
    let inner = LocalAllocator::open(store, clock, AllocatorSettings::default(), node())
        .await
        .expect("a fresh store");
    let (mood, keepalives) = (watch::Sender::new(Mood::Fine), watch::Sender::new(Vec::new()));
    Arc::new(Moody { inner, hooks: Moods { mood, keepalives, resigning_hangs } })
}

async fn start(allocator: &Arc<Moody>) -> LockService {
    let allocator: Arc<dyn LockTableAllocator> = Arc::<Moody>::clone(allocator);
    LockService::start(ServiceParts::new(allocator, Arc::new(TokioClock::new()), node()))
        .await
        .expect("it starts")
}

fn row() -> LockSpec {
    let key = Key::new("k").expect("a key");
    LockSpec::new(TableRef::new("g", "t").expect("names"), vec![LockItem::Row(key)])
}

/// Waits until the allocator has got `times` requests to renew in all, as it must be before the
/// lease is over.
async fn keepalives(allocator: &Moody, times: usize) {
    let mut sent = allocator.hooks.keepalives.subscribe();
    let enough = tokio::time::timeout(LEASE, sent.wait_for(|sent| sent.len() >= times)).await;
    enough.expect("it is sent again").expect("the allocator lives");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_gets_lost_is_tried_again_before_it_costs_the_lease() {
    let allocator = allocator(false).await;
    let service = start(&allocator).await;
    for lost in [1, 2, 3] {
        let before = allocator.hooks.keepalives.borrow().len();
        allocator.hooks.mood.send_replace(Mood::Hangs);
        keepalives(&allocator, before + lost).await;
        allocator.hooks.mood.send_replace(Mood::Fine);
        keepalives(&allocator, before + lost + 2).await;
    }
    let txn = service.begin(TxnOptions::default()).expect("it still serves");
    txn.lock(row()).await.expect("and grants");
}

#[tokio::test(start_paused = true)]
async fn a_slow_response_renews_and_counts_from_its_own_request() {
    let allocator = allocator(false).await;
    let service = start(&allocator).await;
    // Slower than a try may take before the next is made, but never late enough to cost the lease.
    let late = 2 * SECOND;
    allocator.hooks.mood.send_replace(Mood::Slow(late));
    let txn = service.begin(TxnOptions::default()).expect("it serves");
    let until = Instant::now() + 6 * LEASE;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let valid_for = txn.promise().expect("the lease is kept").valid_for;
        let now = Instant::now();
        let last_response = allocator
            .hooks
            .keepalives
            .borrow()
            .iter()
            .rev()
            .find(|sent| **sent + late <= now)
            .copied();
        if let Some(sent) = last_response {
            assert!(
                valid_for <= LEASE - (now - sent),
                "{valid_for:?} is more than is left of the lease last acknowledged"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_response_it_seals_at_the_end_of_the_last_acknowledged_lease() {
    for mood in [Mood::Hangs, Mood::Fails, Mood::Slow(LEASE)] {
        let allocator = allocator(false).await;
        let service = start(&allocator).await;
        keepalives(&allocator, 2).await;
        let last = *allocator.hooks.keepalives.borrow().last().expect("a response");
        allocator.hooks.mood.send_replace(mood);
        assert_eq!(service.sealed().await.kind(), ErrorKind::LeaseLost, "{mood:?}");
        let (sealed, due) = (Instant::now(), last + lo(LEASE));
        assert!(
            sealed >= due && sealed < due + Duration::from_millis(5),
            "{mood:?}: {:?}",
            sealed - last
        );
        let tries = allocator.hooks.keepalives.borrow().len() - 2;
        assert!((3..=8).contains(&tries), "{mood:?}: tried {tries} times");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_waits_for_commits_in_flight_ends_as_the_stop_that_was_requested() {
    let allocator = allocator(false).await;
    let service = start(&allocator).await;
    let txn = service.begin(TxnOptions { validates: true, label: String::new() }).expect("begin");
    let granted = txn.lock(row()).await.expect("free");
    let request = BeginCommit {
        txn: txn.id(),
        binds: vec![PresentedBind::from(&granted.grant.bind)],
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: SECOND, most: 4 * SECOND },
    };
    let admitted = allocator.begin_commit(&request).await.expect("current");
    txn.end(Some(Commit::at(CommitTimestamp::new(1))));
    let began = Instant::now();
    let stopped = service.shutdown(SECOND).await;
    // C2: longer than it takes until the lease would have been renewed.
    assert!(began.elapsed() >= admitted.commit_before, "{:?}", began.elapsed());
    assert!(stopped.resigned);
    assert_eq!(service.sealed().await.kind(), ErrorKind::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_during_a_stop_does_not_make_it_a_loss() {
    let allocator = allocator(false).await;
    let service = start(&allocator).await;
    let session = service.open_session(Some(20 * SECOND), "at work").expect("a session");
    allocator.hooks.mood.send_replace(Mood::Hangs);
    let stopped = service.shutdown(20 * SECOND).await;
    assert!(!stopped.resigned, "nobody confirmed (P5)");
    for why in [service.sealed().await, session.lost().await, session.renew().expect_err("sealed")]
    {
        assert_eq!(
            why.kind(),
            ErrorKind::ShuttingDown,
            "a host would start a new incarnation: {why}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_unacknowledged_resignation_holds_a_stop_up_no_longer_than_the_lease() {
    let allocator = allocator(true).await;
    let service = start(&allocator).await;
    let stopped = tokio::time::timeout(2 * LEASE, service.shutdown(SECOND)).await.expect("it ends");
    assert!(!stopped.resigned);
    assert_eq!(service.sealed().await.kind(), ErrorKind::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_node_lost_its_lease_does_not_hear_of_a_server_stop() {
    let allocator = allocator(false).await;
    let service = start(&allocator).await;
    let session = service.open_session(Some(20 * SECOND), "at work").expect("a session");
    allocator.hooks.mood.send_replace(Mood::Fails);
    assert_eq!(session.lost().await.kind(), ErrorKind::LeaseLost);
    let stops = tokio::time::timeout(SECOND, session.stopping()).await;
    assert!(stops.is_err(), "the next incarnation serves");
}
