//! The limits of the engine: the room that a wait needs.

use std::ops::Bound;

use super::EngineCall;
use super::refusal::exhausted;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, LockItem, compare_ends};
use crate::table::memory::{TXN_BYTES, call_bytes, entry_bytes, held_bytes, queue_bytes};
use crate::table::state::EngineState;

impl EngineState {
    /// The limit that one more hold of a call's transaction would exceed, if there is one.
    pub(super) fn limit_of_hold(&self, call: &EngineCall, item: &LockItem) -> Option<&'static str> {
        let of_txn = self.txns.get(&call.txn).map_or(0, |txn| txn.bytes);
        if self.bytes + self.most_of_hold(call, item) > self.settings.lock_bytes_max {
            Some("lock_bytes_max")
        } else if of_txn + held_bytes(item) > self.settings.txn_lock_bytes_max {
            Some("txn_lock_bytes_max")
        } else {
            None
        }
    }

    /// The most memory that one more hold of a call's transaction adds, in bytes.
    pub(super) fn most_of_hold(&self, call: &EngineCall, item: &LockItem) -> usize {
        held_bytes(item) + self.record_to_come(call)
    }

    /// The most memory that the wait of a call for its next item adds, or its wait for a token, in
    /// bytes.
    pub(super) fn most_of_wait(&self, call: &EngineCall) -> usize {
        let of_item = |item: &LockItem| queue_bytes(item) + entry_bytes(item);
        let of_call = call_bytes(&call.items, call.ancestors.len());
        of_call + call.items.get(call.next).map_or(0, of_item) + self.record_to_come(call)
    }

    /// The memory of the record of a call's transaction, unless it is counted.
    fn record_to_come(&self, call: &EngineCall) -> usize {
        if self.txns.get(&call.txn).is_some() { 0 } else { TXN_BYTES }
    }

    /// Fails if no more calls may wait, or the wait does not fit into memory.
    pub(super) fn check_room_to_wait(&self, call: &EngineCall) -> Result<()> {
        if self.waiting_calls >= self.settings.waiters_max {
            return Err(exhausted("waiters_max"));
        }
        if self.bytes + self.most_of_wait(call) > self.settings.lock_bytes_max {
            return Err(exhausted("lock_bytes_max"));
        }
        Ok(())
    }

    /// Fails if there is no room to wait, or if the wait would be in vain: the limits would end the
    /// call as it is promoted, even if no other transaction held anything.
    pub(super) fn check_worth_waiting(&self, call: &EngineCall) -> Result<()> {
        self.check_room_to_wait(call)?;
        let held = self.txns.get(&call.txn).map_or(0, |txn| txn.bytes);
        let others = call_bytes(&call.items, call.ancestors.len()) + TXN_BYTES;
        let (txn_left, left) = (
            self.settings.txn_lock_bytes_max.saturating_sub(held),
            self.settings.lock_bytes_max.saturating_sub(held + others),
        );
        // There is nearly always room for all items. Then the new ones need not be found.
        let most = call.items[call.next..].iter().map(held_bytes).sum::<usize>();
        if most <= txn_left.min(left) {
            return Ok(());
        }
        let needed = self.bytes_to_come(call);
        let limit = match (needed > txn_left, needed > left) {
            (true, _) => "txn_lock_bytes_max",
            (_, true) => "lock_bytes_max",
            _ => return Ok(()),
        };
        Err(Error::new(
            ErrorKind::ResourceExhausted,
            "the request does not fit into a limit of the lock engine, however long it waits: \
             request less, release locks first, or raise the limit",
        )
        .with("limit", limit)
        .with("txn", call.txn))
    }

    /// The memory of the holds that a call has still to add, from its next item on.
    fn bytes_to_come(&self, call: &EngineCall) -> usize {
        let table = &self.tables[&call.table];
        let mut bytes = 0;
        // Items come in the order of their starts: an earlier one covers each that ends no later.
        let mut furthest: Option<Bound<&Key>> = None;
        for item in &call.items[call.next..] {
            if furthest.is_some_and(|end| compare_ends(item.end(), end).is_le()) {
                continue;
            }
            furthest = Some(item.end());
            let upgraded = table.entry(item).is_some_and(|entry| entry.holder(call.txn).is_some());
            if !upgraded && table.conflicts(item, call.txn, call.mode).covered.is_none() {
                bytes += held_bytes(item);
            }
        }
        bytes
    }
}
