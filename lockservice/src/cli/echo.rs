//! A bare gRPC stream that sends back what it gets: what `bench` compares with.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use lockservice_core::{Error, ErrorKind, Result};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::proto::{ClientFrame, ClientOp, LockOp, TxnRef, client_op};

const PATH: &str = "/lockservice.bench.Echo/Echo";

/// A server, and one stream to it.
#[derive(Debug)]
pub(super) struct Echo {
    send: mpsc::Sender<ClientFrame>,
    callers: Vec<parking_lot::Mutex<Option<mpsc::Receiver<ClientOp>>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// One caller of an [`Echo`].
#[derive(Debug)]
pub(super) struct Caller {
    number: u32,
    send: mpsc::Sender<ClientFrame>,
    receive: mpsc::Receiver<ClientOp>,
}

impl Echo {
    /// Starts a server on loopback and opens a stream that `callers` share.
    pub(super) async fn start(callers: u32) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let server = tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            // If it ends, so does the stream, and the callers say so.
            let _ = tonic::transport::Server::builder()
                .add_service(EchoServer)
                .serve_with_incoming(incoming)
                .await;
        });
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .map_err(failed)?
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(failed)?;
        let (send, frames) = mpsc::channel(callers as usize + 1);
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(failed)?;
        let codec: ProstCodec<ClientFrame, ClientFrame> = ProstCodec::default();
        let request = Request::new(ReceiverStream::new(frames));
        let path = http::uri::PathAndQuery::from_static(PATH);
        let mut responses =
            client.streaming(request, path, codec).await.map_err(failed)?.into_inner();
        let (to, callers): (Vec<_>, Vec<_>) = (0..callers)
            .map(|_| {
                let (to, receive) = mpsc::channel(1);
                (to, parking_lot::Mutex::new(Some(receive)))
            })
            .unzip();
        let reader = tokio::spawn(async move {
            while let Some(Ok(frame)) = responses.next().await {
                for op in frame.ops {
                    if let Some(to) = usize::try_from(op.id).ok().and_then(|id| to.get(id)) {
                        // A caller has one request under way: there is room, unless it has gone.
                        let _ = to.try_send(op);
                    }
                }
            }
        });
        Ok(Self { send, callers, tasks: [server, reader] })
    }

    /// Takes the caller of this number. Fails if it was taken before.
    pub(super) fn caller(self: &Arc<Self>, number: u32) -> Result<Caller> {
        let receive = self.callers.get(number as usize).and_then(|caller| caller.lock().take());
        let receive = receive
            .ok_or_else(|| Error::new(ErrorKind::Internal, "an echo caller was taken twice"))?;
        Ok(Caller { number, send: self.send.clone(), receive })
    }
}

impl Caller {
    /// Sends a frame as large as a lock request, and waits for it to come back.
    pub(super) async fn round_trip(&mut self) -> Result<()> {
        let lock = LockOp {
            txn: Some(TxnRef { number: 1_000, sequence: 1, ..TxnRef::default() }),
            group: "default".to_owned(),
            table: "bench".to_owned(),
            rows: vec![vec![b'0'; 16].into()],
            ..LockOp::default()
        };
        let op = ClientOp { id: self.number.into(), op: Some(client_op::Op::Lock(lock)) };
        let gone =
            || Error::new(ErrorKind::Unavailable, "the echo stream ended: run the benchmark again");
        self.send.send(ClientFrame { ops: vec![op] }).await.map_err(|_| gone())?;
        self.receive.recv().await.map(drop).ok_or_else(gone)
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, "cannot start the echo to compare with").with_source(error)
}

#[derive(Clone, Debug)]
struct EchoServer;

impl NamedService for EchoServer {
    const NAME: &'static str = "lockservice.bench.Echo";
}

impl Service<http::Request<tonic::body::Body>> for EchoServer {
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

struct SendBack;

impl StreamingService<ClientFrame> for SendBack {
    type Response = ClientFrame;
    type ResponseStream = BoxStream<'static, Result<ClientFrame, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<ClientFrame>>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner().boxed())) })
    }
}
