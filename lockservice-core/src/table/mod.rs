//! The lock engine: every lock table that this node owns, in memory, behind one interface.
//!
//! See `engine.rs`.

mod types;

pub use self::types::{EngineSettings, Grant, ItemGrant, LockInfo, LockRequest, VictimPolicy, WaitInfo, WaitPolicy};
