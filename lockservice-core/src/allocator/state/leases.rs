//! [`Lease`]: whether an incarnation is alive, and when what it held may be given away (B1 to B4).
//!
//! # States
//! `Live` → `Resigning` → `Resigned`, or from either of the first two → `Fenced`. There is no way
//! back (B1).
//!
//! # Invariants
//! - Only a `Live` lease renews, and only before it lapsed: hi(TTL) after its last renewal.
//! - Once the state is not `Live` the time of the last renewal stands still, so the time of
//!   reassigning (B3) is fixed.

use std::time::Duration;

use crate::clock::{Time, hi};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The state of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeaseState {
    /// It may be renewed.
    Live,
    /// Its owner gives it up, and waits for the commits in flight on its binds (C2).
    Resigning,
    /// It lapsed, or its owner was replaced. Binds are invalid at once, and reassigned when it must
    /// have run out (B3).
    Fenced,
    /// Its owner gave it up while nothing of it was in use: binds are reassigned at once.
    Resigned,
}

/// The time for which a renewal of a lease holds, and hi of that: computed once, for commits need
/// both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ttl {
    raw: Duration,
    hi: Duration,
}

impl From<Duration> for Ttl {
    fn from(raw: Duration) -> Self {
        Self { raw, hi: hi(raw) }
    }
}

/// A lease: pure, takes time as an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    /// When it was last renewed, by the allocator's clock.
    pub(crate) renewed_at: Time,
    /// Its state.
    pub(crate) state: LeaseState,
}

impl Lease {
    /// When the raw promise ends; the origin of time if it was given up.
    pub(crate) fn ends(self, ttl: Ttl) -> Time {
        match self.state {
            LeaseState::Live => self.renewed_at + ttl.raw,
            _ => Time::ZERO,
        }
    }

    /// The rest of the raw promise, zero if it is over or was given up.
    pub(crate) fn remaining(self, ttl: Ttl, now: Time) -> Duration {
        self.ends(ttl).remaining(now)
    }

    /// True if its end must have come for its owner too: hi(TTL) has passed since the last renewal.
    pub(crate) fn lapsed(self, ttl: Ttl, now: Time) -> bool {
        if planted!(TwoOwners) {
            return now >= self.renewed_at + ttl.raw / 2;
        }
        now >= self.renewed_at + ttl.hi
    }

    /// True while binds of its owner are valid.
    pub(crate) fn holds(self, ttl: Ttl, now: Time) -> bool {
        self.state == LeaseState::Live && !self.lapsed(ttl, now)
    }

    /// The time until the binds of its owner can be reassigned (B3). Meaningful once it no longer
    /// holds.
    pub(crate) fn reassigned_in(self, ttl: Ttl, now: Time) -> Duration {
        match self.state {
            LeaseState::Resigned => Duration::ZERO,
            _ => self.lapses_in(ttl, now),
        }
    }

    /// The time until everything that rests on its last renewal must have run out.
    pub(crate) fn lapses_in(self, ttl: Ttl, now: Time) -> Duration {
        if planted!(TwoOwners) {
            return (self.renewed_at + ttl.raw / 2).remaining(now);
        }
        (self.renewed_at + ttl.hi).remaining(now)
    }
}

/// A [`Lease`] that commits read with one load and no lock.
///
/// One word, so that a renewal and a fence cannot both succeed: nanoseconds of the last renewal,
/// and the state in the two lowest bits. Released by `change`, acquired by `get`.
#[derive(Debug)]
pub(crate) struct LeaseCell(AtomicU64);

impl LeaseCell {
    /// A lease last renewed at `renewed_at`.
    pub(crate) fn new(renewed_at: Time, state: LeaseState) -> Self {
        Self(AtomicU64::new(pack(Lease { renewed_at, state })))
    }

    /// The lease now.
    pub(crate) fn get(&self) -> Lease {
        // ORDERING: Acquire, the partner of the releases in `change`: a thread that sees a lease
        // fenced sees what was done before.
        unpack(self.0.load(Ordering::Acquire))
    }

    /// Renews a live lease that has not lapsed; false if it is too late. `now` reads the clock,
    /// between the look at the lease and the change: a thread that stops in between changes nothing
    /// if the lease was fenced meanwhile.
    pub(crate) fn renew(&self, ttl: Ttl, now: impl Fn() -> Time) -> bool {
        self.change(|lease| {
            let now = now();
            lease
                .holds(ttl, now)
                .then(|| Lease { renewed_at: lease.renewed_at.max(now), state: LeaseState::Live })
        })
    }

    /// Fences the lease if `condition` holds for it at that moment; false if it did not, or it was
    /// already fenced or resigned.
    pub(crate) fn fence_if(&self, condition: impl Fn(Lease) -> bool) -> bool {
        self.change(|lease| {
            let open = matches!(lease.state, LeaseState::Live | LeaseState::Resigning);
            (open && condition(lease)).then_some(Lease { state: LeaseState::Fenced, ..lease })
        })
    }

