//! A server that says what a test wants, stream by stream.

use std::collections::VecDeque;
use std::pin::Pin;

use lockservice::convert::error_to_proto;
use lockservice::proto::client_op::Op;
use lockservice::proto::locks_server::{Locks, LocksServer};
use lockservice::proto::notice::Notice;
use lockservice::proto::server_op::Response as Wire;
use lockservice::proto::{self, ClientFrame, ServerFrame};
use lockservice_core::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

type Frames = Pin<Box<dyn Stream<Item = Result<ServerFrame, Status>> + Send>>;

/// A server whose streams the test serves.
#[derive(Debug)]
pub(crate) struct FakeServer {
    pub(crate) address: String,
    streams: mpsc::UnboundedReceiver<FakeStream>,
}

/// One stream. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct FakeStream {
    requests: Streaming<ClientFrame>,
    responses: mpsc::UnboundedSender<Result<ServerFrame, Status>>,
    /// Operations of the last frame that the test has not taken.
    ops: VecDeque<proto::ClientOp>,
    hello: u64,
}

impl FakeServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (opened, streams) = mpsc::unbounded_channel();
        let server = tonic::transport::Server::builder()
            .add_service(LocksServer::new(Handler(opened)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Self { address, streams }
    }

    /// The next stream of a client.
    pub(crate) async fn stream(&mut self) -> FakeStream {
        self.streams.recv().await.expect("the server runs")
    }
}

impl FakeStream {
    /// The next operation.
    pub(crate) async fn next(&mut self) -> proto::ClientOp {
        loop {
            if let Some(op) = self.ops.pop_front() {
                return op;
            }
            let frame = self.requests.message().await.expect("no error").expect("it goes on");
            self.ops.extend(frame.ops);
        }
    }

    /// The next operation that is no renewal.
    pub(crate) async fn next_op(&mut self) -> (u64, Op) {
        loop {
            let proto::ClientOp { id, op } = self.next().await;
            match op.expect("an operation") {
                Op::Heartbeat(_) => {}
                op => return (id, op),
            }
        }
    }

    /// The greeting.
    pub(crate) async fn hello(&mut self) -> proto::Hello {
        match self.next_op().await {
            (id, Op::Hello(hello)) => {
                self.hello = id;
                hello
            }
            (_, other) => panic!("no greeting: {other:?}"),
        }
    }

    /// Welcomes the client: as process 1 of node-1, unless `welcome` says otherwise.
    pub(crate) fn welcome(&self, welcome: proto::Welcome, promised_ms: u64) {
        let or = |given: u64, default| if given == 0 { default } else { given };
        let node = if welcome.node.is_empty() { "node-1".to_owned() } else { welcome.node.clone() };
        let welcome = proto::Welcome {
            session: 7,
            service: or(welcome.service, 1),
            node,
            ttl_ms: or(welcome.ttl_ms, promised_ms),
            promise: Some(proto::Promise { valid_for_ms: promised_ms }),
            message_bytes_max: or(welcome.message_bytes_max, 1 << 20),
            ops_max: 100,
            txn_ops_max: 64,
            ..welcome
        };
        self.respond(self.hello, Wire::Welcome(welcome));
    }

    /// True if the client has ended the stream without another operation.
    pub(crate) async fn is_over(&mut self) -> bool {
        self.ops.is_empty() && matches!(self.requests.message().await, Ok(None) | Err(_))
    }

    /// Ends the stream.
    pub(crate) fn end(&mut self) {
        self.responses = mpsc::unbounded_channel().0;
    }

    pub(crate) fn respond(&self, id: u64, response: Wire) {
        self.respond_together([(id, response)]);
    }

    /// Responds in one frame.
    pub(crate) fn respond_together(&self, responses: impl IntoIterator<Item = (u64, Wire)>) {
        let op = |(id, response)| proto::ServerOp { id, response: Some(response) };
        let ops = responses.into_iter().map(op).collect();
        let frame = ServerFrame { ops, ..ServerFrame::default() };
        // The client may have gone on to another stream.
        let _ = self.responses.send(Ok(frame));
    }

    pub(crate) fn done(&self, id: u64) {
        self.respond(id, Wire::Done(proto::Done::default()));
    }

    pub(crate) fn promise(&self, id: u64, valid_for_ms: u64) {
        self.respond(id, Wire::Promise(proto::Promise { valid_for_ms }));
    }

    pub(crate) fn fail(&self, id: u64, error: &Error) {
        self.respond(id, Wire::Error(error_to_proto(error)));
    }

    /// Fails an operation, in a frame with this promise.
    pub(crate) fn fail_with_promise(&self, id: u64, error: &Error, valid_for_ms: u64) {
        let op = proto::ServerOp { id, response: Some(Wire::Error(error_to_proto(error))) };
        let frame = ServerFrame { ops: vec![op], valid_for_ms, ..ServerFrame::default() };
        // The client may have gone on to another stream.
        let _ = self.responses.send(Ok(frame));
    }

    pub(crate) fn notice(&self, notice: Notice) {
        self.respond(0, Wire::Notice(proto::Notice { notice: Some(notice) }));
    }
}

/// Hands streams to the test.
#[derive(Debug)]
struct Handler(mpsc::UnboundedSender<FakeStream>);

fn not_asked_for<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not asked for here"))
}

#[tonic::async_trait]
impl Locks for Handler {
    type SessionStream = Frames;

    async fn session(
        &self,
        request: Request<Streaming<ClientFrame>>,
    ) -> Result<Response<Frames>, Status> {
        let (responses, frames) = mpsc::unbounded_channel();
        let requests = request.into_inner();
        let stream = FakeStream { requests, responses, ops: VecDeque::new(), hello: 0 };
        self.0.send(stream).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(frames))))
    }

    async fn open_session(
        &self,
        _: Request<proto::Hello>,
    ) -> Result<Response<proto::Welcome>, Status> {
        not_asked_for()
    }

    async fn begin(
        &self,
        _: Request<proto::BeginTxn>,
    ) -> Result<Response<proto::BeginResponse>, Status> {
        not_asked_for()
    }

    async fn end(&self, _: Request<proto::UnaryEnd>) -> Result<Response<proto::Done>, Status> {
        not_asked_for()
    }

    async fn keep_session(
        &self,
        _: Request<proto::SessionRef>,
    ) -> Result<Response<proto::SessionKept>, Status> {
        not_asked_for()
    }

    async fn close_session(
        &self,
        _: Request<proto::SessionRef>,
    ) -> Result<Response<proto::Done>, Status> {
        Ok(Response::new(proto::Done::default()))
    }

    async fn leave_session(
        &self,
        _: Request<proto::Leaving>,
    ) -> Result<Response<proto::Done>, Status> {
        not_asked_for()
    }

    async fn lock(&self, _: Request<proto::UnaryLock>) -> Result<Response<proto::Locked>, Status> {
        not_asked_for()
    }

    async fn downgrade(
        &self,
        _: Request<proto::UnaryDowngrade>,
    ) -> Result<Response<proto::Done>, Status> {
        not_asked_for()
    }

    async fn set_savepoint(
        &self,
        _: Request<proto::UnarySavepoint>,
    ) -> Result<Response<proto::Savepoint>, Status> {
        not_asked_for()
    }

    async fn roll_back_to(
        &self,
        _: Request<proto::UnaryRollBackTo>,
    ) -> Result<Response<proto::Done>, Status> {
        not_asked_for()
    }

    async fn unlock(
        &self,
        _: Request<proto::UnaryUnlock>,
    ) -> Result<Response<proto::Done>, Status> {
        not_asked_for()
    }
}
