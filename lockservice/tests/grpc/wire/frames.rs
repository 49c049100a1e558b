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

/// The next frame.
async fn frame(raw: &mut Raw) -> proto::ServerFrame {
    raw.responses.message().await.expect("the stream lives").expect("the stream lives")
}

fn unlock(sequence: u64, rows: &[&'static [u8]]) -> Op {
    let rows = rows.iter().map(|row| Bytes::from_static(row)).collect();
    let (txn, table) = (txn(1, sequence), "t".to_owned());
    Op::Unlock(proto::UnlockOp { txn, table, rows, quiet: true, ..Default::default() })
}

fn heartbeat() -> Op {
    Op::Heartbeat(proto::Heartbeat::default())
}

#[tokio::test]
async fn a_quiet_release_has_a_response_only_if_it_fails_and_is_acknowledged_by_its_number() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, welcome) = Raw::greeted(&served).await;
    let both = proto::LockOp {
        rows: vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")],
        ..lock(1, "t", b"")
    };
    assert!(matches!(raw.ask(Op::Lock(both)).await, Some(Response::Locked(_))));
    raw.send(vec![unlock(2, &[b"a"]), unlock(3, &[]), heartbeat()]).await;
    let first = frame(&mut raw).await;
    assert_eq!(first.ops.iter().map(|op| op.id).collect::<Vec<_>>(), [8, 9]);
    assert_eq!(kind(first.ops[0].response.clone()), "invalid_argument");
    assert_eq!(first.quiet_done, 2);
    // A frame without news of them says nothing of them.
    raw.send(vec![heartbeat()]).await;
    assert_eq!(frame(&mut raw).await.quiet_done, 0);
    let (mut other, _) = Raw::greeted(&served).await;
    assert!(matches!(other.ask(Op::Lock(lock(1, "t", b"a"))).await, Some(Response::Locked(_))));

    // On a new stream it is repeated, and has released what it released.
    let mut raw = Raw::open(&served).await;
    let hello =
        proto::Hello { session: welcome.session, service: welcome.service, ..Default::default() };
    raw.ask(Op::Hello(hello)).await;
    let end = proto::EndOp { quiet: true, ..end(1, 4) };
    let again = Op::Lock(lock(1, "t", b"other"));
    raw.send(vec![again, unlock(2, &[b"a"]), Op::End(end.clone()), Op::End(end), heartbeat()])
        .await;
    let second = frame(&mut raw).await;
    assert_eq!(second.ops.iter().map(|op| op.id).collect::<Vec<_>>(), [7, 11]);
    assert_eq!(second.quiet_done, 3);
    let free = lock(2, "t", b"b");
    assert!(matches!(other.ask(Op::Lock(free)).await, Some(Response::Locked(_))));
}

#[tokio::test]
async fn every_frame_of_responses_renews_also_one_without_a_grant() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut raw, welcome) = Raw::greeted(&served).await;
    raw.send(vec![unlock(1, &[])]).await;
    let refused = frame(&mut raw).await;
    assert_eq!(kind(refused.ops[0].response.clone()), "invalid_argument");
    let promised = refused.valid_for_ms;
    assert!(promised > 0 && promised <= welcome.ttl_ms.min(welcome.lease_ms), "{promised}");
}

#[tokio::test]
async fn a_quiet_release_that_waits_for_its_turn_has_a_response_and_holds_up_the_number() {
    let served = Served::start(ServerSettings::default()).await;
    let (mut holder, _) = Raw::greeted(&served).await;
    assert!(matches!(holder.ask(Op::Lock(lock(1, "t", b"a"))).await, Some(Response::Locked(_))));
    let (mut raw, _) = Raw::greeted(&served).await;
    let end = proto::EndOp { quiet: true, ..end(2, 1) };
    raw.send(vec![Op::Lock(lock(1, "t", b"a")), unlock(2, &[b"a"]), Op::End(end), heartbeat()])
        .await;
    let mut next = frame(&mut raw).await;
    while next.ops.iter().all(|op| op.id == 0) {
        next = frame(&mut raw).await;
    }
    assert_eq!((next.ops[0].id, next.quiet_done), (10, 0));
    assert!(matches!(holder.ask(Op::End(super::end(1, 2))).await, Some(Response::Done(_))));
    let (mut ids, mut done) = (Vec::new(), 0);
    while ids.len() < 2 {
        let frame = frame(&mut raw).await;
        ids.extend(frame.ops.iter().map(|op| op.id).filter(|id| *id != 0));
        done = frame.quiet_done;
    }
    assert_eq!((ids, done), (vec![7, 8], 2));
}
