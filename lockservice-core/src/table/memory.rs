//! Estimates of the memory that locks and waits take: what the settings call memory.
//!
//! An estimate is what the process uses, within a fifth, for many locks of one kind:
//! `tests/memory_bounds.rs` measures that with a counting allocator. Each part is counted when it
//! comes into being, and uncounted when it goes:
//!
//! | part | counted with |
//! |---|---|
//! | a row that is held in a shard | [`row_bytes`] |
//! | an entry of the state: a row or range with holders or waiters | [`entry_bytes`] |
//! | each hold of an entry | [`hold_bytes`] |
//! | the queue of an entry with waiters | [`queue_bytes`] |
//! | a call that waits | [`call_bytes`] |
//! | a transaction that the state knows | [`TXN_BYTES`] |
//!
//! A limit is checked with the most that a step can add: as if there was no entry yet and no queue.
//! So a call exceeds no limit, except by the records of its ancestors, or by its own record while
//! it is between two slices. A hold that another call meets moves from its shard to the state,
//! where it takes more. That is no step of its own transaction and is never refused: it can exceed
//! the limits, and then further calls are refused.
//!
//! A transaction's own limit counts each hold in the state with its entry, also if others share
//! that.
//!
//! Collections grow in steps. What they have in reserve is part of the estimates, on average.
//!
//! Not counted:
//!
//! - the outcome of a call until it is taken,
//! - the items that a call has taken before the one that it waits for,
//! - tables without locks,
//! - the layers of upgraded holds,
//! - a conflicting item that a waiter tells of, if it is another one than it requested,
//! - the free slots of a shard, if many of its rows were released and others remain: it gives
//!   memory back in chunks of rows.

use std::ops::Bound;

use smallvec::{Array, SmallVec};

use super::call::CallId;
use crate::id::TxnId;
use crate::key::{Key, LockItem};

/// Keys up to this length lie inside of their items.
const KEY_INLINE_MAX: usize = 22;

/// Overhead of the heap allocator for one block, in bytes.
const HEAP_BLOCK_BYTES: usize = 16;

/// A row in its shard, its place in the shard's index and order, and in the list of its
/// transaction.
const ROW_BYTES: usize = 85;

/// The entry of a row, with its first holder, and the mark in the shard.
const ROW_ENTRY_BYTES: usize = 170;

/// The entry of a range, with its first holder, and its place in the index of published ranges.
const RANGE_ENTRY_BYTES: usize = 330;

/// A holder beside the first, or the slot in the list of a transaction that holds many.
const HOLD_BYTES: usize = 140;

/// The record of a transaction with its first hold.
pub(super) const TXN_BYTES: usize = 180;

/// The queue of an entry with its first waiter.
const QUEUE_BYTES: usize = 440;

/// A call that waits, without its items and ancestors.
const CALL_BYTES: usize = 480;

/// The memory of a row that is held in a shard, in bytes.
pub(super) fn row_bytes(key: &Key) -> usize {
    ROW_BYTES + key_heap_bytes(key)
}

/// The memory of an entry with one holder or without, in bytes. A row is in the table and in its
/// shard, a range in the table and among the published ones, each time with the furthest end.
pub(super) fn entry_bytes(item: &LockItem) -> usize {
    match item {
        LockItem::Row(key) => ROW_ENTRY_BYTES + 2 * key_heap_bytes(key),
        LockItem::Range(_) => RANGE_ENTRY_BYTES + 3 * item_heap_bytes(item),
    }
}

/// The memory of a hold in the state, in bytes, without its entry.
pub(super) fn hold_bytes(item: &LockItem) -> usize {
    HOLD_BYTES + item_heap_bytes(item)
}

/// The memory of a hold in the state and of its entry, in bytes.
pub(super) fn held_bytes(item: &LockItem) -> usize {
    hold_bytes(item) + entry_bytes(item)
}

/// The memory of the queue of an item, in bytes. The table lists the rows that are waited for.
pub(super) fn queue_bytes(item: &LockItem) -> usize {
    match item {
        LockItem::Row(key) => QUEUE_BYTES + key_heap_bytes(key),
        LockItem::Range(_) => QUEUE_BYTES,
    }
}

/// The memory of a call that waits, in bytes, without the queue and the entry of the item that it
/// waits for.
pub(super) fn call_bytes(items: &[LockItem], ancestors: usize) -> usize {
    let items = items.iter().map(|item| size_of::<LockItem>() + item_heap_bytes(item));
    CALL_BYTES + ancestors * (size_of::<TxnId>() + size_of::<CallId>()) + items.sum::<usize>()
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

/// The length from which on a list grows by a quarter.
const LONG_LIST: usize = 64;

/// Makes room for one more in a list of holds. Such lists take a good part of the memory, and
/// doubling would leave up to half of it unused.
pub(super) fn reserve_one<A: Array>(list: &mut SmallVec<A>) {
    let len = list.len();
    if len == list.capacity() {
        list.reserve_exact((if len < LONG_LIST { len / 2 } else { len / 4 }).max(1));
    }
}

/// Gives back what a list has in reserve, once that is most of it.
pub(super) fn shrink<A: Array>(list: &mut SmallVec<A>) {
    if list.capacity() >= LONG_LIST && list.len() < list.capacity() / 4 {
        list.shrink_to_fit();
    }
}

/// The estimates, for tests of the limits.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub struct EngineMemory;

#[cfg(any(test, feature = "testing"))]
impl EngineMemory {
    /// Of the record of a transaction in the state, in bytes.
    pub const TXN: usize = TXN_BYTES;

    /// Of a row that is held without contention, in bytes.
    pub fn row(key: &Key) -> usize {
        row_bytes(key)
    }

    /// Of an entry of the state, in bytes.
    pub fn entry(item: &LockItem) -> usize {
        entry_bytes(item)
    }

    /// Of a hold in the state without its entry, in bytes.
    pub fn hold(item: &LockItem) -> usize {
        hold_bytes(item)
    }

    /// Of the queue of an item, in bytes.
    pub fn queue(item: &LockItem) -> usize {
        queue_bytes(item)
    }

    /// Of a call that waits and has no ancestors, in bytes.
    pub fn call(items: &[LockItem]) -> usize {
        call_bytes(items, 0)
    }
}