    /// Begins to give the lease up; true also if that had begun before. False if it lapsed, was
    /// fenced or is given up. `now` as for [`renew`](Self::renew).
    pub(crate) fn begin_resign(&self, ttl: Ttl, now: impl Fn() -> Time) -> bool {
        self.change(|lease| {
            let may = match lease.state {
                LeaseState::Live | LeaseState::Resigning => !lease.lapsed(ttl, now()),
                LeaseState::Fenced | LeaseState::Resigned => false,
            };
            may.then_some(Lease { state: LeaseState::Resigning, ..lease })
        })
    }

    /// Ends what [`begin_resign`](Self::begin_resign) began, once that is durable; false if it was
    /// fenced meanwhile.
    pub(crate) fn finish_resign(&self) -> bool {
        self.change(|lease| {
            (lease.state == LeaseState::Resigning)
                .then_some(Lease { state: LeaseState::Resigned, ..lease })
        })
    }

    fn change(&self, next: impl Fn(Lease) -> Option<Lease>) -> bool {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let Some(lease) = next(unpack(word)) else { return false };
            // ORDERING: Release, the partner of the acquire in `get`.
            match self.0.compare_exchange(word, pack(lease), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }
}

/// Nanoseconds fit 62 bits for 146 years of a machine that is never switched off.
fn pack(lease: Lease) -> u64 {
    let nanos = lease.renewed_at.as_nanos().min((1 << 62) - 1);
    let state = match lease.state {
        LeaseState::Live => 0,
        LeaseState::Resigning => 1,
        LeaseState::Fenced => 2,
        LeaseState::Resigned => 3,
    };
    nanos << 2 | state
}

fn unpack(word: u64) -> Lease {
    let state = match word & 3 {
        0 => LeaseState::Live,
        1 => LeaseState::Resigning,
        2 => LeaseState::Fenced,
        _ => LeaseState::Resigned,
    };
    Lease { renewed_at: Time::from_nanos(word >> 2), state }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const RAW: Duration = Duration::from_secs(5);

    fn ttl() -> Ttl {
        RAW.into()
    }

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn a_lease_is_renewed_until_it_must_have_run_out_and_never_after() {
        let cell = LeaseCell::new(at(0), LeaseState::Live);
        assert!(cell.renew(ttl(), || at(5_149)));
        assert!(!cell.renew(ttl(), || at(5_149 + 5_150)), "lapsed to the millisecond");
        assert!(cell.fence_if(|lease| lease.lapsed(ttl(), at(5_149 + 5_150))));
        assert!(!cell.renew(ttl(), || at(5_150)), "a fenced lease never renews (B1)");
    }

    #[test]
    fn a_renewal_that_comes_before_the_fence_wins_over_a_lapse_seen_earlier() {
        let cell = LeaseCell::new(at(0), LeaseState::Live);
        assert!(cell.renew(ttl(), || at(5_000)));
        assert!(
            !cell.fence_if(|lease| lease.lapsed(ttl(), at(5_150))),
            "the sweep decided on an old reading"
        );
        assert_eq!(cell.get().state, LeaseState::Live);
    }

    #[test]
    fn a_fence_that_comes_while_a_renewal_reads_the_clock_wins_over_it() {
        let cell = LeaseCell::new(at(0), LeaseState::Live);
        let stopped = || {
            cell.fence_if(|lease| lease.lapsed(ttl(), at(5_150)));
            at(5_000)
        };
        assert!(!cell.renew(ttl(), stopped));
        assert_eq!(cell.get().state, LeaseState::Fenced);
    }

    #[test]
    fn a_commit_never_outlives_the_wait_before_reassignment() {
        for ms in 0..5_200 {
            let lease = Lease { renewed_at: at(0), state: LeaseState::Live };
            let remaining = lease.remaining(ttl(), at(ms));
            if !remaining.is_zero() {
                assert!(at(ms) + hi(remaining) <= at(0) + hi(RAW), "at {ms} ms");
            }
        }
    }

    #[test]
    fn a_resigned_bind_is_reassigned_at_once_and_a_fenced_one_is_not() {
        let cell = LeaseCell::new(at(0), LeaseState::Live);
        assert!(cell.begin_resign(ttl(), || at(1)));
        assert!(!cell.renew(ttl(), || at(2)), "it gave itself up");
        assert_eq!(cell.get().reassigned_in(ttl(), at(150)), Duration::from_secs(5));
        assert!(cell.finish_resign());
        assert_eq!(cell.get().reassigned_in(ttl(), at(150)), Duration::ZERO);
        assert!(!cell.fence_if(|_| true));
    }
}
