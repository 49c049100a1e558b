//! A server, and clients that are not ours: bad requests, garbage, and those that never read.

use std::time::Duration;

use crate::support::{Served, row, spec, table};
use futures::FutureExt as _;
use lockservice::client::Client;
use lockservice::convert::from_status;
use lockservice::proto::client_op::Op;
use lockservice::proto::locks_client::LocksClient;
use lockservice::proto::peer_client::PeerClient;
use lockservice::proto::{self, server_op::Response};
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use lockservice_core::service::LockSpec;
use prost::bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

async fn channel(served: &Served) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).expect("an address");
    // The smallest windows, so that a client that does not read fills them soon.
    let endpoint =
        endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    endpoint.connect().await.expect("the server answers")
}

struct Raw {
    requests: mpsc::Sender<proto::ClientFrame>,
    responses: Streaming<proto::ServerFrame>,
}

impl Raw {
    async fn open(served: &Served) -> Self {
        let (requests, frames) = mpsc::channel(1);
        let mut wire = LocksClient::new(channel(served).await);
        let responses =
            wire.session(ReceiverStream::new(frames)).await.expect("a stream").into_inner();
        Self { requests, responses }
    }

    async fn greeted(served: &Served) -> (Self, proto::Welcome) {
        let mut raw = Self::open(served).await;
        match raw.ask(Op::Hello(proto::Hello::default())).await {
            Some(Response::Welcome(welcome)) => (raw, welcome),
            other => panic!("no welcome: {other:?}"),
        }
    }

    async fn ask(&mut self, op: Op) -> Option<Response> {
        self.send(vec![op]).await;
        self.next().await.into_iter().next().expect("a response").response
    }

    /// The responses of the next frame that has any: notices, which were not requested, are
    /// skipped.
    async fn next(&mut self) -> Vec<proto::ServerOp> {
        loop {
            let frame = self
                .responses
                .message()
                .await
                .expect("the stream lives")
                .expect("the stream lives");
            let responses: Vec<_> = frame.ops.into_iter().filter(|op| op.id != 0).collect();
            if !responses.is_empty() {
                return responses;
            }
        }
    }

    async fn send(&self, ops: Vec<Op>) {
        let ops = (7..).zip(ops).map(|(id, op)| proto::ClientOp { id, op: Some(op) }).collect();
        self.requests.send(proto::ClientFrame { ops }).await.expect("the stream lives");
    }
}

fn txn(number: u64, sequence: u64) -> Option<proto::TxnRef> {
    Some(proto::TxnRef { number, sequence, ..Default::default() })
}

fn lock(sequence: u64, table: &str, row: &[u8]) -> proto::LockOp {
    proto::LockOp {
        txn: txn(1, sequence),
        table: table.to_owned(),
        rows: vec![Bytes::copy_from_slice(row)],
        ..Default::default()
    }
}

fn end(number: u64, sequence: u64) -> proto::EndOp {
    proto::EndOp { txn: txn(number, sequence), commit_timestamp: None }
}

fn kind(response: Option<Response>) -> String {
    match response {
        Some(Response::Error(error)) => error.kind,
        other => panic!("no error: {other:?}"),
    }
}

/// The server still serves others.
async fn alive(served: &Served) {
    let session = Client::connect(&served.address)
        .await
        .expect("it answers")
        .session(None)
        .await
        .expect("a session");
    session.lock(spec("alive")).await.expect("it locks").unlock().await.expect("it unlocks");
}

