//! A client that takes what it can get: sessions, waits, giant messages, connections, lists, all as
//! fast as it can.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tower_service::Service;

use crate::cli::args::BenchFloodArgs;
use crate::cli::exit::{self, Failure};
use crate::proto::admin_client::AdminClient;
use crate::proto::client_op::Op;
use crate::proto::locks_client::LocksClient;
use crate::proto::server_op::Response;
use crate::proto::{self, ClientFrame, ClientOp};

/// Where the flood comes from: another address of loopback than that of usual clients.
const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// The TTL of the sessions: the shortest.
const TTL_MS: u64 = 1_000;
/// Connections, each with a stream of one kind, and with calls of all kinds.
const CONNECTIONS: usize = 6;
/// Rows of a giant message: the most that a server accepts.
const GIANT_ROWS: usize = 20_000;
/// The length of a key in a giant message.
const GIANT_KEY_BYTES: usize = 150;
/// Operations of a message of many.
const MANY_OPS: u64 = 4_000;
/// Lock calls in one frame that wait.
const WAITS: u64 = 100;

/// The frame of a stream whose next operation has this number. Giant ones have these rows.
type Frames = fn(u64, &[Bytes]) -> ClientFrame;

/// What was done. `Relaxed`: only the numbers count.
#[derive(Debug, Default)]
struct Done {
    calls: AtomicU64,
    /// At a limit.
    refused: AtomicU64,
    /// Notified of the first refusal at a limit.
    at_limit: Notify,
}

impl Done {
    fn note<T>(&self, result: Result<T, Status>) -> Option<T> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        result
            .inspect_err(|status| {
                if status.code() == Code::ResourceExhausted {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    self.at_limit.notify_one();
                }
            })
            .ok()
    }
}

/// The hidden command: floods until stdin ends. Says when it does, when a limit was
/// first reached, and at last what was done.
pub(crate) fn flood(args: &BenchFloodArgs) -> Result<(), Failure> {
    let os = |why: String| Failure::new(exit::OS, "os", why);
    rustix::process::nice(args.nice).map_err(|error| os(format!("cannot be nice: {error}")))?;
    crate::cli::signals::every()
        .thread_unblock()
        .map_err(|error| crate::cli::no_runtime(error.into()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(crate::cli::no_runtime)?;
    let done = Arc::<Done>::default();
    runtime.block_on(async {
        let flooder = Flooder::new(args, Arc::clone(&done))?;
        for frames in [waits as Frames, giants, many].into_iter().cycle().take(CONNECTIONS) {
            flooder.begin(frames).await.map_err(|error| os(format!("cannot connect: {error}")))?;
        }
        say("flooding");
        let mut ended = std::pin::pin!(super::super::child::end_of_stdin());
        tokio::select! {
            () = done.at_limit.notified() => say("at a limit"),
            () = &mut ended => return Ok(()),
        }
        ended.await;
        Ok::<_, Failure>(())
    })?;
    runtime.shutdown_background();
    let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
    say(&format!(
        "{} calls and operations, {} refused at a limit",
        number(&done.calls),
        number(&done.refused)
    ));
    Ok(())
}

fn say(line: &str) {
    // Without a reader of stdout, stdin has ended too.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[derive(Clone)]
struct Flooder {
    address: SocketAddr,
    authorization: Option<AsciiMetadataValue>,
    done: Arc<Done>,
}

impl Flooder {
    fn new(args: &BenchFloodArgs, done: Arc<Done>) -> Result<Self, Failure> {
        let authorization = match &args.token_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Failure::usage(format!("cannot read the token: {error}")))?;
                let value = format!("Bearer {}", text.trim()).parse();
                Some(value.map_err(|_| Failure::usage("the token is not text".to_owned()))?)
            }
        };
        Ok(Self { address: args.address, authorization, done })
    }

    /// Opens a connection, and floods over it.
    async fn begin(&self, frames: Frames) -> Result<(), tonic::transport::Error> {
        let channel = self.connect().await?;
        for _ in 0..4 {
            tokio::spawn(self.clone().sessions(channel.clone()));
            tokio::spawn(self.clone().calls(channel.clone()));
        }
        tokio::spawn(self.clone().lists(channel.clone()));
        tokio::spawn(self.clone().connections());
        tokio::spawn(self.clone().stream(channel.clone(), frames));
        Ok(())
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))?;
        endpoint.connect_with_connector(From(self.address)).await
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = &self.authorization {
            request.metadata_mut().insert("authorization", value.clone());
        }
        request
    }

    async fn sessions(self, channel: Channel) {
        let mut locks = LocksClient::new(channel);
        loop {
            let hello = proto::Hello { ttl_ms: TTL_MS, ..proto::Hello::default() };
            self.done.note(locks.open_session(self.request(hello)).await);
        }
    }

    /// Calls that fail at once.
    async fn calls(self, channel: Channel) {
        let mut locks = LocksClient::new(channel);
        loop {
            let nowhere = proto::SessionRef { session: 1, service: 1 };
            self.done.note(locks.keep_session(self.request(nowhere)).await);
        }
    }

    async fn lists(self, channel: Channel) {
        let mut admin = AdminClient::new(channel);
        loop {
            let request = self.request(proto::ListLocksRequest::default());
            if let Some(list) = self.done.note(admin.list_locks(request).await) {
                let mut lines = list.into_inner();
                while let Ok(Some(_)) = lines.message().await {}
            }
        }
    }

    async fn connections(self) {
        loop {
            let opened = from(self.address).await;
            self.done.note(opened.map_err(|error| Status::unavailable(error.to_string())));
        }
    }

    /// A session stream that sends these frames, and another one when it has ended.
    async fn stream(self, channel: Channel, frames: Frames) {
        let mut locks = LocksClient::new(channel).max_decoding_message_size(16 << 20);
        loop {
            let (out, sent) = mpsc::channel(2);
            let hello = proto::Hello { ttl_ms: TTL_MS, ..proto::Hello::default() };
            let hello = ClientOp { id: 1, op: Some(Op::Hello(hello)) };
            // There is room.
            let _ = out.try_send(ClientFrame { ops: vec![hello] });
            let request = self.request(ReceiverStream::new(sent));
            let Some(responses) = self.done.note(locks.session(request).await) else { continue };
            let done = Arc::clone(&self.done);
            let reading = tokio::spawn(async move {
                let mut responses = responses.into_inner();
                while let Some(frame) = responses.next().await {
                    let Some(frame) = done.note(frame) else { return };
                    for op in frame.ops {
                        done.note(match op.response {
                            Some(Response::Error(e)) if e.kind == "resource_exhausted" => {
                                Err(Status::resource_exhausted(e.message))
                            }
                            Some(Response::Error(e)) => Err(Status::aborted(e.message)),
                            _ => Ok(()),
                        });
                    }
                }
            });
            let (mut next, giant_rows) = (1, giant_rows());
            while !reading.is_finished() {
                let frame = frames(next, &giant_rows);
                next += frame.ops.len() as u64;
                if out.send(frame).await.is_err() {
                    break;
                }
            }
            reading.abort();
        }
    }
}

