//! Commit admission (C1 to C4): pins on binds, and each origin's commits in flight and tombstones. Pure: takes time as an argument.
//!
//! # States of a transaction, under its stripe
//! absent → *committing* (one or more attempts, each with its pins) → absent; or absent → *tombstoned*, until its origin confirms
//! its end. A transaction is never both: a tombstone is refused while an attempt is in flight (C4), an attempt is refused by a tombstone.
//!
//! # Invariants
//! - An attempt is registered only under its transaction's stripe, after that stripe was seen neither fenced nor the transaction
//!   tombstoned (C3). [`CommitControl::fence`] takes every stripe, so none is registered after it returned.
//! - A pin is counted from before its commit is registered until that registration is dropped; each is dropped exactly once,
//!   whether by a finish, an expiry or a refused admission.
//! - Nothing here is created by a lookup: the stripes exist from the origin's registration (C3).
//!
//! # Locks
//! One mutex per stripe, taken after no other and held over none: pins are counted in atomics.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitAttempt, TxnId};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
const STRIPES: usize = 64;
#[cfg(loom)]
const STRIPES: usize = 2;

/// Most attempts of one transaction that may be in flight at one time.
const ATTEMPTS_MAX: usize = 64;

/// What holds a bind in place: the commits in flight on it (C2).
#[derive(Debug)]
pub struct Pins {
    count: AtomicU64,
    /// Nanoseconds of the clock at which the last pin must have run out.
    until: AtomicU64,
}

impl Default for Pins {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), until: AtomicU64::new(0) }
    }
}

impl Pins {
    /// True while a commit is, or may be, in flight on the bind. Exact once no more pins can come.
    pub fn held(&self, now: Time) -> bool {
        // ORDERING: Acquire, the partner of the releases in `Pin`. New pins are kept out by the shard's lock, see `state`.
        self.count.load(Ordering::Acquire) > 0 && self.until.load(Ordering::Acquire) > nanos(now)
    }

    /// When the last pin must have run out.
    pub fn until(&self) -> Time {
        Time::from_origin(Duration::from_nanos(self.until.load(Ordering::Acquire)))
    }
}

/// One pin. Dropping it takes it off.
#[derive(Debug)]
pub struct Pin(Arc<Pins>);

impl Pin {
    /// Pins the bind at least until `until`. To be called under the lock of the bind's shard, after the bind was compared (C3).
    pub fn new(pins: &Arc<Pins>, until: Time) -> Self {
        pins.until.fetch_max(nanos(until), Ordering::AcqRel);
        pins.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(pins))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The pins of one commit.
pub type PinSet = SmallVec<[Pin; 4]>;

fn nanos(time: Time) -> u64 {
    u64::try_from(time.since_origin().as_nanos()).unwrap_or(u64::MAX)
}

/// What [`CommitControl::tombstone`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marked {
    /// A commit of the transaction is in flight: nothing was marked (C4).
    Committing,
    /// The transaction is marked, and the mark is durable already.
    Durable,
    /// The transaction is marked in memory, under this generation. Write it, then call [`CommitControl::durable`].
    ToWrite(u64),
    /// The origin is fenced: none of its transactions commits.
    Fenced,
    /// So many transactions of the origin are marked, of clients that fell silent, that there is no room for more: nothing was marked. Fence
    /// the origin, which says of all of them what their marks say.
    Crowded,
}

/// The control state of one origin's commits. Created at its registration, never on a miss (C3).
pub struct CommitControl {
    stripes: Box<[Padded]>,
    per_stripe_max: usize,
}

#[repr(align(128))]
struct Padded(Mutex<Stripe>);

#[derive(Default)]
struct Stripe {
    fenced: bool,
    /// Raised with every mark; a removal must name the one it saw (spec J2, J3).
    generation: u64,
    /// No attempt runs out before this: until then a look for room finds none. `None` if there is no attempt.
    expires_from: Option<Time>,
    /// How many of `commits` are tombstones.
    tombstones: usize,
    commits: HashMap<u64, Commit, foldhash::fast::FixedState>,
}

