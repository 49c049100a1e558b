//! One row or range that is held or waited for: its holders and its queue.

use super::call::CallId;
use super::holders::{Holder, Holders};
use super::queue::Queue;
use crate::id::TxnId;
use crate::key::LockMode;

/// A waiter's place in the node's one queue order: smaller is earlier. An upgrade gets one before,
/// an ordinary wait one behind all others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Position(pub(super) i64);

impl Position {
    /// Before every waiter.
    pub(super) const FIRST: Self = Self(i64::MIN);
    /// Behind every waiter.
    pub(super) const LAST: Self = Self(i64::MAX);
}

/// See the module. Without holders and waiters it is removed.
#[derive(Debug, Default)]
pub(super) struct Entry {
    holders: Holders,
    queue: Option<Box<Queue>>,
}

impl Entry {
    pub(super) fn held_by(holder: Holder) -> Self {
        Self { holders: Holders::one(holder), queue: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.queue.is_none()
    }

    pub(super) const fn holders(&self) -> &Holders {
        &self.holders
    }

    pub(super) fn holder(&self, txn: TxnId) -> Option<&Holder> {
        self.holders.get(txn)
    }

    pub(super) fn holder_mut(&mut self, txn: TxnId) -> Option<&mut Holder> {
        self.holders.get_mut(txn)
    }

    /// Adds a holder; its transaction has none here.
    pub(super) fn add(&mut self, holder: Holder) {
        self.holders.add(holder);
    }

    pub(super) fn take(&mut self, txn: TxnId) -> Option<Holder> {
        self.holders.take(txn)
    }

    /// The holds, of later transactions than `after`, that keep `txn` from having this item in
    /// `mode`.
    pub(super) fn conflicting(
        &self,
        txn: TxnId,
        mode: LockMode,
        after: Option<TxnId>,
    ) -> impl Iterator<Item = &Holder> {
        // An exclusive holder is the only one, so one tells about all.
        let excluded = self.holders.first().is_some_and(|first| !mode.is_compatible(first.mode));
        excluded
            .then(|| self.holders.after(after))
            .into_iter()
            .flatten()
            .filter(move |holder| holder.txn != txn)
    }

    pub(super) fn queue(&self) -> Option<&Queue> {
        self.queue.as_deref()
    }

    pub(super) fn queue_mut(&mut self) -> Option<&mut Queue> {
        self.queue.as_deref_mut()
    }

    /// The first waiter that is incompatible with `mode`.
    pub(super) fn first_wanting(&self, mode: LockMode) -> Option<(Position, CallId)> {
        self.queue().and_then(|queue| queue.first_incompatible(mode))
    }

    /// Puts a waiter into the queue. It is told of the commits after the one with number `commits`.
    pub(super) fn enqueue(&mut self, position: Position, id: CallId, mode: LockMode, commits: u64) {
        self.queue.get_or_insert_default().insert(position, id, mode, commits);
    }

    /// Takes a waiter out of the queue. The largest timestamp of the commits that it is told of, if
    /// there are any.
    pub(super) fn dequeue(&mut self, position: Position, mode: LockMode) -> Option<u64> {
        let queue = self.queue.as_mut()?;
        let commit_ts = queue.remove(position, mode);
        if queue.is_empty() {
            self.queue = None;
        }
        commit_ts
    }
}
