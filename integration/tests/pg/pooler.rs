//! A pooler between the store and the server: pgbouncer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use integration::containers::PgBouncer;
use integration::within;
use lockservice_core::ErrorKind;
use lockservice_core::store::BindStore;
use lockservice_core::testing::{StoreFixture, store_suite};
use lockservice_pg::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use lockservice_pg::sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, raw_sql,
};
use lockservice_pg::{PgConfig, PgStore, SchemaName};

use crate::support::{Journal, admin, assert_refused, count, server};

/// As it comes, and as those set it up whose drivers ask for more than it passes on.
const SETUPS: [&[(&str, &str)]; 2] = [
    &[("pool_mode", "transaction")],
    &[("pool_mode", "transaction"), ("ignore_startup_parameters", "extra_float_digits,options")],
];

/// What another application finds set in its session.
async fn found_by(application: &PgConnectOptions) -> Vec<String> {
    let mut connection = PgConnection::connect_with(application).await.expect("a connection");
    let mut found = Vec::new();
    for name in
        ["statement_timeout", "lock_timeout", "default_transaction_isolation", "synchronous_commit"]
    {
        let ask = format!("select current_setting('{name}')");
        let row = connection.fetch_one(raw_sql(AssertSqlSafe(ask))).await.expect("a response");
        found.push(row.get::<String, _>(0));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_nothing_that_we_set_reaches_another_application() {
    let Some(server) = server(&[]).await else { return };
    for setup in SETUPS {
        let Some(pooler) = PgBouncer::start(&server, setup).await else { return };
        let before = found_by(&pooler.application()).await;
        let schema = format!("setup_{}", setup.len());
        let store =
            PgStore::connect(&format!("{}?schema={schema}", pooler.url())).await.expect("a store");
        let mut journal = Journal::begin(&store).await;
        for _ in 0..3 {
            journal.write(&store).await.expect("a write");
            assert_eq!(found_by(&pooler.application()).await, before, "{setup:?}");
        }
        journal.check(&store).await;
        // A time-out of our own still holds: somebody has our row, on a connection of their own.
        let mut other = admin(&server).await;
        crate::support::run(
            &mut other,
            &format!("begin; update {schema}.head set counter = counter"),
        )
        .await;
        assert_refused(store.renew(journal.epoch).await, ErrorKind::Unavailable, &["55P03"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_there_is_no_listener_and_a_wait_for_a_change_ends_all_the_same() {
    let Some(server) = server(&[]).await else { return };
    let Some(pooler) = PgBouncer::start(&server, SETUPS[0]).await else { return };
    let store = PgStore::connect(&pooler.url()).await.expect("a store");
    let waited = store.wait_for_change(Duration::from_millis(300));
    within("the end of a wait", waited).await.expect("it can tell");
    let mut admin = admin(&server).await;
    assert_eq!(
        count(&mut admin, "select count(*) from pg_stat_activity where query ilike 'listen%'")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_listening_no_connection_is_kept_for_it() {
    let Some(server) = server(&[]).await else { return };
    let store = PgStore::connect(&format!("{}?listen=false", server.url())).await.expect("a store");
    store.wait_for_change(Duration::from_millis(300)).await.expect("it can tell");
    let mut admin = admin(&server).await;
    assert_eq!(
        count(&mut admin, "select count(*) from pg_stat_activity where query ilike 'listen%'")
            .await,
        0
    );
}

struct Site {
    config: PgConfig,
    ready_pool: bool,
}

#[async_trait]
impl StoreFixture for Site {
    async fn open(&self) -> Arc<dyn BindStore> {
        let config = self.config.clone();
        let opened = if self.ready_pool {
            let connect = config.connect.clone().extra_float_digits(None);
            let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(connect);
            PgStore::with_pool(pool, PgConfig { pooler: true, ..config }).await
        } else {
            PgStore::connect_with(config).await
        };
        Arc::new(opened.expect("a store in a schema of its own"))
    }
}

async fn keeps_the_contract(settings: &[(&str, &str)], ready_pool: bool) {
    let Some(server) = server(&[]).await else { return };
    let Some(pooler) = PgBouncer::start(&server, settings).await else { return };
    let made = AtomicUsize::new(0);
    store_suite(|| {
        let schema = SchemaName::new(&format!("site_{}", made.fetch_add(1, Ordering::Relaxed)))
            .expect("a name");
        let config = PgConfig { schema, ..PgConfig::from_url(&pooler.url()).expect("a URL") };
        async move { Box::new(Site { config, ready_pool }) as Box<dyn StoreFixture> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_behind_a_pooler_that_shares_connections_between_transactions() {
    // Several connections, so that a transaction does not come back to the same one.
    keeps_the_contract(
        &[("pool_mode", "transaction"), ("default_pool_size", "4"), ("server_round_robin", "1")],
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_behind_a_pooler_that_shares_connections_between_sessions() {
    keeps_the_contract(&[("pool_mode", "session"), ("default_pool_size", "20")], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_through_a_ready_pool_before_a_pooler() {
    keeps_the_contract(
        &[("pool_mode", "transaction"), ("default_pool_size", "4"), ("server_round_robin", "1")],
        true,
    )
    .await;
}
