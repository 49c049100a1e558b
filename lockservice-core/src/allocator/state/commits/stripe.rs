//! [`Stripe`]: the commits in flight and the tombstones of a part of an origin's transactions,
//! under one lock.

use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::allocator::state::slots::{BindSlots, Places};
use crate::clock::{Time, hi};
use crate::id::{CommitAttempt, TxnCounter, TxnNumber};

#[derive(Default)]
pub(super) struct Stripe {
    pub(super) fenced: bool,
    /// Numbers below this are over.
    pub(super) floor: TxnNumber,
    /// That of the last tombstone. A removal must name the one it saw.
    generation: Generation,
    /// No attempt runs out before this: until then a look for room finds none. `None` if there is
    /// no attempt.
    pub(super) expires_from: Option<Time>,
    /// The number of tombstones among `commits`.
    pub(super) tombstones: usize,
    pub(super) commits: HashMap<TxnCounter, CommitPhase, foldhash::fast::FixedState>,
}

/// Distinguishes a tombstone from one that was made for the same transaction before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Generation(u64);

impl Generation {
    /// The generation after this one. Saturates.
    const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// True if it may be that of several tombstones. None of them counts as written, and none is
    /// removed (fail closed).
    pub(super) const fn is_last(self) -> bool {
        self.0 == u64::MAX
    }
}

/// The phase of a transaction that has tried to commit, or that must not commit.
pub(super) enum CommitPhase {
    InFlight {
        /// True once a caller got the response *committing*: nothing is admitted or extended any
        /// more, and a tombstone follows (C4).
        closing: bool,
        attempts: SmallVec<[Attempt; 1]>,
    },
    Tombstone {
        generation: Generation,
        durable: bool,
    },
}

/// For how long a commit is admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// The raw length, which the response says.
    pub(crate) length: Duration,
    /// The end of that.
    pub(crate) ends: Time,
    /// hi of it after the admission: then the commit counts no more (C2).
    pub(crate) until: Time,
}

impl Window {
    /// The window from `now` until `ends`.
    pub(crate) fn new(now: Time, ends: Time) -> Self {
        let length = ends.remaining(now);
        Self { length, ends, until: now + hi(length) }
    }
}

pub(super) struct Attempt {
    pub(super) name: CommitAttempt,
    /// See [`Window`].
    pub(super) ends: Time,
    /// See [`Window`].
    pub(super) until: Time,
    /// Removed by [`Ended`].
    pub(super) pins: Places,
}

impl Attempt {
    /// Takes over the pins of an earlier admission of the attempt, except of binds that this one
    /// pins too. The earlier response may still be used, so its binds are kept until it must have
    /// run out (C1, C2).
    pub(super) fn take_over(&mut self, earlier: &mut Self) {
        let places = |pins: &Places| pins.iter().map(|at| at.get()).collect::<Vec<u32>>();
        let mut pinned = places(&self.pins);
        // A repeat nearly always presents the same binds.
        if pinned == places(&earlier.pins) {
            return;
        }
        pinned.sort_unstable();
        let (again, others): (Places, Places) =
            earlier.pins.iter().copied().partition(|at| pinned.binary_search(&at.get()).is_ok());
        earlier.pins = again;
        self.pins.extend(others);
    }
}

/// Attempts that were taken out of a stripe. When it is dropped, their pins are removed. To be
/// declared before the stripe is locked, so that it is dropped when that is free again.
pub(super) struct Ended<'a> {
    slots: &'a BindSlots,
    attempts: SmallVec<[Attempt; 1]>,
}

impl<'a> Ended<'a> {
    pub(super) fn new(slots: &'a BindSlots) -> Self {
        Self { slots, attempts: SmallVec::new() }
    }

    pub(super) fn push(&mut self, attempt: Attempt) {
        self.attempts.push(attempt);
    }

    /// Takes those out of `attempts` that have run out.
    pub(super) fn expire(&mut self, attempts: &mut SmallVec<[Attempt; 1]>, now: Time) {
        let mut at = 0;
        while at < attempts.len() {
            if attempts[at].until <= now {
                self.push(attempts.swap_remove(at));
            } else {
                at += 1;
            }
        }
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        for attempt in &self.attempts {
            self.slots.unpin(&attempt.pins);
        }
    }
}

impl Stripe {
    /// True if there is no room for another transaction, also after those that have run out by now
    /// made theirs.
    pub(super) fn full(&mut self, most: usize, now: Time, ended: &mut Ended<'_>) -> bool {
        if self.commits.len() >= most {
            self.expire(now, ended);
        }
        self.commits.len() >= most
    }

    /// Takes out the attempts that have run out, if any can have.
    pub(super) fn expire(&mut self, now: Time, ended: &mut Ended<'_>) {
        if self.expires_from.is_none_or(|from| from > now) {
            return;
        }
        let mut next: Option<Time> = None;
        let mut over = SmallVec::<[TxnCounter; 8]>::new();
        for (counter, commit) in &mut self.commits {
            let CommitPhase::InFlight { attempts, .. } = commit else { continue };
            ended.expire(attempts, now);
            if attempts.is_empty() {
                over.push(*counter);
            }
            for attempt in &*attempts {
                next = Some(next.map_or(attempt.until, |next| next.min(attempt.until)));
            }
        }
        for counter in over {
            self.last_attempt_ended(counter);
        }
        self.expires_from = next;
    }

    /// The same for one transaction.
    pub(super) fn expire_one(&mut self, counter: TxnCounter, now: Time, ended: &mut Ended<'_>) {
        let Some(CommitPhase::InFlight { attempts, .. }) = self.commits.get_mut(&counter) else {
            return;
        };
        ended.expire(attempts, now);
        if attempts.is_empty() {
            self.last_attempt_ended(counter);
        }
    }

    /// Takes one attempt of a transaction out.
    pub(super) fn end(&mut self, counter: TxnCounter, name: CommitAttempt, ended: &mut Ended<'_>) {
        let Entry::Occupied(mut entry) = self.commits.entry(counter) else { return };
        let CommitPhase::InFlight { closing, attempts } = entry.get_mut() else { return };
        if let Some(at) = attempts.iter().position(|known| known.name == name) {
            ended.push(attempts.swap_remove(at));
        }
        match (attempts.is_empty(), *closing) {
            (false, _) => {}
            (true, false) => drop(entry.remove()),
            (true, true) => self.last_attempt_ended(counter),
        }
    }

    /// Forgets a transaction without attempts, or makes a tombstone of it if a caller got the
    /// response *committing* (C4). The tombstone is written at the next `cannot_commit`: until then
    /// no caller has been promised that the transaction can never commit.
    pub(super) fn last_attempt_ended(&mut self, counter: TxnCounter) {
        let generation = self.next_generation();
        let Entry::Occupied(mut entry) = self.commits.entry(counter) else { return };
        if matches!(entry.get(), CommitPhase::InFlight { closing: true, .. }) {
            entry.insert(CommitPhase::Tombstone { generation, durable: false });
            self.tombstones += 1;
        } else {
            entry.remove();
        }
    }

    /// The generation of a new tombstone.
    pub(super) fn next_generation(&mut self) -> Generation {
        self.generation = self.generation.next();
        self.generation
    }
}