enum Commit {
    InFlight(SmallVec<[Attempt; 1]>),
    Tombstone { generation: u64, durable: bool },
}

struct Attempt {
    name: CommitAttempt,
    /// hi(commit_before) after its admission: then it counts no more (C2).
    until: Time,
    /// Taken off when the attempt is dropped.
    _pins: PinSet,
}

impl CommitControl {
    /// The control state of a new origin, for at most `commits_max` transactions (rounded up to whole stripes).
    pub fn new(commits_max: usize) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Padded(Mutex::new(Stripe::default()))).collect(),
            per_stripe_max: commits_max.div_ceil(STRIPES).max(ATTEMPTS_MAX),
        }
    }

    /// Registers a commit whose binds are pinned (C3). A repeat of `attempt` replaces its pins and may extend its time (C1).
    ///
    /// Fails with `CannotCommit` if the origin is fenced or the transaction tombstoned, `ResourceExhausted` at the limit. The pins are
    /// taken off then.
    pub fn admit(&self, txn: TxnId, attempt: CommitAttempt, pins: PinSet, until: Time, now: Time) -> Result<()> {
        let mut stripe = self.stripe(txn);
        if stripe.fenced {
            return Err(fenced(txn));
        }
        // Dropped after the lock: expired and replaced attempts.
        let mut old = SmallVec::<[Attempt; 1]>::new();
        let full = stripe.full(self.per_stripe_max, now, &mut old);
        let new = Attempt { name: attempt, until, _pins: pins };
        stripe.expires_from = Some(stripe.expires_from.map_or(until, |from| from.min(until)));
        let answer = match stripe.commits.entry(txn.counter) {
            Entry::Vacant(_) if full => Err(exhausted(txn)),
            Entry::Vacant(entry) => {
                entry.insert(Commit::InFlight(SmallVec::from_buf([new])));
                Ok(())
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Commit::Tombstone { .. } => Err(tombstoned(txn)),
                Commit::InFlight(attempts) => {
                    expire(attempts, now, &mut old);
                    match attempts.iter().position(|known| known.name == attempt) {
                        Some(at) => {
                            let known = &mut attempts[at];
                            // The earlier answer may still be used.
                            let until = until.max(known.until);
                            old.push(std::mem::replace(known, Attempt { until, ..new }));
                            Ok(())
                        }
                        None if attempts.len() >= ATTEMPTS_MAX => Err(exhausted(txn)),
                        None => {
                            attempts.push(new);
                            Ok(())
                        }
                    }
                }
            },
        };
        drop(stripe);
        answer
    }

    /// Ends an attempt. Idempotent; one that is unknown changes nothing. Other attempts of the transaction go on (spec J8).
    pub fn finish(&self, txn: TxnId, attempt: CommitAttempt) {
        let mut stripe = self.stripe(txn);
        let mut ended = None;
        if let Entry::Occupied(mut entry) = stripe.commits.entry(txn.counter)
            && let Commit::InFlight(attempts) = entry.get_mut()
        {
            if let Some(at) = attempts.iter().position(|known| known.name == attempt) {
                ended = Some(attempts.swap_remove(at));
            }
            if attempts.is_empty() {
                entry.remove();
            }
        }
        drop(stripe);
        drop(ended);
    }

    /// Marks a transaction so that it never commits, unless a commit of it is in flight (C4). `write` is called under the stripe's lock
    /// with the outcome, so that the order of writes is the order of marks.
    pub fn tombstone<R>(&self, txn: TxnId, now: Time, write: impl FnOnce(Marked) -> R) -> Result<R> {
        let mut stripe = self.stripe(txn);
        let mut old = SmallVec::<[Attempt; 1]>::new();
        let mut empty = false;
        if let Some(Commit::InFlight(attempts)) = stripe.commits.get_mut(&txn.counter) {
            expire(attempts, now, &mut old);
            if !attempts.is_empty() {
                return Ok(write(Marked::Committing));
            }
            empty = true;
        }
        if empty {
            stripe.commits.remove(&txn.counter);
        }
        if stripe.fenced {
            return Ok(write(Marked::Fenced));
        }
        let full = stripe.full(self.per_stripe_max, now, &mut old);
        // Commits in flight make room by themselves, marks do not.
        let crowded = full && stripe.tombstones * 2 >= stripe.commits.len();
        let generation = stripe.next_generation();
        let marked = match stripe.commits.entry(txn.counter) {
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Commit::Tombstone { generation: known, durable } => {
                    *known = generation;
                    if *durable { Marked::Durable } else { Marked::ToWrite(generation) }
                }
                Commit::InFlight(_) => unreachable!("an attempt in flight was answered above, under the same lock"),
            },
            Entry::Vacant(_) if crowded => Marked::Crowded,
            Entry::Vacant(_) if full => return Err(exhausted(txn)),
            Entry::Vacant(entry) => {
                entry.insert(Commit::Tombstone { generation, durable: false });
                stripe.tombstones += 1;
                Marked::ToWrite(generation)
            }
        };
        let answer = write(marked);
        drop(stripe);
        Ok(answer)
    }

    /// The write of a mark landed. A mark that was taken off, made again, or whose removal began meanwhile, stays as it is; one at the
    /// last generation never counts as written (spec J9: it is written again each time).
    pub fn durable(&self, txn: TxnId, written: u64) {
        if let Some(Commit::Tombstone { generation, durable }) = self.stripe(txn).commits.get_mut(&txn.counter)
            && *generation == written
            && written != u64::MAX
        {
            *durable = true;
        }
    }

    /// The origin said that the transaction has ended: begins to remove its mark, if it has one. `write` is called under the stripe's
    /// lock with the generation that [`remove`](Self::remove) must name. From here on a new mark is written again.
    pub fn ended<R>(&self, txn: TxnId, write: impl FnOnce(u64) -> R) -> Option<R> {
        let mut stripe = self.stripe(txn);
        let raised = stripe.next_generation();
        match stripe.commits.get_mut(&txn.counter) {
            Some(Commit::Tombstone { generation, durable }) => {
                // A write of the mark that is still under way lands before the removal and must not make it look durable.
                *generation = raised;
                *durable = false;
                Some(write(raised))
            }
            _ => None,
        }
    }

    /// Takes a mark off, unless it was made again after `generation` (spec J2, J3). At the last generation nothing is taken off: it can
    /// no longer be told apart (spec J9: fail closed).
    pub fn remove(&self, txn: TxnId, seen: u64) {
        let mut stripe = self.stripe(txn);
        if let Entry::Occupied(entry) = stripe.commits.entry(txn.counter)
            && matches!(entry.get(), Commit::Tombstone { generation, .. } if *generation == seen && seen != u64::MAX)
        {
            entry.remove();
            stripe.tombstones -= 1;
        }
    }

    /// Fences the origin: once this returned, none of its transactions is admitted any more (C3). Commits in flight go on.
    pub fn fence(&self) {
        for stripe in &self.stripes {
            stripe.0.lock().fenced = true;
        }
    }

    /// Takes the marks of a fenced origin off, and answers of which transactions: once the fence is durable, it says of each what its mark
    /// said (C4).
    pub fn take_marks(&self) -> Vec<u64> {
        let mut marked = Vec::new();
        for stripe in &self.stripes {
            let mut stripe = stripe.0.lock();
            stripe.commits.retain(|counter, commit| match commit {
                Commit::InFlight(_) => true,
                Commit::Tombstone { .. } => {
                    marked.push(*counter);
                    false
                }
            });
            stripe.tombstones = 0;
        }
        marked
    }

    /// When the last commit in flight must have run out, if there is one.
    pub fn in_flight_until(&self, now: Time) -> Option<Time> {
        let mut last = None;
        for stripe in &self.stripes {
            for commit in stripe.0.lock().commits.values() {
                if let Commit::InFlight(attempts) = commit {
                    last = last.max(attempts.iter().map(|attempt| attempt.until).filter(|until| *until > now).max());
                }
            }
        }
        last
    }

    /// Forgets the attempts that have run out, in the `turn`th stripe only: a sweep visits one stripe at a time.
    pub fn sweep(&self, turn: usize, now: Time) {
        // Dropped after the lock.
        let mut old = SmallVec::<[Attempt; 1]>::new();
        self.stripes[turn % self.stripes.len()].0.lock().expire(now, &mut old);
    }

    /// Number of stripes, for [`sweep`](Self::sweep).
    pub fn stripes(&self) -> usize {
        self.stripes.len()
    }

    /// Transactions that are committing or marked: for tests and operators.
    pub fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.0.lock().commits.len()).sum()
    }

    /// True if no transaction is committing or marked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn stripe(&self, txn: TxnId) -> impl std::ops::DerefMut<Target = Stripe> {
        // The lowest bit says whether the transaction validates, and all here do.
        self.stripes[(txn.counter >> 1) as usize % self.stripes.len()].0.lock()
    }
}

