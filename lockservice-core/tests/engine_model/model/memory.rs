//! The memory that the engine counts: here a sum over the lists, each time.

use std::collections::BTreeSet;

use lockservice_core::LockItem;
use lockservice_core::table::EngineMemory;

use super::{Call, Hold, Model};

impl Model {
    /// The state learns of the holds that overlap an item, before it decides about that.
    pub(super) fn inflate(&mut self, table: usize, item: &LockItem) {
        let overlaps = |hold: &&mut Hold| hold.table == table && hold.item.overlaps(item);
        self.holds.iter_mut().filter(overlaps).for_each(|hold| hold.in_state = true);
    }

    /// The state learns of all holds of a transaction, before it decides a call of it.
    pub(super) fn inflate_own(&mut self, txn: usize) {
        self.holds.iter_mut().filter(|hold| hold.txn == txn).for_each(|own| own.in_state = true);
    }

    /// The memory of all holds and waits.
    pub(crate) fn all_bytes(&self) -> usize {
        self.bytes_beside(None)
    }

    /// As [`all_bytes`](Self::all_bytes), while a call is in no list.
    fn bytes_beside<'a>(&'a self, call: Option<&'a Call>) -> usize {
        let waiting = || self.queue.iter().chain(&self.awaiting_token);
        let kept = call.filter(|call| call.waited);
        let calls = waiting().chain(kept).map(|call| EngineMemory::call(&call.items));
        let in_state = || self.holds.iter().filter(|hold| hold.in_state);
        let in_shards = self.holds.iter().filter(|hold| !hold.in_state).map(row_bytes);
        let holds = in_state().map(|hold| EngineMemory::hold(&hold.item)).chain(in_shards);

        let awaited = |call: &'a Call| (call.table, &call.items[call.next]);
        let queues = distinct(self.queue.iter().map(awaited));
        let held = in_state().map(|hold| (hold.table, &hold.item));
        let promoted = kept.filter(|call| call.promoted).map(awaited);
        let entries = distinct(held.chain(promoted).chain(queues.iter().copied()));
        let queues = queues.iter().map(|(_, item)| EngineMemory::queue(item));
        let entries = entries.iter().map(|(_, item)| EngineMemory::entry(item));

        // A call is kept until its outcome was received, unless it was over at once.
        let over = self.done.keys().copied().filter(|txn| !self.at_once.contains(txn));
        let known = in_state().map(|hold| hold.txn).chain(over);
        let known: BTreeSet<_> = known.chain(waiting().chain(kept).map(|call| call.txn)).collect();

        let parts = holds.chain(queues).chain(entries).chain(calls);
        parts.sum::<usize>() + known.len() * EngineMemory::TXN
    }

    /// The memory of a transaction's holds in the state, with their entries.
    pub(super) fn bytes_of(&self, txn: usize) -> usize {
        let own = self.holds.iter().filter(|hold| hold.txn == txn && hold.in_state);
        own.map(|hold| held_bytes(&hold.item)).sum()
    }

    /// The memory of the record of a call's transaction, unless it is counted.
    fn record_to_come(&self, call: &Call) -> usize {
        let holds = self.holds.iter().any(|hold| hold.txn == call.txn && hold.in_state);
        if holds || call.waited { 0 } else { EngineMemory::TXN }
    }

    /// True if one more hold of the call's transaction would exceed a limit.
    pub(super) fn is_full(&self, call: &Call, item: &LockItem) -> bool {
        let most = held_bytes(item) + self.record_to_come(call);
        self.bytes_beside(Some(call)) + most > self.settings.lock_bytes_max
            || self.bytes_of(call.txn) + held_bytes(item) > self.settings.txn_lock_bytes_max
    }

    /// True if `range` fits once the holds that it replaces are released.
    pub(super) fn fits_for(&self, range: &LockItem, replaced: &[&Hold], call: &Call) -> bool {
        let sum =
            |of: fn(&LockItem) -> usize| replaced.iter().map(|hold| of(&hold.item)).sum::<usize>();
        let (all, own) = (self.bytes_beside(Some(call)), self.bytes_of(call.txn));
        let needed = held_bytes(range);
        all + needed + self.record_to_come(call) - sum(EngineMemory::hold)
            <= self.settings.lock_bytes_max
            && own + needed - sum(held_bytes) <= self.settings.txn_lock_bytes_max
    }

    /// A hold in a shard is within the limit of its transaction, if each of its holds is counted
    /// as if it was in a shard too.
    pub(super) fn check_own_limit(&self, txn: usize) {
        let own = self.holds.iter().filter(|hold| hold.txn == txn);
        assert!(own.map(row_bytes).sum::<usize>() <= self.settings.txn_lock_bytes_max);
    }

    pub(super) fn has_room_to_wait(&self, call: &Call) -> bool {
        let in_flight = self.queue.len() + self.awaiting_token.len();
        let of_item = call
            .items
            .get(call.next)
            .map_or(0, |item| EngineMemory::queue(item) + EngineMemory::entry(item));
        let most = EngineMemory::call(&call.items) + of_item + self.record_to_come(call);
        in_flight < self.settings.waiters_max
            && self.bytes_beside(Some(call)) + most <= self.settings.lock_bytes_max
    }

    /// True if the limits allow the rest of the call's items while no other transaction holds any.
    pub(super) fn can_ever_fit(&self, call: &Call) -> bool {
        let own = |exact: bool, item: &LockItem| {
            let mut own =
                self.holds.iter().filter(|hold| hold.txn == call.txn && hold.table == call.table);
            own.any(|hold| {
                if exact {
                    hold.item == *item
                } else {
                    hold.mode >= call.mode && hold.item.covers(item)
                }
            })
        };
        let mut new: Vec<&LockItem> = Vec::new();
        let mut later: Vec<&LockItem> = Vec::new();
        for item in &call.items[call.next..] {
            let covered = own(false, item) || later.iter().any(|earlier| earlier.covers(item));
            later.push(item);
            if !covered && !own(true, item) {
                new.push(item);
            }
        }
        let needed: usize = new.into_iter().map(held_bytes).sum();
        let held = self.bytes_of(call.txn);
        let others = held + EngineMemory::call(&call.items) + EngineMemory::TXN;
        // What holds exceed a limit by does not keep a call from an upgrade.
        needed <= self.settings.txn_lock_bytes_max.saturating_sub(held)
            && needed <= self.settings.lock_bytes_max.saturating_sub(others)
    }
}

/// Each item of a table once.
fn distinct<'a>(all: impl Iterator<Item = (usize, &'a LockItem)>) -> Vec<(usize, &'a LockItem)> {
    let mut once = Vec::new();
    all.for_each(|item| {
        if !once.contains(&item) {
            once.push(item);
        }
    });
    once
}

/// A hold in the state as if it was alone.
fn held_bytes(item: &LockItem) -> usize {
    EngineMemory::hold(item) + EngineMemory::entry(item)
}

/// A hold as if it was in a shard.
fn row_bytes(hold: &Hold) -> usize {
    hold.item.as_row().map_or(0, EngineMemory::row)
}
