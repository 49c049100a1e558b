//! Access to the store: passwords, permissions, TLS, ready clients, foreign keys, and servers that
//! are none.

use std::sync::Arc;
use std::time::Duration;

use integration::containers::{Redis, RedisOptions};
use integration::within;
use lockservice_core::store::{Acquired, BindStore, Leadership, Op};
use lockservice_core::{Error, ErrorKind, ServiceId, WriteNumber};
use lockservice_redis::{RedisConfig, RedisStore, redis as driver};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::{Leader, TTL, ask, bounded, candidate, open, table};

async fn refused(url: &str) -> Error {
    let error = bounded(RedisStore::connect(url)).await.expect_err("it cannot be used");
    assert!(!format!("{error:?} {error}").contains("hidden"), "{error:?}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_or_missing_password_and_a_missing_permission_are_named_and_no_secret_is() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let host = redis.url().trim_start_matches("redis://").trim_end_matches('/').to_owned();
    for rule in [
        "on >hidden ~* &* +@all -info",
        "on >hidden ~other &* +@all",
        "on >hidden ~* resetchannels +@all -config",
    ] {
        let () = ask(redis.url(), &format!("ACL SETUSER poor reset {rule}")).await;
        if rule.contains("config") {
            // Neither CONFIG nor the channel is needed.
            let store = open(&format!("redis://poor:hidden@{host}")).await;
            let leader = Leader::of(&store).await;
            bounded(store.resign(leader.epoch)).await.expect("resigned");
            assert!(!format!("{store:?} {}", store.describe()).contains("hidden"));
            continue;
        }
        let error = refused(&format!("redis://poor:hidden@{host}")).await;
        assert_eq!(error.kind(), ErrorKind::StoreUnusable, "{error:?}");
        assert!(error.to_string().contains("permission"), "{error}");
    }
    let error = refused(&format!("redis://poor:hiddener@{host}")).await;
    assert_eq!(error.kind(), ErrorKind::StoreUnusable, "{error:?}");
    assert!(error.to_string().contains("password"), "{error}");
    let () = ask(redis.url(), "CONFIG SET requirepass hidden").await;
    let error = refused(redis.url()).await;
    assert_eq!(error.kind(), ErrorKind::StoreUnusable, "{error:?}");
    assert!(error.to_string().contains("password"), "{error}");
    open(&format!("redis://:hidden@{host}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_somebody_else_or_of_a_newer_version_is_left_alone() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let key = "{lockservice:default}";
    for (command, kind) in [
        (format!("SET {key} x"), ErrorKind::StoreUnusable),
        (format!("HSET {key} a b"), ErrorKind::StoreCorrupt),
        (format!("HSET {key} format 2 new thing"), ErrorKind::StoreNewer),
        (format!("HSET {key} format 1 head/epoch x"), ErrorKind::StoreCorrupt),
    ] {
        let _: driver::Value = ask(redis.url(), &format!("DEL {key}")).await;
        let _: driver::Value = ask(redis.url(), &command).await;
        let before: Vec<u8> = ask(redis.url(), &format!("DUMP {key}")).await;
        let error = refused(redis.url()).await;
        assert_eq!(error.kind(), kind, "{error:?}");
        assert_eq!(ask::<Vec<u8>>(redis.url(), &format!("DUMP {key}")).await, before);
    }
    open(&format!("{}?name=other", redis.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_respond_or_is_no_redis_is_reported_in_time() {
    let unserved = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = unserved.local_addr().expect("an address");
    let garbage = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let talker = garbage.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = garbage.accept().await {
            // An error means that the other side has gone.
            let _ = tokio::io::AsyncWriteExt::write_all(
                &mut stream,
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
            )
            .await;
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let refuses = closed.local_addr().expect("an address");
    drop(closed);
    for address in [silent, talker, refuses] {
        for url in [
            format!("redis://:hidden@{address}"),
            format!("redis-sentinel://{address}/m"),
            format!("redis-cluster://:hidden@{address}"),
        ] {
            let error = refused(&url).await;
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{url}: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_client_serves_and_a_resignation_is_observed_at_once() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let client = driver::Client::open(redis.url()).expect("a URL");
    let config = RedisConfig { name: "shared".to_owned(), ..RedisConfig::default() };
    let leads =
        bounded(RedisStore::with_client(client.clone(), config.clone())).await.expect("it opens");
    let waits = Arc::new(bounded(RedisStore::with_client(client, config)).await.expect("it opens"));
    let leader = Leader::of(&leads).await;
    let poll = Duration::from_secs(40);
    let begin = Instant::now();
    let waiting = Arc::clone(&waits);
    let observed = tokio::spawn(async move { waiting.wait_for_change(poll).await });
    within("the subscription", async {
        while ask::<(String, u32)>(redis.url(), "PUBSUB NUMSUB {lockservice:shared}:leader").await.1
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    bounded(leads.resign(leader.epoch)).await.expect("resigned");
    within("the news", observed).await.expect("no panic").expect("heard");
    assert!(begin.elapsed() < poll / 2, "{:?}", begin.elapsed());
    let response =
        bounded(waits.acquire_leadership(&candidate("next"), TTL)).await.expect("a response");
    assert!(matches!(response, Leadership::Acquired(Acquired { clean: true, .. })), "{response:?}");
    // The news of its own acquisition ends one wait; then nothing happens, and the poll does.
    let begin = Instant::now();
    for _ in 0..3 {
        waits.wait_for_change(Duration::from_millis(200)).await.expect("polled");
    }
    assert!(begin.elapsed() >= Duration::from_millis(400), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_only_the_right_authority_is_trusted() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let signed =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let (certificate, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
    for (file, content) in [("cert.pem", &certificate), ("key.pem", &key)] {
        let (status, output) = redis
            .exec(["sh", "-c", &format!("umask 022; printf %s '{content}' > /data/{file}")])
            .await;
        assert_eq!(status, 0, "{output}");
    }
    let switch = "CONFIG SET tls-cert-file /data/cert.pem tls-key-file /data/key.pem \
     tls-ca-cert-file /data/cert.pem \
                  tls-auth-clients no port 0 tls-port 6379";
    let () = ask(redis.url(), switch).await;
    let folder = tempfile::tempdir().expect("a folder");
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, &certificate).expect("written");
    let url = redis.url().replace("redis://", "rediss://");
    let store = open(&format!("{url}?ca={}", authority.display())).await;
    Leader::of(&store).await.write().await.expect("a write");
    let error = refused(&url).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_delete_is_refused_before_anything_is_written() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let store = open(redis.url()).await;
    let leader = Leader::of(&store).await;
    let () = ask(redis.url(), "ACL SETUSER default -hdel").await;
    let batch = vec![Op::PutTable(table(1)), Op::RemoveService(ServiceId::new(7))];
    let error = bounded(store.write(leader.epoch, WriteNumber::FIRST, &batch))
        .await
        .expect_err("it may not delete");
    assert_eq!(error.kind(), ErrorKind::StoreUnusable, "{error:?}");
    let () = ask(redis.url(), "ACL SETUSER default +hdel").await;
    assert_eq!(
        store.applied().await.expect("a response").number.get(),
        0,
        "nothing of it is there"
    );
    assert!(store.load().await.expect("a response").tables.is_empty(), "nothing of it is there");
    store.write(leader.epoch, WriteNumber::FIRST, &batch).await.expect("it may now");
}
