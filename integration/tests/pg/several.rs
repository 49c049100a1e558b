//! Several servers of which one takes writes.

use lockservice_core::ErrorKind;
use lockservice_core::store::BindStore;
use lockservice_pg::PgStore;
use tokio::net::TcpListener;

use crate::support::{Journal, admin, assert_refused, bounded, open, run, server};

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_one_that_takes_writes_is_used_whichever_that_is_at_the_moment() {
    let (Some(one), Some(other)) = tokio::join!(server(&[]), server(&[])) else { return };
    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = silent.local_addr().expect("bound");
    let host = |url: &str| {
        url.split_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a host").0.to_owned()
    };
    let hosts = [silent.to_string(), "127.0.0.1:1".to_owned(), host(one.url()), host(other.url())];
    let url = format!(
        "postgres://lockservice:secret@{}/lockservice?target_session_attrs=read-write",
        hosts.join(",")
    );
    drop(open(&other).await);
    let (mut admin_one, mut admin_other) = tokio::join!(admin(&one), admin(&other));
    let set = |value: &str| {
        format!("alter system set default_transaction_read_only = {value}; select pg_reload_conf()")
    };
    // One statement each: `alter system` takes no transaction.
    let read_only = async |admin: &mut _, value: &str| {
        for statement in set(value).split("; ") {
            run(admin, statement).await;
        }
    };
    let until_read_only =
        "select current_setting('default_transaction_read_only')::bool::int::bigint";
    read_only(&mut admin_other, "on").await;
    crate::support::until(&mut admin_other, until_read_only).await;

    let store = bounded("the first connection", PgStore::connect(&url)).await.expect("a store");
    assert!(
        store.describe().contains(&hosts.join(",")) && !store.describe().contains("secret"),
        "{store:?}"
    );
    let mut journal = Journal::begin(&store).await;
    journal.write(&store).await.expect("a write");
    let lineage = store.applied().await.expect("a response").lineage;

    // None takes writes.
    read_only(&mut admin_one, "on").await;
    crate::support::until(&mut admin_one, until_read_only).await;
    assert_refused(
        bounded("no primary", store.renew(journal.epoch)).await,
        ErrorKind::Unavailable,
        &["takes writes now", "promoted"],
    );
    // The other takes over: it has another history, and no leader.
    run(&mut admin_other, "set default_transaction_read_only = off").await;
    read_only(&mut admin_other, "off").await;
    crate::support::until(
        &mut admin_other,
        "select (setting = 'off')::int::bigint from pg_file_settings where name = \
            'default_transaction_read_only'",
    )
    .await;
    let refused = bounded("the other", async {
        loop {
            match store.renew(journal.epoch).await {
                Err(e) if e.kind() == ErrorKind::Unavailable => {}
                outcome => return outcome,
            }
        }
    })
    .await;
    assert_refused(refused, ErrorKind::Fenced, &[]);
    assert_ne!(store.applied().await.expect("a response").lineage, lineage);
}
