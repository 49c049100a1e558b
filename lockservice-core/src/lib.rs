//! The core of lockservice: a lock engine, an allocator of lock tables, and the service that puts
//! them together. No network, no driver.
//!
//! Five nouns:
//!
//! - A [`LockItem`] is a row or a range of rows, locked in a [mode](LockMode), in a lock table
//!   ([`TableRef`]).
//! - A **bind** ([`Bind`]) says which incarnation of which node grants a table's locks,
//!   and at which version.
//! - A **transaction** ([`TxnId`]) holds locks; it belongs to a [`service::Session`] of a client,
//!   or to the embedding process.
//! - A **fencing token** ([`FencingToken`]) comes with every grant: of two conflicting grants the
//!   later has the larger one.
//! - A **promise** ([`service::Promise`]) says how long locks are safe without another word.
//!
//! ```text
//!  your code ──▶ LockService ──▶ LockEngine            locks, in memory
//!                     │
//!                     └────────▶ LocalAllocator ──▶ BindStore     binds, leases, tokens, commits
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
//! use lockservice_core::clock::{Clock, SystemClock};
//! use lockservice_core::service::{LockService, LockSpec, ServiceParts, TxnOptions};
//! use lockservice_core::store::MemoryStore;
//! use lockservice_core::{Key, LockItem, NodeName, TableRef};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), lockservice_core::Error> {
//! let clock: Arc<dyn Clock> = Arc::new(SystemClock);
//! let node = NodeName::new("node-1")?;
//! let store = Arc::new(MemoryStore::new(0));
//! let settings = AllocatorSettings::default();
//! let allocator = LocalAllocator::open(store, clock.clone(), settings, node.clone()).await?;
//! let service = LockService::start(ServiceParts::new(allocator, clock, node)).await?;
//!
//! let txn = service.begin(TxnOptions::default())?;
//! let alice = LockItem::Row(Key::new("alice")?);
//! let granted = txn.lock(LockSpec::new(TableRef::new("bank", "accounts")?, vec![alice])).await?;
//! assert!(granted.grant.newly_locked);
//! txn.end(None);
//! # Ok(())
//! # }
//! ```
//!
//! A store is a [`BindStore`](store::BindStore); the suites of `testing` (feature `testing`) check
//! one. The notes in `docs` explain how it all works.

/// True if a test has planted this fault of `testing::Planted` into this thread.
macro_rules! planted {
    ($fault:ident) => {{
        #[cfg(any(test, feature = "testing"))]
        let planted = crate::testing::Planted::$fault.is_planted();
        #[cfg(not(any(test, feature = "testing")))]
        let planted = false;
        planted
    }};
}

pub mod allocator;
mod bind;
pub mod clock;
#[cfg(any(doc, doctest))]
pub mod docs;
pub mod env;
mod error;
mod guarded_map;
mod id;
mod key;
#[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
mod live_txns;
pub mod maintenance;
pub mod metrics;
mod segments;
#[cfg(not(loom))]
pub mod service;
mod spare;
pub mod store;
pub(crate) mod sync;
pub mod table;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::disallowed_methods, reason = "suites and fixtures drive effects themselves")]
pub mod testing;

pub use crate::bind::{Bind, BindSlot, TokenBlock};
pub use crate::error::{Advice, Blocker, DeadlockEdge, Detail, Error, ErrorKind, Result};
pub use crate::id::{
    BindVersion, CommitAttempt, CommitTimestamp, EPOCH_END, EPOCH_SHIFT, Epoch, EpochNumber,
    FencingToken, GroupName, HolderMark, NAME_BYTES_MAX, NodeName, Nonce, RenewalNumber, Sequence,
    ServiceId, SessionHandle, SessionId, SessionNumber, TableId, TableName, TableRef, TxnCounter,
    TxnId, TxnNumber, WriteNumber,
};
pub use crate::key::{KEY_BYTES_MAX, Key, KeyRange, LockItem, LockMode};
