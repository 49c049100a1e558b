//! Who waits for one row or range, and which commits they are told of.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::call::CallId;
use super::entry::Position;
use super::steps::step;
use crate::key::LockMode;

/// The waiters of an entry, in queue order. It has at least one: without waiters there is no queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    shared: BTreeMap<Position, Waiter>,
    exclusive: BTreeMap<Position, Waiter>,
    /// Of those who held the item shared, or something that overlaps it.
    shared_commits: Commits,
    /// The same for those who held it exclusively.
    exclusive_commits: Commits,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    id: CallId,
    /// The number of the last commit before its wait began: it is told of later ones.
    commits: u64,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.exclusive.is_empty()
    }

    pub(super) fn insert(&mut self, position: Position, id: CallId, mode: LockMode, commits: u64) {
        self.wanting_mut(mode).insert(position, Waiter { id, commits });
    }

    /// The largest timestamp of the commits that the waiter is told of.
    pub(super) fn remove(&mut self, position: Position, mode: LockMode) -> Option<u64> {
        let waiter = self.wanting_mut(mode).remove(&position)?;
        let exclusive = self.exclusive_commits.largest_after(waiter.commits);
        match mode {
            LockMode::Shared => exclusive,
            LockMode::Exclusive => exclusive.max(self.shared_commits.largest_after(waiter.commits)),
        }
    }

    /// How many waiters are incompatible with `mode`.
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

    /// The waiter that follows `position`. If the first one has something in its way, so has
    /// everybody behind it, except a sharer that itself is what is in the way of the others.
    pub(super) fn first_after(&self, position: Position) -> Option<(Position, CallId)> {
        let sharer = first(&self.shared, position);
        let exclusive = first(&self.exclusive, position);
        match (sharer, exclusive) {
            (Some(a), Some(b)) => Some(if a.0 < b.0 { a } else { b }),
            (one, other) => one.or(other),
        }
    }

    /// Those that want the item in `mode`, between two places, in order.
    pub(super) fn between(
        &self,
        mode: LockMode,
        after: Position,
        before: Position,
    ) -> impl Iterator<Item = (Position, CallId)> {
        let between = (after < before).then(|| {
            let range = (Bound::Excluded(after), Bound::Excluded(before));
            self.wanting(mode)
                .range(range)
                .map(|(position, waiter)| (*position, waiter.id))
                .inspect(|_| step())
        });
        between.into_iter().flatten()
    }

    /// The last one before `position` that wants the item exclusively. It waits for everything
    /// before it itself.
    pub(super) fn nearest_exclusive(&self, position: Position) -> Option<(Position, CallId)> {
        step();
        self.exclusive
            .range(..position)
            .next_back()
            .map(|(position, waiter)| (*position, waiter.id))
    }

    /// Those before `position` that are incompatible with `mode`, as many as it takes to reach all
    /// of them along the waits of those found; of these the ones behind `after`.
    pub(super) fn nearest_ahead(
        &self,
        mode: LockMode,
        position: Position,
        after: Position,
    ) -> impl Iterator<Item = (Position, CallId)> {
        let exclusive = self.nearest_exclusive(position);
        let from = exclusive.map_or(Position::FIRST, |(at, _)| at);
        // For a sharer the sharers in between are not in the way.
        let before = if mode == LockMode::Exclusive { position } else { from };
        let sharers = self.between(LockMode::Shared, from.max(after), before);
        exclusive.filter(|(at, _)| *at > after).into_iter().chain(sharers)
    }

    /// Notes that a holder in `mode`, in the way of those waiters with whom it is incompatible, has
    /// committed at `ts`. Commits have rising numbers.
    pub(super) fn note_commit(&mut self, mode: LockMode, number: u64, ts: u64) {
        let waiters = self.shared.len() + self.exclusive.len();
        let commits = match mode {
            LockMode::Shared => &mut self.shared_commits,
            LockMode::Exclusive => &mut self.exclusive_commits,
        };
        commits.note(number, ts);
        if commits.0.len() > 2 * waiters + 8 {
            let mut begun: Vec<u64> =
                self.shared.values().chain(self.exclusive.values()).map(|at| at.commits).collect();
            begun.sort_unstable();
            commits.forget_all_but(begun.into_iter());
        }
    }

    const fn wanting(&self, mode: LockMode) -> &BTreeMap<Position, Waiter> {
        match mode {
            LockMode::Shared => &self.shared,
            LockMode::Exclusive => &self.exclusive,
        }
    }

    const fn wanting_mut(&mut self, mode: LockMode) -> &mut BTreeMap<Position, Waiter> {
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

/// Commits by their numbers, which rise, with their timestamps, which fall: one that was followed
/// by a larger timestamp is of no interest to anybody. So the first one after any number has the
/// largest timestamp after it.
#[derive(Debug, Default)]
struct Commits(VecDeque<(u64, u64)>);

impl Commits {
    fn note(&mut self, number: u64, ts: u64) {
        while self.0.back().is_some_and(|(_, last)| *last <= ts) {
            self.0.pop_back();
        }
        self.0.push_back((number, ts));
    }

    fn largest_after(&self, number: u64) -> Option<u64> {
        let at = self.0.partition_point(|(earlier, _)| *earlier <= number);
        self.0.get(at).map(|(_, ts)| *ts)
    }

    /// Keeps what those are told who know the commits up to these numbers, which rise.
    fn forget_all_but(&mut self, known: impl Iterator<Item = u64>) {
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
    fn every_waiter_is_told_the_largest_timestamp_since_its_wait_began() {
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut queue = Queue::default();
            // Place, mode, and the largest timestamp that it should be told.
            let mut waiters: Vec<(i64, LockMode, Option<u64>)> = Vec::new();
            let mode = |shared| if shared { LockMode::Shared } else { LockMode::Exclusive };
            for number in 1..600 {
                match random.random_range(0..8) {
                    0 => {
                        let mode = mode(random.random());
                        queue.insert(Position(number), CallId::default(), mode, number as u64 - 1);
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
                            random.random_range(0..20) + 1_000 - number as u64,
                        );
                        queue.note_commit(mode, number as u64, ts);
                        let kept = if mode == LockMode::Shared {
                            &queue.shared_commits
                        } else {
                            &queue.exclusive_commits
                        };
                        assert!(
                            kept.0.len() <= 2 * waiters.len() + 8,
                            "no more is kept than somebody is told"
                        );
                        for (_, other, told) in &mut waiters {
                            if !other.is_compatible(mode) {
                                *told = (*told).max(Some(ts));
                            }
                        }
                    }
                }
            }
        }
    }
}