#[tokio::test]
async fn bad_requests_fail_one_by_one_and_the_transaction_goes_on() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, _) = Raw::greeted(&served).await;
    let included = |key: &'static [u8]| {
        Some(proto::Bound { bound: Some(proto::bound::Bound::Included(Bytes::from_static(key))) })
    };
    let upside_down = proto::KeyRange { start: included(b"b"), end: included(b"a") };
    let half = proto::KeyRange { start: included(b"a"), end: None };
    let bad = [
        lock(1, "t", b""),
        lock(2, "t", &[1; 4097]),
        lock(3, "", b"a"),
        lock(4, "a\nb", b"a"),
        lock(5, &"x".repeat(256), b"a"),
        proto::LockOp { ranges: vec![upside_down], ..lock(6, "t", b"a") },
        proto::LockOp { ranges: vec![half], ..lock(7, "t", b"a") },
        proto::LockOp { mode: 99, ..lock(8, "t", b"a") },
        proto::LockOp { wait: 99, ..lock(9, "t", b"a") },
        proto::LockOp { rows: vec![], ..lock(10, "t", b"a") },
        proto::LockOp { txn: None, ..lock(11, "t", b"a") },
    ];
    for op in bad {
        let shown = format!("{op:?}");
        assert_eq!(kind(raw.ask(Op::Lock(op)).await), "invalid_argument", "{shown}");
    }
    assert_eq!(kind(raw.ask(Op::Hello(proto::Hello::default())).await), "invalid_argument");
    // A refused operation used its number up, and nothing else.
    match raw.ask(Op::Lock(proto::LockOp { ranges: vec![], ..lock(11, "t", b"a") })).await {
        Some(Response::Locked(locked)) => assert!(locked.token > 0 && locked.newly_locked),
        other => panic!("not locked: {other:?}"),
    }
    // Duplicates are harmless.
    let twice = proto::LockOp { rows: vec![Bytes::from_static(b"z"); 2], ..lock(12, "t", b"") };
    assert!(matches!(raw.ask(Op::Lock(twice)).await, Some(Response::Locked(_))));
    assert!(matches!(raw.ask(Op::Goodbye(proto::Goodbye {})).await, Some(Response::Done(_))));
    alive(&served).await;
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_ended() {
    let settings = ServerSettings { hello_ms_max: 100, ..Default::default() };
    let served = Served::start(settings).await;
    let mut rude = Raw::open(&served).await;
    rude.send(vec![Op::Heartbeat(proto::Heartbeat::default())]).await;
    let status = rude.responses.message().await.expect_err("hello comes first");
    assert_eq!(from_status(&status).kind(), ErrorKind::InvalidArgument);
    let mut silent = Raw::open(&served).await;
    let status = silent.responses.message().await.expect_err("it is not waited for for ever");
    assert_eq!(from_status(&status).kind(), ErrorKind::Timeout);
}

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
async fn a_message_that_is_too_large_ends_its_stream_and_not_its_session() {
    let served =
        Served::start(ServerSettings { message_bytes_max: 64 << 10, ..Default::default() }).await;
    let (mut raw, welcome) = Raw::greeted(&served).await;
    assert_eq!(welcome.message_bytes_max, 64 << 10);
    let rows = vec![Bytes::from(vec![1; 1024]); 100];
    raw.send(vec![Op::Lock(proto::LockOp { rows, ..lock(1, "t", b"") })]).await;
    let status = raw.responses.message().await.expect_err("too large");
    assert_eq!(from_status(&status).kind(), ErrorKind::InvalidArgument);
    let mut again = Raw::open(&served).await;
    let hello =
        proto::Hello { session: welcome.session, service: welcome.service, ..Default::default() };
    match again.ask(Op::Hello(hello)).await {
        Some(Response::Welcome(welcome)) => assert!(welcome.resumed),
        other => panic!("not resumed: {other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_blocks_no_other() {
    let served = Served::start(ServerSettings { write_ms_max: 200, ..Default::default() }).await;
    let (mut raw, _) = Raw::greeted(&served).await;
    let frame = proto::ClientFrame {
        ops: (1..=500)
            .map(|id| proto::ClientOp { id, op: Some(Op::Heartbeat(proto::Heartbeat::default())) })
            .collect(),
    };
    // Writes as much as the server takes, and reads nothing; meanwhile others are served.
    while tokio::time::timeout(Duration::from_secs(1), raw.requests.send(frame.clone()))
        .await
        .is_ok()
    {
        alive(&served).await;
    }
    alive(&served).await;
    // Too late: the stream ends after the few responses that were on their way. One that was not
    // cut would go on.
    let drained = async { while let Ok(Some(_)) = raw.responses.message().await {} };
    tokio::time::timeout(Duration::from_secs(10), drained).await.expect("the stream was cut");
}

#[tokio::test]
async fn a_new_stream_takes_the_place_of_the_old_one() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut old, welcome) = Raw::greeted(&served).await;
    let mut new = Raw::open(&served).await;
    let hello =
        proto::Hello { session: welcome.session, service: welcome.service, ..Default::default() };
    assert!(matches!(new.ask(Op::Hello(hello)).await, Some(Response::Welcome(_))));
    let frame = old.responses.message().await.expect("it ends in order").expect("it says why");
    let Some(Response::Notice(notice)) = &frame.ops[0].response else {
        panic!("no notice: {frame:?}")
    };
    assert!(matches!(notice.notice, Some(proto::notice::Notice::Replaced(_))), "{notice:?}");
    assert!(
        old.responses.message().await.is_ok_and(|frame| frame.is_none()),
        "T3: the old one ends"
    );
    assert!(matches!(
        new.ask(Op::Heartbeat(proto::Heartbeat::default())).await,
        Some(Response::Promise(_))
    ));
}

