//! Session streams: how many there may be, how often one is replaced, and what renews.

use std::time::Duration;

use crate::fake::FakeServer;
use crate::support::{Served, row, spec, table};
use lockservice::client::Client;
use lockservice::proto;
use lockservice::server::ServerSettings;
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::{Error, ErrorKind, LockItem};

/// The number of streams that are welcomed, and end at once.
const WELCOMED: u64 = 8;

#[tokio::test]
async fn an_operation_that_is_refused_renews_too() {
    let mut server = FakeServer::start().await;
    let client = Client::connect(&server.address).await.expect("it listens");
    let opening = tokio::spawn(async move { client.session(None).await });
    let mut stream = server.stream().await;
    stream.hello().await;
    stream.welcome(proto::Welcome::default(), 2_000);
    let session = opening.await.expect("no panic").expect("welcomed");
    let left = || session.deadline().remaining(SystemClock.now());
    assert!(left() < Duration::from_secs(2));
    let refusing = async {
        let (id, _) = stream.next_op().await;
        stream.fail_with_promise(id, &Error::new(ErrorKind::Conflict, "held"), 60_000);
    };
    let (refused, ()) = tokio::join!(session.lock(spec("k")), refusing);
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::Conflict);
    assert!(left() > Duration::from_secs(30), "the response came with a promise: {:?}", left());
}

#[tokio::test]
async fn a_stream_that_is_welcomed_and_ends_is_not_replaced_again_and_again_without_a_pause() {
    let mut server = FakeServer::start().await;
    let address = server.address.clone();
    let mut streams = 0u64;
    let serving = async {
        loop {
            let mut stream = server.stream().await;
            streams += 1;
            if streams <= WELCOMED {
                stream.hello().await;
                stream.welcome(proto::Welcome::default(), 2_000);
            }
        }
    };
    let losing = async {
        let client = Client::connect(&address).await.expect("it listens");
        client.session(None).await.expect("welcomed").lost().await
    };
    // It resumes, and is welcomed, and so renewed, until it is welcomed no more: for 2 s from then.
    tokio::select! {
        () = serving => {}
        _ = losing => {}
    }
    // The pauses are 0, 20 and then up to 40 ms, each shortened by half at most.
    assert!((WELCOMED + 1..120).contains(&streams), "{streams}");
}

#[tokio::test]
async fn more_sessions_than_a_connection_has_streams_are_opened_and_other_calls_go_on() {
    let served = Served::start(ServerSettings::default()).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let mut sessions = Vec::new();
    for _ in 0..1_001 {
        sessions.push(client.session(None).await.expect("a session"));
    }
    let last = sessions.last().expect("many");
    let held = last.lock(spec("alice")).await.expect("free");
    assert_eq!(client.admin().locks(Some(&table())).await.expect("a response").len(), 1);
    held.unlock().await.expect("acknowledged");
}

#[tokio::test]
async fn a_stop_time_that_leaves_no_time_to_work_is_refused_when_the_session_is_opened() {
    let served = Served::start(ServerSettings::default()).await;
    let client = Client::builder()
        .stop_time(Duration::from_secs(60))
        .connect(&served.address)
        .await
        .expect("there");
    let refused = client.session(None).await.expect_err("the lease is shorter");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    assert!(refused.to_string().contains("stop time"), "{refused}");
}

#[tokio::test]
async fn every_lock_response_renews_the_session_so_that_busy_clients_need_no_heartbeats() {
    const TTL: Duration = Duration::from_secs(15);
    // No promise is shorter for the lease.
    let served = Served::start_leased(4 * TTL, ServerSettings::default()).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let began = SystemClock.now();
    let session = client.session(Some(TTL)).await.expect("a session");
    let first = session.deadline();
    let moved = session.watch_deadline();
    let txn = session.txn(Default::default());
    // The deadline moves when that is worth it; the lease renews itself meanwhile.
    let mut n = 0u32;
    while !moved.has_changed().expect("the session is there") {
        n += 1;
        let item: LockItem = row(&format!("row {n}"));
        txn.lock(lockservice_core::service::LockSpec { items: vec![item], ..spec("x") })
            .await
            .expect("free");
    }
    assert!(session.deadline() > first);
    // The first heartbeat is due after a third of the promise.
    assert!(SystemClock.now().since(began) < TTL / 4, "no heartbeat has moved it");
}

