//! Work in slices: one hold of the engine's mutex takes a bounded number of steps, and the rest is
//! done under later holds.
//!
//! A step is one item that is taken, given its token or released, or one waiter that may be
//! promoted. A single step is not divided: it may visit all entries that overlap a range, or search
//! the wait graph.
//!
//! All that is pending between two slices is in the state, so that other threads can act on it:
//!
//! - A call that takes many items is [`Moving`](Stage::Moving). It is registered, but in no queue.
//!   Its items are pending, as with a call that waits. No waiter waits for the call itself, so the
//!   wait graph has no edge from it. Such an edge begins only when the call has to wait.
//! - A call that ends without a grant is [`Failing`](Stage::Failing). It waits for nothing, and its
//!   items are rolled back, the last one first.
//! - A waiter that may be granted is a candidate, or waits for an item on the list `released`. A
//!   request that comes meanwhile queues behind it, as behind every other waiter.
//! - A transaction that ends holds the rest of its locks until they are released.
//!
//! The thread that [drains](EngineState::draining) goes on, hold after hold, until no work is
//! pending. Every other thread does as much as its own hold has room for, and goes on with the call
//! that it polls.
//!
//! # Known limits
//! Because of these limits, a hold has room for the largest call of a server ([`STEPS`]). Only the
//! end of a transaction with very many locks takes more than one hold.
//!
//! - **Promotion comes after calls that are between two holds.** While large calls follow each
//!   other without a pause, a waiter can wait for a row that is free, `released` grows uncounted,
//!   and is served from its end.
//! - **The draining thread works for all**, and returns only when no work is pending.
//! - A grant is given item by item. If a caller releases an item of its own call between two holds,
//!   the item becomes free although the call is granted (F1). No session does so, for its
//!   operations take turns (T2).
//! - `cancel_wait` and `seal` may return while another thread still rolls a call back.
//! - A range moves all uncontended holds that it overlaps into the state under one hold, also if it
//!   may not wait (`uncontended/inflate.rs`, `publish`): a whole-table lock over millions of rows
//!   takes seconds.
//! - An escalation replaces all rows of its transaction in the table under one hold
//!   (`call/escalate.rs`). `txn_lock_bytes_max` bounds their number.
//! - A table uses 256 bytes for each of its 8 to 16 shards. No limit counts these bytes, and they
//!   stay for the next table after this one was removed.
//! - A waker that panics leaves [`draining`](EngineState::draining) set.

use std::ops::ControlFlow;

use super::call::{CallId, EngineCall, Stage};
use super::entry::Position;
use super::lock_table::FirstConflict;
use super::queue::Queue;
use super::search::Address;
use super::state::EngineState;
use super::steps::step;
use crate::id::TableId;
use crate::key::{KeyRange, LockItem, LockMode};

/// Steps under one hold of the mutex: enough for the largest call that a server takes in (20,000
/// rows), some milliseconds.
///
/// The number is not smaller, because a call between two holds goes on before waiters are promoted.
/// Shorter holds would need a fair share between the two. Otherwise large calls in a row would keep
/// free rows from the waiters, and the thread that began would do the work of all threads.
pub(super) const STEPS: usize = 1 << 17;

/// The steps of one hold of the mutex, and how many of them remain.
#[derive(Debug)]
pub(super) struct Slice {
    steps_max: usize,
    remaining: usize,
}

impl Slice {
    pub(super) fn new(steps_max: usize) -> Self {
        let steps_max = steps_max.max(1);
        Self { steps_max, remaining: steps_max }
    }

    /// Begins a hold.
    pub(super) const fn begin(&mut self) {
        self.remaining = self.steps_max;
    }

    pub(super) const fn has_steps(&self) -> bool {
        self.remaining > 0
    }

    /// The number of steps that remain.
    pub(super) const fn steps(&self) -> usize {
        self.remaining
    }

    /// Takes one step.
    pub(super) fn spend(&mut self) {
        step();
        self.remaining = self.remaining.saturating_sub(1);
    }
}

/// An item that a holder or a waiter has left. Its waiters may have become grantable.
#[derive(Debug)]
pub(super) enum Released {
    Item(LockItem),
    /// A part of such a range: the rows whose queues were not visited yet.
    Rows(KeyRange),
}

impl EngineState {
    /// Grants all that can be granted, always to the first grantable waiter in queue order, until
    /// no work is pending or the slice is used up.
    pub(super) fn promote_waiters(&mut self) {
        if self.is_sealed() {
            // No call is left that waits.
            self.released.clear();
            self.candidates.clear();
        }
        while self.slice.has_steps() {
            // Calls that have begun come first: they are over before another waiter is promoted.
            if let Some((_, id)) = self.unfinished.pop_first() {
                self.go_on(id);
            } else if let Some(table) = self.refilled.pop() {
                self.serve_awaiting_token(table);
            } else if let Some((table, released)) = self.released.pop() {
                self.find_candidates(table, released);
            } else if let Some((position, id)) = self.candidates.pop_first() {
                self.promote(position, id);
            } else if let Some(nested) = self.recheck.pop() {
                self.slice.spend();
                if self.calls.get(nested).is_some_and(EngineCall::is_waiting) {
                    self.resolve_wait(nested);
                }
            } else {
                return;
            }
        }
    }

