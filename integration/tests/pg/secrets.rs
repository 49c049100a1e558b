//! Passwords stay out of everything that people read, and TLS is TLS.

use std::io::Write;
use std::sync::{Arc, Mutex};

use integration::containers::{Postgres, PostgresOptions};
use lockservice_core::store::BindStore;
use lockservice_core::{ErrorKind, WriteNumber};
use lockservice_pg::sqlx::postgres::PgPoolOptions;
use lockservice_pg::{PgConfig, PgStore};
use tracing_subscriber::util::SubscriberInitExt;

use crate::support::{Journal, assert_refused, config, server};

const SECRET: &str = "tongue-twister";

/// Everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// One thread: the subscriber is the thread's.
#[tokio::test]
async fn a_password_is_never_shown() {
    let Some(server) = server(&[]).await else { return };
    let mut admin = crate::support::admin(&server).await;
    crate::support::run(
        &mut admin,
        &format!("create role node login superuser password '{SECRET}'"),
    )
    .await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone());
    let _logged = subscriber.set_default();
    let mut shown = Vec::new();

    let wrong = server.url().replace("secret", SECRET);
    assert!(wrong.contains(SECRET));
    let refused = PgStore::connect(&wrong).await;
    shown.push(format!("{refused:?}"));
    assert_refused(refused, ErrorKind::StoreUnusable, &["28P01 invalid_password", "pg_hba.conf"]);

    let good = wrong.replace("lockservice:", "node:");
    let config = PgConfig::from_url(&good).expect("a URL");
    shown.push(format!("{config:?}"));
    let pool = PgPoolOptions::new().connect_lazy_with(config.connect.clone());
    for store in [PgStore::connect(&good).await, PgStore::with_pool(pool, config.clone()).await] {
        let store = store.expect("a store");
        shown.push(format!("{store:?} {}", store.describe()));
        let journal = Journal::begin(&store).await;
        shown
            .push(format!("{:?}", store.write(journal.epoch, WriteNumber::new(99), &vec![]).await));
        store.wait_for_change(std::time::Duration::from_millis(200)).await.expect("it can tell");
        crate::support::run(
            &mut admin,
            "delete from lockservice.head; delete from lockservice.tables",
        )
        .await;
    }
    server.stop().await;
    shown.push(format!("{:?}", PgStore::connect(&good).await));
    shown.push(String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned());
    assert!(shown.last().is_some_and(|log| log.contains("migrated")), "something was logged");
    for text in shown {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_and_a_server_of_another_authority_is_refused() {
    let options = || PostgresOptions { tls: true, ..PostgresOptions::default() };
    let (Some(server), Some(other)) =
        tokio::join!(Postgres::start(options()), Postgres::start(options()))
    else {
        return;
    };
    let store = PgStore::connect(&server.tls_url()).await.expect("a store");
    Journal::begin(&store).await.check(&store).await;
    let mut admin = crate::support::admin(&server).await;
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl \
        and application_name = 'lockservice'";
    assert!(crate::support::count(&mut admin, encrypted).await > 0);
    let stranger =
        format!("{}?sslmode=verify-full&sslrootcert={}", server.url(), other.authority().display());
    assert_refused(PgStore::connect(&stranger).await, ErrorKind::StoreUnusable, &["certificates"]);
    let plain = crate::support::server(&[]).await.expect("as above");
    let insists = format!("{}?sslmode=require", plain.url());
    assert_refused(PgStore::connect(&insists).await, ErrorKind::StoreUnusable, &["sslmode"]);
    drop(PgStore::connect_with(config(&plain)).await.expect("without TLS"));
}
