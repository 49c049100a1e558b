//! Content that this version cannot read is refused by name and left alone.

use integration::store::named;
use lockservice_core::ErrorKind;
use lockservice_core::maintenance::ProblemKind;
use lockservice_core::store::{BindStore, Op};
use lockservice_core::{ServiceId, TxnId, TxnNumber, WriteNumber};
use lockservice_pg::PgStore;

use crate::support::{Journal, admin, assert_refused, config, count, open, run, server, table};

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_a_newer_format_is_refused_and_left_alone() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let journal = Journal::begin(&store).await;
    let mut admin = admin(&server).await;
    run(&mut admin, "insert into lockservice.format (version) values (7)").await;
    let refused = PgStore::connect_with(config(&server)).await;
    assert_refused(refused, ErrorKind::StoreNewer, &["schema format 7, this one reads 1"]);
    assert_eq!(count(&mut admin, "select count(*) from lockservice.format").await, 2);
    journal.check(&store).await;
    run(&mut admin, "delete from lockservice.format").await;
    assert_refused(
        PgStore::connect_with(config(&server)).await,
        ErrorKind::StoreCorrupt,
        &["format"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_newer_or_damaged_or_misplaced_is_refused_by_name() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let mut journal = Journal::begin(&store).await;
    let others = vec![Op::PutTombstone(TxnId::new(ServiceId::new(7), TxnNumber::new(1), true))];
    store.write(journal.epoch, WriteNumber::new(4), &others).await.expect("a write");
    journal.applied = 4;
    let mut admin = admin(&server).await;
    let load_fails = [
        (
            "update lockservice.tables set format = 2 where name = 'table-2'",
            ErrorKind::StoreNewer,
            "table group/table-2",
        ),
        (
            "update lockservice.tables set format = 0 where name = 'table-2'",
            ErrorKind::StoreCorrupt,
            "table group/table-2",
        ),
        (
            "update lockservice.tables set record = record - 'id' where name = 'table-1'",
            ErrorKind::StoreCorrupt,
            "table group/table-1",
        ),
        (
            "update lockservice.tables set record = '3' where name = 'table-1'",
            ErrorKind::StoreCorrupt,
            "table group/table-1",
        ),
        (
            "update lockservice.tables set name = 'x' where name = 'table-1'",
            ErrorKind::StoreCorrupt,
            "table group/x",
        ),
        ("update lockservice.tombstones set format = 300", ErrorKind::StoreNewer, "tombstone 7 3"),
        ("update lockservice.head set format = 2", ErrorKind::StoreNewer, "head"),
        ("update lockservice.head set record = '{\"leader\": 3}'", ErrorKind::StoreCorrupt, "head"),
        ("drop table lockservice.services", ErrorKind::StoreUnusable, "42P01 undefined_table"),
        ("drop schema lockservice cascade", ErrorKind::StoreUnusable, "3F000 invalid_schema_name"),
    ];
    for (damage, kind, name) in load_fails {
        // In a transaction that the damage does not outlive: what was refused is unchanged.
        run(&mut admin, "drop schema if exists spare cascade; create schema spare").await;
        run(
            &mut admin,
            "create table spare.t as table lockservice.tables; create table spare.h \
            as table lockservice.head; create table spare.b as table lockservice.tombstones",
        )
        .await;
        run(&mut admin, damage).await;
        assert_refused(store.load().await, kind, &[name]);
        if damage.starts_with("drop") {
            continue;
        }
        run(
            &mut admin,
            "begin; delete from lockservice.tables; insert into lockservice.tables select * from \
             spare.t; \
             delete from lockservice.head; insert into lockservice.head select * from spare.h; \
             delete from lockservice.tombstones; insert into lockservice.tombstones select * from \
             spare.b; commit",
        )
        .await;
        assert_eq!(store.load().await.expect("as it was").tables.len(), 3);
    }
    assert_refused(
        journal.write(&store).await,
        ErrorKind::StoreUnusable,
        &["3F000 invalid_schema_name", "backup"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inspection_names_every_damaged_record_and_changes_nothing() {
    let Some(server) = server(&[]).await else { return };
    let mut admin = admin(&server).await;
    assert_refused(
        PgStore::inspect(server.url()).await,
        ErrorKind::StoreUnusable,
        &["there is no store"],
    );
    assert_eq!(
        count(&mut admin, "select count(*) from pg_namespace where nspname = 'lockservice'").await,
        0
    );

    let store = open(&server).await;
    let journal = Journal::begin(&store).await;
    let others = vec![Op::PutTombstone(TxnId::new(ServiceId::new(7), TxnNumber::new(1), true))];
    store.write(journal.epoch, WriteNumber::new(4), &others).await.expect("a write");
    let inspection = PgStore::inspect(server.url()).await.expect("a store");
    assert_eq!((inspection.damage.named().len(), inspection.state.tables.len()), (0, 3));
    for damage in [
        "update lockservice.tables set record = record - 'id' where name = 'table-1'",
        "update lockservice.tables set name = 'x' where name = 'table-2'",
        "update lockservice.tombstones set format = 300",
    ] {
        run(&mut admin, damage).await;
    }
    let inspection = PgStore::inspect(server.url()).await.expect("a store");
    let three = [
        (ProblemKind::Damaged, "table group/table-1".to_owned()),
        (ProblemKind::Damaged, "table group/x".to_owned()),
        (ProblemKind::Newer, "tombstone 7 3".to_owned()),
    ];
    assert_eq!(named(&inspection), three);
    assert_eq!((inspection.state.tables, inspection.state.applied.get()), (vec![table(3)], 4));
    assert_eq!(
        (inspection.store, inspection.head.expect("sound").epoch),
        (store.describe(), journal.epoch)
    );

    run(&mut admin, "update lockservice.head set record = '{\"leader\": 3}'").await;
    let inspection = PgStore::inspect(server.url()).await.expect("a store");
    let head = (ProblemKind::Damaged, "head".to_owned());
    assert_eq!(named(&inspection), [&[head], &three[..]].concat());
    assert_eq!(inspection.head, None);
    assert_refused(store.load().await, ErrorKind::StoreCorrupt, &["head"]);
}
