//! Many nodes at once, on an empty schema and on a store of format 1.

use std::sync::Arc;
use std::time::Duration;

use integration::within;
use lockservice_core::ErrorKind;
use lockservice_core::store::{BindStore, Forgotten};
use lockservice_pg::{PgConfig, PgStore, SchemaName};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::{
    Journal, admin, assert_refused, bounded, config, count, open, run, server, state,
};

const NODES: usize = 16;

/// All nodes open the store at the same instant.
async fn open_together(config: &PgConfig) -> Vec<PgStore> {
    let gate = Arc::new(Barrier::new(NODES));
    let mut nodes = JoinSet::new();
    for _ in 0..NODES {
        let (gate, config) = (Arc::clone(&gate), PgConfig { connections_max: 2, ..config.clone() });
        // Sixteen nodes in one process on a small machine: each may wait for the others'
        // connections.
        let config = PgConfig { connect_timeout: Duration::from_secs(20), ..config };
        nodes.spawn(async move {
            gate.wait().await;
            PgStore::connect_with(config).await.expect("no error, whoever migrates")
        });
    }
    within("sixteen nodes to open the store", nodes.join_all()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_sixteen_nodes_on_an_empty_schema_one_migrates_and_none_fails() {
    let Some(server) = server(&[("log_statement", "ddl")]).await else { return };
    let mut admin = admin(&server).await;
    let mut stores = Vec::new();
    for round in 0..5 {
        let schema = SchemaName::new(&format!("first_{round}")).expect("a name");
        stores = open_together(&PgConfig { schema, ..config(&server) }).await;
        assert_eq!(
            count(&mut admin, &format!("select count(*) from first_{round}.format")).await,
            1
        );
    }
    assert_eq!(
        server.log().await.matches("create schema \"first_").count(),
        5,
        "one migration each"
    );
    let mut journal = Journal::begin(&stores[0]).await;
    for store in &stores[1..] {
        journal.write(store).await.expect("every node can use it");
    }
    journal.check(&stores[15]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_format_one_is_opened_by_sixteen_nodes_at_once_while_one_writes() {
    let Some(server) = server(&[]).await else { return };
    let mut admin = admin(&server).await;
    run(&mut admin, include_str!("../../fixtures/pg-format-1.sql")).await;
    let first = open(&server).await;
    let before = state(&first).await;
    assert_eq!((before.epoch.get(), before.applied.get()), (27_557, 40));
    assert_eq!((before.tables.len(), before.services.len(), before.tombstones.len()), (40, 3, 2));
    let Forgotten { high_water, tokens_reserved_to } = before.forgotten;
    assert_eq!((high_water.get(), tokens_reserved_to.get()), (41, 41 << 32));
    assert_eq!(before.constants.expect("set").lease_ttl_ms, 3_000);
    // Its leader's clock of then says no more than ours of today.
    let epoch = crate::support::lead(&first).await;
    let mut journal = Journal { epoch, applied: 40 };
    let writer = tokio::spawn(async move {
        for _ in 0..50 {
            journal.write(&first).await.expect("opening takes no lock that a write waits for");
        }
        journal
    });
    let stores = open_together(&config(&server)).await;
    let journal = writer.await.expect("no panic");
    for store in &stores {
        journal.check(store).await;
        let now = state(store).await;
        assert_eq!(
            (&now.tables[..40], &now.services, &now.tombstones),
            (&before.tables[..], &before.services, &before.tombstones)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_schemas_in_one_database_do_not_meet() {
    let Some(server) = server(&[]).await else { return };
    let named =
        |name: &str| PgConfig { schema: SchemaName::new(name).expect("a name"), ..config(&server) };
    // A word of SQL is a name like any other.
    let (one, other) =
        tokio::join!(PgStore::connect_with(named("one")), PgStore::connect_with(named("table")));
    let (one, other) = (one.expect("a store"), other.expect("a store"));
    let journal = Journal::begin(&one).await;
    assert_eq!(state(&other).await, Default::default());
    let mut second = Journal::begin(&other).await;
    second.write(&other).await.expect("its own number");
    journal.check(&one).await;
    second.check(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_another_holds_up_is_waited_for_within_a_bound() {
    let Some(server) = server(&[]).await else { return };
    let mut other = admin(&server).await;
    run(
        &mut other,
        "begin; select pg_advisory_xact_lock(hashtextextended('lockservice:lockservice', 0))",
    )
    .await;
    let hurried = PgConfig { load_timeout: Duration::from_millis(300), ..config(&server) };
    assert_refused(
        bounded("an open", PgStore::connect_with(hurried)).await,
        ErrorKind::Unavailable,
        &["55P03"],
    );
    let patient = tokio::spawn(PgStore::connect_with(config(&server)));
    crate::support::until(
        &mut other,
        "select count(*) from pg_locks where locktype = 'advisory' and not granted",
    )
    .await;
    run(&mut other, "rollback").await;
    patient.await.expect("no panic").expect("its turn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_fails_half_way_leaves_nothing_behind() {
    let Some(server) = server(&[]).await else { return };
    let mut admin = admin(&server).await;
    run(&mut admin, "create schema lockservice; create table lockservice.services (mine integer)")
        .await;
    let refused = PgStore::connect_with(config(&server)).await;
    assert_refused(refused, ErrorKind::StoreUnusable, &["42P07 duplicate_table", "?schema=NAME"]);
    let tables = "select count(*) from pg_tables where schemaname = 'lockservice'";
    assert_eq!(count(&mut admin, tables).await, 1, "only what was there");
    run(&mut admin, "drop table lockservice.services").await;
    drop(open(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_learns_which_and_needs_none_where_the_schema_is_its_own() {
    let Some(server) = server(&[]).await else { return };
    let mut admin = admin(&server).await;
    run(&mut admin, "create role node login password 'node'").await;
    let connect = config(&server).connect.username("node").password("node");
    let config = PgConfig { connect, ..config(&server) };
    let refused = PgStore::connect_with(config.clone()).await;
    assert_refused(
        refused,
        ErrorKind::StoreUnusable,
        &["42501 insufficient_privilege", "create a schema"],
    );
    run(&mut admin, "create schema lockservice authorization node").await;
    let store = PgStore::connect_with(config).await.expect("its own schema is enough");
    Journal::begin(&store).await.check(&store).await;
    run(
        &mut admin,
        "revoke all on schema lockservice from node; alter schema lockservice owner to lockservice",
    )
    .await;
    assert_refused(store.applied().await, ErrorKind::StoreUnusable, &["42501"]);
}
