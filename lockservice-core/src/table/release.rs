//! Releases and roll-backs: the ways in which holds end.

use super::call::{CallId, Stage, hold_bytes};
use super::holders::NONE;
use super::slices::Released;
use super::state::EngineState;
use super::types::{Grant, ItemGrant};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::id::{CommitTimestamp, FencingToken, TableId, TxnId};
use crate::key::LockItem;

/// The grant that is rolled back, for one of its items.
#[derive(Clone, Copy)]
pub(super) struct RollBack {
    /// The token of the grant.
    pub(super) token: FencingToken,
    /// True if its call is still in flight. Then holds without a token are rolled back too.
    pub(super) in_flight: bool,
}

impl EngineState {
    /// Releases chosen items of a transaction. Returns the number of them that it held.
    pub(super) fn unlock(
        &mut self,
        txn: TxnId,
        table: TableId,
        items: &[LockItem],
        commit_ts: Option<CommitTimestamp>,
    ) -> usize {
        let held = |state: &Self| state.txns.get(&txn).map_or(0, |txn| txn.count);
        let before = held(self);
        let mut releasable = Vec::new();
        for item in items {
            self.slice.spend();
            let entry = self.tables.get_mut(&table).and_then(|table| table.entry_mut(item));
            match entry.and_then(|entry| entry.holder_mut(txn)) {
                Some(own) if !own.pending => releasable.push(item.clone()),
                // A call in flight has upgraded it. Only the hold beneath the upgrade is released.
                Some(own) => own.drop_beneath(),
                None => {}
            }
        }
        if let Some(ts) = commit_ts
            && !releasable.is_empty()
            && let Some(table) = self.tables.get_mut(&table)
        {
            self.commits = self.commits.next();
            table.note_commit(txn, &releasable, self.commits, ts);
        }
        for item in releasable {
            self.release(txn, table, item);
        }
        let released = before - held(self);
        self.forget_if_idle(txn);
        released
    }

    /// Ends the call of a transaction and releases its holds, as many as the slice allows. Adds
    /// their number to `released`. True once it holds nothing.
    pub(super) fn unlock_all(
        &mut self,
        id: TxnId,
        commit_ts: Option<CommitTimestamp>,
        released: &mut usize,
    ) -> bool {
        if !self.end_call(id) {
            return false;
        }
        while self.slice.has_steps()
            && let Some(txn) = self.txns.get_mut(&id)
            && let Some((table_id, items)) = txn.take_some(self.slice.steps())
        {
            *released += items.len();
            self.release_some(id, table_id, &items, commit_ts);
        }
        if self.txns.get(&id).is_some_and(|txn| txn.count > 0) {
            return false;
        }
        self.forget_if_idle(id);
        true
    }

    /// Ends the call of a transaction that ends, if it has one. False if that takes another slice.
    fn end_call(&mut self, id: TxnId) -> bool {
        let Some(call) = self.txns.get(&id).and_then(|txn| txn.call) else { return true };
        let error = Error::new(
            ErrorKind::Cancelled,
            "the transaction ended while its call for a lock was in flight",
        )
        .with("txn", id);
        match self.calls[call].stage {
            Stage::Waiting | Stage::AwaitingToken | Stage::Moving | Stage::Failing(_) => {
                self.end_wait(call, Some(error));
                self.roll_back_and_finish(call)
            }
            // Its grant goes with the other holds and must not be received any more.
            Stage::Done(Ok(_)) => {
                self.finish(call, Err(error));
                true
            }
            Stage::Done(Err(_)) => true,
        }
    }

