//! The calls that wait for one row or range, and the commits that they learn of.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::call::CallId;
use super::entry::Position;
use super::steps::step;
use crate::id::CommitTimestamp;
use crate::key::LockMode;

/// The waiters of an entry, in queue order. There is at least one: an entry without waiters has no
/// queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    shared: BTreeMap<Position, Waiter>,
    exclusive: BTreeMap<Position, Waiter>,
    /// Commits of transactions with a shared hold that overlaps the item.
    shared_commits: Commits,
    /// The same for exclusive holds.
    exclusive_commits: Commits,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    id: CallId,
    /// The last commit before its wait began: it learns of later ones.
    commits: CommitNumber,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.exclusive.is_empty()
    }

    pub(super) fn insert(
        &mut self,
        position: Position,
        id: CallId,
        mode: LockMode,
        commits: CommitNumber,
    ) {
        self.waiters_mut(mode).insert(position, Waiter { id, commits });
    }

    /// Removes a waiter. Returns the largest timestamp of the commits that it learns of.
    pub(super) fn remove(&mut self, position: Position, mode: LockMode) -> Option<CommitTimestamp> {
        let waiter = self.waiters_mut(mode).remove(&position)?;
        let exclusive = self.exclusive_commits.largest_after(waiter.commits);
        match mode {
            LockMode::Shared => exclusive,
            LockMode::Exclusive => exclusive.max(self.shared_commits.largest_after(waiter.commits)),
        }
    }

    /// The number of waiters that are incompatible with `mode`.
    pub(super) fn incompatible(&self, mode: LockMode) -> usize {
        match mode {
            LockMode::Shared => self.exclusive.len(),
            LockMode::Exclusive => self.exclusive.len() + self.shared.len(),
        }
    }

    /// The first waiter that is incompatible with `mode`.
    pub(super) fn first_incompatible(&self, mode: LockMode) -> Option<(Position, CallId)> {
        match mode {
            LockMode::Shared => first(&self.exclusive, Position::FIRST),
            LockMode::Exclusive => self.first_after(Position::FIRST),
        }
    }

    /// The waiter that follows `position`. If the first waiter of a queue has a conflict, so have
    /// those behind it, except a sharer whose own hold is that conflict.
    pub(super) fn first_after(&self, position: Position) -> Option<(Position, CallId)> {
        let sharer = first(&self.shared, position);
        let exclusive = first(&self.exclusive, position);
        match (sharer, exclusive) {
            (Some(a), Some(b)) => Some(if a.0 < b.0 { a } else { b }),
            (one, other) => one.or(other),
        }
    }

    /// The waiters in `mode` between two positions, in order.
    pub(super) fn between(
        &self,
        mode: LockMode,
        after: Position,
        before: Position,
    ) -> impl Iterator<Item = (Position, CallId)> {
        let between = (after < before).then(|| {
            let range = (Bound::Excluded(after), Bound::Excluded(before));
            self.waiters(mode)
                .range(range)
                .map(|(position, waiter)| (*position, waiter.id))
                .inspect(|_| step())
        });
        between.into_iter().flatten()
    }

    /// The last exclusive waiter before `position`. It waits itself for all waiters before it.
    pub(super) fn nearest_exclusive(&self, position: Position) -> Option<(Position, CallId)> {
        step();
        self.exclusive
            .range(..position)
            .next_back()
            .map(|(position, waiter)| (*position, waiter.id))
    }

    /// The nearest waiters before `position` that are incompatible with `mode`, if they are behind
    /// `after`. All other such waiters are reached along the waits of the nearest.
    pub(super) fn nearest_ahead(
        &self,
        mode: LockMode,
        position: Position,
        after: Position,
    ) -> impl Iterator<Item = (Position, CallId)> {
        let exclusive = self.nearest_exclusive(position);
        let from = exclusive.map_or(Position::FIRST, |(at, _)| at);
        // A sharer does not wait for the sharers in between.
        let before = if mode == LockMode::Exclusive { position } else { from };
        let sharers = self.between(LockMode::Shared, from.max(after), before);
        exclusive.filter(|(at, _)| *at > after).into_iter().chain(sharers)
    }

    /// Notes that a holder in `mode` has committed at `ts`. Waiters in an incompatible mode learn
    /// of it. Each commit has a larger number than the one before.
    pub(super) fn note_commit(
        &mut self,
        mode: LockMode,
        number: CommitNumber,
        ts: CommitTimestamp,
    ) {
        let waiters = self.shared.len() + self.exclusive.len();
        let commits = match mode {
            LockMode::Shared => &mut self.shared_commits,
            LockMode::Exclusive => &mut self.exclusive_commits,
        };
        commits.note(number, ts);
        if commits.0.len() > 2 * waiters + 8 {
            let mut known: Vec<CommitNumber> =
                self.shared.values().chain(self.exclusive.values()).map(|at| at.commits).collect();
            known.sort_unstable();
            commits.forget_all_but(known.into_iter());
        }
    }

    const fn waiters(&self, mode: LockMode) -> &BTreeMap<Position, Waiter> {
        match mode {
            LockMode::Shared => &self.shared,
            LockMode::Exclusive => &self.exclusive,
        }
    }

    const fn waiters_mut(&mut self, mode: LockMode) -> &mut BTreeMap<Position, Waiter> {
        match mode {
            LockMode::Shared => &mut self.shared,
            LockMode::Exclusive => &mut self.exclusive,
        }
    }
}

