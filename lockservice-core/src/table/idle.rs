//! Tables that are not used, found in slices so that they can be forgotten.
#![cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]

use std::ops::Bound;
use std::time::Duration;

use super::engine::LockEngine;
use super::lock_table::LockTable;
use super::state::EngineState;
use crate::clock::Time;
use crate::id::{BindVersion, TableId, TableRef};

/// The use of a table. A table in use is not forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage {
    /// Rows and ranges that are locked or waited for.
    pub(crate) items: usize,
    /// Calls that wait, or whose outcome was not taken yet.
    pub(crate) calls: usize,
}

impl Usage {
    /// True if the table is not in use.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// A slice of all tables.
#[derive(Debug)]
pub(crate) struct IdleTables {
    /// The tables that were not used for the time that was given.
    pub(crate) idle: Vec<(TableRef, BindVersion)>,
    /// The last table of the slice; `None` if there are no more.
    pub(crate) last: Option<TableId>,
}

/// The time since which a table was seen unused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    since: Time,
    /// The sum of the next token and the grants of the shards at that time. It grows with every new
    /// lock.
    grants: u64,
}

impl LockEngine {
    /// Finds, among the `most` tables after `after`, those that were not used for `idle`.
    ///
    /// The time of a table counts from the first slice that found it without locks and calls. It
    /// begins again if a lock was granted since the last slice.
    pub(crate) fn idle_tables(
        &self,
        after: Option<TableId>,
        most: usize,
        now: Time,
        idle: Duration,
    ) -> IdleTables {
        self.with(|state| state.idle_tables(after, most, now, idle))
    }

    /// The use of a table; none if that version is not installed.
    pub(crate) fn usage(&self, table: TableId, version: BindVersion) -> Usage {
        self.with(|state| {
            let table = state.tables.get(&table).filter(|table| table.bind.version == version);
            table.map(LockTable::usage).unwrap_or_default()
        })
    }
}

impl EngineState {
    fn idle_tables(
        &mut self,
        after: Option<TableId>,
        most: usize,
        now: Time,
        idle: Duration,
    ) -> IdleTables {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = IdleTables { idle: Vec::new(), last: None };
        for (count, id) in self.table_ids.range((from, Bound::Unbounded)).enumerate() {
            if count == most {
                return found;
            }
            found.last = Some(*id);
            let Some(table) = self.tables.get_mut(id) else { continue };
            let since = table.quiet_since(now);
            if since.is_some_and(|since| now >= since + idle) {
                found.idle.push((table.bind.table.clone(), table.bind.version));
            }
        }
        found.last = None;
        found
    }
}

impl LockTable {
    /// The time since which the table was seen unused, given a slice at `now`; `None` if it is in
    /// use.
    fn quiet_since(&mut self, now: Time) -> Option<Time> {
        let grants = self.tokens.next().get().wrapping_add(self.table_rows().grants());
        if !self.usage().is_none() {
            self.quiet = None;
        } else if self.quiet.is_none_or(|quiet| quiet.grants != grants) {
            self.quiet = Some(Quiet { since: now, grants });
        }
        self.quiet.map(|quiet| quiet.since)
    }
}
