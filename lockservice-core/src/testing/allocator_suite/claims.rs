//! Tables that wait for the holders of a process that is over (P6).

use std::time::Duration;

use super::{AllocatorFixture, commit, register, start, table};
use crate::allocator::{Incarnation, LockTableAllocator, Registration, TableClaim};
use crate::clock::hi;
use crate::error::ErrorKind;
use crate::id::{
    BindVersion, CommitAttempt, HolderMark, Nonce, ServiceId, SessionId, TableRef, TxnId, TxnNumber,
};
use crate::store::TableHolders;

/// Starts the next process of node `a`, which proves which one it follows.
async fn follow(
    allocator: &dyn LockTableAllocator,
    last: (ServiceId, u64),
    nonce: u64,
) -> Incarnation {
    let replaces = Some((last.0, Nonce::new(last.1)));
    let request = Registration { replaces, ..register("a", nonce) };
    allocator.register(&request).await.expect("it follows that one")
}

fn claim(table: &TableRef, version: BindVersion) -> TableClaim {
    TableClaim { table: table.clone(), version }
}

async fn refusal(
    allocator: &dyn LockTableAllocator,
    service: ServiceId,
    table: &TableRef,
    version: BindVersion,
) -> ErrorKind {
    let refused = allocator.claim_table(service, &claim(table, version)).await;
    refused.expect_err("refused").kind()
}

pub(super) async fn a_table_that_waits_takes_the_claims_of_its_holders_at_the_next_process_of_its_node(
    fixture: &dyn AllocatorFixture,
) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let (t, owned) = (table("t"), table("owned"));
    let held = allocator.bind(a.service, &t).await.expect("free").bind;
    let other = allocator.bind(b.service, &owned).await.expect("free").bind;
    assert_eq!(
        refusal(&*allocator, b.service, &t, held.version).await,
        ErrorKind::ClaimRefused,
        "its owner lives"
    );
    let a2 = follow(&*allocator, (a.service, 1), 3).await;
    assert!(a2.left.is_empty(), "it crashed, so nobody knows who holds what");
    for (service, table, version) in [
        (b.service, &t, held.version),
        (a2.service, &t, BindVersion::new(held.version.get() + 1)),
        (a2.service, &owned, other.version),
        (a2.service, &table_never_bound(), held.version),
    ] {
        assert_eq!(
            refusal(&*allocator, service, table, version).await,
            ErrorKind::ClaimRefused,
            "{service} in {table}"
        );
    }
    let claimed =
        allocator.claim_table(a2.service, &claim(&t, held.version)).await.expect("it waits");
    let bind = &claimed.bound.bind;
    assert_eq!((bind.owner, bind.id), (a2.service, held.id));
    assert!(bind.version > held.version && claimed.bound.tokens.is_some());
    assert_eq!((claimed.claimable_from, &claimed.holders), (held.version, &None));
    let tokens = claimed.bound.tokens.expect("set");
    assert!(claimed.tokens_below <= tokens.next, "later grants have larger tokens (F1)");
    assert!(!claimed.wait.is_zero() && claimed.wait <= hi(a.lease_ttl), "{:?}", claimed.wait);
    let again = allocator.claim_table(a2.service, &claim(&t, held.version)).await.expect("again");
    assert_eq!((&again.bound.bind, again.bound.tokens), (bind, None));
    let early = allocator.bind(a2.service, &t).await.expect_err("nothing but claims before that");
    assert_eq!(early.kind(), ErrorKind::Reassigning);

    // The process after that takes the claims of holders at both.
    let a3 = follow(&*allocator, (a2.service, 3), 4).await;
    let next = allocator.claim_table(a3.service, &claim(&t, held.version)).await.expect("it waits");
    assert_eq!(next.claimable_from, held.version);
    assert!(next.bound.bind.version > bind.version);
    allocator.claim_table(a3.service, &claim(&t, bind.version)).await.expect("holders at both");
    fixture.advance(a.lease_ttl / 2).await;
    let ack = allocator.keepalive(a3.service, Nonce::new(4), next.bound.at).await;
    ack.expect("it lives");
    fixture.advance(hi(a.lease_ttl) - a.lease_ttl / 2).await;
    assert_eq!(
        refusal(&*allocator, a3.service, &t, held.version).await,
        ErrorKind::ClaimRefused,
        "it serves others by now"
    );
    let served = allocator.bind(a3.service, &t).await.expect("its own").bind;
    assert_eq!(served, next.bound.bind);
}

fn table_never_bound() -> TableRef {
    table("never")
}

pub(super) async fn a_process_that_proves_nothing_takes_no_claims(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let a = start(&*allocator, "a", 1).await;
    let t = table("t");
    let held = allocator.bind(a.service, &t).await.expect("free").bind;
    allocator.resign_held(a.service, Nonce::new(1), &[holders(&held, 1)]).await.expect("it lives");
    // The name is free, for the lease is over: of which process it is the next one is not known.
    let stranger = start(&*allocator, "a", 2).await;
    assert!(stranger.left.is_empty());
    assert_eq!(
        refusal(&*allocator, stranger.service, &t, held.version).await,
        ErrorKind::ClaimRefused
    );
}

fn holders(bind: &crate::bind::Bind, count: u64) -> TableHolders {
    TableHolders {
        table: bind.id,
        from: bind.version,
        holders: (1..=count).map(|id| HolderMark::of(SessionId::new(id))).collect(),
        waiters: vec![HolderMark::of(SessionId::new(77))],
        others: false,
    }
}

pub(super) async fn a_stop_for_a_restart_says_who_holds_what(fixture: &dyn AllocatorFixture) {
    let allocator = fixture.allocator();
    let (a, b) = (start(&*allocator, "a", 1).await, start(&*allocator, "b", 2).await);
    let (t, free) = (table("t"), table("free"));
    let held = allocator.bind(a.service, &t).await.expect("free").bind;
    allocator.bind(a.service, &free).await.expect("free");
    let txn = TxnId::new(a.service, TxnNumber::new(1), true);
    let in_flight = commit(txn, 1, &[&held]);
    allocator.begin_commit(&in_flight).await.expect("a valid bind");
    let list = [holders(&held, 2)];
    let mut stop = std::pin::pin!(allocator.resign_held(a.service, Nonce::new(1), &list));
    tokio::select! {
        biased;
        done = &mut stop => panic!("a commit is in flight: {done:?}"),
        () = tokio::task::yield_now() => {}
    }
    allocator.finish_commit(txn, CommitAttempt::new(1)).await.expect("a response");
    stop.await.expect("it resigns");
    assert_eq!(
        allocator.bind(b.service, &t).await.expect_err("it is held").kind(),
        ErrorKind::Reassigning
    );
    allocator.bind(b.service, &free).await.expect("nothing is held in it");
    let a2 = follow(&*allocator, (a.service, 1), 3).await;
    assert_eq!(a2.left, [claim(&t, held.version)]);
    let claimed = allocator.claim_table(a2.service, &a2.left[0]).await.expect("it waits");
    assert_eq!(claimed.holders.as_deref(), Some(&list[0].holders[..]));
    assert_eq!(claimed.waiters, list[0].waiters);
    assert!(claimed.wait > Duration::ZERO);
}
