//! Searches in the wait graph: who waits for a transaction, and for whom a waiter waits.
//!
//! Each queue is walked once in a search, not once for each of those in whose way its waiters
//! stand; those who hold an entry are one node.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::call::{CallId, EngineCall};
use super::entry::{Entry, Position};
use super::hash::IdMap;
use super::lock_table::LockTable;
use super::queue::Queue;
use super::state::EngineState;
use super::steps::step;
use crate::id::TxnId;
use crate::key::{LockItem, LockMode};

/// Which waits a search follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// For those who hold an incompatible lock.
    Hard,
    /// Also for the calls for which, as they claim, those holders wait.
    Claimed,
    /// Also for those who wait ahead in the queue.
    All,
}

impl Edges {
    /// Those whose locks others wait for until a call has ended.
    fn family(self, call: &EngineCall) -> impl Iterator<Item = TxnId> {
        call.family().take(if self == Self::Hard { 1 } else { usize::MAX })
    }
}

/// Where something is kept while the state is borrowed: tells it from everything else.
pub(super) fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of).addr() as u64
}

/// A search backwards from a transaction: who waits for it, directly or over others.
pub(super) struct Waiters<'a> {
    state: &'a EngineState,
    edges: Edges,
    /// The transaction, and its call's ancestors.
    root: SmallVec<[TxnId; 2]>,
    asker: Option<Asker>,
    /// Each waiter found, and for whom it waits: another one found, or the root.
    pub(super) found: IdMap<CallId, Option<CallId>>,
    /// Found and not asked yet who waits for them.
    next: VecDeque<SearchFound>,
    /// From which place on each queue was walked: by those who want the item shared, and
    /// exclusively.
    walked: IdMap<u64, [Position; 2]>,
    /// The entries whose holders were asked.
    asked: IdMap<u64, ()>,
    /// The ancestors whose locks were gone through: many calls can name the same one.
    ancestors: IdMap<TxnId, ()>,
}

/// The root's own waiting call. It is never found: that the root waits for one who waits for the
/// root closes a cycle.
struct Asker {
    id: CallId,
    queue: u64,
    position: Position,
    mode: LockMode,
}

#[derive(Clone, Copy)]
struct SearchFound {
    id: CallId,
    /// Nobody before it, of those who want the same item in the same mode, was found together with
    /// it: who is behind them is behind it.
    is_first: bool,
}

impl<'a> Waiters<'a> {
    /// From the transaction of a waiting call.
    pub(super) fn new(state: &'a EngineState, edges: Edges, asker: CallId) -> Self {
        let call = &state.calls[asker];
        let queue = state.tables[&call.table].entry(call.item()).and_then(Entry::queue);
        let asker = queue.map(|queue| Asker {
            id: asker,
            queue: address(queue),
            position: call.position,
            mode: call.mode,
        });
        Self { asker, ..Self::of(state, edges, call) }
    }

    /// From the transaction of a call that does not wait yet.
    pub(super) fn of(state: &'a EngineState, edges: Edges, call: &EngineCall) -> Self {
        Self {
            state,
            edges,
            root: edges.family(call).collect(),
            asker: None,
            found: IdMap::default(),
            next: VecDeque::new(),
            walked: IdMap::default(),
            asked: IdMap::default(),
            ancestors: IdMap::default(),
        }
    }

    /// Searches until it is found that the root waits for one of those who wait for it. Answers
    /// which one; the way back from there is in `found`, and is a shortest one.
    pub(super) fn closing(&mut self) -> Option<CallId> {
        let closes = self.expand(None, true);
        debug_assert!(!closes, "a transaction does not wait for itself");
        while let Some(at) = self.next.pop_front() {
            if self.expand(Some(at.id), at.is_first) {
                return Some(at.id);
            }
        }
        None
    }

    /// Finds everybody who waits for the root. True if the root waits for one of them.
    pub(super) fn all(&mut self) -> bool {
        let mut closes = self.closing().is_some();
        while let Some(at) = self.next.pop_front() {
            closes |= self.expand(Some(at.id), at.is_first);
        }
        closes
    }

