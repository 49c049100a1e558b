//! What stores and leaders lose, and who may not find out too late (L1, L2, L4). Time is tokio's paused clock.
#![cfg(not(loom))]

mod cluster;

use std::time::Duration;

use lockservice_core::allocator::LockTableAllocator;

use self::cluster::{Cluster, TTL, table};

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