#[tokio::test]
async fn one_address_cannot_take_all_sessions_and_one_connection_not_all_of_an_address() {
    let settings = ServerSettings {
        sessions_per_connection_max: 2,
        sessions_per_client_max: 3,
        ..ServerSettings::default()
    };
    let served = Served::start(settings).await;
    let client = || async { Client::connect(&served.address).await.expect("it responds") };
    let (first, second) = (client().await, client().await);
    let held = [first.session(None).await.expect("room"), first.session(None).await.expect("room")];
    let refused = first.session(None).await.expect_err("two are allowed");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.to_string().contains("of one connection"), "{refused}");
    let third = second.session(None).await.expect("room");
    let refused = second.session(None).await.expect_err("three are allowed");
    assert!(refused.to_string().contains("of the address 127.0.0.1"), "{refused}");
    // Its streams go on, and those that it gives up make room.
    third.lock(spec("alice")).await.expect("free").unlock().await.expect("acknowledged");
    for session in held {
        session.close().await.expect("acknowledged");
    }
    drop(second.session(None).await.expect("room again"));
}

#[tokio::test]
async fn waits_of_one_address_are_bounded_over_its_sessions_and_releases_are_not() {
    let settings = ServerSettings { ops_per_client_max: 2, ..ServerSettings::default() };
    let served = Served::start(settings).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let (a, b) =
        (client.session(None).await.expect("room"), client.session(None).await.expect("room"));
    let held = a.lock(spec("alice")).await.expect("free");
    let waiting = [tokio::spawn(wait_in(a.clone())), tokio::spawn(wait_in(b.clone()))];
    while client.admin().waits(None).await.expect("a response").len() < 2 {
        tokio::task::yield_now().await;
    }
    let refused = b.lock(spec("bob")).await.expect_err("two are under way");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.to_string().contains("of the address 127.0.0.1"), "{refused}");
    held.unlock().await.expect("acknowledged");
    for waiting in waiting {
        waiting.await.expect("no panic");
    }
    drop(b.lock(spec("bob")).await.expect("room again"));
}

async fn wait_in(session: lockservice::client::Session) {
    session.lock(spec("alice")).await.expect("in turn").unlock().await.expect("acknowledged");
}

#[tokio::test]
async fn frames_of_clients_that_read_no_responses_count_in_what_their_address_may_keep() {
    let settings = ServerSettings {
        kept_bytes_per_client_max: 256 << 10,
        kept_bytes_per_connection_max: 256 << 10,
        ..ServerSettings::default()
    };
    let served = Served::start(settings).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let session = client.session(None).await.expect("room");
    let rows = (0..200).map(|n| row(&format!("{n:01000}"))).collect();
    session
        .lock(lockservice_core::service::LockSpec { items: rows, ..spec("x") })
        .await
        .expect("it has room")
        .unlock();
    let rows = (0..400).map(|n| row(&format!("{n:01000}"))).collect();
    let too_much = lockservice_core::service::LockSpec { items: rows, ..spec("x") };
    let refused =
        session.lock(too_much).await.expect_err("more than the address may have in memory");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.to_string().contains("bytes of messages"), "{refused}");
    session.lock(spec("alice")).await.expect("the session goes on").unlock();
    // The transaction too, whose refused request uses its number up.
    let txn = session.txn(Default::default());
    txn.lock(spec("bob")).await.expect("free");
    let rows = (0..400).map(|n| row(&format!("{n:01000}"))).collect();
    let too_much = lockservice_core::service::LockSpec { items: rows, ..spec("x") };
    let (refused, held) = futures::join!(txn.lock(too_much), txn.lock(spec("carol")));
    assert_eq!(refused.expect_err("too much").kind(), ErrorKind::ResourceExhausted);
    held.expect("it has its turn");
    txn.end(None).await.expect("acknowledged");
}