    /// Ends holds that were taken off the list of a transaction. The table and the conflicting
    /// waiters learn that it committed at `commit_ts` (C5).
    fn release_some(
        &mut self,
        id: TxnId,
        table_id: TableId,
        items: &[LockItem],
        commit_ts: Option<CommitTimestamp>,
    ) {
        let bytes = items.iter().map(hold_bytes).sum::<usize>();
        self.bytes -= bytes;
        if let Some(txn) = self.txns.get_mut(&id) {
            txn.bytes -= bytes;
        }
        items.iter().for_each(|_| self.slice.spend());
        let Some(table) = self.tables.get_mut(&table_id) else { return };
        if let Some(ts) = commit_ts {
            self.commits = self.commits.next();
            table.note_commit(id, items, self.commits, ts);
        }
        for item in items {
            table.take_hold(item, id);
            if !table.waiting.is_empty() {
                self.released.push((table_id, Released::Item(item.clone())));
            }
        }
    }

    /// Ends the wait of a transaction, if it waits.
    pub(super) fn cancel_wait(&mut self, id: TxnId) {
        let call = self.txns.get(&id).and_then(|txn| txn.call);
        // The outcome of a call that is over stands.
        let in_flight =
            |call: &CallId| !matches!(self.calls[*call].stage, Stage::Failing(_) | Stage::Done(_));
        if let Some(call) = call.filter(in_flight) {
            self.fail(
                call,
                Error::new(
                    ErrorKind::Cancelled,
                    "the transaction ended while it waited for a lock",
                )
                .with("txn", id),
            );
        }
    }

    /// Marks the history up to `now` as unknown in the tables where `id` holds locks (C5).
    pub(super) fn forget_history(&mut self, id: TxnId, now: Time) {
        let Some(txn) = self.txns.get(&id) else { return };
        for (table_id, _) in &txn.held {
            if let Some(table) = self.tables.get_mut(table_id) {
                table.table_rows().history.unknown_until(now);
            }
        }
    }

    /// Ends a transaction's hold on an item, if it has one.
    pub(super) fn release(&mut self, id: TxnId, table_id: TableId, item: LockItem) {
        let Some(table) = self.tables.get_mut(&table_id) else { return };
        let Some(holder) = table.take_hold(&item, id) else { return };
        let bytes = hold_bytes(&item);
        self.bytes -= bytes;
        let txn = self.txns.get_mut(&id).expect("a holder's transaction is known");
        if let Some(moved) = txn.remove(table_id, holder.slot, bytes) {
            let moved = table.entry_mut(moved).and_then(|entry| entry.holder_mut(id));
            moved.expect("the items in a transaction's list are held").slot = holder.slot;
        }
        if !table.waiting.is_empty() {
            self.released.push((table_id, Released::Item(item)));
        }
    }

    /// Rolls back some of the changes of a grant, the last one first.
    pub(super) fn roll_back_changes(
        &mut self,
        txn: TxnId,
        table: TableId,
        grant: &Grant,
        changes: &[ItemGrant],
    ) {
        if self
            .tables
            .get(&table)
            .is_none_or(|installed| installed.bind.version != grant.bind.version)
        {
            return;
        }
        for change in changes.iter().rev() {
            self.slice.spend();
            self.inflate(table, &change.item);
            let how = RollBack { token: grant.token, in_flight: false };
            self.roll_back_item(txn, table, change.item.clone(), how);
            self.retire(table, &change.item);
        }
        self.forget_if_idle(txn);
    }

    /// Rolls back the change of one grant to a hold.
    ///
    /// An upgrade lies on the hold before it. Rolling back one of the two leaves the other. Nothing
    /// is held once both are rolled back.
    pub(super) fn roll_back_item(
        &mut self,
        txn: TxnId,
        id: TableId,
        item: LockItem,
        RollBack { token, in_flight }: RollBack,
    ) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let Some(own) = table.entry_mut(&item).and_then(|entry| entry.holder_mut(txn)) else {
            return;
        };
        let is_on_top = if own.pending { in_flight } else { own.token == token };
        if !is_on_top {
            if !in_flight && own.beneath == token {
                own.drop_beneath();
            }
        } else if own.beneath == NONE {
            self.release(txn, id, item);
        } else {
            own.uncover();
            self.released.push((id, Released::Item(item)));
        }
    }
}
