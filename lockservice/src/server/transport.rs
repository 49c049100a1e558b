//! [`Transport`]: a connection from its first byte on, in plain text or with TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::caller::Channel;
use crate::stream::Stream;
#[cfg(feature = "tls")]
use crate::tls::{Accepted, Handshake};

/// A connection. Nothing may be read or written before it is open.
#[derive(Debug)]
pub(super) enum Transport {
    /// Both ends have accepted each other.
    Open(Stream, Channel),
    /// The handshake is not over, or has failed.
    #[cfg(feature = "tls")]
    Handshake(Box<Handshake>),
}

impl Transport {
    /// Resolves when both ends have accepted each other, with the protection of the connection.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        #[cfg(feature = "tls")]
        if let Self::Handshake(handshake) = self {
            *self = match std::task::ready!(handshake.poll(cx))? {
                Accepted::Plain(stream) => Self::Open(Stream::Plain(stream), Channel::PlainToTls),
                Accepted::Tls(stream, certificate) => {
                    let name = certificate.map(|certificate| certificate.name);
                    Self::Open(Stream::Tls(stream), Channel::Tls(name))
                }
            };
        }
        #[cfg(not(feature = "tls"))]
        let _ = cx;
        Poll::Ready(match self {
            Self::Open(_, channel) => Ok(channel.clone()),
            #[cfg(feature = "tls")]
            Self::Handshake(_) => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    /// Its bytes. Fails before it is open.
    pub(super) fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        match self {
            Self::Open(stream, _) => Ok(Pin::new(stream)),
            #[cfg(feature = "tls")]
            Self::Handshake(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Gives a handshake up that takes too long.
    pub(super) fn is_late(&mut self) {
        #[cfg(feature = "tls")]
        if let Self::Handshake(handshake) = self {
            handshake.is_late();
        }
    }
}