    /// The members of a cycle, given as those that are waited for in turn from the root on, without
    /// which nobody would wait for the root over whom the root waits: each of them is on every
    /// cycle. One search, which goes on from one member only when everything is found that needs
    /// none of the later ones.
    pub(super) fn on_every_way(mut self, cycle: &[CallId]) -> Vec<CallId> {
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
                if self.expand(at, true) {
                    furthest = end;
                }
                // Of those just found, the members wait for their turn.
                self.next.retain(|found| {
                    let number = numbers.get(&found.id);
                    furthest = furthest.max(number.copied().unwrap_or(0));
                    number.is_none()
                });
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

    /// Finds who waits for a waiter that was found, or for the root. True if the root's own call is
    /// among them.
    fn expand(&mut self, of: Option<CallId>, behind: bool) -> bool {
        let state = self.state;
        // Whoever waits for a lock of an ancestor waits for the call for which the ancestor waits.
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
            for item in items {
                step();
                let Some(entry) = table.entry(item) else { continue };
                let Some(own) = entry.holder(txn) else { continue };
                // Whoever waits for one holder of an entry waits for all of them, but nobody for
                // itself: the root, asked first, does not find its own call, which is to be found
                // then.
                if of.is_none() || self.asked.insert(address(entry), ()).is_none() {
                    closes |= self.walk(table, item, own.mode, Position::FIRST, of);
                }
            }
        }
        let waiting = of.or_else(|| self.asker.as_ref().map(|asker| asker.id));
        if let Some(id) = waiting.filter(|_| behind && self.edges == Edges::All) {
            let call = &state.calls[id];
            closes |=
                self.walk(&state.tables[&call.table], call.item(), call.mode, call.position, of);
        }
        closes
    }

    /// Finds the waiters behind `after` that want something of `item` in a mode incompatible with
    /// `mode`.
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
            let asker = self.asker.as_ref();
            closes |= over.is_some()
                && asker.is_some_and(|asker| {
                    asker.queue == address(queue)
                        && asker.position > after
                        && !asker.mode.is_compatible(mode)
                });
            let walked = self.walked.entry(address(queue)).or_insert([Position::LAST; 2]);
            for (walked, requested) in
                walked.iter_mut().zip([LockMode::Shared, LockMode::Exclusive])
            {
                if requested.is_compatible(mode) || after >= *walked {
                    continue;
                }
                let mut is_first = true;
                for (_, id) in queue.between(requested, after, *walked) {
                    if asker.is_none_or(|asker| asker.id != id) {
                        self.found.insert(id, over);
                        self.next.push_back(SearchFound { id, is_first });
                        is_first = false;
                    }
                }
                *walked = after;
            }
            ControlFlow::Continue(())
        });
        closes
    }
}

/// A search forwards from a waiter: for whom it waits, directly or over others, of those who wait
/// themselves.
pub(super) struct WaitedFor<'a> {
    state: &'a EngineState,
    edges: Edges,
    from: CallId,
    /// Only these are found, and only over these; everybody if there is no such limit.
    within: Option<&'a IdMap<CallId, Option<CallId>>>,
    /// Everybody found, and the waiter itself.
    pub(super) found: IdMap<CallId, ()>,
    /// It waits for itself.
    pub(super) closes: bool,
    /// Those found by a lock that only an ancestor of theirs holds.
    pub(super) claimed: IdMap<CallId, ()>,
    next: Vec<CallId>,
    /// How many more looks are allowed.
    looks: usize,
    /// The queues, by mode, whose waiters were asked who holds what they wait for.
    asked: IdMap<(u64, u64), ()>,
    /// By queue and its exclusive waiter: up to where the sharers behind that one were walked.
    walked: IdMap<(u64, Position), Position>,
}

impl<'a> WaitedFor<'a> {
    pub(super) fn new(
        state: &'a EngineState,
        edges: Edges,
        from: CallId,
        within: Option<&'a IdMap<CallId, Option<CallId>>>,
        looks: usize,
    ) -> Self {
        debug_assert!(edges != Edges::Hard, "claims are followed");
        Self {
            state,
            edges,
            from,
            within,
            found: IdMap::default(),
            closes: false,
            claimed: IdMap::default(),
            next: Vec::new(),
            looks,
            asked: IdMap::default(),
            walked: IdMap::default(),
        }
    }

    /// Finds everybody for whom the waiter waits. False if that takes more looks than are allowed.
    pub(super) fn all(&mut self) -> bool {
        self.found.insert(self.from, ());
        self.next.push(self.from);
        while let Some(id) = self.next.pop() {
            if self.expand(id).is_break() {
                return false;
            }
        }
        true
    }

