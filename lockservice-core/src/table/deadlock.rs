//! Cycles of the wait graph: victims and reorderings.

use std::ops::ControlFlow;

use super::call::{Arrival, CallId, EngineCall};
use super::entry::Position;
use super::hash::IdMap;
use super::lock_table::{ItemRef, LockTable};
use super::search::{Edges, RequestKey, WaitedFor, Waiters};
use super::state::EngineState;
use super::types::VictimPolicy;
use crate::error::{DeadlockEdge, Detail, Error, ErrorKind};
use crate::id::TxnId;
use crate::key::LockMode;

/// The largest number of steps of the search forwards. It often suffices to show that a waiter does
/// not wait for itself, for any number of waiters behind it.
const FORWARD_STEPS_MAX: usize = 64;

/// The largest number of a transaction's locks that are looked at before a search.
const LOCKS_COMPARED_MAX: usize = 16;

/// A shortest cycle of waits.
struct Cycle {
    members: Vec<CallId>,
    /// Every cycle through the first member has all of them.
    is_only: bool,
}

impl EngineState {
    /// The first waiter behind which a call must wait for its next item: it is incompatible, and
    /// does not wait, directly or through others, for the call's transaction.
    pub(super) fn must_wait_behind(&self, call: &EngineCall) -> Option<CallId> {
        let table = &self.tables[&call.table];
        let holds_something = self.family_holds_something(call);
        let mut waiters: Option<IdMap<CallId, Option<CallId>>> = None;
        let mut behind = None;
        table.overlapping_queues(call.item(), |at, queue| {
            if holds_something {
                for requested in LockMode::ALL {
                    let mut ahead =
                        queue.between(requested, Position::FIRST, Position::LAST).peekable();
                    if requested.is_compatible(call.mode)
                        || ahead.peek().is_none()
                        || call
                            .family()
                            .any(|txn| self.is_known_conflicting(table, txn, at, requested))
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
                // No waiter waits for a transaction that holds nothing: the first one decides.
                behind = queue.first_incompatible(call.mode);
            }
            if behind.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        behind.map(|(_, id)| id)
    }

    /// The first waiter that is incompatible with a call's next item.
    pub(super) fn first_waiter(&self, call: &EngineCall) -> Option<CallId> {
        let mut first = None;
        self.tables[&call.table].overlapping_queues(call.item(), |_, queue| {
            first = [first, queue.first_incompatible(call.mode)].into_iter().flatten().min();
            ControlFlow::Continue(())
        });
        first.map(|(_, id)| id)
    }

    /// True if one of the transaction's first locks keeps all others from the item `at` in the mode
    /// `requested`. False means that the search has to decide.
    fn is_known_conflicting(
        &self,
        table: &LockTable,
        txn: TxnId,
        at: ItemRef<'_>,
        requested: LockMode,
    ) -> bool {
        let Some(held) = self.txns.get(&txn).map(|txn| &txn.held) else { return false };
        let items =
            held.iter().filter(|(id, _)| *id == table.bind.id).flat_map(|(_, items)| items.iter());
        items.take(LOCKS_COMPARED_MAX).any(|item| {
            let own = table.entry(item).and_then(|entry| entry.holder(txn));
            own.is_some_and(|own| !own.mode.is_compatible(requested)) && at.overlaps(item)
        })
    }

    /// Resolves every cycle that a wait has closed as it began. All of them run through it, for
    /// there was none before.
    pub(super) fn resolve_cycles(&mut self, id: CallId) {
        let call = &self.calls[id];
        // Those behind a call of an earlier incarnation came before it.
        let may_be_waited_for = call.arrival == Arrival::Earlier || self.may_be_waited_for(call);
        if !may_be_waited_for || !self.may_close(id) {
            return;
        }
        if let Some(cycle) = self.cycle(id, Edges::Hard) {
            let mut victim = self.victim(id, &cycle);
            if planted!(VictimOutsideCycle) {
                let outside = |id: &CallId| !cycle.members.contains(id);
                let mut waiting = self.calls.ids().into_iter().filter(outside);
                let bystander = waiting.find(|id| self.calls[*id].is_waiting());
                victim = bystander.unwrap_or(victim);
            }
            self.counts.deadlocks.note(cycle.members.len());
            let error = self.deadlock_error(&cycle.members, victim);
            self.fail(victim, error);
            // The victim often was the one that it waited for: no other search, then.
            if victim == id || !self.may_close(id) {
                return;
            }
        }
        if self.nested_calls > 0 && self.resolve_claimed_cycles(id) {
            return;
        }
        self.reorder(id);
    }

    /// False if a short search shows that a waiter does not wait for itself.
    fn may_close(&self, id: CallId) -> bool {
        let mut forward = WaitedFor::new(self, Edges::All, id, None, FORWARD_STEPS_MAX);
        !forward.all() || forward.closes
    }

    /// Resolves the cycles through `start` that are left and that only ancestors close. True if
    /// `start` failed.
    ///
    /// An ancestor is a claim that the engine cannot check. So a call fails only if its own claim
    /// is part of a cycle. A call that names strangers as its ancestors makes no other call fail.
    fn resolve_claimed_cycles(&mut self, start: CallId) -> bool {
        let Some(Cycle { members: cycle, .. }) = self.cycle(start, Edges::Claimed) else {
            return false;
        };
        let before = cycle.iter().cycle().skip(cycle.len() - 1);
        let claims = before.zip(&cycle).filter(|(waiter, id)| {
            let (waiter, call) = (&self.calls[**waiter], &self.calls[**id]);
            !call.ancestors.is_empty() && self.holder_of(waiter, call) != call.txn
        });
        // One victim is enough if it is `start`, and nearly always otherwise.
        let victim = claims
            .map(|(_, id)| *id)
            .min_by_key(|id| (*id != start, self.cost(*id)))
            .unwrap_or(start);
        // A cycle counts once, also if further calls fail for it below.
        self.counts.deadlocks.note(cycle.len());
        let error = self.deadlock_error(&cycle, victim);
        self.fail(victim, error);
        if victim == start {
            return true;
        }
        // If several cycles were closed, all other victims fail at once: a search for each takes
        // too long.
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
    fn cycle(&self, start: CallId, edges: Edges) -> Option<Cycle> {
        let mut search = Waiters::new(self, edges, start);
        let mut members = vec![start];
        let mut at = search.closing();
        while let Some(id) = at {
            members.push(id);
            at = search.found[&id];
        }
        // The search is breadth first, and has found no waiter beside them. So a second way would
        // be a shorter one.
        let is_only = members.len() == 1 + search.found.len();
        (members.len() > 1).then_some(Cycle { members, is_only })
    }

    /// The member of a cycle that fails. It is on every cycle through `start`, as `start` is, so
    /// that no cycle is left without it.
    fn victim(&self, start: CallId, cycle: &Cycle) -> CallId {
        let least = |candidates: &mut dyn Iterator<Item = CallId>| {
            candidates.min_by_key(|id| self.cost(*id)).unwrap_or(start)
        };
        if cycle.is_only {
            return least(&mut cycle.members.iter().copied());
        }
        let search = Waiters::new(self, Edges::Hard, start);
        let from_start: Vec<CallId> = cycle.members[1..].iter().rev().copied().collect();
        least(&mut search.on_every_way(&from_start).into_iter().chain([start]))
    }

    /// The order of victims: the member with the least cost fails.
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
                item: call.item().clone(),
                mode: call.mode,
                holder: self.holder_of(call, &self.calls[*next]),
                victim: *id == victim,
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

    /// The member of the family of `next` for whose lock `call` waits: `next` itself, if possible.
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

    /// False if no waiter waits for a lock of the call's transaction or of an ancestor: nothing is
    /// behind the call either, then, unless it is an upgrade, which has such a lock. True also if
    /// they hold too many locks for a look at each.
    fn may_be_waited_for(&self, call: &EngineCall) -> bool {
        let mut looks = LOCKS_COMPARED_MAX;
        let held = call.family().filter_map(|txn| self.txns.get(&txn)).flat_map(|txn| &txn.held);
        for (table, items) in held {
            let Some(table) = self.tables.get(table).filter(|table| !table.waiting.is_empty())
            else {
                continue;
            };
            for item in items.iter() {
                let mut has_waiter = looks == 0;
                looks = looks.saturating_sub(1);
                table.overlapping_queues(item, |_, _| {
                    has_waiter = true;
                    ControlFlow::Break(())
                });
                if has_waiter {
                    return true;
                }
            }
        }
        false
    }

    /// False if no waiter can wait for a lock of the call's transaction or of an ancestor.
    fn family_holds_something(&self, call: &EngineCall) -> bool {
        call.family().any(|txn| self.txns.get(&txn).is_some_and(|txn| txn.count > 0))
    }

    /// Gives the queue an order without a cycle, if the waits for holders and for waiters ahead
    /// close one through `start`.
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
        // All leave the queue before any comes back: no position is used twice.
        for id in &order {
            let mut call = self.calls.take(*id);
            self.dequeue(&mut call);
            self.calls.put(*id, call);
        }
        for id in order {
            let position = self.positions.next(false);
            self.enqueue(id, position);
            self.candidates.insert((position, id));
            // One that is compatible with it may have been behind it, and is the first one now.
            let first = self.queue_of(id).and_then(|queue| queue.first_after(Position::FIRST));
            self.candidates.extend(first);
        }
    }

    /// The members of cycles in queue order, except that each comes after those whose locks it
    /// waits for.
    fn holders_first(&self, members: &[CallId]) -> Vec<CallId> {
        let mut remaining: IdMap<CallId, Option<CallId>> =
            members.iter().map(|id| (*id, None)).collect();
        let within = remaining.clone();
        let mut seen = IdMap::default();
        let mut order = Vec::with_capacity(members.len());
        for member in members {
            if remaining.remove(member).is_none() {
                continue;
            }
            let mut stack = vec![(*member, self.holders_to_order(*member, &within, &mut seen))];
            while let Some((id, next)) = stack.last_mut() {
                match next.pop() {
                    Some(holder) if remaining.remove(&holder).is_some() => {
                        stack.push((holder, self.holders_to_order(holder, &within, &mut seen)));
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

    /// The waiters `within` for whose locks a waiter waits, in reverse queue order. The list is
    /// empty if a waiter with the same request was visited before: these waiters then come before
    /// that one. A holder with the same request is first in this list, and so last in the queue,
    /// for it waits for all the others.
    fn holders_to_order(
        &self,
        id: CallId,
        within: &IdMap<CallId, Option<CallId>>,
        seen: &mut IdMap<RequestKey, ()>,
    ) -> Vec<CallId> {
        let requested = self.requested_at(id);
        if seen.insert(requested, ()).is_some() {
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
