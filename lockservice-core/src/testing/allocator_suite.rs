//! The conformance suite of [`LockTableAllocator`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::allocator::{
    BeginCommit, Bind, BindState, CommitWindow, ForgetOutcome, Incarnation, LockTableAllocator,
    PresentedBind, Progress, Registration, TxnRange,
};
use crate::clock::hi;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, NodeName, Nonce, ServiceId, TableRef, TxnId};

/// One allocator under test over a new store, and its time.
#[async_trait]
pub trait AllocatorFixture: Send + Sync {
    /// The allocator.
    fn allocator(&self) -> Arc<dyn LockTableAllocator>;
    /// Lets the allocator's time pass. Need not wait for real time.
    async fn advance(&self, by: Duration);
}

/// Shows the contract of [`LockTableAllocator`] on allocators from `make`, each over a new store.
///
/// # Panics
/// At the first clause that does not hold.
pub async fn allocator_suite<F, Made>(make: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Box<dyn AllocatorFixture>>,
{
    a_table_belongs_to_the_first_who_asks(&*make().await).await;
    a_name_belongs_to_one_incarnation_at_a_time(&*make().await).await;
    a_lapsed_owners_bind_is_invalid_at_once_and_the_table_is_reassigned_later(&*make().await).await;
    a_resigned_owners_table_is_reassigned_at_once(&*make().await).await;
    a_replaced_incarnation_waits_out_its_own_lease(&*make().await).await;
    a_commit_is_admitted_on_current_binds_only(&*make().await).await;
    a_commit_is_never_promised_more_than_a_lease_has_left(&*make().await).await;
    an_origin_that_is_no_longer_live_commits_nothing(&*make().await).await;
    attempts_of_one_transaction_are_counted_each(&*make().await).await;
    a_tombstone_keeps_a_transaction_from_committing(&*make().await).await;
    a_commit_that_was_reported_is_not_extended_and_ends_in_a_tombstone(&*make().await).await;
    a_transaction_that_its_origin_calls_over_or_not_started_is_not_admitted(&*make().await).await;
    the_end_of_a_transaction_removes_no_tombstone(&*make().await).await;
    a_resignation_waits_for_commits_on_its_binds(&*make().await).await;
    tokens_grow_from_block_to_block_and_owner_to_owner(&*make().await).await;
    a_released_table_is_forgotten_and_its_name_is_another_table(&*make().await).await;
    a_bind_is_kept_while_a_commit_is_in_flight_on_it(&*make().await).await;
    an_operator_may_forget_a_table_that_may_be_reassigned(&*make().await).await;
    unknown_names_have_a_response_and_create_nothing(&*make().await).await;
}

async fn a_table_belongs_to_the_first_who_asks(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    assert_eq!(bound.bind.owner, a.service);
    assert!(bound.tokens.is_some(), "a fresh bind comes with tokens (B6)");
    for asker in [a.service, b.service] {
        let again = allocator.bind(asker, &t).await.expect("bound");
        assert_eq!((again.bind, again.tokens), (bound.bind.clone(), None));
    }
    let (x, y) = tokio::join!(
        async { allocator.bind(a.service, &table("u")).await.expect("one of two") },
        async { allocator.bind(b.service, &table("u")).await.expect("one of two") },
    );
    assert_eq!(x.bind, y.bind, "concurrent first askers agree");
    assert_eq!(
        [&x, &y].iter().filter(|bound| bound.tokens.is_some()).count(),
        1,
        "and one of them got the tokens"
    );
    let other_group = TableRef::new("other", "t").expect("names");
    let elsewhere = allocator.bind(b.service, &other_group).await.expect("free");
    assert_ne!(elsewhere.bind.id, bound.bind.id);
}

async fn a_name_belongs_to_one_incarnation_at_a_time(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let first = start(&*allocator, "n", 1).await;
    let again = start(&*allocator, "n", 1).await;
    assert_eq!(again.service, first.service, "the same process may ask again");
    let refused = allocator.register(&register("n", 2)).await.expect_err("another process (B1)");
    assert_eq!(refused.kind(), ErrorKind::NameInUse);
    let wrong = Registration { replaces: Some((first.service, Nonce::new(9))), ..register("n", 2) };
    assert_eq!(
        allocator.register(&wrong).await.expect_err("not its nonce").kind(),
        ErrorKind::NameInUse
    );
    let right = Registration { replaces: Some((first.service, Nonce::new(1))), ..register("n", 3) };
    let second = allocator.register(&right).await.expect("its own former incarnation");
    assert!(second.service > first.service);
    let old = allocator
        .keepalive(first.service, Nonce::new(1), Progress::default())
        .await
        .expect_err("replaced");
    assert_eq!(old.kind(), ErrorKind::LeaseLost);
    fixture.advance(hi(second.lease_ttl)).await;
    let third = start(&*allocator, "n", 4).await;
    assert!(third.service > second.service, "a lapsed one does not conflict");
    let late = allocator
        .keepalive(second.service, Nonce::new(3), Progress::default())
        .await
        .expect_err("it never renews again");
    assert_eq!(late.kind(), ErrorKind::LeaseLost);
}

async fn a_lapsed_owners_bind_is_invalid_at_once_and_the_table_is_reassigned_later(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let t = table("t");
    let old = allocator.bind(a.service, &t).await.expect("free");
    fixture.advance(a.lease_ttl / 2).await;
    allocator.keepalive(a.service, Nonce::new(1), Progress::default()).await.expect("in time");
    fixture.advance(hi(a.lease_ttl) - Duration::from_millis(1)).await;
    let b = start(&*allocator, "b", 2).await;
    let still = allocator.bind(b.service, &t).await.expect("still owned");
    assert_eq!(still.bind, old.bind, "not before its lease must have run out");
    fixture.advance(Duration::from_millis(1)).await;
    let new = allocator.bind(b.service, &t).await.expect("reassigned (B3)");
    assert_eq!((new.bind.owner, new.bind.id), (b.service, old.bind.id));
    assert!(new.bind.version > old.bind.version);
    let lost = allocator.bind(a.service, &t).await.expect_err("it lapsed");
    assert_eq!(lost.kind(), ErrorKind::LeaseLost);
}

async fn a_resigned_owners_table_is_reassigned_at_once(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let old = allocator.bind(a.service, &t).await.expect("free");
    allocator.resign(a.service, Nonce::new(1)).await.expect("live");
    let new = allocator.bind(b.service, &t).await.expect("no wait");
    assert!(new.bind.version > old.bind.version);
    start(&*allocator, "a", 3).await;
}

async fn a_replaced_incarnation_waits_out_its_own_lease(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let t = table("t");
    let old = allocator.bind(a.service, &t).await.expect("free");
    let again = Registration { replaces: Some((a.service, Nonce::new(1))), ..register("a", 2) };
    let a2 = allocator.register(&again).await.expect("its own");
    let invalid = allocator.latest(&t).await.expect("answer").bind.expect("known");
    assert!(
        matches!(invalid.state, BindState::Invalid { reassigned_in } if !reassigned_in.is_zero()),
        "{invalid:?}"
    );
    let txn = TxnId::new(a2.service, 1, true);
    let stale = allocator
        .begin_commit(&commit(txn, 1, &[&old.bind]))
        .await
        .expect_err("invalid at once (B3)");
    assert_eq!(stale.kind(), ErrorKind::BindChanged);
    let wait =
        allocator.bind(a2.service, &t).await.expect_err("the old lease may still be relied on");
    assert_eq!(wait.kind(), ErrorKind::Reassigning);
    let after = wait.retry_after().expect("it says how long");
    assert!(after <= hi(a.lease_ttl));
    allocator.bind(a2.service, &table("new")).await.expect("tables not bound before do not wait");
    // The new incarnation stays alive meanwhile.
    fixture.advance(after / 2).await;
    allocator.keepalive(a2.service, Nonce::new(2), Progress::default()).await.expect("in time");
    fixture.advance(after - after / 2).await;
    let new = allocator.bind(a2.service, &t).await.expect("after that it is reassigned");
    assert!(new.bind.version > old.bind.version);
}

async fn a_commit_is_admitted_on_current_binds_only(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    let txn = TxnId::new(b.service, 1, true);
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
    let quiet = TxnId::new(b.service, 2, false);
    let refused = allocator
        .begin_commit(&commit(quiet, 1, &[]))
        .await
        .expect_err("it does not validate (T1)");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    let stranger = TxnId::new(ServiceId::new(7), 1, true);
    let refused =
        allocator.begin_commit(&commit(stranger, 1, &[])).await.expect_err("unknown origin (C3)");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
}

async fn a_commit_is_never_promised_more_than_a_lease_has_left(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    fixture.advance(a.lease_ttl - Duration::from_millis(500)).await;
    allocator.keepalive(b.service, Nonce::new(2), Progress::default()).await.expect("in time");
    let txn = TxnId::new(b.service, 1, true);
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
        let mut request = commit(TxnId::new(b.service, 2, true), 1, binds);
        request.window.most = b.lease_ttl * 10;
        let short = allocator.begin_commit(&request).await.expect("half a second is enough");
        assert!(
            short.commit_before <= Duration::from_millis(500),
            "the origin's lease (C1): {short:?}"
        );
    }
}

