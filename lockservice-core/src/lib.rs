//! Core of lockservice (draft of the crate docs).

pub mod allocator;
pub mod clock;
#[cfg(doc)]
pub mod docs;
mod error;
mod guarded_map;
mod id;
mod key;
#[cfg(not(loom))]
pub mod service;
pub mod store;
pub(crate) mod sync;
pub mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use crate::error::{Advice, DeadlockEdge, Detail, Error, ErrorKind, Result};
pub use crate::guarded_map::GuardedMap;
pub use crate::id::{
    BindVersion, CommitAttempt, EPOCH_END, EPOCH_SHIFT, Epoch, FencingToken, GroupName, NAME_BYTES_MAX, NodeName,
    Nonce, ServiceId, SessionId, TableId, TableName, TableRef, TxnId,
};
pub use crate::key::{KEY_BYTES_MAX, Key, KeyRange, LockItem, LockMode};
