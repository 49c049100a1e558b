//! The contract of a store, and the cost of a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use integration::containers::Postgres;
use integration::within;
use lockservice_core::WriteNumber;
use lockservice_core::store::{BindStore, Leadership, Op};
use lockservice_core::testing::{StoreFixture, fault_suite, store_suite};
use lockservice_pg::sqlx::postgres::{PgPoolOptions, PgSslMode};
use lockservice_pg::{PgConfig, PgStore, SchemaName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{TTL, admin, candidate, config, count, lead, open, run, server, table};

struct Site {
    config: PgConfig,
    pooled: bool,
}

#[async_trait]
impl StoreFixture for Site {
    async fn open(&self) -> Arc<dyn BindStore> {
        let config = self.config.clone();
        let opened = if self.pooled {
            let pool =
                PgPoolOptions::new().max_connections(2).connect_lazy_with(config.connect.clone());
            PgStore::with_pool(pool, config).await
        } else {
            PgStore::connect_with(config).await
        };
        Arc::new(opened.expect("a store in a schema of its own"))
    }
}

async fn suite(server: &Postgres, pooled: bool) {
    let made = AtomicUsize::new(0);
    store_suite(|| {
        let schema = SchemaName::new(&format!("site_{}", made.fetch_add(1, Ordering::Relaxed)))
            .expect("a name");
        let config = PgConfig { schema, ..config(server) };
        async move { Box::new(Site { config, pooled }) as Box<dyn StoreFixture> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_of_a_store() {
    let Some(server) = server(&[]).await else { return };
    suite(&server, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allocator_on_it_survives_lost_late_and_doubled_responses() {
    let Some(server) = server(&[]).await else { return };
    let made = AtomicUsize::new(0);
    let site = || {
        let schema = SchemaName::new(&format!("fault_{}", made.fetch_add(1, Ordering::Relaxed)))
            .expect("a name");
        let config = PgConfig { schema, ..config(&server) };
        async move { Box::new(Site { config, pooled: false }) as Box<dyn StoreFixture> }
    };
    Box::pin(fault_suite(site, 0..10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_through_a_ready_pool_and_leaves_the_pool_its_connections() {
    let Some(server) = server(&[]).await else { return };
    suite(&server, true).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(server.url()).await.expect("a pool");
    let store = PgStore::with_pool(pool.clone(), config(&server)).await.expect("a store");
    let epoch = lead(&store).await;
    for number in 1..20 {
        store.write(epoch, WriteNumber::new(number), &vec![]).await.expect("a write");
        drop(
            within("the pool's one connection", pool.acquire()).await.expect("free between calls"),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_acknowledges_before_its_disk_has_it_is_made_to_wait() {
    let Some(server) = server(&[("synchronous_commit", "off")]).await else { return };
    let store = open(&server).await;
    let epoch = lead(&store).await;
    for number in 1..=20 {
        store
            .write(epoch, WriteNumber::new(number), &vec![Op::PutTable(table(number))])
            .await
            .expect("a write");
    }
    // With the writer that would flush it later killed too, only what was flushed is there.
    server.kill().await;
    server.start().await;
    let applied = store.applied().await.expect("a response");
    assert_eq!((applied.epoch, applied.number.get()), (epoch, 20));
}

/// Counts how often the client speaks after it was answered.
async fn counting_proxy(target: String) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (target, counted) = (target.clone(), Arc::clone(&counted));
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.expect("the server");
                let (mut requests, mut replies) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                let mut client_speaks = false;
                loop {
                    let done = tokio::select! {
                        read = client.read(&mut requests) => {
                            let read = read.unwrap_or(0);
                            if read > 0 && !client_speaks {
                                counted.fetch_add(1, Ordering::SeqCst);
                            }
                            client_speaks = true;
                            read == 0 || server.write_all(&requests[..read]).await.is_err()
                        }
                        read = server.read(&mut replies) => {
                            let read = read.unwrap_or(0);
                            client_speaks = false;
                            read == 0 || client.write_all(&replies[..read]).await.is_err()
                        }
                    };
                    if done {
                        return;
                    }
                }
            });
        }
    });
    (port, turns)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_and_a_renewal_are_one_round_trip_each() {
    let Some(server) = server(&[]).await else { return };
    let connect = config(&server).connect;
    let (port, turns) = counting_proxy(format!("127.0.0.1:{}", connect.get_port())).await;
    let config =
        PgConfig { connect: connect.port(port).ssl_mode(PgSslMode::Disable), ..config(&server) };
    let store = PgStore::connect_with(config).await.expect("a store");
    let epoch = lead(&store).await;
    // The first of each kind has its statement prepared.
    store.write(epoch, WriteNumber::FIRST, &vec![Op::PutTable(table(1))]).await.expect("a write");
    store.renew(epoch).await.expect("it leads");
    let before = turns.load(Ordering::SeqCst);
    for number in 2..12 {
        store
            .write(epoch, WriteNumber::new(number), &vec![Op::PutTable(table(number))])
            .await
            .expect("a write");
        store.renew(epoch).await.expect("it leads");
    }
    assert_eq!(turns.load(Ordering::SeqCst) - before, 20);
}

/// L4: the server's clock vouches for the epochs of the past.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_above_the_floor_of_the_servers_clock_also_when_the_store_forgot_everything() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let mut admin = admin(&server).await;
    let floor = "select floor((extract(epoch from now()) - extract(epoch from timestamptz \
        '2026-01-01 00:00:00Z')) / 1024)::bigint";
    let floor = count(&mut admin, floor).await as u64;
    assert!(floor > 0, "it is after 2026");
    let first = lead(&store).await;
    // An empty store may have forgotten some: it leaps over them.
    assert!((floor + 1..floor + 18).contains(&first.get()), "{first} after {floor}");
    run(&mut admin, "delete from lockservice.head").await;
    let Leadership::Held { seen, .. } =
        store.acquire_leadership(&candidate(), TTL).await.expect("a response")
    else {
        panic!("a store that forgot its leader is led by nobody before it was watched")
    };
    assert_eq!(seen.leader, None);
    assert_eq!(
        store.renew(first).await.expect_err("forgotten").kind(),
        lockservice_core::ErrorKind::Fenced
    );
    assert!(lead(&store).await.get() > floor);
}