async fn an_origin_that_is_no_longer_live_commits_nothing(fixture: &dyn AllocatorFixture) {
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
        let txn = TxnId::new(origin.service, 1, true);
        for binds in [&[][..], &[&bound.bind][..]] {
            let mut request = commit(txn, 1, binds);
            request.window.least = Duration::ZERO;
            let refused =
                allocator.begin_commit(&request).await.expect_err("its origin is fenced (C3)");
            assert_eq!(refused.kind(), ErrorKind::CannotCommit, "{what}");
        }
    }
}

async fn attempts_of_one_transaction_are_counted_each(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let txn = TxnId::new(a.service, 1, true);
    for attempt in [1, 2, 2] {
        allocator.begin_commit(&commit(txn, attempt, &[])).await.expect("admitted");
    }
    allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("admitted");
    let response = allocator.cannot_commit(&[txn]).await.expect("answer");
    assert_eq!(response.committing, vec![txn], "the second attempt is in flight");
    allocator.finish_commit(txn, CommitAttempt::new(2)).await.expect("admitted");
    let response = allocator.cannot_commit(&[txn]).await.expect("answer");
    assert_eq!(response.tombstoned, vec![txn]);
}

async fn a_tombstone_keeps_a_transaction_from_committing(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let (txn, other) = (TxnId::new(a.service, 1, true), TxnId::new(a.service, 2, true));
    let quiet = TxnId::new(a.service, 3, false);
    for _ in 0..2 {
        let response = allocator.cannot_commit(&[txn, quiet]).await.expect("answer");
        assert_eq!((response.tombstoned.len(), response.committing.len()), (2, 0));
    }
    let refused = allocator.begin_commit(&commit(txn, 1, &[])).await.expect_err("tombstoned (C4)");
    assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    let mut request = commit(other, 1, &[]);
    request.window.most = Duration::from_secs(1);
    allocator.begin_commit(&request).await.expect("another transaction");
    assert_eq!(allocator.cannot_commit(&[other]).await.expect("answer").committing, vec![other]);
    fixture.advance(hi(Duration::from_secs(1)) - Duration::from_millis(1)).await;
    assert_eq!(
        allocator.cannot_commit(&[other]).await.expect("answer").committing,
        vec![other],
        "by its clock"
    );
    fixture.advance(Duration::from_millis(1)).await;
    let response = allocator.cannot_commit(&[other]).await.expect("answer");
    assert_eq!(response.tombstoned, vec![other], "a commit counts until hi(commit_before) (C2)");
}