    fn look(&mut self) -> ControlFlow<()> {
        self.looks = self.looks.saturating_sub(1);
        if self.looks == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn reach(&mut self, id: CallId) -> ControlFlow<()> {
        if id == self.from {
            self.closes = true;
        } else if self.within.is_none_or(|within| within.contains_key(&id))
            && self.found.insert(id, ()).is_none()
        {
            self.next.push(id);
        }
        self.look()
    }

    /// Finds for whom a waiter waits.
    fn expand(&mut self, id: CallId) -> ControlFlow<()> {
        let (state, call) = (self.state, &self.state.calls[id]);
        // Those who want the same wait for the same holders, but nobody for itself: the first one,
        // who asks for all of them, was found before; only that somebody waits for `from` is still
        // to be found after `from` has asked.
        let asks = self.asked.insert(state.requested_at(id), ()).is_none();
        if id == self.from {
            self.asked.clear();
        }
        let mut enough = ControlFlow::Continue(());
        state.tables[&call.table].overlapping(call.item(), |_, entry| {
            enough = (|| {
                self.look()?;
                if asks {
                    for waiter in state.waiting_holders(entry, call.txn, call.mode, self.within) {
                        match waiter {
                            Some(waiter) => {
                                let own = state.calls[waiter].txn;
                                let is_known = waiter == self.from
                                    || self.within.is_none_or(|of| of.contains_key(&waiter));
                                if is_known && entry.holder(own).is_none() {
                                    self.claimed.insert(waiter, ());
                                }
                                self.reach(waiter)?;
                            }
                            None => self.look()?,
                        }
                    }
                }
                match entry.queue().filter(|_| self.edges == Edges::All) {
                    Some(queue) => self.walk(queue, call.mode, call.position),
                    None => ControlFlow::Continue(()),
                }
            })();
            enough
        });
        enough
    }

    /// Finds the waiters of a queue before `position` that are incompatible with `mode`: the
    /// nearest exclusive one, which waits for those before it itself, and the sharers behind that
    /// one.
    fn walk(&mut self, queue: &'a Queue, mode: LockMode, position: Position) -> ControlFlow<()> {
        let nearest = queue.nearest_exclusive(position);
        if let Some((_, id)) = nearest {
            self.reach(id)?;
        }
        if mode == LockMode::Shared {
            return ControlFlow::Continue(());
        }
        let behind = nearest.map_or(Position::FIRST, |(at, _)| at);
        let walked = self.walked.entry((address(queue), behind)).or_insert(behind);
        let from = std::mem::replace(walked, position.max(*walked));
        queue.between(LockMode::Shared, from, position).try_for_each(|(_, id)| self.reach(id))
    }
}

impl EngineState {
    /// The call of a transaction, if that waits for a lock.
    pub(super) fn waiting_call(&self, txn: TxnId) -> Option<CallId> {
        self.txns
            .get(&txn)?
            .call
            .filter(|id| self.calls.get(*id).is_some_and(|call| call.is_waiting()))
    }

    /// The calls for which a transaction waits: its own, if that waits for a lock, and those made
    /// on its behalf. `None` alone if it does not wait.
    fn calls_waited_for(&self, txn: TxnId) -> SmallVec<[Option<CallId>; 1]> {
        let mut waits: SmallVec<[Option<CallId>; 1]> = SmallVec::new();
        if let Some(txn) = self.txns.get(&txn) {
            let calls = txn.call.iter().chain(&txn.nested);
            let waiting =
                calls.filter(|id| self.calls.get(**id).is_some_and(EngineCall::is_waiting));
            waits.extend(waiting.map(|id| Some(*id)));
        }
        if waits.is_empty() {
            waits.push(None);
        }
        waits
    }

    /// What a waiter wants, as a key: the same for all who want the same item in the same mode.
    pub(super) fn requested_at(&self, id: CallId) -> (u64, u64) {
        let call = &self.calls[id];
        let queue = self.tables[&call.table].entry(call.item()).and_then(Entry::queue);
        (queue.map_or(0, address), u64::from(call.mode == LockMode::Exclusive))
    }

    /// The waiting calls of those who hold an entry in a mode incompatible with `mode`, except of
    /// `txn`; `None` for each who does not wait. Only of those `within`, if that is given and
    /// smaller.
    pub(super) fn waiting_holders(
        &self,
        entry: &Entry,
        txn: TxnId,
        mode: LockMode,
        within: Option<&IdMap<CallId, Option<CallId>>>,
    ) -> impl Iterator<Item = Option<CallId>> {
        let within = within.filter(|within| within.len() < entry.holders().len());
        let excluded = entry.holders().first().is_some_and(|first| !first.mode.is_compatible(mode));
        let holders = (excluded && within.is_none()).then(|| {
            entry.conflicting(txn, mode, None).flat_map(|holder| self.calls_waited_for(holder.txn))
        });
        let waiters = within.filter(|_| excluded).map(|within| {
            within.keys().copied().inspect(|_| step()).filter_map(move |id| {
                let mut family = self.calls[id].family();
                family
                    .any(|holder| holder != txn && entry.holder(holder).is_some())
                    .then_some(Some(id))
            })
        });
        holders.into_iter().flatten().chain(waiters.into_iter().flatten())
    }
}
