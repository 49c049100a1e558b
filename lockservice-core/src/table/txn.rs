//! The holds of a transaction on this node.

use smallvec::SmallVec;

use super::call::CallId;
use crate::id::TableId;
use crate::key::LockItem;

/// A transaction that holds an item, or has a call in flight.
#[derive(Debug, Default)]
pub(super) struct TxnHolds {
    /// Its items per table, in no order. [`Holder::slot`](super::holders::Holder::slot) is an index
    /// into the list.
    pub(super) held: SmallVec<[(TableId, SmallVec<[LockItem; 1]>); 1]>,
    /// The number of its items.
    pub(super) count: usize,
    /// Estimated memory of its holds, in bytes.
    pub(super) bytes: usize,
    /// Its call, until the outcome was taken. There is at most one.
    pub(super) call: Option<CallId>,
    /// The calls that name it as an ancestor, until their outcome was taken.
    pub(super) nested: SmallVec<[CallId; 1]>,
}

/// The largest number of nested calls of a transaction that are part of the wait graph. Each of
/// them is checked when the transaction gets a lock for which others wait, and any client can name
/// it as an ancestor.
pub(super) const NESTED_MAX: usize = 16;

impl TxnHolds {
    /// The slot that the next item gets.
    pub(super) fn next_slot(&self, table: TableId) -> u32 {
        // `lock_bytes_max` is reached long before 2^32 items.
        self.held.iter().find(|(id, _)| *id == table).map_or(0, |(_, items)| items.len() as u32)
    }

    /// Adds an item and returns its slot.
    pub(super) fn add(&mut self, table: TableId, item: LockItem, bytes: usize) -> u32 {
        self.count += 1;
        self.bytes += bytes;
        let items = match self.held.iter().position(|(id, _)| *id == table) {
            Some(at) => &mut self.held[at].1,
            None => {
                self.held.push((table, SmallVec::new()));
                &mut self.held.last_mut().expect("just pushed").1
            }
        };
        items.push(item);
        (items.len() - 1) as u32
    }

    /// Removes the item in `slot`. Returns the item that has moved into that slot.
    pub(super) fn remove(&mut self, table: TableId, slot: u32, bytes: usize) -> Option<&LockItem> {
        self.count -= 1;
        self.bytes -= bytes;
        let at = self.held.iter().position(|(id, _)| *id == table)?;
        self.held[at].1.swap_remove(slot as usize);
        if self.held[at].1.is_empty() {
            self.held.swap_remove(at);
            return None;
        }
        self.held[at].1.get(slot as usize)
    }

    /// Takes out at most `most` of the items that it holds, all in one table.
    pub(super) fn take_some(&mut self, most: usize) -> Option<(TableId, SmallVec<[LockItem; 1]>)> {
        let (table, mut items) = self.held.pop()?;
        if items.len() > most {
            // The last items are taken, so that the others keep their slots.
            let taken = items.drain(items.len() - most..).collect();
            self.held.push((table, items));
            items = taken;
        }
        self.count -= items.len();
        Some((table, items))
    }

    /// True if the record is not needed any more.
    pub(super) fn is_idle(&self) -> bool {
        self.count == 0 && self.call.is_none() && self.nested.is_empty()
    }
}
