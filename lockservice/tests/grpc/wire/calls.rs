//! The unary calls.

use std::time::Duration;

use futures::FutureExt as _;
use lockservice::client::Client;
use lockservice::convert::from_status;
use lockservice::proto;
use lockservice::proto::client_op::Op;
use lockservice::proto::locks_client::LocksClient;
use lockservice::proto::server_op::Response;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use prost::bytes::Bytes;
use tonic::transport::Channel;

use super::{Raw, channel, end, kind, lock, txn};
use crate::support::{Served, spec};

#[tokio::test]
async fn the_unary_calls_lock_and_a_cancelled_one_stops_waiting() {
    let served = Served::start(ServerSettings::default()).await;
    let mut wire = LocksClient::new(channel(&served).await);
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let welcome =
            wire.open_session(proto::Hello::default()).await.expect("a session").into_inner();
        sessions
            .push(Some(proto::SessionRef { session: welcome.session, service: welcome.service }));
    }
    let request = |session: usize, sequence| proto::UnaryLock {
        session: sessions[session],
        lock: Some(lock(sequence, "t", b"a")),
    };
    let locked = wire.lock(request(0, 1)).await.expect("free").into_inner();
    assert!(locked.token > 0);
    let admin = Client::connect(&served.address).await.expect("it responds").admin();
    let waits = async |n| {
        while admin.waits(None).await.expect("it responds").len() != n {
            tokio::task::yield_now().await;
        }
    };
    let mut other = wire.clone();
    let mut waiting = Box::pin(other.lock(request(1, 1)));
    while (&mut waiting).now_or_never().is_none()
        && admin.waits(None).await.expect("it responds").is_empty()
    {}
    waits(1).await;
    drop(waiting);
    waits(0).await;
    let end = proto::UnaryEnd { session: sessions[0], end: Some(end(1, 2)) };
    assert_eq!(wire.end(end).await.expect("it ends").into_inner().released, 1);
    let nothing = proto::UnaryLock { session: sessions[0], lock: None };
    assert_eq!(
        from_status(&wire.lock(nothing).await.expect_err("bad")).kind(),
        ErrorKind::InvalidArgument
    );
    for session in sessions.into_iter().flatten() {
        wire.close_session(session).await.expect("it closes");
    }
}

/// A transaction of a session that the server numbers.
async fn new_txn(wire: &mut LocksClient<Channel>, session: proto::SessionRef) -> proto::TxnRef {
    let begin = proto::BeginTxn { session: Some(session), ..Default::default() };
    let begin = wire.begin(begin).await.expect("it begins").into_inner();
    proto::TxnRef { number: begin.number, ..Default::default() }
}

#[tokio::test]
async fn a_session_lives_as_long_as_its_open_call() {
    let served = Served::start(ServerSettings::default()).await;
    let client = Client::connect(&served.address).await.expect("it responds");
    let holder = client.session(None).await.expect("a session");
    let held = holder.lock(spec("a")).await.expect("free");
    let mut wire = LocksClient::new(channel(&served).await);
    let hello = proto::Hello { ttl_ms: 1_000, ..Default::default() };
    let welcome = wire.open_session(hello).await.expect("a session").into_inner();
    let session = proto::SessionRef { session: welcome.session, service: welcome.service };
    let txn = new_txn(&mut wire, session).await;
    let spec = lockservice::convert::lock_spec_to_proto(&spec("a"), proto::LockOp::default());
    let lock = proto::UnaryLock {
        session: Some(session),
        lock: Some(proto::LockOp { txn: Some(txn), ..spec }),
    };
    let mut waiting = std::pin::pin!(wire.lock(lock));
    // Twice as long as a silent client's session would last.
    let waits = tokio::time::timeout(Duration::from_millis(2_300), &mut waiting).await;
    assert!(waits.is_err(), "{waits:?}");
    held.release().await.expect("still held");
    waiting.await.expect("its session lives");
}

#[tokio::test]
async fn an_unlock_of_nothing_is_refused_and_a_release_says_how_much_went() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, welcome) = Raw::greeted(&served).await;
    assert_eq!(welcome.txn_ops_max, 256);
    let rows =
        |names: &[&'static str]| names.iter().map(|name| Bytes::from(*name)).collect::<Vec<_>>();
    let three = proto::LockOp { rows: rows(&["a", "b", "c"]), ..lock(1, "t", b"") };
    assert!(matches!(raw.ask(Op::Lock(three)).await, Some(Response::Locked(_))));
    for (sequence, table) in [(2, ""), (3, "t")] {
        let nothing = proto::UnlockOp {
            txn: txn(1, sequence),
            table: table.to_owned(),
            ..Default::default()
        };
        assert_eq!(kind(raw.ask(Op::Unlock(nothing)).await), "invalid_argument");
    }
    let one = proto::UnlockOp {
        txn: txn(1, 4),
        table: "t".to_owned(),
        rows: rows(&["a", "z"]),
        ..Default::default()
    };
    for (op, released) in [(Op::Unlock(one), 1), (Op::End(end(1, 5)), 2)] {
        match raw.ask(op).await {
            Some(Response::Done(done)) => assert_eq!(done.released, released),
            other => panic!("not done: {other:?}"),
        }
    }
    // No time at all is not all the time there is.
    let (mut other, _) = Raw::greeted(&served).await;
    assert!(matches!(other.ask(Op::Lock(lock(1, "t", b"a"))).await, Some(Response::Locked(_))));
    let at_once = proto::LockOp { txn: txn(2, 1), timeout_ms: Some(0), ..lock(1, "t", b"a") };
    assert_eq!(kind(raw.ask(Op::Lock(at_once)).await), "timeout");
}

#[tokio::test]
async fn health_and_reflection_respond() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::{v1, v1alpha};

    let served = Served::start(ServerSettings::default()).await;
    let channel = channel(&served).await;
    for service in ["", "lockservice.v1.Locks"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let health = HealthClient::new(channel.clone())
            .check(request)
            .await
            .expect("it responds")
            .into_inner();
        assert_eq!(
            health.status(),
            tonic_health::pb::health_check_response::ServingStatus::Serving
        );
    }
    let request = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let responses =
        client.server_reflection_info(tokio_stream::once(request)).await.expect("it responds");
    let response = responses
        .into_inner()
        .message()
        .await
        .expect("it responds")
        .expect("one answer")
        .message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        response
    else {
        panic!("no list: {response:?}")
    };
    let mut listed: Vec<_> = list.service.iter().map(|known| known.name.as_str()).collect();
    listed.sort_unstable();
    // An API that is not served here, such as `Peer`, is not listed either.
    let served_here = ["Admin", "Allocator", "Locks"].map(|name| format!("lockservice.v1.{name}"));
    assert_eq!(listed[0], "grpc.health.v1.Health");
    assert_eq!(listed[1..], served_here);

    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "lockservice.v1.Locks".to_owned(),
            ),
        ),
        ..Default::default()
    };
    let mut older = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let responses =
        older.server_reflection_info(tokio_stream::once(request)).await.expect("it responds");
    let response = responses
        .into_inner()
        .message()
        .await
        .expect("it responds")
        .expect("one answer")
        .message_response;
    let found = v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(
        Default::default(),
    );
    let same =
        response.as_ref().map(std::mem::discriminant) == Some(std::mem::discriminant(&found));
    assert!(same, "no descriptor: {response:?}");
}
