//! Work in slices: one hold of the engine's mutex takes a bounded number of steps, and what is left
//! is done under later ones.
//!
//! A step here is one item that is taken, given its token or released, or one waiter whose turn it
//! may be. What a single step does is not divided: to look at everything that overlaps a range, or
//! for a cycle in the wait graph.
//!
//! Everything between two slices is in the state, so that others can act on it:
//!
//! - A call that takes many items is [`Moving`](Stage::Moving) and registered, but in no queue.
//!   What it has taken so far is pending, as with a call that waits. Nobody waits for the call
//!   itself, so there is no edge of the wait graph from it; one begins only if it has to wait.
//! - A call that ends without a grant is [`Failing`](Stage::Failing): it waits for nothing, and
//!   gives back what it took, the last item first.
//! - A waiter whose turn may have come is a candidate, or stands behind an item on the list of
//!   those left. A request that comes meanwhile queues behind it as behind every other waiter.
//! - Of a transaction that ends, the rest of its locks is held until it is released.
//!
//! Who [drains](EngineState::draining) goes on, hold after hold, until nothing is left to settle.
//! Everybody else only does what his own hold leaves room for, and goes on with the call that he
//! polls.

use std::ops::ControlFlow;

use super::call::{CallId, EngineCall, Stage};
use super::entry::{Entry, Position};
use super::lock_table::Obstacle;
use super::state::EngineState;
use super::steps::step;
use crate::id::TableId;
use crate::key::{KeyRange, LockItem};

/// Steps under one hold of the mutex: a fraction of a millisecond.
pub(super) const STEPS: usize = 256;

/// How much one hold of the mutex may do, and what of it is left.
#[derive(Debug)]
pub(super) struct Slice {
    most: usize,
    left: usize,
}

impl Slice {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, left: most }
    }

    /// A hold begins.
    pub(super) const fn begin(&mut self) {
        self.left = self.most;
    }

    pub(super) const fn has_steps(&self) -> bool {
        self.left > 0
    }

    /// How many steps are left.
    pub(super) const fn steps(&self) -> usize {
        self.left
    }

    pub(super) fn spend(&mut self) {
        step();
        self.left = self.left.saturating_sub(1);
    }
}

/// What somebody left.
#[derive(Debug)]
pub(super) enum Released {
    Item(LockItem),
    /// Of a range that was left, the rows whose queues were not looked at yet.
    Rows(KeyRange),
}

impl EngineState {
    /// Grants whatever can be granted, always to the first grantable waiter in queue order, until
    /// nothing is left to grant or the slice is used up.
    pub(super) fn promote_waiters(&mut self) {
        if self.is_sealed() {
            // Nobody waits any more: nothing is to be granted.
            self.released.clear();
            self.candidates.clear();
        }
        while self.slice.has_steps() {
            // What was begun first, so that a call is over before another one's turn comes.
            if let Some((_, id)) = self.unfinished.pop_first() {
                self.go_on(id);
            } else if let Some(table) = self.fed.pop() {
                self.feed(table);
            } else if let Some((table, left)) = self.released.pop() {
                self.find_candidates(table, left);
            } else if let Some((position, id)) = self.candidates.pop_first() {
                self.promote(position, id);
            } else if let Some(nested) = self.look_again.pop() {
                self.slice.spend();
                if self.calls.get(nested).is_some_and(EngineCall::is_waiting) {
                    self.resolve_wait(nested);
                }
            } else {
                return;
            }
        }
    }

    /// True if there is nothing to settle.
    pub(super) fn is_settled(&self) -> bool {
        self.unfinished.is_empty()
            && self.fed.is_empty()
            && self.released.is_empty()
            && self.candidates.is_empty()
            && self.look_again.is_empty()
    }

    /// A call has used the slice up: it goes on after those that have done so before.
    pub(super) fn pause(&mut self, id: CallId) {
        let position = self.next_position(false);
        self.calls[id].position = position;
        self.unfinished.insert(position, id);
    }

    /// Goes on with a call, if it is between two slices; true if it still is then.
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
        } else if !self.give_up(id) {
            self.pause(id);
        }
    }

    /// Gives the first call that waits for a token of a table one, if there is one.
    fn feed(&mut self, id: TableId) {
        self.slice.spend();
        let Some(table) = self.tables.get_mut(&id).filter(|table| table.tokens_left() > 0) else {
            return;
        };
        let Some((_, call)) = table.awaiting_token.pop_first() else { return };
        self.fed.push(id);
        self.calls[call].stage = Stage::Moving;
        self.move_on(call);
    }

    /// Finds the waiters whose turn may have come after something was left: the first one of each
    /// queue.
    fn find_candidates(&mut self, id: TableId, left: Released) {
        self.slice.spend();
        let Some(table) = self.tables.get(&id) else { return };
        let range = match left {
            Released::Item(item @ LockItem::Row(_)) => {
                table.overlapping_queues(&item, |_, queue| {
                    self.candidates.extend(queue.first_after(Position::FIRST));
                    ControlFlow::Continue(())
                });
                return;
            }
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

    /// Grants a waiter what it waits for, if nothing is in its way.
    fn promote(&mut self, position: Position, id: CallId) {
        self.slice.spend();
        let Some(call) =
            self.calls.get(id).filter(|call| call.is_waiting() && call.position == position)
        else {
            return;
        };
        let table = &self.tables[&call.table];
        match table.obstacle(call.item(), call.txn, call.mode, position) {
            None => {
                // A sharer may have others behind it that can go as well.
                let queue = table.entry(call.item()).and_then(Entry::queue);
                self.candidates.extend(queue.and_then(|queue| queue.first_after(position)));
                self.continue_call(id);
            }
            // It is in the way of everybody in this queue but of itself, if it waits there too.
            Some(Obstacle::Holder(txn)) => {
                if let Some(own) = self.waiting_call(txn)
                    && self.calls[own].position > position
                    && self.requested_at(own) == self.requested_at(id)
                {
                    self.candidates.insert((self.calls[own].position, own));
                }
            }
            Some(Obstacle::Ahead) => {}
        }
    }
}
