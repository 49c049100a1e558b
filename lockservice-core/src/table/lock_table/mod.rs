//! One lock table.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the table and its entries |
//! | `overlap.rs` | visits of the entries that overlap an item |
//! | `conflicts.rs` | the conflict check; commits that waiters learn of |
//! | `tokens.rs` | fencing tokens |

mod conflicts;
mod overlap;
mod tokens;

use std::collections::{BTreeMap, BTreeSet, btree_map};

use self::tokens::Tokens;
use super::call::CallId;
use super::entry::{Entry, Position};
use super::hash::IdMap;
use super::holder::Holder;
use super::idle::{Quiet, Usage};
use super::interval::IntervalMap;
use super::memory::{entry_bytes, queue_bytes};
use super::queue::CommitNumber;
use super::types::Commit;
use super::uncontended::{TablePlace, TablePlaces, TableRows};
use crate::bind::{Bind, TokenBlock};
use crate::id::{FencingToken, TxnId};
use crate::key::{Key, LockItem, LockMode};
use crate::sync::Arc;

pub(super) use self::conflicts::{FirstConflict, blocker_of};
pub(super) use self::overlap::ItemRef;

/// See the module.
#[derive(Debug)]
pub(super) struct LockTable {
    pub(super) bind: Bind,
    pub(super) tokens: Tokens,
    /// Calls that have all their items and wait for a token, first come first.
    pub(super) awaiting_token: BTreeMap<Position, CallId>,
    /// The calls that wait in this table, in queue order.
    pub(super) waiting: BTreeMap<Position, CallId>,
    /// The calls of this table that are in flight, and those whose outcome was not taken.
    pub(super) calls: IdMap<CallId, ()>,
    /// The time since which the table was seen unused.
    pub(super) quiet: Option<Quiet>,
    rows: BTreeMap<Key, Entry>,
    /// The rows that have a queue.
    awaited_rows: BTreeSet<Key>,
    ranges: IntervalMap<Entry>,
    /// The place of its uncontended holds in `places`.
    pub(super) place: TablePlace,
    places: Arc<TablePlaces>,
}

impl LockTable {
    pub(super) fn new(
        bind: Bind,
        tokens: Option<TokenBlock>,
        place: TablePlace,
        places: Arc<TablePlaces>,
    ) -> Self {
        let mut table = Self {
            bind,
            tokens: Tokens::default(),
            awaiting_token: BTreeMap::new(),
            waiting: BTreeMap::new(),
            calls: IdMap::default(),
            quiet: None,
            rows: BTreeMap::new(),
            awaited_rows: BTreeSet::new(),
            ranges: IntervalMap::new(),
            place,
            places,
        };
        if let Some(block) = tokens {
            table.tokens.add(block);
        }
        table
    }

    /// The rows and ranges that are locked or waited for, and the calls.
    pub(super) fn usage(&self) -> Usage {
        let items = self.rows.len() + self.ranges.len() + self.table_rows().held();
        Usage { items, calls: self.calls.len() }
    }

    /// The rows that are held without contention, the marks of the others, and the history.
    pub(super) fn table_rows(&self) -> &TableRows {
        self.places.get(self.place)
    }

    pub(super) fn entry(&self, item: &LockItem) -> Option<&Entry> {
        match item {
            LockItem::Row(key) => self.rows.get(key),
            LockItem::Range(range) => self.ranges.get(range),
        }
    }

    pub(super) fn entry_mut(&mut self, item: &LockItem) -> Option<&mut Entry> {
        match item {
            LockItem::Row(key) => self.rows.get_mut(key),
            LockItem::Range(range) => self.ranges.get_mut(range),
        }
    }

    /// Notes the slot of an item in the list of a transaction that holds it.
    pub(super) fn set_slot(&mut self, item: &LockItem, txn: TxnId, slot: u32) {
        let entry = self.entry_mut(item);
        let set = entry.and_then(|entry| entry.change(txn, |own| own.slot = slot));
        set.expect("the items in a transaction's list are held");
    }

