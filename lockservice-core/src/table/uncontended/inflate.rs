//! The ways between the shards and the state: holds that become contended, ranges that are
//! published, tokens and memory on credit.

use super::handles::{HoldRef, HoldSeq, RowHolds, TableHandle, TxnHandle};
use super::shard::Inflated;
use crate::id::{TableId, TxnId};
use crate::key::{Key, KeyRange, LockItem};
use crate::table::engine::LockEngine;
use crate::table::holder::Holder;
use crate::table::lock_table::LockTable;
use crate::table::memory::{held_bytes, hold_bytes, row_bytes};
use crate::table::state::EngineState;

/// The state keeps this part of the tokens that are left when a shard draws some: one in so many.
const DRAWN_PART: u64 = 64;

/// Holds of a transaction that are inflated under one hold of the state's mutex.
const INFLATE: usize = 256;

impl LockEngine {
    /// Draws tokens and memory for a shard. Returns the number of tokens that are left to the
    /// table; `None` if there are not enough, or the table is not served at this version.
    pub(super) fn refill(&self, table: &TableHandle, shard: u32, bytes: usize) -> Option<u64> {
        self.state().lock().refill(table, shard, bytes)
    }

    /// The memory of a transaction's holds in the state, in bytes.
    pub(in crate::table) fn bytes_in_state(&self, txn: TxnId) -> usize {
        self.state().lock().txns.get(&txn).map_or(0, |txn| txn.bytes)
    }

    /// Has no row of a table locked at once, until [`open_rows`](Self::open_rows). The general way
    /// is open.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn close_rows(&self, table: &TableHandle) {
        self.state().lock().set_rows_open(table, false);
    }

    /// Has rows of a table locked at once again. Does nothing if the table is not served any more.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn open_rows(&self, table: &TableHandle) {
        self.state().lock().set_rows_open(table, true);
    }

    /// Moves the holds of a transaction into the state, before the state decides a call of it for
    /// `items`, or ends it.
    ///
    /// Returns the number of the call.
    pub(in crate::table) fn inflate_own(&self, txn: &TxnHandle, items: &[LockItem]) -> HoldSeq {
        let mut holds = txn.holds.lock();
        holds.in_state = true;
        let RowHolds { list, bytes, .. } = &mut *holds;
        *bytes = 0;
        // Under the transaction's mutex: its end finds all of them in the list, or all of them in
        // the state.
        for some in list.chunks(INFLATE) {
            self.inflate_holds(txn.id(), some);
        }
        list.clear();
        (holds.released, holds.released_in_state) = (0, 0);
        let of_call = items.iter().map(held_bytes).sum::<usize>();
        holds.state_bytes = self.bytes_in_state(txn.id()) + of_call;
        holds.take_seq()
    }

    /// Moves holds of a transaction into the state.
    pub(super) fn inflate_holds(&self, txn: TxnId, holds: &[HoldRef]) {
        let mut state = self.state().lock();
        for hold in holds {
            state.inflate_own(txn, hold);
        }
    }
}

impl EngineState {
    fn set_rows_open(&mut self, table: &TableHandle, open: bool) {
        let bind = table.bind();
        let installed = self.tables.get(&bind.id);
        if let Some(installed) = installed.filter(|table| table.bind.version == bind.version)
            && !self.is_sealed()
        {
            installed.table_rows().set_open(open);
        }
    }

    fn refill(&mut self, table: &TableHandle, number: u32, bytes: usize) -> Option<u64> {
        if self.is_sealed() {
            return None;
        }
        self.bytes -= self.places.take_returned();
        let bind = table.bind();
        let installed = self.tables.get_mut(&bind.id)?;
        if installed.bind.version != bind.version {
            return None;
        }
        let rows = self.places.get(table.place());
        let mut shard = rows.shard(number).lock();
        let wanted = shard.tokens_wanted();
        if wanted > 0 {
            let most = (installed.tokens.remaining() / DRAWN_PART).max(1);
            shard.add_tokens(installed.tokens.take_block(wanted.min(most))?);
        }
        if shard.credit < bytes {
            let room = self.settings.lock_bytes_max.saturating_sub(self.bytes);
            let mut given = shard.credit_wanted(bytes).min(room);
            if given < bytes {
                drop(shard);
                self.collect_credit();
                given = bytes;
                if self.bytes + given > self.settings.lock_bytes_max {
                    return None;
                }
                shard = self.places.get(table.place()).shard(number).lock();
            }
            shard.credit += given;
            self.bytes += given;
            self.places.note_credit();
        }
        drop(shard);
        Some(self.tables.get(&bind.id)?.tokens.remaining())
    }

    /// Collects the memory that all shards have on credit and do not use.
    ///
    /// Visits all shards, but only if one of them got credit since the last visit.
    pub(in crate::table) fn collect_credit(&mut self) {
        if !self.places.take_credit_note() {
            self.bytes -= self.places.take_returned();
            return;
        }
        let unused: usize =
            self.tables.values().map(|table| table.table_rows().collect_credit()).sum();
        self.bytes -= unused + self.places.take_returned();
    }

