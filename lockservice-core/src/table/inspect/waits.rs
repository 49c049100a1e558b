//! The list of waits.

use std::ops::{Bound, ControlFlow};

use super::Lines;
use crate::id::{TableId, TxnId};
use crate::key::LockItem;
use crate::table::call::{CallId, EngineCall};
use crate::table::entry::{Entry, Position};
use crate::table::lock_table::ItemRef;
use crate::table::state::EngineState;
use crate::table::types::WaitInfo;

/// The progress of a list of waits.
#[derive(Debug)]
pub(in crate::table) struct WaitsAt {
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

impl WaitsAt {
    const fn start(table: TableId) -> Self {
        Self { table, position: Position::FIRST, within: None }
    }
}

impl EngineState {
    pub(in crate::table) fn waits_start(&self, only: Option<TableId>) -> Option<WaitsAt> {
        only.or_else(|| self.table_ids.first().copied()).map(WaitsAt::start)
    }

    /// The next waits of a list, at most `most`, for about as much work. At the end of the list
    /// `at` is `None`.
    pub(in crate::table) fn waits(
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
}
