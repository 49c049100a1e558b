//! Connections: garbage, silence, and too many of them.

use std::time::Duration;

use futures::FutureExt as _;
use lockservice::client::Client;
use lockservice::proto;
use lockservice::proto::peer_client::PeerClient;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use super::{alive, channel};
use crate::support::{Served, spec};

#[tokio::test]
async fn garbage_on_the_port_does_no_harm() {
    let served = Served::start(ServerSettings::default()).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff",
    ] {
        let mut socket = tokio::net::TcpStream::connect(&served.address).await.expect("it listens");
        socket.write_all(garbage).await.expect("sent");
        // It hangs up, or sends something and hangs up.
        let mut response = Vec::new();
        let _ = socket.read_to_end(&mut response).await;
    }
    alive(&served).await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_as_they_come_until_one_ends() {
    let served = Served::start(ServerSettings { connections_max: 2, ..Default::default() }).await;
    let first = Client::connect(&served.address).await.expect("a place");
    let second = Client::connect(&served.address).await.expect("a place");
    let mut third = tokio::net::TcpStream::connect(&served.address).await.expect("it listens");
    let closed =
        tokio::time::timeout(Duration::from_secs(10), third.read_to_end(&mut Vec::new())).await;
    // An end or a reset; either is at once.
    let _ = closed.expect("it is closed");
    // Connecting may seem to succeed, for the server accepts before it closes; no call succeeds.
    let served_at = async |address: &str| Client::connect(address).await?.admin().binds().await;
    let error = served_at(&served.address).await.expect_err("no place");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    second.admin().binds().await.expect("those that are there are served");
    drop(first);
    let again = async { while served_at(&served.address).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("there is a place again");
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_almost_nothing_is_closed_and_one_that_is_idle_is_not() {
    let served = Served::start(ServerSettings { hello_ms_max: 100, ..Default::default() }).await;
    let idle = Client::connect(&served.address).await.expect("it responds");
    let session = idle.session(None).await.expect("a session");
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n"] {
        let mut socket = tokio::net::TcpStream::connect(&served.address).await.expect("it listens");
        socket.write_all(said).await.expect("sent");
        let closed =
            tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut Vec::new()))
                .await;
        let _ = closed.expect("it is closed");
    }
    session.lock(spec("alice")).await.expect("it lives").unlock().await.expect("acknowledged");
    idle.admin().binds().await.expect("it lives");
}

/// Not even one that knows everything that the node itself knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cannot_act_as_the_node_of_an_exclusive_store() {
    let served = Served::start(ServerSettings::default()).await;
    let session = Client::connect(&served.address)
        .await
        .expect("it listens")
        .session(None)
        .await
        .expect("room");
    let lock = session.lock(spec("k")).await.expect("free");
    let service = served.host.current();
    let me = proto::IncarnationRef { service: service.id().get(), nonce: service.nonce().get() };
    let mut wire = PeerClient::new(channel(&served).await);
    let txns = vec![lock.txn().id().expect("granted").to_string()];
    let (group, table) = ("default".to_owned(), "mine".to_owned());
    let bind = lock.bind();
    let refused = [
        wire.register(proto::RegisterRequest {
            node: service.node().to_string(),
            nonce: 1,
            address: "thief:1".to_owned(),
            replaces: Some(me),
        })
        .await
        .expect_err("resume"),
        wire.keepalive(proto::KeepaliveRequest {
            incarnation: Some(me),
            observed: Some(proto::Progress { epoch: 9, write: 1, high_water: 0, leader: 0 }),
        })
        .await
        .expect_err("keepalive"),
        wire.resign(proto::ResignRequest { incarnation: Some(me), held: Vec::new() })
            .await
            .expect_err("resign"),
        wire.bind(proto::BindRequest { service: me.service, group, table })
            .await
            .expect_err("bind"),
        wire.reserve_tokens(proto::ReserveTokensRequest {
            service: me.service,
            table_id: bind.id.get(),
            version: bind.version.get(),
        })
        .await
        .expect_err("reserve_tokens"),
        wire.cannot_commit(proto::CannotCommitRequest { txns: txns.clone() })
            .await
            .expect_err("cannot_commit"),
        wire.report_txns(proto::ReportTxnsRequest::default()).await.expect_err("report_txns"),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    }
    // The node has its lease, and the lock its holder.
    assert!(service.sealed().now_or_never().is_none());
    lock.unlock().await.expect("still held");
}