async fn a_commit_that_was_reported_is_not_extended_and_ends_in_a_tombstone(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    for finished in [true, false] {
        let txn = TxnId::new(a.service, 1 + u64::from(finished), true);
        let first = allocator.begin_commit(&commit(txn, 1, &[])).await.expect("live").commit_before;
        fixture.advance(Duration::from_millis(500)).await;
        let extended =
            allocator.begin_commit(&commit(txn, 1, &[])).await.expect("live").commit_before;
        assert_eq!(extended, first, "no caller was told: it is extended");
        assert_eq!(allocator.cannot_commit(&[txn]).await.expect("answer").committing, [txn]);
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
                allocator.cannot_commit(&[txn]).await.expect("answer").committing,
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
        assert_eq!(allocator.cannot_commit(&[txn]).await.expect("answer").tombstoned, [txn]);
        allocator.keepalive(a.service, Nonce::new(1), Progress::default()).await.expect("in time");
    }
}

async fn a_transaction_that_its_origin_calls_over_or_not_started_is_not_admitted(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let txn = |number| TxnId::new(a.service, number, true);
    let report =
        |floor, end| allocator.report_txns(a.service, Nonce::new(1), TxnRange { floor, end });
    allocator.begin_commit(&commit(txn(1), 1, &[])).await.expect("its origin has told nothing yet");
    report(5, 9).await.expect("live");
    let late = report(3, 7).await;
    late.expect("an earlier word that comes late changes nothing");
    for over in [2, 4] {
        let refused =
            allocator.begin_commit(&commit(txn(over), 1, &[])).await.expect_err("it is over (C4)");
        assert_eq!(refused.kind(), ErrorKind::CannotCommit);
        assert_eq!(
            allocator.cannot_commit(&[txn(over)]).await.expect("answer").tombstoned,
            [txn(over)]
        );
    }
    assert_eq!(
        allocator.cannot_commit(&[txn(1)]).await.expect("answer").committing,
        [txn(1)],
        "admitted before"
    );
    for alive in [5, 8] {
        allocator.begin_commit(&commit(txn(alive), 1, &[])).await.expect("alive");
    }
    // A number that is yet to come is not marked either: that would hit a transaction which nobody
    // meant.
    let never = allocator
        .begin_commit(&commit(txn(9), 1, &[]))
        .await
        .expect_err("not begun, as far as is known (C4)");
    assert_eq!(never.kind(), ErrorKind::Unavailable);
    let response = allocator.cannot_commit(&[txn(9), txn(7)]).await.expect("answer");
    assert_eq!(
        (response.tombstoned, response.failed.len(), response.failed[0].0),
        (vec![txn(7)], 1, txn(9))
    );
    report(5, 10).await.expect("live");
    allocator.begin_commit(&commit(txn(9), 1, &[])).await.expect("its origin has told of it");
    let stranger =
        allocator.report_txns(a.service, Nonce::new(2), TxnRange { floor: 99, end: 99 }).await;
    assert_eq!(stranger.expect_err("not its nonce").kind(), ErrorKind::LeaseLost);
}

