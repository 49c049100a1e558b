//! The calls that wait for one row or range, and the commits that they learn of.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::call::CallId;
use super::entry::Position;
use super::steps::step;
use super::types::Commit;
use crate::id::CommitTimestamp;
use crate::key::LockMode;

/// The waiters of an entry, in queue order. There is at least one: an entry without waiters has no
/// queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By the mode of the request.
    waiters: [BTreeMap<Position, Waiter>; LockMode::ALL.len()],
    /// Commits of transactions with a hold that overlaps the item, by the mode of the hold. `None`
    /// if there were none.
    commits: Option<Box<[Commits; LockMode::ALL.len()]>>,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    id: CallId,
    /// The last commit before its wait began: it learns of later ones.
    commits: CommitNumber,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.iter().all(BTreeMap::is_empty)
    }

    pub(super) fn insert(
        &mut self,
        position: Position,
        id: CallId,
        mode: LockMode,
        commits: CommitNumber,
    ) {
        self.waiters[mode.index()].insert(position, Waiter { id, commits });
    }

    /// Removes a waiter. Returns what it learns of the commits since its wait began.
    pub(super) fn remove(&mut self, position: Position, mode: LockMode) -> Option<Commit> {
        let waiter = self.waiters[mode.index()].remove(&position)?;
        let commits = self.commits.as_ref()?;
        let learned =
            incompatible_with(mode).filter_map(|held| commits[held.index()].after(waiter.commits));
        learned.reduce(merge)
    }

    /// The number of waiters that are incompatible with `mode`.
    pub(super) fn incompatible(&self, mode: LockMode) -> usize {
        incompatible_with(mode).map(|requested| self.waiters[requested.index()].len()).sum()
    }

    /// The first waiter that is incompatible with `mode`.
    pub(super) fn first_incompatible(&self, mode: LockMode) -> Option<(Position, CallId)> {
        let first = |requested| self.first_of(requested, Position::FIRST);
        incompatible_with(mode).filter_map(first).min()
    }

    /// The waiter that follows `position`.
    ///
    /// If the first waiter of a queue has a conflict, so have those behind it, with two exceptions:
    /// a waiter whose own hold is that conflict, and a sharer behind a waiter for update.
    pub(super) fn first_after(&self, position: Position) -> Option<(Position, CallId)> {
        LockMode::ALL.into_iter().filter_map(|mode| self.first_of(mode, position)).min()
    }

    /// The waiter in `mode` that follows `position`.
    pub(super) fn first_of(
        &self,
        mode: LockMode,
        position: Position,
    ) -> Option<(Position, CallId)> {
        let rest = (Bound::Excluded(position), Bound::Unbounded);
        let first = self.waiters[mode.index()].range(rest).next();
        first.map(|(position, waiter)| (*position, waiter.id))
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
            self.waiters[mode.index()]
                .range(range)
                .map(|(position, waiter)| (*position, waiter.id))
                .inspect(|_| step())
        });
        between.into_iter().flatten()
    }

    /// The last waiter in `mode` before `position`.
    pub(super) fn nearest(&self, mode: LockMode, position: Position) -> Option<(Position, CallId)> {
        step();
        let last = self.waiters[mode.index()].range(..position).next_back();
        last.map(|(position, waiter)| (*position, waiter.id))
    }

    /// Waiters before `position` that are incompatible with `mode`: so many that all others are
    /// reached along their waits. Of these, the ones behind `after`, in order.
    ///
    /// An exclusive waiter waits for all waiters before it. A waiter for update waits for those
    /// before it that are not sharers. So these are the nearest waiter of each of these two modes,
    /// and for an exclusive request the sharers behind the nearest exclusive one.
    pub(super) fn nearest_ahead(
        &self,
        mode: LockMode,
        position: Position,
        after: Position,
    ) -> impl Iterator<Item = (Position, CallId)> {
        let exclusive = self.nearest(LockMode::Exclusive, position);
        let from = exclusive.map_or(Position::FIRST, |(at, _)| at);
        let update = if mode == LockMode::Shared {
            None
        } else {
            self.nearest(LockMode::Update, position).filter(|(at, _)| *at > from)
        };
        // Only an exclusive request waits for the sharers in between.
        let before = if mode == LockMode::Exclusive { position } else { from };
        let middle = update.map_or(from, |(at, _)| at.min(before));
        // A waiter for update waits for the nearest exclusive one itself.
        let exclusive = exclusive.filter(|_| mode != LockMode::Update || update.is_none());
        let sharers = |from: Position, to| self.between(LockMode::Shared, from.max(after), to);
        exclusive
            .filter(|(at, _)| *at > after)
            .into_iter()
            .chain(sharers(from, middle))
            .chain(update.filter(|(at, _)| *at > after))
            .chain(sharers(middle, before))
    }

    /// Notes the commit of a holder in `mode`. Waiters in an incompatible mode learn of it. Each
    /// commit has a larger number than the one before.
    pub(super) fn note_commit(&mut self, mode: LockMode, number: CommitNumber, commit: Commit) {
        let waiters: usize = self.waiters.iter().map(BTreeMap::len).sum();
        let commits = &mut self.commits.get_or_insert_default()[mode.index()];
        commits.note(number, commit);
        if commits.latest.len() > 2 * waiters + 8 {
            let all = self.waiters.iter().flat_map(BTreeMap::values);
            let mut known: Vec<CommitNumber> = all.map(|waiter| waiter.commits).collect();
            known.sort_unstable();
            commits.forget_all_but(known.into_iter());
        }
    }
}

