//! The service's own lease (B1, B2): a pure value with the time until which the service may
//! respond.
//!
//! Every method that decides takes the time as an argument, and is called under the mutex that
//! guards the lease, with a reading of the clock made under it. So a lapse and a renewal exclude
//! each other: whichever is decided first, the other sees it.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Lease`]; pure |
//! | `serving.rs` | the same in words that are read without the mutex |
//! | `renewal.rs` | the task that renews it |

pub(in crate::service) mod renewal;
mod serving;

use std::time::Duration;

use crate::clock::{Time, hi, lo};

pub(crate) use self::serving::Serving;

/// A lease as its holder sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    /// Before the last acknowledged renewal was sent.
    sent: Time,
    ttl: Duration,
    /// It was found over. That is for ever (B1).
    over: bool,
}

impl Lease {
    /// A lease of raw length `ttl`, requested at `sent`.
    pub(crate) fn new(sent: Time, ttl: Duration) -> Self {
        Self { sent, ttl, over: false }
    }

    /// Takes a renewal into account that was acknowledged by `now`. A response that was overtaken
    /// by a later one changes nothing. False if the lease is over: others may know that already.
    pub(crate) fn renewed(&mut self, sent: Time, ttl: Duration, now: Time) -> bool {
        if self.is_over(now) {
            return false;
        }
        if sent >= self.sent {
            (self.sent, self.ttl) = (sent, ttl);
        }
        true
    }

    /// True if the holder may not grant or respond any more (B2). From then on it stays so.
    pub(crate) fn is_over(&mut self, now: Time) -> bool {
        self.over |= now >= self.seal_at();
        self.over
    }

    /// Its raw length.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// From this moment the holder neither grants nor responds (B2).
    pub(crate) fn seal_at(&self) -> Time {
        if planted!(GrantWithoutLease) {
            return self.sent + Duration::MAX;
        }
        self.sent + lo(self.ttl)
    }

    /// From this moment the lease is over for all others too.
    pub(crate) fn lapsed_at(&self) -> Time {
        self.sent + hi(self.ttl)
    }

    /// The raw remaining lease, on which promises to sessions rest (P1). `None` if it is
    /// [over](Self::is_over).
    pub(crate) fn remaining(&mut self, now: Time) -> Option<Duration> {
        let ttl = if planted!(GrantWithoutLease) { Duration::MAX } else { self.ttl };
        (!self.is_over(now)).then(|| (self.sent + ttl).remaining(now))
    }

    /// The time that one try to renew may take before the next is made beside it: four fit between
    /// the first and the seal.
    pub(crate) fn attempt_max(&self) -> Duration {
        self.ttl / 6
    }

    /// The pause after a try that failed.
    pub(crate) fn retry_after(&self) -> Duration {
        self.ttl / 10
    }

    /// When the next renewal is due: every third of the lease.
    pub(crate) fn renew_at(&self) -> Time {
        self.sent + self.ttl / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn a_lease_counts_from_the_send_and_seals_before_its_raw_end() {
        let mut lease = Lease::new(at(1_000), TTL);
        assert_eq!(lease.seal_at(), at(5_850));
        assert_eq!(lease.remaining(at(2_000)), Some(Duration::from_secs(4)));
        assert!(lease.renewed(at(3_000), TTL, at(5_849)));
        assert_eq!(lease.seal_at(), at(7_850));
        assert!(lease.renewed(at(2_000), TTL, at(7_000)));
        assert_eq!(
            lease.seal_at(),
            at(7_850),
            "a late response to an earlier renewal must not shorten the lease"
        );
        assert_eq!(lease.remaining(at(7_850)), None);
    }

    #[test]
    fn a_lease_that_was_found_over_is_renewed_by_nothing() {
        let mut lease = Lease::new(at(1_000), TTL);
        assert!(lease.is_over(at(5_850)));
        assert!(
            !lease.renewed(at(3_000), TTL, at(5_000)),
            "another thread has read the clock earlier"
        );
        assert_eq!(lease.remaining(at(5_000)), None);
    }
}
