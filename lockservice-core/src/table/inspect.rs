//! What an operator sees: who holds what, and who waits for whom.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::call::CallId;
use super::state::State;
use super::types::{LockInfo, WaitInfo};
use crate::id::TableId;
use crate::key::LockItem;

impl State {
    pub(super) fn locks(&self, table: Option<TableId>) -> Vec<LockInfo> {
        let mut locks = Vec::new();
        for id in self.table_ids(table) {
            let table = &self.tables[&id];
            table.for_each(|at, entry| {
                let item = at.to_item();
                for holder in entry.holders() {
                    let mut waiters = 0;
                    if table.waiting > 0 {
                        table.overlapping(&item, |_, entry| {
                            let others =
                                entry.wanted_by(holder.mode).filter(|waiter| self.calls[*waiter].txn != holder.txn);
                            waiters += others.count();
                            ControlFlow::Continue(())
                        });
                    }
                    locks.push(LockInfo {
                        table: table.bind.table.clone(),
                        item: item.clone(),
                        mode: holder.mode,
                        txn: holder.txn,
                        token: holder.token,
                        waiters,
                    });
                }
            });
        }
        locks
    }

    pub(super) fn waits(&self, table: Option<TableId>) -> Vec<WaitInfo> {
        let mut waits = Vec::new();
        for id in self.table_ids(table) {
            let mut queue: Vec<CallId> = self
                .calls
                .ids()
                .into_iter()
                .filter(|call| self.calls[*call].table == id && self.calls[*call].is_waiting())
                .collect();
            queue.sort_by_key(|call| self.calls[*call].place);
            for waiter in queue {
                self.waits_of(waiter, &mut waits);
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
            for ahead in entry.nearest_ahead(call.mode, call.place) {
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
