//! [`SessionState`]: the queues of a session's transactions, and what they weigh together.

use std::collections::HashSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::guarded_map::KeyHasher;
use crate::id::TxnNumber;
use crate::service::kill::KillWaiter;
use crate::service::session::loss::Loss;
use crate::service::session::queue::{NumberedBy, TxnQueue};
use crate::service::session::quota::Charge;
use crate::service::txn::TxnRecord;
use crate::spare::shrunk;

/// Transactions of a session for which it keeps the memory of its map.
const TXNS_KEPT: usize = 64;

/// How far a session has come. It never goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::service) enum Stage {
    Open,
    /// It takes no operation and is not renewed, and its transactions keep their locks.
    Stopped,
    /// Its transactions were given up.
    Over,
}

#[derive(Debug)]
pub(in crate::service) struct SessionState {
    pub(in crate::service) stage: Stage,
    /// The transactions of a session that is stopped.
    pub(in crate::service) stopped: Vec<Arc<TxnRecord>>,
    /// Those who wait for the end of a session that was killed.
    pub(in crate::service) killers: Vec<KillWaiter>,
    pub(in crate::service) txns: HashMap<TxnNumber, Box<TxnQueue>, KeyHasher>,
    /// Those of `txns` that were killed, in the order of their kills.
    pub(in crate::service) lost: Vec<TxnNumber>,
    /// The highest transaction number that was ever used: a lower one that is not in `txns` has
    /// ended (T3).
    pub(in crate::service) highest: TxnNumber,
    /// The side that numbers the transactions; `None` before the first.
    pub(in crate::service) numbered_by: Option<NumberedBy>,
    /// About how much memory is in use for what `txns` keep.
    pub(in crate::service) kept_bytes: usize,
    /// The number of operations of `txns` that are queued or wait.
    pub(in crate::service) ops: usize,
    pub(in crate::service) charge: Charge,
    /// Transactions of which a claim was refused (P6), until the client has claimed everything.
    pub(in crate::service) refused_claims: HashSet<TxnNumber>,
    /// A claim failed that may have been of something held. What it was of stays closed to others
    /// for the full wait, whatever the client says then: its work may still run (P5).
    pub(in crate::service) has_lost_claims: bool,
    /// The client has said that it claimed everything.
    pub(in crate::service) has_claimed: bool,
}

impl SessionState {
    /// Lets `change` change the queue of a transaction, if there is one, and counts the kept bytes.
    /// `change` gets the bytes that all others keep.
    pub(in crate::service) fn with_queue<R>(
        &mut self,
        number: TxnNumber,
        change: impl FnOnce(&mut TxnQueue, usize) -> R,
    ) -> Option<R> {
        let queue = self.txns.get_mut(&number)?;
        let others = self.kept_bytes - queue.kept_bytes();
        let other_ops = self.ops - queue.ops_under_way();
        let response = change(queue, others);
        self.kept_bytes = others + queue.kept_bytes();
        self.ops = other_ops + queue.ops_under_way();
        self.charge.set(self.ops, self.kept_bytes);
        Some(response)
    }

    pub(in crate::service) fn remove_queue(&mut self, number: TxnNumber) -> Option<Box<TxnQueue>> {
        let queue = self.txns.remove(&number)?;
        if queue.loss != Loss::No {
            self.lost.retain(|lost| *lost != number);
        }
        if let Some(capacity) = shrunk(self.txns.len(), self.txns.capacity(), TXNS_KEPT) {
            self.txns.shrink_to(capacity);
        }
        self.kept_bytes -= queue.kept_bytes();
        self.ops -= queue.ops_under_way();
        self.charge.set(self.ops, self.kept_bytes);
        Some(queue)
    }

    /// Fails unless the transactions are numbered by this side, or there was none yet.
    pub(in crate::service) fn number_by(&mut self, by: NumberedBy) -> Result<()> {
        if *self.numbered_by.get_or_insert(by) == by {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidArgument,
            "either the client numbers the transactions of a session or the server does: begin \
                them all in one way",
        ))
    }
}
