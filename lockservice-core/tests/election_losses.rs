//! What stores and leaders lose, and who may not find out too late (L1, L2, L4). Time is tokio's paused clock.
#![cfg(not(loom))]

mod cluster;

use std::time::Duration;

use lockservice_core::TxnId;
use lockservice_core::allocator::{LockTableAllocator, Role};
use lockservice_core::clock::lo;

use self::cluster::{Cluster, TTL, commit, granted_after_the_owner, table};

#[tokio::test(start_paused = true)]
async fn a_stop_ends_although_a_write_of_unknown_outcome_cannot_be_settled() {
    let cluster = Cluster::new();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let store = node.store.inner.clone();
    node.store.after_write(move || store.set_cut(true));
    let allocator = std::sync::Arc::clone(&node.allocator);
    let bind = tokio::spawn(async move { allocator.bind(incarnation.service, &table("t")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped = tokio::time::timeout(TTL * 3, node.allocator.shutdown(true, Duration::from_secs(1))).await;
    let stopped = stopped.expect("the stop does not wait for the store");
    assert!(!stopped.is_ok_and(|stopped| stopped.resigned), "nothing was given up");
    bind.await.expect("no panic").expect_err("never acknowledged");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_from_another_copy_than_the_one_that_was_acquired_is_not_led_with() {
    let cluster = Cluster::new();
    let first = cluster.led().await;
    let second = cluster.node("b");
    let incarnation = first.begin().await;
    let bound = first.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    second.allocator.settled().await.expect("follows");
    let backup = cluster.store.backup();
    let txn = TxnId::new(incarnation.service, 1, true);
    let answer = first.allocator.cannot_commit(&[txn]).await.expect("written");
    assert_eq!(answer.tombstoned, [txn]);
    let store = cluster.store.clone();
    // The copy that is promoted has not seen the tombstone, nor the acquisition.
    second.store.before_load(move || store.restore(&backup, true));
    cluster.kill(first);
    second.leading().await;
    let admitted = second.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await;
    admitted.expect_err("it was made unable to commit");
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_epoch_was_raised_without_an_answer_goes_on() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    node.leading().await;
    let Role::Leading(term) = node.allocator.role() else { panic!("it leads") };
    // The first is to settle the doubt about a new store.
    node.store.lose_acquisitions(4);
    let over = tokio::time::timeout(lockservice_core::clock::hi(cluster::LEASE) + TTL * 3, term.ended()).await;
    assert_eq!(node.store.acquisitions_to_lose(), 0, "it was raised");
    assert!(over.is_err(), "{over:?}");
    assert!(node.leads());
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_leader_told_is_reported_although_a_later_one_has_answered_meanwhile() {
    let cluster = Cluster::new();
    let first = cluster.led().await;
    let (second, third) = (cluster.node("b"), cluster.node("c"));
    let (owner, other) = (second.begin().await, third.begin().await);
    third.allocator.bind(other.service, &table("u")).await.expect("free");
    let backup = cluster.store.backup();
    second.allocator.bind(owner.service, &table("t")).await.expect("free");
    second.keep(&owner).await.expect("live");
    cluster.store.restore(&backup, true);
    cluster.kill(first);
    // Its own node would know better.
    second.store.inner.set_cut(true);
    third.leading().await;
    second.store.inner.set_cut(false);
    second
        .allocator
        .roles()
        .wait_for(|role| matches!(role, Role::Following { address, .. } if address == "c"))
        .await
        .expect("follows");
    let bound = second.allocator.bind(owner.service, &table("u")).await.expect("bound to another");
    assert_eq!(bound.bind.owner, other.service);
    granted_after_the_owner("t", &second, &owner, &third).await;
}

#[tokio::test(start_paused = true)]
async fn the_writes_of_a_leader_in_doubt_do_not_stand_for_those_that_were_lost() {
    let cluster = Cluster::new();
    let first = cluster.led().await;
    let (second, third) = (cluster.node("b"), cluster.node("c"));
    let owner = second.begin().await;
    let backup = cluster.store.backup();
    second.allocator.bind(owner.service, &table("t")).await.expect("free");
    second.keep(&owner).await.expect("live");
    cluster.store.restore(&backup, true);
    cluster.kill(first);
    second.store.inner.set_cut(true);
    third.leading().await;
    let fourth = cluster.node("d");
    for node in [&third, &fourth] {
        node.begin().await;
    }
    // Before the owner could report anything to it.
    assert!(third.allocator.shutdown(true, Duration::from_secs(1)).await.expect("stops").resigned);
    fourth.leading().await;
    second.store.inner.set_cut(false);
    granted_after_the_owner("t", &second, &owner, &fourth).await;
}

#[tokio::test(start_paused = true)]
async fn the_writes_of_a_leader_that_noticed_nothing_do_not_stand_for_those_that_were_lost() {
    let cluster = Cluster::new();
    let first = cluster.led().await;
    let (second, third) = (cluster.node("b"), cluster.node("c"));
    let owner = second.begin().await;
    let backup = cluster.store.backup();
    second.allocator.bind(owner.service, &table("t")).await.expect("free");
    second.keep(&owner).await.expect("live");
    cluster.store.restore(&backup, false);
    cluster.kill(first);
    second.store.inner.set_cut(true);
    third.leading().await;
    let other = third.begin().await;
    for name in ["u", "v", "w"] {
        third.allocator.bind(other.service, &table(name)).await.expect("nothing is in doubt");
    }
    second.store.inner.set_cut(false);
    second
        .allocator
        .roles()
        .wait_for(|role| matches!(role, Role::Following { address, .. } if address == "c"))
        .await
        .expect("follows");
    second.keep(&owner).await.expect_err("it reports what the leader does not know of");
    granted_after_the_owner("t", &second, &owner, &third).await;
}

#[tokio::test(start_paused = true)]
async fn a_leadership_counts_from_before_its_renewal_was_sent() {
    let cluster = Cluster::new();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let bound = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    node.store.slow_renewals(Duration::from_secs(1));
    while node.store.renewed().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.store.inner.set_cut(true);
    let Role::Leading(term) = node.allocator.role() else { panic!("it leads") };
    let mut answered = tokio::time::Instant::now();
    while term.begin_commit_now(&commit(&incarnation, &bound, 1)).is_ok() {
        answered = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let sent = node.store.renewed().expect("renewed");
    let lasted = answered - sent;
    assert!(lasted < lo(TTL) && lasted > lo(TTL) - Duration::from_millis(50), "answered for {lasted:?}");
}