fn first(waiters: &BTreeMap<Position, Waiter>, after: Position) -> Option<(Position, CallId)> {
    let mut rest = waiters.range((Bound::Excluded(after), Bound::Unbounded));
    rest.next().map(|(position, waiter)| (*position, waiter.id))
}

/// The number of a commit with a timestamp, on this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct CommitNumber(u64);

impl CommitNumber {
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Commits in the order of their numbers. The numbers rise and the timestamps fall: a commit is
/// dropped when a commit with a timestamp at least as large follows. So the first commit after any
/// number has the largest timestamp after it.
#[derive(Debug, Default)]
struct Commits(VecDeque<(CommitNumber, CommitTimestamp)>);

impl Commits {
    fn note(&mut self, number: CommitNumber, ts: CommitTimestamp) {
        while self.0.back().is_some_and(|(_, last)| *last <= ts) {
            self.0.pop_back();
        }
        self.0.push_back((number, ts));
    }

    fn largest_after(&self, number: CommitNumber) -> Option<CommitTimestamp> {
        let at = self.0.partition_point(|(earlier, _)| *earlier <= number);
        self.0.get(at).map(|(_, ts)| *ts)
    }

    /// Keeps only the commits that a waiter will learn of. `known` lists, for each waiter, the last
    /// commit before its wait began, in rising order.
    fn forget_all_but(&mut self, known: impl Iterator<Item = CommitNumber>) {
        let mut known = known.peekable();
        self.0.retain(|(number, _)| {
            let mut is_first = false;
            while known.next_if(|known| known < number).is_some() {
                is_first = true;
            }
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn every_waiter_learns_the_largest_timestamp_since_its_wait_began() {
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut queue = Queue::default();
            // Position, mode, and the largest timestamp that it should learn.
            let mut waiters: Vec<(i64, LockMode, Option<CommitTimestamp>)> = Vec::new();
            let mode = |shared| if shared { LockMode::Shared } else { LockMode::Exclusive };
            for number in 1..600 {
                match random.random_range(0..8) {
                    0 => {
                        let mode = mode(random.random());
                        let known = CommitNumber(number as u64 - 1);
                        queue.insert(Position(number), CallId::default(), mode, known);
                        waiters.push((number, mode, None));
                    }
                    1 if waiters.len() > 1 => {
                        let (position, mode, expected) =
                            waiters.swap_remove(random.random_range(0..waiters.len()));
                        assert_eq!(queue.remove(Position(position), mode), expected, "seed {seed}");
                    }
                    _ => {
                        // Mostly falling, so that many have to be kept.
                        let (mode, ts) = (
                            mode(random.random()),
                            CommitTimestamp::new(
                                random.random_range(0..20) + 1_000 - number as u64,
                            ),
                        );
                        queue.note_commit(mode, CommitNumber(number as u64), ts);
                        let kept = if mode == LockMode::Shared {
                            &queue.shared_commits
                        } else {
                            &queue.exclusive_commits
                        };
                        assert!(
                            kept.0.len() <= 2 * waiters.len() + 8,
                            "no more is kept than waiters learn"
                        );
                        for (_, other, expected) in &mut waiters {
                            if !other.is_compatible(mode) {
                                *expected = (*expected).max(Some(ts));
                            }
                        }
                    }
                }
            }
        }
    }
}
