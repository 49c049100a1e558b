//! [`Transport`]: the bytes of a connection, in plain text or with TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(feature = "tls")]
use tokio_rustls::server::TlsStream;

use super::caller::Channel;
#[cfg(feature = "tls")]
use crate::tls::{Accepted, Handshake};

/// The bytes of a connection. Nothing may be read or written before it is open.
#[derive(Debug)]
pub(super) enum Transport {
    /// On a listener without TLS.
    Plain(TcpStream),
    /// The handshake is not over, or has failed.
    #[cfg(feature = "tls")]
    Handshake(Box<Handshake>),
    /// In plain text, on a listener with TLS.
    #[cfg(feature = "tls")]
    PlainToTls(TcpStream),
    /// TLS, and the common name in the client's certificate.
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream<TcpStream>>, Option<String>),
}

impl Transport {
    /// Resolves when both ends have accepted each other, with the protection of the connection.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        #[cfg(feature = "tls")]
        if let Self::Handshake(handshake) = self {
            *self = match std::task::ready!(handshake.poll(cx))? {
                Accepted::Plain(stream) => Self::PlainToTls(stream),
                Accepted::Tls(stream, certificate) => {
                    Self::Tls(stream, certificate.map(|certificate| certificate.name))
                }
            };
        }
        #[cfg(not(feature = "tls"))]
        let _ = cx;
        Poll::Ready(Ok(match self {
            Self::Plain(_) => Channel::Plain,
            #[cfg(feature = "tls")]
            Self::PlainToTls(_) => Channel::PlainToTls,
            #[cfg(feature = "tls")]
            Self::Tls(_, certificate) => Channel::Tls(certificate.clone()),
            #[cfg(feature = "tls")]
            Self::Handshake(_) => return not_open(),
        }))
    }

    /// Gives a handshake up that takes too long.
    pub(super) fn is_late(&mut self) {
        #[cfg(feature = "tls")]
        if let Self::Handshake(handshake) = self {
            handshake.is_late();
        }
    }
}

#[cfg(feature = "tls")]
fn not_open<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "tls")]
            Self::PlainToTls(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "tls")]
            Self::Tls(stream, _) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "tls")]
            Self::Handshake(_) => not_open(),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "tls")]
            Self::PlainToTls(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "tls")]
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "tls")]
            Self::Handshake(_) => not_open(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            #[cfg(feature = "tls")]
            Self::PlainToTls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            #[cfg(feature = "tls")]
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(cx, bytes),
            #[cfg(feature = "tls")]
            Self::Handshake(_) => not_open(),
        }
    }

    /// Every kind of stream writes several pieces at once.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Self::PlainToTls(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Self::Handshake(_) => not_open(),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::PlainToTls(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
            // Dropping it closes the connection.
            #[cfg(feature = "tls")]
            Self::Handshake(_) => Poll::Ready(Ok(())),
        }
    }
}
