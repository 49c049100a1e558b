//! The search forwards: the waiters for which a waiter waits, directly or through others.

use std::ops::ControlFlow;

use super::{Address, Edges, RequestKey};
use crate::key::LockMode;
use crate::table::call::CallId;
use crate::table::entry::{Entry, Position};
use crate::table::hash::IdMap;
use crate::table::queue::Queue;
use crate::table::state::EngineState;

/// A search forwards from a waiter.
pub(in crate::table) struct WaitedFor<'a> {
    state: &'a EngineState,
    edges: Edges,
    from: CallId,
    /// The search finds and follows only these. `None` sets no limit.
    within: Option<&'a IdMap<CallId, Option<CallId>>>,
    /// All waiters found, and the waiter itself.
    pub(in crate::table) found: IdMap<CallId, ()>,
    /// True if the waiter waits for itself.
    pub(in crate::table) closes: bool,
    /// The waiters found by a lock that only an ancestor of theirs holds.
    pub(in crate::table) claimed: IdMap<CallId, ()>,
    next: Vec<CallId>,
    /// The number of waiters and holders that may still be visited.
    steps_left: usize,
    /// The requests whose conflicting holders were searched.
    expanded: IdMap<RequestKey, ()>,
    /// The position up to which the sharers behind an exclusive waiter were walked, by queue and
    /// waiter.
    walked: IdMap<(Address, Position), Position>,
}

impl<'a> WaitedFor<'a> {
    pub(in crate::table) fn new(
        state: &'a EngineState,
        edges: Edges,
        from: CallId,
        within: Option<&'a IdMap<CallId, Option<CallId>>>,
        steps_left: usize,
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
            steps_left,
            expanded: IdMap::default(),
            walked: IdMap::default(),
        }
    }

    /// Finds all waiters for which the waiter waits. False if `steps_left` does not suffice.
    pub(in crate::table) fn all(&mut self) -> bool {
        self.found.insert(self.from, ());
        self.next.push(self.from);
        while let Some(id) = self.next.pop() {
            if self.expand(id).is_break() {
                return false;
            }
        }
        true
    }

    fn take_step(&mut self) -> ControlFlow<()> {
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn reach(&mut self, id: CallId) -> ControlFlow<()> {
        if id == self.from {
            self.closes = true;
        } else if self.within.is_none_or(|within| within.contains_key(&id))
            && self.found.insert(id, ()).is_none()
        {
            self.next.push(id);
        }
        self.take_step()
    }

    /// Finds the waiters for which one waiter waits.
    fn expand(&mut self, id: CallId) -> ControlFlow<()> {
        let (state, call) = (self.state, &self.state.calls[id]);
        // Waiters with the same request wait for the same holders, but never for themselves. The
        // first of them searches the holders for all, and was found before. Only a wait for `from`
        // can be found after `from` was expanded.
        let table = &state.tables[&call.table];
        let own = table.entry(call.item());
        let requested = RequestKey::new(own.and_then(Entry::queue), call.mode);
        let is_new = self.expanded.insert(requested, ()).is_none();
        if id == self.from {
            self.expanded.clear();
        }
        let mut enough = ControlFlow::Continue(());
        table.overlapping_from(call.item(), own, |_, entry| {
            enough = (|| {
                self.take_step()?;
                if is_new {
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
                            None => self.take_step()?,
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

    /// Finds the waiters of a queue before `position` that are incompatible with `mode`, as
    /// [`Queue::nearest_ahead`] does. Walks the sharers behind an exclusive waiter once.
    fn walk(&mut self, queue: &'a Queue, mode: LockMode, position: Position) -> ControlFlow<()> {
        let nearest = queue.nearest(LockMode::Exclusive, position);
        if let Some((_, id)) = nearest {
            self.reach(id)?;
        }
        if mode == LockMode::Shared {
            return ControlFlow::Continue(());
        }
        if let Some((_, id)) = queue.nearest(LockMode::Update, position) {
            self.reach(id)?;
        }
        if mode == LockMode::Update {
            return ControlFlow::Continue(());
        }
        let behind = nearest.map_or(Position::FIRST, |(at, _)| at);
        let walked = self.walked.entry((Address::of(queue), behind)).or_insert(behind);
        let from = std::mem::replace(walked, position.max(*walked));
        queue.between(LockMode::Shared, from, position).try_for_each(|(_, id)| self.reach(id))
    }
}
