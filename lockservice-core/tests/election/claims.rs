//! Tables that take claims, and leaders that change meanwhile (P6, B4).

use lockservice_core::allocator::{Incarnation, LockTableAllocator, Registration, TableClaim};
use lockservice_core::{BindVersion, ErrorKind, NodeName, Nonce, ServiceId};

use super::cluster;
use crate::cluster::{Node, TTL, table};

/// The next process of a node, of this nonce, which proves that it follows `last`.
async fn next(node: &Node, nonce: u64, last: (ServiceId, u64)) -> Incarnation {
    let request = Registration {
        node: NodeName::new(node.name).expect("a name"),
        nonce: Nonce::new(nonce),
        address: node.name.to_owned(),
        replaces: Some((last.0, Nonce::new(last.1))),
    };
    node.allocator.register(&request).await.expect("a leader responds")
}

fn claim(version: BindVersion) -> TableClaim {
    TableClaim { table: table("t"), version }
}

#[tokio::test(start_paused = true)]
async fn claims_go_on_over_a_takeover_and_a_second_crash_after_it() {
    let cluster = cluster();
    let leader = cluster.led().await;
    let node = cluster.node("b");
    let first = node.begin().await;
    let held = node.allocator.bind(first.service, &table("t")).await.expect("free").bind;

    let second = next(&node, 8, (first.service, 7)).await;
    let claimed = node.allocator.claim_table(second.service, &claim(held.version)).await;
    let claimed = claimed.expect("it waits for its holders");
    cluster.kill(leader);
    node.leading().await;
    let kept = node.allocator.keepalive(second.service, Nonce::new(8), claimed.bound.at).await;
    kept.expect("it lives");
    // The response may have been lost with the leader. The wait counts anew.
    let again = node.allocator.claim_table(second.service, &claim(held.version)).await;
    let again = again.expect("the new leader knows of it");
    assert_eq!(again.bound.bind, claimed.bound.bind);
    assert!(again.wait >= TTL, "{:?}", again.wait);
    let early = node.allocator.bind(second.service, &table("t")).await.expect_err("claims first");
    assert_eq!(early.kind(), ErrorKind::Reassigning);

    // It crashes: some holders had claimed at it, and some had not.
    let third = next(&node, 9, (second.service, 8)).await;
    for version in [held.version, claimed.bound.bind.version] {
        let taken = node.allocator.claim_table(third.service, &claim(version)).await;
        assert_eq!(taken.expect("it waits for both").claimable_from, held.version);
    }
    let stranger = cluster.node("c").begin_in_time().await;
    let owned = node.allocator.bind(stranger.service, &table("t")).await.expect("a response");
    assert_eq!(owned.bind.owner, third.service, "nobody else got it meanwhile");
}

#[tokio::test(start_paused = true)]
async fn what_a_stop_left_held_is_known_to_the_next_leader() {
    use lockservice_core::store::TableHolders;
    use lockservice_core::{HolderMark, SessionId};

    let cluster = cluster();
    let leader = cluster.led().await;
    let node = cluster.node("b");
    let first = node.begin().await;
    let held = node.allocator.bind(first.service, &table("t")).await.expect("free").bind;
    let holders = TableHolders {
        table: held.id,
        from: held.version,
        holders: vec![HolderMark::of(SessionId::new(3))],
        waiters: vec![HolderMark::of(SessionId::new(77))],
        others: false,
    };
    let left = [holders.clone()];
    node.allocator.resign_held(first.service, Nonce::new(7), &left).await.expect("it lives");
    cluster.kill(leader);
    node.leading().await;
    let second = next(&node, 8, (first.service, 7)).await;
    assert_eq!(second.left, [claim(held.version)]);
    let claimed = node.allocator.claim_table(second.service, &second.left[0]).await;
    assert_eq!(claimed.expect("it waits").holders, Some(holders.holders));
}