fn lock(number: u64, rows: Vec<Bytes>) -> ClientOp {
    let txn = proto::TxnRef { number, sequence: 1, ..proto::TxnRef::default() };
    let lock = proto::LockOp {
        txn: Some(txn),
        group: "default".to_owned(),
        table: "flood".to_owned(),
        rows,
        ..proto::LockOp::default()
    };
    ClientOp { id: number, op: Some(Op::Lock(lock)) }
}

fn end(number: u64) -> ClientOp {
    let txn = proto::TxnRef { number, sequence: 2, ..proto::TxnRef::default() };
    ClientOp {
        id: number,
        op: Some(Op::End(proto::EndOp { txn: Some(txn), ..Default::default() })),
    }
}

/// Calls that wait for one row: the first of each session has it, or waits for that of another.
fn waits(next: u64, _: &[Bytes]) -> ClientFrame {
    let row = Bytes::from_static(b"hot");
    ClientFrame {
        ops: (next..next + WAITS).map(|number| lock(number, vec![row.clone()])).collect(),
    }
}

/// One call for as many rows as are allowed, and its end.
fn giants(next: u64, rows: &[Bytes]) -> ClientFrame {
    ClientFrame { ops: vec![lock(next, rows.to_vec()), end(next)] }
}

fn giant_rows() -> Vec<Bytes> {
    (0..GIANT_ROWS).map(|n| Bytes::from(format!("{n:0width$}", width = GIANT_KEY_BYTES))).collect()
}

/// Many small operations.
fn many(next: u64, _: &[Bytes]) -> ClientFrame {
    let each =
        |number: u64| [lock(number, vec![Bytes::from(format!("many {number}"))]), end(number)];
    ClientFrame { ops: (next..next + MANY_OPS / 2).flat_map(each).collect() }
}

/// Connects to an address from [`FROM`], if it is on loopback.
#[derive(Clone)]
struct From(SocketAddr);

impl Service<Uri> for From {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<TokioIo<TcpStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        from(self.0).map(|connected| connected.map(TokioIo::new)).boxed()
    }
}

async fn from(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        socket.bind(SocketAddr::new(FROM, 0))?;
    }
    let connected = tokio::time::timeout(Duration::from_secs(5), socket.connect(address)).await;
    connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