    /// The entry of an item, created and counted in `bytes` if there is none. The caller puts a
    /// holder or a waiter into it.
    pub(super) fn entry_or_new(&mut self, item: &LockItem, bytes: &mut usize) -> &mut Entry {
        match item {
            LockItem::Row(key) => self.rows.entry(key.clone()).or_insert_with(|| {
                *bytes += entry_bytes(item);
                Entry::default()
            }),
            LockItem::Range(range) => {
                if self.ranges.get(range).is_none() {
                    *bytes += entry_bytes(item);
                    self.ranges.insert(range.clone(), Entry::default());
                }
                self.ranges.get_mut(range).expect("just inserted, if it was not there")
            }
        }
    }

    /// The hot path: puts a holder on a row without holders and waiters, in one look-up. `None` if
    /// there is an entry, or any range, which might cover the row.
    ///
    /// If the row `is_last` in its call, the holder gets the next token, if there is one. That
    /// token is returned. The caller counts the entry.
    pub(super) fn take_free_row(
        &mut self,
        key: &Key,
        mut holder: Holder,
        is_last: bool,
    ) -> Option<Option<FencingToken>> {
        if !self.ranges.is_empty() {
            return None;
        }
        let btree_map::Entry::Vacant(free) = self.rows.entry(key.clone()) else { return None };
        let token = if is_last { self.tokens.take() } else { None };
        if let Some(token) = token {
            holder.grant(token);
        }
        free.insert(Entry::held_by(holder));
        Some(token)
    }

    /// Ends a hold. [Retires](Self::retire) an entry that is empty then.
    pub(super) fn take_hold(
        &mut self,
        item: &LockItem,
        txn: TxnId,
        bytes: &mut usize,
    ) -> Option<Holder> {
        match item {
            LockItem::Row(key) => {
                let btree_map::Entry::Occupied(mut entry) = self.rows.entry(key.clone()) else {
                    return None;
                };
                let holder = entry.get_mut().take(txn);
                if entry.get().is_empty() {
                    entry.remove();
                    *bytes -= entry_bytes(item);
                    self.retire(item, bytes);
                }
                holder
            }
            LockItem::Range(range) => {
                let holder = self.ranges.get_mut(range)?.take(txn);
                self.retire(item, bytes);
                holder
            }
        }
    }

    /// Removes an entry that has neither holders nor waiters.
    pub(super) fn remove_if_empty(&mut self, item: &LockItem, bytes: &mut usize) {
        if self.entry(item).is_some_and(Entry::is_empty) {
            *bytes -= entry_bytes(item);
            match item {
                LockItem::Row(key) => drop(self.rows.remove(key)),
                LockItem::Range(range) => drop(self.ranges.remove(range)),
            }
        }
    }

    /// Puts a call into the queue of an item. It will learn of the commits after number `commits`.
    pub(super) fn enqueue(
        &mut self,
        (item, mode): (&LockItem, LockMode),
        position: Position,
        id: CallId,
        commits: CommitNumber,
        bytes: &mut usize,
    ) {
        self.waiting.insert(position, id);
        let entry = self.entry_or_new(item, bytes);
        let is_first = entry.queue().is_none();
        entry.enqueue(position, id, mode, commits);
        if is_first {
            *bytes += queue_bytes(item);
            self.awaited_rows.extend(item.as_row().cloned());
        }
    }

    /// Takes a call out of the queue of an item. Returns what it learns of commits, if there were
    /// any. The caller then gives the item to the call, queues the call again, or
    /// [retires](Self::retire) the item.
    pub(super) fn dequeue(
        &mut self,
        item: &LockItem,
        position: Position,
        mode: LockMode,
        bytes: &mut usize,
    ) -> Option<Commit> {
        self.waiting.remove(&position);
        let entry = self.entry_mut(item)?;
        let had_queue = entry.queue().is_some();
        let learned = entry.dequeue(position, mode);
        if had_queue && entry.queue().is_none() {
            *bytes -= queue_bytes(item);
            item.as_row().map(|key| self.awaited_rows.remove(key));
        }
        learned
    }

    /// The entry of an item, with the key that the table keeps for it.
    pub(super) fn entry_at(&self, item: &LockItem) -> Option<(ItemRef<'_>, &Entry)> {
        match item {
            LockItem::Row(key) => {
                self.rows.get_key_value(key).map(|(key, entry)| (ItemRef::Row(key), entry))
            }
            LockItem::Range(range) => self
                .ranges
                .get_key_value(range)
                .map(|(range, entry)| (ItemRef::Range(range), entry)),
        }
    }
}
