//! The time of a call, and calls that may not wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lockservice_core::ErrorKind;
use lockservice_core::service::{LockSpec, Operation, TxnOptions};
use tokio::time::Instant;

use super::{MS, SECOND, about, allocator, fails, no_wait, op, spec, start, submit, within};

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_wait_waits_neither_for_a_bind_that_hangs_nor_for_a_token() {
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    allocator.hooks.bind_hangs.store(true, Ordering::Relaxed);
    let (error, waited) = fails(&service, no_wait("k")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    about(waited, SECOND);
    let (error, waited) =
        fails(&service, LockSpec { timeout: Some(10 * MS), ..no_wait("k") }).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    about(waited, 10 * MS);
    let (error, waited) = fails(&service, within(3 * SECOND, "k")).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    about(waited, 3 * SECOND);
    allocator.hooks.bind_hangs.store(false, Ordering::Relaxed);
    allocator.hooks.no_tokens.store(true, Ordering::Relaxed);
    let (error, waited) = fails(&service, no_wait("k")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    about(waited, Duration::ZERO);
    let (error, waited) = fails(&service, within(3 * SECOND, "k")).await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    about(waited, 3 * SECOND);
    assert!(service.locks(None).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_lock_runs_while_earlier_operations_wait_or_are_missing() {
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    let holder = service.begin(TxnOptions::default()).expect("it serves");
    holder.lock(spec("held")).await.expect("free");
    let session = service.open_session(None, "test").expect("a session");
    let began = Instant::now();
    // Behind one that waits, and behind one that has not arrived.
    let waits = session.submit(op(1, 1), Operation::Lock(spec("held")));
    submit(&session, 2, 1, spec("a")).await.expect("free");
    let behind = submit(&session, 1, 2, within(SECOND, "b"));
    let missing = submit(&session, 2, 3, within(SECOND, "c"));
    let (behind, missing) = tokio::join!(behind, missing);
    about(began.elapsed(), SECOND);
    for outcome in [behind, missing] {
        assert_eq!(outcome.expect_err("its time is up").kind(), ErrorKind::Timeout);
    }
    // A repetition gets the same response, before its turn and after.
    let again = submit(&session, 1, 2, within(SECOND, "b")).await.expect_err("a response");
    assert_eq!(again.kind(), ErrorKind::Timeout);
    about(began.elapsed(), SECOND);
    holder.end(None);
    waits.await.expect("free now");
    submit(&session, 2, 2, spec("d")).await.expect("it comes late, in its place");
    let again = submit(&session, 1, 2, within(SECOND, "b")).await.expect_err("a response");
    assert_eq!(again.kind(), ErrorKind::Timeout);
    // The order goes on behind them.
    submit(&session, 1, 3, spec("e")).await.expect("free");
    submit(&session, 2, 4, spec("f")).await.expect("free");
    let held: Vec<_> =
        service.locks(None).into_iter().map(|lock| lock.info.item.to_string()).collect();
    assert_eq!(held, ["a", "d", "e", "f", "held"]);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_embedders_lock_runs_while_its_transaction_is_busy() {
    let allocator = allocator().await;
    let service = start(&allocator, "node", None).await;
    let holder = service.begin(TxnOptions::default()).expect("it serves");
    holder.lock(spec("held")).await.expect("free");
    let txn = service.begin(TxnOptions::default()).expect("it serves");
    let began = Instant::now();
    let (first, second) = tokio::join!(txn.lock(within(3 * SECOND, "held")), async {
        let outcome = txn.lock(within(SECOND, "free")).await;
        (outcome, began.elapsed())
    });
    assert_eq!(first.expect_err("held").kind(), ErrorKind::Timeout);
    let (outcome, waited) = second;
    assert_eq!(outcome.expect_err("its turn did not come").kind(), ErrorKind::Timeout);
    about(waited, SECOND);
}
