//! Commit admission (C1 to C4): pins on binds, and each origin's commits in flight and tombstones.
//! Pure: takes time as an argument.
//!
//! # States of a transaction, under its stripe
//! ```text
//!           admit                    tombstone
//!  absent ---------> committing ------------------> closing
//!    |    <---------                                   |
//!    |     last attempt ends         last attempt ends |
//!    | tombstone                                       v
//!    +------------------------------------------> tombstoned ---> forgotten
//!                                                       below the floor, or the origin is fenced
//! ```
//! - *committing*: one or more attempts, each with its pins. New ones are admitted, known ones
//!   extended.
//! - *closing*: a caller asked for a tombstone and was told "committing". The attempts that were
//!   admitted stand; nothing is extended and nothing is admitted (C4). So the caller waits for a
//!   time that is bounded.
//! - *tombstoned*: refused for ever. A tombstone goes only when something else refuses the
//!   transaction for ever: the floor of its origin, or the origin's fence. The end of the
//!   transaction, as its origin tells it, is no reason: see the schedules.
//!
//! # Who is admitted
//! Only a transaction that its origin has begun and not ended. An origin in this process says so
//! itself, exactly ([`OriginTxns`]). Any other tells a [`TxnRange`] from time to time: below
//! `floor` all are over, from `end` on none has begun. Between them only a tombstone is known to be
//! over. Until the origin has reported (a new leader has just taken over) only the floor
//! counts that the store knows.
//!
//! # Schedules
//! One: the origin's word takes no tombstone away that another asked for. Data D asks for T1 to be
//! fenced, its client leaves.
//! 1. D: `cannot_commit(T1)` → tombstoned. D hands T1's work to another.
//! 2. The client says goodbye; the origin asks for `cannot_commit(T1)` too, releases the row, and
//!    T1 is over.
//! 3. T3 gets the row. A message of T1 that was on its way arrives: `begin_commit(T1)`.
//!
//! T1 is refused in step 3: by its tombstone as long as an older transaction keeps the floor below
//! it, by the floor afterwards.
//!
//! Two: a silent client cannot keep its locks by extending. Its session has lapsed, and T1 has a
//! commit in flight.
//! 1. Origin: `cannot_commit(T1)` → committing, and T1 is closing.
//! 2. Client: `begin_commit(T1, the same attempt)` → the rest of its time, no more;
//!    another attempt → refused.
//! 3. At hi(commit_before) after the last admission the attempt ends, and T1 is tombstoned in
//!    memory at that moment.
//! 4. Origin: `cannot_commit(T1)` → written, then answered as tombstoned. Its locks are released.
//!
//! Three: a leader that follows knows no attempts (C2). It never says "committing" of a T1 that is
//! in flight under the leader before, except as L1 says; a `begin_commit` of T1 there is one of a
//! transaction that its origin holds alive.
//!
//! # Invariants
//! - An attempt is registered only under its transaction's stripe, after that stripe was seen
//!   neither fenced nor the transaction tombstoned, closing or below the floor (C3).
//!   [`CommitControl::fence`] takes every stripe, so none is registered after it returned;
//!   [`CommitControl::raise_floor`] too.
//! - A pin is counted from before its commit is registered until that registration is dropped; each
//!   is dropped exactly once, whether by a finish, an expiry or a refused admission.
//! - A tombstone leaves the store only together with, or after, a floor or a fence that refuses the
//!   same transaction.
//! - Nothing here is created by a lookup: the stripes exist from the origin's registration (C3).
//!
//! # Locks
//! One mutex per stripe, taken after no other and held over none: pins are counted in atomics.

use std::fmt;
use std::time::Duration;

use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::allocator::state::pins::PinSet;
use crate::allocator::state::stripe::{Attempt, Commit, Stripe};
use crate::clock::{Time, hi};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitAttempt, TxnId};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

pub use super::origin::{OriginTxns, TxnLife, TxnRange};

