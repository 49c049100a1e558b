//! Random wait graphs, over rows and ranges in all modes: without a cycle no call fails, and a
//! cycle is broken by one call, the one that the policy chooses.
//!
//! A naive check decides what is a cycle. It compares each wait with all holds, and follows the
//! waits for holders. Waits for waiters ahead do not count: the engine changes the order of the
//! queue instead.

mod kit;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::task::Poll;

use kit::by_id::LockEngine;
use kit::{engine_with, key, lock, poll, row, txn};
use lockservice_core::table::{EngineSettings, LockCall, VictimPolicy};
use lockservice_core::{ErrorKind, Key, KeyRange, LockItem, LockMode};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const GRAPHS: usize = 10_000;
const KEYS: u8 = 6;
const NOBODY: [usize; 0] = [];

struct Hold {
    txn: usize,
    item: LockItem,
    mode: LockMode,
}

struct Wait {
    item: LockItem,
    mode: LockMode,
    call: LockCall,
}

/// Transactions with one call each, at most, and what they hold.
struct Graph {
    random: StdRng,
    policy: VictimPolicy,
    engine: LockEngine,
    holds: Vec<Hold>,
    waits: Vec<Option<Wait>>,
}

impl Graph {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let policies = [VictimPolicy::FewestLocks, VictimPolicy::Youngest];
        let policy = *policies.choose(&mut random).expect("two");
        let engine = engine_with(EngineSettings { victim: policy, ..EngineSettings::default() });
        let waits = (0..random.random_range(2..10)).map(|_| None).collect();
        Self { random, policy, engine, holds: Vec::new(), waits }
    }

    /// A transaction that does not wait; `None` if all wait.
    fn idle(&mut self) -> Option<usize> {
        let idle = (0..self.waits.len()).filter(|txn| self.waits[*txn].is_none());
        idle.collect::<Vec<_>>().choose(&mut self.random).copied()
    }

    fn request(&mut self) -> (LockItem, LockMode) {
        let mode = *LockMode::ALL.choose(&mut self.random).expect("three");
        if self.random.random_bool(0.6) {
            return (row([self.random.random_range(0..KEYS)]), mode);
        }
        loop {
            if let Ok(range) = KeyRange::new(self.bound(), self.bound()) {
                return (LockItem::Range(range), mode);
            }
        }
    }

    fn bound(&mut self) -> Bound<Key> {
        let at = key([self.random.random_range(0..KEYS)]);
        match self.random.random_range(0..8) {
            0 => Bound::Unbounded,
            1 | 2 => Bound::Excluded(at),
            _ => Bound::Included(at),
        }
    }

    /// The other transactions whose holds conflict with a request.
    fn holders(&self, txn: usize, item: &LockItem, mode: LockMode) -> Vec<usize> {
        let others = self.holds.iter().filter(|hold| hold.txn != txn);
        let conflicts = |hold: &&Hold| !hold.mode.is_compatible(mode) && hold.item.overlaps(item);
        others.filter(conflicts).map(|hold| hold.txn).collect()
    }

    /// True if a request would wait for its own transaction, over holders, even if `without` did
    /// not wait.
    fn closes(&self, txn: usize, request: &(LockItem, LockMode), without: Option<usize>) -> bool {
        let mut next = self.holders(txn, &request.0, request.1);
        let mut seen = BTreeSet::new();
        while let Some(at) = next.pop() {
            if at == txn {
                return true;
            }
            if seen.insert(at)
                && Some(at) != without
                && let Some(wait) = &self.waits[at]
            {
                next.extend(self.holders(at, &wait.item, wait.mode));
            }
        }
        false
    }

    /// The transaction that has to fail when the request closes cycles: without its wait no cycle
    /// is left, and of those the policy prefers it.
    fn victim(&self, txn: usize, request: &(LockItem, LockMode)) -> usize {
        let cost = |who: &usize| match self.policy {
            VictimPolicy::FewestLocks => {
                (self.holds.iter().filter(|hold| hold.txn == *who).count(), Reverse(*who))
            }
            _ => (0, Reverse(*who)),
        };
        let breaks = |who: &usize| {
            *who == txn || self.waits[*who].is_some() && !self.closes(txn, request, Some(*who))
        };
        (0..self.waits.len()).filter(breaks).min_by_key(cost).expect("the requester breaks all")
    }

    /// Makes a call. Returns the transactions whose calls failed.
    fn lock(&mut self, who: usize, (item, mode): (LockItem, LockMode)) -> Vec<usize> {
        let call = lock(&self.engine, who as u64, [item.clone()], mode);
        self.waits[who] = Some(Wait { item, mode, call });
        self.receive()
    }

    /// Receives all outcomes. Returns the transactions whose calls failed.
    fn receive(&mut self) -> Vec<usize> {
        let mut failed = Vec::new();
        for who in 0..self.waits.len() {
            let Some(wait) = &mut self.waits[who] else { continue };
            let Poll::Ready(outcome) = poll(&mut wait.call) else { continue };
            let Some(wait) = self.waits[who].take() else { continue };
            match outcome {
                Ok(grant) => {
                    for (item, before) in grant.changes() {
                        if before.is_some() {
                            self.holds.retain(|hold| hold.txn != who || hold.item != item);
                        }
                        self.holds.push(Hold { txn: who, item, mode: wait.mode });
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Deadlock, "{error}");
                    let cycle = error.deadlock().expect("its cycle");
                    assert!(
                        cycle.iter().any(|edge| edge.waiter == txn(who as u64)),
                        "{who} is no member of {cycle:?}"
                    );
                    failed.push(who);
                }
            }
        }
        failed
    }

    fn end(&mut self, who: usize) {
        self.engine.unlock_all(txn(who as u64), None);
        self.holds.retain(|hold| hold.txn != who);
    }

    /// Ends one transaction after another that does not wait: all calls are granted.
    fn drain(&mut self, seed: u64) {
        for _ in 0..=self.waits.len() {
            for who in 0..self.waits.len() {
                if self.waits[who].is_none() {
                    self.end(who);
                    assert_eq!(self.receive(), NOBODY, "seed {seed}: no cycle was closed");
                }
            }
        }
        let waiting = self.waits.iter().flatten().count();
        assert_eq!(waiting, 0, "seed {seed}: a wait that does not end is a cycle");
    }
}

