//! One row or range that is held or waited for: its holders and its queue. Also queue positions.

use super::call::CallId;
use super::holder::Holder;
use super::holders::Holders;
use super::queue::{CommitNumber, Queue};
use super::types::Commit;
use crate::id::TxnId;
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

/// The positions that were given out, in two parts of the order: upgrades, then all others.
#[derive(Debug)]
pub(super) struct Positions {
    upgrade: i64,
    last: i64,
}

impl Default for Positions {
    fn default() -> Self {
        Self { upgrade: i64::MIN, last: 0 }
    }
}

impl Positions {
    /// The position of a wait that begins now: behind the other upgrades for an upgrade, else
    /// behind all.
    pub(super) const fn next(&mut self, upgrade: bool) -> Position {
        let last = if upgrade { &mut self.upgrade } else { &mut self.last };
        *last += 1;
        Position(*last)
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
        Self { holders: Holders::One(holder), queue: None }
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

    /// Changes the hold of a transaction, if it has one.
    pub(super) fn change<R>(
        &mut self,
        txn: TxnId,
        change: impl FnOnce(&mut Holder) -> R,
    ) -> Option<R> {
        self.holders.change(txn, change)
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
        // All holders are in the way of an exclusive request. Any other one shares with sharers, of
        // whom there may be many, so that only the holder that is none decides.
        let all = mode == LockMode::Exclusive;
        let strongest = self.holders.strongest().filter(|holder| {
            !all && !mode.is_compatible(holder.mode) && after.is_none_or(|txn| holder.txn > txn)
        });
        let holders = all.then(|| self.holders.after(after)).into_iter().flatten();
        holders.chain(strongest).filter(move |holder| holder.txn != txn)
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

    /// Takes a waiter out of the queue. Returns what it learns of commits, if there were any.
    pub(super) fn dequeue(&mut self, position: Position, mode: LockMode) -> Option<Commit> {
        let queue = self.queue.as_mut()?;
        let learned = queue.remove(position, mode);
        if queue.is_empty() {
            self.queue = None;
        }
        learned
    }
}