async fn the_end_of_a_transaction_removes_no_tombstone(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let (old, txn) = (TxnId::new(a.service, 1, true), TxnId::new(a.service, 2, true));
    // By a third party, then by the origin, for which the transaction ends then.
    for _ in 0..2 {
        assert_eq!(allocator.cannot_commit(&[txn]).await.expect("answer").tombstoned, [txn]);
    }
    for floor in [1, 3, 100] {
        allocator
            .report_txns(a.service, Nonce::new(1), TxnRange { floor, end: 1_000 })
            .await
            .expect("live");
        let refused =
            allocator.begin_commit(&commit(txn, 1, &[])).await.expect_err("for ever (C4)");
        assert_eq!(refused.kind(), ErrorKind::CannotCommit, "with the floor at {floor}");
        let older = allocator.begin_commit(&commit(old, 1, &[])).await;
        assert_eq!(older.is_ok(), floor <= 1, "an older one lives as long as the floor says");
        allocator.finish_commit(old, CommitAttempt::new(1)).await.expect("no error");
    }
}

async fn a_resignation_waits_for_commits_on_its_binds(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    // One of another's transactions on its table, and one of its own without a lock.
    let (txn, own) = (TxnId::new(b.service, 1, true), TxnId::new(a.service, 1, true));
    allocator.begin_commit(&commit(txn, 1, &[&bound.bind])).await.expect("current");
    allocator.begin_commit(&commit(own, 1, &[])).await.expect("live");
    let resign = allocator.resign(a.service, Nonce::new(1));
    tokio::pin!(resign);
    let mut writes = 0;
    for (in_flight, what) in [(txn, "on its table"), (own, "of its own")] {
        tokio::select! {
            biased;
            ended = &mut resign => panic!("a commit {what} is in flight (C2): {ended:?}"),
            // Begun after the resignation, with time for that to go on: a write that it had queued
            // would land before the second of these.
            () = async {
                for _ in 0..2 {
                    writes += 1;
                    let later = table(&format!("later-{writes}"));
                    allocator.bind(b.service, &later).await.expect("free");
                }
                for late in [commit(txn, 2, &[&bound.bind]), commit(own, 2, &[])] {
                    let refused = allocator.begin_commit(&late).await.expect_err("no new pin, no \
                        new commit");
                    let kinds = [ErrorKind::BindChanged, ErrorKind::CannotCommit];
                    assert!(kinds.contains(&refused.kind()), "{refused:?}");
                }
                let still = allocator.bind(b.service, &t).await.expect_err("a commit may rely on \
                    it");
                assert_eq!(still.kind(), ErrorKind::Reassigning);
            } => {}
        }
        allocator.finish_commit(in_flight, CommitAttempt::new(1)).await.expect("admitted");
    }
    resign.await.expect("nothing holds it up");
    allocator.bind(b.service, &t).await.expect("reassigned at once");
}

