//! The limits of the engine: estimates of memory, and the room that a wait needs.

use std::ops::Bound;

use super::refusal::exhausted;
use super::{CallId, EngineCall};
use crate::error::{Error, ErrorKind, Result};
use crate::id::TxnId;
use crate::key::{Key, LockItem, compare_ends};
use crate::table::state::EngineState;
use crate::table::txn::TxnHolds;

/// Keys up to this length lie inside of their items.
const KEY_INLINE_MAX: usize = 22;

/// Overhead of the heap allocator for a longer key, in bytes.
const HEAP_BLOCK_BYTES: usize = 16;

impl EngineState {
    /// Fails if no more calls may wait, or the wait does not fit into memory.
    pub(super) fn check_room_to_wait(&self, call: &EngineCall) -> Result<()> {
        if self.waiting_calls >= self.settings.waiters_max {
            return Err(exhausted("waiters_max"));
        }
        if self.bytes + wait_bytes(call) > self.settings.lock_bytes_max {
            return Err(exhausted("lock_bytes_max"));
        }
        Ok(())
    }

    /// Fails if there is no room to wait, or if the wait would be in vain: the limits would end the
    /// call as it is promoted, even if no other transaction held anything.
    pub(super) fn check_worth_waiting(&self, call: &EngineCall) -> Result<()> {
        self.check_room_to_wait(call)?;
        let held = self.txns.get(&call.txn).map_or(0, |txn| txn.bytes);
        let (txn_left, left) = (
            self.settings.txn_lock_bytes_max.saturating_sub(held),
            self.settings.lock_bytes_max.saturating_sub(held + wait_bytes(call)),
        );
        // There is nearly always room for all items. Then the new ones need not be found.
        let most = call.items[call.next..].iter().map(hold_bytes).sum::<usize>();
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
                bytes += hold_bytes(item);
            }
        }
        bytes
    }
}

/// Estimated memory of one hold with a short key, in bytes: the entry, the holder, and the slot in
/// the list of the transaction.
const HOLD_BYTES: usize = 240;

/// Estimated memory of one wait without its items and ancestors, in bytes.
const WAIT_BYTES: usize = 320;

/// Estimated memory of a hold, in bytes. The entry and the transaction each store the key.
pub(in crate::table) fn hold_bytes(item: &LockItem) -> usize {
    HOLD_BYTES + 2 * item_heap_bytes(item)
}

/// Like [`hold_bytes`], for a row.
pub(in crate::table) fn row_hold_bytes(key: &Key) -> usize {
    HOLD_BYTES + 2 * key_heap_bytes(key)
}

/// Estimated memory of a wait, in bytes.
pub(super) fn wait_bytes(call: &EngineCall) -> usize {
    // The record of an ancestor may exist for this call alone.
    let ancestors = call.ancestors.len() * (size_of::<(TxnId, TxnHolds)>() + size_of::<CallId>());
    WAIT_BYTES
        + ancestors
        + call.items.iter().map(|item| size_of::<LockItem>() + item_heap_bytes(item)).sum::<usize>()
}

fn item_heap_bytes(item: &LockItem) -> usize {
    let bound = |bound: Bound<&Key>| match bound {
        Bound::Included(at) | Bound::Excluded(at) => key_heap_bytes(at),
        Bound::Unbounded => 0,
    };
    match item {
        LockItem::Row(key) => key_heap_bytes(key),
        LockItem::Range(range) => bound(range.start()) + bound(range.end()),
    }
}

/// The memory of a key outside of its item, in bytes.
fn key_heap_bytes(key: &Key) -> usize {
    let bytes = key.as_bytes().len();
    if bytes > KEY_INLINE_MAX { bytes + HEAP_BLOCK_BYTES } else { 0 }
}
