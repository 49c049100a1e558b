//! The wait graph: cycles, victims, reorderings.

use std::ops::ControlFlow;

use super::call::{CallId, EngineCall};
use super::entry::Position;
use super::hash::IdMap;
use super::lock_table::{ItemRef, LockTable};
use super::search::{Edges, WaitedFor, Waiters};
use super::state::EngineState;
use super::types::VictimPolicy;
use crate::error::{DeadlockEdge, Detail, Error, ErrorKind};
use crate::id::TxnId;
use crate::key::LockMode;

/// In so few looks it is often seen that a waiter does not wait for itself, however many wait for
/// it.
const LOOKS_FORWARD: usize = 64;

/// So many of a transaction's locks are compared with what others wait for before a search tells.
const LOCKS_COMPARED: usize = 16;

impl EngineState {
    /// A waiter behind which a call must wait for its next item: one that is incompatible and does
    /// not itself, directly or over others, wait for the call's transaction.
    pub(super) fn must_wait_behind(&self, call: &EngineCall) -> Option<CallId> {
        let table = &self.tables[&call.table];
        let holds_something = self.family_holds_something(call);
        let mut waiters: Option<IdMap<CallId, Option<CallId>>> = None;
        let mut behind = None;
        table.overlapping_queues(call.item(), |at, queue| {
            if holds_something {
                for requested in [LockMode::Shared, LockMode::Exclusive] {
                    let mut ahead =
                        queue.between(requested, Position::FIRST, Position::LAST).peekable();
                    if requested.is_compatible(call.mode)
                        || ahead.peek().is_none()
                        || call
                            .family()
                            .any(|txn| self.is_seen_conflicting(table, txn, at, requested))
                    {
                        continue;
                    }
                    let waiters = waiters.get_or_insert_with(|| {
                        let mut search = Waiters::of(self, Edges::All, call);
                        search.all();
                        search.found
                    });
                    let first = ahead.find(|(_, id)| !waiters.contains_key(id));
                    behind = [behind, first].into_iter().flatten().min();
                }
            } else {
                // One that holds nothing is waited for by nobody: the first waiter decides.
                behind = queue.first_incompatible(call.mode);
            }
            if behind.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        behind.map(|(_, id)| id)
    }

    /// True if it is seen at once that a transaction holds something that keeps all others from
    /// having an item in `requested`.
    fn is_seen_conflicting(
        &self,
        table: &LockTable,
        txn: TxnId,
        at: ItemRef<'_>,
        requested: LockMode,
    ) -> bool {
        let Some(held) = self.txns.get(&txn).map(|txn| &txn.held) else { return false };
        let items = held.iter().filter(|(id, _)| *id == table.bind.id).flat_map(|(_, items)| items);
        items.take(LOCKS_COMPARED).any(|item| {
            let own = table.entry(item).and_then(|entry| entry.holder(txn));
            own.is_some_and(|own| !own.mode.is_compatible(requested)) && at.overlaps(item)
        })
    }

    /// A wait has begun: breaks every cycle that it closed. All of them run through it, since there
    /// were none before.
    pub(super) fn resolve_cycles(&mut self, id: CallId) {
        if !self.family_holds_something(&self.calls[id]) {
            // Nobody waits for one that holds nothing, nor is anybody behind it yet.
            return;
        }
        let mut forward = WaitedFor::new(self, Edges::All, id, None, LOOKS_FORWARD);
        if forward.all() && !forward.closes {
            return;
        }
        if let Some(cycle) = self.cycle(id, Edges::Hard) {
            let victim = self.victim(id, &cycle);
            let error = self.deadlock_error(&cycle, victim);
            self.fail(victim, error);
            if victim == id {
                return;
            }
        }
        if self.nested > 0 && self.resolve_claimed_cycles(id) {
            return;
        }
        self.reorder(id);
    }

    /// Breaks the cycles through `start` that are left and that only ancestors close. True if
    /// `start` failed.
    ///
    /// An ancestor is a claim that nobody can check. So only a call fails whose own claim is part
    /// of a cycle: whoever names strangers as its ancestors has nobody fail but itself.
    fn resolve_claimed_cycles(&mut self, start: CallId) -> bool {
        let Some(cycle) = self.cycle(start, Edges::Claimed) else { return false };
        let before = cycle.iter().cycle().skip(cycle.len() - 1);
        let claims = before.zip(&cycle).filter(|(waiter, id)| {
            let (waiter, call) = (&self.calls[**waiter], &self.calls[**id]);
            !call.ancestors.is_empty() && self.holder_of(waiter, call) != call.txn
        });
        // One is enough if it is `start`, and nearly always otherwise.
        let victim = claims
            .map(|(_, id)| *id)
            .min_by_key(|id| (*id != start, self.cost(*id)))
            .unwrap_or(start);
        let error = self.deadlock_error(&cycle, victim);
        self.fail(victim, error);
        if victim == start {
            return true;
        }
        // If several were closed, all the others at once: a search for each takes too long.
        let mut search = Waiters::new(self, Edges::Claimed, start);
        if !search.all() {
            return false;
        }
        let waiters = search.found;
        let mut forward = WaitedFor::new(self, Edges::Claimed, start, Some(&waiters), usize::MAX);
        forward.all();
        let claimed = forward.claimed;
        let is_start = claimed.contains_key(&start);
        let mut victims: Vec<CallId> =
            if is_start { vec![start] } else { claimed.into_keys().collect() };
        victims.sort_by_key(|id| self.calls[*id].position);
        for id in victims {
            let error = self.deadlock_error(&[], id);
            self.fail(id, error);
        }
        is_start
    }

    /// A cycle of waits for holders through `start`: each member waits for a lock of the next, the
    /// last for one of `start`.
    fn cycle(&self, start: CallId, edges: Edges) -> Option<Vec<CallId>> {
        let mut search = Waiters::new(self, edges, start);
        let mut cycle = vec![start];
        let mut at = search.closing();
        while let Some(id) = at {
            cycle.push(id);
            at = search.found[&id];
        }
        (cycle.len() > 1).then_some(cycle)
    }

    /// The one member of a cycle that fails. Without it there is no cycle through `start` any more:
    /// if there are several, it is on all of them, as `start` is.
    fn victim(&self, start: CallId, cycle: &[CallId]) -> CallId {
        let search = Waiters::new(self, Edges::Hard, start);
        let from_start: Vec<CallId> = cycle[1..].iter().rev().copied().collect();
        let candidates = search.on_every_way(&from_start).into_iter().chain([start]);
        candidates.min_by_key(|id| self.cost(*id)).unwrap_or(start)
    }

    /// The member of a cycle that costs least fails.
    fn cost(&self, id: CallId) -> (usize, std::cmp::Reverse<TxnId>) {
        let txn = self.calls[id].txn;
        let locks = match self.settings.victim {
            VictimPolicy::FewestLocks => self.txns.get(&txn).map_or(0, |txn| txn.count),
            VictimPolicy::Youngest => 0,
        };
        (locks, std::cmp::Reverse(txn))
    }

    fn deadlock_error(&self, cycle: &[CallId], victim: CallId) -> Error {
        let after = cycle.iter().cycle().skip(1);
        let edges = cycle.iter().zip(after).map(|(id, next)| {
            let call = &self.calls[*id];
            DeadlockEdge {
                waiter: call.txn,
                table: self.tables[&call.table].bind.table.clone(),
                item: call.item().to_string(),
                mode: call.mode,
                holder: self.holder_of(call, &self.calls[*next]),
                asker: *id == victim,
                label: String::new(),
                client: String::new(),
            }
        });
        Error::new(
            ErrorKind::Deadlock,
            "the transactions of a cycle waited for each other and this one was chosen to give \
                way: release its locks and start it again",
        )
        .with_detail(Detail::Deadlock(edges.collect()))
    }

    /// The one in the family of `next` whose lock `call` waits for: `next` itself, if it can be.
    fn holder_of(&self, call: &EngineCall, next: &EngineCall) -> TxnId {
        let mut holder = None;
        if !next.ancestors.is_empty() {
            self.tables[&call.table].overlapping(call.item(), |_, entry| {
                let held = |txn: &TxnId| {
                    entry.holder(*txn).is_some_and(|held| !held.mode.is_compatible(call.mode))
                };
                match next.family().find(held) {
                    Some(own) if own == next.txn => {
                        holder = Some(own);
                        return ControlFlow::Break(());
                    }
                    found => holder = holder.or(found),
                }
                ControlFlow::Continue(())
            });
        }
        holder.unwrap_or(next.txn)
    }

    /// False if nobody can wait for a lock of the call's transaction or of an ancestor.
    fn family_holds_something(&self, call: &EngineCall) -> bool {
        call.family().any(|txn| self.txns.get(&txn).is_some_and(|txn| txn.count > 0))
    }

    /// If the waits for holders and for those ahead together close a cycle through `start`, brings
    /// the queue into an order that has none.
    fn reorder(&mut self, start: CallId) {
        let mut search = Waiters::new(self, Edges::All, start);
        if !search.all() {
            return;
        }
        let waiters = search.found;
        let mut forward = WaitedFor::new(self, Edges::All, start, Some(&waiters), usize::MAX);
        forward.all();
        let members = forward.found;
        let mut beside: Vec<CallId> =
            waiters.into_keys().filter(|id| !members.contains_key(id)).collect();
        let mut on_cycle: Vec<CallId> = members.into_keys().collect();
        on_cycle.sort_by_key(|id| self.calls[*id].position);
        beside.sort_by_key(|id| self.calls[*id].position);
        let mut order = self.holders_first(&on_cycle);
        order.append(&mut beside);
        // All leave before any comes back: a place is never taken twice.
        for id in &order {
            let mut call = self.calls.take(*id);
            self.dequeue(&mut call);
            self.calls.put(*id, call);
        }
        for id in order {
            let position = self.next_position(false);
            self.enqueue(id, position);
            self.candidates.insert((position, id));
        }
    }

    /// The members of cycles in their order, except that each comes after those whose locks it
    /// waits for.
    fn holders_first(&self, members: &[CallId]) -> Vec<CallId> {
        let mut left: IdMap<CallId, Option<CallId>> =
            members.iter().map(|id| (*id, None)).collect();
        let within = left.clone();
        let mut asked = IdMap::default();
        let mut order = Vec::with_capacity(members.len());
        for member in members {
            if left.remove(member).is_none() {
                continue;
            }
            let mut stack = vec![(*member, self.holders_asked(*member, &within, &mut asked))];
            while let Some((id, next)) = stack.last_mut() {
                match next.pop() {
                    Some(holder) if left.remove(&holder).is_some() => {
                        stack.push((holder, self.holders_asked(holder, &within, &mut asked)));
                    }
                    Some(_) => {}
                    None => {
                        order.push(*id);
                        stack.pop();
                    }
                }
            }
        }
        order
    }

    /// Those `within` whose locks a waiter waits for, the last ones first. Nobody if another one
    /// that wants the same has asked already: then they come before that one. A holder that wants
    /// the same itself goes last: it waits for all the others.
    fn holders_asked(
        &self,
        id: CallId,
        within: &IdMap<CallId, Option<CallId>>,
        asked: &mut IdMap<(u64, u64), ()>,
    ) -> Vec<CallId> {
        let requested = self.requested_at(id);
        if asked.insert(requested, ()).is_some() {
            return Vec::new();
        }
        let call = &self.calls[id];
        let mut holders = Vec::new();
        self.tables[&call.table].overlapping(call.item(), |_, entry| {
            let waiters = self.waiting_holders(entry, call.txn, call.mode, Some(within)).flatten();
            holders.extend(waiters.filter(|waiter| within.contains_key(waiter)));
            ControlFlow::Continue(())
        });
        holders.sort_by_key(|id| {
            std::cmp::Reverse((self.requested_at(*id) == requested, self.calls[*id].position))
        });
        holders.dedup();
        holders
    }
}
