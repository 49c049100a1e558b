//! Admission of commits (C1 to C4).

use std::time::Duration;

use super::{AllocatorFixture, commit, register, start, table};
use crate::allocator::{Progress, Registration};
use crate::clock::hi;
use crate::error::ErrorKind;
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TxnId, TxnNumber};

pub(super) async fn a_commit_is_admitted_on_current_binds_only(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    let txn = TxnId::new(b.service, TxnNumber::new(1), true);
    allocator.begin_commit(&commit(txn, 1, &[&bound.bind])).await.expect("current");
    allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("admitted");
    allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("idempotent");
    allocator.begin_commit(&commit(txn, 2, &[])).await.expect("no locks, no binds");
    let mut wrong = commit(txn, 3, &[&bound.bind]);
    wrong.binds[0].version = BindVersion::new(bound.bind.version.get() + 1);
    assert_eq!(
        allocator.begin_commit(&wrong).await.expect_err("version").kind(),
        ErrorKind::BindChanged
    );
    let mut wrong = commit(txn, 3, &[&bound.bind]);
    wrong.binds[0].owner = b.service;
    assert_eq!(
        allocator.begin_commit(&wrong).await.expect_err("owner").kind(),
        ErrorKind::BindChanged
    );
    let mut wrong = commit(txn, 3, &[&bound.bind]);
    wrong.binds[0].partition = 1;
    assert_eq!(
        allocator.begin_commit(&wrong).await.expect_err("partition").kind(),
        ErrorKind::BindChanged
    );
    let quiet = TxnId::new(b.service, TxnNumber::new(2), false);
    let refused = allocator
        .begin_commit(&commit(quiet, 1, &[]))
        .await
        .expect_err("it does not validate (T1)");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    let stranger = TxnId::new(ServiceId::new(7), TxnNumber::new(1), true);
    let refused =
        allocator.begin_commit(&commit(stranger, 1, &[])).await.expect_err("unknown origin (C3)");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
}

pub(super) async fn a_commit_is_never_promised_more_than_a_lease_has_left(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    fixture.advance(a.lease_ttl - Duration::from_millis(500)).await;
    allocator.keepalive(b.service, Nonce::new(2), Progress::default()).await.expect("in time");
    let txn = TxnId::new(b.service, TxnNumber::new(1), true);
    let mut request = commit(txn, 1, &[&bound.bind]);
    request.window.most = a.lease_ttl * 10;
    let short = allocator.begin_commit(&request).await.expect("half a second is enough");
    assert!(short.commit_before <= Duration::from_millis(500), "the owner's lease (C1): {short:?}");
    request.window.least = Duration::from_secs(1);
    assert_eq!(
        allocator.begin_commit(&request).await.expect_err("too short").kind(),
        ErrorKind::Timeout
    );
    allocator.keepalive(a.service, Nonce::new(1), Progress::default()).await.expect("in time");
    let longer = allocator.begin_commit(&request).await.expect("a repeat extends it");
    assert!(longer.commit_before > short.commit_before && longer.commit_before <= a.lease_ttl);
    request.window.most = Duration::from_secs(1);
    let admission = allocator.begin_commit(&request).await.expect("idempotent");
    assert_eq!(admission.commit_before, Duration::from_secs(1), "at most the window");
    // The origin's own lease counts as the owner's does.
    fixture.advance(b.lease_ttl - Duration::from_millis(500)).await;
    allocator.keepalive(a.service, Nonce::new(1), Progress::default()).await.expect("in time");
    for binds in [&[][..], &[&bound.bind][..]] {
        let mut request = commit(TxnId::new(b.service, TxnNumber::new(2), true), 1, binds);
        request.window.most = b.lease_ttl * 10;
        let short = allocator.begin_commit(&request).await.expect("half a second is enough");
        assert!(
            short.commit_before <= Duration::from_millis(500),
            "the origin's lease (C1): {short:?}"
        );
    }
}

pub(super) async fn an_origin_that_is_no_longer_live_commits_nothing(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let (owner, a) = (start(&*allocator, "owner", 1).await, start(&*allocator, "a", 2).await);
    let (b, c) = (start(&*allocator, "b", 3).await, start(&*allocator, "c", 4).await);
    let bound = allocator.bind(owner.service, &table("t")).await.expect("free");
    let again = Registration { replaces: Some((a.service, Nonce::new(2))), ..register("a", 5) };
    allocator.register(&again).await.expect("its own");
    allocator.resign(b.service, Nonce::new(3)).await.expect("live");
    fixture.advance(hi(c.lease_ttl) / 2).await;
    allocator.keepalive(owner.service, Nonce::new(1), Progress::default()).await.expect("in time");
    fixture.advance(hi(c.lease_ttl) - hi(c.lease_ttl) / 2).await;
    // No call has looked at it since: the first that looks finds that it lapsed.
    let late = allocator
        .keepalive(c.service, Nonce::new(4), Progress::default())
        .await
        .expect_err("lapsed (B1)");
    assert_eq!(late.kind(), ErrorKind::LeaseLost);
    for (origin, what) in [(a, "replaced"), (b, "resigned"), (c, "lapsed")] {
        let txn = TxnId::new(origin.service, TxnNumber::new(1), true);
        for binds in [&[][..], &[&bound.bind][..]] {
            let mut request = commit(txn, 1, binds);
            request.window.least = Duration::ZERO;
            let refused =
                allocator.begin_commit(&request).await.expect_err("its origin is fenced (C3)");
            assert_eq!(refused.kind(), ErrorKind::CannotCommit, "{what}");
        }
    }
}

pub(super) async fn attempts_of_one_transaction_are_counted_each(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let txn = TxnId::new(a.service, TxnNumber::new(1), true);
    for attempt in [1, 2, 2] {
        allocator.begin_commit(&commit(txn, attempt, &[])).await.expect("admitted");
    }
    allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("admitted");
    let response = allocator.cannot_commit(&[txn]).await.expect("a response");
    assert_eq!(response.committing, vec![txn], "the second attempt is in flight");
    allocator.finish_commit(txn, CommitAttempt::new(2)).await.expect("admitted");
    let response = allocator.cannot_commit(&[txn]).await.expect("a response");
    assert_eq!(response.tombstoned, vec![txn]);
}
