//! The wait graph of the model: conflicts, cycles, victims and the order of the queue.

use std::collections::BTreeSet;

use lockservice_core::table::VictimPolicy;
use lockservice_core::{DeadlockEdge, ErrorKind};

use super::{Call, Model, Part};
use crate::{Client, number, poll_all};

impl Model {
    pub(super) fn begin_wait(&mut self, mut call: Call, upgrade: bool, clients: &mut [Client]) {
        let txn = call.txn;
        call.waited = true;
        call.part = match call.came_earlier {
            _ if upgrade => Part::Upgrades,
            Some(came) => Part::Earlier(came),
            None => Part::All,
        };
        let ahead = self.queue.iter().take_while(|other| other.part <= call.part).count();
        self.queue.insert(ahead, call);
        let at = self.queue.iter().position(|call| call.txn == txn).expect("just put there");
        if self.reaches(at, txn, false) {
            // One victim, however many cycles there are.
            let victim = self.explain(txn, clients);
            self.fail(victim, ErrorKind::Deadlock);
        }
        if let Some(at) = self.queue.iter().position(|call| call.txn == txn)
            && self.reaches(at, txn, true)
        {
            self.reorder(at);
        }
    }

    /// The member of a cycle that the engine had fail. Checks that there is that cycle, and that
    /// the policy chooses that member.
    pub(super) fn explain(&mut self, txn: usize, clients: &mut [Client]) -> usize {
        let mut reported = poll_all(clients);
        reported
            .retain(|(victim, cycle)| !self.explained.contains(victim) && self.is_real(cycle, txn));
        let all = reported.clone();
        let is_member = |who: usize, cycle: &[DeadlockEdge]| {
            cycle.iter().any(|edge| number(edge.waiter) == who)
        };
        // The first victim is in no cycle that was found after it.
        let first = reported.into_iter().find(|(victim, _)| {
            all.iter().all(|(other, cycle)| other == victim || !is_member(*victim, cycle))
        });
        let (victim, cycle) = first.unwrap_or_else(|| panic!("a deadlock of {txn} has no victim"));
        let cost = |who: usize| match self.settings.victim {
            VictimPolicy::FewestLocks => {
                (self.holds.iter().filter(|hold| hold.txn == who).count(), usize::MAX - who)
            }
            _ => (0, usize::MAX - who),
        };
        let members = cycle.iter().map(|edge| number(edge.waiter));
        let expected =
            members.filter(|who| !self.closes_without(txn, *who)).min_by_key(|who| cost(*who));
        assert_eq!(Some(victim), expected, "the victim of {cycle:?}");
        self.explained.insert(victim);
        victim
    }

    pub(super) fn is_real(&self, cycle: &[DeadlockEdge], txn: usize) -> bool {
        let closes = cycle
            .iter()
            .zip(cycle.iter().cycle().skip(1))
            .all(|(edge, next)| edge.holder == next.waiter);
        closes
            && cycle.iter().any(|edge| number(edge.waiter) == txn)
            && cycle.iter().all(|edge| {
                self.queue.iter().any(|call| {
                    call.txn == number(edge.waiter)
                        && call.items[call.next] == edge.item
                        && self.conflicting_holders(call).contains(&number(edge.holder))
                })
            })
    }

    /// True if a transaction waits for itself, over holders, even if `without` did not wait.
    pub(super) fn closes_without(&self, txn: usize, without: usize) -> bool {
        let mut queue = self.queue.clone();
        queue.retain(|call| call.txn != without);
        let rest = Self { queue, holds: self.holds.clone(), ..Self::new(0, self.settings) };
        rest.queue
            .iter()
            .position(|call| call.txn == txn)
            .is_some_and(|at| rest.reaches(at, txn, false))
    }

    /// Gives the queue a new order: first the others; then the members of cycles through `at`, each
    /// after those whose locks it waits for; then the rest of those that wait for `at`.
    pub(super) fn reorder(&mut self, at: usize) {
        let txn = self.queue[at].txn;
        let waits_for_it = |from: &usize| *from == at || self.reaches(*from, txn, true);
        let waiting: Vec<usize> = (0..self.queue.len()).filter(waits_for_it).collect();
        let reached = self.reached(at, true);
        let on_cycle: Vec<usize> =
            waiting.iter().copied().filter(|at| reached.contains(at)).collect();
        let mut order: Vec<usize> =
            (0..self.queue.len()).filter(|at| !waiting.contains(at)).collect();
        fn visit(model: &Model, at: usize, on_cycle: &[usize], order: &mut Vec<usize>) {
            if order.contains(&at) || !on_cycle.contains(&at) {
                return;
            }
            for holder in on_cycle {
                if model.conflicting_holders(&model.queue[at]).contains(&model.queue[*holder].txn) {
                    visit(model, *holder, on_cycle, order);
                }
            }
            order.push(at);
        }
        for member in &on_cycle {
            visit(self, *member, &on_cycle, &mut order);
        }
        order.extend(waiting.iter().copied().filter(|at| !on_cycle.contains(at)));
        for at in waiting {
            self.queue[at].part = Part::All;
        }
        self.queue = order.into_iter().map(|at| self.queue[at].clone()).collect();
    }

    pub(super) fn conflicting_holders(&self, call: &Call) -> BTreeSet<usize> {
        let item = &call.items[call.next];
        self.holds
            .iter()
            .filter(|hold| hold.table == call.table && hold.txn != call.txn)
            .filter(|hold| !hold.mode.is_compatible(call.mode) && hold.item.overlaps(item))
            .map(|hold| hold.txn)
            .collect()
    }

    pub(super) fn conflicting_waiters(&self, at: usize) -> Vec<usize> {
        (0..at).filter(|ahead| conflicts(&self.queue[*ahead], &self.queue[at])).collect()
    }

    pub(super) fn is_blocked(&self, at: usize) -> bool {
        !self.conflicting_holders(&self.queue[at]).is_empty()
            || !self.conflicting_waiters(at).is_empty()
    }

    /// The waiters for which a waiter waits, directly or through others, and itself; in queue
    /// order.
    pub(super) fn reached(&self, from: usize, soft: bool) -> Vec<usize> {
        let mut reached = BTreeSet::from([from]);
        let mut next = vec![from];
        while let Some(at) = next.pop() {
            let holders = self.conflicting_holders(&self.queue[at]);
            let mut on: Vec<usize> =
                (0..self.queue.len()).filter(|at| holders.contains(&self.queue[*at].txn)).collect();
            if soft {
                on.extend(self.conflicting_waiters(at));
            }
            next.extend(on.into_iter().filter(|at| reached.insert(*at)));
        }
        reached.into_iter().collect()
    }

    /// True if a waiter waits for a transaction, directly or through others.
    pub(super) fn reaches(&self, from: usize, txn: usize, soft: bool) -> bool {
        self.reached(from, soft).into_iter().any(|at| {
            self.conflicting_holders(&self.queue[at]).contains(&txn)
                || soft
                    && self
                        .conflicting_waiters(at)
                        .iter()
                        .any(|ahead| self.queue[*ahead].txn == txn)
        })
    }
}

/// True if a waiter excludes another one behind it.
pub(super) fn conflicts(ahead: &Call, call: &Call) -> bool {
    ahead.table == call.table
        && ahead.txn != call.txn
        && !ahead.mode.is_compatible(call.mode)
        && ahead.items[ahead.next].overlaps(&call.items[call.next])
}
