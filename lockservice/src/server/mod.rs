//! The gRPC server: a node's service and allocator, for every language.
//!
//! A [`Server`] listens before the node's service stands; [`serve`] runs a node that stands until
//! it is stopped. The session stream is the first-class API (see the proto file); the unary calls
//! work on a session too. Everything that a client can make large is bounded: connections,
//! messages, operations under way, lists, the frames that wait to be read.
//!
//! If several nodes share a store, each needs a [`PeerServer`] beside it, on a listener of its own.
//! **A process that reaches that listener owns the cluster**: it can take over nodes and end
//! leases. Clients do not need it, and nothing that a client receives lets it act as a node.
//!
//! | file | noun |
//! |---|---|
//! | `client_server`, `peer_server`, `serving` | [`Server`], [`PeerServer`], and the listener under both |
//! | `host`, `slot` | [`ServiceHost`]: a service that replaces itself; the slot of a service in a server |
//! | `settings` | [`ServerSettings`] |
//! | `listener`, `transport` | [`ServerListener`]; the bytes of a connection, in plain text or with TLS |
//! | `access` | who may do what |
//! | `calls` | every call: counted, its caller checked, its client bounded |
//! | `incoming`, `caller`, `arriving`, `turns` | bounds: connections, clients, messages, shares of the processor |
//! | `gate`, `deadline` | callers of other clusters are refused; calls end in time |
//! | `locks` | the API `Locks`: its unary calls |
//! | `session_stream`, `hello`, `connection` | the session stream: as a call; its begin; its life |
//! | `operation`, `under_way`, `quiet` | its messages; those that wait, or need no response |
//! | `allocator`, `peer`, `admin`, `health` | the other APIs |
//! | `list_stream` | lists of the API `Admin`, sent slice by slice |
//! | `hot` | of `admin`: the hottest keys, and the numbers of the node |
//! | `simulated` | a server without a listener, for a simulation |
//! | `table_names` | the tables that a commit presents, by name |

mod access;
mod admin;
mod allocator;
mod arriving;
pub(crate) mod audit;
mod caller;
mod calls;
mod client_server;
mod connection;
mod deadline;
mod gate;
mod health;
mod hello;
mod host;
mod hot;
mod incoming;
mod kill;
mod list_stream;
mod listener;
mod locks;
mod operation;
mod peer;
mod peer_server;
mod quiet;
mod serving;
mod session_stream;
mod settings;
#[cfg(feature = "simulation")]
pub(crate) mod simulated;
mod slot;
mod table_names;
mod transport;
mod turns;
mod under_way;

use std::future::Future;

use lockservice_core::Result;
use lockservice_core::service::Stopped;

pub(crate) use self::access::Principal;
pub use self::access::{Access, AccessRole, ClientLimits, IdentitySettings};
pub use self::client_server::{Server, Stop};
pub use self::host::ServiceHost;
#[cfg(feature = "cli")]
pub(crate) use self::host::{may_pass, start_patiently};
pub use self::listener::ServerListener;
#[cfg(feature = "fuzzing")]
pub(crate) use self::operation::fuzz_client_frame;
pub use self::peer_server::PeerServer;
pub use self::settings::ServerSettings;
pub(crate) use self::slot::Slot;
#[cfg(feature = "tls")]
pub use crate::tls::{ServerTls, TlsSettings};

/// Serves a node that stands until `stop` resolves, then stops in the way that it says and closes
/// the connections: see [`Server::run`].
///
/// If several nodes share a store, use [`Server`] and [`PeerServer`] instead.
///
/// # Errors
/// Those of [`Server::start`] and [`Server::run`].
///
/// # Cancel safety
/// Dropping the call closes the listener and the connections at once, and resigns no lease.
pub async fn serve(
    listener: impl Into<ServerListener>,
    host: ServiceHost,
    settings: ServerSettings,
    stop: impl Future<Output = Stop>,
) -> Result<Stopped> {
    let mut server = Server::start(listener, host.allocator(), settings).await?;
    server.host(host).await;
    let stopped = server.run(stop).await;
    server.close().await;
    stopped
}
