//! The echo: a bare gRPC stream that returns each message. It shows the cost of the network and of
//! gRPC.
//!
//! An echo carries the same bytes as the lock request of our side, on one stream that all callers
//! share, as all callers share one session.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use lockservice_core::{Error, ErrorKind, Result, TableRef};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::child::ServerChild;
use super::cpu::ServerProcess;
use super::side::{Caller, Side};
use super::workload::{Want, Workload};
use crate::cli::args::Serves;
use crate::cli::exit::Failure;
use crate::convert::lock_spec_to_proto;
use crate::proto::{ClientFrame, ClientOp, LockOp, TxnRef, client_op};

const PATH: &str = "/lockservice.bench.Echo/Echo";

/// The side: a server that was started for this, and a connection to it.
pub(super) struct Echo {
    channel: Channel,
    child: ServerChild,
    process: ServerProcess,
    table: TableRef,
}

impl Echo {
    /// Starts a server and connects to it.
    pub(super) async fn open() -> Result<Self, Failure> {
        let child = ServerChild::start(Serves::Echo).await?;
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", child.address))
            .map_err(failed)?
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(failed)?;
        let process = ServerProcess::One(child.pid);
        Ok(Self { channel, child, process, table: TableRef::new("default", "bench")? })
    }
}

#[async_trait]
impl Side for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn server(&self) -> &ServerProcess {
        &self.process
    }

    async fn callers(&self, _: Workload, count: u32) -> Result<Vec<Box<dyn Caller>>> {
        let (send, frames) = mpsc::channel(count as usize + 1);
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(failed)?;
        let codec: ProstCodec<ClientFrame, ClientFrame> = ProstCodec::default();
        let request = Request::new(ReceiverStream::new(frames));
        let path = http::uri::PathAndQuery::from_static(PATH);
        let mut echoes = client.streaming(request, path, codec).await.map_err(failed)?.into_inner();
        let (to, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(1)).unzip();
        // Ends with the stream, when the last caller has gone.
        tokio::spawn(async move {
            while let Some(Ok(frame)) = echoes.next().await {
                for op in frame.ops {
                    if let Some(to) = usize::try_from(op.id).ok().and_then(|id| to.get(id)) {
                        let to: &mpsc::Sender<ClientOp> = to;
                        // A caller has one request in flight: there is room, unless the caller has
                        // gone.
                        let _ = to.try_send(op);
                    }
                }
            }
        });
        let caller = |(number, receive)| -> Box<dyn Caller> {
            Box::new(EchoCaller { number, send: send.clone(), receive, table: self.table.clone() })
        };
        Ok((0..).zip(receivers).map(caller).collect())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.child.stop().await;
        Ok(())
    }
}

struct EchoCaller {
    number: u64,
    send: mpsc::Sender<ClientFrame>,
    receive: mpsc::Receiver<ClientOp>,
    table: TableRef,
}

#[async_trait]
impl Caller for EchoCaller {
    async fn cycle(&mut self, want: &Want) -> Result<()> {
        let op = request(self.number, want, &self.table)?;
        let gone = || Error::new(ErrorKind::Unavailable, "the echo's stream ended");
        self.send.send(ClientFrame { ops: vec![op] }).await.map_err(|_| gone())?;
        self.receive.recv().await.map(drop).ok_or_else(gone)
    }
}

/// The lock request of our side, with the number of its caller.
pub(super) fn request(caller: u64, want: &Want, table: &TableRef) -> Result<ClientOp> {
    let mut lock = lock_spec_to_proto(&want.spec(table)?, LockOp::default());
    lock.txn = Some(TxnRef { number: 1_000, sequence: 1, ..TxnRef::default() });
    Ok(ClientOp { id: caller, op: Some(client_op::Op::Lock(lock)) })
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, "cannot reach the echo to compare with").with_source(error)
}

/// The server, on a free port of loopback. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct EchoServer {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl EchoServer {
    /// Starts it.
    pub(super) async fn start() -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let task = tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            // If the server ends, the streams end too, and the callers fail.
            let _ = tonic::transport::Server::builder()
                .add_service(SendBack)
                .serve_with_incoming(incoming)
                .await;
        });
        Ok(Self { address, task })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns each message.
#[derive(Clone, Debug)]
struct SendBack;

impl NamedService for SendBack {
    const NAME: &'static str = "lockservice.bench.Echo";
}

impl Service<http::Request<tonic::body::Body>> for SendBack {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let codec: ProstCodec<ClientFrame, ClientFrame> = ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec).streaming(SendBack, request).await)
        })
    }
}

impl StreamingService<ClientFrame> for SendBack {
    type Response = ClientFrame;
    type ResponseStream = BoxStream<'static, Result<ClientFrame, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<ClientFrame>>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner().boxed())) })
    }
}