#[test]
fn no_call_fails_in_random_wait_graphs_without_a_cycle() {
    let mut waits = 0;
    for seed in 0..GRAPHS as u64 {
        let mut graph = Graph::new(seed);
        for _ in 0..40 {
            let Some(who) = graph.idle() else { break };
            let request = graph.request();
            if !graph.closes(who, &request, None) {
                assert_eq!(graph.lock(who, request), NOBODY, "seed {seed}: there is no cycle");
            }
        }
        waits += graph.waits.iter().flatten().count();
        graph.drain(seed);
    }
    println!("{GRAPHS} graphs, {waits} waits at their ends");
    assert!(waits > 2 * GRAPHS, "the graphs have edges");
}

#[test]
fn each_cycle_of_random_wait_graphs_is_broken_by_the_one_member_that_the_policy_chooses() {
    let (mut cyclic, mut cycles, mut others) = (0, 0, 0);
    for seed in 0.. {
        if cyclic == GRAPHS {
            break;
        }
        let mut graph = Graph::new(seed);
        let before = cycles;
        for _ in 0..40 {
            let Some(who) = graph.idle() else { break };
            let request = graph.request();
            let expected = graph.closes(who, &request, None).then(|| graph.victim(who, &request));
            let failed = graph.lock(who, request);
            assert_eq!(failed, Vec::from_iter(expected), "seed {seed}");
            for victim in failed {
                cycles += 1;
                others += usize::from(victim != who);
                graph.end(victim);
                assert_eq!(graph.receive(), NOBODY, "seed {seed}: one victim is enough");
            }
        }
        cyclic += usize::from(cycles > before);
        graph.drain(seed);
    }
    println!("{cyclic} graphs, {cycles} cycles, {others} broken by another than the requester");
    assert!(others > cycles / 10, "the policy chooses");
}
