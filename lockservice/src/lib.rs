//! The facade of lockservice: stores by URL, the gRPC API, the server, the client and the command line.
//!
//! | feature | what it adds |
//! |---|---|
//! | `server` (default) | [`server`]: the gRPC API over a service and an allocator |
//! | `client` (default) | [`client`]: sessions and transactions of a remote server |
//! | `cli` (default) | [`cli`]: the `lockservice` command |
//! | `file` (default) | the store `file:PATH` |
//! | `rocks` | the store `rocks:PATH`; builds RocksDB |
//! | `pg` | the store `postgres://…` |
//! | `redis` | the stores `redis://…`, `redis-sentinel://…` and `redis-cluster://…` |
//!
//! The core is re-exported as [`core`]. To embed it without a server, open an allocator and start a service on it; see the README and
//! [`open_allocator`].

pub use lockservice_core as core;

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "server", feature = "client"))]
pub mod convert;
#[cfg(any(feature = "server", feature = "client"))]
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
pub mod store;

use std::sync::Arc;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
use lockservice_core::clock::SystemClock;
use lockservice_core::{NodeName, Result};

/// Opens the store that `url` names and an allocator on it, with default settings: the start of an embedded service.
///
/// Must be called within a tokio runtime. Fails as [`store::open`] and [`LocalAllocator::open`] do. Call
/// [`shutdown`](LocalAllocator::shutdown) when the service has stopped, so that the next start need not wait for its lease.
pub async fn open_allocator(url: &str, node: NodeName) -> Result<Arc<LocalAllocator>> {
    let store = store::open(url).await?;
    LocalAllocator::open(store, Arc::new(SystemClock), AllocatorSettings::default(), node).await
}

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
