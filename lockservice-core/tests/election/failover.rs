//! Leaders that die, resign, or lose their store.

use std::time::Duration;

use lockservice_core::ErrorKind;
use lockservice_core::allocator::{LockTableAllocator, Progress, Role};
use lockservice_core::clock::{hi, lo};
use tokio::time::Instant;

use super::cluster;
use crate::cluster::{TTL, commit, table};

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_replaced_within_its_ttl_and_every_bind_is_kept() {
    let cluster = cluster();
    let first = cluster.led().await;
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    let incarnation = second.begin().await;
    let bound = second.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let before = second.keep(&incarnation, bound.at).await.expect("live");
    let dead = Instant::now();
    cluster.kill(first);
    second.leading().await;
    let gone = dead.elapsed();
    assert!(gone <= hi(TTL) + TTL / 4, "replaced after {gone:?}");
    // It was last renewed under the old leader and is taken as renewed at the takeover (B4).
    let after = second.keep(&incarnation, before).await.expect("still live");
    assert!(after.epoch > before.epoch);
    assert_eq!(
        second.allocator.latest(&table("t")).await.expect("responds").bind.expect("kept").bind,
        bound.bind
    );
    second.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect("still valid");
    let other = second
        .allocator
        .bind(incarnation.service, &table("new"))
        .await
        .expect("no wait for new tables");
    assert!(other.bind.version > bound.bind.version);
    assert!(
        other.tokens.expect("fresh").next.get() >= after.epoch.first_number().get(),
        "tokens begin with the epoch"
    );
}

#[tokio::test(start_paused = true)]
async fn a_resignation_is_noticed_at_once() {
    let cluster = cluster();
    let first = cluster.led().await;
    let second = cluster.node("b");
    let incarnation = second.begin().await;
    let bound = second.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let stopped = Instant::now();
    assert!(first.allocator.shutdown(false, Duration::from_secs(1)).await.expect("stops").resigned);
    second.leading().await;
    assert!(stopped.elapsed() < Duration::from_millis(100), "after {:?}", stopped.elapsed());
    second.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await.expect("still valid");
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_its_store_validates_while_the_leadership_lasts_and_goes_on_afterwards() {
    let cluster = cluster();
    let node = cluster.led().await;
    let incarnation = node.begin().await;
    let bound = node.allocator.bind(incarnation.service, &table("t")).await.expect("free");
    let writes = cluster.store.writes();
    node.store.inner.set_cut(true);
    let cut = Instant::now();
    let refused = loop {
        match node.allocator.begin_commit(&commit(&incarnation, &bound, 1)).await {
            Ok(admission) => {
                assert!(
                    cut.elapsed() + lo(admission.commit_before) < TTL,
                    "no commit outlives the leadership"
                )
            }
            Err(e) => break e,
        }
        node.keep(&incarnation, Progress::default()).await.ok();
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert!(
        cut.elapsed() > lo(TTL) - TTL / 3 - Duration::from_millis(200),
        "validated for {:?} only",
        cut.elapsed()
    );
    assert!(
        cut.elapsed() <= lo(TTL) + Duration::from_millis(200),
        "validated for {:?}",
        cut.elapsed()
    );
    node.store.inner.set_cut(false);
    tokio::time::sleep(TTL / 3).await;
    assert!(node.leads(), "nobody took over meanwhile");
    let again = node.begin().await;
    node.allocator.bind(again.service, &table("u")).await.expect("the same leadership goes on");
    assert_eq!(again.at.epoch, bound.at.epoch);
    assert_eq!(
        node.allocator.latest(&table("t")).await.expect("responds").bind.expect("kept").bind,
        bound.bind
    );
    assert!(cluster.store.writes() > writes);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_cut_off_returns_nothing_once_another_leads_and_writes_nothing() {
    let cluster = cluster();
    let first = cluster.led().await;
    let old = first.begin().await;
    let bound = first.allocator.bind(old.service, &table("t")).await.expect("free");
    let Role::Leading(local) = first.allocator.role() else { panic!("it leads") };
    let second = cluster.node("b");
    second.allocator.elected().await.expect("follows");
    first.store.inner.set_cut(true);
    let cut = Instant::now();
    // All admissions of the old leader end before the new one can lead.
    let mut promised = cut;
    while !second.leads() {
        if let Ok(admission) = local.begin_commit_now(&commit(&old, &bound, 1)) {
            promised = promised.max(Instant::now() + lo(admission.commit_before));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(Instant::now() >= promised, "a commit admitted by the old leader outlived it");
    first.store.inner.set_cut(false);
    let why = local.ended().await;
    assert_eq!(why.kind(), ErrorKind::Fenced, "{why:?}");
    let refused = local.bind(old.service, &table("other")).await.expect_err("it does not lead");
    assert_eq!(refused.kind(), ErrorKind::NotLeader);
    assert_eq!(
        local.begin_commit_now(&commit(&old, &bound, 2)).expect_err("it does not lead").kind(),
        ErrorKind::NotLeader
    );
    // Its node follows by itself.
    assert_eq!(
        first.allocator.latest(&table("t")).await.expect("followed").bind.expect("kept").bind,
        bound.bind
    );
}
