//! Three allocators on one real store that is paused, killed and stopped in the middle of binds,
//! commits, tombstones and renewals: no acknowledged bind is lost, no version or token goes back,
//! no version has two owners, every caller gets a response, and work goes on by itself (L1 to L4,
//! B3 to B6, C1 to C4).

use std::sync::Arc;
use std::time::Duration;

use integration::allocators::{Node, SharedLedger, TTL, owners, work};
use integration::containers::{Container, Postgres, PostgresOptions, Redis, RedisOptions};
use integration::within;
use lockservice_core::store::BindStore;
use lockservice_core::testing::LocalPeers;
use lockservice_pg::PgStore;
use lockservice_redis::RedisStore;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};

/// The faults of the server.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Pause(Duration),
    Kill,
    Stop,
    /// The leader's node dies; a new one joins.
    LeaderDies,
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_paused_killed_and_stopped_under_load() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    let url = postgres.url().to_owned();
    let open = async || -> Arc<dyn BindStore> {
        let store = within("connecting", Box::pin(PgStore::connect(&url)))
            .await
            .expect("the server responds");
        Arc::new(store) as _
    };
    Box::pin(under_faults(open, &postgres)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_paused_killed_and_stopped_under_load() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let url = redis.url().to_owned();
    let open = async || -> Arc<dyn BindStore> {
        let store = within("connecting", Box::pin(RedisStore::connect(&url)))
            .await
            .expect("the server responds");
        Arc::new(store) as _
    };
    Box::pin(under_faults(open, &redis)).await;
}

async fn under_faults(open: impl AsyncFn() -> Arc<dyn BindStore>, server: &Container) {
    let (peers, ledger) = (LocalPeers::default(), SharedLedger::default());
    let (stop, stopped) = watch::channel(false);
    let mut workers = JoinSet::new();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push((Node::join(name, open().await, &peers), None::<AbortHandle>));
    }
    for (seed, (node, worker)) in nodes.iter_mut().enumerate() {
        *worker = Some(spawn(&mut workers, node, &ledger, &stopped, seed as u64));
    }
    let faults = [
        Fault::Pause(TTL / 4),
        Fault::Kill,
        Fault::LeaderDies,
        Fault::Pause(TTL * 2),
        Fault::Stop,
        Fault::LeaderDies,
    ];
    let mut joined = 0;
    for fault in faults {
        progress(&ledger, &mut workers).await;
        println!("{fault:?}");
        match fault {
            Fault::Pause(time) => {
                server.pause().await;
                tokio::time::sleep(time).await;
                server.unpause().await;
            }
            Fault::Kill => {
                server.kill().await;
                server.start().await;
            }
            Fault::Stop => {
                server.stop().await;
                server.start().await;
            }
            Fault::LeaderDies => {
                let leader = within("a leader", async {
                    loop {
                        if let Some(place) = nodes.iter().position(|(node, _)| node.leads()) {
                            break place;
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                })
                .await;
                // With everything that used it, and without a message.
                let (node, worker) = nodes.remove(leader);
                worker.expect("started").abort();
                drop(node);
                joined += 1;
                let node = Node::join(&format!("late-{joined}"), open().await, &peers);
                let worker = spawn(&mut workers, &node, &ledger, &stopped, 100 + joined);
                nodes.push((node, Some(worker)));
            }
        }
    }
    progress(&ledger, &mut workers).await;
    stop.send_replace(true);
    while let Some(done) = within("the workers end", workers.join_next()).await {
        ended(done);
    }
    println!("{} owners", owners(&ledger));
    let store = open().await;
    let state = store.load().await.expect("the store responds");
    ledger.lock().expect("no panic holds it").check(&state);
}

fn spawn(
    workers: &mut JoinSet<()>,
    node: &Node,
    ledger: &SharedLedger,
    stopped: &watch::Receiver<bool>,
    seed: u64,
) -> AbortHandle {
    let (allocator, ledger) = (Arc::clone(&node.allocator), Arc::clone(ledger));
    workers.spawn(work(format!("worker-{seed}"), allocator, ledger, stopped.clone(), seed))
}

/// Waits until a good deal more is written and acknowledged, to any caller.
async fn progress(ledger: &SharedLedger, workers: &mut JoinSet<()>) {
    let mut written = ledger.lock().expect("no panic holds it").written();
    let before = *written.borrow_and_update();
    let more = written.wait_for(|written| *written > before + 100);
    let more = within("work goes on by itself", more);
    tokio::pin!(more);
    loop {
        tokio::select! {
            more = &mut more => return drop(more.expect("the ledger is there")),
            Some(done) = workers.join_next() => ended(done),
        }
    }
}

/// A worker ends when it is stopped, or with its node.
fn ended(done: Result<(), JoinError>) {
    if let Err(e) = done {
        assert!(e.is_cancelled(), "a worker failed: {e}");
    }
}