#[tokio::test]
async fn a_session_that_is_unknown_or_of_another_incarnation_is_lost() {
    let served = Served::start(ServerSettings::default()).await;
    let (_raw, welcome) = Raw::greeted(&served).await;
    for (session, service) in [(12_345, welcome.service), (welcome.session, welcome.service + 1)] {
        let mut raw = Raw::open(&served).await;
        let hello = proto::Hello { session, service, ..Default::default() };
        assert_eq!(kind(raw.ask(Op::Hello(hello)).await), "session_lost");
        let mut wire = LocksClient::new(channel(&served).await);
        let status =
            wire.keep_session(proto::SessionRef { session, service }).await.expect_err("unknown");
        assert_eq!(from_status(&status).kind(), ErrorKind::SessionLost);
    }
}

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
    let admin = Client::connect(&served.address).await.expect("it answers").admin();
    let waits = async |n| {
        while admin.waits(None).await.expect("it answers").len() != n {
            tokio::task::yield_now().await;
        }
    };
    let mut other = wire.clone();
    let mut waiting = Box::pin(other.lock(request(1, 1)));
    while (&mut waiting).now_or_never().is_none()
        && admin.waits(None).await.expect("it answers").is_empty()
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
    let client = Client::connect(&served.address).await.expect("it answers");
    let holder = client.session(None).await.expect("a session");
    let held = holder.lock(spec("a")).await.expect("free");
    let mut wire = LocksClient::new(channel(&served).await);
    let hello = proto::Hello { ttl_ms: 1_000, ..Default::default() };
    let welcome = wire.open_session(hello).await.expect("a session").into_inner();
    let session = proto::SessionRef { session: welcome.session, service: welcome.service };
    let txn = new_txn(&mut wire, session).await;
    let spec = lockservice::convert::lock_spec_to_proto(&spec("a"));
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
async fn calls_that_wait_have_their_responses_before_a_goodbye() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut holder, _) = Raw::greeted(&served).await;
    assert!(matches!(holder.ask(Op::Lock(lock(1, "t", b"a"))).await, Some(Response::Locked(_))));
    for _ in 0..20 {
        let (mut raw, _) = Raw::greeted(&served).await;
        raw.send(vec![Op::Lock(lock(1, "t", b"a")), Op::Goodbye(proto::Goodbye {})]).await;
        let mut responses = Vec::new();
        while let Ok(Some(frame)) = raw.responses.message().await {
            responses.extend(frame.ops);
        }
        responses.retain(|op| op.id != 0);
        let [waited, goodbye] = responses.as_slice() else {
            panic!("not two answers: {responses:?}")
        };
        assert_eq!(kind(waited.response.clone()), "session_lost");
        assert!(matches!(goodbye.response, Some(Response::Done(_))), "{goodbye:?}");
    }
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
            .expect("it answers")
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
        client.server_reflection_info(tokio_stream::once(request)).await.expect("it answers");
    let response = responses
        .into_inner()
        .message()
        .await
        .expect("it answers")
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
        older.server_reflection_info(tokio_stream::once(request)).await.expect("it answers");
    let response = responses
        .into_inner()
        .message()
        .await
        .expect("it answers")
        .expect("one answer")
        .message_response;
    let found = v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(
        Default::default(),
    );
    let same =
        response.as_ref().map(std::mem::discriminant) == Some(std::mem::discriminant(&found));
    assert!(same, "no descriptor: {response:?}");
}

