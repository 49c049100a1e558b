//! Releases and roll-backs: the ways in which holds end.

use super::call::{CallId, Stage, call_in_flight};
use super::memory::hold_bytes;
use super::slices::Released;
use super::state::EngineState;
use super::txn::BackTo;
use super::types::{Commit, Grant, ItemGrant};
use crate::bind::Bind;
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{FencingToken, TableId, TxnId};
use crate::key::{LockItem, LockMode};

/// What is left of a hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    All,
    Weaker,
    Nothing,
}

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
        commit: Option<Commit>,
    ) -> usize {
        let held = |state: &Self| state.txns.get(&txn).map_or(0, |txn| txn.count);
        let before = held(self);
        let mut releasable = Vec::new();
        for item in items {
            self.slice.spend();
            let entry = self.tables.get_mut(&table).and_then(|table| table.entry_mut(item));
            let is_releasable = entry.and_then(|entry| {
                entry.change(txn, |own| {
                    if own.pending {
                        // A call in flight has upgraded it. Only what lies beneath is released.
                        own.drop_layers();
                    }
                    !own.pending
                })
            });
            if is_releasable == Some(true) {
                releasable.push(item.clone());
            }
        }
        if let Some(commit) = commit
            && !releasable.is_empty()
            && let Some(table) = self.tables.get_mut(&table)
        {
            self.commits = self.commits.next();
            table.note_commit(txn, &releasable, self.commits, commit);
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
        commit: Option<Commit>,
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
            self.held -= items.len();
            self.release_some(id, table_id, &items, commit);
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
    /// waiters learn of its commit (C5).
    fn release_some(
        &mut self,
        id: TxnId,
        table_id: TableId,
        items: &[LockItem],
        commit: Option<Commit>,
    ) {
        self.bytes -= items.iter().map(hold_bytes).sum::<usize>();
        items.iter().for_each(|_| self.slice.spend());
        let Some(table) = self.tables.get_mut(&table_id) else { return };
        if let Some(commit) = commit {
            self.commits = self.commits.next();
            table.note_commit(id, items, self.commits, commit);
        }
        for item in items {
            table.take_hold(item, id, &mut self.bytes);
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
        let Some(holder) = table.take_hold(&item, id, &mut self.bytes) else { return };
        self.bytes -= hold_bytes(&item);
        self.held -= 1;
        let txn = self.txns.get_mut(&id).expect("a holder's transaction is known");
        if let Some(moved) = txn.remove(table_id, holder.slot) {
            table.set_slot(moved, id, holder.slot);
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
        let Some(entry) = table.entry_mut(&item) else { return };
        let left = entry.change(txn, |own| {
            let is_on_top = if own.pending { in_flight } else { own.is_of(token) };
            if is_on_top {
                if own.uncover() { Left::Weaker } else { Left::Nothing }
            } else {
                if !in_flight {
                    own.drop_layer(token);
                }
                Left::All
            }
        });
        self.end_hold(txn, id, item, left.unwrap_or(Left::All));
    }

    /// Releases a hold of which nothing is left, or has the waiters of a weaker one looked at.
    fn end_hold(&mut self, txn: TxnId, table: TableId, item: LockItem, left: Left) {
        match left {
            Left::All => {}
            Left::Weaker => self.released.push((table, Released::Item(item))),
            Left::Nothing => self.release(txn, table, item),
        }
    }

    /// Makes holds of a transaction weaker, as many as the slice allows. Returns how many of them
    /// were stronger.
    pub(super) fn downgrade(
        &mut self,
        txn: TxnId,
        bind: &Bind,
        items: &[LockItem],
        mode: LockMode,
    ) -> usize {
        let mut downgraded = 0;
        for item in items {
            self.slice.spend();
            let table = self.tables.get_mut(&bind.id);
            let table = table.filter(|table| table.bind.version == bind.version);
            let entry = table.and_then(|table| table.entry_mut(item));
            if entry.and_then(|entry| entry.change(txn, |own| own.downgrade(mode))) == Some(true) {
                downgraded += 1;
                self.end_hold(txn, bind.id, item.clone(), Left::Weaker);
            }
        }
        downgraded
    }

    /// Ends what the calls of a transaction since a savepoint were granted, as much as the slice
    /// allows. `None` if that takes another slice. Fails while a call of the transaction is in
    /// flight, or its outcome was not received yet.
    pub(super) fn roll_back_to(&mut self, id: TxnId, back: &mut BackTo) -> Option<Result<()>> {
        while self.slice.has_steps() {
            self.slice.spend();
            let Some(txn) = self.txns.get_mut(&id) else { return Some(Ok(())) };
            if txn.call.is_some() {
                return Some(Err(call_in_flight(id)));
            }
            let Some((table_id, item)) = txn.next_since(back) else {
                self.forget_if_idle(id);
                return Some(Ok(()));
            };
            let table = self.tables.get_mut(&table_id);
            let left = table.and_then(|table| table.entry_mut(&item)).and_then(|entry| {
                entry.change(id, |own| {
                    let before = own.mode;
                    match own.end_since(back.seq) {
                        false => Left::Nothing,
                        true if own.mode < before => Left::Weaker,
                        true => Left::All,
                    }
                })
            });
            let left = left.unwrap_or(Left::All);
            back.released += usize::from(left == Left::Nothing);
            self.end_hold(id, table_id, item, left);
            if let Some(txn) = self.txns.get_mut(&id) {
                txn.visited(back, table_id, left);
            }
        }
        None
    }
}
