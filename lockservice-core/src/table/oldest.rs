//! The calls that have waited longest, and how many wait for an item: for operators.
//!
//! All calls that wait are visited, in slices of bounded work: a call may wait for its last item,
//! so that its queue position says nothing about its age. The engine goes on between two slices, so
//! the result does not show one moment.
#![cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]

use std::collections::BinaryHeap;
use std::ops::{Bound, ControlFlow};

use super::engine::LockEngine;
use super::entry::Position;
use super::state::EngineState;
use crate::clock::Time;
use crate::error::Blocker;
use crate::id::{TableId, TableRef, TxnId};
use crate::key::{LockItem, LockMode};

/// Calls and tables that are visited under one hold of the mutex: some microseconds.
const SLICE: usize = 256;

/// The most queues that are visited to count the waiters of an item. A range may overlap very many.
const QUEUES_MAX: usize = 256;

/// A call that waits for a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OldWait {
    /// When it was made.
    pub(crate) since: Time,
    pub(crate) txn: TxnId,
    pub(crate) table: TableRef,
    /// The item that it waits for.
    pub(crate) item: LockItem,
    pub(crate) mode: LockMode,
    /// The first conflicting holder or waiter, with empty names.
    pub(crate) blocker: Option<Blocker>,
}

/// The progress of a visit of all waits: the table, and the last call that was visited there.
#[derive(Clone, Copy, Debug)]
struct VisitAt {
    table: TableId,
    after: Position,
}

impl LockEngine {
    /// The calls that have waited longest for a lock, of one table or of all: at most `most`, the
    /// oldest first.
    pub(crate) fn oldest_waits(&self, only: Option<TableId>, most: usize) -> Vec<OldWait> {
        let mut oldest = BinaryHeap::new();
        let mut at = self.with(|state| state.visit_start(only));
        while most > 0
            && let Some(here) = at
        {
            at = self.with(|state| {
                state.visit_waits(only, here, |wait| {
                    if oldest.len() < most {
                        oldest.push(wait);
                    } else if let Some(mut youngest) = oldest.peek_mut()
                        && wait < *youngest
                    {
                        *youngest = wait;
                    }
                })
            });
        }
        let oldest = oldest.into_sorted_vec().into_iter();
        oldest.filter_map(|(_, txn)| self.with(|state| state.wait_of(txn))).collect()
    }

    /// The number of calls that wait for an item, or for one that overlaps it: at least so many,
    /// for at most a bounded number of queues is visited.
    pub(crate) fn waiting_for(&self, table: TableId, item: &LockItem) -> usize {
        self.with(|state| {
            let Some(table) = state.tables.get(&table) else { return 0 };
            let (mut waiting, mut queues) = (0, 0);
            table.overlapping_queues(item, |_, queue| {
                waiting += queue.incompatible(LockMode::Exclusive);
                queues += 1;
                if queues < QUEUES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            waiting
        })
    }
}

impl EngineState {
    fn visit_start(&self, only: Option<TableId>) -> Option<VisitAt> {
        let table = only.or_else(|| self.table_ids.first().copied())?;
        Some(VisitAt { table, after: Position::FIRST })
    }

    /// Visits the waits of a slice, each with the time of its call. Returns where to go on; `None`
    /// at the end.
    fn visit_waits(
        &self,
        only: Option<TableId>,
        at: VisitAt,
        mut visit: impl FnMut((Time, TxnId)),
    ) -> Option<VisitAt> {
        let VisitAt { mut table, mut after } = at;
        let mut budget = SLICE;
        loop {
            if let Some(here) = self.tables.get(&table) {
                let rest = here.waiting.range((Bound::Excluded(after), Bound::Unbounded));
                for (position, id) in rest.take(budget) {
                    let call = &self.calls[*id];
                    visit((call.since, call.txn));
                    (after, budget) = (*position, budget - 1);
                }
            }
            if budget <= 1 {
                return Some(VisitAt { table, after });
            }
            budget -= 1;
            let rest = only
                .is_none()
                .then(|| self.table_ids.range((Bound::Excluded(table), Bound::Unbounded)));
            table = rest.and_then(|mut rest| rest.next().copied())?;
            after = Position::FIRST;
        }
    }

    fn wait_of(&self, txn: TxnId) -> Option<OldWait> {
        let id = self.txns.get(&txn)?.call?;
        let call = self.calls.get(id).filter(|call| call.is_waiting())?;
        Some(OldWait {
            since: call.since,
            txn,
            table: self.tables.get(&call.table)?.bind.table.clone(),
            item: call.item().clone(),
            mode: call.mode,
            blocker: self.blocker(id),
        })
    }
}
