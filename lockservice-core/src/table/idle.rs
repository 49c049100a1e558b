//! Tables in which nothing is locked: found in slices, so that they can be forgotten.

use std::ops::Bound;
use std::time::Duration;

use super::engine::LockEngine;
use super::lock_table::LockTable;
use super::state::EngineState;
use crate::clock::Time;
use crate::id::{BindVersion, FencingToken, TableId, TableRef};

/// What keeps a table from being forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Rows and ranges that are locked or waited for.
    pub items: usize,
    /// Calls that wait, or whose outcome was not received yet.
    pub calls: usize,
}

impl Usage {
    /// True if nothing does.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// A slice of all tables.
#[derive(Debug)]
pub struct IdleTables {
    /// Those that nobody has used for the time that was given.
    pub idle: Vec<(TableRef, BindVersion)>,
    /// The last table that was looked at; `None` if there are no more.
    pub last: Option<TableId>,
}

/// Since when a table was seen unused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    since: Time,
    /// Its next token then. Every new lock takes one, so that none was granted while it stays the
    /// same.
    token: FencingToken,
}

impl LockEngine {
    /// Looks at the `most` tables after `after`: which of them has nobody used for `idle`?
    ///
    /// A table counts from the look that first found it without locks and calls, and with no lock
    /// granted since the look before.
    pub fn idle_tables(
        &self,
        after: Option<TableId>,
        most: usize,
        now: Time,
        idle: Duration,
    ) -> IdleTables {
        self.with(|state| state.idle_tables(after, most, now, idle))
    }

    /// What is locked and waited for in a table; nothing if that version is not installed.
    pub fn usage(&self, table: TableId, version: BindVersion) -> Usage {
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
    /// Since when it was seen unused, as of a look now; `None` if it is in use.
    fn quiet_since(&mut self, now: Time) -> Option<Time> {
        let token = self.next_token();
        if !self.usage().is_none() {
            self.quiet = None;
        } else if self.quiet.is_none_or(|quiet| quiet.token != token) {
            self.quiet = Some(Quiet { since: now, token });
        }
        self.quiet.map(|quiet| quiet.since)
    }
}
