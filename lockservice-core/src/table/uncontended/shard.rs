//! A part of a table's rows under one mutex: those that are held without contention, and marks for
//! those that the state decides about.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::handles::HoldSeq;
use super::order::Order;
use super::slab::{Row, RowState, Slab};
use crate::bind::TokenBlock;
use crate::guarded_map::KeyHasher;
use crate::id::{BindVersion, FencingToken, TxnId};
use crate::key::{Key, KeyRange, LockMode};
use crate::spare::shrunk;
use crate::table::counts::Granted;
use crate::table::memory::row_bytes;

/// Most tokens that a shard draws at once.
const TOKENS_MAX: u64 = 1_024;

/// Credit that a shard keeps when it returns some, in bytes.
const CREDIT_KEPT: usize = 64 << 10;

/// Slots of an index that is not made smaller.
const INDEX_KEPT: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// The version of the bind whose holds these are.
    pub(super) version: Option<BindVersion>,
    /// It grants. A sealed shard does not.
    pub(super) is_open: bool,
    /// The grants that were not [taken](Self::take_granted) yet, by mode.
    granted: Granted,
    /// The number of those that were taken since it was opened.
    grants_taken: u64,
    index: HashTable<u32>,
    rows: Slab,
    /// The number of rows that are held here; the others are marked.
    held: usize,
    /// The tokens that it may grant (F2).
    tokens: Option<TokenBlock>,
    /// The number of tokens that it draws next: more while they are used up, fewer while they are
    /// dropped.
    draw: u64,
    /// Memory for further holds, in bytes.
    pub(super) credit: usize,
    /// The number of published ranges of the table.
    ranges: usize,
    /// The order of its holds, once the table had a range.
    order: Option<Order>,
}

/// A request for a row.
#[derive(Clone, Copy)]
pub(super) struct RowRequest<'a> {
    pub(super) version: BindVersion,
    pub(super) txn: TxnId,
    /// The number of the hold in its transaction.
    pub(super) seq: HoldSeq,
    pub(super) key: &'a Key,
    pub(super) hash: u64,
    pub(super) mode: LockMode,
    pub(super) bytes: usize,
}

/// The outcome of a request for a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RowOutcome {
    /// The transaction holds it from now on.
    Granted { slot: u32, token: FencingToken },
    /// The transaction held it already, at least as strongly.
    Covered { token: FencingToken },
    /// It is free, but the shard has no token, or no memory, on credit.
    Exhausted,
    /// The general way decides.
    Contended,
}

/// A hold that leaves the shard.
#[derive(Debug)]
pub(super) struct Inflated {
    pub(super) key: Key,
    pub(super) txn: TxnId,
    pub(super) token: FencingToken,
    pub(super) seq: HoldSeq,
    pub(super) mode: LockMode,
}

impl Shard {
    /// Begins to serve a version, without holds.
    pub(super) fn open(&mut self, version: BindVersion) {
        *self = Self { version: Some(version), is_open: true, draw: 1, ..Self::default() };
    }

    /// Drops everything, and returns the memory of its holds with its credit, in bytes.
    pub(super) fn clear(&mut self) -> usize {
        let held = self.holds().map(|row| row_bytes(&row.key)).sum::<usize>();
        let bytes = held + self.credit;
        *self = Self::default();
        bytes
    }

    /// The number of grants since it was opened.
    pub(super) fn grants(&self) -> u64 {
        self.grants_taken + self.granted.iter().sum::<u64>()
    }

    /// The grants since this was last called.
    pub(super) fn take_granted(&mut self) -> Granted {
        self.grants_taken = self.grants();
        std::mem::take(&mut self.granted)
    }