impl Stripe {
    /// True if there is no room for another transaction, also after those that have run out by now made theirs.
    fn full(&mut self, most: usize, now: Time, old: &mut SmallVec<[Attempt; 1]>) -> bool {
        if self.commits.len() >= most {
            self.expire(now, old);
        }
        self.commits.len() >= most
    }

    /// Takes out the attempts that have run out, if any can have.
    fn expire(&mut self, now: Time, old: &mut SmallVec<[Attempt; 1]>) {
        if self.expires_from.is_none_or(|from| from > now) {
            return;
        }
        let mut next: Option<Time> = None;
        self.commits.retain(|_, commit| match commit {
            Commit::Tombstone { .. } => true,
            Commit::InFlight(attempts) => {
                expire(attempts, now, old);
                for attempt in &*attempts {
                    next = Some(next.map_or(attempt.until, |next| next.min(attempt.until)));
                }
                !attempts.is_empty()
            }
        });
        self.expires_from = next;
    }

    /// Saturates: see [`CommitControl::remove`].
    fn next_generation(&mut self) -> u64 {
        self.generation = self.generation.saturating_add(1);
        self.generation
    }
}

impl fmt::Debug for CommitControl {
    /// Takes no lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitControl").field("stripes", &self.stripes.len()).finish_non_exhaustive()
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

fn fenced(txn: TxnId) -> Error {
    Error::new(ErrorKind::CannotCommit, "the transaction's origin is fenced: start a new transaction").with("txn", txn)
}

fn tombstoned(txn: TxnId) -> Error {
    Error::new(ErrorKind::CannotCommit, "the transaction was made unable to commit: start a new one").with("txn", txn)
}

fn exhausted(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "too many commits of one origin are in flight: try again, or raise commits_max",
    )
    .with("txn", txn)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::ServiceId;

