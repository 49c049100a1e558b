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
//! - *closing*: somebody asked for a tombstone and was answered "committing". What was admitted
//!   stands; nothing is extended and nothing is admitted (C4). So whoever asked waits for a time
//!   that is bounded.
//! - *tombstoned*: refused for ever. A tombstone goes only when something else refuses the
//!   transaction for ever: the floor of its origin, or the origin's fence. The end of the
//!   transaction, as its origin tells it, is no reason: see the schedules.
//!
//! # Who is admitted
//! Only a transaction that its origin has begun and not ended. An origin in this process says so
//! itself, exactly ([`OriginTxns`]). Any other tells a [`TxnRange`] from time to time: below
//! `floor` all are over, from `end` on none has begun. Between them only a tombstone is known to be
//! over. Until the origin has told anything (a new leader has just taken over) only the floor
//! counts that the store knows.
//!
//! # Schedules
//! One: the origin's word takes nobody else's tombstone away. Data D asks for T1 to be fenced, its
//! client leaves.
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
//! 2. Client: `begin_commit(T1, the same attempt)` → the rest of what it was given, no more;
//!    another attempt → refused.
//! 3. At hi(commit_before) after the last admission the attempt ends, and T1 is tombstoned in
//!    memory at that moment.
//! 4. Origin: `cannot_commit(T1)` → written, then answered as tombstoned. Its locks are released.
//!
//! Three: a leader that follows knows no attempts (C2). It answers "committing" to nobody who asks
//! about T1 in flight under the leader before, except as L1 says; a `begin_commit` of T1 there is
//! one of a transaction that its origin holds alive.
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
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use crate::clock::{Time, hi};
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
        // ORDERING: Acquire, the partner of the releases in `Pin`. New pins are kept out by the
        // shard's lock, see `state`.
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
    /// Pins the bind at least until `until`. To be called under the lock of the bind's shard, after
    /// the bind was compared (C3).
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

/// Which transactions of an origin can be alive, as the origin tells it: a superset of those that
/// are.
///
/// Both ends only ever rise. They are numbers as in [`TxnId::number`]; transactions that do not
/// validate do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxnRange {
    /// Every validating transaction below this is over.
    pub floor: u64,
    /// None from here on has begun. The origin tells it ahead.
    pub end: u64,
}

/// What became of a validating transaction, as its origin knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxnLife {
    /// Nobody has it yet.
    NotBegun,
    /// It is alive, or being ended.
    Alive,
    /// It has ended, for ever.
    Over,
}

/// An origin in the same process, which knows of each of its validating transactions whether it is
/// alive.
pub trait OriginTxns: fmt::Debug + Send + Sync + 'static {
    /// What became of the validating transaction with this [number](TxnId::number). Must not block.
    fn life(&self, number: u64) -> TxnLife;
}

/// What [`CommitControl::tombstone`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marked {
    /// A commit of the transaction is in flight. Nothing is marked, and from here on nothing is
    /// admitted or extended (C4).
    Committing,
    /// The transaction is below the floor of its origin, which is durable and keeps it from
    /// committing for ever.
    Over,
    /// The transaction is marked, and the mark is durable already.
    Durable,
    /// The transaction is marked in memory, under this generation. Write it, then call
    /// [`CommitControl::durable`].
    ToWrite(u64),
    /// The origin is fenced: none of its transactions commits.
    Fenced,
    /// So many transactions of the origin are marked, of clients that fell silent, that there is no
    /// room for more: nothing was marked. Fence the origin, which says of all of them what their
    /// marks say.
    Full,
}

/// The control state of one origin's commits. Created at its registration, never on a miss (C3).
pub struct CommitControl {
    stripes: Box<[Padded]>,
    per_stripe_max: usize,
    /// What the origin has told last. Each stripe has it too, so that it cannot rise between a look
    /// and an admission.
    floor: AtomicU64,
    /// None from here on has begun; `u64::MAX` as long as that is not known.
    end: AtomicU64,
    /// The floor that the store has. Never above `floor`.
    stored_floor: AtomicU64,
    /// The floor up to which tombstones were taken off.
    cleaned: AtomicU64,
}

#[repr(align(128))]
struct Padded(Mutex<Stripe>);

