//! The wait graph: who is waited for, cycles, victims, reorderings, promotion.

use std::ops::ControlFlow;

use super::call::CallId;
use super::hash::IdMap;
use super::state::State;
use super::types::VictimPolicy;
use crate::error::{DeadlockEdge, Detail, Error, ErrorKind};
use crate::id::TxnId;

/// Which waits a search follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edges {
    /// For those who hold an incompatible lock.
    Hard,
    /// Also for those who wait ahead in the queue.
    All,
}

/// A waiter whose waits are being followed.
struct Frame {
    id: CallId,
    next: Vec<CallId>,
    reaches: bool,
}

impl State {
    /// Grants whatever can be granted, always to the first grantable waiter in queue order, until nothing is left to grant.
    pub(super) fn settle(&mut self) {
        loop {
            while let Some((table, item)) = self.left.pop() {
                let Some(table) = self.tables.get(&table) else { continue };
                if table.waiting > 0 {
                    table.overlapping(&item, |_, entry| {
                        self.candidates.extend(entry.front());
                        ControlFlow::Continue(())
                    });
                }
            }
            let Some((place, id)) = self.candidates.pop_first() else { return };
            let Some(call) = self.calls.get(id).filter(|call| call.is_waiting() && call.place == place) else {
                continue;
            };
            if !self.tables[&call.table].is_blocked(call.item(), call.txn, call.mode, place) {
                self.resume(id);
            }
        }
    }

