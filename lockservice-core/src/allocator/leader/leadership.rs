//! The leadership's own clockwork (L1), pure: until when a leader may answer, and when a candidate
//! has watched long enough.

use std::time::Duration;

use crate::clock::{Time, hi, lo};
use crate::store::{LeaderSeen, Seen};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Nothing runs out: the store is open to this process alone.
const EXCLUSIVE: u64 = u64::MAX;
/// Over for good.
const ENDED: u64 = u64::MAX - 1;

/// How long a leader may still answer. Commits read it with one load and no lock.
///
/// It counts from before the last successful renewal was *sent*. That it ran out does not end it:
/// if a later renewal succeeds, nobody took over in between, and the leader goes on with everything
/// it knows. It ends when it is known that another leads, or that the store is not the one it was.
#[derive(Debug)]
pub struct LeadershipCell {
    /// Nanoseconds of the moment before the last successful renewal was sent, or one of the
    /// constants above.
    sent: AtomicU64,
    ttl: Duration,
}

impl LeadershipCell {
    /// The leadership of an exclusive store.
    pub fn exclusive() -> Self {
        Self { sent: AtomicU64::new(EXCLUSIVE), ttl: Duration::MAX }
    }

    /// A leadership that lasts `ttl` from `sent`.
    pub fn shared(sent: Time, ttl: Duration) -> Self {
        Self { sent: AtomicU64::new(nanos(sent)), ttl }
    }

    /// Takes a successful renewal into account that was sent at `sent`. Nothing revives a
    /// leadership that has ended.
    pub fn renewed(&self, sent: Time) {
        // ORDERING: the word carries no other memory with it; an update needs only its own order.
        let _ = self.sent.fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
            (before < ENDED).then(|| before.max(nanos(sent)))
        });
    }

    /// Ends it: nothing is answered any more.
    pub fn end(&self) {
        self.sent.store(ENDED, Ordering::Release);
    }

    /// True once it has ended.
    pub fn ended(&self) -> bool {
        self.sent.load(Ordering::Acquire) == ENDED
    }

    /// The raw time that is left, zero once the leader must not answer (L1). A promise of at most
    /// this much, whose receiver counts lo of it from before its request, ends before a candidate
    /// that has counted hi(TTL) can lead.
    pub fn remaining(&self, now: Time) -> Duration {
        match self.sent.load(Ordering::Acquire) {
            EXCLUSIVE => Duration::MAX,
            ENDED => Duration::ZERO,
            sent => {
                let sent = Time::from_origin(Duration::from_nanos(sent));
                if now >= sent + lo(self.ttl) {
                    Duration::ZERO
                } else {
                    (sent + self.ttl).remaining(now)
                }
            }
        }
    }
}

fn nanos(at: Time) -> u64 {
    at.since_origin().as_nanos().min(u128::from(ENDED) - 1) as u64
}

/// What a candidate has watched (L1): for how long the store has shown the same leadership, on the
/// same copy of itself.
#[derive(Debug, Default)]
pub(crate) struct LeadershipWatch {
    since: Option<(Seen, Time)>,
}

impl LeadershipWatch {
    /// Adds a reading that was received at `now`. A different one starts the count anew.
    pub(crate) fn observe(&mut self, seen: Seen, now: Time) {
        match &self.since {
            Some((before, _)) if *before == seen => {}
            _ => self.since = Some((seen, now)),
        }
    }

    /// Forgets what it saw.
    pub(crate) fn restart(&mut self) {
        self.since = None;
    }

    /// What has stood still for hi(TTL), if anything has: the longer of the leader's TTL and `own`.
    pub(crate) fn complete(&self, own: Duration, now: Time) -> Option<&Seen> {
        let (seen, _) = self.since.as_ref()?;
        self.left(own, now).is_zero().then_some(seen)
    }

    /// How long until [`complete`](Self::complete), if nothing changes.
    pub(crate) fn left(&self, own: Duration, now: Time) -> Duration {
        let Some((seen, since)) = &self.since else { return hi(own) };
        let leaders =
            seen.leader.map_or(Duration::ZERO, |leader| Duration::from_millis(leader.ttl_ms));
        (*since + hi(leaders.max(own))).remaining(now)
    }
}

