//! The state of the model, as it is compared with that of the engine.

use std::collections::{BTreeMap, BTreeSet};

use lockservice_core::{LockItem, LockMode};

use super::{Hold, Model};

impl Model {
    pub(crate) fn check_invariants(&mut self) {
        self.explained.clear();
        for (at, a) in self.holds.iter().enumerate() {
            for b in &self.holds[..at] {
                let exclude = a.table == b.table && a.txn != b.txn && !a.mode.is_compatible(b.mode);
                assert!(!exclude || !a.item.overlaps(&b.item), "held at once: {a:?} and {b:?}");
            }
        }
        for at in 0..self.queue.len() {
            assert!(self.is_blocked(at), "{:?} has no conflict", self.queue[at]);
            assert!(
                !self.reaches(at, self.queue[at].txn, true),
                "{:?} waits for itself",
                self.queue[at]
            );
        }
    }

    pub(crate) fn locks(&self) -> BTreeSet<(usize, String, LockMode, usize, u64, usize)> {
        let lock = |hold: &Hold| {
            let waiters = self.queue.iter().filter(|call| {
                call.table == hold.table
                    && call.txn != hold.txn
                    && !call.mode.is_compatible(hold.mode)
                    && call.items[call.next].overlaps(&hold.item)
            });
            (
                hold.table,
                format!("{:?}", hold.item),
                hold.mode,
                hold.txn,
                hold.shown(),
                waiters.count(),
            )
        };
        self.holds.iter().map(lock).collect()
    }

    pub(crate) fn waits(&self) -> BTreeMap<usize, (BTreeSet<usize>, BTreeSet<usize>)> {
        let wait = |at: usize| {
            let ahead = self
                .conflicting_waiters(at)
                .into_iter()
                .map(|ahead| self.queue[ahead].txn)
                .collect();
            (self.queue[at].txn, (self.conflicting_holders(&self.queue[at]), ahead))
        };
        (0..self.queue.len()).map(wait).collect()
    }

    pub(crate) fn tokens(&self) -> Vec<(usize, LockItem, LockMode, u64)> {
        let granted = self.holds.iter().filter(|hold| !hold.pending);
        granted.map(|hold| (hold.table, hold.item.clone(), hold.mode, hold.shown())).collect()
    }
}
