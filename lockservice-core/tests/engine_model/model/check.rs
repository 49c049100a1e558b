//! The comparison of the engine with the model after each step.

use std::collections::{BTreeMap, BTreeSet};

use lockservice_core::table::Commit;
use lockservice_core::{LockItem, LockMode, TableRef};

use super::Outcome;
use crate::{Run, key, number};

fn table_number(table: &TableRef) -> usize {
    table.name.as_str()[1..].parse().expect("our own name")
}

impl Run {
    pub(crate) fn check(&mut self) {
        self.check_outcomes();
        self.model.check_invariants();
        self.check_locks();
        self.check_waits();
        self.check_tokens();
        self.engine.check_marks();
        assert_eq!(self.engine.by_handle().bytes(), self.model.all_bytes(), "the memory");
    }

    /// The calls that are over have the outcomes that the model expects.
    fn check_outcomes(&mut self) {
        for txn in 0..self.clients.len() {
            let client = &mut self.clients[txn];
            if !client.busy {
                client.poll(false);
                assert!(
                    client.call.is_none() || !self.model.done.contains_key(&txn),
                    "{txn} was not woken for {:?}",
                    self.model.done[&txn]
                );
            }
            let Some(received) = client.received.take() else { continue };
            let expected = self.model.done.remove(&txn);
            let expected = expected
                .unwrap_or_else(|| panic!("{txn} received {received:?}, in the model it waits"));
            match (received, expected) {
                (Err(error), Outcome::Failed(kind)) => {
                    *self.counts.entry(kind.name()).or_default() += 1;
                    assert_eq!(error.kind(), kind, "{txn}: {error:?}");
                }
                (Ok(grant), Outcome::Granted { table, grant: expected }) => {
                    *self
                        .counts
                        .entry(if grant.waited.is_some() { "waited" } else { "granted" })
                        .or_default() += 1;
                    assert_eq!(grant.waited.is_some(), expected.waited, "{txn}: {grant:?}");
                    let was_blocked = expected.waited || !expected.skipped.is_empty();
                    assert_eq!(grant.conflict.is_some(), was_blocked, "{txn}: {grant:?}");
                    assert_eq!(grant.token.get(), expected.token, "{txn}: {grant:?}");
                    let newly_locked = !expected.changes.is_empty() || expected.escalated.is_some();
                    assert_eq!(grant.newly_locked, newly_locked, "{txn}: {grant:?}");
                    let prev_commit = grant.prev_commit_ts.map(|timestamp| Commit {
                        timestamp,
                        definition_changed: grant.prev_definition_changed,
                    });
                    assert_eq!(prev_commit, expected.prev_commit, "{txn}: {grant:?}");
                    assert_eq!(grant.table_commit_ts, expected.table_commit_ts, "{txn}: {grant:?}");
                    let definition = grant.table_definition_ts;
                    assert_eq!(definition, expected.table_definition_ts, "{txn}: {grant:?}");
                    let skipped: Vec<_> =
                        grant.skipped.iter().cloned().map(LockItem::Row).collect();
                    assert_eq!(skipped, expected.skipped, "{txn}: {grant:?}");
                    let range = grant.escalated.as_deref().cloned().map(LockItem::Range);
                    assert_eq!(range, expected.escalated, "{txn}: {grant:?}");
                    let what = [("skipped", !skipped.is_empty()), ("escalated", range.is_some())];
                    for (what, _) in what.into_iter().filter(|(_, is)| *is) {
                        *self.counts.entry(what).or_default() += 1;
                    }
                    assert_eq!(grant.tokens_left(), expected.tokens_left, "{txn}: {grant:?}");
                    assert_eq!(grant.changes(), expected.changes, "{txn}: {grant:?}");
                    client.grants.push((table, grant));
                }
                (received, expected) => {
                    panic!("{txn} received {received:?} instead of {expected:?}")
                }
            }
        }
    }

    /// The lines in a slice of a list. Any number gives the same list.
    fn lines_per_slice(&self) -> usize {
        if self.seed.is_multiple_of(8) { 1 + self.seed as usize / 8 % 7 } else { 1_000 }
    }

    fn check_locks(&self) {
        let most = self.lines_per_slice();
        let mut list = self.engine.lock_list(None);
        if most < 1_000 {
            list = list.with_snapshots_of(most);
        }
        let listed: Vec<_> = std::iter::from_fn(|| list.next_slice(most)).flatten().collect();
        let count = listed.len();
        let locks: BTreeSet<_> = listed
            .into_iter()
            .map(|lock| {
                let table = table_number(&lock.table);
                (
                    table,
                    format!("{:?}", lock.item),
                    lock.mode,
                    number(lock.txn),
                    lock.token.get(),
                    lock.waiters,
                )
            })
            .collect();
        assert_eq!(locks, self.model.locks(), "seed {}: the locks", self.seed);
        assert_eq!(locks.len(), count, "seed {}: a lock is listed twice", self.seed);
    }

    fn check_waits(&self) {
        let most = self.lines_per_slice();
        let mut waits = BTreeMap::<usize, (BTreeSet<usize>, BTreeSet<usize>)>::new();
        let mut list = self.engine.wait_list(None);
        let listed: Vec<_> = std::iter::from_fn(|| list.next_slice(most)).flatten().collect();
        if most < 1_000 {
            assert_eq!(
                listed,
                self.engine.waits(None),
                "seed {}: the waits in slices and in one go",
                self.seed
            );
        }
        for wait in listed {
            let (held, ahead) = waits.entry(number(wait.waiter)).or_default();
            if wait.granted {
                held.insert(number(wait.holder))
            } else {
                ahead.insert(number(wait.holder))
            };
        }
        let expected = self.model.waits();
        assert_eq!(
            waits.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "who waits"
        );
        for (waiter, (held, ahead)) in &waits {
            assert_eq!(*held, expected[waiter].0, "the holders for whom {waiter} waits");
            assert!(
                ahead.is_subset(&expected[waiter].1),
                "those behind whom {waiter} waits: {ahead:?}"
            );
            assert_eq!(
                ahead.is_empty(),
                expected[waiter].1.is_empty(),
                "those behind whom {waiter} waits"
            );
        }
    }

    /// F1: of two conflicting grants on a key the later has the larger token.
    fn check_tokens(&mut self) {
        let mut new = self.model.tokens();
        new.retain(|(_, _, _, token)| self.tokens_seen.insert(*token));
        new.sort_by_key(|(_, _, _, token)| *token);
        for (table, item, mode, token) in new {
            for number in 0..self.keys {
                if item.overlaps(&LockItem::Row(key(number))) {
                    let last = self.last_tokens.entry((table, number)).or_default();
                    for (before, last) in LockMode::ALL.into_iter().zip(&*last) {
                        assert!(
                            token >= *last || before.is_compatible(mode),
                            "token {token} on a key that had {last}"
                        );
                    }
                    last[mode as usize] = token;
                }
            }
        }
    }
}
