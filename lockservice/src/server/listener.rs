//! [`ServerListener`]: where a server listens, and how its connections are protected.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::access::Access;
use super::caller::Channel;
use super::transport::Transport;
use crate::stream::Stream;
#[cfg(feature = "tls")]
use crate::tls::ServerTls;

/// A listener of a [`Server`](super::Server) or a [`PeerServer`](super::PeerServer). One made
/// [from](From) a [`TcpListener`] serves everyone, in plain text.
#[derive(Debug)]
pub struct ServerListener {
    pub(super) tcp: TcpListener,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<ServerTls>,
    pub(super) access: Access,
}

impl From<TcpListener> for ServerListener {
    fn from(tcp: TcpListener) -> Self {
        Self {
            tcp,
            #[cfg(feature = "tls")]
            tls: None,
            access: Access::default(),
        }
    }
}

impl ServerListener {
    /// Every connection speaks TLS with the certificates of `tls`. A client that speaks HTTP/2 in
    /// plain text is told so by an error of each of its calls.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(self, tls: ServerTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Only callers that `access` knows are served, as far as it allows.
    #[must_use]
    pub fn with_access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The connection that was accepted from `address`, with which there are as many handshakes at
    /// a time as `handshakes` has permits.
    pub(super) fn transport(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        handshakes: &Arc<Semaphore>,
    ) -> Transport {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let handshake = tls.accept(stream, address, Arc::clone(handshakes));
            return Transport::Handshake(Box::new(handshake));
        }
        let _ = (address, handshakes);
        Transport::Open(Stream::Plain(stream), Channel::Plain)
    }
}
