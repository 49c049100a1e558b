//! [`Terms`]: where the leaderships of a store began, so that a report of what a leader told can be compared with the store's history (L4). Pure.

use serde::{Deserialize, Serialize};

use crate::id::Epoch;

/// Most leaderships that are kept.
const TERMS_MAX: usize = 32;

/// Where each of the last leaderships of a store began, the earliest first.
///
/// The number of a write alone does not identify it: a store that went back gives the numbers of the lost writes to those of the next leader.
/// With the epoch it does, as in Kafka's leader epochs (KIP-101) and Raft's log matching: what a leader of epoch *e* told of write *w* is part of this
/// history only if the first leadership after *e* began with *w* or later.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Terms(Vec<Term>);

/// Where a leadership began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Term {
    /// Its number.
    pub epoch: Epoch,
    /// The number of the last write before it.
    pub above: u64,
}

impl Terms {
    /// True if none is kept: of a store whose leaders never change, or of a version that kept none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// With a further leadership. The earliest are forgotten first.
    #[must_use]
    pub fn with(&self, epoch: Epoch, above: u64) -> Self {
        let forgotten = (self.0.len() + 1).saturating_sub(TERMS_MAX);
        Self(self.0[forgotten..].iter().copied().chain([Term { epoch, above }]).collect())
    }

    /// True if this history has lost the write of number `write`, which a leader of `epoch` has told of: the first leadership after that one
    /// found less. Of a leadership before all that are kept, losses that later writes have made up for are not seen.
    pub fn lost(&self, epoch: Epoch, write: u64) -> bool {
        self.0.iter().find(|term| term.epoch > epoch).is_some_and(|next| write > next.above)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(n: u64) -> Epoch {
        Epoch::new(n)
    }

    #[test]
    fn what_the_first_leadership_after_it_did_not_find_is_lost_whatever_was_written_since() {
        let terms = Terms::default().with(epoch(3), 0).with(epoch(7), 50).with(epoch(8), 90);
        assert!(!terms.lost(epoch(3), 50) && terms.lost(epoch(3), 51));
        assert!(!terms.lost(epoch(5), 50) && terms.lost(epoch(5), 80), "a leadership that the history does not know");
        assert!(!terms.lost(epoch(7), 90) && terms.lost(epoch(7), 91));
        assert!(!terms.lost(epoch(8), 1_000), "its own: only the present knows");
        assert!(!Terms::default().lost(epoch(1), 9));
    }

    #[test]
    fn the_earliest_are_forgotten_and_never_make_anything_lost() {
        let terms = (1..=100).fold(Terms::default(), |terms, n| terms.with(epoch(n), n * 10));
        assert_eq!(terms.0.len(), TERMS_MAX);
        assert!(!terms.lost(epoch(1), 500) && terms.lost(epoch(1), 1_000));
        assert!(terms.lost(epoch(98), 991) && !terms.lost(epoch(98), 990));
    }
}
