//! [`LeadershipHistory`]: where the leaderships of a store began, so that the progress that a node
//! observed can be compared with the store's history (L4). Pure.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Nonce, WriteNumber};

/// Largest number of leaderships that are kept.
const LEADERSHIPS_MAX: usize = 32;

/// The writes at which the last leaderships of a store began, the earliest first.
///
/// The number of a write alone does not identify it: a store that went back gives the numbers of
/// the lost writes to those of the next leader. With the leadership it does, as in Kafka's leader
/// epochs (KIP-101) and Raft's log matching: write *w* of a leader is part of this history only if
/// the first leadership after it began with *w* or later. A store that went back unnoticed may also
/// give the lost leadership's epoch to the next one, so a leadership is known by its epoch *and*
/// its nonce.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeadershipHistory(Vec<PastLeadership>);

/// The write at which a leadership began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PastLeadership {
    /// Its first epoch.
    pub epoch: Epoch,
    /// Its last epoch so far: it may have raised it.
    pub to: Epoch,
    /// The leader's nonce.
    pub leader: Nonce,
    /// The number of the last write before it.
    pub above: WriteNumber,
}

impl LeadershipHistory {
    /// True if none is kept: of a store whose leaders never change, or of a version that kept none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// With a further leadership, or a later epoch of the last one. The earliest are forgotten
    /// first.
    #[must_use]
    pub fn with(&self, epoch: Epoch, above: WriteNumber, leader: Nonce) -> Self {
        let mut history = self.0.clone();
        match history.last_mut() {
            Some(last) if last.leader == leader => last.to = epoch,
            _ => history.push(PastLeadership { epoch, to: epoch, leader, above }),
        }
        let forgotten = history.len().saturating_sub(LEADERSHIPS_MAX);
        Self(history.split_off(forgotten))
    }

    /// True if this history has lost the write of number `write`, of `leader` in `epoch`: the first
    /// leadership after that one, or the one that has its epoch in this history, found less.
    /// `leader` 0 is one that is not known. Of a leadership before all that are kept, losses that
    /// later writes have made up for are not seen.
    pub fn lost(&self, epoch: Epoch, leader: Nonce, write: WriteNumber) -> bool {
        let another = |past: &&PastLeadership| {
            let in_its_place =
                past.to >= epoch && leader != Nonce::default() && past.leader != leader;
            past.epoch > epoch || in_its_place
        };
        self.0.iter().find(another).is_some_and(|next| write > next.above)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(history: &LeadershipHistory, epoch: Epoch, leader: Nonce, write: u64) -> bool {
        history.lost(epoch, leader, WriteNumber::new(write))
    }

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n)
    }

    /// The nonce of the leader whose first epoch is `n`.
    fn of(n: u64) -> Nonce {
        Nonce::new(n * 100)
    }

    fn history(began: &[(u64, u64)]) -> LeadershipHistory {
        began.iter().fold(LeadershipHistory::default(), |history, (n, above)| {
            history.with(epoch(*n), WriteNumber::new(*above), of(*n))
        })
    }

    #[test]
    fn what_the_first_leadership_after_it_did_not_find_is_lost_whatever_was_written_since() {
        let history = history(&[(3, 0), (7, 50), (8, 90)]);
        assert!(!lost(&history, epoch(3), of(3), 50) && lost(&history, epoch(3), of(3), 51));
        assert!(
            !lost(&history, epoch(5), of(5), 50) && lost(&history, epoch(5), of(5), 80),
            "one that the history does not know"
        );
        assert!(!lost(&history, epoch(7), of(7), 90) && lost(&history, epoch(7), of(7), 91));
        assert!(!lost(&history, epoch(8), of(8), 1_000), "its own: only the present knows");
        assert!(!lost(&LeadershipHistory::default(), epoch(1), of(1), 9));
    }

    #[test]
    fn a_leadership_that_had_the_epoch_of_one_in_the_history_is_another() {
        let history = history(&[(3, 0), (4, 20), (9, 60)]);
        let other = Nonce::new(77);
        assert!(lost(&history, epoch(4), other, 21) && !lost(&history, epoch(4), other, 20));
        assert!(lost(&history, epoch(9), other, 61), "also the last one's");
        assert!(
            !lost(&history, epoch(4), Nonce::default(), 60),
            "not known: taken for the one in the history"
        );
    }

    #[test]
    fn an_epoch_that_a_leader_raised_is_still_its_own() {
        let [raised, next] = [40, 70].map(WriteNumber::new);
        let history = history(&[(3, 0)]).with(epoch(5), raised, of(3)).with(epoch(6), next, of(6));
        for observed in [3, 4, 5] {
            assert!(
                !lost(&history, epoch(observed), of(3), 70)
                    && lost(&history, epoch(observed), of(3), 71)
            );
        }
        assert_eq!(history.0.len(), 2, "a leader that raises its epoch often forgets no history");
    }

    #[test]
    fn the_earliest_are_forgotten_and_never_make_anything_lost() {
        let began: Vec<_> = (1..=100).map(|n| (n, n * 10)).collect();
        let history = history(&began);
        assert_eq!(history.0.len(), LEADERSHIPS_MAX);
        assert!(!lost(&history, epoch(1), of(1), 500) && lost(&history, epoch(1), of(1), 1_000));
        assert!(lost(&history, epoch(98), of(98), 991) && !lost(&history, epoch(98), of(98), 990));
    }
}