    /// True if no work is pending.
    pub(super) fn is_quiescent(&self) -> bool {
        self.unfinished.is_empty()
            && self.refilled.is_empty()
            && self.released.is_empty()
            && self.candidates.is_empty()
            && self.recheck.is_empty()
    }

    /// Makes a call that used up the slice go on in a later one, after those that did so before.
    pub(super) fn pause(&mut self, id: CallId) {
        let position = self.positions.next(false);
        self.calls[id].position = position;
        self.unfinished.insert(position, id);
    }

    /// Goes on with a call that is between two slices. True if it still is afterwards.
    pub(super) fn is_unfinished_after_a_slice(&mut self, id: CallId) -> bool {
        let is_unfinished =
            |state: &Self| matches!(state.calls[id].stage, Stage::Moving | Stage::Failing(_));
        if is_unfinished(self) {
            self.unfinished.remove(&self.calls[id].position);
            self.go_on(id);
        }
        is_unfinished(self)
    }

    /// Goes on with a call between two slices.
    fn go_on(&mut self, id: CallId) {
        if !matches!(self.calls[id].stage, Stage::Failing(_)) {
            self.move_on(id);
        } else if !self.roll_back_and_finish(id) {
            self.pause(id);
        }
    }

    /// Gives a token to the first call that waits for one in a table, if there are both.
    fn serve_awaiting_token(&mut self, id: TableId) {
        self.slice.spend();
        let Some(table) = self.tables.get_mut(&id).filter(|table| table.tokens.remaining() > 0)
        else {
            return;
        };
        let Some((_, call)) = table.awaiting_token.pop_first() else { return };
        self.refilled.push(id);
        self.calls[call].stage = Stage::Moving;
        self.move_on(call);
    }

    /// Finds the waiters that may have become grantable by a release: the first one of each queue.
    fn find_candidates(&mut self, id: TableId, released: Released) {
        self.slice.spend();
        let Some(table) = self.tables.get(&id) else { return };
        let range = match released {
            Released::Item(item @ LockItem::Row(_)) => {
                table.overlapping_queues(&item, |_, queue| {
                    self.candidates.extend(queue.first_after(Position::FIRST));
                    ControlFlow::Continue(())
                });
                return;
            }
            Released::Item(LockItem::Range(_)) if planted!(LostWakeUp) => return,
            Released::Item(item @ LockItem::Range(_)) => {
                table.overlapping_range_queues(&item, |queue| {
                    self.candidates.extend(queue.first_after(Position::FIRST));
                });
                let LockItem::Range(range) = item else { return };
                range
            }
            Released::Rows(range) => range,
        };
        let most = self.slice.steps().max(1);
        let slice = &mut self.slice;
        let rest = table.row_queues(&range, most, |queue| {
            slice.spend();
            self.candidates.extend(queue.first_after(Position::FIRST));
        });
        self.released.extend(rest.map(|rest| (id, Released::Rows(rest))));
    }

    /// Grants a waiter its item, if it has no conflict.
    fn promote(&mut self, position: Position, id: CallId) {
        self.slice.spend();
        let Some(call) =
            self.calls.get(id).filter(|call| call.is_waiting() && call.position == position)
        else {
            return;
        };
        let table = &self.tables[&call.table];
        match table.first_conflict(call.item(), call.txn, call.mode, position) {
            None => {
                // Those behind it that are compatible with it can be granted too.
                let queue = self.queue_of(id);
                self.candidates.extend(queue.and_then(|queue| queue.first_after(position)));
                self.continue_call(id);
            }
            Some(conflict) => {
                let mode = call.mode;
                let queue = self.queue_of(id).map(Address::of);
                // The conflict of a waiter for update need not be one of a sharer behind it.
                let sharer = |queue: &Queue| queue.first_of(LockMode::Shared, position);
                if mode == LockMode::Update
                    && let Some(sharer) = self.queue_of(id).and_then(sharer)
                {
                    self.candidates.insert(sharer);
                }
                // This holder conflicts with the waiters behind, except with itself, if it waits
                // there.
                if let FirstConflict::Holder(txn) = conflict
                    && let Some(own) = self.waiting_call(txn)
                    && self.calls[own].position > position
                    && self.queue_of(own).map(Address::of) == queue
                {
                    self.candidates.insert((self.calls[own].position, own));
                }
            }
        }
    }
}
