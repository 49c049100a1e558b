//! Transactions that are made unable to commit (C4).

use std::time::Duration;

use super::{AllocatorFixture, commit, start};
use crate::allocator::{Progress, TxnRange};
use crate::clock::hi;
use crate::error::ErrorKind;
use crate::id::{CommitAttempt, Nonce, TxnId, TxnNumber};

pub(super) async fn a_tombstone_keeps_a_transaction_from_committing(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let (txn, other) = (
        TxnId::new(a.service, TxnNumber::new(1), true),
        TxnId::new(a.service, TxnNumber::new(2), true),
    );
    let quiet = TxnId::new(a.service, TxnNumber::new(3), false);
    for _ in 0..2 {
        let response = allocator.cannot_commit(&[txn, quiet]).await.expect("a response");
        assert_eq!((response.tombstoned.len(), response.committing.len()), (2, 0));
    }
    let refused = allocator.begin_commit(&commit(txn, 1, &[])).await.expect_err("tombstoned (C4)");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    let mut request = commit(other, 1, &[]);
    request.window.most = Duration::from_secs(1);
    allocator.begin_commit(&request).await.expect("another transaction");
    assert_eq!(
        allocator.cannot_commit(&[other]).await.expect("a response").committing,
        vec![other]
    );
    fixture.advance(hi(Duration::from_secs(1)) - Duration::from_millis(1)).await;
    assert_eq!(
        allocator.cannot_commit(&[other]).await.expect("a response").committing,
        vec![other],
        "by its clock"
    );
    fixture.advance(Duration::from_millis(1)).await;
    let response = allocator.cannot_commit(&[other]).await.expect("a response");
    assert_eq!(response.tombstoned, vec![other], "a commit counts until hi(commit_before) (C2)");
}

pub(super) async fn a_commit_that_was_reported_is_not_extended_and_ends_in_a_tombstone(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    for finished in [true, false] {
        let txn = TxnId::new(a.service, TxnNumber::new(1 + u64::from(finished)), true);
        let first = allocator.begin_commit(&commit(txn, 1, &[])).await.expect("live").commit_before;
        fixture.advance(Duration::from_millis(500)).await;
        let extended =
            allocator.begin_commit(&commit(txn, 1, &[])).await.expect("live").commit_before;
        assert_eq!(extended, first, "no caller got a response: it is extended");
        assert_eq!(allocator.cannot_commit(&[txn]).await.expect("a response").committing, [txn]);
        let mut left = extended;
        for _ in 0..2 {
            fixture.advance(Duration::from_millis(500)).await;
            left -= Duration::from_millis(500);
            let again = allocator
                .begin_commit(&commit(txn, 1, &[]))
                .await
                .expect("what was admitted stands");
            assert_eq!(again.commit_before, left, "nothing is extended (C4)");
            let again = allocator
                .begin_commit(&commit(txn, 2, &[]))
                .await
                .expect_err("nothing is admitted (C4)");
            assert_eq!(again.kind(), ErrorKind::CannotCommit);
        }
        if finished {
            allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("admitted");
        } else {
            fixture.advance(left).await;
            let over =
                allocator.begin_commit(&commit(txn, 1, &[])).await.expect_err("its time is over");
            assert_eq!(over.kind(), ErrorKind::CannotCommit);
            assert_eq!(
                allocator.cannot_commit(&[txn]).await.expect("a response").committing,
                [txn],
                "by its own clock"
            );
            fixture.advance(hi(extended) - extended).await;
        }
        for attempt in [1, 2] {
            let refused =
                allocator.begin_commit(&commit(txn, attempt, &[])).await.expect_err("a tombstone");
            assert_eq!(refused.kind(), ErrorKind::CannotCommit);
        }
        assert_eq!(allocator.cannot_commit(&[txn]).await.expect("a response").tombstoned, [txn]);
        allocator.keepalive(a.service, Nonce::new(1), Progress::default()).await.expect("in time");
    }
}

pub(super) async fn a_transaction_that_its_origin_calls_over_or_not_started_is_not_admitted(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let txn = |number| TxnId::new(a.service, TxnNumber::new(number), true);
    let range = |floor, end| TxnRange { floor: TxnNumber::new(floor), end: TxnNumber::new(end) };
    let report = |floor, end| allocator.report_txns(a.service, Nonce::new(1), range(floor, end));
    allocator
        .begin_commit(&commit(txn(1), 1, &[]))
        .await
        .expect("its origin has reported nothing yet");
    report(5, 9).await.expect("live");
    let late = report(3, 7).await;
    late.expect("an earlier word that comes late changes nothing");
    for over in [2, 4] {
        let refused =
            allocator.begin_commit(&commit(txn(over), 1, &[])).await.expect_err("it is over (C4)");
        assert_eq!(refused.kind(), ErrorKind::CannotCommit);
        assert_eq!(
            allocator.cannot_commit(&[txn(over)]).await.expect("a response").tombstoned,
            [txn(over)]
        );
    }
    assert_eq!(
        allocator.cannot_commit(&[txn(1)]).await.expect("a response").committing,
        [txn(1)],
        "admitted before"
    );
    for alive in [5, 8] {
        allocator.begin_commit(&commit(txn(alive), 1, &[])).await.expect("alive");
    }
    // A number that is yet to come is not marked either: that would hit another
    // transaction.
    let never = allocator
        .begin_commit(&commit(txn(9), 1, &[]))
        .await
        .expect_err("not begun, as far as is known (C4)");
    assert_eq!(never.kind(), ErrorKind::Unavailable);
    let response = allocator.cannot_commit(&[txn(9), txn(7)]).await.expect("a response");
    assert_eq!(
        (response.tombstoned, response.failed.len(), response.failed[0].0),
        (vec![txn(7)], 1, txn(9))
    );
    report(5, 10).await.expect("live");
    allocator.begin_commit(&commit(txn(9), 1, &[])).await.expect("its origin has reported it");
    let stranger = allocator.report_txns(a.service, Nonce::new(2), range(99, 99)).await;
    assert_eq!(stranger.expect_err("not its nonce").kind(), ErrorKind::LeaseLost);
}

pub(super) async fn the_end_of_a_transaction_removes_no_tombstone(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let (old, txn) = (
        TxnId::new(a.service, TxnNumber::new(1), true),
        TxnId::new(a.service, TxnNumber::new(2), true),
    );
    // By a third party, then by the origin, for which the transaction ends then.
    for _ in 0..2 {
        assert_eq!(allocator.cannot_commit(&[txn]).await.expect("a response").tombstoned, [txn]);
    }
    for floor in [1, 3, 100] {
        let range = TxnRange { floor: TxnNumber::new(floor), end: TxnNumber::new(1_000) };
        allocator.report_txns(a.service, Nonce::new(1), range).await.expect("live");
        let refused =
            allocator.begin_commit(&commit(txn, 1, &[])).await.expect_err("for ever (C4)");
        assert_eq!(refused.kind(), ErrorKind::CannotCommit, "with the floor at {floor}");
        let older = allocator.begin_commit(&commit(old, 1, &[])).await;
        assert_eq!(older.is_ok(), floor <= 1, "an older one lives as long as the floor says");
        allocator.finish_commit(old, CommitAttempt::new(1)).await.expect("no error");
    }
}