async fn tokens_grow_from_block_to_block_and_owner_to_owner(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    let mut last = bound.tokens.expect("a fresh bind").end;
    // One more than the blocks of an epoch: the leader raises its epoch on the way (F2).
    for _ in 0..4_100 {
        let block = allocator
            .reserve_tokens(a.service, bound.bind.id, bound.bind.version)
            .await
            .expect("current")
            .tokens;
        assert!(block.next >= last && block.left() > 0);
        last = block.end;
    }
    assert!(
        allocator.bind(a.service, &t).await.expect("bound").bind == bound.bind,
        "the bind is still the same"
    );
    let stale = BindVersion::new(bound.bind.version.get() - 1);
    let refused =
        allocator.reserve_tokens(a.service, bound.bind.id, stale).await.expect_err("not current");
    assert_eq!(refused.kind(), ErrorKind::BindChanged);
    allocator.resign(a.service, Nonce::new(1)).await.expect("live");
    let b = start(&*allocator, "b", 2).await;
    let new = allocator.bind(b.service, &t).await.expect("reassigned");
    assert!(new.tokens.expect("a fresh bind").next >= last);
}

async fn release(
    allocator: &dyn LockTableAllocator,
    bind: &Bind,
    nonce: u64,
) -> Result<Option<Error>> {
    let released =
        allocator.release_table(bind.owner, Nonce::new(nonce), &bind.table, bind.version).await?;
    Ok(released.kept)
}

