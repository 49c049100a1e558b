//! One row or range that is held or waited for: its holders and its queue. Also queue positions.

use super::call::CallId;
use super::holders::{Holder, Holders};
use super::queue::{CommitNumber, Queue};
use crate::id::{CommitTimestamp, TxnId};
use crate::key::LockMode;

/// The position of a waiter in the one queue order of the node. Smaller is earlier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Position(pub(super) i64);

impl Position {
    /// Before every waiter.
    pub(super) const FIRST: Self = Self(i64::MIN);
    /// Behind every waiter.
    pub(super) const LAST: Self = Self(i64::MAX);
}

/// The positions that were given out, at both ends of the order.
#[derive(Debug, Default)]
pub(super) struct Positions {
    first: i64,
    last: i64,
}

impl Positions {
    /// The position of a wait that begins now: before all others for an upgrade, else behind them.
    pub(super) fn next(&mut self, upgrade: bool) -> Position {
        if upgrade {
            self.first -= 1;
            Position(self.first)
        } else {
            self.last += 1;
            Position(self.last)
        }
    }
}

/// A row or range. An entry without holders and waiters is removed.
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

    /// Adds a holder. Its transaction holds nothing here yet.
    pub(super) fn add(&mut self, holder: Holder) {
        self.holders.add(holder);
    }

    /// Ends the hold of a transaction.
    pub(super) fn take(&mut self, txn: TxnId) -> Option<Holder> {
        self.holders.take(txn)
    }

    /// The conflicting holders of a request of `txn` in `mode`, of later transactions than `after`.
    pub(super) fn conflicting(
        &self,
        txn: TxnId,
        mode: LockMode,
        after: Option<TxnId>,
    ) -> impl Iterator<Item = &Holder> {
        // An exclusive holder is the only one, so the first holder decides for all.
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
    pub(super) fn first_conflicting_waiter(&self, mode: LockMode) -> Option<(Position, CallId)> {
        self.queue().and_then(|queue| queue.first_incompatible(mode))
    }

    /// Puts a waiter into the queue. It will learn of the commits after number `commits`.
    pub(super) fn enqueue(
        &mut self,
        position: Position,
        id: CallId,
        mode: LockMode,
        commits: CommitNumber,
    ) {
        self.queue.get_or_insert_default().insert(position, id, mode, commits);
    }

    /// Takes a waiter out of the queue. Returns the largest timestamp of the commits that it learns
    /// of, if there are any.
    pub(super) fn dequeue(
        &mut self,
        position: Position,
        mode: LockMode,
    ) -> Option<CommitTimestamp> {
        let queue = self.queue.as_mut()?;
        let commit_ts = queue.remove(position, mode);
        if queue.is_empty() {
            self.queue = None;
        }
        commit_ts
    }
}
