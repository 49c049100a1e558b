//! [`Detail`]: the machine-readable particulars of an error.

use std::fmt;
use std::time::Duration;

#[cfg(doc)]
use crate::error::{Error, ErrorKind};
use crate::id::{NodeName, ServiceId, TableRef, TxnId};
use crate::key::{LockItem, LockMode};

/// One edge of a deadlock: a waiter, its item, and the transaction that holds it or requested it
/// earlier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadlockEdge {
    /// The transaction that waits.
    pub waiter: TxnId,
    /// The table in which it waits.
    pub table: TableRef,
    /// The row or range it waits for.
    pub item: LockItem,
    /// The mode in which it is requested.
    pub mode: LockMode,
    /// The transaction it waits for.
    pub holder: TxnId,
    /// True for the transaction that gets this error. It may hold nothing, and then it recognises
    /// itself by no other name.
    pub victim: bool,
    /// The label of the transaction that waits.
    pub label: String,
    /// The client of the transaction that waits.
    pub client: String,
}

/// The conflicting holder or waiter for which a request was not granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blocker {
    /// Its transaction.
    pub txn: TxnId,
    /// Its row or range that overlaps a requested one.
    pub item: LockItem,
    /// The mode in which it holds or requests it.
    pub mode: LockMode,
    /// True if it holds the item; false if it waits for it, earlier in the queue.
    pub granted: bool,
    /// The transaction's label.
    pub label: String,
    /// The transaction's client.
    pub client: String,
}

impl Blocker {
    /// The transaction in words: the client, the transaction and its label.
    pub fn who(&self) -> String {
        let client = if self.client.is_empty() { "a client without a name" } else { &self.client };
        let label = if self.label.is_empty() { String::new() } else { format!(", {}", self.label) };
        format!("{client} (transaction {}{label})", self.txn)
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.granted { "held by" } else { "waited for earlier by" };
        write!(f, "{} is {how} {}", self.item, self.who())
    }
}

/// Machine-readable particulars of an [`Error`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Detail {
    /// The whole cycle of a [`ErrorKind::Deadlock`]: each edge's holder is the next edge's waiter.
    Deadlock(Vec<DeadlockEdge>),
    /// The conflicting holder or waiter, of a [`ErrorKind::Conflict`] or a [`ErrorKind::Timeout`].
    Blocked(Blocker),
    /// The pause before another try.
    RetryAfter(Duration),
    /// The owner of the table.
    Owner {
        /// The owning incarnation.
        service: ServiceId,
        /// The owning node.
        node: NodeName,
        /// The address at which clients reach it.
        address: String,
    },
    /// The address at which the leader of the store is reached.
    Leader(String),
}