    /// Makes the holds that overlap an item known to the state, before it decides about the item.
    ///
    /// The caller gives the item a holder or a waiter, or [retires](LockTable::retire) it, under
    /// the same hold of the mutex.
    pub(in crate::table) fn inflate(&mut self, table: TableId, item: &LockItem) {
        match item {
            LockItem::Row(key) => self.inflate_row(table, key),
            LockItem::Range(range) => self.publish(table, range),
        }
    }

    fn inflate_row(&mut self, table: TableId, key: &Key) {
        let Some(installed) = self.tables.get(&table) else { return };
        let rows = installed.table_rows();
        let hash = rows.hash(key);
        let hold = rows.shard(rows.shard_of(hash)).lock().inflate(hash, key, rows.hasher());
        if let Some(hold) = hold {
            self.add_inflated(table, hold);
        }
    }

    fn publish(&mut self, id: TableId, range: &KeyRange) {
        let Some(table) = self.tables.get(&id) else { return };
        let rows = table.table_rows();
        if rows.is_published(range) {
            return;
        }
        rows.add_range(range);
        let mut within = Vec::new();
        for shard in rows.shards() {
            within.append(&mut shard.lock().publish(range));
        }
        for hold in within {
            self.slice.spend();
            self.add_inflated(id, hold);
        }
    }

    fn inflate_own(&mut self, txn: TxnId, hold: &HoldRef) {
        let rows = self.places.get(hold.place);
        let mut shard = rows.shard(hold.shard).lock();
        let inflated = shard.inflate_own(hold.slot, txn, hold.seq);
        let version = shard.version;
        drop(shard);
        let Some((inflated, version)) = inflated.zip(version) else { return };
        // Versions are unique over all tables.
        if let Some(table) = self.table_in(hold.place).filter(|(_, served)| *served == version) {
            self.add_inflated(table.0, inflated);
        }
    }

    /// Adds a hold that left its shard, where the row is marked now.
    ///
    /// It takes more memory here. That is not refused, also beyond the limits: the transaction was
    /// granted it, and it is another one that wants the row.
    fn add_inflated(&mut self, id: TableId, hold: Inflated) {
        let Inflated { key, txn, token, seq, mode } = hold;
        // What it took in the shard is counted: it was on credit.
        self.bytes -= row_bytes(&key);
        let item = LockItem::Row(key);
        self.bytes += hold_bytes(&item);
        self.held += 1;
        let record = self.txns.get_or_new(txn, &mut self.bytes);
        let slot = record.add(id, item.clone(), seq);
        let table = self.tables.get_mut(&id).expect("a hold ends with its table");
        let mut holder = Holder::pending(txn, slot, mode, seq);
        holder.grant(token);
        table.entry_or_new(&item, &mut self.bytes).add(holder);
    }
}

impl LockTable {
    /// Removes an entry that has neither holders nor waiters. Takes the mark off an item that has
    /// no entry, so that it needs the state no more.
    pub(in crate::table) fn retire(&mut self, item: &LockItem, bytes: &mut usize) {
        self.remove_if_empty(item, bytes);
        if self.entry(item).is_some() {
            return;
        }
        let last = self.tokens.last();
        let rows = self.table_rows();
        match item {
            LockItem::Row(key) => {
                let hash = rows.hash(key);
                rows.shard(rows.shard_of(hash)).lock().unmark(hash, key, last, rows.hasher());
            }
            LockItem::Range(range) => {
                if rows.is_published(range) {
                    // The tokens go first: until then the range keeps rows from being granted.
                    rows.shards().for_each(|shard| shard.lock().unpublish(last));
                    rows.remove_range(range);
                }
            }
        }
    }
}

/// For tests of the invariants.
#[cfg(any(test, feature = "testing"))]
impl LockEngine {
    /// Panics unless exactly the rows and ranges that the state has an entry for are marked and
    /// published.
    pub fn check_marks(&self) {
        let state = self.state().lock();
        for table in state.tables.values() {
            let rows = table.table_rows();
            let (mut expected, mut ranges) = (0, 0);
            table.for_each(|at, _| match at.to_item() {
                LockItem::Row(key) => {
                    expected += 1;
                    let hash = rows.hash(&key);
                    let shard = rows.shard(rows.shard_of(hash)).lock();
                    assert!(shard.is_marked(hash, &key), "{key:?} has an entry and no mark");
                    drop(shard);
                }
                LockItem::Range(_) => ranges += 1,
            });
            let mut marks = 0;
            for shard in rows.shards() {
                let (of_shard, published) = shard.lock().marks_and_ranges();
                marks += of_shard;
                assert_eq!(published, ranges, "the ranges with an entry are published");
            }
            assert_eq!(marks, expected, "the rows with an entry are marked");
        }
    }
}