#[derive(Default)]
struct Stripe {
    fenced: bool,
    /// Numbers below this are over.
    floor: u64,
    /// Raised with every mark; a removal must name the one it saw.
    generation: u64,
    /// No attempt runs out before this: until then a look for room finds none. `None` if there is
    /// no attempt.
    expires_from: Option<Time>,
    /// How many of `commits` are tombstones.
    tombstones: usize,
    commits: HashMap<u64, Commit, foldhash::fast::FixedState>,
}

enum Commit {
    InFlight {
        /// Somebody was told of it: nothing is admitted or extended any more, and a tombstone
        /// follows (C4).
        closing: bool,
        attempts: SmallVec<[Attempt; 1]>,
    },
    Tombstone {
        generation: u64,
        durable: bool,
    },
}

struct Attempt {
    name: CommitAttempt,
    /// The end of the raw window that was answered.
    window_ends: Time,
    /// hi(commit_before) after its admission: then it counts no more (C2).
    until: Time,
    /// Taken off when the attempt is dropped.
    _pins: PinSet,
}

impl CommitControl {
    /// The control state of a new origin, for at most `commits_max` transactions (rounded up to
    /// whole stripes).
    pub fn new(commits_max: usize) -> Self {
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
    pub fn stored_floor(&self) -> u64 {
        // ORDERING: Acquire, the partner of the release in `floor_stored`.
        self.stored_floor.load(Ordering::Acquire)
    }

    /// The store says that every validating transaction below `floor` is over.
    pub fn floor_stored(&self, floor: u64) {
        // ORDERING: Release, the partner of the acquire in `stored_floor`.
        self.stored_floor.fetch_max(floor, Ordering::AcqRel);
    }

    /// Every validating transaction below this is over, as far as the origin has told.
    pub fn floor(&self) -> u64 {
        // ORDERING: Acquire, the partner of the release in `raise_floor`.
        self.floor.load(Ordering::Acquire)
    }

    /// True unless the origin has told that it has not begun the transaction yet.
    pub fn may_have_begun(&self, txn: TxnId) -> bool {
        // ORDERING: Acquire, the partner of the release in `observe`.
        txn.number() < self.end.load(Ordering::Acquire)
    }

    /// The origin tells which of its transactions can be alive. An earlier word that comes late
    /// changes nothing.
    pub fn observe(&self, range: TxnRange) {
        self.raise_floor(range.floor);
        let known = |end: u64| if end == u64::MAX { range.end } else { end.max(range.end) };
        // ORDERING: Release, the partner of the acquire in `may_have_begun`. It fails only if the
        // closure says so.
        let _ = self.end.fetch_update(Ordering::AcqRel, Ordering::Acquire, |end| Some(known(end)));
    }

    /// Once this returned, no transaction with a number below `floor` is admitted any more. Commits
    /// in flight go on.
    pub fn raise_floor(&self, floor: u64) {
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
    pub fn below_floor(&self) -> (u64, Vec<(u64, u64)>) {
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

    /// What [`below_floor`](Self::below_floor) found at this floor was taken off.
    pub fn cleaned(&self, floor: u64) {
        self.cleaned.store(floor, Ordering::Relaxed);
    }

    /// Registers a commit whose binds are pinned, for `window` from `now` (C3), and answers how
    /// long it is admitted. A repeat of `attempt` replaces its pins and may extend its time (C1);
    /// once somebody was told that the transaction is committing, it is answered what is left of
    /// its time (C4).
    ///
    /// Fails with `CannotCommit` if the origin is fenced, or the transaction tombstoned, closing or
    /// over; with `ResourceExhausted` at the limit. The pins are taken off then.
    pub fn admit(
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
        let answer = match stripe.commits.entry(txn.counter) {
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
                            // The earlier answer may still be used.
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
        answer
    }

    /// Ends an attempt. Idempotent; one that is unknown changes nothing. Other attempts of the
    /// transaction go on.
    pub fn finish(&self, txn: TxnId, attempt: CommitAttempt) {
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

    /// Marks a transaction so that it never commits, unless a commit of it is in flight: then
    /// nothing more of it is admitted or extended, and it is marked when the last attempt ends
    /// (C4). `write` is called under the stripe's lock with the outcome, so that the order of
    /// writes is the order of marks.
    pub fn tombstone<R>(
        &self,
        txn: TxnId,
        now: Time,
        write: impl FnOnce(Marked) -> R,
    ) -> Result<R> {
        // Dropped after the lock.
        let mut old = SmallVec::<[Attempt; 1]>::new();
        let mut stripe = self.stripe(txn);
        stripe.expire_one(txn.counter, now, &mut old);
        if let Some(Commit::InFlight { closing, .. }) = stripe.commits.get_mut(&txn.counter) {
            *closing = true;
            return Ok(write(Marked::Committing));
        }
        if stripe.fenced {
            return Ok(write(Marked::Fenced));
        }
        // Only what a later leader knows too may be answered: what is below the floor in memory
        // alone is marked.
        if txn.number() < self.stored_floor() {
            return Ok(write(Marked::Over));
        }
        let full = stripe.full(self.per_stripe_max, now, &mut old);
        // Commits in flight make room by themselves, marks do not.
        let of_tombstones = full && stripe.tombstones * 2 >= stripe.commits.len();
        let generation = stripe.next_generation();
        let marked = match stripe.commits.entry(txn.counter) {
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Commit::Tombstone { generation: known, durable } => {
                    *known = generation;
                    if *durable { Marked::Durable } else { Marked::ToWrite(generation) }
                }
                Commit::InFlight { .. } => {
                    unreachable!("an attempt in flight was answered above, under the same lock")
                }
            },
            Entry::Vacant(_) if of_tombstones => Marked::Full,
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

    /// The write of a mark landed. A mark that was taken off, made again, or whose removal began
    /// meanwhile, stays as it is; one at the last generation never counts as written (it is written
    /// again each time).
    pub fn durable(&self, txn: TxnId, written: u64) {
        if let Some(Commit::Tombstone { generation, durable }) =
            self.stripe(txn).commits.get_mut(&txn.counter)
            && *generation == written
            && written != u64::MAX
        {
            *durable = true;
        }
    }

    /// Takes a mark off, unless it was made again after `generation`. At the last generation
    /// nothing is taken off: it can no longer be told apart (fail closed).
    pub fn remove(&self, txn: TxnId, seen: u64) {
        let mut stripe = self.stripe(txn);
        if let Entry::Occupied(entry) = stripe.commits.entry(txn.counter)
            && matches!(entry.get(), Commit::Tombstone { generation, .. } if *generation == seen && seen != u64::MAX)
        {
            entry.remove();
            stripe.tombstones -= 1;
        }
    }

    /// Fences the origin: once this returned, none of its transactions is admitted any more (C3).
    /// Commits in flight go on.
    pub fn fence(&self) {
        for stripe in &self.stripes {
            stripe.0.lock().fenced = true;
        }
    }

    /// Takes the marks of a fenced origin off, that of its floor too, and answers of which
    /// transactions: once the fence is durable, it says of each what its mark said (C4).
    pub fn take_marks(&self) -> Vec<u64> {
        let mut marked = Vec::new();
        let floor = self.stored_floor.swap(0, Ordering::AcqRel);
        if floor > 0 {
            marked.push(floor << 1);
        }
        for stripe in &self.stripes {
            let mut stripe = stripe.0.lock();
            stripe.commits.retain(|counter, commit| match commit {
                Commit::InFlight { .. } => true,
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
        self.stripes[txn.number() as usize % self.stripes.len()].0.lock()
    }
}

impl Stripe {
    /// True if there is no room for another transaction, also after those that have run out by now
    /// made theirs.
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
    fn expire_one(&mut self, counter: u64, now: Time, old: &mut SmallVec<[Attempt; 1]>) {
        let Some(Commit::InFlight { attempts, .. }) = self.commits.get_mut(&counter) else {
            return;
        };
        expire(attempts, now, old);
        if attempts.is_empty() {
            self.last_attempt_ended(counter);
        }
    }

    /// Forgets a transaction without attempts, or makes a tombstone of it if somebody was told that
    /// it was committing (C4). It is written when somebody asks: until then nobody was told that
    /// the transaction can never commit.
    fn last_attempt_ended(&mut self, counter: u64) {
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
    fn next_generation(&mut self) -> u64 {
        self.generation = self.generation.saturating_add(1);
        self.generation
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
            next(at(21)).expect("one has run out, and nobody has swept");
            assert_eq!(control.len(), most);
        }
    }
}