async fn a_released_table_is_forgotten_and_its_name_is_another_table(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let old = allocator.bind(a.service, &t).await.expect("free").bind;
    let mut last =
        allocator.reserve_tokens(a.service, old.id, old.version).await.expect("current").tokens.end;
    for _ in 0..3 {
        last = allocator
            .reserve_tokens(a.service, old.id, old.version)
            .await
            .expect("current")
            .tokens
            .end;
    }
    let stale = Bind { version: BindVersion::new(old.version.get() - 1), ..old.clone() };
    let of_b = Bind { owner: b.service, ..old.clone() };
    for (wrong, nonce, kind) in [
        (&stale, 1, ErrorKind::BindChanged),
        (&of_b, 2, ErrorKind::BindChanged),
        (&old, 9, ErrorKind::LeaseLost),
    ] {
        let refused = release(&*allocator, wrong, nonce)
            .await
            .expect_err("not current, not its own, not its nonce");
        assert_eq!(refused.kind(), kind);
    }
    let still = allocator.latest(&t).await.expect("answer").bind.expect("refused");
    assert_eq!(still.bind, old);
    for _ in 0..2 {
        assert!(
            release(&*allocator, &old, 1).await.expect("its own").is_none(),
            "gone already is done"
        );
        assert_eq!(allocator.latest(&t).await.expect("answer").bind, None);
    }
    let txn = TxnId::new(b.service, 1, true);
    let refused = allocator.begin_commit(&commit(txn, 1, &[&old])).await.expect_err("not current");
    assert_eq!(refused.kind(), ErrorKind::BindChanged);
    let refused =
        allocator.reserve_tokens(a.service, old.id, old.version).await.expect_err("not current");
    assert_eq!(refused.kind(), ErrorKind::BindChanged);
    for name in ["new", "t"] {
        let new = allocator.bind(b.service, &table(name)).await.expect("free");
        assert!(
            new.bind.id > old.id
                && new.bind.id.get() > old.version.get()
                && new.bind.version > old.version
        );
        assert!(
            new.tokens.expect("a fresh bind").next >= last,
            "of {name}: it is unknown what was there before (F1)"
        );
    }
    let late = release(&*allocator, &old, 1).await.expect_err("another has the name now");
    assert_eq!(late.kind(), ErrorKind::BindChanged);
    assert_eq!(
        allocator.latest(&t).await.expect("answer").bind.expect("bound").bind.owner,
        b.service
    );
}

async fn a_bind_is_kept_while_a_commit_is_in_flight_on_it(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let bound = allocator.bind(a.service, &table("t")).await.expect("free");
    let txn = |n| TxnId::new(b.service, n, true);
    allocator.begin_commit(&commit(txn(1), 1, &[&bound.bind])).await.expect("current");
    let kept = release(&*allocator, &bound.bind, 1).await.expect("its own").expect("kept (C2)");
    assert_eq!(kept.kind(), ErrorKind::TableInUse);
    assert!(kept.retry_after().is_some(), "it says when to ask again");
    allocator.begin_commit(&commit(txn(2), 1, &[&bound.bind])).await.expect("it is what it was");
    for n in [1, 2] {
        assert!(release(&*allocator, &bound.bind, 1).await.expect("its own").is_some());
        allocator.finish_commit(txn(n), CommitAttempt::new(1)).await.expect("admitted");
    }
    assert!(release(&*allocator, &bound.bind, 1).await.expect("its own").is_none());
    let refused =
        allocator.begin_commit(&commit(txn(3), 1, &[&bound.bind])).await.expect_err("not current");
    assert_eq!(refused.kind(), ErrorKind::BindChanged);
}

