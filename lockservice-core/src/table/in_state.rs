//! Ends of holds that are in the state: the engine takes them in slices, each under its own hold of
//! the mutex. `uncontended/` calls this for the holds that it does not have.

use super::engine::LockEngine;
use super::txn::BackTo;
use super::types::{Commit, Grant};
use super::uncontended::HoldSeq;
use crate::bind::Bind;
use crate::clock::Time;
use crate::error::Result;
use crate::id::{TableId, TxnId};
use crate::key::{LockItem, LockMode};

impl LockEngine {
    /// Like [`roll_back`](Self::roll_back). Uncontended holds are inflated first.
    pub(super) fn roll_back_in_state(&self, txn: TxnId, table: TableId, grant: &Grant) {
        let mut changes = grant.owner.changes.as_slice();
        self.in_slices(|state| {
            let (rest, last) = changes.split_at(changes.len().saturating_sub(state.slice.steps()));
            state.roll_back_changes(txn, table, grant, last);
            changes = rest;
            changes.is_empty().then_some(())
        });
    }

    /// Releases chosen items in the state.
    pub(super) fn unlock_in_state(
        &self,
        txn: TxnId,
        table: TableId,
        items: &[LockItem],
        commit: Option<Commit>,
    ) -> usize {
        let (mut items, mut released) = (items, 0);
        self.in_slices(|state| {
            let (first, rest) = items.split_at(items.len().min(state.slice.steps()));
            released += state.unlock(txn, table, first, commit);
            items = rest;
            items.is_empty().then_some(())
        });
        released
    }

    /// Ends what the calls of a transaction from `seq` on were granted in the state. Returns the
    /// number of released items. Fails while a call is in flight; then a part may have ended.
    pub(super) fn roll_back_to_in_state(&self, txn: TxnId, seq: HoldSeq) -> Result<usize> {
        let mut back = BackTo::new(seq);
        let outcome = self.in_slices(|state| state.roll_back_to(txn, &mut back));
        outcome.unwrap_or(Ok(())).map(|()| back.released)
    }

    /// Makes holds of a transaction in the state weaker.
    pub(super) fn downgrade_in_state(
        &self,
        txn: TxnId,
        bind: &Bind,
        items: &[LockItem],
        mode: LockMode,
    ) -> usize {
        let (mut items, mut downgraded) = (items, 0);
        self.in_slices(|state| {
            let (first, rest) = items.split_at(items.len().min(state.slice.steps()));
            downgraded += state.downgrade(txn, bind, first, mode);
            items = rest;
            items.is_empty().then_some(())
        });
        downgraded
    }

    /// True if a call of a transaction is in flight, or its outcome was not received yet.
    pub(super) fn has_call(&self, txn: TxnId) -> bool {
        self.state().lock().txns.get(&txn).is_some_and(|txn| txn.call.is_some())
    }

    /// Releases all holds of a transaction in the state.
    pub(super) fn unlock_all_in_state(&self, txn: TxnId, commit: Option<Commit>) -> usize {
        let mut released = 0;
        self.in_slices(|state| state.unlock_all(txn, commit, &mut released).then_some(()));
        released
    }

    /// As [`unlock_all_in_state`](Self::unlock_all_in_state). The history of its tables is unknown
    /// up to now.
    pub(super) fn unlock_all_forced_in_state(&self, txn: TxnId, now: Time) -> usize {
        let mut released = 0;
        self.in_slices(|state| {
            // Repeating this changes nothing.
            state.forget_history(txn, now);
            state.unlock_all(txn, None, &mut released).then_some(())
        });
        released
    }

    /// True if a transaction holds something in a table, in the state.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(super) fn holds_in_state(&self, txn: TxnId, table: TableId) -> bool {
        let state = self.state().lock();
        state.txns.get(&txn).is_some_and(|txn| txn.items_in(table).is_some())
    }

    /// The number of rows and ranges that a transaction holds in the state.
    pub(super) fn held_in_state(&self, txn: TxnId) -> usize {
        self.with(|state| state.txns.get(&txn).map_or(0, |txn| txn.count))
    }
}
