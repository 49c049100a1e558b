//! Tables that are released, forgotten or unknown (B5).

use std::time::Duration;

use super::{AllocatorFixture, commit, register, start, table};
use crate::allocator::{
    Bind, ForgetOutcome, LockTableAllocator, PresentedBind, Progress, Registration,
};
use crate::bind::BindSlot;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TxnId, TxnNumber};

async fn release(
    allocator: &dyn LockTableAllocator,
    bind: &Bind,
    nonce: u64,
) -> Result<Option<Error>> {
    let released =
        allocator.release_table(bind.owner, Nonce::new(nonce), &bind.table, bind.version).await?;
    Ok(released.kept)
}

// Long: one table from its bind to the next one of its name, whose steps rest on each other.
pub(super) async fn a_released_table_is_forgotten_and_its_name_is_another_table(
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
    let still = allocator.latest(&t).await.expect("a response").bind.expect("refused");
    assert_eq!(still.bind, old);
    for _ in 0..2 {
        assert!(
            release(&*allocator, &old, 1).await.expect("its own").is_none(),
            "gone already is done"
        );
        assert_eq!(allocator.latest(&t).await.expect("a response").bind, None);
    }
    let txn = TxnId::new(b.service, TxnNumber::new(1), true);
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
        allocator.latest(&t).await.expect("a response").bind.expect("bound").bind.owner,
        b.service
    );
}

pub(super) async fn a_bind_is_kept_while_a_commit_is_in_flight_on_it(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let bound = allocator.bind(a.service, &table("t")).await.expect("free");
    let txn = |n| TxnId::new(b.service, TxnNumber::new(n), true);
    allocator.begin_commit(&commit(txn(1), 1, &[&bound.bind])).await.expect("current");
    let kept = release(&*allocator, &bound.bind, 1).await.expect("its own").expect("kept (C2)");
    assert_eq!(kept.kind(), ErrorKind::TableInUse);
    assert!(kept.retry_after().is_some(), "it says when to try again");
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

pub(super) async fn an_operator_may_forget_a_table_that_may_be_reassigned(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let forget = async |name: &str| {
        allocator.forget_table(&table(name)).await.map(|response| response.outcome)
    };
    let lapses = allocator.bind(a.service, &table("lapses")).await.expect("free").bind;
    let resigns = allocator.bind(b.service, &table("resigns")).await.expect("free").bind;
    assert_eq!(forget("never").await.expect("a response"), ForgetOutcome::Unknown);
    for bind in [&lapses, &resigns] {
        let ForgetOutcome::Owned(owned) =
            forget(bind.table.name.as_str()).await.expect("a response")
        else {
            panic!("its owner lives");
        };
        assert_eq!(&owned.bind, bind);
    }
    allocator.resign(b.service, Nonce::new(2)).await.expect("live");
    assert_eq!(forget("resigns").await.expect("at once"), ForgetOutcome::Forgotten);
    assert_eq!(forget("resigns").await.expect("a response"), ForgetOutcome::Unknown);
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

pub(super) async fn unknown_names_have_a_response_and_create_nothing(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    assert_eq!(allocator.latest(&table("t")).await.expect("a response").bind, None);
    let txn = TxnId::new(a.service, TxnNumber::new(1), true);
    let mut request = commit(txn, 1, &[]);
    request.binds.push(PresentedBind {
        table: TableId::new(1),
        partition: 0,
        owner: a.service,
        version: BindVersion::new(1),
        slot: BindSlot::NONE,
    });
    assert_eq!(
        allocator.begin_commit(&request).await.expect_err("never seen").kind(),
        ErrorKind::BindChanged
    );
    assert_eq!(allocator.latest(&table("t")).await.expect("a response").bind, None);
    assert_eq!(allocator.status().await.expect("a response").binds, vec![]);
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
