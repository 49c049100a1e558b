//! The holds of a transaction on this node.

use smallvec::SmallVec;

use super::call::CallId;
use super::hash::IdMap;
use super::memory::{TXN_BYTES, held_bytes, reserve_one, shrink};
use super::release::Left;
use super::uncontended::HoldSeq;
use crate::id::{TableId, TxnId};
use crate::key::LockItem;
use crate::spare::shrunk;

/// A transaction that holds an item, or has a call in flight.
#[derive(Debug, Default)]
pub(super) struct TxnHolds {
    /// Its items per table.
    pub(super) held: SmallVec<[(TableId, HeldItems); 1]>,
    /// Above the numbers of all calls that have upgraded an item, and were not ended by a roll-back
    /// to a savepoint.
    pub(super) upgrades_end: HoldSeq,
    /// The attempts at an escalation that are refused without a look, because an earlier one was
    /// refused after much work.
    pub(super) escalation_pause: usize,
    /// The number of its items.
    pub(super) count: usize,
    /// Estimated memory of its holds, with their entries, in bytes.
    pub(super) bytes: usize,
    /// Its call, until the outcome was taken. There is at most one.
    pub(super) call: Option<CallId>,
    /// The calls that name it as an ancestor, until their outcome was taken.
    pub(super) nested: SmallVec<[CallId; 1]>,
}

/// The transactions that hold an item in the state, have a call in flight there, or are named by
/// one.
#[derive(Debug, Default)]
pub(super) struct Txns(IdMap<TxnId, Box<TxnHolds>>);

impl Txns {
    pub(super) fn get(&self, id: &TxnId) -> Option<&TxnHolds> {
        self.0.get(id).map(|record| &**record)
    }

    pub(super) fn get_mut(&mut self, id: &TxnId) -> Option<&mut TxnHolds> {
        self.0.get_mut(id).map(|record| &mut **record)
    }

    /// The record of a transaction, made and counted in `bytes` if there is none.
    pub(super) fn get_or_new(&mut self, id: TxnId, bytes: &mut usize) -> &mut TxnHolds {
        self.0.entry(id).or_insert_with(|| {
            *bytes += TXN_BYTES;
            Box::default()
        })
    }

    /// Removes the record of a transaction that holds nothing and has no call.
    pub(super) fn forget_if_idle(&mut self, id: TxnId, bytes: &mut usize) {
        if self.0.get(&id).is_some_and(|record| record.is_idle()) {
            self.0.remove(&id);
            *bytes -= TXN_BYTES;
            if let Some(capacity) = shrunk(self.0.len(), self.0.capacity(), RECORDS_KEPT) {
                self.0.shrink_to(capacity);
            }
        }
    }
}

/// Records for which the map keeps its memory.
const RECORDS_KEPT: usize = 1_024;

/// The items of one table that a transaction holds. [`Holder::slot`] is an index into them.
///
/// [`Holder::slot`]: super::holder::Holder::slot
#[derive(Debug)]
pub(super) struct HeldItems {
    items: SmallVec<[LockItem; 1]>,
    /// They are in the order of their first calls, so that those since a savepoint are the last
    /// ones.
    in_order: bool,
    /// Above the numbers of those calls.
    end: HoldSeq,
}

impl Default for HeldItems {
    fn default() -> Self {
        Self { items: SmallVec::new(), in_order: true, end: HoldSeq::FIRST }
    }
}

impl std::ops::Deref for HeldItems {
    type Target = [LockItem];

    fn deref(&self) -> &[LockItem] {
        &self.items
    }
}

/// The way of a roll-back to a savepoint over the items of its transaction.
#[derive(Debug)]
pub(super) struct BackTo {
    /// What the calls from here on were granted ends.
    pub(super) seq: HoldSeq,
    /// The index of the table that is visited, and of the item there.
    table: usize,
    slot: usize,
    /// The number of items that were released.
    pub(super) released: usize,
}

impl BackTo {
    pub(super) const fn new(seq: HoldSeq) -> Self {
        Self { seq, table: 0, slot: 0, released: 0 }
    }
}

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
    pub(super) fn add(&mut self, table: TableId, item: LockItem, seq: HoldSeq) -> u32 {
        self.count += 1;
        self.bytes += held_bytes(&item);
        let at = self.held.iter().position(|(id, _)| *id == table).unwrap_or_else(|| {
            self.held.push((table, HeldItems::default()));
            self.held.len() - 1
        });
        let held = &mut self.held[at].1;
        held.in_order &= held.end <= seq.next();
        held.end = held.end.max(seq.next());
        reserve_one(&mut held.items);
        held.items.push(item);
        (held.items.len() - 1) as u32
    }

    /// Removes the item in `slot`. Returns the item that has moved into that slot.
    pub(super) fn remove(&mut self, table: TableId, slot: u32) -> Option<&LockItem> {
        self.count -= 1;
        let at = self.held.iter().position(|(id, _)| *id == table)?;
        let held = &mut self.held[at].1;
        self.bytes -= held_bytes(&held.items.swap_remove(slot as usize));
        shrink(&mut held.items);
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
        self.bytes -= taken.iter().map(held_bytes).sum::<usize>();
        Some((table, taken))
    }

    /// Removes the items of a table, which is gone.
    pub(super) fn take_table(&mut self, table: TableId) -> Option<SmallVec<[LockItem; 1]>> {
        let at = self.held.iter().position(|(held, _)| *held == table)?;
        let (_, held) = self.held.swap_remove(at);
        self.count -= held.items.len();
        self.bytes -= held.items.iter().map(held_bytes).sum::<usize>();
        Some(held.items)
    }

    /// The next item of which something may end by a roll-back to a savepoint.
    ///
    /// Visits the last items of each table, or all of them if they are out of order, or an upgrade
    /// may have to end. A table without holds since the savepoint is passed over.
    pub(super) fn next_since(&mut self, back: &mut BackTo) -> Option<(TableId, LockItem)> {
        let has_upgrades = self.upgrades_end > back.seq;
        while let Some((table, held)) = self.held.get_mut(back.table) {
            if has_upgrades || !held.in_order && held.end > back.seq {
                if let Some(item) = held.items.get(back.slot) {
                    back.slot += 1;
                    return Some((*table, item.clone()));
                }
            } else if held.end > back.seq
                && let Some(last) = held.items.last()
            {
                return Some((*table, last.clone()));
            }
            self.pass_table(back);
        }
        self.upgrades_end = self.upgrades_end.min(back.seq);
        None
    }

    /// Notes whether the item of [`next_since`](Self::next_since) was released, or stays in full.
    pub(super) fn visited(&mut self, back: &mut BackTo, table: TableId, left: Left) {
        let is_there = self.held.get(back.table).is_some_and(|(id, _)| *id == table);
        match left {
            // Another table has its place.
            Left::Nothing if !is_there => back.slot = 0,
            // The last item of the table has its place.
            Left::Nothing => back.slot = back.slot.saturating_sub(1),
            // The last one is from before the savepoint, and so are those before it.
            Left::All | Left::Weaker if back.slot == 0 => self.pass_table(back),
            Left::All | Left::Weaker => {}
        }
    }

    /// Nothing since the savepoint is left in a table.
    fn pass_table(&mut self, back: &mut BackTo) {
        if let Some((_, held)) = self.held.get_mut(back.table) {
            held.end = held.end.min(back.seq);
        }
        (back.table, back.slot) = (back.table + 1, 0);
    }

    /// True if the record is not needed any more.
    fn is_idle(&self) -> bool {
        self.count == 0 && self.call.is_none() && self.nested.is_empty()
    }
}
