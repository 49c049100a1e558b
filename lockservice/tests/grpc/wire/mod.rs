//! A server, and clients that are not ours: bad requests, garbage, and those that never read.
//!
//! | file | noun |
//! |---|---|
//! | `frames.rs` | the session stream |
//! | `calls.rs` | the unary calls |
//! | `claims.rs` | claims after a restart |
//! | `connections.rs` | connections |
//! | `lists.rs` | lists |
//! | `losses.rs` | transactions that an operator ends |

mod calls;
mod claims;
mod connections;
mod frames;
mod lists;
mod losses;

use lockservice::client::Client;
use lockservice::proto;
use lockservice::proto::client_op::Op;
use lockservice::proto::locks_client::LocksClient;
use lockservice::proto::server_op::Response;
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Served, spec};

async fn channel(served: &Served) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).expect("an address");
    // The smallest windows, so that a client that does not read fills them soon.
    let endpoint =
        endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    endpoint.connect().await.expect("the server responds")
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
    proto::EndOp { txn: txn(number, sequence), ..Default::default() }
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
        .expect("it responds")
        .session(None)
        .await
        .expect("a session");
    session.lock(spec("alive")).await.expect("it locks").unlock().await.expect("it unlocks");
}
