//! The first start of a whole cluster: sixteen nodes at the same instant, on an empty store and on
//! one of format 1, while each of them binds and commits (the outage this product began with).
//! Exactly one leads, no caller gets an error, no bind is lost.

use std::sync::Arc;
use std::time::Duration;

use integration::allocators::{Node, SharedLedger, work};
use integration::containers::{Postgres, PostgresOptions, Redis, RedisOptions};
use integration::{within, within_limit};
use lockservice_core::store::BindStore;
use lockservice_core::testing::LocalPeers;
use lockservice_pg::{PgConfig, PgStore};
use lockservice_redis::RedisStore;
use sqlx::ConnectOptions as _;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;

const NODES: usize = 16;
/// Sixteen nodes in one process wait for each other's connections on a small machine.
const CONNECT_MAX: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_nodes_start_on_an_empty_postgres() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    Box::pin(together(open_pg(postgres.url()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_nodes_start_on_a_postgres_of_format_1() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    let options: sqlx::postgres::PgConnectOptions = postgres.url().parse().expect("a URL");
    let mut connection =
        within("connecting", Box::pin(options.connect())).await.expect("it has started");
    let fixture = include_str!("../fixtures/pg-format-1.sql");
    sqlx::raw_sql(fixture).execute(&mut connection).await.expect("the fixture is SQL");
    let store = Box::pin(together(open_pg(postgres.url()))).await;
    let state = store.load().await.expect("the store responds");
    assert!(state.tables.len() >= 40, "tables of the fixture are lost: {}", state.tables.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_nodes_start_on_an_empty_redis() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let url = redis.url().to_owned();
    let open = move || {
        let url = url.clone();
        async move {
            Arc::new(RedisStore::connect(&url).await.expect("it has started")) as Arc<dyn BindStore>
        }
    };
    Box::pin(together(open)).await;
}

fn open_pg(
    url: &str,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Arc<dyn BindStore>> + Send>> + use<> {
    let config = PgConfig {
        connections_max: 2,
        connect_timeout: CONNECT_MAX,
        ..PgConfig::from_url(url).expect("a URL")
    };
    move || {
        let config = config.clone();
        Box::pin(async move {
            Arc::new(PgStore::connect_with(config).await.expect("no error, whoever migrates"))
                as Arc<dyn BindStore>
        })
    }
}

/// Starts all nodes at once, lets each bind and commit, and compares what was acknowledged with
/// what is stored.
async fn together<Opening>(open: impl Fn() -> Opening) -> Arc<dyn BindStore>
where
    Opening: Future<Output = Arc<dyn BindStore>> + Send + 'static,
{
    let (peers, ledger) = (LocalPeers::default(), SharedLedger::default());
    let (stop, stopped) = watch::channel(false);
    let gate = Arc::new(Barrier::new(NODES));
    let mut starting = JoinSet::new();
    for name in 0..NODES {
        let (gate, peers, opening) = (Arc::clone(&gate), peers.clone(), open());
        let (ledger, stopped) = (Arc::clone(&ledger), stopped.clone());
        starting.spawn(async move {
            gate.wait().await;
            let node = Node::join(&format!("node-{name}"), opening.await, &peers);
            let allocator = Arc::clone(&node.allocator);
            let worker =
                tokio::spawn(work(format!("node-{name}"), allocator, ledger, stopped, name as u64));
            (node, worker)
        });
    }
    let started = within("sixteen nodes to start", starting.join_all()).await;
    let everybody = async {
        while ledger.lock().expect("no panic holds it").admitted.len() < NODES {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_limit(Duration::from_secs(90), "a commit of every node", everybody).await;
    assert_eq!(started.iter().filter(|(node, _)| node.leads()).count(), 1, "exactly one leads");
    stop.send_replace(true);
    let mut nodes = Vec::new();
    for (node, worker) in started {
        within("the worker ends", worker).await.expect("no worker failed");
        nodes.push(node);
    }
    let store = open().await;
    let state = store.load().await.expect("the store responds");
    ledger.lock().expect("no panic holds it").check(&state);
    store
}
