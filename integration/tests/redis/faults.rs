//! Servers that refuse, hang or forget scripts: each a clear error in time, then all goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use integration::containers::{Redis, RedisOptions};
use integration::within;
use lockservice_core::store::BindStore;
use lockservice_core::{ErrorKind, WriteNumber};
use lockservice_redis::{RedisConfig, RedisStore};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::support::{BOUND, Leader, ask, assert_whole, batch, bounded, open};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_memory_refuses_writes_whole_but_not_renewals() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    let () = ask(redis.url(), "CONFIG SET maxmemory 1").await;
    let refused = leader.write().await.expect_err("no memory");
    assert_eq!(refused.kind(), ErrorKind::StoreUnusable, "{refused:?}");
    assert!(refused.to_string().contains("maxmemory"), "{refused}");
    assert_eq!(leader.renew().await.expect("the leadership goes on"), leader.lineage);
    assert_eq!(bounded(store.applied()).await.expect("read").number.get(), 1);
    let () = ask(redis.url(), "CONFIG SET maxmemory 0").await;
    leader.write().await.expect("there is memory again");
    assert_whole(&bounded(store.load()).await.expect("load"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_becomes_a_replica_refuses_everything_and_comes_back_as_another_copy() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    let () = ask(redis.url(), "REPLICAOF 127.0.0.1 1").await;
    // Also if it would take writes, and for mere reading: what a replica says may be old.
    for writable in ["yes", "no"] {
        let () = ask(redis.url(), &format!("CONFIG SET replica-read-only {writable}")).await;
        for refused in [
            leader.write().await.err(),
            leader.renew().await.err(),
            bounded(store.applied()).await.err(),
        ] {
            let refused = refused.expect("it is no master");
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
            assert!(refused.to_string().contains("replica"), "{refused}");
        }
    }
    let () = ask(redis.url(), "REPLICAOF NO ONE").await;
    assert_ne!(leader.renew().await.expect("it is the master again"), leader.lineage);
    assert_whole(&bounded(store.load()).await.expect("load"), 1);
}

/// Leads to `server` until `frozen` is set. After that it accepts connections and passes nothing
/// on.
async fn relay(server: String, frozen: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut near, _)) = listener.accept().await {
            if frozen.load(Ordering::SeqCst) {
                held.push(near);
                continue;
            }
            let mut far = TcpStream::connect(&server).await.expect("the server");
            // An error means that one side has gone.
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_server_is_reported_although_the_time_ends_while_a_connection_is_made() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let server = redis.url().trim_start_matches("redis://").trim_end_matches('/').to_owned();
    let frozen = Arc::new(AtomicBool::new(false));
    let between = relay(server, Arc::clone(&frozen)).await;
    let config = RedisConfig {
        call_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(30),
        ..RedisConfig::from_url(&format!("redis://{between}")).expect("a URL")
    };
    let store = bounded(RedisStore::connect_with(config)).await.expect("the store opens");
    let leader = Leader::of(&store).await;
    let () = ask(redis.url(), "REPLICAOF 127.0.0.1 1").await;
    frozen.store(true, Ordering::SeqCst);
    let refused = leader.renew().await.expect_err("it is no master");
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert!(refused.to_string().contains("replica"), "{refused}");
    let silent = leader.renew().await.expect_err("nothing is passed on");
    assert!(silent.to_string().contains("no connection"), "{silent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_the_scripts_is_sent_them_again() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    for _ in 0..3 {
        let () = ask(redis.url(), "SCRIPT FLUSH").await;
        leader.write().await.expect("a write");
        let () = ask(redis.url(), "SCRIPT FLUSH").await;
        leader.renew().await.expect("a renewal");
    }
    assert_whole(&bounded(store.load()).await.expect("load"), 3);
    // And keeps them: a digest is enough from then on.
    leader.write().await.expect("a write");
    let () = ask(redis.url(), "CONFIG RESETSTAT").await;
    leader.write().await.expect("a write");
    let stats: String = ask(redis.url(), "INFO commandstats").await;
    assert!(
        stats.contains("cmdstat_evalsha:calls=1,") && !stats.contains("cmdstat_eval:"),
        "{stats}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_costs_no_call_more_than_its_bound_and_a_write_is_found_afterwards() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    redis.pause().await;
    let begin = Instant::now();
    let unknown = leader.write().await.expect_err("no response");
    assert_eq!(unknown.kind(), ErrorKind::UnknownOutcome, "{unknown:?}");
    assert_eq!(leader.renew().await.expect_err("no response").kind(), ErrorKind::Unavailable);
    assert!(bounded(store.load()).await.is_err());
    assert!(begin.elapsed() < BOUND * 3, "{:?}", begin.elapsed());
    redis.unpause().await;
    // What was sent into the pause has landed, or never will: its number is taken, by itself or by
    // the next.
    let found = bounded(store.applied()).await.expect("it responds");
    assert_eq!(found.lineage, leader.lineage, "a pause loses nothing");
    match bounded(store.write(leader.epoch, WriteNumber::new(2), &batch(2))).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}"),
    }
    assert_whole(&bounded(store.load()).await.expect("load"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_still_loads_says_so_until_it_serves() {
    // 20 ms for each of 200 keys: longer than Docker may take to start the container. It responds
    // after each kibibyte, every 14 keys.
    let slow = "--key-load-delay 20000 --loading-process-events-interval-bytes 1024 \
        --rdbcompression no --save ";
    let options = RedisOptions {
        arguments: slow.split(' ').map(String::from).collect(),
        ..RedisOptions::default()
    };
    let Some(redis) = Redis::start(options).await else { return };
    let store = open(redis.url()).await;
    let mut leader = Leader::of(&store).await;
    leader.write().await.expect("a write");
    let () = ask(
        redis.url(),
        &format!(
            "MSET{}",
            (0..200).map(|n| format!(" k{n} {}", "v".repeat(64))).collect::<String>()
        ),
    )
    .await;
    let () = ask(redis.url(), "SAVE").await;
    redis.kill().await;
    redis.start_without_waiting().await;
    let mut loading = 0;
    within("the server serves again", async {
        loop {
            match leader.renew().await {
                Ok(lineage) => return assert_ne!(lineage, leader.lineage),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                    loading += u32::from(error.to_string().contains("loading"));
                }
            }
        }
    })
    .await;
    assert!(loading > 0, "it was never seen loading");
    assert_whole(&bounded(store.load()).await.expect("load"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_enough_replicas_nothing_counts() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let alone = open(redis.url()).await;
    let mut leader = Leader::of(&alone).await;
    leader.write().await.expect("a write that need not be replicated");
    let store = open(&format!("{}?wait=1&wait_timeout_ms=50", redis.url())).await;
    let unknown = bounded(store.write(leader.epoch, WriteNumber::new(2), &batch(2)))
        .await
        .expect_err("no replica");
    assert_eq!(unknown.kind(), ErrorKind::UnknownOutcome, "{unknown:?}");
    assert!(unknown.to_string().contains("replicas"), "{unknown}");
    let unknown_outcome =
        bounded(store.applied()).await.expect_err("what can still be lost settles nothing");
    assert_eq!(unknown_outcome.kind(), ErrorKind::Unavailable, "{unknown_outcome:?}");
    assert_eq!(
        bounded(store.renew(leader.epoch)).await.expect_err("no replica").kind(),
        ErrorKind::Unavailable
    );
    let leadership =
        bounded(store.acquire_leadership(&leader.candidate, crate::support::TTL)).await;
    assert_eq!(leadership.expect_err("no replica").kind(), ErrorKind::Unavailable);
}
