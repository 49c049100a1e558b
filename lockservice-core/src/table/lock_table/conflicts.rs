//! The conflict check: the holders and waiters that keep a transaction from an item. Also the
//! commits that the waiters in conflict with a hold learn of.

use std::ops::ControlFlow;

use super::{ItemRef, LockTable};
use crate::error::Blocker;
use crate::id::{FencingToken, TxnId};
use crate::key::{LockItem, LockMode};
use crate::table::entry::{Entry, Position};
use crate::table::hash::IdMap;
use crate::table::holder::Holder;
use crate::table::queue::CommitNumber;
use crate::table::search::RequestKey;
use crate::table::types::Commit;

/// The outcome of a conflict check.
#[derive(Debug, Default)]
pub(in crate::table) struct Conflicts {
    /// The largest token under which the transaction already holds the item, at least as strongly.
    pub(in crate::table) covered: Option<FencingToken>,
    /// True if the transaction holds the item more weakly: the request is an upgrade.
    pub(in crate::table) upgrade: bool,
    /// The first conflicting holder.
    pub(in crate::table) held_by: Option<Blocker>,
}

/// The first conflict of a waiter.
#[derive(Clone, Copy, Debug)]
pub(in crate::table) enum FirstConflict {
    /// This transaction holds an incompatible lock.
    Holder(TxnId),
    /// A waiter for an incompatible lock is ahead in the queue.
    WaiterAhead,
}

impl LockTable {
    /// Checks a request of `txn` against the holders of an item.
    pub(in crate::table) fn conflicts(
        &self,
        item: &LockItem,
        txn: TxnId,
        mode: LockMode,
    ) -> Conflicts {
        let mut conflicts = Conflicts::default();
        let mut check = |at: ItemRef<'_>, entry: &Entry| {
            if let Some(own) = entry.holder(txn)
                && at.covers(item)
            {
                if own.mode >= mode {
                    conflicts.covered = conflicts.covered.max(Some(own.token()));
                } else {
                    conflicts.upgrade = true;
                }
            }
            if conflicts.held_by.is_none()
                && let Some(holder) = entry.conflicting(txn, mode, None).next()
            {
                conflicts.held_by = Some(blocker_of(at, holder));
            }
            // A conflicting holder excludes that the item is covered. It can still be an upgrade.
            if conflicts.held_by.is_some() && (conflicts.upgrade || matches!(at, ItemRef::Row(_))) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        // A conflict ends the visit of the rows: none of them covers a range of several keys.
        let _ = self.overlapping_rows(item, &mut check);
        let _ = self.overlapping_ranges(item, &mut check);
        conflicts
    }

    /// The first conflict of a waiter: a lock of another transaction, or a waiter before
    /// `position`.
    pub(in crate::table) fn first_conflict(
        &self,
        item: &LockItem,
        txn: TxnId,
        mode: LockMode,
        position: Position,
    ) -> Option<FirstConflict> {
        let mut conflict = None;
        self.overlapping(item, |_, entry| {
            conflict = match entry.conflicting(txn, mode, None).next() {
                Some(holder) => Some(FirstConflict::Holder(holder.txn)),
                None => entry
                    .first_conflicting_waiter(mode)
                    .filter(|(ahead, _)| *ahead < position)
                    .map(|_| FirstConflict::WaiterAhead),
            };
            if conflict.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        conflict
    }

    /// Notes a commit of `txn`, which holds these items: in the table, and in each queue that
    /// conflicts with one of the holds. `number` is that of the commit.
    pub(in crate::table) fn note_commit(
        &mut self,
        txn: TxnId,
        items: &[LockItem],
        number: CommitNumber,
        commit: Commit,
    ) {
        self.table_rows().history.note_commit(commit);
        if self.waiting.is_empty() {
            return;
        }
        // Each queue notes it once per mode, for any number of items that conflict with it.
        let mut seen = IdMap::default();
        let mut queues = Vec::new();
        for item in items {
            let Some(own) = self.entry(item).and_then(|entry| entry.holder(txn)) else { continue };
            self.overlapping_queues(item, |at, queue| {
                if seen.insert(RequestKey::new(Some(queue), own.mode), ()).is_none() {
                    queues.push((at.to_item(), own.mode));
                }
                ControlFlow::Continue(())
            });
        }
        for (item, mode) in queues {
            if let Some(queue) = self.entry_mut(&item).and_then(Entry::queue_mut) {
                queue.note_commit(mode, number, commit);
            }
        }
    }
}

/// A holder as the blocker of a call, without the names, which the engine does not know.
pub(in crate::table) fn blocker_of(at: ItemRef<'_>, holder: &Holder) -> Blocker {
    let (label, client) = (String::new(), String::new());
    Blocker { txn: holder.txn, item: at.to_item(), mode: holder.mode, granted: true, label, client }
}
