//! Lists of locks and waits, for operators.
//!
//! Lists are made in slices of bounded work. The engine goes on between two slices, so a list does
//! not show one moment. A line that is true all the time is in it once.

use std::ops::{Bound, ControlFlow};

use super::call::{CallId, EngineCall, Stage};
use super::entry::{Entry, Position};
use super::lock_table::{ItemRef, LockTable, blocker_of};
use super::state::EngineState;
use super::types::{CallObstacle, LockInfo, WaitInfo};
use super::uncontended::{Place, RowSnapshot};
use crate::error::Blocker;
use crate::id::{TableId, TxnId};
use crate::key::{Key, LockItem, LockMode};

/// The progress of a list of locks.
#[derive(Debug)]
pub(super) struct LocksAt {
    table: TableId,
    /// The last entry that was visited, with its last holder in the list if there may be more.
    after: Option<(LockItem, Option<TxnId>)>,
    /// The next keys that were held without contention. `None` before the first look-up, and once
    /// the list has reached the ranges.
    rows: Option<RowSnapshot>,
}

/// The progress of a list of waits.
#[derive(Debug)]
pub(super) struct WaitsAt {
    table: TableId,
    /// The last waiter that was visited.
    position: Position,
    /// The last conflicting entry that was visited, if there may be more.
    within: Option<(LockItem, Part)>,
}

/// The part of an entry that is in the list of a waiter's waits.
#[derive(Clone, Copy, Debug)]
enum Part {
    Nothing,
    /// The holders up to this one.
    Holders(TxnId),
    /// The holders, and the waiters up to this one.
    Ahead(Position),
    Everything,
}

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

impl LocksAt {
    /// Goes on with the next keys that are held without contention.
    pub(super) fn set_rows(&mut self, rows: RowSnapshot) {
        self.rows = Some(rows);
    }

    const fn start(table: TableId) -> Self {
        Self { table, after: None, rows: None }
    }
}

impl WaitsAt {
    const fn start(table: TableId) -> Self {
        Self { table, position: Position::FIRST, within: None }
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

    pub(super) fn locks_start(&self, only: Option<TableId>) -> Option<LocksAt> {
        only.or_else(|| self.table_ids.first().copied()).map(LocksAt::start)
    }

    /// The place of the table that a list of locks has reached, and the last row in the list, if
    /// the list needs a snapshot of the rows after that.
    pub(super) fn locks_want(&self, at: &LocksAt) -> Option<(Place, Option<Key>)> {
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
    pub(super) fn locks(
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
    fn locks_at(
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
            };
            // The budget ends after a line, so that every slice gets further.
            locks.push(line).map_break(|()| holder.txn)?;
        }
        ControlFlow::Continue(())
    }

    pub(super) fn waits_start(&self, only: Option<TableId>) -> Option<WaitsAt> {
        only.or_else(|| self.table_ids.first().copied()).map(WaitsAt::start)
    }

    /// The next waits of a list, at most `most`, for about as much work. At the end of the list
    /// `at` is `None`.
    pub(super) fn waits(
        &self,
        only: Option<TableId>,
        at: &mut Option<WaitsAt>,
        most: usize,
    ) -> Vec<WaitInfo> {
        let mut waits = Lines::new(most);
        while waits.flow().is_continue()
            && let Some(here) = at
        {
            let next = self.tables.get(&here.table).and_then(|table| {
                let same =
                    here.within.as_ref().and_then(|_| table.waiting.get_key_value(&here.position));
                same.or_else(|| {
                    table.waiting.range((Bound::Excluded(here.position), Bound::Unbounded)).next()
                })
            });
            waits.spend();
            match next {
                Some((position, id)) => {
                    if *position != here.position {
                        (here.position, here.within) = (*position, None);
                    }
                    here.within = self.waits_of(*id, here.within.take(), &mut waits).break_value();
                }
                None => *at = self.table_after(only, here.table).map(WaitsAt::start),
            }
        }
        waits.lines
    }

    /// The waits of one waiter after `from`. Breaks with the last part if the budget is used up.
    fn waits_of(
        &self,
        id: CallId,
        from: Option<(LockItem, Part)>,
        waits: &mut Lines<WaitInfo>,
    ) -> ControlFlow<(LockItem, Part)> {
        let call = &self.calls[id];
        let table = &self.tables[&call.table];
        // An entry that is done costs nothing, so that every slice gets further.
        if let Some((item, part)) = &from
            && !matches!(part, Part::Everything)
            && let Some((at, entry)) = table.entry_at(item)
        {
            self.waits_at(call, at, entry, *part, waits).map_break(|part| (item.clone(), part))?;
        }
        let mut flow = ControlFlow::Continue(());
        table.overlapping_after(call.item(), from.as_ref().map(|(item, _)| item), |at, entry| {
            flow = self
                .waits_at(call, at, entry, Part::Nothing, waits)
                .map_break(|part| (at.to_item(), part));
            if flow.is_break() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        flow
    }

    /// The waits of one waiter at one entry, after `from`. Breaks with the last part if the budget
    /// is used up.
    fn waits_at(
        &self,
        call: &EngineCall,
        at: ItemRef<'_>,
        entry: &Entry,
        from: Part,
        waits: &mut Lines<WaitInfo>,
    ) -> ControlFlow<Part> {
        waits.spend();
        let table = &self.tables[&call.table].bind.table;
        let line = |holder, granted| WaitInfo {
            table: table.clone(),
            item: call.item().clone(),
            mode: call.mode,
            waiter: call.txn,
            holder,
            held_item: at.to_item(),
            granted,
            since: call.since,
        };
        let holders = match from {
            Part::Nothing => Some(entry.conflicting(call.txn, call.mode, None)),
            Part::Holders(txn) => Some(entry.conflicting(call.txn, call.mode, Some(txn))),
            Part::Ahead(_) | Part::Everything => None,
        };
        for holder in holders.into_iter().flatten() {
            waits.push(line(holder.txn, true)).map_break(|()| Part::Holders(holder.txn))?;
        }
        let after = match from {
            Part::Nothing | Part::Holders(_) => Some(Position::FIRST),
            Part::Ahead(position) => Some(position),
            Part::Everything => None,
        };
        if let Some((queue, after)) = entry.queue().zip(after) {
            for (position, ahead) in queue.nearest_ahead(call.mode, call.position, after) {
                let ahead = self.calls[ahead].txn;
                waits.push(line(ahead, false)).map_break(|()| Part::Ahead(position))?;
            }
        }
        waits.flow().map_break(|()| Part::Everything)
    }

    /// The table that follows in a list.
    fn table_after(&self, only: Option<TableId>, table: TableId) -> Option<TableId> {
        let all = only
            .is_none()
            .then(|| self.table_ids.range((Bound::Excluded(table), Bound::Unbounded)));
        all.into_iter().flatten().next().copied()
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
    while snapshot.keys.front().is_some_and(|key| before.is_none_or(|before| key <= before))
        && let Some(key) = snapshot.keys.pop_front()
    {
        if Some(&key) == before {
            // The row has become contended since, and is listed with its entry.
            continue;
        }
        let holder = table.table_rows().holder(&key);
        let item = LockItem::Row(key);
        let flow = match holder {
            Some((txn, token, mode)) => locks.push(LockInfo {
                table: table.bind.table.clone(),
                item: item.clone(),
                mode,
                txn,
                token,
                pending: false,
                waiters: 0,
            }),
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
