//! One newtype per identifier.
//!
//! # How numbers grow
//! An epoch is a number below 2^21. Versions, incarnations, table ids and tokens are numbers that
//! must never be handed out twice, even by a store that lost its newest writes (L4). All of them
//! have one layout:
//!
//! ```text
//!   bit 52           32 31             0
//!      ├───── epoch ───┼──── counter ──┤      epoch · 2^32  ≤  number  <  (epoch + 1) · 2^32
//! ```
//!
//! - A leadership counts on from the highest number that it knows of, and never begins below
//!   `epoch · 2^32`. Where the store's server has a clock, that clock gives the lowest number
//!   instead ([`Floor`](crate::store::Floor)).
//! - A leadership never reaches the numbers of the next epoch: it raises its epoch first.
//! - Every number is below 2^53, so that it survives languages whose numbers are doubles (F2).
//!
//! # Files
//! | file | what |
//! |---|---|
//! | this file | ids and versions of a service, a table and a store |
//! | `handle` | sessions, as operators name them |
//! | `epoch` | epochs, and the numbers that begin with one |
//! | `txn` | transactions, their operations and commits |
//! | `name` | names of nodes, groups and tables |

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw number, as it came from a store or the wire.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw number, as it goes to a store or the wire.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

mod epoch;
mod handle;
mod name;
#[cfg(test)]
mod tests;
mod txn;

pub use self::epoch::{EPOCH_END, EPOCH_SHIFT, Epoch, EpochNumber};
pub use self::handle::{HolderMark, SessionHandle, SessionNumber};
pub use self::name::{GroupName, NAME_BYTES_MAX, NodeName, TableName, TableRef};
pub use self::txn::{CommitAttempt, CommitTimestamp, Sequence, TxnCounter, TxnId, TxnNumber};

number! {
    /// One incarnation of a service: a restart of the same node is another one (B1).
    ServiceId
}
number! {
    /// A random number that distinguishes two incarnations, or two leaderships, even if a store
    /// handed out one id twice (L4).
    Nonce
}
number! {
    /// A lock table's number, never reused (B6).
    TableId
}
number! {
    /// Version of a bind. Two binds of one table never share a version, and a later one is larger.
    BindVersion
}
number! {
    /// A fencing token (F1): of two conflicting grants on one key the later has the larger token.
    FencingToken
}
number! {
    /// The number of a write to the store, one above that of the write before; 0 is before the
    /// first (L2).
    WriteNumber
}
number! {
    /// The number of a renewal of the leadership in its store, one above that of the one before; 0
    /// is before the first (L1).
    RenewalNumber
}
number! {
    /// A session of a client with one service (P1). Random, so that it cannot be guessed.
    SessionId
}

impl WriteNumber {
    /// The first write to a store.
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// True if this is the number after `last`. No number follows the largest.
    pub fn follows(self, last: Self) -> bool {
        last.0.checked_add(1) == Some(self.0)
    }
}

impl RenewalNumber {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}
