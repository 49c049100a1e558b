//! The uncontended holds of a table in key order, for lists.
//!
//! The shards have no order. So a list takes the next keys out of all shards, a bounded number of
//! them, and later looks each of them up again.

use std::collections::{BinaryHeap, VecDeque};

use super::places::TablePlace;
use super::rows::TableRows;
use crate::id::{FencingToken, TxnId};
use crate::key::{Key, LockMode};
use crate::table::engine::LockEngine;

/// Most keys of a snapshot, unless a list sets another number.
pub(in crate::table) const SNAPSHOT_KEYS: usize = 1 << 16;

/// Rows that are looked at under one hold of a shard's mutex.
const ROWS: usize = 1_024;

/// The next keys in a table.
#[derive(Debug, Default)]
pub(in crate::table) struct RowSnapshot {
    /// In order.
    pub(in crate::table) keys: VecDeque<Key>,
    /// There are no more.
    pub(in crate::table) is_last: bool,
}

impl RowSnapshot {
    /// True if another one is needed.
    pub(in crate::table) fn is_used_up(&self) -> bool {
        self.keys.is_empty() && !self.is_last
    }
}

impl LockEngine {
    /// The first keys after `after` of the rows that are held in a table without contention, at
    /// most `most`. Takes time in proportion to all such rows, and no mutex for long.
    pub(in crate::table) fn row_snapshot(
        &self,
        place: TablePlace,
        after: Option<&Key>,
        most: usize,
    ) -> RowSnapshot {
        let rows = self.places().get(place);
        let mut first = BinaryHeap::new();
        let mut is_last = true;
        for shard in rows.shards() {
            let mut slot = Some(0);
            while let Some(from) = slot {
                slot = shard.lock().holds_from(from, ROWS, |key| {
                    if after.is_some_and(|after| key <= after) {
                        return;
                    }
                    if first.len() < most {
                        first.push(key.clone());
                        return;
                    }
                    is_last = false;
                    if first.peek().is_some_and(|last| key < last) {
                        first.pop();
                        first.push(key.clone());
                    }
                });
            }
        }
        RowSnapshot { keys: first.into_sorted_vec().into(), is_last }
    }
}

impl TableRows {
    /// The holder of a row that is held without contention.
    pub(in crate::table) fn holder(&self, key: &Key) -> Option<(TxnId, FencingToken, LockMode)> {
        let hash = self.hash(key);
        self.shard(self.shard_of(hash)).lock().holder(hash, key)
    }
}