    const ORIGIN: ServiceId = ServiceId::new(1 << 32 | 1);

    /// The `n`th transaction of one and the same stripe.
    fn txn(n: usize) -> TxnId {
        TxnId::new(ORIGIN, (n * STRIPES) as u64, true)
    }

    fn at(secs: u64) -> Time {
        Time::from_origin(Duration::from_secs(secs))
    }

    fn attempt() -> CommitAttempt {
        CommitAttempt::new(1)
    }

    #[test]
    fn a_full_stripe_makes_room_of_the_attempts_that_have_run_out() {
        for tombstone in [false, true] {
            let control = CommitControl::new(1);
            let most = control.per_stripe_max;
            for n in 0..most {
                let until = if n == 7 { at(20) } else { at(30) };
                control.admit(txn(n), attempt(), PinSet::new(), until, at(10)).expect("room");
            }
            let next = |now| match tombstone {
                true => control.tombstone(txn(most), now, |_| ()),
                false => control.admit(txn(most), attempt(), PinSet::new(), at(60), now),
            };
            assert_eq!(next(at(19)).expect_err("all are in flight").kind(), ErrorKind::ResourceExhausted);
            next(at(20)).expect("one has run out, and nobody has swept");
            assert_eq!(control.len(), most);
        }
    }
}
