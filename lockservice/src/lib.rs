//! The facade of lockservice: stores by URL, the gRPC API, the server, the client and the command
//! line.
//!
//! | feature | what it adds |
//! |---|---|
//! | `server` (default) | [`server`]: the gRPC API over a service and an allocator |
//! | `client` (default) | [`client`]: sessions and transactions of a remote server |
//! | `tls` (default) | TLS and mutual TLS, for the server and for the client |
//! | `cli` (default) | [`cli`]: the `lockservice` command |
//! | `file` (default) | the store `file:PATH` |
//! | `rocks` | the store `rocks:PATH`; builds RocksDB |
//! | `pg` | the store `postgres://…` |
//! | `redis` | the stores `redis://…`, `redis-sentinel://…` and `redis-cluster://…` |
//!
//! The names that the README and the examples use stand at the root, so that one `use` suffices;
//! the whole core is re-exported as [`core`]. To embed it without a server, open an allocator and
//! start a service on it:
//!
//! ```
//! use std::sync::Arc;
//! use lockservice::{
//!     Key, LockItem, LockService, LockSpec, NodeName, ServiceParts, SystemClock, TableRef,
//!     TxnOptions, open_allocator,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> lockservice::Result<()> {
//! let node = NodeName::new("node-1")?;
//! let allocator = open_allocator("memory:", node.clone()).await?;
//! let parts = ServiceParts::new(allocator, Arc::new(SystemClock), node);
//! let service = LockService::start(parts).await?;
//! let txn = service.begin(TxnOptions::default())?;
//! let row = LockItem::Row(Key::new("alice")?);
//! txn.lock(LockSpec::new(TableRef::new("bank", "accounts")?, vec![row])).await?;
//! txn.end(None);
//! # Ok(())
//! # }
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `store` | stores by URL |
//! | `server`, `peers` | the gRPC API: the side that serves clients and nodes; calls to other nodes |
//! | `metrics` | metrics and health over HTTP, for monitoring |
//! | `client`, `channel` | sessions and transactions of a remote server; connections |
//! | `proto`, `convert`, `codec` | messages; their way to and from the types of the core; their size |
//! | `tls`, `reload` | certificates, and handshakes; files that are read again when they change |
//! | `token` | bearer tokens, and what a server keeps of them |
//! | `frame` | the frames of session streams, as bytes |
//! | `stream` | the bytes of a connection, in plain text or with TLS |
//! | `trace` | the way of a trace over processes |
//! | `cli` | the command line |
//! | `fuzzing` | what a fuzzer feeds bytes to |

pub use lockservice_core as core;

#[cfg(any(feature = "server", feature = "client"))]
mod channel;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "server", feature = "client"))]
pub mod codec;
#[cfg(any(feature = "server", feature = "client"))]
pub mod convert;
#[cfg(any(feature = "server", feature = "client"))]
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod peers;
#[cfg(any(feature = "server", feature = "client"))]
pub mod proto;
#[cfg(any(feature = "server", feature = "client"))]
mod reload;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
pub mod store;
#[cfg(any(feature = "server", feature = "client"))]
mod stream;
#[cfg(all(feature = "tls", any(feature = "server", feature = "client")))]
mod tls;
#[cfg(feature = "server")]
pub mod token;
#[cfg(any(feature = "server", feature = "client"))]
pub mod trace;

use std::sync::Arc;

use lockservice_core::allocator::{
    AllocatorPeers, AllocatorSettings, ElectedAllocator, LockTableAllocator,
};
use lockservice_core::store::ClusterId;
#[cfg(feature = "server")]
use lockservice_core::store::NodeAddress;

#[cfg(any(feature = "server", feature = "client"))]
pub use self::channel::Credentials;
#[cfg(feature = "client")]
pub use self::client::{Client, ClientTxn, LockGuard, Session, TxnSavepoint};
#[cfg(feature = "server")]
pub use self::server::{PeerServer, Server, ServiceHost};
use self::store::StoreUrl;
pub use lockservice_core::allocator::{BeginCommit, CommitWindow, PresentedBind};
pub use lockservice_core::clock::{Clock, SystemClock};
pub use lockservice_core::service::{
    LockService, LockSpec, RowLocked, ServiceParts, Table, TxnOptions,
};
pub use lockservice_core::table::{Commit, Grant, Savepoint, WaitPolicy};
pub use lockservice_core::{
    Advice, CommitAttempt, CommitTimestamp, Error, ErrorKind, FencingToken, Key, KeyRange,
    LockItem, LockMode, NodeName, Result, SessionHandle, TableRef, TxnId,
};

/// Opens the store that `url` names and an allocator on it, with the
/// [settings for an exclusive store](AllocatorSettings::for_exclusive_store): the start of an
/// embedded service in one process alone.
///
/// Call [`shutdown`](ElectedAllocator::shutdown) when the service has stopped, so that the next
/// start need not wait for its lease.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> lockservice::Result<()> {
/// use std::time::Duration;
/// use lockservice::{NodeName, open_allocator};
///
/// let allocator = open_allocator("memory:", NodeName::new("node-1")?).await?;
/// // ... start a `LockService` on it, and stop that first ...
/// allocator.shutdown(true, Duration::from_secs(1)).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// - Those of [`store::open`].
/// - `InvalidArgument` for a store that several nodes share: they must be able to reach each other,
///   so use `join_cluster`.
/// - Those of the start of the allocator: its kind says whether trying again helps.
///
/// # Cancel safety
/// The store is closed again; the leadership may last until its TTL.
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn open_allocator(url: &str, node: NodeName) -> Result<Arc<ElectedAllocator>> {
    let url = StoreUrl::parse(url)?;
    if url.is_shared() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "several nodes share this store and must reach each other: join_cluster takes the \
                address of this one",
        ));
    }
    let store = url.open().await?;
    let settings = AllocatorSettings::for_exclusive_store();
    let allocator =
        ElectedAllocator::start(store, Arc::new(SystemClock), settings, node, "", Arc::new(Alone))?;
    allocator.elected().await?;
    Ok(allocator)
}

/// Joins the cluster of nodes that share the store that `url` names, with default settings: the
/// start of an embedded service among others.
///
/// `address` says where this node is reached. Before its service starts it must serve
/// [`as_leader`](ElectedAllocator::as_leader) with a [`PeerServer`] to other
/// nodes, because it may be the one that leads, and if it has clients over the network
/// [`for_clients`](ElectedAllocator::for_clients) with a [`Server`]. Any store will
/// do.
///
/// It does not wait until a leader is known.
///
/// # Errors
/// Those of [`store::open`].
///
/// # Cancel safety
/// The store is closed again.
///
/// # Panics
/// Outside of a tokio runtime.
#[cfg(feature = "server")]
pub async fn join_cluster(
    url: &str,
    node: NodeName,
    address: NodeAddress,
) -> Result<Arc<ElectedAllocator>> {
    let store = store::open(url).await?;
    let settings = AllocatorSettings::default();
    let patience = peers::Patience::for_lease(settings.constants.lease_ttl());
    let peers = Arc::new(peers::GrpcPeers::new(patience));
    ElectedAllocator::start(store, Arc::new(SystemClock), settings, node, address, peers)
}

/// The other nodes of a store that is open to one process alone.
#[derive(Debug)]
struct Alone;

impl AllocatorPeers for Alone {
    fn connect(&self, _address: &str, _cluster: ClusterId) -> Result<Arc<dyn LockTableAllocator>> {
        Err(Error::new(
            ErrorKind::NotPermitted,
            "another process leads this store, which was opened for one alone",
        ))
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