/// What a candidate has watched of a leader that is reached at the candidate's own address.
///
/// After a restart that is the node's last process, whose record stands still. A record that goes
/// on changing is that of another process, and nobody can tell the two apart by their address.
#[derive(Debug, Default)]
pub(in crate::allocator) struct Namesake {
    last: Option<LeaderSeen>,
    changes: u32,
}

impl Namesake {
    /// More than a process can have on its way to the store when it ends: a renewal, and a raise.
    const CHANGES: u32 = 3;

    /// Adds a reading. True once the leader must be another process that is alive.
    pub(in crate::allocator) fn lives(&mut self, leader: LeaderSeen) -> bool {
        match self.last.replace(leader) {
            Some(before) if before.nonce != leader.nonce => self.changes = 0,
            Some(before) if before != leader => self.changes += 1,
            _ => {}
        }
        self.changes >= Self::CHANGES
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::{Epoch, Nonce};
    use crate::store::Lineage;

    const TTL: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    fn seen(counter: u64, ttl_ms: u64, lineage: &str) -> Seen {
        Seen {
            leader: Some(LeaderSeen {
                epoch: Epoch::new(1),
                nonce: Nonce::new(1),
                counter,
                ttl_ms,
            }),
            lineage: Lineage(lineage.to_owned()),
        }
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
            "a late answer to an earlier renewal"
        );
        cell.end();
        cell.renewed(at(11_000));
        assert_eq!(cell.remaining(at(11_000)), Duration::ZERO, "ended is for ever");
        assert_eq!(LeadershipCell::exclusive().remaining(at(1 << 40)), Duration::MAX);
    }

    #[test]
    fn no_promise_of_a_leader_outlives_its_successors_count() {
        // The candidate's first reading of the last counter comes after the renewal was sent.
        let (cell, mut watch) = (LeadershipCell::shared(at(0), TTL), LeadershipWatch::default());
        watch.observe(seen(1, 5_000, "a"), at(0));
        for ms in 0..6_000 {
            let promised = cell.remaining(at(ms));
            if !promised.is_zero() {
                assert_eq!(watch.complete(TTL, at(ms)), None);
                assert_eq!(watch.complete(TTL, at(ms) + promised), None, "promised at {ms} ms");
            }
        }
        assert!(watch.complete(TTL, at(5_150)).is_some(), "hi(TTL)");
    }

    #[test]
    fn a_renewal_and_another_copy_of_the_store_start_the_count_anew() {
        let mut watch = LeadershipWatch::default();
        watch.observe(seen(1, 5_000, "a"), at(0));
        watch.observe(seen(2, 5_000, "a"), at(5_000));
        assert_eq!(watch.left(TTL, at(5_000)), hi(TTL));
        watch.observe(seen(2, 5_000, "b"), at(6_000));
        watch.observe(seen(2, 5_000, "b"), at(11_000));
        assert_eq!(watch.complete(TTL, at(11_149)), None);
        assert!(watch.complete(TTL, at(11_150)).is_some());
    }

    #[test]
    fn a_leader_that_goes_on_renewing_at_our_address_is_another_process_and_one_that_stands_still_is_not()
     {
        let leader = |nonce, counter| LeaderSeen {
            epoch: Epoch::new(1),
            nonce: Nonce::new(nonce),
            counter,
            ttl_ms: 5_000,
        };
        let mut namesake = Namesake::default();
        for _ in 0..10 {
            assert!(!namesake.lives(leader(1, 4)), "the last process of this node");
        }
        assert!(
            !namesake.lives(leader(1, 5)) && !namesake.lives(leader(1, 6)),
            "perhaps on their way when it ended"
        );
        assert!(!namesake.lives(leader(2, 7)), "another one has begun");
        assert!(!namesake.lives(leader(2, 8)) && !namesake.lives(leader(2, 9)));
        assert!(namesake.lives(leader(2, 10)));
        assert!(namesake.lives(leader(2, 10)));
    }

    #[test]
    fn the_longer_of_both_ttls_is_waited_out() {
        let mut watch = LeadershipWatch::default();
        watch.observe(seen(1, 9_000, "a"), at(0));
        assert_eq!(watch.left(TTL, at(0)), hi(Duration::from_secs(9)));
        assert_eq!(watch.left(Duration::from_secs(20), at(0)), hi(Duration::from_secs(20)));
    }
}