    /// A waiter behind which a call must wait for its next item: one that is incompatible and does not itself, directly or over others, wait
    /// for the call's transaction.
    pub(super) fn must_wait_behind(&self, call: &super::call::Call) -> Option<CallId> {
        let table = &self.tables[&call.table];
        let mut ahead = Vec::new();
        let holds_something = self.txns.get(&call.txn).is_some_and(|txn| txn.count > 0);
        table.overlapping(call.item(), |_, entry| {
            if holds_something {
                ahead.extend(entry.wanted_by(call.mode));
                return ControlFlow::Continue(());
            }
            // One who holds nothing is waited for by nobody: the first waiter decides.
            ahead.extend(entry.wanted_by(call.mode).next());
            if ahead.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if ahead.is_empty() || !holds_something {
            return ahead.first().copied();
        }
        let mut known = IdMap::default();
        ahead.into_iter().find(|waiter| !self.reaches(*waiter, call.txn, &mut known))
    }

    /// True if somebody waits, or will once this call is in the queue, for the call's transaction.
    pub(super) fn is_waited_for(&self, id: CallId) -> bool {
        let call = &self.calls[id];
        let Some(txn) = self.txns.get(&call.txn) else { return false };
        let held = txn.held.iter().any(|(table, items)| {
            self.tables.get(table).is_some_and(|table| {
                table.waiting > 0
                    && items.iter().any(|item| {
                        let mode = table.entry(item).and_then(|entry| entry.holder(call.txn)).map(|own| own.mode);
                        mode.is_some_and(|mode| table.is_wanted(item, mode))
                    })
            })
        });
        // Of the waits that begin only an upgrade has somebody behind it, who may wait for nothing that its transaction holds.
        held || call.place.is_ahead() && self.tables[&call.table].is_wanted(call.item(), call.mode)
    }

    /// The waits of a waiter. True if one of them is for `target`; the others that wait themselves are appended to `out`.
    fn edges(&self, id: CallId, target: Option<TxnId>, edges: Edges, out: &mut Vec<CallId>) -> bool {
        let call = &self.calls[id];
        let mut hit = false;
        self.tables[&call.table].overlapping(call.item(), |_, entry| {
            for holder in entry.in_the_way(call.txn, call.mode) {
                if Some(holder.txn) == target {
                    hit = true;
                } else if let Some(waiter) = self.waiting_call(holder.txn) {
                    out.push(waiter);
                }
            }
            if edges == Edges::All {
                for waiter in entry.nearest_ahead(call.mode, call.place) {
                    if Some(self.calls[waiter].txn) == target {
                        hit = true;
                    } else {
                        out.push(waiter);
                    }
                }
            }
            ControlFlow::Continue(())
        });
        hit
    }

    fn waiting_call(&self, txn: TxnId) -> Option<CallId> {
        self.txns.get(&txn)?.call.filter(|id| self.calls.get(*id).is_some_and(|call| call.is_waiting()))
    }

    /// True if `from` waits for `target`, directly or over others. Remembers in `known` what it learned about whom.
    ///
    /// Without the target's own waits the graph has no cycle, so what a finished waiter reaches is final.
    fn reaches(&self, from: CallId, target: TxnId, known: &mut IdMap<CallId, bool>) -> bool {
        if let Some(reaches) = known.get(&from) {
            return *reaches;
        }
        let frame = |id| {
            let mut next = Vec::new();
            let reaches = self.edges(id, Some(target), Edges::All, &mut next);
            Frame { id, next, reaches }
        };
        known.insert(from, false);
        let mut stack = vec![frame(from)];
        loop {
            let top = stack.last_mut().expect("the loop ends with the last frame");
            if let Some(id) = top.next.pop() {
                match known.get(&id) {
                    Some(reaches) => top.reaches |= *reaches,
                    None => {
                        known.insert(id, false);
                        stack.push(frame(id));
                    }
                }
                continue;
            }
            let Some(done) = stack.pop() else { return false };
            known.insert(done.id, done.reaches);
            match stack.last_mut() {
                Some(below) => below.reaches |= done.reaches,
                None => return done.reaches,
            }
        }
    }

    /// A wait has begun: breaks every cycle that it closed. All of them run through it, since there were none before.
    pub(super) fn resolve_cycles(&mut self, id: CallId) {
        let txn = self.calls[id].txn;
        while self.waiting_call(txn) == Some(id) {
            let Some(cycle) = self.hard_cycle(id) else { break };
            let victim = self.victim(&cycle);
            let error = self.deadlock_error(&cycle);
            self.fail(victim, error);
        }
        if self.waiting_call(txn) == Some(id) {
            self.reorder(id);
        }
    }

    /// A cycle of waits for holders through `start`: each member waits for a lock of the next, the last for one of `start`.
    fn hard_cycle(&self, start: CallId) -> Option<Vec<CallId>> {
        let target = self.calls[start].txn;
        let mut found_by = IdMap::default();
        found_by.insert(start, start);
        let mut stack = vec![start];
        let mut next = Vec::new();
        while let Some(id) = stack.pop() {
            if self.edges(id, Some(target), Edges::Hard, &mut next) {
                let mut cycle = vec![id];
                let mut at = id;
                while at != start {
                    at = found_by[&at];
                    cycle.push(at);
                }
                cycle.reverse();
                return Some(cycle);
            }
            for waiter in next.drain(..) {
                if let std::collections::hash_map::Entry::Vacant(vacant) = found_by.entry(waiter) {
                    vacant.insert(id);
                    stack.push(waiter);
                }
            }
        }
        None
    }

    fn victim(&self, cycle: &[CallId]) -> CallId {
        let cost = |id: &CallId| {
            let txn = self.calls[*id].txn;
            let locks = match self.settings.victim {
                VictimPolicy::FewestLocks => self.txns.get(&txn).map_or(0, |txn| txn.count),
                VictimPolicy::Youngest => 0,
            };
            (locks, std::cmp::Reverse(txn))
        };
        cycle.iter().copied().min_by_key(cost).expect("a cycle has members")
    }

    fn deadlock_error(&self, cycle: &[CallId]) -> Error {
        let after = cycle.iter().cycle().skip(1);
        let edges = cycle.iter().zip(after).map(|(id, next)| {
            let call = &self.calls[*id];
            DeadlockEdge {
                waiter: call.txn,
                table: self.tables[&call.table].bind.table.clone(),
                item: call.item().to_string(),
                holder: self.calls[*next].txn,
            }
        });
        Error::new(
            ErrorKind::Deadlock,
            "the transactions of a cycle waited for each other and this one was chosen to give way: release its locks and start it again",
        )
        .with_detail(Detail::Deadlock(edges.collect()))
    }

    /// If the waits for holders and for those ahead together close a cycle through `start`, brings the queue into an order that has none.
    fn reorder(&mut self, start: CallId) {
        let target = self.calls[start].txn;
        let mut known = IdMap::default();
        if !self.reaches(start, target, &mut known) {
            return;
        }
        let mut reached: Vec<CallId> = known.keys().copied().collect();
        reached.sort_by_key(|id| self.calls[*id].place);
        let (on_cycle, beside): (Vec<_>, Vec<_>) = reached.into_iter().partition(|id| known[id]);
        let mut order = beside;
        self.holders_first(&on_cycle, &mut order);
        let places = self.first_places(order.len());
        // All leave before any comes back: a place is never taken twice.
        for id in &order {
            let call = &self.calls[*id];
            let (table, item, place) = (call.table, call.item().clone(), call.place);
            self.dequeue(table, &item, place);
        }
        for (id, place) in order.into_iter().zip(places) {
            let call = &mut self.calls[id];
            call.place = place;
            let (table, item, mode) = (call.table, call.item().clone(), call.mode);
            self.enqueue(id, table, &item, place, mode);
            self.candidates.insert((place, id));
        }
    }

    /// Appends `members` in their order, except that each comes after those whose locks it waits for.
    fn holders_first(&self, members: &[CallId], order: &mut Vec<CallId>) {
        let mut left: IdMap<CallId, ()> = members.iter().map(|id| (*id, ())).collect();
        let follow = |id| {
            let mut next = Vec::new();
            self.edges(id, None, Edges::Hard, &mut next);
            next.sort_by_key(|id| std::cmp::Reverse(self.calls[*id].place));
            (id, next)
        };
        for member in members {
            if left.remove(member).is_none() {
                continue;
            }
            let mut stack = vec![follow(*member)];
            while let Some((id, next)) = stack.last_mut() {
                match next.pop() {
                    Some(holder) if left.remove(&holder).is_some() => stack.push(follow(holder)),
                    Some(_) => {}
                    None => {
                        order.push(*id);
                        stack.pop();
                    }
                }
            }
        }
    }
}
