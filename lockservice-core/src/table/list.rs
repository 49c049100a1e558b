//! Lists of locks and waits, made slice by slice.

use super::engine::LockEngine;
use super::inspect::{LocksAt, RowAt, WaitsAt};
use super::types::{LockInfo, WaitInfo};
use super::uncontended::{SNAPSHOT_KEYS, SnapshotBuild};
use crate::id::TableId;
use crate::key::Key;

/// Most lines that are made under one hold of the engine's mutex: some microseconds, so that a
/// grant that needs the mutex waits for no longer than for another grant. A slice ends there.
const LINES_PER_HOLD: usize = 32;

/// Lines of a slice, for a caller that takes the whole list.
const SLICE: usize = 1_024;

/// A list of locks, made in slices. The engine goes on between them, so the list does not show one
/// moment. A lock that is held all the time is in it once.
#[derive(Debug)]
pub struct LockList {
    engine: LockEngine,
    only: Option<TableId>,
    at: Option<LocksAt>,
    /// The keys that it reads ahead, until all rows were looked at.
    snapshot: Option<SnapshotBuild>,
    /// The largest number of them.
    snapshot_keys: usize,
}

/// A list of waits, made in slices. The engine goes on between them, so the list does not show one
/// moment.
#[derive(Debug)]
pub struct WaitList {
    engine: LockEngine,
    only: Option<TableId>,
    at: Option<WaitsAt>,
}

/// A list of one row, made in slices: the locks that overlap it, each of which is in it once if it
/// is held all the time; then the calls that wait for an item that overlaps it, in queue order.
#[derive(Debug)]
pub struct RowList {
    engine: LockEngine,
    at: Option<RowAt>,
}

impl LockEngine {
    /// All locks in one table, or in all tables. They are ordered by table, then rows before
    /// ranges, then by key, then by transaction. They are listed in slices: see
    /// [`lock_list`](Self::lock_list).
    pub fn locks(&self, table: Option<TableId>) -> Vec<LockInfo> {
        let mut list = self.lock_list(table);
        std::iter::from_fn(|| list.next_slice(SLICE)).flatten().collect()
    }

    /// All waits, ordered by table, then in queue order. Of the waiters ahead in the queue, only
    /// the nearest are listed, which wait for the others. The waits are listed in slices: see
    /// [`wait_list`](Self::wait_list).
    pub fn waits(&self, table: Option<TableId>) -> Vec<WaitInfo> {
        let mut list = self.wait_list(table);
        std::iter::from_fn(|| list.next_slice(SLICE)).flatten().collect()
    }

    /// The locks in one table, or in all tables, slice by slice.
    pub fn lock_list(&self, table: Option<TableId>) -> LockList {
        LockList::new(self.clone(), table)
    }

    /// The waits in one table, or in all tables, slice by slice.
    pub fn wait_list(&self, table: Option<TableId>) -> WaitList {
        WaitList::new(self.clone(), table)
    }

    /// The locks that overlap a row of a table, then the calls that wait for something that
    /// overlaps it, slice by slice. It costs what overlaps, however much else there is.
    pub fn row_list(&self, table: TableId, row: Key) -> RowList {
        RowList { engine: self.clone(), at: Some(RowAt::start(table, row)) }
    }
}

impl LockList {
    pub(super) fn new(engine: LockEngine, only: Option<TableId>) -> Self {
        let at = engine.with(|state| state.locks_start(only));
        Self { engine, only, at, snapshot: None, snapshot_keys: SNAPSHOT_KEYS }
    }

    /// Makes the list read fewer keys ahead than by default, for tests of lists that are longer.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_snapshots_of(mut self, keys: usize) -> Self {
        self.snapshot_keys = keys.max(1);
        self
    }

    /// The next slice: at most `most` locks, perhaps none, for about as much work as that many
    /// lines take. `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<LockInfo>> {
        let at = self.at.as_mut()?;
        let last = self.snapshot.take();
        if let Some((place, after)) = self.engine.with(|state| state.locks_want(at)) {
            let last = last.filter(|last| last.is_of(place, after.as_ref()));
            let mut snapshot =
                last.unwrap_or_else(|| SnapshotBuild::new(place, after, self.snapshot_keys));
            if !self.engine.read_rows(&mut snapshot) {
                self.snapshot = Some(snapshot);
                return Some(Vec::new());
            }
            at.set_rows(snapshot.finish());
        }
        let most = most.clamp(1, LINES_PER_HOLD);
        Some(self.engine.with(|state| state.locks(self.only, &mut self.at, most)))
    }
}

impl WaitList {
    pub(super) fn new(engine: LockEngine, only: Option<TableId>) -> Self {
        let at = engine.with(|state| state.waits_start(only));
        Self { engine, only, at }
    }

    /// The next slice: at most `most` waits, perhaps none, for about as much work as that many
    /// lines take. `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<WaitInfo>> {
        self.at.as_ref()?;
        let most = most.clamp(1, LINES_PER_HOLD);
        Some(self.engine.with(|state| state.waits(self.only, &mut self.at, most)))
    }
}

impl RowList {
    /// The next slice: at most `most` lines, perhaps none, for about as much work as that many
    /// lines take. `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<LockInfo>> {
        self.at.as_ref()?;
        let most = most.clamp(1, LINES_PER_HOLD);
        Some(self.engine.with(|state| state.row(&mut self.at, most)))
    }
}