#[cfg(not(loom))]
const STRIPES: usize = 64;
#[cfg(loom)]
const STRIPES: usize = 2;

/// Most attempts of one transaction that may be in flight at one time.
const ATTEMPTS_MAX: usize = 64;

/// What [`CommitControl::tombstone`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tombstoned {
    /// A commit of the transaction is in flight. There is no tombstone, and from here on nothing is
    /// admitted or extended (C4).
    Committing,
    /// The transaction is below the floor of its origin, which is durable and keeps it from
    /// committing for ever.
    Over,
    /// The tombstone is durable already.
    Durable,
    /// The tombstone is in memory, under this generation. Write it, then call
    /// [`CommitControl::durable`].
    ToWrite(u64),
    /// The origin is fenced: none of its transactions commits.
    Fenced,
    /// The origin has so many tombstones, for clients that fell silent, that there is no room for
    /// more. Fence the origin, which says the same of all its transactions.
    Full,
}

/// The control state of one origin's commits. Created at its registration, never on a miss (C3).
pub(crate) struct CommitControl {
    stripes: Box<[Padded]>,
    per_stripe_max: usize,
    /// The floor that the origin has reported last. Each stripe has it too, so that it cannot rise
    /// between a check and an admission. Released by `raise_floor`, acquired by `floor`.
    floor: AtomicU64,
    /// None from here on has begun; `u64::MAX` as long as that is not known. Released by `observe`,
    /// acquired by `may_have_started`.
    end: AtomicU64,
    /// The floor that the store has. Never above `floor`. Released by `floor_stored`, acquired by
    /// `stored_floor`.
    stored_floor: AtomicU64,
    /// The floor up to which tombstones were removed. Only the sweep uses it: no partner.
    cleaned: AtomicU64,
}

#[repr(align(128))]
struct Padded(Mutex<Stripe>);

