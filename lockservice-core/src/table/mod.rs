//! The lock engine: every lock table that this node owns, in memory, behind one interface.

mod call;
mod deadlock;
mod engine;
mod entry;
mod hash;
mod inspect;
mod interval;
mod lock_table;
mod state;
mod txn;
mod types;

pub use self::engine::{LockCall, LockEngine};
pub use self::types::{EngineSettings, Grant, ItemGrant, LockInfo, LockRequest, VictimPolicy, WaitInfo, WaitPolicy};
