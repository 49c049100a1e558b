//! Lists of locks and waits, and the holders of one key, for operators; and the obstacle of a call,
//! for its waiter.
//!
//! Lists are made in slices of bounded work. The engine goes on between two slices, so a list does
//! not show one moment. A line that is true all the time is in it once.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the lines of a slice; the obstacle of one call |
//! | `locks.rs` | the list of locks: contended ones by entry, the others by snapshot |
//! | `row.rs` | the list of one row: who holds what overlaps it, and who waits for that |
//! | `waits.rs` | the list of waits: for each waiter its conflicting holders and waiters |

mod locks;
mod row;
mod waits;

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use super::call::{CallId, Stage};
use super::engine::LockEngine;
use super::lock_table::blocker_of;
use super::state::EngineState;
use super::types::CallObstacle;
use crate::error::Blocker;
use crate::id::{TableId, TxnId};
use crate::key::{Key, LockItem};

pub(super) use self::locks::LocksAt;
pub(super) use self::row::RowAt;
pub(super) use self::waits::WaitsAt;

/// The lines of a slice, and the work that it may still do: lines, and entries that are visited.
struct Lines<T> {
    lines: Vec<T>,
    budget: usize,
}

impl<T> Lines<T> {
    const fn new(budget: usize) -> Self {
        Self { lines: Vec::new(), budget }
    }

    /// Adds a line. Breaks if that uses up the budget.
    fn push(&mut self, line: T) -> ControlFlow<()> {
        self.lines.push(line);
        self.spend();
        self.flow()
    }

    fn spend(&mut self) {
        self.budget = self.budget.saturating_sub(1);
    }

    const fn flow(&self) -> ControlFlow<()> {
        if self.budget == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl LockEngine {
    /// The transactions that hold something that overlaps `key`, at one moment; a call that has
    /// taken it and waits for more counts too. `None` if there are more than `most`.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn holders_of(&self, table: TableId, key: &Key, most: usize) -> Option<Vec<TxnId>> {
        self.with(|state| state.holders_of(table, key, most))
    }
}

impl EngineState {
    /// The first conflicting holder or waiter of a call that waits.
    pub(super) fn blocker(&self, id: CallId) -> Option<Blocker> {
        let call = self.calls.get(id).filter(|call| call.is_waiting())?;
        let mut blocker = None;
        self.tables[&call.table].overlapping(call.item(), |at, entry| {
            blocker = match entry.conflicting(call.txn, call.mode, None).next() {
                Some(holder) => Some(blocker_of(at, holder)),
                None => entry
                    .first_conflicting_waiter(call.mode)
                    .filter(|(ahead, _)| *ahead < call.position)
                    .map(|(_, ahead)| self.calls[ahead].as_blocker()),
            };
            if blocker.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        blocker
    }

    /// True if a call waits for a token.
    pub(super) fn awaits_token(&self, id: CallId) -> bool {
        self.calls.get(id).is_some_and(|call| matches!(call.stage, Stage::AwaitingToken))
    }

    /// The obstacle of a transaction's call, if it waits.
    pub(super) fn obstacle(&self, txn: TxnId) -> Option<CallObstacle> {
        let id = self.txns.get(&txn)?.call?;
        match self.calls.get(id)?.stage {
            Stage::Waiting => self.blocker(id).map(CallObstacle::Lock),
            Stage::AwaitingToken => Some(CallObstacle::Token),
            Stage::Moving | Stage::Failing(_) | Stage::Done(_) => None,
        }
    }

    /// The transactions that hold something that overlaps `key`, or whose call has taken it and
    /// waits for more; each once, in the order of their ids. `None` if there are more than `most`.
    fn holders_of(&self, table: TableId, key: &Key, most: usize) -> Option<Vec<TxnId>> {
        let Some(table) = self.tables.get(&table) else { return Some(Vec::new()) };
        // A row is held here or there: it moves only under the mutex of the state.
        let uncontended = table.table_rows().holder(key).map(|(txn, ..)| txn);
        let mut holders = BTreeSet::from_iter(uncontended);
        table.overlapping(&LockItem::Row(key.clone()), |_, entry| {
            for holder in entry.holders().iter() {
                holders.insert(holder.txn);
                if holders.len() > most {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        (holders.len() <= most).then(|| holders.into_iter().collect())
    }

    /// The table that follows in a list.
    fn table_after(&self, only: Option<TableId>, table: TableId) -> Option<TableId> {
        let all = only
            .is_none()
            .then(|| self.table_ids.range((Bound::Excluded(table), Bound::Unbounded)));
        all.into_iter().flatten().next().copied()
    }
}