async fn an_operator_may_forget_a_table_that_may_be_reassigned(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let forget = async |name: &str| {
        allocator.forget_table(&table(name)).await.map(|response| response.outcome)
    };
    let lapses = allocator.bind(a.service, &table("lapses")).await.expect("free").bind;
    let resigns = allocator.bind(b.service, &table("resigns")).await.expect("free").bind;
    assert_eq!(forget("never").await.expect("answer"), ForgetOutcome::Unknown);
    for bind in [&lapses, &resigns] {
        let ForgetOutcome::Owned(owned) = forget(bind.table.name.as_str()).await.expect("answer")
        else {
            panic!("its owner lives");
        };
        assert_eq!(&owned.bind, bind);
    }
    allocator.resign(b.service, Nonce::new(2)).await.expect("live");
    assert_eq!(forget("resigns").await.expect("at once"), ForgetOutcome::Forgotten);
    assert_eq!(forget("resigns").await.expect("answer"), ForgetOutcome::Unknown);
    let again = Registration { replaces: Some((a.service, Nonce::new(1))), ..register("a", 3) };
    let a2 = allocator.register(&again).await.expect("its own");
    let wait = forget("lapses").await.expect_err("the old lease may still be relied on (B3)");
    assert_eq!(wait.kind(), ErrorKind::Reassigning);
    let after = wait.retry_after().expect("it says how long");
    fixture.advance(after / 2).await;
    allocator.keepalive(a2.service, Nonce::new(3), Progress::default()).await.expect("in time");
    fixture.advance(after - after / 2 - Duration::from_millis(1)).await;
    assert_eq!(forget("lapses").await.expect_err("not yet").kind(), ErrorKind::Reassigning);
    fixture.advance(Duration::from_millis(1)).await;
    assert_eq!(forget("lapses").await.expect("over"), ForgetOutcome::Forgotten);
    let new = allocator.bind(a2.service, &table("lapses")).await.expect("free").bind;
    assert!(new.id > lapses.id && new.version > lapses.version);
}

async fn unknown_names_have_a_response_and_create_nothing(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    assert_eq!(allocator.latest(&table("t")).await.expect("answer").bind, None);
    let txn = TxnId::new(a.service, 1, true);
    let mut request = commit(txn, 1, &[]);
    request.binds.push(PresentedBind {
        table: table("t"),
        partition: 0,
        owner: a.service,
        version: BindVersion::new(1),
    });
    assert_eq!(
        allocator.begin_commit(&request).await.expect_err("never seen").kind(),
        ErrorKind::BindChanged
    );
    assert_eq!(allocator.latest(&table("t")).await.expect("answer").bind, None);
    assert_eq!(allocator.status().await.expect("answer").binds, vec![]);
    let ghost = ServiceId::new(3);
    assert_eq!(
        allocator.bind(ghost, &table("t")).await.expect_err("unknown").kind(),
        ErrorKind::LeaseLost
    );
    assert_eq!(
        allocator
            .keepalive(ghost, Nonce::new(1), Progress::default())
            .await
            .expect_err("unknown")
            .kind(),
        ErrorKind::LeaseLost
    );
    assert_eq!(
        allocator
            .keepalive(a.service, Nonce::new(2), Progress::default())
            .await
            .expect_err("nonce")
            .kind(),
        ErrorKind::LeaseLost
    );
    allocator.finish_commit(txn, CommitAttempt::new(9)).await.expect("no error");
}

fn register(node: &str, nonce: u64) -> Registration {
    Registration {
        node: NodeName::new(node).expect("a name"),
        nonce: Nonce::new(nonce),
        address: format!("{node}:1"),
        replaces: None,
    }
}

async fn start(allocator: &dyn LockTableAllocator, node: &str, nonce: u64) -> Incarnation {
    allocator.register(&register(node, nonce)).await.expect("a free name")
}

fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

fn commit(txn: TxnId, attempt: u64, binds: &[&Bind]) -> BeginCommit {
    BeginCommit {
        txn,
        binds: binds.iter().map(|bind| PresentedBind::from(*bind)).collect(),
        attempt: CommitAttempt::new(attempt),
        window: CommitWindow { least: Duration::from_millis(1), most: Duration::from_secs(3) },
    }
}
