//! [`Stripe`]: the commits in flight and the tombstones of a part of an origin's transactions,
//! under one lock.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::allocator::state::pins::PinSet;
use crate::clock::Time;
use crate::id::CommitAttempt;

#[derive(Default)]
pub(super) struct Stripe {
    pub(super) fenced: bool,
    /// Numbers below this are over.
    pub(super) floor: u64,
    /// Raised with every tombstone; a removal must name the one it saw.
    generation: u64,
    /// No attempt runs out before this: until then a look for room finds none. `None` if there is
    /// no attempt.
    pub(super) expires_from: Option<Time>,
    /// How many of `commits` are tombstones.
    pub(super) tombstones: usize,
    pub(super) commits: HashMap<u64, Commit, foldhash::fast::FixedState>,
}

pub(super) enum Commit {
    InFlight {
        /// A caller was told that it is committing: nothing is admitted or extended any more, and a
        /// tombstone follows (C4).
        closing: bool,
        attempts: SmallVec<[Attempt; 1]>,
    },
    Tombstone {
        generation: u64,
        durable: bool,
    },
}

pub(super) struct Attempt {
    pub(super) name: CommitAttempt,
    /// The end of the raw window that was answered.
    pub(super) window_ends: Time,
    /// hi(commit_before) after its admission: then it counts no more (C2).
    pub(super) until: Time,
    /// Removed when the attempt is dropped.
    pub(super) _pins: PinSet,
}

impl Stripe {
    /// True if there is no room for another transaction, also after those that have run out by now
    /// made theirs.
    pub(super) fn full(
        &mut self,
        most: usize,
        now: Time,
        old: &mut SmallVec<[Attempt; 1]>,
    ) -> bool {
        if self.commits.len() >= most {
            self.expire(now, old);
        }
        self.commits.len() >= most
    }

    /// Takes out the attempts that have run out, if any can have.
    pub(super) fn expire(&mut self, now: Time, old: &mut SmallVec<[Attempt; 1]>) {
        if self.expires_from.is_none_or(|from| from > now) {
            return;
        }
        let mut next: Option<Time> = None;
        let mut ended = SmallVec::<[u64; 8]>::new();
        for (counter, commit) in &mut self.commits {
            let Commit::InFlight { attempts, .. } = commit else { continue };
            expire(attempts, now, old);
            if attempts.is_empty() {
                ended.push(*counter);
            }
            for attempt in &*attempts {
                next = Some(next.map_or(attempt.until, |next| next.min(attempt.until)));
            }
        }
        for counter in ended {
            self.last_attempt_ended(counter);
        }
        self.expires_from = next;
    }

    /// The same for one transaction.
    pub(super) fn expire_one(&mut self, counter: u64, now: Time, old: &mut SmallVec<[Attempt; 1]>) {
        let Some(Commit::InFlight { attempts, .. }) = self.commits.get_mut(&counter) else {
            return;
        };
        expire(attempts, now, old);
        if attempts.is_empty() {
            self.last_attempt_ended(counter);
        }
    }

    /// Forgets a transaction without attempts, or makes a tombstone of it if a caller was told that
    /// it was committing (C4). It is written at the next `cannot_commit`: until then no caller was
    /// told that the transaction can never commit.
    pub(super) fn last_attempt_ended(&mut self, counter: u64) {
        let generation = self.next_generation();
        let Entry::Occupied(mut entry) = self.commits.entry(counter) else { return };
        if matches!(entry.get(), Commit::InFlight { closing: true, .. }) {
            entry.insert(Commit::Tombstone { generation, durable: false });
            self.tombstones += 1;
        } else {
            entry.remove();
        }
    }

    /// Saturates: see [`CommitControl::remove`].
    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation = self.generation.saturating_add(1);
        self.generation
    }
}

fn expire(attempts: &mut SmallVec<[Attempt; 1]>, now: Time, into: &mut SmallVec<[Attempt; 1]>) {
    let mut at = 0;
    while at < attempts.len() {
        if attempts[at].until <= now {
            into.push(attempts.swap_remove(at));
        } else {
            at += 1;
        }
    }
}
