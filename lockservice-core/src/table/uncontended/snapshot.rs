//! The uncontended holds of a table in key order, for lists.
//!
//! The shards have no order. So a list takes the next keys out of all shards, a bounded number of
//! them, and later looks each of them up again. It does so in steps of bounded work, for it may run
//! on a thread that serves calls too.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::places::TablePlace;
use super::rows::TableRows;
use crate::id::{FencingToken, TxnId};
use crate::key::{Key, LockMode};
use crate::table::engine::LockEngine;

/// Most keys of a snapshot, unless a list sets another number. More of them take more memory for
/// each list, and longer to be put in order; fewer make a list look at all rows more often.
pub(in crate::table) const SNAPSHOT_KEYS: usize = 1 << 14;

/// Rows that are looked at under one hold of a shard's mutex: about a microsecond, for a grant in
/// the shard waits so long.
const ROWS_PER_HOLD: usize = 64;

/// Holds of a step.
const HOLDS_PER_STEP: usize = 16;

/// The next keys in a table.
#[derive(Debug, Default)]
pub(in crate::table) struct RowSnapshot {
    /// The first one is on top.
    keys: BinaryHeap<Reverse<Key>>,
    /// There are no more.
    is_last: bool,
}

impl RowSnapshot {
    /// The first key.
    pub(in crate::table) fn first(&self) -> Option<&Key> {
        self.keys.peek().map(|Reverse(key)| key)
    }

    /// Takes the first key.
    pub(in crate::table) fn take_first(&mut self) -> Option<Key> {
        self.keys.pop().map(|Reverse(key)| key)
    }

    /// True if another one is needed.
    pub(in crate::table) fn is_used_up(&self) -> bool {
        self.keys.is_empty() && !self.is_last
    }
}

/// A snapshot that is being made: of the first keys after `after` of the rows that are held in a
/// table without contention, at most `most`.
///
/// A row that is held all the time keeps its slot, so that it is seen once.
#[derive(Debug)]
pub(in crate::table) struct SnapshotBuild {
    place: TablePlace,
    after: Option<Key>,
    most: usize,
    /// The first keys so far. The last one is on top.
    first: BinaryHeap<Key>,
    is_last: bool,
    /// The shard and the slot that are looked at next.
    at: (u32, u32),
    /// Keys that were copied under the mutex of a shard, and are not in order yet.
    copied: Vec<Key>,
}

impl SnapshotBuild {
    pub(in crate::table) fn new(place: TablePlace, after: Option<Key>, most: usize) -> Self {
        let (first, copied) = (BinaryHeap::new(), Vec::with_capacity(ROWS_PER_HOLD));
        Self { place, after, most, first, is_last: true, at: (0, 0), copied }
    }

    /// True if it is of the keys after `after` in this place.
    pub(in crate::table) fn is_of(&self, place: TablePlace, after: Option<&Key>) -> bool {
        self.place == place && self.after.as_ref() == after
    }

    /// The snapshot, once all rows were looked at.
    pub(in crate::table) fn finish(self) -> RowSnapshot {
        let keys = self.first.into_iter().map(Reverse).collect();
        RowSnapshot { keys, is_last: self.is_last }
    }

    fn add_copied(&mut self) {
        for key in self.copied.drain(..) {
            if self.first.len() < self.most {
                self.first.push(key);
                continue;
            }
            self.is_last = false;
            if self.first.peek().is_some_and(|last| key < *last) {
                self.first.pop();
                self.first.push(key);
            }
        }
    }
}

impl LockEngine {
    /// Looks at some more rows of a snapshot. True if it has looked at all.
    pub(in crate::table) fn read_rows(&self, build: &mut SnapshotBuild) -> bool {
        let rows = self.places().get(build.place);
        for _ in 0..HOLDS_PER_STEP {
            let (shard, slot) = build.at;
            if shard == rows.shard_count() {
                return true;
            }
            let SnapshotBuild { after, copied, .. } = build;
            // Under the mutex keys are only copied. They are put in order without it.
            let next = rows.shard(shard).lock().holds_from(slot, ROWS_PER_HOLD, |key| {
                if after.as_ref().is_none_or(|after| key > after) {
                    copied.push(key.clone());
                }
            });
            build.at = next.map_or((shard + 1, 0), |slot| (shard, slot));
            build.add_copied();
        }
        build.at.0 == rows.shard_count()
    }
}

impl TableRows {
    /// The holder of a row that is held without contention.
    pub(in crate::table) fn holder(&self, key: &Key) -> Option<(TxnId, FencingToken, LockMode)> {
        let hash = self.hash(key);
        self.shard(self.shard_of(hash)).lock().holder(hash, key)
    }
}