    /// The number of holds.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    fn holds(&self) -> impl Iterator<Item = &Row> {
        self.rows.from(0).map(|(_, row)| row).filter(|row| matches!(row.state, RowState::Held(_)))
    }

    fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        self.index.find(hash, |slot| self.rows.key(*slot) == key).copied()
    }

    fn insert(&mut self, hash: u64, row: Row, hasher: &KeyHasher) -> u32 {
        let slot = self.rows.insert(row);
        let rows = &self.rows;
        self.index.insert_unique(hash, slot, |slot| hasher.hash_one(rows.key(*slot)));
        slot
    }

    fn remove(&mut self, hash: u64, slot: u32, hasher: &KeyHasher) -> Row {
        if let Ok(entry) = self.index.find_entry(hash, |at| *at == slot) {
            entry.remove();
        }
        if let Some(order) = &mut self.order {
            order.remove(slot, &self.rows);
        }
        let row = self.rows.remove(slot);
        self.held -= usize::from(matches!(row.state, RowState::Held(_)));
        self.forget_order();
        if let Some(capacity) = shrunk(self.index.len(), self.index.capacity(), INDEX_KEPT) {
            let rows = &self.rows;
            self.index.shrink_to(capacity, |slot| hasher.hash_one(rows.key(*slot)));
        }
        row
    }

    /// Drops the order of a shard without rows, of a table without ranges.
    fn forget_order(&mut self) {
        if self.ranges == 0 && self.rows.len() == 0 {
            self.order = None;
        }
    }

    /// Decides a request. While the table has published ranges, `is_in_range` says whether one of
    /// them covers the row.
    pub(super) fn lock(
        &mut self,
        request: &RowRequest<'_>,
        hasher: &KeyHasher,
        is_in_range: impl FnOnce() -> bool,
    ) -> RowOutcome {
        let RowRequest { version, txn, seq, key, hash, mode, bytes } = *request;
        if !self.is_open || self.version != Some(version) {
            return RowOutcome::Contended;
        }
        if let Some(slot) = self.find(hash, key) {
            return match self.rows.get(slot) {
                Some(Row { txn: holder, token, state: RowState::Held(held), .. })
                    if *holder == txn && *held >= mode =>
                {
                    RowOutcome::Covered { token: *token }
                }
                _ => RowOutcome::Contended,
            };
        }
        if self.ranges > 0 && is_in_range() {
            return RowOutcome::Contended;
        }
        if self.credit < bytes {
            return RowOutcome::Exhausted;
        }
        let Some(token) = self.tokens.as_mut().and_then(TokenBlock::take) else {
            return RowOutcome::Exhausted;
        };
        self.credit -= bytes;
        let row = Row { key: key.clone(), txn, token, seq, state: RowState::Held(mode) };
        let slot = self.insert(hash, row, hasher);
        self.held += 1;
        self.granted[mode.index()] += 1;
        if let Some(order) = &mut self.order {
            order.insert(slot, &self.rows);
        }
        RowOutcome::Granted { slot, token }
    }

    /// True if the transaction's hold of that number is in the slot.
    pub(super) fn has(&self, slot: u32, txn: TxnId, seq: HoldSeq) -> bool {
        self.rows.get(slot).is_some_and(|row| row.is_held_by(txn) && row.seq == seq)
    }

    /// The memory of a hold, in bytes; `None` if it is not there.
    pub(super) fn bytes_of(&self, slot: u32, txn: TxnId, seq: HoldSeq) -> Option<usize> {
        self.has(slot, txn, seq).then(|| row_bytes(self.rows.key(slot)))
    }

    /// Ends the transaction's hold of that number, if it is in the slot.
    pub(super) fn release(
        &mut self,
        slot: u32,
        txn: TxnId,
        seq: HoldSeq,
        hasher: &KeyHasher,
    ) -> Option<usize> {
        if !self.has(slot, txn, seq) {
            return None;
        }
        let hash = hasher.hash_one(self.rows.key(slot));
        let bytes = row_bytes(&self.remove(hash, slot, hasher).key);
        self.credit += bytes;
        Some(bytes)
    }

    /// Takes the part of the credit that is more than the shard keeps, in bytes.
    pub(super) const fn take_surplus(&mut self) -> usize {
        if self.credit <= 2 * CREDIT_KEPT {
            return 0;
        }
        let surplus = self.credit - CREDIT_KEPT;
        self.credit = CREDIT_KEPT;
        surplus
    }

    /// True if the transaction holds the row here.
    pub(super) fn is_held_by(&self, hash: u64, key: &Key, txn: TxnId) -> bool {
        let row = self.find(hash, key).and_then(|slot| self.rows.get(slot));
        row.is_some_and(|row| row.is_held_by(txn))
    }

    /// Ends the transaction's hold of a row, if it has one here. Returns its memory.
    pub(super) fn release_key(
        &mut self,
        hash: u64,
        key: &Key,
        txn: TxnId,
        hasher: &KeyHasher,
    ) -> Option<usize> {
        let slot = self.find(hash, key)?;
        let seq = self.rows.get(slot).filter(|row| row.is_held_by(txn))?.seq;
        self.release(slot, txn, seq, hasher)
    }

    /// Makes the transaction's hold of a row weaker, if it has a stronger one here. `None` if it
    /// has no hold here.
    pub(super) fn downgrade(
        &mut self,
        hash: u64,
        key: &Key,
        txn: TxnId,
        mode: LockMode,
    ) -> Option<bool> {
        let slot = self.find(hash, key)?;
        let row = self.rows.get_mut(slot).filter(|row| row.is_held_by(txn))?;
        let RowState::Held(held) = row.state else { return None };
        row.state = RowState::Held(held.min(mode));
        Some(held > mode)
    }

    /// Marks a row as contended. Its hold, if there is one, leaves the shard.
    pub(super) fn inflate(&mut self, hash: u64, key: &Key, hasher: &KeyHasher) -> Option<Inflated> {
        match self.find(hash, key) {
            Some(slot) => self.inflate_slot(slot),
            None => {
                self.insert(hash, Row::contended(key.clone()), hasher);
                None
            }
        }
    }

    /// As [`inflate`](Self::inflate), of the transaction's hold of that number, if it is in the
    /// slot.
    pub(super) fn inflate_own(&mut self, slot: u32, txn: TxnId, seq: HoldSeq) -> Option<Inflated> {
        if self.has(slot, txn, seq) { self.inflate_slot(slot) } else { None }
    }

    fn inflate_slot(&mut self, slot: u32) -> Option<Inflated> {
        let row = self.rows.get_mut(slot)?;
        let RowState::Held(mode) = row.state else { return None };
        row.state = RowState::Contended;
        self.held -= 1;
        let Row { key, txn, token, seq, .. } = row;
        let hold = Inflated { key: key.clone(), txn: *txn, token: *token, seq: *seq, mode };
        if let Some(order) = &mut self.order {
            order.remove(slot, &self.rows);
        }
        Some(hold)
    }

    /// Counts a range that was published. The holds in it leave the shard.
    pub(super) fn publish(&mut self, range: &KeyRange) -> Vec<Inflated> {
        self.ranges += 1;
        let rows = &self.rows;
        let order = self.order.get_or_insert_with(|| {
            let held = rows.from(0).filter(|(_, row)| matches!(row.state, RowState::Held(_)));
            Order::of(held.map(|(slot, _)| slot), rows)
        });
        order.within(range, rows).into_iter().filter_map(|slot| self.inflate_slot(slot)).collect()
    }

    /// Uncounts a range. The shard's credit of tokens is dropped if tokens up to `last` were
    /// granted in the range.
    pub(super) fn unpublish(&mut self, last: FencingToken) {
        self.ranges -= 1;
        self.drop_tokens_up_to(last);
        self.forget_order();
    }

    /// Takes the mark off a row. `last` is as with [`unpublish`](Self::unpublish).
    pub(super) fn unmark(&mut self, hash: u64, key: &Key, last: FencingToken, hasher: &KeyHasher) {
        if let Some(slot) = self.find(hash, key)
            && self.rows.get(slot).is_some_and(|row| row.state == RowState::Contended)
        {
            self.remove(hash, slot, hasher);
            self.drop_tokens_up_to(last);
        }
    }

    /// F1: a token below one that was granted is not granted any more.
    fn drop_tokens_up_to(&mut self, last: FencingToken) {
        if self.tokens.is_some_and(|block| block.next <= last) {
            self.tokens = None;
            self.draw = (self.draw / 4).max(1);
        }
    }

    /// The number of tokens to draw; 0 if it has some.
    pub(super) fn tokens_wanted(&mut self) -> u64 {
        if self.tokens.is_some_and(|block| block.left() > 0) {
            return 0;
        }
        let wanted = self.draw;
        self.draw = (self.draw * 2).min(TOKENS_MAX);
        wanted
    }

    /// Adds tokens that were drawn for it, above all that it had.
    pub(super) fn add_tokens(&mut self, block: TokenBlock) {
        self.tokens = Some(block);
    }

    /// The memory on credit to draw at once, in bytes.
    pub(super) fn credit_wanted(&self, bytes: usize) -> usize {
        bytes.saturating_mul(self.draw as usize)
    }

    /// The rows from a slot on, with the slot behind them: at most `most`, held or marked.
    pub(super) fn holds_from(
        &self,
        slot: u32,
        most: usize,
        mut visit: impl FnMut(&Key),
    ) -> Option<u32> {
        let mut last = None;
        for (slot, row) in self.rows.from(slot).take(most) {
            if matches!(row.state, RowState::Held(_)) {
                visit(&row.key);
            }
            last = Some(slot + 1);
        }
        last
    }

    /// The holder of a row that is held here.
    pub(super) fn holder(&self, hash: u64, key: &Key) -> Option<(TxnId, FencingToken, LockMode)> {
        let row = self.rows.get(self.find(hash, key)?)?;
        let RowState::Held(mode) = row.state else { return None };
        Some((row.txn, row.token, mode))
    }

    /// True if the row is marked as contended.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_marked(&self, hash: u64, key: &Key) -> bool {
        self.find(hash, key)
            .and_then(|slot| self.rows.get(slot))
            .is_some_and(|row| row.state == RowState::Contended)
    }

    /// The number of marks, and the number of published ranges.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn marks_and_ranges(&self) -> (usize, usize) {
        (self.rows.len() - self.held, self.ranges)
    }
}
