//! What an operator sees: who holds what, and who waits for whom.
//!
//! Lists are made in slices of bounded work. Between two slices the engine goes on, so a list is
//! not of one moment; but what was there all the time is in it, once.

use std::ops::{Bound, ControlFlow};

use super::call::{CallId, Stage};
use super::entry::{Entry, Position};
use super::lock_table::{ItemRef, LockTable, holds};
use super::state::EngineState;
use super::types::{CallObstacle, LockInfo, WaitInfo};
use crate::error::Blocker;
use crate::id::{TableId, TxnId};
use crate::key::LockItem;

/// How far a list of locks has got.
#[derive(Debug)]
pub(super) struct LocksAt {
    table: TableId,
    /// The last entry looked at, and the last holder of it that is in the list if there may be
    /// more.
    after: Option<(LockItem, Option<TxnId>)>,
}

/// How far a list of waits has got.
#[derive(Debug)]
pub(super) struct WaitsAt {
    table: TableId,
    /// The last waiter looked at.
    position: Position,
    /// The last entry in its way that was looked at, if there may be more.
    within: Option<(LockItem, Part)>,
}

/// How much of an entry is in the list of a waiter's waits.
#[derive(Clone, Copy, Debug)]
enum Part {
    Nothing,
    /// The holders up to this one.
    Holders(TxnId),
    /// The holders, and the waiters up to this one.
    Ahead(Position),
    Everything,
}

/// The work that a slice may still do.
struct Budget(usize);

