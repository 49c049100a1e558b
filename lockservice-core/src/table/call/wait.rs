//! The wait of a call: in the queue of its next item for a lock, or with its table for a token.

use std::ops::ControlFlow;

use super::refusal::held_by_ancestor;
use super::{Arrival, CallId, EngineCall, Stage, is_range};
use crate::id::TxnId;
use crate::table::entry::{Entry, Position};
use crate::table::memory::call_bytes;
use crate::table::queue::merge;
use crate::table::state::EngineState;
use crate::table::steps::step;

impl EngineState {
    /// Puts a call into the queue of its next item, and resolves the cycles that this closes. If
    /// that ends the call, its stage says so.
    pub(super) fn begin_wait(&mut self, id: CallId, upgrade: bool) {
        self.count_wait(id);
        let call = &mut self.calls[id];
        call.stage = Stage::Waiting;
        call.waited = true;
        let keeps_place = call.arrival == Arrival::Earlier && !upgrade;
        let position = if keeps_place {
            self.positions.next_earlier(call.since)
        } else {
            self.positions.next(upgrade)
        };
        self.enqueue(id, position);
        self.resolve_wait(id);
        if keeps_place && self.calls[id].is_waiting() {
            // All that keeps it from its item may be waiters that are behind it now.
            self.candidates.insert((self.calls[id].position, id));
        }
    }

    /// Makes a call that has all its items wait for a token, behind those that wait already.
    pub(super) fn begin_token_wait(&mut self, id: CallId) {
        let position = self.positions.next(false);
        let call = &mut self.calls[id];
        call.stage = Stage::AwaitingToken;
        call.position = position;
        self.tables
            .get_mut(&call.table)
            .expect("calls end with their table")
            .awaiting_token
            .insert(position, id);
    }

    /// Counts a call, and its memory, among those that wait. A later wait of the same call changes
    /// nothing.
    pub(super) fn count_wait(&mut self, id: CallId) {
        let call = &mut self.calls[id];
        if call.bytes == 0 {
            call.bytes = call_bytes(&call.items, call.ancestors.len());
            self.bytes += call.bytes;
            self.waiting_calls += 1;
        }
    }

    /// Reverses [`count_wait`](Self::count_wait).
    pub(super) fn uncount_wait(&mut self, id: CallId) {
        let call = &mut self.calls[id];
        if call.bytes > 0 {
            self.bytes -= std::mem::take(&mut call.bytes);
            self.waiting_calls -= 1;
        }
    }

    /// Puts a call into the queue of its next item, at `position`.
    pub(in crate::table) fn enqueue(&mut self, id: CallId, position: Position) {
        let call = &mut self.calls[id];
        call.position = position;
        let table = self.tables.get_mut(&call.table).expect("calls end with their table");
        table.enqueue((call.item(), call.mode), position, id, self.commits, &mut self.bytes);
    }

    /// Takes a call out of the queue in which it waits. The call learns of the commits that were
    /// noted there since its wait began (C5). The caller then handles the item, as with
    /// [`LockTable::dequeue`](crate::table::lock_table::LockTable::dequeue).
    pub(in crate::table) fn dequeue(&mut self, call: &mut EngineCall) {
        let Some(table) = self.tables.get_mut(&call.table) else { return };
        let learned = table.dequeue(call.item(), call.position, call.mode, &mut self.bytes);
        call.prev_commit = call.prev_commit.into_iter().chain(learned).reduce(merge);
    }

    /// Fails a waiter that waits for an ancestor, or resolves the cycles that the wait closes.
    pub(in crate::table) fn resolve_wait(&mut self, id: CallId) {
        match self.conflicting_ancestor(&self.calls[id]) {
            Some(ancestor) => {
                let error = held_by_ancestor(&self.calls[id], ancestor);
                self.fail(id, error);
            }
            None => self.resolve_cycles(id),
        }
    }

    /// An ancestor of a call that holds a lock in conflict with the call's next item, if there is
    /// one.
    pub(super) fn conflicting_ancestor(&self, call: &EngineCall) -> Option<TxnId> {
        if call.ancestors.is_empty() {
            return None;
        }
        let table = &self.tables[&call.table];
        let excludes = |entry: &Entry, ancestor: TxnId| {
            entry.holder(ancestor).is_some_and(|held| !held.mode.is_compatible(call.mode))
        };
        if is_range(call.item()) {
            // A range can overlap every lock of the table; the ancestors hold fewer.
            return call.ancestors.iter().copied().find(|ancestor| {
                let held = self.txns.get(ancestor).into_iter().flat_map(|txn| &txn.held);
                let mut items =
                    held.filter(|(id, _)| *id == call.table).flat_map(|(_, items)| items.iter());
                items.any(|item| {
                    step();
                    item.overlaps(call.item())
                        && table.entry(item).is_some_and(|entry| excludes(entry, *ancestor))
                })
            });
        }
        let mut found = None;
        table.overlapping(call.item(), |_, entry| {
            found = call.ancestors.iter().copied().find(|ancestor| excludes(entry, *ancestor));
            if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found
    }
}
