//! The list of one row: the locks that overlap it, then the calls that wait for something that
//! overlaps it, in queue order. It visits nothing else of the table.

use std::ops::ControlFlow;

use super::Lines;
use super::locks::uncontended_line;
use crate::id::{FencingToken, TableId, TxnId};
use crate::key::{Key, LockItem};
use crate::table::call::CallId;
use crate::table::entry::Position;
use crate::table::lock_table::LockTable;
use crate::table::state::EngineState;
use crate::table::types::LockInfo;

/// The progress of a list of one row.
#[derive(Debug)]
pub(in crate::table) struct RowAt {
    table: TableId,
    row: Key,
    part: Part,
}

/// The part of the list that follows.
#[derive(Debug)]
enum Part {
    /// The holders: all, or those after this entry, or after this holder of it.
    Holders(Option<(LockItem, Option<TxnId>)>),
    /// The waiters behind this position.
    Waiters(Position),
}

impl RowAt {
    pub(in crate::table) const fn start(table: TableId, row: Key) -> Self {
        Self { table, row, part: Part::Holders(None) }
    }
}

impl EngineState {
    /// The next lines of a list, at most `most`, for about as much work. At the end of the list
    /// `at` is `None`.
    pub(in crate::table) fn row(&self, at: &mut Option<RowAt>, most: usize) -> Vec<LockInfo> {
        let mut lines = Lines::new(most);
        let here = at.as_mut().and_then(|here| Some((self.tables.get(&here.table)?, here)));
        let Some((table, RowAt { row, part, .. })) = here else {
            *at = None;
            return lines.lines;
        };
        if let Part::Holders(from) = part {
            *part = match self.row_holders(table, row, from.take(), &mut lines) {
                ControlFlow::Break(last) => Part::Holders(Some(last)),
                ControlFlow::Continue(()) => Part::Waiters(Position::FIRST),
            };
        }
        let item = LockItem::Row(row.clone());
        while let Part::Waiters(after) = part
            && lines.flow().is_continue()
        {
            let Some((position, id)) = next_waiter(table, &item, *after, &mut lines) else {
                *at = None;
                break;
            };
            *after = position;
            // The budget is looked at above.
            let _ = lines.push(self.waiting_line(table, id));
        }
        lines.lines
    }

    /// The holders of what overlaps the row, after `from`. Breaks with the last one in the list if
    /// the budget is used up.
    fn row_holders(
        &self,
        table: &LockTable,
        row: &Key,
        from: Option<(LockItem, Option<TxnId>)>,
        lines: &mut Lines<LockInfo>,
    ) -> ControlFlow<(LockItem, Option<TxnId>)> {
        let item = LockItem::Row(row.clone());
        // Under the mutex of the state a row has an entry or is held without contention.
        if from.is_none()
            && let Some(holder) = table.table_rows().holder(row)
        {
            let line = uncontended_line(table, item.clone(), holder);
            lines.push(line).map_break(|()| (item.clone(), None))?;
        }
        if let Some((at, Some(txn))) = &from
            && let Some(entry) = table.entry(at)
        {
            self.locks_at(table, at, entry, Some(*txn), lines)
                .map_break(|txn| (at.clone(), Some(txn)))?;
        }
        let mut flow = ControlFlow::Continue(());
        table.overlapping_after(&item, from.as_ref().map(|(at, _)| at), |at, entry| {
            lines.spend();
            let at = at.to_item();
            flow = match self.locks_at(table, &at, entry, None, lines) {
                ControlFlow::Break(txn) => ControlFlow::Break((at, Some(txn))),
                ControlFlow::Continue(()) => lines.flow().map_break(|()| (at, None)),
            };
            if flow.is_break() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        flow
    }

    fn waiting_line(&self, table: &LockTable, id: CallId) -> LockInfo {
        let call = &self.calls[id];
        LockInfo {
            table: table.bind.table.clone(),
            item: call.item().clone(),
            mode: call.mode,
            txn: call.txn,
            token: FencingToken::default(),
            pending: false,
            waiters: 0,
            waiting_since: Some(call.since),
        }
    }
}

/// The next call behind `after` that waits for something that overlaps `item`.
fn next_waiter(
    table: &LockTable,
    item: &LockItem,
    after: Position,
    lines: &mut Lines<LockInfo>,
) -> Option<(Position, CallId)> {
    let mut next = None;
    table.overlapping_queues(item, |_, queue| {
        lines.spend();
        next = next.into_iter().chain(queue.first_after(after)).min();
        ControlFlow::Continue(())
    });
    next
}
