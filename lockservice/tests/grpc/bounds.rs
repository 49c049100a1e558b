//! The limits on open and half sent calls, so that no address takes all memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::support::Served;
use crate::unary::{Caller, WAIT};
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{Future, FutureExt as _};
use http_body::Frame;
use lockservice::convert::from_status;
use lockservice::proto;
use lockservice::server::ServerSettings;
use lockservice_core::ErrorKind;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::{Service as _, http};
use tonic::transport::Channel;
use tonic::{Code, Status};

const KIB: usize = 1 << 10;

/// The first bytes of a request that never goes on.
struct UnendingBody(Option<Bytes>);

impl http_body::Body for UnendingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

/// Calls `path` with the beginning of a message of `length` bytes, and returns the status.
async fn begin(mut channel: Channel, path: &str, length: usize) -> Status {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(length).expect("small").to_be_bytes());
    bytes.resize(KIB, 0);
    let body = Body::new(UnendingBody(Some(bytes.into())));
    let request = http::Request::post(format!("http://server{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .expect("a request");
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.expect("it is connected");
    let response = channel.call(request).await.expect("it is answered");
    Status::from_header_map(response.headers()).expect("a call that failed")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT, future).await.expect("it ends")
}

#[tokio::test]
async fn messages_that_never_arrive_whole_take_no_more_memory_than_their_address_may() {
    let settings =
        ServerSettings { kept_bytes_per_client_max: 256 * KIB, ..ServerSettings::default() };
    let served = Served::start(settings).await;
    // Two connections of one address.
    let (mut one, two) = (Caller::new(&served).await, Caller::new(&served).await);
    let txn = one.begin().await;
    one.lock(&txn, b"a").await.expect("free");
    let calls = (0..8).map(|n| {
        let channel = if n < 4 { &one } else { &two }.channel.clone();
        begin(channel, "/lockservice.v1.Locks/Lock", 64 * KIB)
    });
    let mut calls: FuturesUnordered<_> = calls.collect();
    for _ in 0..4 {
        let refused = within(calls.next()).await.expect("those without room are answered");
        assert_eq!(from_status(&refused).kind(), ErrorKind::ResourceExhausted);
        assert!(refused.message().contains("of the address 127.0.0.1"), "{refused:?}");
    }
    assert!(calls.next().now_or_never().is_none(), "four have room");
    let large = || vec![Bytes::from(vec![7; 1_000]); 100];
    let refused = one.lock_rows(&txn, large()).await.expect_err("there is no room");
    assert_eq!(from_status(&refused).kind(), ErrorKind::ResourceExhausted);
    assert_eq!(one.end(&txn).await.expect("a release is never refused").released, 1);
    // The memory of the messages is returned with their calls.
    drop(calls);
    let txn = one.begin().await;
    let again = async { while one.lock_rows(&txn, large()).await.is_err() {} };
    within(again).await;
}

#[tokio::test]
async fn a_session_stream_without_room_for_its_frame_learns_why_it_ends() {
    let settings =
        ServerSettings { kept_bytes_per_connection_max: 64 * KIB, ..ServerSettings::default() };
    let served = Served::start(settings).await;
    let mut caller = Caller::new(&served).await;
    let lock =
        proto::LockOp { rows: vec![Bytes::from(vec![7; 1_000]); 100], ..proto::LockOp::default() };
    let op = proto::ClientOp { id: 1, op: Some(proto::client_op::Op::Lock(lock)) };
    let frames = tokio_stream::once(proto::ClientFrame { ops: vec![op] });
    let mut responses = caller.wire.session(frames).await.expect("it begins").into_inner();
    let refused = within(responses.message()).await.expect_err("there is no room");
    assert_eq!(from_status(&refused).kind(), ErrorKind::ResourceExhausted);
    assert!(refused.message().contains("of one connection"), "{refused:?}");
}

#[tokio::test]
async fn calls_that_wait_are_bounded_and_a_release_is_let_in_beside_them() {
    let settings = ServerSettings { calls_per_client_max: 2, ..ServerSettings::default() };
    let served = Served::start(settings).await;
    let mut caller = Caller::new(&served).await;
    let holder = caller.begin().await;
    caller.lock(&holder, b"a").await.expect("free");
    caller.lock(&holder, b"b").await.expect("free");
    let txns = [caller.begin().await, caller.begin().await];
    let other = caller.begin().await;
    // On one connection calls arrive in the order in which they are made.
    let mut waiting: Vec<_> = txns
        .iter()
        .zip([b"a", b"b"])
        .map(|(txn, row)| {
            let (mut caller, txn) = (caller.clone(), txn.clone());
            async move { caller.lock(&txn, row).await }.boxed()
        })
        .collect();
    assert!(waiting.iter_mut().all(|call| call.now_or_never().is_none()));
    let refused = within(caller.lock(&other, b"c")).await.expect_err("two are open");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("open calls of the address 127.0.0.1"), "{refused:?}");
    assert_eq!(within(caller.end(&holder)).await.expect("a release is let in").released, 2);
    for call in waiting {
        within(call).await.expect("in turn");
    }
    within(caller.lock(&other, b"c")).await.expect("there is room again");
}
