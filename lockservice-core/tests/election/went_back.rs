//! Stores that went back, and the reports of nodes.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{LocalAllocator, LockTableAllocator, Progress, Role};
use lockservice_core::clock::Clock;
use lockservice_core::store::{BindStore, Candidate, Floor, Leadership};
use lockservice_core::testing::SharedStore;
use lockservice_core::{EpochNumber, ErrorKind, NodeName, Nonce, WriteNumber};

use super::cluster;
use crate::cluster::{TTL, commit, table};

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_on_another_copy_is_held_for_a_lease_and_reuses_nothing() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let backup = cluster.store.backup();
    let lost = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let observed = node.keep(&incarnation, lost.at).await.expect("live");
    cluster.store.restore(&backup, true);
    let refused = node
        .allocator
        .bind(incarnation.service, &table("u"))
        .await
        .expect_err("the store is not the one it was");
    assert!(matches!(refused.kind(), ErrorKind::LeaseLost | ErrorKind::NotLeader), "{refused:?}");
    node.leading().await;
    // The owner that observed the lost bind reports it, or has reported it to its own node.
    let gone = node.keep(&incarnation, observed).await.expect_err("nothing of before is relied on");
    assert!(matches!(gone.kind(), ErrorKind::LeaseLost | ErrorKind::NotLeader), "{gone:?}");
    node.leading().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let again = node.begin().await;
    let held = node
        .allocator
        .bind(again.service, &table("t"))
        .await
        .expect_err("its owner may still be at work");
    assert_eq!(held.kind(), ErrorKind::Reassigning, "{held:?}");
    while let Err(e) = node.allocator.bind(again.service, &table("t")).await {
        assert_eq!(e.kind(), ErrorKind::Reassigning, "{e:?}");
        node.keep(&again, Progress::default()).await.expect("live");
        tokio::time::sleep(e.retry_after().expect("it says so").min(TTL / 3)).await;
    }
    let bound = node.allocator.latest(&table("t")).await.expect("responds").bind.expect("bound");
    assert!(
        bound.bind.version > lost.bind.version && bound.bind.id > lost.bind.id,
        "no number is given out twice"
    );
    let refused =
        node.allocator.begin_commit(&commit(&incarnation, &lost, 1)).await.expect_err("void");
    assert!(
        matches!(refused.kind(), ErrorKind::CannotCommit | ErrorKind::BindChanged),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_disk_image_put_back_unnoticed_is_found_by_the_progress_that_a_node_observed() {
    let cluster = cluster();
    let first = cluster.led().await;
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let backup = cluster.store.backup();
    let incarnation = second.begin().await;
    let lost = second.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    cluster.kill(first);
    cluster.store.restore(&backup, false);
    second.leading().await;
    let Role::Leading(local) = second.allocator.role() else { panic!("it leads") };
    let status = local.status().await.expect("it leads");
    assert!(
        status.services.iter().all(|service| service.id != incarnation.service),
        "the incarnation is lost too"
    );
    let again = second.begin().await;
    let held = second
        .allocator
        .bind(again.service, &table("t"))
        .await
        .expect_err("the node was told of a later write");
    assert_eq!(held.kind(), ErrorKind::Reassigning);
    assert!(again.at.epoch > lost.at.epoch);
}

#[tokio::test(start_paused = true)]
async fn a_report_from_a_node_makes_a_leader_that_knows_less_raise_its_epoch() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let before = node.keep(&incarnation, Progress::default()).await.expect("live");
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    // A report of a leadership that this store knows nothing of.
    let observed = Progress {
        epoch: lockservice_core::Epoch::new(before.epoch.get() + 40),
        write: WriteNumber::FIRST,
        high_water: EpochNumber::new(0),
        leader: Nonce::default(),
    };
    let refused = local
        .keepalive(incarnation.service, Nonce::new(7), observed)
        .await
        .expect_err("it must step over");
    assert_eq!(refused.kind(), ErrorKind::NotLeader);
    local.ended().await;
    node.allocator
        .roles()
        .wait_for(|role| !matches!(role, Role::Leading(_)))
        .await
        .expect("noticed");
    node.leading().await;
    let again = node.begin().await;
    assert!(again.at.epoch > observed.epoch, "one above the reported (L4)");
}

#[tokio::test(start_paused = true)]
async fn a_response_of_an_earlier_leader_is_rejected() {
    let cluster = cluster();
    // Far above any number that a new store reaches by chance.
    cluster.store.set_floor(Floor::of_clock(1_767_225_600 + 50_000 * 1024).expect("in range"));
    let first = cluster.led().await;
    let incarnation = first.begin().await;
    let Role::Leading(stale) = first.allocator.role() else { panic!("it leads") };
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    first.allocator.shutdown(false, Duration::ZERO).await.expect("stops");
    second.leading().await;
    let third = cluster.node("c");
    third.allocator.elected().await.expect("follows");
    third.keep(&incarnation, Progress::default()).await.expect("told the new epoch");
    // A network that still leads to a leader of an earlier epoch: one that has not noticed, so the
    // epoch is all there is to go by.
    let old_store = SharedStore::new();
    // It leaps over no epoch (L4).
    let candidate = Candidate {
        nonce: Nonce::new(0),
        ..Candidate::new(NodeName::new("x").expect("a name"), "x")
    };
    drop(stale);
    let seen = match old_store.acquire_leadership(&candidate, TTL).await.expect("a response") {
        Leadership::Held { seen, .. } => Some(seen),
        other => panic!("{other:?}"),
    };
    let clock: Arc<dyn Clock> = Arc::new(cluster.clock);
    let earlier = LocalAllocator::open(
        Arc::new(old_store),
        clock,
        cluster.settings(),
        Candidate { seen, ..candidate },
    )
    .await
    .expect("leads a store of its own");
    cluster.net.join("b", earlier);
    let rejected = third.allocator.status().await.expect_err("its epoch is of the past (L3)");
    assert_eq!(rejected.kind(), ErrorKind::Unavailable, "{rejected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_lost_nothing_ends_the_leadership_and_keeps_every_bind() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let bound = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let Role::Leading(local) = node.allocator.role() else { panic!("it leads") };
    let everything = cluster.store.backup();
    cluster.store.restore(&everything, true);
    let refused =
        local.bind(incarnation.service, &table("u")).await.expect_err("another copy (L4)");
    assert_eq!(refused.kind(), ErrorKind::NotLeader, "{refused:?}");
    let observed = node
        .keep(&incarnation, Progress::default())
        .await
        .expect("taken as renewed at the takeover");
    assert!(observed.epoch > bound.at.epoch);
    let held =
        node.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect_err("held");
    assert_eq!(held.kind(), ErrorKind::Unavailable, "{held:?}");
    let mut left = held.retry_after().expect("it says so");
    while !left.is_zero() {
        node.keep(&incarnation, observed).await.expect("it was told of nothing that is not there");
        let pause = left.min(TTL / 3);
        tokio::time::sleep(pause).await;
        left -= pause;
    }
    node.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect("nothing was lost");
    assert_eq!(
        node.allocator.latest(&table("t")).await.expect("responds").bind.expect("kept").bind,
        bound.bind
    );
}
