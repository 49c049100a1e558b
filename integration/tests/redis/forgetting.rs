//! Servers that forget: each is noticed, and nothing that was handed out is handed out again (L4).

use std::sync::Arc;
use std::time::Duration;

use integration::allocators::Node;
use integration::containers::{Redis, RedisOptions};
use integration::within;
use lockservice_core::allocator::{LockTableAllocator, Progress, Registration};
use lockservice_core::store::{Acquired, BindStore, Candidate, Floor, Leadership};
use lockservice_core::testing::LocalPeers;
use lockservice_core::{ErrorKind, NodeName, Nonce, TableRef, WriteNumber};

use crate::support::{
    Leader, TTL, ask, assert_whole, batch, bounded, candidate, leader_seen, open, seen,
};

fn arguments(arguments: &str) -> RedisOptions {
    RedisOptions {
        arguments: arguments.split(' ').map(String::from).collect(),
        ..RedisOptions::default()
    }
}

/// The record is gone: the leader is refused, and the next one waits once, then begins above it.
async fn the_loss_is_noticed(mut leader: Leader) {
    assert_eq!(leader.renew().await.expect_err("no record").kind(), ErrorKind::Fenced);
    assert_eq!(leader.write().await.expect_err("no record").kind(), ErrorKind::Fenced);
    assert_eq!(
        bounded(leader.store.resign(leader.epoch)).await.expect_err("no record").kind(),
        ErrorKind::Fenced
    );
    let state = bounded(leader.store.load()).await.expect("it is empty, not damaged");
    assert_eq!((state.applied.get(), state.tables.len()), (0, 0));
    // The leader itself must watch too: its name stands nowhere.
    let empty = seen(&leader.store, &Candidate { seen: None, ..leader.candidate.clone() }).await;
    assert_eq!(empty.leader, None);
    let next = Candidate { seen: Some(empty), floor: leader.epoch, ..leader.candidate };
    match bounded(leader.store.acquire_leadership(&next, TTL)).await.expect("a response") {
        Leadership::Acquired(Acquired {
            epoch, applied, clean: false, continuous: false, ..
        }) => {
            assert_eq!(applied.get(), 0);
            assert!(epoch > leader.epoch, "above what a node reports");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushall_is_noticed_although_the_server_is_the_same() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    let () = ask(redis.url(), "FLUSHALL").await;
    the_loss_is_noticed(leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_persistence_is_noticed() {
    let Some(redis) = Redis::start(arguments("--save  --appendonly no")).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    redis.kill().await;
    redis.start().await;
    let lineage = bounded(store.applied()).await.expect("it responds").lineage;
    assert_ne!(lineage, leader.lineage);
    the_loss_is_noticed(leader).await;
}

/// What is handed out to the first owner on a store that was found empty: incarnation, table id,
/// version, token.
async fn first_numbers(allocator: &dyn LockTableAllocator) -> [u64; 4] {
    let (nonce, table) = (Nonce::new(1), TableRef::new("g", "t").expect("names"));
    let node = NodeName::new("n").expect("a name");
    let register = Registration { node, nonce, address: "n:1".to_owned(), replaces: None };
    loop {
        // While nobody leads, and until old promises have run out, it gets the advice to try again.
        if let Ok(owner) = allocator.register(&register).await
            && allocator.keepalive(owner.service, nonce, Progress::default()).await.is_ok()
            && let Ok(bound) = allocator.bind(owner.service, &table).await
        {
            let token = bound.tokens.expect("the first bind comes with tokens").next.get();
            return [owner.service.get(), bound.bind.id.get(), bound.bind.version.get(), token];
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// F1, L4: every node that remembers anything dies with it, again and again, and all that within
/// one epoch of the server's clock.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_everything_with_all_its_nodes_hands_nothing_out_twice() {
    let Some(redis) = Redis::start(arguments("--save  --appendonly no")).await else { return };
    let mut last = [0; 4];
    for _ in 0..3 {
        let node = Node::join("n", Arc::new(open(redis.url()).await), &LocalPeers::default());
        let high_water =
            within("an owner on an empty store", first_numbers(&*node.allocator)).await;
        assert!(
            high_water.iter().zip(last).all(|(number, last)| *number > last),
            "{high_water:?} after {last:?}"
        );
        last = high_water;
        drop(node);
        redis.kill().await;
        redis.start().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_from_a_snapshot_is_noticed_by_the_number_and_by_the_lineage() {
    let Some(redis) = Redis::start(arguments("--save  --appendonly no")).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    let () = ask(redis.url(), "SAVE").await;
    leader.write().await.expect("a write after the snapshot");
    redis.kill().await;
    redis.start().await;
    assert_ne!(leader.renew().await.expect("the record is there"), leader.lineage);
    assert_eq!(
        leader.write().await.expect_err("the number does not follow").kind(),
        ErrorKind::Fenced
    );
    let found = bounded(store.applied()).await.expect("it responds");
    assert_eq!((found.epoch, found.number.get()), (leader.epoch, 1));
    assert_ne!(found.lineage, leader.lineage);
    // Its own name stands there, but on another copy: it must watch like any other, and learns that
    // something may be lost.
    let me = Candidate { seen: None, ..leader.candidate.clone() };
    let next = Candidate { seen: Some(seen(&store, &me).await), ..me };
    let response = bounded(store.acquire_leadership(&next, TTL)).await.expect("a response");
    assert!(
        matches!(
            response,
            Leadership::Acquired(Acquired {
                applied: WriteNumber::FIRST,
                clean: false,
                continuous: false,
                ..
            })
        ),
        "{response:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resignation_before_a_restart_proves_nothing_after_it() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let store = open(redis.url()).await;
    let leader = Leader::of(&store).await;
    store.resign(leader.epoch).await.expect("resigned");
    redis.stop().await;
    redis.start().await;
    let mut next = candidate("next");
    next.seen = Some(seen(&store, &next).await);
    let response = bounded(store.acquire_leadership(&next, TTL)).await.expect("a response");
    assert!(
        matches!(response, Leadership::Acquired(Acquired { clean: false, continuous: false, .. })),
        "{response:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_synced_append_only_file_no_acknowledged_write_is_lost_to_kill_nine() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    for _ in 0..3 {
        let first = leader.applied;
        let (mut written, failure) = {
            let writing = async {
                loop {
                    if let Err(error) = leader.write().await {
                        return error;
                    }
                }
            };
            let killing = async {
                while store.applied().await.is_ok_and(|found| found.number.get() < first + 20) {}
                redis.kill().await;
            };
            let (failure, ()) = tokio::join!(writing, killing);
            (leader.applied, failure)
        };
        assert!(
            matches!(failure.kind(), ErrorKind::UnknownOutcome | ErrorKind::Unavailable),
            "{failure:?}"
        );
        assert!(matches!(
            leader.renew().await.expect_err("it is dead").kind(),
            ErrorKind::Unavailable
        ));
        redis.start().await;
        let found =
            bounded(store.applied()).await.expect("it responds again, over a new connection");
        let there = found.number.get();
        assert_ne!(found.lineage, leader.lineage);
        assert!(there == written || there == written + 1, "{there} of {written}");
        written = there;
        assert_whole(&bounded(store.load()).await.expect("load"), written);
        // A node that watches may lead the new copy.
        let me = Candidate { seen: None, ..leader.candidate.clone() };
        let next = Candidate { seen: Some(seen(&store, &me).await), ..me };
        let before = leader.epoch;
        leader = Leader::acquire(&store, next).await;
        assert!(leader.epoch > before);
        assert_eq!(leader.applied, written);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_begin_above_a_floor_from_the_servers_clock() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let store = open(redis.url()).await;
    let (now_s, _): (u64, u64) = ask(redis.url(), "TIME").await;
    let floor = Floor::of_clock(now_s).expect("a clock that is right").epoch().get();
    let leader = Leader::of(&store).await;
    // An empty store may have forgotten some: it leaps over them.
    assert!(
        leader.epoch.get() > floor && leader.epoch.get() <= floor + 17,
        "{} above {floor}",
        leader.epoch
    );
    let watched = seen(&store, &candidate("other")).await;
    assert_eq!(leader_seen(&watched).epoch, leader.epoch);
    assert_eq!(leader_seen(&watched).ttl_ms, 5_000);
    // Nothing is written for those who only watch.
    store.write(leader.epoch, WriteNumber::FIRST, &batch(1)).await.expect("a write");
    assert_eq!(seen(&store, &candidate("other")).await, watched, "a write is no renewal");
}
