//! Incoming connections: their number is bounded, and silent ones are closed.
//!
//! A TLS handshake is part of the connection: its task does it, so that it holds up no other
//! connection. Its time counts as silence.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::server::ServerSettings;
use crate::server::caller::{Caller, Callers, Counted};
use crate::server::listener::ServerListener;
use crate::server::transport::Transport;

/// The number of bytes with which every HTTP/2 connection begins. Once they have arrived,
/// keep-alive watches the peer.
const PREFACE_BYTES: usize = 24;

/// The most reads of a connection before its task lets others run: a peer that sends without a
/// pause must not have a worker to itself.
const READS_PER_TURN: u32 = 8;

/// The pause after the machine had no room for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The number of refused connections that share one line in the log.
const REFUSED_PER_LINE: u64 = 1_000;

/// The connections of `listener`, at most `connections_max` at a time: more are closed at once, so
/// that their clients learn it at once. Never ends, and never yields an error.
pub(super) fn incoming(
    listener: ServerListener,
    settings: ServerSettings,
) -> impl Stream<Item = io::Result<Connection>> {
    let callers = Callers::new(settings, listener.access.clone());
    let permits = Arc::new(Semaphore::new(settings.connections_max.min(Semaphore::MAX_PERMITS)));
    let silence = settings.hello_max();
    let state = (listener, permits, callers, 0u64);
    futures::stream::unfold(state, move |(listener, permits, callers, mut refused)| async move {
        loop {
            let (stream, address) = match listener.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_the_connection(&error) => continue,
                Err(error) => {
                    // The process has mostly run out of file descriptors: a waiting client is
                    // served when some connection has ended.
                    tracing::warn!(
                        ?error,
                        "cannot accept a connection now: raise the limit on \
                        open files (ulimit -n)"
                    );
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let permit = Arc::clone(&permits).try_acquire_owned().ok();
            let (Some(permit), Some((caller, counted))) = (permit, callers.connected(address))
            else {
                if refused.is_multiple_of(REFUSED_PER_LINE) {
                    tracing::warn!(
                        %address,
                        refused_before = refused,
                        "refused a connection: there are as many as server.connections_max or \
                         server.connections_per_address_max allow"
                    );
                }
                refused += 1;
                continue;
            };
            // An error is ignored: responses are only slower without this.
            let _ = stream.set_nodelay(true);
            let silent = Some(Silent {
                until: Box::pin(tokio::time::sleep(silence)),
                missing: PREFACE_BYTES,
            });
            let transport = listener.transport(stream, address, &counted.handshakes);
            let counted = (permit, counted);
            let connection = Connection { transport, silent, caller, reads: 0, _counted: counted };
            return Some((Ok(connection), (listener, permits, callers, refused)));
        }
    })
}

/// True for an error of one connection before it was accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Io;
    matches!(
        error.kind(),
        Io::ConnectionAborted | Io::ConnectionReset | Io::ConnectionRefused | Io::Interrupted
    )
}

/// A connection, counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    transport: Transport,
    /// Set until the peer has sent the preface.
    silent: Option<Silent>,
    caller: Caller,
    /// Reads since there was nothing to read, or since the task let others run.
    reads: u32,
    _counted: (OwnedSemaphorePermit, Counted),
}

#[derive(Debug)]
struct Silent {
    until: Pin<Box<Sleep>>,
    missing: usize,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl Connection {
    /// Resolves when both ends may send: at once without TLS.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.caller.channel().is_some() {
            return Poll::Ready(Ok(()));
        }
        match self.transport.poll_open(cx) {
            Poll::Ready(Ok(channel)) => {
                self.caller.set_channel(channel);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            Poll::Pending => {
                let late = ready!(self.poll_late(cx));
                self.transport.is_late();
                Poll::Ready(Err(late))
            }
        }
    }

    /// Resolves when the peer has been silent for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(silent) = &mut self.silent else { return Poll::Pending };
        ready!(silent.until.as_mut().poll(cx));
        let why = "the connection said nothing in time";
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        if self.reads == READS_PER_TURN {
            self.reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = self.transport.stream()?.poll_read(cx, buf);
        self.reads = if read.is_ready() { self.reads + 1 } else { 0 };
        if self.silent.is_none() {
            return read;
        }
        if read.is_pending() {
            return self.poll_late(cx).map(Err);
        }
        if let Some(silent) = &mut self.silent {
            silent.missing = silent.missing.saturating_sub(buf.filled().len() - before);
            if silent.missing == 0 {
                self.silent = None;
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        self.transport.stream()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        self.transport.stream()?.poll_write_vectored(cx, bytes)
    }

    /// Every kind of stream writes several pieces at once.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        self.transport.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.transport.stream() {
            Ok(stream) => stream.poll_shutdown(cx),
            // Dropping it closes a connection that is not open yet.
            Err(_) => Poll::Ready(Ok(())),
        }
    }
}
