//! The search backwards: the waiters that wait for a transaction, directly or through others.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::{Address, Edges};
use crate::id::TxnId;
use crate::key::{LockItem, LockMode};
use crate::table::call::{CallId, EngineCall};
use crate::table::entry::{Entry, Position};
use crate::table::hash::IdMap;
use crate::table::lock_table::LockTable;
use crate::table::queue::Queue;
use crate::table::state::EngineState;
use crate::table::steps::step;

/// A search backwards from a transaction, the *root*.
pub(in crate::table) struct Waiters<'a> {
    state: &'a EngineState,
    edges: Edges,
    /// The transaction of the root, and the ancestors of its call.
    root: SmallVec<[TxnId; 2]>,
    requester: Option<Requester>,
    /// Each waiter found, with the waiter for which it waits; `None` for the root.
    pub(in crate::table) found: IdMap<CallId, Option<CallId>>,
    /// Waiters that were found, and whose own waiters were not searched yet.
    next: VecDeque<SearchFound>,
    /// The position from which on each queue was walked, by the mode of the waiters.
    walked: IdMap<Address, [Position; LockMode::ALL.len()]>,
    /// The entries whose waiters were searched, with the mode of the holders that they wait for.
    expanded: IdMap<(Address, u32), ()>,
    /// The ancestors whose locks were searched: many calls can name the same ancestor.
    ancestors: IdMap<TxnId, ()>,
}

/// The root's own waiting call. It is never in `found`: reaching it closes a cycle.
struct Requester {
    id: CallId,
    queue: Address,
    position: Position,
    mode: LockMode,
}

#[derive(Clone, Copy)]
struct SearchFound {
    id: CallId,
    /// True for the first of the waiters that a walk found in one queue and one mode. The waiters
    /// behind the others are behind this one too.
    is_first: bool,
}

impl<'a> Waiters<'a> {
    /// A search from the transaction of a waiting call.
    pub(in crate::table) fn new(state: &'a EngineState, edges: Edges, requester: CallId) -> Self {
        let call = &state.calls[requester];
        let queue = state.tables[&call.table].entry(call.item()).and_then(Entry::queue);
        let requester = queue.map(|queue| Requester {
            id: requester,
            queue: Address::of(queue),
            position: call.position,
            mode: call.mode,
        });
        Self { requester, ..Self::of(state, edges, call) }
    }

    /// A search from the transaction of a call that does not wait yet.
    pub(in crate::table) fn of(state: &'a EngineState, edges: Edges, call: &EngineCall) -> Self {
        Self {
            state,
            edges,
            root: edges.family(call).collect(),
            requester: None,
            found: IdMap::default(),
            next: VecDeque::new(),
            walked: IdMap::default(),
            expanded: IdMap::default(),
            ancestors: IdMap::default(),
        }
    }

    /// Searches until a waiter is found for which the root waits, and returns that waiter. The way
    /// back from there is in `found`; no way is shorter.
    pub(in crate::table) fn closing(&mut self) -> Option<CallId> {
        let closes = self.expand(None, true);
        debug_assert!(!closes, "a transaction does not wait for itself");
        while let Some(at) = self.next.pop_front() {
            if self.expand(Some(at.id), at.is_first) {
                return Some(at.id);
            }
        }
        None
    }

    /// Finds all waiters for the root. True if the root waits for one of them.
    pub(in crate::table) fn all(&mut self) -> bool {
        let mut closes = self.closing().is_some();
        while let Some(at) = self.next.pop_front() {
            closes |= self.expand(Some(at.id), at.is_first);
        }
        closes
    }

    /// The members of a cycle that are on *every* cycle through the root.
    ///
    /// `cycle` lists the members after the root, each of which waits for the one before. This is
    /// one search. It goes on from a member only when it has found everything that is reached
    /// without the later members.
    pub(in crate::table) fn on_every_way(mut self, cycle: &[CallId]) -> Vec<CallId> {
        let numbers: IdMap<CallId, usize> =
            (1..).zip(cycle).map(|(number, id)| (*id, number)).collect();
        let end = cycle.len() + 1;
        let mut without = Vec::new();
        let mut furthest = 0;
        for number in 0..end {
            let member = number.checked_sub(1).map(|at| cycle[at]);
            if furthest == number {
                without.extend(member);
            }
            let mut at = member;
            loop {
                let known = self.next.len();
                if self.expand(at, true) {
                    furthest = end;
                }
                // Members that were just found are expanded later, in their order.
                let mut kept = known;
                for new in known..self.next.len() {
                    match numbers.get(&self.next[new].id) {
                        Some(number) => furthest = furthest.max(*number),
                        None => {
                            self.next[kept] = self.next[new];
                            kept += 1;
                        }
                    }
                }
                self.next.truncate(kept);
                if furthest == end {
                    return without;
                }
                match self.next.pop_front() {
                    Some(found) => at = Some(found.id),
                    None => break,
                }
            }
        }
        without
    }

