//! TLS: certificates and keys from files, which are read again when they change.
//!
//! Certificates are replaced without losing a session: a new connection uses what the files hold
//! now, and open connections go on. A file that cannot be used changes nothing, and is reported.
//! See [`Reloaded`](crate::reload::Reloaded).
//!
//! | file | noun |
//! |---|---|
//! | `files` | certificates, keys and CAs in PEM files |
//! | `certificate` | [`Certificate`]: the name and the validity in a certificate |
//! | `client` | [`TlsClient`]: the side that connects |
//! | `server` | [`ServerTls`](server::ServerTls): the side that accepts |
//! | `explain` | the reasons of failed handshakes, as sentences |

mod certificate;
mod client;
mod explain;
mod files;
#[cfg(feature = "server")]
mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub(crate) use self::client::TlsClient;
#[cfg(feature = "server")]
pub(crate) use self::server::{Accepted, Handshake};
#[cfg(feature = "server")]
pub use self::server::{ServerTls, TlsSettings};

/// HTTP/2, as the handshake negotiates it.
const ALPN: &[u8] = b"h2";

/// The cryptography that is used. It is named, for a program may have linked several.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
