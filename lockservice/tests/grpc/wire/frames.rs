//! The session stream: its frames, and its place.

use std::time::Duration;

use lockservice::convert::from_status;
use lockservice::proto;
use lockservice::proto::client_op::Op;
use lockservice::proto::locks_client::LocksClient;
use lockservice::proto::server_op::Response;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use prost::bytes::Bytes;

use super::{Raw, alive, channel, end, kind, lock, txn};
use crate::support::Served;

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