impl CommitControl {
    /// The control state of a new origin, for at most `commits_max` transactions (rounded up to
    /// whole stripes).
    pub(crate) fn new(commits_max: usize) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Padded(Mutex::new(Stripe::default()))).collect(),
            per_stripe_max: commits_max.div_ceil(STRIPES).max(ATTEMPTS_MAX),
            floor: AtomicU64::new(0),
            end: AtomicU64::new(u64::MAX),
            stored_floor: AtomicU64::new(0),
            cleaned: AtomicU64::new(0),
        }
    }

    /// Every validating transaction below this is over, and the store says so.
    pub(crate) fn stored_floor(&self) -> u64 {
        // ORDERING: Acquire, the partner of the release in `floor_stored`.
        self.stored_floor.load(Ordering::Acquire)
    }

    /// The store says that every validating transaction below `floor` is over.
    pub(crate) fn floor_stored(&self, floor: u64) {
        // ORDERING: Release, the partner of the acquire in `stored_floor`.
        self.stored_floor.fetch_max(floor, Ordering::AcqRel);
    }

    /// Every validating transaction below this is over, as far as the origin has reported.
    pub(crate) fn floor(&self) -> u64 {
        // ORDERING: Acquire, the partner of the release in `raise_floor`.
        self.floor.load(Ordering::Acquire)
    }

    /// True unless the origin has reported that it has not begun the transaction yet.
    pub(crate) fn may_have_started(&self, txn: TxnId) -> bool {
        // ORDERING: Acquire, the partner of the release in `observe`.
        txn.number() < self.end.load(Ordering::Acquire)
    }

    /// The origin tells which of its transactions can be alive. An earlier word that comes late
    /// changes nothing.
    pub(crate) fn observe(&self, range: TxnRange) {
        self.raise_floor(range.floor);
        let known = |end: u64| if end == u64::MAX { range.end } else { end.max(range.end) };
        // ORDERING: Release, the partner of the acquire in `may_have_started`. It fails only if the
        // closure says so.
        let _ = self.end.fetch_update(Ordering::AcqRel, Ordering::Acquire, |end| Some(known(end)));
    }

    /// Once this returned, no transaction with a number below `floor` is admitted any more. Commits
    /// in flight go on.
    pub(crate) fn raise_floor(&self, floor: u64) {
        // ORDERING: Release, the partner of the acquire in `floor`.
        if self.floor.fetch_max(floor, Ordering::AcqRel) >= floor {
            return;
        }
        for stripe in &self.stripes {
            let mut stripe = stripe.0.lock();
            stripe.floor = stripe.floor.max(floor);
        }
    }

    /// The tombstones below the floor, which are needed no more once that is durable: of each its
    /// transaction's counter and what [`remove`](Self::remove) must name; and the floor. Empty if
    /// it has not risen since the last [`cleaned`](Self::cleaned).
    pub(crate) fn below_floor(&self) -> (u64, Vec<(u64, u64)>) {
        let floor = self.floor();
        let mut found = Vec::new();
        // ORDERING: only the sweep reads and writes it.
        if self.cleaned.load(Ordering::Relaxed) < floor {
            for stripe in &self.stripes {
                let stripe = stripe.0.lock();
                if stripe.tombstones > 0 {
                    found.extend(stripe.commits.iter().filter_map(
                        |(counter, commit)| match commit {
                            Commit::Tombstone { generation, .. } if counter >> 1 < floor => {
                                Some((*counter, *generation))
                            }
                            _ => None,
                        },
                    ));
                }
            }
        }
        (floor, found)
    }

    /// The tombstones that [`below_floor`](Self::below_floor) found at this floor were removed.
    pub(crate) fn cleaned(&self, floor: u64) {
        self.cleaned.store(floor, Ordering::Relaxed);
    }

    /// Registers a commit whose binds are pinned, for `window` from `now` (C3), and returns how
    /// long it is admitted. A repeat of `attempt` replaces its pins and may extend its time (C1);
    /// once a caller was told that the transaction is committing, it returns what is left of its
    /// time (C4).
    ///
    /// Fails with `CannotCommit` if the origin is fenced, or the transaction tombstoned, closing or
    /// over; with `ResourceExhausted` at the limit. The pins are removed then.
    pub(crate) fn admit(
        &self,
        txn: TxnId,
        attempt: CommitAttempt,
        pins: PinSet,
        window: Duration,
        now: Time,
    ) -> Result<Duration> {
        let (window_ends, until) = (now + window, now + hi(window));
        let mut stripe = self.stripe(txn);
        if stripe.fenced {
            return Err(fenced(txn));
        }
        if txn.number() < stripe.floor {
            return Err(over(txn));
        }
        // Dropped after the lock: expired and replaced attempts.
        let mut old = SmallVec::<[Attempt; 1]>::new();
        let full = stripe.full(self.per_stripe_max, now, &mut old);
        let new = Attempt { name: attempt, window_ends, until, _pins: pins };
        stripe.expires_from = Some(stripe.expires_from.map_or(until, |from| from.min(until)));
        stripe.expire_one(txn.counter, now, &mut old);
        let response = match stripe.commits.entry(txn.counter) {
            Entry::Vacant(_) if full => Err(exhausted(txn)),
            Entry::Vacant(entry) => {
                entry.insert(Commit::InFlight {
                    closing: false,
                    attempts: SmallVec::from_buf([new]),
                });
                Ok(window)
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Commit::Tombstone { .. } => Err(tombstoned(txn)),
                Commit::InFlight { closing, attempts } => {
                    match attempts.iter().position(|known| known.name == attempt) {
                        Some(at) if *closing => match attempts[at].window_ends.remaining(now) {
                            Duration::ZERO => Err(tombstoned(txn)),
                            left => Ok(left.min(window)),
                        },
                        _ if *closing => Err(tombstoned(txn)),
                        Some(at) => {
                            let known = &mut attempts[at];
                            // The earlier response may still be used.
                            let (ends, until) =
                                (window_ends.max(known.window_ends), until.max(known.until));
                            old.push(std::mem::replace(
                                known,
                                Attempt { window_ends: ends, until, ..new },
                            ));
                            Ok(window)
                        }
                        None if attempts.len() >= ATTEMPTS_MAX => Err(exhausted(txn)),
                        None => {
                            attempts.push(new);
                            Ok(window)
                        }
                    }
                }
            },
        };
        drop(stripe);
        response
    }

    /// Ends an attempt. Idempotent; one that is unknown changes nothing. Other attempts of the
    /// transaction go on.
    pub(crate) fn finish(&self, txn: TxnId, attempt: CommitAttempt) {
        let mut stripe = self.stripe(txn);
        let mut ended = None;
        if let Some(Commit::InFlight { attempts, .. }) = stripe.commits.get_mut(&txn.counter) {
            if let Some(at) = attempts.iter().position(|known| known.name == attempt) {
                ended = Some(attempts.swap_remove(at));
            }
            if attempts.is_empty() {
                stripe.last_attempt_ended(txn.counter);
            }
        }
        drop(stripe);
        drop(ended);
    }

    /// Sets the tombstone of a transaction, unless a commit of it is in flight: then nothing more
    /// of it is admitted or extended, and it gets its tombstone when the last attempt ends (C4).
    /// `write` is called under the stripe's lock with the outcome, so that the order of writes is
    /// the order of tombstones.
    pub(crate) fn tombstone<R>(
        &self,
        txn: TxnId,
        now: Time,
        write: impl FnOnce(Tombstoned) -> R,
    ) -> Result<R> {
        // Dropped after the lock.
        let mut old = SmallVec::<[Attempt; 1]>::new();
        let mut stripe = self.stripe(txn);
        stripe.expire_one(txn.counter, now, &mut old);
        if let Some(Commit::InFlight { closing, .. }) = stripe.commits.get_mut(&txn.counter) {
            *closing = true;
            return Ok(write(Tombstoned::Committing));
        }
        if stripe.fenced {
            return Ok(write(Tombstoned::Fenced));
        }
        // Only what a later leader knows too may be answered: what is below the floor in memory
        // alone gets a tombstone.
        if txn.number() < self.stored_floor() {
            return Ok(write(Tombstoned::Over));
        }
        let full = stripe.full(self.per_stripe_max, now, &mut old);
        // Commits in flight make room by themselves, tombstones do not.
        let of_tombstones = full && stripe.tombstones * 2 >= stripe.commits.len();
        let generation = stripe.next_generation();
        let outcome = match stripe.commits.entry(txn.counter) {
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Commit::Tombstone { generation: known, durable } => {
                    *known = generation;
                    if *durable { Tombstoned::Durable } else { Tombstoned::ToWrite(generation) }
                }
                Commit::InFlight { .. } => {
                    unreachable!("an attempt in flight was answered above, under the same lock")
                }
            },
            Entry::Vacant(_) if of_tombstones => Tombstoned::Full,
            Entry::Vacant(_) if full => return Err(exhausted(txn)),
            Entry::Vacant(entry) => {
                entry.insert(Commit::Tombstone { generation, durable: false });
                stripe.tombstones += 1;
                Tombstoned::ToWrite(generation)
            }
        };
        let result = write(outcome);
        drop(stripe);
        Ok(result)
    }

    /// The write of a tombstone landed. A tombstone that was removed, made again, or whose
    /// removal began meanwhile, stays as it is; one at the last generation never counts as written
    /// (it is written again each time).
    pub(crate) fn durable(&self, txn: TxnId, written: u64) {
        if let Some(Commit::Tombstone { generation, durable }) =
            self.stripe(txn).commits.get_mut(&txn.counter)
            && *generation == written
            && written != u64::MAX
        {
            *durable = true;
        }
    }

    /// Takes a tombstone off, unless it was made again after `generation`. At the last generation
    /// nothing is removed: it can no longer be distinguished (fail closed).
    pub(crate) fn remove(&self, txn: TxnId, seen: u64) {
        let mut stripe = self.stripe(txn);
        if let Entry::Occupied(entry) = stripe.commits.entry(txn.counter)
            && let Commit::Tombstone { generation, .. } = entry.get()
            && *generation == seen
            && seen != u64::MAX
        {
            entry.remove();
            stripe.tombstones -= 1;
        }
    }

    /// Fences the origin: once this returned, none of its transactions is admitted any more (C3).
    /// Commits in flight go on.
    pub(crate) fn fence(&self) {
        for stripe in &self.stripes {
            stripe.0.lock().fenced = true;
        }
    }

    /// Takes the tombstones of a fenced origin off, that of its floor too, and returns the counters
    /// of their transactions: once the fence is durable, it says the same of each (C4).
    pub(crate) fn take_tombstones(&self) -> Vec<u64> {
        let mut taken = Vec::new();
        let floor = self.stored_floor.swap(0, Ordering::AcqRel);
        if floor > 0 {
            taken.push(floor << 1);
        }
        for stripe in &self.stripes {
            let mut stripe = stripe.0.lock();
            stripe.commits.retain(|counter, commit| match commit {
                Commit::InFlight { .. } => true,
                Commit::Tombstone { .. } => {
                    taken.push(*counter);
                    false
                }
            });
            stripe.tombstones = 0;
        }
        taken
    }

    /// When the last commit in flight must have run out, if there is one.
    pub(crate) fn in_flight_until(&self, now: Time) -> Option<Time> {
        let mut last = None;
        for stripe in &self.stripes {
            for commit in stripe.0.lock().commits.values() {
                if let Commit::InFlight { attempts, .. } = commit {
                    last = last.max(
                        attempts
                            .iter()
                            .map(|attempt| attempt.until)
                            .filter(|until| *until > now)
                            .max(),
                    );
                }
            }
        }
        last
    }

    /// Forgets the attempts that have run out, in the `turn`th stripe only: a sweep visits one
    /// stripe at a time.
    pub(crate) fn sweep(&self, turn: usize, now: Time) {
        // Dropped after the lock.
        let mut old = SmallVec::<[Attempt; 1]>::new();
        self.stripes[turn % self.stripes.len()].0.lock().expire(now, &mut old);
    }

    /// Transactions that are committing or tombstoned: for tests and operators.
    pub(crate) fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.0.lock().commits.len()).sum()
    }

    fn stripe(&self, txn: TxnId) -> impl std::ops::DerefMut<Target = Stripe> {
        self.stripes[txn.number() as usize % self.stripes.len()].0.lock()
    }
}

impl fmt::Debug for CommitControl {
    /// Takes no lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitControl")
            .field("stripes", &self.stripes.len())
            .finish_non_exhaustive()
    }
}

fn fenced(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::CannotCommit,
        "the transaction's origin is fenced: start a new transaction",
    )
    .with("txn", txn)
}

fn over(txn: TxnId) -> Error {
    Error::new(ErrorKind::CannotCommit, "the transaction has ended: start a new one")
        .with("txn", txn)
}

fn tombstoned(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::CannotCommit,
        "the transaction was made unable to commit: start a new one",
    )
    .with("txn", txn)
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
                let window = Duration::from_secs(if n == 7 { 10 } else { 20 });
                control.admit(txn(n), attempt(), PinSet::new(), window, at(10)).expect("room");
            }
            let next = |now| match tombstone {
                true => control.tombstone(txn(most), now, |_| ()),
                false => control
                    .admit(txn(most), attempt(), PinSet::new(), Duration::from_secs(9), now)
                    .map(drop),
            };
            assert_eq!(
                next(at(20)).expect_err("all are in flight").kind(),
                ErrorKind::ResourceExhausted
            );
            next(at(21)).expect("one has run out, and no sweep came by");
            assert_eq!(control.len(), most);
        }
    }
}
