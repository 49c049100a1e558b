//! What an operator sees: who holds what, and who waits for whom.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::call::CallId;
use super::lock_table::holds;
use super::state::State;
use super::types::{LockInfo, WaitInfo};
use crate::error::Blocker;
use crate::id::TableId;
use crate::key::LockItem;

impl State {
    pub(super) fn locks(&self, table: Option<TableId>) -> Vec<LockInfo> {
        let mut locks = Vec::new();
        for id in self.table_ids(table) {
            let table = &self.tables[&id];
            table.for_each(|at, entry| {
                let Some(mode) = entry.holders().first().map(|holder| holder.mode) else { return };
                let item = at.to_item();
                // All holders of an entry have the same mode: the same calls wait because of them, each without its own.
                let mut wanting = 0;
                table.overlapping_queues(&item, |_, queue| {
                    wanting += queue.incompatible(mode);
                    ControlFlow::Continue(())
                });
                for holder in entry.holders().iter() {
                    let own = self.waiting_call(holder.txn).map(|own| &self.calls[own]).is_some_and(|own| {
                        own.table == id && !own.mode.is_compatible(mode) && own.item().overlaps(&item)
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
                }
            });
        }
        locks
    }

    /// Who stands in the way of a call that waits: the first one found.
    pub(super) fn blocker(&self, id: CallId) -> Option<Blocker> {
        let call = self.calls.get(id).filter(|call| call.is_waiting())?;
        let mut blocker = None;
        self.tables[&call.table].overlapping(call.item(), |at, entry| {
            blocker = match entry.in_the_way(call.txn, call.mode).next() {
                Some(holder) => Some(holds(at, holder)),
                None => entry
                    .first_wanting(call.mode)
                    .filter(|(ahead, _)| *ahead < call.place)
                    .map(|(_, ahead)| self.calls[ahead].wants()),
            };
            if blocker.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        blocker
    }

    pub(super) fn waits(&self, table: Option<TableId>) -> Vec<WaitInfo> {
        let mut waits = Vec::new();
        for id in self.table_ids(table) {
            for waiter in self.tables[&id].waiting.values() {
                self.waits_of(*waiter, &mut waits);
            }
        }
        waits
    }

    fn waits_of(&self, waiter: CallId, waits: &mut Vec<WaitInfo>) {
        let call = &self.calls[waiter];
        let table = &self.tables[&call.table];
        let mut push = |holder, held_item: LockItem, granted| {
            waits.push(WaitInfo {
                table: table.bind.table.clone(),
                item: call.item().clone(),
                mode: call.mode,
                waiter: call.txn,
                holder,
                held_item,
                granted,
                since: call.since,
            });
        };
        table.overlapping(call.item(), |at, entry| {
            for holder in entry.in_the_way(call.txn, call.mode) {
                push(holder.txn, at.to_item(), true);
            }
            for (_, ahead) in entry.queue().into_iter().flat_map(|queue| queue.nearest_ahead(call.mode, call.place)) {
                push(self.calls[ahead].txn, at.to_item(), false);
            }
            ControlFlow::Continue(())
        });
    }

    fn table_ids(&self, table: Option<TableId>) -> BTreeSet<TableId> {
        match table {
            Some(table) => self.tables.contains_key(&table).then_some(table).into_iter().collect(),
            None => self.tables.keys().copied().collect(),
        }
    }
}
