//! The watch of a candidate (L1), pure: whether the leadership stood still for long enough, and
//! whether a leader at the candidate's own address is another process.

use std::time::Duration;

use crate::clock::{Time, hi};
use crate::store::{LeaderSeen, Seen};

/// The watch of a candidate (L1): for how long the store has shown the same leadership, on the
/// same copy of itself.
#[derive(Debug, Default)]
pub(crate) struct LeadershipWatch {
    since: Option<(Seen, Time)>,
}

impl LeadershipWatch {
    /// Adds a reading that was received at `now`. A different one starts the count again.
    pub(crate) fn observe(&mut self, seen: Seen, now: Time) {
        match &self.since {
            Some((before, _)) if *before == seen => {}
            _ => self.since = Some((seen, now)),
        }
    }

    /// Forgets every reading.
    pub(crate) fn restart(&mut self) {
        self.since = None;
    }

    /// The reading that stood still for hi(TTL), the longer of the leader's TTL and `own`; `None`
    /// if it has not.
    pub(crate) fn complete(&self, own: Duration, now: Time) -> Option<&Seen> {
        let (seen, _) = self.since.as_ref()?;
        self.left(own, now).is_zero().then_some(seen)
    }

    /// The time until [`complete`](Self::complete), if nothing changes.
    pub(crate) fn left(&self, own: Duration, now: Time) -> Duration {
        let Some((seen, since)) = &self.since else { return hi(own) };
        let leaders =
            seen.leader.map_or(Duration::ZERO, |leader| Duration::from_millis(leader.ttl_ms));
        (*since + hi(leaders.max(own))).remaining(now)
    }
}

/// The watch of a leader that is reached at the candidate's own address.
///
/// After a restart that is the node's last process, whose record stands still. A record that goes
/// on changing belongs to another process: the address does not distinguish the two.
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
    use crate::allocator::leader::leadership::LeadershipCell;
    use crate::id::{Epoch, Nonce, RenewalNumber};
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
                counter: RenewalNumber::new(counter),
                ttl_ms,
            }),
            lineage: Lineage(lineage.to_owned()),
        }
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
    fn a_renewal_and_another_copy_of_the_store_start_the_count_again() {
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
    fn a_leader_that_goes_on_renewing_at_our_address_is_another_process() {
        let leader = |nonce, counter| LeaderSeen {
            epoch: Epoch::new(1),
            nonce: Nonce::new(nonce),
            counter: RenewalNumber::new(counter),
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
