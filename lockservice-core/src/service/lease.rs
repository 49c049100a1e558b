//! The service's own lease (B1, B2): a pure value that says until when the service may answer.

use std::time::Duration;

use crate::clock::{Time, hi, lo};

/// A lease as its holder sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    /// Before the last acknowledged renewal was sent.
    sent: Time,
    ttl: Duration,
}

impl Lease {
    /// A lease of raw length `ttl`, asked for at `sent`.
    pub(crate) fn new(sent: Time, ttl: Duration) -> Self {
        Self { sent, ttl }
    }

    /// Takes an acknowledged renewal into account. An answer that was overtaken by a later one changes nothing.
    pub(crate) fn renewed(&mut self, sent: Time, ttl: Duration) {
        if sent >= self.sent {
            *self = Self { sent, ttl };
        }
    }

    /// From this moment the holder grants and answers nothing (B2).
    pub(crate) fn seal_at(&self) -> Time {
        self.sent + lo(self.ttl)
    }

    /// From this moment everybody knows that the lease is over.
    pub(crate) fn lapsed_at(&self) -> Time {
        self.sent + hi(self.ttl)
    }

    /// The raw remaining lease, on which promises to sessions rest (P1). Zero once it is to be sealed.
    pub(crate) fn remaining(&self, now: Time) -> Duration {
        if now >= self.seal_at() { Duration::ZERO } else { (self.sent + self.ttl).remaining(now) }
    }

    /// How long one try to renew may take before the next is made beside it: four fit between the first and the seal.
    pub(crate) fn attempt_max(&self) -> Duration {
        self.ttl / 6
    }

    /// How long after a try that failed the next is made.
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
        assert_eq!(lease.remaining(at(2_000)), Duration::from_secs(4));
        assert_eq!(lease.remaining(at(5_850)), Duration::ZERO);
        lease.renewed(at(3_000), TTL);
        assert_eq!(lease.seal_at(), at(7_850));
        lease.renewed(at(2_000), TTL);
        assert_eq!(lease.seal_at(), at(7_850), "a late answer to an earlier renewal must not shorten the lease");
    }
}