#[tokio::test]
async fn many_operations_ride_in_one_frame_and_have_responses_out_of_order() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, _) = Raw::greeted(&served).await;
    let (mut other, _) = Raw::greeted(&served).await;
    assert!(matches!(other.ask(Op::Lock(lock(1, "t", b"a"))).await, Some(Response::Locked(_))));
    let free = proto::LockOp { txn: txn(2, 1), ..lock(1, "t", b"b") };
    raw.send(vec![
        Op::Lock(lock(1, "t", b"a")),
        Op::Lock(free),
        Op::Heartbeat(proto::Heartbeat::default()),
    ])
    .await;
    let mut ids = Vec::new();
    while ids.len() < 2 {
        ids.extend(raw.next().await.iter().map(|op| op.id));
    }
    ids.sort_unstable();
    assert_eq!(ids, [8, 9], "the first one waits, the others do not");
    assert!(matches!(other.ask(Op::End(end(1, 2))).await, Some(Response::Done(_))));
    assert_eq!(raw.next().await[0].id, 7);
    drop(tokio::time::timeout(Duration::ZERO, raw.responses.message()).await);
}

#[tokio::test]
async fn a_frame_of_many_small_operations_has_its_responses_in_frames_of_bounded_size() {
    const OPS: usize = 5_000;
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, _) = Raw::greeted(&served).await;
    raw.send((0..OPS).map(|_| Op::Heartbeat(proto::Heartbeat::default())).collect()).await;
    let mut received = 0;
    while received < OPS {
        let frame =
            raw.responses.message().await.expect("the stream lives").expect("the stream lives");
        assert!(frame.ops.len() <= 1_024, "{} answers in one frame", frame.ops.len());
        received += frame.ops.len();
    }
    assert_eq!(received, OPS);
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
    let idle = Client::connect(&served.address).await.expect("it answers");
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

#[tokio::test]
async fn a_long_list_is_cut_and_says_so() {
    let served = Served::start(ServerSettings { list_lines_max: 2, ..Default::default() }).await;
    let client = Client::connect(&served.address).await.expect("it answers");
    let session = client.session(None).await.expect("a session");
    let mut held = Vec::new();
    for n in 1..=5_usize {
        held.push(session.lock(spec(&format!("row {n}"))).await.expect("free"));
        let locks = client.admin().locks(None).await.expect("it answers");
        assert_eq!((locks.len(), locks.is_cut()), (n.min(2), n > 2));
    }
    assert!(!client.admin().waits(None).await.expect("it answers").is_cut());
}

#[tokio::test]
async fn readers_that_do_not_read_their_lists_keep_no_other_from_a_list() {
    // Far less than the minute that a list may take in all.
    let served =
        Served::start(ServerSettings { write_ms_max: 300, ..ServerSettings::default() }).await;
    let client = Client::connect(&served.address).await.expect("it answers");
    let session = client.session(None).await.expect("a session");
    // More than an unread connection accepts.
    let rows = |from: u32| (from..from + 20_000).map(|n| row(&format!("row {n}"))).collect();
    let held = [
        session.lock(LockSpec::new(table(), rows(0))).await.expect("free"),
        session.lock(LockSpec::new(table(), rows(20_000))).await.expect("free"),
    ];
    let mut unread = Vec::new();
    // As many as there are places.
    for _ in 0..64 {
        let mut wire = proto::admin_client::AdminClient::new(channel(&served).await);
        let list = wire.list_locks(proto::ListLocksRequest::default()).await.expect("it begins");
        unread.push((wire, list));
    }
    let list = tokio::time::timeout(Duration::from_secs(30), client.admin().locks(None)).await;
    assert_eq!(list.expect("it has a place").expect("it answers").len(), 40_000);
    drop((held, unread));
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
        wire.resign(me).await.expect_err("resign"),
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
