//! The holds of a transaction on this node.

use smallvec::SmallVec;

use super::call::CallId;
use super::uncontended::HoldSeq;
use crate::id::TableId;
use crate::key::LockItem;

/// A transaction that holds an item, or has a call in flight.
#[derive(Debug, Default)]
pub(super) struct TxnHolds {
    /// Its items per table.
    pub(super) held: SmallVec<[(TableId, HeldItems); 1]>,
    /// Its upgrades, in the order in which they were requested. Some of them may have ended since.
    pub(super) upgrades: Vec<Upgrade>,
    /// The number of its items.
    pub(super) count: usize,
    /// Estimated memory of its holds, in bytes.
    pub(super) bytes: usize,
    /// Its call, until the outcome was taken. There is at most one.
    pub(super) call: Option<CallId>,
    /// The calls that name it as an ancestor, until their outcome was taken.
    pub(super) nested: SmallVec<[CallId; 1]>,
}

/// The items of one table that a transaction holds. [`Holder::slot`] is an index into them.
///
/// [`Holder::slot`]: super::holders::Holder::slot
#[derive(Debug)]
pub(super) struct HeldItems {
    items: SmallVec<[LockItem; 1]>,
    /// They are in the order of their first calls, so that those since a savepoint are the last
    /// ones.
    in_order: bool,
    /// At least the number of the last of those calls.
    last: HoldSeq,
}

impl Default for HeldItems {
    fn default() -> Self {
        Self { items: SmallVec::new(), in_order: true, last: HoldSeq::FIRST }
    }
}

impl HeldItems {
    /// True if those since a savepoint are the last ones.
    pub(super) const fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// Puts the items in the order of their first calls. Their holders get the new slots.
    pub(super) fn put_in_order(
        &mut self,
        first_calls: &[HoldSeq],
        mut set_slot: impl FnMut(&LockItem, u32),
    ) {
        let items = self.items.drain(..).zip(first_calls);
        let mut items: Vec<(LockItem, &HoldSeq)> = items.collect();
        items.sort_by_key(|(_, first_call)| *first_call);
        self.items = items.into_iter().map(|(item, _)| item).collect();
        self.in_order = true;
        self.items.iter().zip(0..).for_each(|(item, slot)| set_slot(item, slot));
    }
}

impl std::ops::Deref for HeldItems {
    type Target = [LockItem];

    fn deref(&self) -> &[LockItem] {
        &self.items
    }
}

/// An item that a call has upgraded, with the number of the call.
pub(super) type Upgrade = (HoldSeq, TableId, LockItem);

/// The largest number of nested calls of a transaction that are part of the wait graph. Each of
/// them is checked when the transaction gets a lock for which others wait, and any client can name
/// it as an ancestor.
pub(super) const NESTED_MAX: usize = 16;

impl TxnHolds {
    /// The slot that the next item gets.
    pub(super) fn next_slot(&self, table: TableId) -> u32 {
        // `lock_bytes_max` is reached long before 2^32 items.
        self.items_in(table).map_or(0, |items| items.len() as u32)
    }

    /// The items that it holds in a table.
    pub(super) fn items_in(&self, table: TableId) -> Option<&HeldItems> {
        self.held.iter().find(|(id, _)| *id == table).map(|(_, items)| items)
    }

    /// Adds an item and returns its slot.
    pub(super) fn add(
        &mut self,
        table: TableId,
        item: LockItem,
        seq: HoldSeq,
        bytes: usize,
    ) -> u32 {
        self.count += 1;
        self.bytes += bytes;
        let at = self.held.iter().position(|(id, _)| *id == table).unwrap_or_else(|| {
            self.held.push((table, HeldItems::default()));
            self.held.len() - 1
        });
        let held = &mut self.held[at].1;
        held.in_order &= held.last <= seq;
        held.last = held.last.max(seq);
        held.items.push(item);
        (held.items.len() - 1) as u32
    }

    /// Removes the item in `slot`. Returns the item that has moved into that slot.
    pub(super) fn remove(&mut self, table: TableId, slot: u32, bytes: usize) -> Option<&LockItem> {
        self.count -= 1;
        self.bytes -= bytes;
        let at = self.held.iter().position(|(id, _)| *id == table)?;
        let held = &mut self.held[at].1;
        held.items.swap_remove(slot as usize);
        if held.items.is_empty() {
            self.held.swap_remove(at);
            return None;
        }
        held.in_order &= slot as usize == held.items.len();
        self.held[at].1.items.get(slot as usize)
    }

    /// Takes out at most `most` of the items that it holds, all in one table.
    pub(super) fn take_some(&mut self, most: usize) -> Option<(TableId, SmallVec<[LockItem; 1]>)> {
        let (table, mut held) = self.held.pop()?;
        let taken = if held.items.len() > most {
            // The last items are taken, so that the others keep their slots.
            let taken = held.items.drain(held.items.len() - most..).collect();
            self.held.push((table, held));
            taken
        } else {
            held.items
        };
        self.count -= taken.len();
        Some((table, taken))
    }

    /// Removes the items of a table, which is gone.
    pub(super) fn take_table(&mut self, table: TableId) -> Option<SmallVec<[LockItem; 1]>> {
        let at = self.held.iter().position(|(held, _)| *held == table)?;
        let (_, held) = self.held.swap_remove(at);
        self.count -= held.items.len();
        self.upgrades.retain(|(_, upgraded, _)| *upgraded != table);
        Some(held.items)
    }

    /// True if the record is not needed any more.
    pub(super) fn is_idle(&self) -> bool {
        self.count == 0 && self.call.is_none() && self.nested.is_empty()
    }
}
