//! Lists of locks and waits, made slice by slice.

use super::engine::LockEngine;
use super::inspect::{LocksAt, WaitsAt};
use super::types::{LockInfo, WaitInfo};
use super::uncontended::SNAPSHOT_KEYS;
use crate::id::TableId;

/// A list of locks, made in slices. The engine goes on between them, so the list does not show one
/// moment. A lock that is held all the time is in it once.
#[derive(Debug)]
pub struct LockList {
    engine: LockEngine,
    only: Option<TableId>,
    at: Option<LocksAt>,
    /// The largest number of keys that it reads ahead.
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

impl LockList {
    pub(super) fn new(engine: LockEngine, only: Option<TableId>) -> Self {
        let at = engine.with(|state| state.locks_start(only));
        Self { engine, only, at, snapshot_keys: SNAPSHOT_KEYS }
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
        if let Some((place, after)) = self.engine.with(|state| state.locks_want(at)) {
            let most = self.snapshot_keys;
            at.set_rows(self.engine.row_snapshot(place, after.as_ref(), most));
        }
        Some(self.engine.with(|state| state.locks(self.only, &mut self.at, most.max(1))))
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
        Some(self.engine.with(|state| state.waits(self.only, &mut self.at, most.max(1))))
    }
}
