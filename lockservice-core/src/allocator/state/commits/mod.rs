//! Commit admission (C1 to C4): pins on binds, and each origin's commits in flight and tombstones.
//! Pure: takes time as an argument.
//!
//! | file | noun |
//! |---|---|
//! | this file | [`CommitControl`]: its stripes, and what takes all of them |
//! | `stripe` | a part of the transactions, under one lock |
//! | `admit` | a commit begins and ends |
//! | `tombstones` | a transaction is made unable to commit |
//! | `floor`, `origin` | the transactions that are alive, as reported by their origin |
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
//! - *closing*: a caller requested a tombstone and got the response "committing". The admitted
//!   attempts stand; no attempt is extended or admitted any more (C4). So the caller waits for a
//!   time that is bounded.
//! - *tombstoned*: refused for ever. A tombstone goes only when something else refuses the
//!   transaction for ever: the floor of its origin, or the origin's fence. The end of the
//!   transaction, as reported by its origin, is no reason: see the schedules.
//!
//! # Who is admitted
//! Only a transaction that its origin has begun and not ended. An origin in this process is looked
//! up, and is exact ([`OriginTxns`]). Any other reports a [`TxnRange`] from time to time: below
//! `floor` all are over, from `end` on none has begun. Between them only a tombstone is known to be
//! over. Until the origin has reported (a new leader has just taken over) only the floor counts
//! that the store knows.
//!
//! # Schedules
//! One: the origin's report takes away no tombstone that another requested. Data D requests a fence
//! for T1, and the client of T1 leaves.
//! 1. D: `cannot_commit(T1)` → tombstoned. D hands T1's work to another.
//! 2. The client says goodbye. The origin calls `cannot_commit(T1)` too, releases the row, and T1
//!    is over.
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
//! 4. Origin: `cannot_commit(T1)` → written, then the response is *tombstoned*. Its locks are
//!    released.
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
//! - A pin is counted from before its commit is registered until that registration has ended; each
//!   is removed exactly once, whether by a finish, an expiry or a refused admission.
//! - A tombstone leaves the store only together with, or after, a floor or a fence that refuses the
//!   same transaction.
//! - Nothing here is created by a lookup: the stripes exist from the origin's registration (C3).
//!
//! # Locks
//! One mutex per stripe, taken after no other and held over none: pins are counted in atomics.

mod admit;
mod floor;
mod origin;
mod stripe;
mod tombstones;

use std::fmt;
use std::sync::Arc;

use crate::allocator::state::commits::stripe::{CommitPhase, Ended, Stripe};
use crate::allocator::state::slots::BindSlots;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::id::TxnId;
use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, Padded};

pub use self::origin::{OriginTxns, TxnLife, TxnRange};
pub(crate) use self::stripe::Window;
pub(crate) use self::tombstones::Tombstoned;

#[cfg(not(any(loom, shuttle)))]
const STRIPES: usize = 64;
#[cfg(any(loom, shuttle))]
const STRIPES: usize = 2;

/// Most attempts of one transaction that may be in flight at one time.
const ATTEMPTS_MAX: usize = 64;

/// The control state of one origin's commits. Created at its registration, never on a miss (C3).
pub(crate) struct CommitControl {
    stripes: Box<[Padded<Mutex<Stripe>>]>,
    per_stripe_max: usize,
    /// The slots of the pins of the commits.
    slots: Arc<BindSlots>,
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

impl CommitControl {
    /// The control state of a new origin, for at most `commits_max` transactions (rounded up to
    /// whole stripes), whose commits pin binds in `slots`.
    pub(crate) fn new(commits_max: usize, slots: &Arc<BindSlots>) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Padded(Mutex::new(Stripe::default()))).collect(),
            per_stripe_max: commits_max.div_ceil(STRIPES).max(ATTEMPTS_MAX),
            slots: Arc::clone(slots),
            floor: AtomicU64::new(0),
            end: AtomicU64::new(u64::MAX),
            stored_floor: AtomicU64::new(0),
            cleaned: AtomicU64::new(0),
        }
    }

    /// Fences the origin: once this returned, none of its transactions is admitted any more (C3).
    /// Commits in flight go on.
    pub(crate) fn fence(&self) {
        for stripe in &self.stripes {
            stripe.0.lock().fenced = true;
        }
    }

    /// When the last commit in flight must have run out, if there is one.
    pub(crate) fn in_flight_until(&self, now: Time) -> Option<Time> {
        let mut last = None;
        for stripe in &self.stripes {
            for commit in stripe.0.lock().commits.values() {
                if let CommitPhase::InFlight { attempts, .. } = commit {
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
        let mut ended = Ended::new(&self.slots);
        self.stripes[turn % self.stripes.len()].0.lock().expire(now, &mut ended);
    }

    /// Transactions that are committing or tombstoned: for tests and operators.
    pub(crate) fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.0.lock().commits.len()).sum()
    }

    fn stripe(&self, txn: TxnId) -> impl std::ops::DerefMut<Target = Stripe> {
        self.stripes[txn.number().get() as usize % self.stripes.len()].0.lock()
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

fn exhausted(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "too many commits of one origin are in flight: try again, or raise commits_max",
    )
    .with("txn", txn)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::allocator::state::slots::PinSet;
    use crate::id::{CommitAttempt, ServiceId, TxnNumber};

    const ORIGIN: ServiceId = ServiceId::new(1 << 32 | 1);

    /// The `n`th transaction of one and the same stripe.
    fn txn(n: usize) -> TxnId {
        TxnId::new(ORIGIN, TxnNumber::new((n * STRIPES) as u64), true)
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
            let slots = Arc::new(BindSlots::new());
            let control = CommitControl::new(1, &slots);
            let admit = |txn, seconds, now| {
                let window = Window::new(now, now + Duration::from_secs(seconds));
                control.admit(txn, attempt(), PinSet::new(&slots), window, now).map(drop)
            };
            let most = control.per_stripe_max;
            for n in 0..most {
                admit(txn(n), if n == 7 { 10 } else { 20 }, at(10)).expect("room");
            }
            let next = |now| match tombstone {
                true => control.tombstone(txn(most), now, |_| ()),
                false => admit(txn(most), 9, now),
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
