//! The memory of a session for replays is bounded, and T2 holds at the bound.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
use lockservice_core::service::{
    Granted, LockService, LockSpec, OpResponse, Operation, ServiceParts, ServiceSettings, Session,
    TxnOp, TxnOptions,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::testing::TokioClock;
use lockservice_core::{ErrorKind, Key, LockItem, NodeName, Result, Sequence, TableRef, TxnNumber};

/// The least that can be set.
const LIMIT: usize = 1 << 16;
const KEY_BYTES: usize = 4_000;

async fn service() -> LockService {
    let node = NodeName::new("n").expect("a name");
    let (store, clock) = (Arc::new(MemoryStore::new(1)), TokioClock::new());
    let allocator =
        LocalAllocator::open(store, Arc::new(clock), AllocatorSettings::default(), node.clone())
            .await;
    let settings =
        ServiceSettings { kept_bytes_per_session_max: LIMIT, ..ServiceSettings::default() };
    let parts = ServiceParts {
        settings,
        ..ServiceParts::new(allocator.expect("a fresh store"), Arc::new(clock), node)
    };
    LockService::start(parts).await.expect("the service starts")
}

fn open(service: &LockService) -> Session {
    service.open_session(None, "test").expect("a session")
}

fn op(number: u64, sequence: u64) -> TxnOp {
    TxnOp {
        number: TxnNumber::new(number),
        sequence: Sequence::new(sequence),
        acked: Sequence::default(),
        options: TxnOptions::default(),
    }
}

fn table() -> TableRef {
    TableRef::new("g", "t").expect("names")
}

/// A long row, different for every transaction and number.
fn item(txn: u64, n: u64) -> LockItem {
    LockItem::Row(Key::new(format!("{txn}-{n:0>width$}", width = KEY_BYTES)).expect("a key"))
}

fn lock(txn: u64, n: u64) -> Operation {
    Operation::Lock(LockSpec::new(table(), vec![item(txn, n)]))
}

async fn submit(session: &Session, op: TxnOp, operation: Operation) -> Result<OpResponse> {
    let response =
        tokio::time::timeout(Duration::from_secs(1), session.submit(op, operation)).await;
    response.expect("it is answered, not left to wait for what never comes")
}

fn locked(response: Result<OpResponse>) -> Granted {
    match response {
        Ok(OpResponse::Locked(granted)) => Arc::unwrap_or_clone(granted),
        other => panic!("expected a grant, got {other:?}"),
    }
}

fn exhausted(response: Result<OpResponse>) {
    assert_eq!(response.expect_err("no room").kind(), ErrorKind::ResourceExhausted);
}

fn done(response: Result<OpResponse>) {
    assert!(matches!(response, Ok(OpResponse::Done { .. })), "{response:?}");
}

/// Locks in transaction `number` until there is no room. Returns the grants; the refused operation
/// is the one after the last.
async fn fill(session: &Session, number: u64) -> Vec<Granted> {
    let mut grants = Vec::new();
    for sequence in 1..200 {
        match submit(session, op(number, sequence), lock(number, sequence)).await {
            Ok(response) => grants.push(locked(Ok(response))),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::ResourceExhausted);
                return grants;
            }
        }
    }
    panic!("far more was kept than the limit");
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_a_session_is_bounded_and_every_response_stays_until_it_is_acknowledged() {
    let service = service().await;
    let session = open(&service);
    let grants = fill(&session, 1).await;
    let kept = grants.len() * KEY_BYTES;
    assert!(kept > LIMIT / 2 && kept < LIMIT + 2 * KEY_BYTES, "{kept} bytes of keys are kept");
    // All of a session's transactions share it; other sessions do not.
    exhausted(submit(&session, op(2, 1), lock(2, 1)).await);
    locked(submit(&open(&service), op(1, 1), lock(3, 1)).await);
    for (sequence, first) in (1..).zip(&grants) {
        let again = locked(submit(&session, op(1, sequence), lock(1, sequence)).await);
        assert_eq!(
            again.grant, first.grant,
            "a replay of operation {sequence} is answered as the first time"
        );
    }
    // The refusal took its place: nothing is missing in the order.
    let refused = grants.len() as u64 + 1;
    exhausted(submit(&session, op(1, refused), lock(1, refused)).await);
    let acked = TxnOp { acked: Sequence::new(refused), ..op(1, refused + 1) };
    locked(submit(&session, acked, lock(1, refused + 1)).await);
    locked(submit(&session, op(2, 2), lock(2, 2)).await);
    let forgotten = submit(&session, op(1, 1), lock(1, 1)).await.expect_err("acknowledged");
    assert_eq!(forgotten.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_a_call_can_still_be_cancelled_and_a_transaction_ended() {
    let service = service().await;
    let session = open(&service);
    let grants = fill(&session, 1).await;
    let held = service.locks(None).len();
    assert_eq!(held, grants.len());
    let next = grants.len() as u64 + 2;
    done(submit(&session, op(1, next), Operation::Cancel { sequence: Sequence::new(1) }).await);
    assert_eq!(service.locks(None).len(), held - 1);
    exhausted(submit(&session, op(2, 1), lock(2, 1)).await);
    done(submit(&session, op(1, next + 1), Operation::End { commit: None }).await);
    assert!(service.locks(None).is_empty());
    assert!(fill(&session, 3).await.len() + 1 >= grants.len(), "its end made all of its room free");
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_count_too() {
    let service = service().await;
    let session = open(&service);
    let holder = service.begin(TxnOptions::default()).expect("begin");
    let all = |n| (0..n).map(|i| item(9, i)).collect::<Vec<_>>();
    holder.lock(LockSpec::new(table(), all(100))).await.expect("free");
    let calls: Vec<_> = (1..=100).map(|txn| session.submit(op(txn, 1), lock(9, txn - 1))).collect();
    let waiting = service.waits(None).len();
    assert!(waiting * 2 * KEY_BYTES < LIMIT + 3 * KEY_BYTES, "{waiting} calls wait");
    holder.end(None);
    let mut granted = 0;
    for call in calls {
        match call.await {
            Ok(response) => {
                locked(Ok(response));
                granted += 1;
            }
            refused => exhausted(refused),
        }
    }
    assert_eq!(granted, waiting);
}

#[tokio::test(start_paused = true)]
async fn room_is_released_in_full_however_an_operation_ends() {
    let service = service().await;
    let session = open(&service);
    let other = service.begin(TxnOptions::default()).expect("begin");
    other.lock(LockSpec::new(table(), vec![item(0, 0)])).await.expect("free");
    // Many times the limit in all; what one round leaves behind would add up.
    for number in 1..300 {
        locked(submit(&session, op(number, 1), lock(number, 1)).await);
        locked(submit(&session, op(number, 2), lock(number, 1)).await);
        let waits = session.submit(op(number, 3), lock(0, 0));
        let queued = session.submit(op(number, 4), lock(number, 2));
        session.cancel(TxnNumber::new(number), Sequence::new(3));
        assert_eq!(waits.await.expect_err("cancelled").kind(), ErrorKind::Cancelled);
        locked(queued.await);
        done(
            submit(&session, op(number, 5), Operation::Cancel { sequence: Sequence::new(4) }).await,
        );
        match number % 3 {
            0 => session.ack(TxnNumber::new(number), Sequence::new(5)),
            1 => done(
                submit(
                    &session,
                    op(number, 6),
                    Operation::Unlock {
                        table: table(),
                        items: vec![item(number, 1)],
                        commit: None,
                    },
                )
                .await,
            ),
            _ => {}
        }
        done(submit(&session, op(number, 9), Operation::End { commit: None }).await);
    }
    assert_eq!(service.locks(None).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_calls_that_added_nothing_counts_too() {
    let service = service().await;
    let session = open(&service);
    let mut kept = 0;
    while submit(&session, op(1, kept + 1), lock(1, 1)).await.is_ok() {
        kept += 1;
        assert!(kept < 50, "{kept} times a long key is kept");
    }
    assert_eq!(service.locks(None).len(), 1);
}
