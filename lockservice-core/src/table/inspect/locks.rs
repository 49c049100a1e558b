//! The list of locks.

use std::ops::ControlFlow;

use super::Lines;
use crate::id::{FencingToken, TableId, TxnId};
use crate::key::{Key, LockItem, LockMode};
use crate::table::entry::Entry;
use crate::table::lock_table::{ItemRef, LockTable};
use crate::table::state::EngineState;
use crate::table::types::LockInfo;
use crate::table::uncontended::{RowSnapshot, TablePlace};

/// The progress of a list of locks.
#[derive(Debug)]
pub(in crate::table) struct LocksAt {
    table: TableId,
    /// The last entry that was visited, with its last holder in the list if there may be more.
    after: Option<(LockItem, Option<TxnId>)>,
    /// The next keys that were held without contention. `None` before the first look-up, and once
    /// the list has reached the ranges.
    rows: Option<RowSnapshot>,
}

impl LocksAt {
    /// Goes on with the next keys that are held without contention.
    pub(in crate::table) fn set_rows(&mut self, rows: RowSnapshot) {
        self.rows = Some(rows);
    }

    const fn start(table: TableId) -> Self {
        Self { table, after: None, rows: None }
    }
}

impl EngineState {
    pub(in crate::table) fn locks_start(&self, only: Option<TableId>) -> Option<LocksAt> {
        only.or_else(|| self.table_ids.first().copied()).map(LocksAt::start)
    }

    /// The place of the table that a list of locks has reached, and the last row in the list, if
    /// the list needs a snapshot of the rows after that.
    pub(in crate::table) fn locks_want(&self, at: &LocksAt) -> Option<(TablePlace, Option<Key>)> {
        if at.rows.as_ref().is_some_and(|rows| !rows.is_used_up()) {
            return None;
        }
        let after = match &at.after {
            Some((LockItem::Row(key), _)) => Some(key.clone()),
            Some((LockItem::Range(_), _)) => return None,
            None => None,
        };
        self.tables.get(&at.table).map(|table| (table.place, after))
    }

    /// The next locks of a list, at most `most`, for about as much work. At the end of the list
    /// `at` is `None`. The slice ends before a table, or a part of it, of which it
    /// [needs](Self::locks_want) a snapshot.
    pub(in crate::table) fn locks(
        &self,
        only: Option<TableId>,
        at: &mut Option<LocksAt>,
        most: usize,
    ) -> Vec<LockInfo> {
        let mut locks = Lines::new(most);
        while locks.flow().is_continue()
            && let Some(here) = at
        {
            let flow = match self.tables.get(&here.table) {
                Some(_) if self.locks_want(here).is_some() => break,
                Some(table) => self.locks_of(table, here, &mut locks),
                None => ControlFlow::Continue(()),
            };
            if flow.is_continue() {
                locks.spend();
                *at = self.table_after(only, here.table).map(LocksAt::start);
            }
        }
        locks.lines
    }

    /// The locks of a table after those that are in the list already.
    fn locks_of(
        &self,
        table: &LockTable,
        here: &mut LocksAt,
        locks: &mut Lines<LockInfo>,
    ) -> ControlFlow<()> {
        let LocksAt { after, rows, .. } = here;
        let from = after.take();
        if let Some((item, Some(txn))) = &from
            && let Some(entry) = table.entry(item)
        {
            self.locks_at(table, item, entry, Some(*txn), locks).map_break(|txn| {
                *after = Some((item.clone(), Some(txn)));
            })?;
        }
        let mut flow = ControlFlow::Continue(());
        table.entries_after(from.as_ref().map(|(item, _)| item), |at, entry| {
            let before = if let ItemRef::Row(key) = at { Some(key) } else { None };
            flow = uncontended_locks(table, before, rows, after, locks);
            if flow.is_break() {
                return flow;
            }
            locks.spend();
            let item = at.to_item();
            flow = match self.locks_at(table, &item, entry, None, locks) {
                ControlFlow::Break(txn) => {
                    *after = Some((item, Some(txn)));
                    ControlFlow::Break(())
                }
                ControlFlow::Continue(()) if rows.as_ref().is_some_and(RowSnapshot::is_used_up) => {
                    *after = Some((item, None));
                    ControlFlow::Break(())
                }
                ControlFlow::Continue(()) => {
                    locks.flow().map_break(|()| *after = Some((item, None)))
                }
            };
            flow
        });
        flow?;
        uncontended_locks(table, None, rows, after, locks)
    }

    /// The holders of an entry after `from`. Breaks with the last one in the list if the budget is
    /// used up.
    pub(super) fn locks_at(
        &self,
        table: &LockTable,
        item: &LockItem,
        entry: &Entry,
        from: Option<TxnId>,
        locks: &mut Lines<LockInfo>,
    ) -> ControlFlow<TxnId> {
        if entry.holders().is_empty() {
            return ControlFlow::Continue(());
        }
        // The same calls wait for all holders in one mode, except the own call of each.
        let mut waiters = [0; LockMode::ALL.len()];
        table.overlapping_queues(item, |_, queue| {
            locks.spend();
            for mode in LockMode::ALL {
                waiters[mode.index()] += queue.incompatible(mode);
            }
            ControlFlow::Continue(())
        });
        for holder in entry.holders().after(from) {
            let mode = holder.mode;
            let own =
                self.waiting_call(holder.txn).map(|own| &self.calls[own]).is_some_and(|own| {
                    own.table == table.bind.id
                        && !own.mode.is_compatible(mode)
                        && own.item().overlaps(item)
                });
            let line = LockInfo {
                table: table.bind.table.clone(),
                item: item.clone(),
                mode,
                txn: holder.txn,
                token: holder.token(),
                pending: holder.pending,
                waiters: waiters[mode.index()] - usize::from(own),
                waiting_since: None,
            };
            // The budget ends after a line, so that every slice gets further.
            locks.push(line).map_break(|()| holder.txn)?;
        }
        ControlFlow::Continue(())
    }
}

/// The line of a row that is held without contention.
pub(super) fn uncontended_line(
    table: &LockTable,
    item: LockItem,
    (txn, token, mode): (TxnId, FencingToken, LockMode),
) -> LockInfo {
    LockInfo {
        table: table.bind.table.clone(),
        item,
        mode,
        txn,
        token,
        pending: false,
        waiters: 0,
        waiting_since: None,
    }
}

/// The locks that are held without contention before the row `before`; all that remain if it is
/// `None`. Breaks with the last one in `after` if the budget is used up, or if another snapshot is
/// needed.
fn uncontended_locks(
    table: &LockTable,
    before: Option<&Key>,
    rows: &mut Option<RowSnapshot>,
    after: &mut Option<(LockItem, Option<TxnId>)>,
    locks: &mut Lines<LockInfo>,
) -> ControlFlow<()> {
    let Some(snapshot) = rows else { return ControlFlow::Continue(()) };
    while snapshot.first().is_some_and(|key| before.is_none_or(|before| key <= before))
        && let Some(key) = snapshot.take_first()
    {
        if Some(&key) == before {
            // The row has become contended since, and is listed with its entry.
            continue;
        }
        let holder = table.table_rows().holder(&key);
        let item = LockItem::Row(key);
        let flow = match holder {
            Some(holder) => locks.push(uncontended_line(table, item.clone(), holder)),
            None => {
                locks.spend();
                locks.flow()
            }
        };
        if flow.is_break() || snapshot.is_used_up() {
            *after = Some((item, None));
            return ControlFlow::Break(());
        }
    }
    ControlFlow::Continue(())
}
