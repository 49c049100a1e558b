//! A server that refuses: each a clear error within the bound, then recovery, and nothing
//! acknowledged lost.

use integration::containers::{Postgres, PostgresOptions};
use integration::within;
use lockservice_core::store::{BindStore, Op};
use lockservice_core::{ErrorKind, WriteNumber};
use lockservice_pg::sqlx::{Connection, PgConnection};
use lockservice_pg::{PgConfig, PgStore};

use crate::support::{
    Journal, admin, assert_refused, bounded, config, count, open, run, server, state, table, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_terminated_is_an_error_once_and_new_ones_take_over() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let mut journal = Journal::begin(&store).await;
    let mut admin = admin(&server).await;
    for _ in 0..3 {
        let all = "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity where \
            application_name = 'lockservice'";
        assert!(count(&mut admin, all).await > 0, "there was a connection");
        // A call that may be repeated is, and does not even show it.
        bounded("a renewal", store.renew(journal.epoch)).await.expect("by a new connection");
        count(&mut admin, all).await;
        let lost = journal.write(&store).await;
        assert_refused(lost, ErrorKind::UnknownOutcome, &["connection", "read before deciding"]);
        count(&mut admin, all).await;
        bounded("a load", store.load()).await.expect("by a new connection");
        journal.go_on(&store).await;
        journal.check(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_is_said_as_such_and_an_open_store_goes_on() {
    let Some(server) = server(&[("max_connections", "10")]).await else { return };
    let mut admin = admin(&server).await;
    run(
        &mut admin,
        "create role node login password 'node'; grant create on database lockservice to node",
    )
    .await;
    let connect = config(&server).connect.username("node").password("node");
    let config = PgConfig { connect: connect.clone(), ..config(&server) };
    let store = PgStore::connect_with(config.clone()).await.expect("a store");
    let mut journal = Journal::begin(&store).await;
    let mut others = Vec::new();
    while let Ok(connection) = PgConnection::connect_with(&connect).await {
        others.push(connection);
        assert!(others.len() < 20, "there is a limit");
    }
    let refused = bounded("an open", PgStore::connect_with(config.clone())).await;
    assert_refused(
        refused,
        ErrorKind::Unavailable,
        &["53300 too_many_connections", "max_connections"],
    );
    journal.write(&store).await.expect("it has its connection");
    journal.check(&store).await;
    for other in others {
        other.close().await.expect("closed");
    }
    let second = within("a place", async {
        loop {
            if let Ok(store) = PgStore::connect_with(config.clone()).await {
                return store;
            }
        }
    });
    journal.check(&second.await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_refuses_changes_as_such_until_it_is_writable_again() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let mut journal = Journal::begin(&store).await;
    let mut admin = admin(&server).await;
    set_read_only(&mut admin, "on").await;
    // A session learns of it with its next call.
    let refused = within("the setting to be heard", async {
        let mut outcome = Ok(());
        while outcome.is_ok() {
            outcome = journal.write(&store).await;
        }
        outcome
    });
    assert_refused(
        refused.await,
        ErrorKind::StoreUnusable,
        &["25006 read_only_sql_transaction", "primary"],
    );
    assert_refused(store.renew(journal.epoch).await, ErrorKind::StoreUnusable, &["25006"]);
    assert_refused(store.resign(journal.epoch).await, ErrorKind::StoreUnusable, &["25006"]);
    assert_eq!(store.applied().await.expect("reading works").number.get(), journal.applied);
    let config = PgConfig {
        schema: lockservice_pg::SchemaName::new("other").expect("a name"),
        ..config(&server)
    };
    assert_refused(PgStore::connect_with(config).await, ErrorKind::StoreUnusable, &["25006"]);
    set_read_only(&mut admin, "off").await;
    journal.go_on(&store).await;
    journal.check(&store).await;
}

async fn set_read_only(admin: &mut PgConnection, value: &str) {
    run(admin, "set default_transaction_read_only = off").await;
    run(admin, &format!("alter system set default_transaction_read_only = {value}")).await;
    run(admin, "select pg_reload_conf()").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_another_session_holds_is_named_and_waited_for_within_the_bound() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let mut journal = Journal::begin(&store).await;
    let mut other = admin(&server).await;
    for lock in [
        "lock table lockservice.tables",
        "select from lockservice.head for update",
        "lock table lockservice.head",
    ] {
        run(&mut other, &format!("begin; {lock}")).await;
        let refused = journal.write(&store).await;
        assert_refused(refused, ErrorKind::Unavailable, &["55P03 lock_not_available", "pg_locks"]);
        if lock.ends_with("head") {
            let response = bounded("a reading", store.applied()).await;
            assert_refused(response, ErrorKind::Unavailable, &["55P03"]);
        }
        run(&mut other, "rollback").await;
        journal.write(&store).await.expect("the lock is gone");
    }
    journal.check(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_changes_as_such_until_there_is_space() {
    let settings = [("min_wal_size", "96MB"), ("checkpoint_timeout", "1h")]
        .map(|(name, value)| (name, value.to_owned()));
    let options = PostgresOptions {
        settings: settings.into(),
        data_bytes_max: Some(320 << 20),
        ..Default::default()
    };
    let Some(server) = Postgres::start(options).await else { return };
    let store = open(&server).await;
    let mut journal = Journal::begin(&store).await;
    let mut admin = admin(&server).await;
    // Segments of the log that can be used again: what fills up is the data. A server whose log is
    // full stops.
    for _ in 0..6 {
        run(
            &mut admin,
            "create table public.some as select generate_series(1, 1000); drop table \
            public.some; select pg_switch_wal()",
        )
        .await;
    }
    run(&mut admin, "checkpoint").await;
    for _ in 0..2 {
        server.fill_disk().await;
        let refused = within("the disk to be full", async {
            loop {
                let number = journal.applied + 1;
                let batch: Vec<Op> =
                    vec![Op::PutTable(table(number)), Op::PutService(large_service(number))];
                match bounded(
                    "a write",
                    store.write(journal.epoch, WriteNumber::new(number), &batch),
                )
                .await
                {
                    Ok(_) => journal.applied = number,
                    refused => return refused,
                }
                assert!(number < 5_000, "the disk never was full");
            }
        });
        assert_refused(refused.await, ErrorKind::StoreUnusable, &["53100 disk_full", "free space"]);
        server.free_disk().await;
        journal.go_on(&store).await;
        journal.check(&store).await;
    }
}

/// A record that fills a page: addresses are stored as they are.
fn large_service(number: u64) -> lockservice_core::store::ServiceRecord {
    lockservice_core::store::ServiceRecord {
        id: lockservice_core::ServiceId::new(number),
        node: lockservice_core::NodeName::new(format!("node-{number}")).expect("a name"),
        nonce: lockservice_core::Nonce::new(number),
        // Short of what would be compressed or moved out of its row.
        address: "x".repeat(1_500),
        state: lockservice_core::store::ServiceState::Live,
        succession: Default::default(),
    }
}

/// L2: the number of a write whose caller went away is free, or its own; never does it land behind
/// its successor.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_write_does_not_land_after_a_successor_was_written() {
    let Some(server) = server(&[]).await else { return };
    let patient = PgConfig {
        lock_timeout: std::time::Duration::from_secs(20),
        statement_timeout: std::time::Duration::from_secs(30),
        ..config(&server)
    };
    let store = std::sync::Arc::new(PgStore::connect_with(patient).await.expect("a store"));
    let mut journal = Journal::begin(&*store).await;
    let mut other = admin(&server).await;
    run(&mut other, "begin; select from lockservice.head for update").await;
    let waiting = |sql: &'static str| {
        format!(
            "select (count(*) filter (where wait_event_type = 'Lock') >= {sql})::int::bigint from \
                pg_stat_activity"
        )
    };
    let write = |name: u64| {
        let (store, epoch, number) =
            (std::sync::Arc::clone(&store), journal.epoch, WriteNumber::new(journal.applied + 1));
        tokio::spawn(
            async move { store.write(epoch, number, &vec![Op::PutTable(table(name))]).await },
        )
    };
    let dropped = write(100);
    let mut watcher = admin_of(&server).await;
    until(&mut watcher, &waiting("1")).await;
    dropped.abort();
    assert!(dropped.await.is_err(), "its caller went away");
    assert_eq!(
        store.applied().await.expect("readable").number.get(),
        journal.applied,
        "it has not landed"
    );
    let successor = write(200);
    until(&mut watcher, &waiting("2")).await;
    run(&mut other, "rollback").await;
    let successor = within("the successor", successor).await.expect("no panic");
    // Both asked for one number: the server decides which it is, once and for all.
    until(
        &mut watcher,
        "select (count(*) filter (where wait_event_type = 'Lock') = 0)::int::bigint from \
            pg_stat_activity",
    )
    .await;
    let there = |state: lockservice_core::store::StoreState| {
        state.tables.iter().map(|table| table.id.get()).max()
    };
    let winner = if successor.is_ok() { 200 } else { 100 };
    assert_eq!(there(state(&*store).await), Some(winner));
    if let Err(refusal) = successor {
        assert_eq!(refusal.kind(), ErrorKind::Fenced);
    }
    journal.applied += 1;
    store
        .write(journal.epoch, WriteNumber::new(journal.applied + 1), &vec![])
        .await
        .expect("the next number");
    assert_eq!(there(state(&*store).await), Some(winner));
}

async fn admin_of(server: &Postgres) -> PgConnection {
    admin(server).await
}
