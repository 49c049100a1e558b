//! A client that speaks the session stream and keeps no rule of it by itself.

use std::time::Duration;

use lockservice::proto;
use lockservice::proto::client_op::Op;
use lockservice::proto::locks_client::LocksClient;
use lockservice::proto::server_op::Response;
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::cli_support::DEADLINE;

/// How long the server keeps the locks of such a client.
pub(crate) const TTL: Duration = Duration::from_secs(20);

/// A session on one stream.
pub(crate) struct Foreign {
    requests: mpsc::Sender<proto::ClientFrame>,
    responses: Streaming<proto::ServerFrame>,
    notices: Vec<proto::notice::Notice>,
    pub(crate) welcome: proto::Welcome,
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the server responds")
}

impl Foreign {
    /// Opens a session.
    pub(crate) async fn open(address: &str) -> Self {
        Self::hello(address, hello(TTL)).await.expect("a session")
    }

    /// Opens a session with a TTL of its own.
    pub(crate) async fn open_for(address: &str, ttl_ms: u64) -> Self {
        Self::hello(address, hello(Duration::from_millis(ttl_ms))).await.expect("a session")
    }

    /// Comes back to the next process of its server, to claim.
    pub(crate) async fn back(&self, address: &str) -> Result<Self, proto::Error> {
        let (session, service) = (self.welcome.session, self.welcome.service);
        let hello = proto::Hello { session, service, claims: true, ..hello(TTL) };
        Self::hello(address, hello).await
    }

    pub(crate) async fn hello(address: &str, hello: proto::Hello) -> Result<Self, proto::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = within(endpoint.connect()).await.expect("it responds");
        let (requests, frames) = mpsc::channel(1);
        let mut wire = LocksClient::new(channel);
        let responses =
            within(wire.session(ReceiverStream::new(frames))).await.expect("a stream").into_inner();
        let welcome = proto::Welcome::default();
        let mut foreign = Self { requests, responses, notices: Vec::new(), welcome };
        match foreign.ask(Op::Hello(hello)).await {
            Response::Welcome(welcome) => Ok(Self { welcome, ..foreign }),
            Response::Error(error) => Err(error),
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// Sends one operation. Returns its response; notices that come before it are kept.
    pub(crate) async fn ask(&mut self, op: Op) -> Response {
        let ops = vec![proto::ClientOp { id: 7, op: Some(op) }];
        self.requests.send(proto::ClientFrame { ops }).await.expect("the stream lives");
        loop {
            if let Some(response) = self.read().await {
                return response;
            }
        }
    }

    /// Reads one frame.
    async fn read(&mut self) -> Option<Response> {
        let frame = within(self.responses.message()).await.expect("the stream lives");
        let mut found = None;
        for op in frame.expect("the stream lives").ops {
            match op.response {
                Some(Response::Notice(notice)) => self.notices.extend(notice.notice),
                response => found = response,
            }
        }
        found
    }

    /// The next notice that a transaction is lost.
    pub(crate) async fn lost(&mut self) -> proto::TxnLost {
        loop {
            for notice in self.notices.drain(..) {
                if let proto::notice::Notice::TxnLost(lost) = notice {
                    return lost;
                }
            }
            assert!(self.read().await.is_none(), "nothing was requested");
        }
    }

    /// Locks a row, as the operation `sequence` of the transaction `number`. Waits for it.
    pub(crate) async fn lock(
        &mut self,
        operation: (u64, u64),
        table: &str,
        row: &str,
    ) -> Result<proto::Locked, proto::Error> {
        self.lock_with(operation, table, row, proto::WaitPolicy::Wait).await
    }

    /// As [`lock`](Self::lock), without a wait.
    pub(crate) async fn try_lock(
        &mut self,
        operation: (u64, u64),
        table: &str,
        row: &str,
    ) -> Result<proto::Locked, proto::Error> {
        self.lock_with(operation, table, row, proto::WaitPolicy::NoWait).await
    }

    async fn lock_with(
        &mut self,
        (number, sequence): (u64, u64),
        table: &str,
        row: &str,
        wait: proto::WaitPolicy,
    ) -> Result<proto::Locked, proto::Error> {
        let lock = proto::LockOp {
            txn: txn(number, sequence),
            table: table.to_owned(),
            rows: vec![Bytes::copy_from_slice(row.as_bytes())],
            wait: wait.into(),
            ..Default::default()
        };
        match self.ask(Op::Lock(lock)).await {
            Response::Locked(locked) => Ok(locked),
            Response::Error(error) => Err(error),
            other => panic!("no response to a lock: {other:?}"),
        }
    }

    /// Ends a transaction. Returns how much it held.
    pub(crate) async fn end(&mut self, number: u64, sequence: u64) -> u64 {
        let end = proto::EndOp { txn: txn(number, sequence), ..Default::default() };
        match self.ask(Op::End(end)).await {
            Response::Done(done) => done.released,
            other => panic!("no end: {other:?}"),
        }
    }

    /// Makes a claim.
    pub(crate) async fn claim(&mut self, claim: proto::ClaimOp) -> Result<(), proto::Error> {
        match self.ask(Op::Claim(claim)).await {
            Response::Error(error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Has claimed everything. Returns the promise.
    pub(crate) async fn claims_done(&mut self, last_txn: u64) -> u64 {
        match self.ask(Op::ClaimsDone(proto::ClaimsDone { last_txn })).await {
            Response::Promise(promise) => promise.valid_for_ms,
            other => panic!("no promise: {other:?}"),
        }
    }
}

fn hello(ttl: Duration) -> proto::Hello {
    proto::Hello {
        ttl_ms: ttl.as_millis() as u64,
        name: "foreign".to_owned(),
        ..Default::default()
    }
}

fn txn(number: u64, sequence: u64) -> Option<proto::TxnRef> {
    Some(proto::TxnRef { number, sequence, ..Default::default() })
}

/// The claim of a row that was granted to the first operation of the transaction `number`.
pub(crate) fn claim_of(number: u64, locked: &proto::Locked, row: &'static str) -> proto::ClaimOp {
    let bind = locked.bind.as_ref().expect("a grant has a bind");
    let locks = proto::HeldLocks {
        group: bind.group.clone(),
        table: bind.table.clone(),
        version: bind.version,
        token: locked.token,
        mode: proto::LockMode::Exclusive.into(),
        rows: vec![Bytes::from(row)],
        ranges: Vec::new(),
    };
    proto::ClaimOp {
        txn: number,
        id: locked.txn.clone(),
        label: String::new(),
        next_sequence: 2,
        locks: vec![locks],
    }
}