impl Budget {
    fn take(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    const fn flow(&self) -> ControlFlow<()> {
        if self.0 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl LocksAt {
    const fn start(table: TableId) -> Self {
        Self { table, after: None }
    }
}

impl WaitsAt {
    const fn start(table: TableId) -> Self {
        Self { table, position: Position::FIRST, within: None }
    }
}

impl EngineState {
    /// Who stands in the way of a call that waits: the first one found.
    pub(super) fn blocker(&self, id: CallId) -> Option<Blocker> {
        let call = self.calls.get(id).filter(|call| call.is_waiting())?;
        let mut blocker = None;
        self.tables[&call.table].overlapping(call.item(), |at, entry| {
            blocker = match entry.conflicting(call.txn, call.mode, None).next() {
                Some(holder) => Some(holds(at, holder)),
                None => entry
                    .first_wanting(call.mode)
                    .filter(|(ahead, _)| *ahead < call.position)
                    .map(|(_, ahead)| self.calls[ahead].wants()),
            };
            if blocker.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        blocker
    }

    /// What the call of a transaction waits for, if it has one that waits.
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

    /// The next locks of a list, at most so many, for about as much work; none is left if `at` is
    /// `None` then.
    pub(super) fn locks(
        &self,
        only: Option<TableId>,
        at: &mut Option<LocksAt>,
        most: usize,
    ) -> Vec<LockInfo> {
        let (mut locks, mut left) = (Vec::new(), Budget(most));
        while left.flow().is_continue()
            && let Some(here) = at
        {
            let table = self.tables.get(&here.table);
            if table.is_none_or(|table| {
                self.locks_of(table, &mut here.after, &mut left, &mut locks).is_continue()
            }) {
                left.take();
                *at = self.table_after(only, here.table).map(LocksAt::start);
            }
        }
        locks
    }

    fn locks_of(
        &self,
        table: &LockTable,
        after: &mut Option<(LockItem, Option<TxnId>)>,
        left: &mut Budget,
        locks: &mut Vec<LockInfo>,
    ) -> ControlFlow<()> {
        let from = after.take();
        if let Some((item, Some(txn))) = &from
            && let Some(entry) = table.entry(item)
        {
            self.locks_at(table, item, entry, Some(*txn), left, locks).map_break(|txn| {
                *after = Some((item.clone(), Some(txn)));
            })?;
        }
        let mut flow = ControlFlow::Continue(());
        table.entries_after(from.as_ref().map(|(item, _)| item), |at, entry| {
            left.take();
            let item = at.to_item();
            flow = match self.locks_at(table, &item, entry, None, left, locks) {
                ControlFlow::Break(txn) => {
                    *after = Some((item, Some(txn)));
                    ControlFlow::Break(())
                }
                ControlFlow::Continue(()) => {
                    left.flow().map_break(|()| *after = Some((item, None)))
                }
            };
            flow
        });
        flow
    }

    /// The holders of an entry after `from`. Breaks with the last one in the list if there is no
    /// work left.
    fn locks_at(
        &self,
        table: &LockTable,
        item: &LockItem,
        entry: &Entry,
        from: Option<TxnId>,
        left: &mut Budget,
        locks: &mut Vec<LockInfo>,
    ) -> ControlFlow<TxnId> {
        let Some(mode) = entry.holders().first().map(|holder| holder.mode) else {
            return ControlFlow::Continue(());
        };
        // All holders of an entry have the same mode: the same calls wait because of them, each
        // without its own.
        let mut wanting = 0;
        table.overlapping_queues(item, |_, queue| {
            left.take();
            wanting += queue.incompatible(mode);
            ControlFlow::Continue(())
        });
        for holder in entry.holders().after(from) {
            let own =
                self.waiting_call(holder.txn).map(|own| &self.calls[own]).is_some_and(|own| {
                    own.table == table.bind.id
                        && !own.mode.is_compatible(mode)
                        && own.item().overlaps(item)
                });
            locks.push(LockInfo {
                table: table.bind.table.clone(),
                item: item.clone(),
                mode,
                txn: holder.txn,
                token: holder.token,
                pending: holder.pending,
                waiters: wanting - usize::from(own),
            });
            left.take();
            // Not before one is in the list, or a list would never get further.
            left.flow().map_break(|()| holder.txn)?;
        }
        ControlFlow::Continue(())
    }

    pub(super) fn waits_start(&self, only: Option<TableId>) -> Option<WaitsAt> {
        only.or_else(|| self.table_ids.first().copied()).map(WaitsAt::start)
    }

    /// The next waits of a list, at most so many, for about as much work; none is left if `at` is
    /// `None` then.
    pub(super) fn waits(
        &self,
        only: Option<TableId>,
        at: &mut Option<WaitsAt>,
        most: usize,
    ) -> Vec<WaitInfo> {
        let (mut waits, mut left) = (Vec::new(), Budget(most));
        while left.flow().is_continue()
            && let Some(here) = at
        {
            let next = self.tables.get(&here.table).and_then(|table| {
                let same =
                    here.within.as_ref().and_then(|_| table.waiting.get_key_value(&here.position));
                same.or_else(|| {
                    table.waiting.range((Bound::Excluded(here.position), Bound::Unbounded)).next()
                })
            });
            left.take();
            match next {
                Some((position, id)) => {
                    if *position != here.position {
                        (here.position, here.within) = (*position, None);
                    }
                    here.within =
                        self.waits_of(*id, here.within.take(), &mut left, &mut waits).break_value();
                }
                None => *at = self.table_after(only, here.table).map(WaitsAt::start),
            }
        }
        waits
    }

    /// The waits of one waiter after `from`. Breaks with how far it got if there is no work left.
    fn waits_of(
        &self,
        id: CallId,
        from: Option<(LockItem, Part)>,
        left: &mut Budget,
        waits: &mut Vec<WaitInfo>,
    ) -> ControlFlow<(LockItem, Part)> {
        let call = &self.calls[id];
        let table = &self.tables[&call.table];
        let mut rest_of = |at: ItemRef<'_>, entry: &Entry, from: Part| {
            left.take();
            let mut line = |holder, granted| {
                waits.push(WaitInfo {
                    table: table.bind.table.clone(),
                    item: call.item().clone(),
                    mode: call.mode,
                    waiter: call.txn,
                    holder,
                    held_item: at.to_item(),
                    granted,
                    since: call.since,
                });
                left.take();
                left.flow()
            };
            let holders = match from {
                Part::Nothing => Some(entry.conflicting(call.txn, call.mode, None)),
                Part::Holders(txn) => Some(entry.conflicting(call.txn, call.mode, Some(txn))),
                Part::Ahead(_) | Part::Everything => None,
            };
            for holder in holders.into_iter().flatten() {
                line(holder.txn, true).map_break(|()| Part::Holders(holder.txn))?;
            }
            let after = match from {
                Part::Nothing | Part::Holders(_) => Some(Position::FIRST),
                Part::Ahead(position) => Some(position),
                Part::Everything => None,
            };
            let queue = entry.queue().zip(after);
            for (position, ahead) in queue
                .into_iter()
                .flat_map(|(queue, after)| queue.nearest_ahead(call.mode, call.position, after))
            {
                line(self.calls[ahead].txn, false).map_break(|()| Part::Ahead(position))?;
            }
            left.flow().map_break(|()| Part::Everything)
        };
        // Of one that is done nothing is looked at, or a slice that is over by then would get no
        // further.
        if let Some((item, part)) = &from
            && !matches!(part, Part::Everything)
            && let Some((at, entry)) = table.entry_at(item)
        {
            rest_of(at, entry, *part).map_break(|part| (item.clone(), part))?;
        }
        let mut flow = ControlFlow::Continue(());
        table.overlapping_after(call.item(), from.as_ref().map(|(item, _)| item), |at, entry| {
            flow = rest_of(at, entry, Part::Nothing).map_break(|part| (at.to_item(), part));
            if flow.is_break() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        flow
    }

    /// The table that follows in a list.
    fn table_after(&self, only: Option<TableId>, table: TableId) -> Option<TableId> {
        let all = only
            .is_none()
            .then(|| self.table_ids.range((Bound::Excluded(table), Bound::Unbounded)));
        all.into_iter().flatten().next().copied()
    }
}
