//! What a transaction holds on this node.

use smallvec::SmallVec;

use super::call::CallId;
use crate::id::TableId;
use crate::key::LockItem;

/// A transaction that holds something or has a call in flight.
#[derive(Debug, Default)]
pub(super) struct TxnHolds {
    /// Per table; in no order. [`Holder::slot`](super::entry::Holder::slot) points into the list.
    pub(super) held: SmallVec<[(TableId, SmallVec<[LockItem; 1]>); 1]>,
    /// How many items it holds.
    pub(super) count: usize,
    /// Estimated memory of what it holds.
    pub(super) bytes: usize,
    /// The call that waits for a lock or a token, until its outcome was received. One at most.
    pub(super) call: Option<CallId>,
    /// The calls that wait on its behalf, until their outcome was received.
    pub(super) nested: SmallVec<[CallId; 1]>,
}

/// So many calls in flight can be part of the wait graph as nested ones of a transaction. Each is
/// looked at whenever that transaction gets a lock for which others wait, and anybody can name it.
pub(super) const NESTED_MAX: usize = 16;

impl TxnHolds {
    /// The slot that the next item gets.
    pub(super) fn next_slot(&self, table: TableId) -> u32 {
        // `lock_bytes_max` ends long before 2^32 items.
        self.held.iter().find(|(id, _)| *id == table).map_or(0, |(_, items)| items.len() as u32)
    }

    /// Adds an item and answers its slot.
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

    /// Removes the item in `slot` and answers which item is in that slot now.
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
            // The last ones: the others keep their slots.
            let taken = items.drain(items.len() - most..).collect();
            self.held.push((table, items));
            items = taken;
        }
        self.count -= items.len();
        Some((table, items))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.count == 0 && self.call.is_none() && self.nested.is_empty()
    }
}
