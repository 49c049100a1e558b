//! Framed TCP: the messages of [`echo`](super::echo) without HTTP/2. It shows what a transport of
//! our own would cost.
//!
//! A frame is the length of a message, as protobuf writes lengths, and the message. Each side
//! writes everything that is ready at once, as a stream of gRPC does.

use std::net::SocketAddr;

use async_trait::async_trait;
use lockservice_core::{Error, ErrorKind, Result, TableRef};
use prost::Message as _;
use prost::bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::child::ServerChild;
use super::cpu::ServerProcess;
use super::echo::request;
use super::side::{Caller, Side};
use super::workload::{Want, Workload};
use crate::cli::args::Serves;
use crate::cli::exit::Failure;
use crate::proto::ClientOp;

/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;

/// The side: a server that was started for this.
pub(super) struct Tcp {
    child: ServerChild,
    process: ServerProcess,
    table: TableRef,
}

impl Tcp {
    /// Starts a server.
    pub(super) async fn open() -> Result<Self, Failure> {
        let child = ServerChild::start(Serves::TcpEcho).await?;
        let process = ServerProcess::One(child.pid);
        Ok(Self { child, process, table: TableRef::new("default", "bench")? })
    }
}

#[async_trait]
impl Side for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn server(&self) -> &ServerProcess {
        &self.process
    }

    async fn callers(&self, _: Workload, count: u32) -> Result<Vec<Box<dyn Caller>>> {
        let stream = TcpStream::connect(&self.child.address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (mut from_server, mut to_server) = stream.into_split();
        let (send, mut requests) = mpsc::channel::<ClientOp>(count as usize + 1);
        tokio::spawn(async move {
            let (mut ops, mut bytes) = (Vec::new(), BytesMut::new());
            while requests.recv_many(&mut ops, count as usize + 1).await > 0 {
                bytes.clear();
                for op in ops.drain(..) {
                    // A `BytesMut` grows.
                    op.encode_length_delimited(&mut bytes).expect("it has room");
                }
                if to_server.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        let (to, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(1)).unzip();
        // Ends with the connection, when the last caller has gone.
        tokio::spawn(async move {
            let mut frames = Frames::default();
            while let Some(frame) = frames.next(&mut from_server).await {
                let Ok(op) = ClientOp::decode(frame) else { return };
                if let Some(to) = usize::try_from(op.id).ok().and_then(|id| to.get(id)) {
                    let to: &mpsc::Sender<ClientOp> = to;
                    // A caller has one request in flight: there is room, unless the caller has
                    // gone.
                    let _ = to.try_send(op);
                }
            }
        });
        let caller = |(number, receive)| -> Box<dyn Caller> {
            Box::new(TcpCaller { number, send: send.clone(), receive, table: self.table.clone() })
        };
        Ok((0..).zip(receivers).map(caller).collect())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.child.stop().await;
        Ok(())
    }
}

struct TcpCaller {
    number: u64,
    send: mpsc::Sender<ClientOp>,
    receive: mpsc::Receiver<ClientOp>,
    table: TableRef,
}

#[async_trait]
impl Caller for TcpCaller {
    async fn cycle(&mut self, want: &Want) -> Result<()> {
        let gone = || Error::new(ErrorKind::Unavailable, "the echo's connection ended");
        let op = request(self.number, want, &self.table)?;
        self.send.send(op).await.map_err(|_| gone())?;
        self.receive.recv().await.map(drop).ok_or_else(gone)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "cannot reach the echo to compare with").with_source(error)
}

/// The frames of a connection.
#[derive(Debug, Default)]
struct Frames(BytesMut);

impl Frames {
    /// The next frame, if it has arrived.
    fn arrived(&mut self) -> Option<Bytes> {
        let mut rest = &self.0[..];
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let prefix = self.0.len() - rest.len();
        if rest.len() < length {
            return None;
        }
        self.0.advance(prefix);
        Some(self.0.split_to(length).freeze())
    }

    /// The next frame. `None` at the end of the connection.
    async fn next(&mut self, from: &mut OwnedReadHalf) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.arrived() {
                return Some(frame);
            }
            self.0.reserve(READ_BYTES);
            if from.read_buf(&mut self.0).await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// The server, on a free port of loopback. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct TcpEchoServer {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl TcpEchoServer {
    /// Starts it.
    pub(super) async fn start() -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(send_back(stream));
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for TcpEchoServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Decodes each message and sends it back; all that have arrived in one write.
async fn send_back(stream: TcpStream) {
    // An error is ignored: it is only slower without this.
    let _ = stream.set_nodelay(true);
    let (mut from_client, mut to_client) = stream.into_split();
    let (mut frames, mut bytes) = (Frames::default(), BytesMut::new());
    while let Some(first) = frames.next(&mut from_client).await {
        bytes.clear();
        let mut next = Some(first);
        while let Some(frame) = next {
            let Ok(op) = ClientOp::decode(frame) else { return };
            // A `BytesMut` grows.
            op.encode_length_delimited(&mut bytes).expect("it has room");
            next = frames.arrived();
        }
        if to_client.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_there_when_its_last_byte_has_arrived() {
        let op = ClientOp { id: 300, op: None };
        let whole = op.encode_length_delimited_to_vec();
        let mut frames = Frames::default();
        for byte in &whole[..whole.len() - 1] {
            frames.0.extend_from_slice(&[*byte]);
            assert_eq!(frames.arrived(), None);
        }
        frames.0.extend_from_slice(&[whole[whole.len() - 1], whole[0]]);
        assert_eq!(ClientOp::decode(frames.arrived().unwrap()).unwrap(), op);
        assert_eq!(frames.arrived(), None);
        assert_eq!(frames.0.len(), 1);
    }
}
