//! [`Dial`]: connects to a name, which may stand for several addresses.
//!
//! The kernel accepts for a process that is stopped, so a connection proves little. A server of
//! HTTP/2 sends first. So the first of several addresses from which something comes is used. A
//! silent one is used only if there is no other, for a proxy may wait for the client to send. With
//! TLS the handshake is part of the connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::Uri;
use tower_service::Service;

use super::race::{Tried, race};
use crate::stream::Stream;
#[cfg(feature = "tls")]
use crate::tls::TlsClient;

/// The largest number of addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// The port of a URL that names none, in plain text.
const PORT: u16 = 80;
/// The same with TLS.
#[cfg(feature = "tls")]
const PORT_TLS: u16 = 443;

/// Resolves a host and a port to addresses.
type Lookup = dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Makes connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dial {
    lookup: Arc<Lookup>,
    /// The time that one address of several may take to connect and to send. It is less than the
    /// whole time, so that a silent one can still be used.
    each: Duration,
    #[cfg(feature = "tls")]
    tls: Option<TlsClient>,
}

impl Dial {
    /// Gets the addresses from the system. The caller limits the whole to `connect_timeout`.
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        let lookup = |host: String, port| async move {
            Ok(tokio::net::lookup_host((host, port)).await?.collect())
        };
        Self::with_lookup(Arc::new(move |host, port| lookup(host, port).boxed()), connect_timeout)
    }

    fn with_lookup(lookup: Arc<Lookup>, connect_timeout: Duration) -> Self {
        Self {
            lookup,
            each: connect_timeout / 2,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Every connection speaks TLS.
    #[cfg(feature = "tls")]
    pub(super) fn with_tls(self, tls: TlsClient) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// The port of a URL that names none.
    fn default_port(&self) -> u16 {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return PORT_TLS;
        }
        PORT
    }

    async fn connect(self, uri: Uri) -> io::Result<Stream> {
        // An IPv6 address stands in brackets.
        let host =
            uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or_else(|| self.default_port());
        let addresses = (self.lookup)(host.clone(), port).await?;
        match *addresses.as_slice() {
            // There is no choice.
            [address] => self.open(address, &host, port).await,
            _ => {
                let tries = addresses
                    .into_iter()
                    .take(ADDRESSES_MAX)
                    .map(|address| self.try_one(address, &host, port));
                race(tries).await.map_err(|why| why.unwrap_or_else(no_address))
            }
        }
    }

    /// Connects to `address`, one of those of `host`.
    async fn open(&self, address: SocketAddr, host: &str, port: u16) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return Ok(Stream::Tls(Box::new(tls.connect(stream, host, port).await?.into())));
        }
        #[cfg(not(feature = "tls"))]
        let _ = (host, port);
        Ok(Stream::Plain(stream))
    }

    async fn try_one(
        &self,
        address: SocketAddr,
        host: &str,
        port: u16,
    ) -> Tried<Stream, io::Error> {
        let give_up = tokio::time::Instant::now() + self.each;
        let opened = self.open(address, host, port);
        let mut stream = match tokio::time::timeout_at(give_up, opened).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(why)) => return Tried::Failed(Some(why)),
            Err(_) => return Tried::Failed(None),
        };
        match tokio::time::timeout_at(give_up, stream.speaks()).await {
            Ok(Ok(())) => Tried::Good(stream),
            Ok(Err(why)) => Tried::Failed(Some(why)),
            Err(_) => Tried::SecondBest(stream),
        }
    }
}

fn no_address() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "the server's name has no address, or none that responds",
    )
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").field("each", &self.each).finish_non_exhaustive()
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.clone().connect(uri).map(|connected| connected.map(TokioIo::new)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        (listener, address)
    }

    /// Speaks first to each that connects.
    async fn speaker() -> SocketAddr {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"hello").await.expect("it listens");
                kept.push(stream);
            }
        });
        address
    }

    async fn dial(addresses: Vec<SocketAddr>, connect_timeout: Duration) -> io::Result<SocketAddr> {
        let lookup = move |host: String, port| {
            assert_eq!((host.as_str(), port), ("name.example", 7654));
            std::future::ready(Ok(addresses.clone())).boxed()
        };
        let dial = Dial::with_lookup(Arc::new(lookup), connect_timeout);
        let connected = dial.connect(Uri::from_static("http://name.example:7654")).await?;
        let Stream::Plain(stream) = connected else { panic!("it is plain") };
        stream.peer_addr()
    }

    #[tokio::test]
    async fn a_name_whose_first_address_is_frozen_or_gone_is_reached_at_the_next() {
        // The kernel accepts, and no process responds: as with a process that is stopped.
        let (_frozen, frozen) = listener().await;
        let gone = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("bound");
        let good = speaker().await;
        let found =
            dial(vec![frozen, gone, good], Duration::from_secs(60)).await.expect("one responds");
        assert_eq!(found, good);
    }

    #[tokio::test]
    async fn one_that_is_silent_is_taken_if_there_is_no_other() {
        let (_silent, silent) = listener().await;
        let gone = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("bound");
        for addresses in [vec![silent], vec![gone, silent]] {
            let found = dial(addresses, Duration::from_millis(200)).await.expect("it is connected");
            assert_eq!(found, silent);
        }
        let none = dial(Vec::new(), Duration::from_secs(1)).await.expect_err("no address");
        assert!(none.to_string().contains("no address"), "{none}");
        let error = dial(vec![gone, gone], Duration::from_secs(1)).await.expect_err("no listener");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn an_address_in_brackets_is_looked_up_without_them() {
        let lookup = |host: String, _| {
            assert_eq!(host, "::1");
            std::future::ready(Ok(Vec::new())).boxed()
        };
        let dial = Dial::with_lookup(Arc::new(lookup), Duration::from_secs(1));
        dial.connect(Uri::from_static("http://[::1]:7654")).await.expect_err("no address");
    }
}
