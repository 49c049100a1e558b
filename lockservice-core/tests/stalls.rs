//! Threads that stop between a reading of the clock and its use: real threads, and a clock that
//! stalls inside `now`. Every reading that an operation makes is stalled in turn.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, LocalAllocator, LockTableAllocator, Progress,
    Registration,
};
use lockservice_core::clock::hi;
use lockservice_core::service::{
    LockService, LockSpec, OpResponse, Operation, ServiceParts, ServiceSettings, TxnOp, TxnOptions,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::testing::{ManualClock, StallingClock};
use lockservice_core::{
    CommitAttempt, ErrorKind, Key, LockItem, LockMode, NodeName, Nonce, Sequence, TableRef, TxnId,
    TxnNumber,
};

const TTL: Duration = Duration::from_secs(2);
const MOMENT: Duration = Duration::from_millis(1);
/// More readings than any one operation makes.
const READINGS_MAX: usize = 8;

fn node() -> NodeName {
    NodeName::new("node-1").expect("a name")
}

/// The service reads the stalling clock, its allocator another that shows the same time.
async fn service(clock: &ManualClock, stalling: &StallingClock) -> LockService {
    let store = Arc::new(MemoryStore::new(1));
    let allocator =
        LocalAllocator::open(store, Arc::new(clock.clone()), AllocatorSettings::default(), node())
            .await;
    let allocator: Arc<dyn LockTableAllocator> = allocator.expect("a fresh store opens");
    let settings =
        ServiceSettings { session_ttl_ms: TTL.as_millis() as u64, ..ServiceSettings::default() };
    let parts = ServiceParts {
        settings,
        ..ServiceParts::new(allocator, Arc::new(stalling.clone()), node())
    };
    LockService::start(parts).await.expect("the service starts")
}

fn spec() -> LockSpec {
    let row = LockItem::Row(Key::new("k").expect("a key"));
    LockSpec::new(TableRef::new("g", "t").expect("names"), vec![row])
}

/// Lets every timer of the runtime that is due by the service's clock fire, and its task run.
async fn timers() {
    tokio::time::sleep(2 * TTL).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_renewal_was_acknowledged_has_not_lapsed() {
    for nth in 1..READINGS_MAX {
        let clock = ManualClock::new();
        let stalling = StallingClock::new(clock.clone());
        let service = service(&clock, &stalling).await;
        let session = service.open_session(None, "test").expect("a session");
        tokio::task::yield_now().await;
        clock.advance(hi(TTL) - MOMENT);
        let renewing = session.clone();
        let renewal = stalling.stall(nth, move || renewing.renew());
        // The watcher of the session now reads a time at which it has lapsed.
        clock.advance(2 * MOMENT);
        timers().await;
        let renewed = renewal.go_on();
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let kept = service.session(session.id()).is_ok();
        assert_eq!(
            renewed.is_ok(),
            kept,
            "stopped at reading {nth}: renewed {renewed:?}, kept {kept}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_promises_no_longer_than_the_ttl_of_its_session() {
    for nth in 1..READINGS_MAX {
        let clock = ManualClock::new();
        let stalling = StallingClock::new(clock.clone());
        let service = service(&clock, &stalling).await;
        let session = service.open_session(None, "test").expect("a session");
        let op = |number| TxnOp {
            number: TxnNumber::new(number),
            sequence: Sequence::FIRST,
            acked: Sequence::default(),
            options: TxnOptions::default(),
        };
        // So that the table is bound.
        session.submit(op(1), Operation::Lock(spec())).await.expect("free");
        let end = TxnOp { sequence: Sequence::new(2), ..op(1) };
        session.submit(end, Operation::End { commit: None }).await.expect("it ends");
        let (locking, runtime) = (session.clone(), tokio::runtime::Handle::current());
        let lock = stalling.stall(nth, move || {
            let _runtime = runtime.enter();
            let pending = locking.submit(op(2), Operation::Lock(spec()));
            runtime.block_on(pending)
        });
        clock.advance(TTL / 2);
        session.renew().expect("in time");
        match lock.go_on() {
            Ok(OpResponse::Locked(granted)) => {
                let valid_for = granted.promise.valid_for;
                assert!(
                    valid_for <= TTL,
                    "stopped at reading {nth}: the grant is promised for {valid_for:?}"
                );
            }
            other => panic!("stopped at reading {nth}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_promises_no_longer_than_the_lease() {
    let lease = AllocatorSettings::default().constants.lease_ttl();
    for nth in 1..READINGS_MAX {
        let clock = ManualClock::new();
        let stalling = StallingClock::new(clock.clone());
        let service = service(&clock, &stalling).await;
        let txn = service.begin(TxnOptions::default()).expect("begin");
        tokio::task::yield_now().await;
        let stalled = stalling.stall(nth, move || txn.promise());
        // The next renewal of the lease is due.
        clock.advance(lease / 2);
        tokio::time::sleep(lease / 2).await;
        let valid_for = stalled.go_on().expect("the lease holds").valid_for;
        assert!(valid_for <= lease, "stopped at reading {nth}: promised for {valid_for:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_locked_at_once_is_promised_no_longer_than_the_lease() {
    let lease = AllocatorSettings::default().constants.lease_ttl();
    for nth in 1..READINGS_MAX {
        let clock = ManualClock::new();
        let stalling = StallingClock::new(clock.clone());
        let service = service(&clock, &stalling).await;
        let first = service.begin(TxnOptions::default()).expect("begin");
        first.lock(spec()).await.expect("free");
        first.end(None);
        let table = service.table(&spec().table).expect("it is bound");
        let txn = service.begin(TxnOptions::default()).expect("begin");
        tokio::task::yield_now().await;
        let key = Key::new("k").expect("a key");
        let stalled = stalling.stall(nth, move || txn.lock_row(&table, &key, LockMode::Exclusive));
        clock.advance(lease / 2);
        tokio::time::sleep(lease / 2).await;
        let valid_for = stalled.go_on().expect("the lease holds").promise.valid_for;
        assert!(valid_for <= lease, "stopped at reading {nth}: promised for {valid_for:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_incarnation_that_was_reported_fenced_is_not_renewed_afterwards() {
    for nth in 1..READINGS_MAX {
        let clock = ManualClock::new();
        let stalling = StallingClock::new(clock.clone());
        let store = Arc::new(MemoryStore::new(1));
        let settings = AllocatorSettings::default();
        let lease = settings.constants.lease_ttl();
        let allocator = LocalAllocator::open(store, Arc::new(stalling.clone()), settings, node())
            .await
            .expect("it opens");
        let register = Registration {
            node: node(),
            nonce: Nonce::new(7),
            address: String::new(),
            replaces: None,
        };
        let incarnation = allocator.register(&register).await.expect("a free name");
        clock.advance(hi(lease) - MOMENT);
        let (renewing, runtime) = (Arc::clone(&allocator), tokio::runtime::Handle::current());
        let renewal = stalling.stall(nth, move || {
            runtime.block_on(renewing.keepalive(
                incarnation.service,
                Nonce::new(7),
                Progress::default(),
            ))
        });
        let in_time = renewal.has_ended();
        clock.advance(2 * MOMENT);
        let commit = BeginCommit {
            txn: TxnId::new(incarnation.service, TxnNumber::new(1), true),
            binds: Vec::new(),
            attempt: CommitAttempt::new(1),
            window: CommitWindow { least: MOMENT, most: Duration::from_secs(1) },
        };
        let admitted = allocator.begin_commit_now(&commit);
        if !in_time {
            assert_eq!(admitted.expect_err("its lease is over").kind(), ErrorKind::CannotCommit);
        }
        let renewed = renewal.go_on();
        assert_eq!(renewed.is_ok(), in_time, "stopped at reading {nth}: {renewed:?}");
    }
}
