//! Binds, and the incarnations that own them (B1, B3, F2).

use std::time::Duration;

use super::{AllocatorFixture, commit, register, start, table};
use crate::allocator::{BindState, Progress, Registration};
use crate::clock::hi;
use crate::error::ErrorKind;
use crate::id::{BindVersion, CommitAttempt, Nonce, TableRef, TxnId, TxnNumber};

pub(super) async fn a_table_belongs_to_the_first_that_binds_it(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    assert_eq!(bound.bind.owner, a.service);
    assert!(bound.tokens.is_some(), "a fresh bind comes with tokens (B6)");
    for binder in [a.service, b.service] {
        let again = allocator.bind(binder, &t).await.expect("bound");
        assert_eq!((again.bind, again.tokens), (bound.bind.clone(), None));
    }
    let (x, y) = tokio::join!(
        async { allocator.bind(a.service, &table("u")).await.expect("one of two") },
        async { allocator.bind(b.service, &table("u")).await.expect("one of two") },
    );
    assert_eq!(x.bind, y.bind, "concurrent first binders agree");
    assert_eq!(
        [&x, &y].iter().filter(|bound| bound.tokens.is_some()).count(),
        1,
        "and one of them got the tokens"
    );
    let other_group = TableRef::new("other", "t").expect("names");
    let elsewhere = allocator.bind(b.service, &other_group).await.expect("free");
    assert_ne!(elsewhere.bind.id, bound.bind.id);
}

pub(super) async fn a_name_belongs_to_one_incarnation_at_a_time(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let first = start(&*allocator, "n", 1).await;
    let again = start(&*allocator, "n", 1).await;
    assert_eq!(again.service, first.service, "the same process may register again");
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

pub(super) async fn a_lapsed_owners_bind_is_invalid_at_once_and_the_table_is_reassigned_later(
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

pub(super) async fn a_resigned_owners_table_is_reassigned_at_once(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let old = allocator.bind(a.service, &t).await.expect("free");
    allocator.resign(a.service, Nonce::new(1)).await.expect("live");
    let new = allocator.bind(b.service, &t).await.expect("no wait");
    assert!(new.bind.version > old.bind.version);
    start(&*allocator, "a", 3).await;
}

pub(super) async fn a_replaced_incarnation_waits_out_its_own_lease(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let t = table("t");
    let old = allocator.bind(a.service, &t).await.expect("free");
    let again = Registration { replaces: Some((a.service, Nonce::new(1))), ..register("a", 2) };
    let a2 = allocator.register(&again).await.expect("its own");
    let invalid = allocator.latest(&t).await.expect("a response").bind.expect("known");
    assert!(
        matches!(invalid.state, BindState::Invalid { reassigned_in } if !reassigned_in.is_zero()),
        "{invalid:?}"
    );
    let txn = TxnId::new(a2.service, TxnNumber::new(1), true);
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

pub(super) async fn tokens_grow_from_block_to_block_and_owner_to_owner(
    fixture: &dyn AllocatorFixture,
) {
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

pub(super) async fn a_resignation_waits_for_the_pins_of_another_origin_alone(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let bound = allocator.bind(a.service, &table("t")).await.expect("free");
    // No transaction of the incarnation that resigns commits.
    let txn = TxnId::new(b.service, TxnNumber::new(1), true);
    allocator.begin_commit(&commit(txn, 1, &[&bound.bind])).await.expect("current");
    let resign = allocator.resign(a.service, Nonce::new(1));
    tokio::pin!(resign);
    tokio::select! {
        biased;
        ended = &mut resign => panic!("a commit is in flight on its bind (C2): {ended:?}"),
        // A write that the resignation had queued would land before the second of these.
        () = async {
            for later in ["later-1", "later-2"] {
                allocator.bind(b.service, &table(later)).await.expect("free");
            }
        } => {}
    }
    let still = allocator.bind(b.service, &table("t")).await.expect_err("a commit may rely on it");
    assert_eq!(still.kind(), ErrorKind::Reassigning);
    allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("admitted");
    resign.await.expect("nothing holds it up");
    allocator.bind(b.service, &table("t")).await.expect("reassigned at once");
}

pub(super) async fn a_resignation_waits_for_commits_on_its_binds(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let t = table("t");
    let bound = allocator.bind(a.service, &t).await.expect("free");
    // One of another's transactions on its table, and one of its own without a lock.
    let (txn, own) = (
        TxnId::new(b.service, TxnNumber::new(1), true),
        TxnId::new(a.service, TxnNumber::new(1), true),
    );
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
