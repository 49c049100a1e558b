//! Sentinel and Cluster: the store finds the new master by itself, and what a promoted replica
//! lacks is noticed (L4).

use std::time::Duration;

use integration::containers::{Cluster, ClusterOptions, Sentinel, SentinelOptions};
use integration::within;
use lockservice_core::store::{Acquired, BindStore, Candidate, Leadership, Lineage};
use lockservice_core::{ErrorKind, WriteNumber};
use lockservice_redis::redis;

use crate::support::{Leader, TTL, ask, assert_whole, bounded, open, seen};

fn hosts(urls: &[String]) -> String {
    let hosts: Vec<_> =
        urls.iter().map(|url| url.trim_start_matches("redis://").trim_end_matches('/')).collect();
    hosts.join(",")
}

pub(crate) fn sentinel_url(group: &Sentinel) -> String {
    format!("redis-sentinel://{}/{}", hosts(&group.sentinel_urls()), Sentinel::MASTER_NAME)
}

pub(crate) fn cluster_url(cluster: &Cluster) -> String {
    format!("redis-cluster://{}", hosts(&cluster.urls()))
}

/// Renews until a master responds; every refusal on the way is one that says to try again.
async fn renewed(leader: &Leader) -> Lineage {
    within("the store serves again", async {
        loop {
            match leader.renew().await {
                Ok(lineage) => return lineage,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Leads the copy that responds now, as any candidate may once it has watched.
async fn led_again(leader: &Leader) -> Leader {
    let me = Candidate { seen: None, ..leader.candidate.clone() };
    let next = Candidate { seen: Some(seen(&leader.store, &me).await), ..me };
    let again = Leader::acquire(&leader.store, next).await;
    assert!(again.epoch > leader.epoch);
    again
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_under_sentinel_every_replicated_write_is_there_and_the_copy_is_another() {
    let Some(group) = Sentinel::start(SentinelOptions::default()).await else { return };
    let store = open(&format!("{}?wait=1", sentinel_url(&group))).await;
    let mut leader = Leader::of(&store).await;
    for _ in 0..20 {
        leader.write().await.expect("a write");
    }
    group.server(0).kill().await;
    let lost = leader.renew().await.expect_err("the master is dead");
    assert_eq!(lost.kind(), ErrorKind::Unavailable, "{lost:?}");
    group.wait_for_another_master(0).await;
    // The only replica is the master now: nothing can be replicated, so nothing counts.
    let alone = leader.renew().await.expect_err("no replica is left");
    assert!(alone.to_string().contains("replicas"), "{alone}");
    group.server(0).start().await;
    assert_ne!(renewed(&leader).await, leader.lineage);
    assert_whole(&bounded(store.load()).await.expect("load"), 20);
    let mut leader = led_again(&leader).await;
    leader.write().await.expect("a write on the new master");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_replica_that_lacks_the_last_writes_is_noticed() {
    let Some(group) = Sentinel::start(SentinelOptions::default()).await else { return };
    let store = open(&sentinel_url(&group)).await;
    let mut leader = Leader::of(&store).await;
    let [master, replica] = &group.server_urls()[..] else { panic!("two servers") };
    leader.write().await.expect("a write");
    replicated(master).await;
    // The replica is cut off: it cannot log in at its master any more.
    let () = ask(replica, "CONFIG SET masteruser nobody masterauth wrong").await;
    let _: u32 = ask(master, "CLIENT KILL TYPE replica").await;
    leader.write().await.expect("a write that is not replicated");
    group.server(0).kill().await;
    group.wait_for_another_master(0).await;
    assert_ne!(renewed(&leader).await, leader.lineage);
    assert_eq!(
        leader.write().await.expect_err("the number does not follow").kind(),
        ErrorKind::Fenced
    );
    let me = Candidate { seen: None, ..leader.candidate.clone() };
    let next = Candidate { seen: Some(seen(&store, &me).await), ..me };
    let response = bounded(store.acquire_leadership(&next, TTL)).await.expect("a response");
    let Leadership::Acquired(Acquired {
        epoch,
        applied: WriteNumber::FIRST,
        clean: false,
        continuous: false,
        ..
    }) = response
    else {
        panic!("{response:?}")
    };
    assert!(epoch > leader.epoch, "also above what the promoted one had not received");
    assert_whole(&bounded(store.load()).await.expect("load"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_followed_when_the_slot_gets_another_master() {
    let options = ClusterOptions {
        replicas: 1,
        node_timeout: Duration::from_secs(1),
        ..ClusterOptions::default()
    };
    let Some(cluster) = Cluster::start(options).await else { return };
    let key = "{lockservice:default}";
    let store = open(&cluster_url(&cluster)).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    let first = cluster.master_of(0, key).await;
    replicated(&cluster.urls()[first]).await;
    cluster.node(first).kill().await;
    let lineage = renewed(&leader).await;
    assert_ne!(lineage, leader.lineage);
    assert_whole(&bounded(store.load()).await.expect("load"), 1);
    // The one that died comes back as a replica; who asks only it is sent on.
    cluster.node(first).start().await;
    let old = open(&format!("redis-cluster://{}", hosts(&cluster.urls()[first..=first]))).await;
    assert_eq!(bounded(old.applied()).await.expect("it responds").lineage, lineage);
    // And is made master again, while all live: the connection leads to a replica, which says where
    // the key has moved.
    within("the replica is in step, and takes over", take_over(&cluster.urls()[first])).await;
    assert_ne!(renewed(&leader).await, lineage);
    let mut leader = led_again(&leader).await;
    leader.write().await.expect("a write");
    assert_whole(&bounded(old.load()).await.expect("load"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_moved_key_by_key_while_the_store_is_written_and_no_call_fails() {
    let Some(cluster) = Cluster::start(ClusterOptions::default()).await else { return };
    let key = "{lockservice:default}";
    let store = open(&cluster_url(&cluster)).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    let from = cluster.master_of(0, key).await;
    let to = (from + 1) % 3;
    let neighbours: Vec<String> = (0..20).map(|n| format!("{key}-of-the-test-{n}")).collect();
    for neighbour in &neighbours {
        let () = ask(&cluster.urls()[from], &format!("SET {neighbour} 1")).await;
    }
    let served = async |leader: &mut Leader, when: &str| {
        leader.write().await.unwrap_or_else(|error| panic!("a write {when}: {error:?}"));
        leader.renew().await.unwrap_or_else(|error| panic!("a renewal {when}: {error:?}"));
        assert_whole(&bounded(store.load()).await.expect(when), leader.applied);
    };

    cluster.begin_move(key, from, to).await;
    for (n, neighbour) in neighbours.iter().enumerate() {
        if n == neighbours.len() / 2 {
            cluster.move_key(key, from, to).await;
            assert_ne!(
                leader.renew().await.expect("it is followed"),
                leader.lineage,
                "another copy answers (L4)"
            );
        }
        cluster.move_key(neighbour, from, to).await;
        served(&mut leader, "while keys are moved").await;
    }
    // Longer than any call may take.
    for _ in 0..30 {
        served(&mut leader, "before the slot is given over").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let late = open(&cluster_url(&cluster)).await;
    assert_eq!(bounded(late.applied()).await.expect("a response").number.get(), leader.applied);
    cluster.finish_move(key, from, to).await;
    for _ in 0..10 {
        served(&mut leader, "after the slot was given over").await;
    }
    assert_eq!(bounded(late.applied()).await.expect("a response").number.get(), leader.applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_begins_in_a_slot_that_is_being_moved_and_a_move_that_is_given_up_is_no_harm() {
    let Some(cluster) = Cluster::start(ClusterOptions::default()).await else { return };
    let key = "{lockservice:default}";
    let from = cluster.master_of(0, key).await;
    let to = (from + 1) % 3;
    cluster.begin_move(key, from, to).await;
    let store = open(&cluster_url(&cluster)).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write on the new node");
    // The key goes back, and the slot stays.
    cluster.move_back(key, from, to).await;
    leader.write().await.expect("a write on the old node");
    assert_whole(&bounded(store.load()).await.expect("load"), 2);
}

/// Waits until a replica of the master at this URL has everything that the master has.
async fn replicated(master: &str) {
    let client = redis::Client::open(master).expect("a URL");
    let connection = Box::pin(client.get_multiplexed_async_connection());
    let mut connection = within("a connection", connection).await.expect("a connection");
    within("the replica is in step", async {
        loop {
            // WAIT speaks of the writes of its own connection only: without one it responds at
            // once. It waits for less than a call may take, for the replica may not have attached
            // yet.
            let mut pipeline = redis::pipe();
            pipeline
                .cmd("SET")
                .arg("{lockservice:default}-of-the-test")
                .arg(1)
                .ignore()
                .cmd("WAIT")
                .arg(1)
                .arg(100);
            let (received,): (u32,) =
                pipeline.query_async(&mut connection).await.expect("a response");
            if received == 1 {
                return;
            }
        }
    })
    .await;
}

/// Makes the replica at this URL the master of its slots, while the old one lives.
async fn take_over(me: &str) {
    while !Box::pin(ask::<String>(me, "INFO replication")).await.contains("master_link_status:up") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut polls = 0;
    while !Box::pin(ask::<String>(me, "INFO replication")).await.contains("role:master") {
        // An attempt that the others did not agree to in time is given up without a message.
        if polls % 100 == 0 {
            let () = Box::pin(ask(me, "CLUSTER FAILOVER")).await;
        }
        polls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