/// The modes that are incompatible with `mode`.
pub(super) fn incompatible_with(mode: LockMode) -> impl Iterator<Item = LockMode> {
    LockMode::ALL.into_iter().filter(move |other| !mode.is_compatible(*other))
}

/// The larger of two timestamps, and whether one of the commits changed a definition.
pub(super) fn merge(a: Commit, b: Commit) -> Commit {
    Commit {
        timestamp: a.timestamp.max(b.timestamp),
        definition_changed: a.definition_changed || b.definition_changed,
    }
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
struct Commits {
    latest: VecDeque<(CommitNumber, CommitTimestamp)>,
    /// The last one that changed the definition of the table.
    definition: Option<CommitNumber>,
}

impl Commits {
    fn note(&mut self, number: CommitNumber, commit: Commit) {
        while self.latest.back().is_some_and(|(_, last)| *last <= commit.timestamp) {
            self.latest.pop_back();
        }
        self.latest.push_back((number, commit.timestamp));
        if commit.definition_changed {
            self.definition = Some(number);
        }
    }

    /// The largest timestamp after a number, and whether a definition has changed since.
    fn after(&self, number: CommitNumber) -> Option<Commit> {
        let at = self.latest.partition_point(|(earlier, _)| *earlier <= number);
        let timestamp = self.latest.get(at)?.1;
        Some(Commit { timestamp, definition_changed: self.definition > Some(number) })
    }

    /// Keeps only the commits that a waiter will learn of. `known` lists, for each waiter, the last
    /// commit before its wait began, in rising order.
    fn forget_all_but(&mut self, known: impl Iterator<Item = CommitNumber>) {
        let mut known = known.peekable();
        self.latest.retain(|(number, _)| {
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
            // Position, mode, and what it should learn.
            let mut waiters: Vec<(i64, LockMode, Option<Commit>)> = Vec::new();
            for number in 1..600 {
                match random.random_range(0..8) {
                    0 => {
                        let mode = LockMode::ALL[random.random_range(0..3)];
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
                        let mode = LockMode::ALL[random.random_range(0..3)];
                        let ts = random.random_range(0..20) + 1_000 - number as u64;
                        let commit = Commit {
                            timestamp: CommitTimestamp::new(ts),
                            definition_changed: random.random_bool(0.1),
                        };
                        queue.note_commit(mode, CommitNumber(number as u64), commit);
                        let kept = &queue.commits.as_ref().expect("just noted")[mode.index()];
                        assert!(
                            kept.latest.len() <= 2 * waiters.len() + 8,
                            "no more is kept than waiters learn"
                        );
                        for (_, other, expected) in &mut waiters {
                            if !other.is_compatible(mode) {
                                *expected = (*expected).into_iter().chain([commit]).reduce(merge);
                            }
                        }
                    }
                }
            }
        }
    }
}
