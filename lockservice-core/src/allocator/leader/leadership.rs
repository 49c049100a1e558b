//! [`LeadershipCell`]: the time until which a leader may respond (L1). Pure.

use std::time::Duration;

use crate::clock::{Time, lo};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Nothing runs out: the store is open to this process alone.
const EXCLUSIVE: u64 = u64::MAX;
/// Over for good.
const ENDED: u64 = u64::MAX - 1;

/// The time until which a leader may respond. Commits read it with one load and no lock.
///
/// It counts from before the last successful renewal was *sent*. That it ran out does not end it:
/// if a later renewal succeeds, no other leader was in between, and this one goes on with
/// everything it knows. It ends when it is known that another leads, or that the store is not the
/// one it was.
#[derive(Debug)]
pub(crate) struct LeadershipCell {
    /// Nanoseconds of the moment before the last successful renewal was sent, or one of the
    /// constants above. Released by `renewed` and `end`; acquired by `ends` and `ended`.
    sent: AtomicU64,
    ttl: Duration,
    /// lo of it: for so long after `sent` the leader responds.
    responds_for: Duration,
}

impl LeadershipCell {
    /// The leadership of an exclusive store.
    pub(crate) fn exclusive() -> Self {
        Self { sent: AtomicU64::new(EXCLUSIVE), ttl: Duration::MAX, responds_for: Duration::MAX }
    }

    /// A leadership that lasts `ttl` from `sent`.
    pub(crate) fn shared(sent: Time, ttl: Duration) -> Self {
        Self { sent: AtomicU64::new(nanos(sent)), ttl, responds_for: lo(ttl) }
    }

    /// Takes a successful renewal into account that was sent at `sent`. Nothing revives a
    /// leadership that has ended.
    pub(crate) fn renewed(&self, sent: Time) {
        // ORDERING: the word carries no other memory with it; an update needs only its own order.
        let _ = self.sent.fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
            (before < ENDED).then(|| before.max(nanos(sent)))
        });
    }

    /// Ends it: the leader responds to nothing any more.
    pub(crate) fn end(&self) {
        self.sent.store(ENDED, Ordering::Release);
    }

    /// True once it has ended.
    pub(crate) fn ended(&self) -> bool {
        self.sent.load(Ordering::Acquire) == ENDED
    }

    /// The raw end of the leadership; the origin of time once the leader must not respond (L1). A
    /// promise until then, whose receiver counts lo of it from before its request, ends before a
    /// candidate that has counted hi(TTL) can lead.
    pub(crate) fn ends(&self, now: Time) -> Time {
        match self.sent.load(Ordering::Acquire) {
            EXCLUSIVE => Time::from_nanos(u64::MAX),
            ENDED => Time::ZERO,
            _ if planted!(OldEpochAccepted) => Time::from_nanos(u64::MAX),
            sent => {
                let sent = Time::from_nanos(sent);
                if now >= sent + self.responds_for { Time::ZERO } else { sent + self.ttl }
            }
        }
    }

    /// The raw time that is left until it [`ends`](Self::ends).
    pub(crate) fn remaining(&self, now: Time) -> Duration {
        self.ends(now).remaining(now)
    }
}

fn nanos(at: Time) -> u64 {
    at.as_nanos().min(ENDED - 1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn a_leader_stops_before_its_ttl_and_goes_on_when_a_later_renewal_succeeds() {
        let cell = LeadershipCell::shared(at(1_000), TTL);
        assert_eq!(cell.remaining(at(2_000)), Duration::from_secs(4));
        assert_eq!(cell.remaining(at(5_849)), Duration::from_millis(151));
        assert_eq!(cell.remaining(at(5_850)), Duration::ZERO, "lo(TTL) after the send");
        cell.renewed(at(9_000));
        assert_eq!(cell.remaining(at(10_000)), Duration::from_secs(4));
        cell.renewed(at(8_000));
        assert_eq!(
            cell.remaining(at(10_000)),
            Duration::from_secs(4),
            "a late response to an earlier renewal"
        );
        cell.end();
        cell.renewed(at(11_000));
        assert_eq!(cell.remaining(at(11_000)), Duration::ZERO, "ended is for ever");
        let century = Duration::from_secs(100 * 365 * 86_400);
        assert!(LeadershipCell::exclusive().remaining(at(1 << 40)) > century);
    }
}