    /// Finds the waiters for `of`, a waiter that was found, or for the root. True if the root's own
    /// call is among them.
    fn expand(&mut self, of: Option<CallId>, behind: bool) -> bool {
        let state = self.state;
        // A waiter for a lock of an ancestor waits for the call, for which the ancestor waits.
        let family: SmallVec<[TxnId; 2]> = match of.map(|id| &state.calls[id]) {
            None => self.root.clone(),
            Some(call) => self
                .edges
                .family(call)
                .filter(|txn| *txn == call.txn || self.ancestors.insert(*txn, ()).is_none())
                .collect(),
        };
        let mut closes = false;
        let held = family.iter().filter_map(|txn| Some((*txn, &state.txns.get(txn)?.held)));
        for (txn, (table, items)) in
            held.flat_map(|(txn, held)| held.iter().map(move |held| (txn, held)))
        {
            let Some(table) = state.tables.get(table).filter(|table| !table.waiting.is_empty())
            else {
                continue;
            };
            for item in items.iter() {
                step();
                let Some(entry) = table.entry(item) else { continue };
                let Some(own) = entry.holder(txn) else { continue };
                // A waiter for one holder of an entry waits for all that hold it in the same mode,
                // but never for itself.
                // The root, which is expanded first, does not find its own call. A later holder of
                // the same entry has to, so the entries of the root do not count as expanded. An
                // entry with one holder comes up once.
                if of.is_none()
                    || entry.holders().len() == 1
                    || self.expanded.insert((Address::of(entry), own.mode as u32), ()).is_none()
                {
                    closes |= self.walk_holders(table, (item, entry), own.mode, of);
                }
            }
        }
        let waiting = of.or_else(|| self.requester.as_ref().map(|requester| requester.id));
        if let Some(id) = waiting.filter(|_| behind && self.edges == Edges::All) {
            let call = &state.calls[id];
            closes |=
                self.walk(&state.tables[&call.table], call.item(), call.mode, call.position, of);
        }
        closes
    }

    /// Finds the waiters that wait for the holders of an entry in `mode`. They wait for `over`.
    fn walk_holders(
        &mut self,
        table: &'a LockTable,
        (item, entry): (&LockItem, &'a Entry),
        mode: LockMode,
        over: Option<CallId>,
    ) -> bool {
        let LockItem::Row(_) = item else {
            return self.walk(table, item, mode, Position::FIRST, over);
        };
        // Its entry is at hand. Another look-up would take as long as all the rest.
        let mut closes = false;
        if let Some(queue) = entry.queue() {
            closes |= self.walk_queue(queue, mode, Position::FIRST, over);
        }
        table.overlapping_range_queues(item, |queue| {
            closes |= self.walk_queue(queue, mode, Position::FIRST, over);
        });
        closes
    }

    /// Finds the waiters behind `after` whose item overlaps `item` and whose mode is incompatible
    /// with `mode`. They wait for `over`.
    fn walk(
        &mut self,
        table: &'a LockTable,
        item: &LockItem,
        mode: LockMode,
        after: Position,
        over: Option<CallId>,
    ) -> bool {
        let mut closes = false;
        table.overlapping_queues(item, |_, queue| {
            closes |= self.walk_queue(queue, mode, after, over);
            ControlFlow::Continue(())
        });
        closes
    }

    /// The same in one queue.
    fn walk_queue(
        &mut self,
        queue: &'a Queue,
        mode: LockMode,
        after: Position,
        over: Option<CallId>,
    ) -> bool {
        let requester = self.requester.as_ref();
        let closes = over.is_some()
            && requester.is_some_and(|requester| {
                requester.queue == Address::of(queue)
                    && requester.position > after
                    && !requester.mode.is_compatible(mode)
            });
        let walked =
            self.walked.entry(Address::of(queue)).or_insert([Position::LAST; LockMode::ALL.len()]);
        for (walked, requested) in walked.iter_mut().zip(LockMode::ALL) {
            if requested.is_compatible(mode) || after >= *walked {
                continue;
            }
            let mut is_first = true;
            for (_, id) in queue.between(requested, after, *walked) {
                if requester.is_none_or(|requester| requester.id != id) {
                    self.found.insert(id, over);
                    self.next.push_back(SearchFound { id, is_first });
                    is_first = false;
                }
            }
            *walked = after;
        }
        closes
    }
}
