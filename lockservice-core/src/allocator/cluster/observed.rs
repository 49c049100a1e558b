//! [`Observed`]: the progress of each leadership that a node observed, until a later leader has
//! compared it with its store (L4).

use crate::allocator::messages::Progress;
use crate::id::{Epoch, EpochNumber};

/// Largest number of leaderships that are kept apart. More within one lease are merged, on the safe
/// side.
const EPOCHS_MAX: usize = 16;

/// The furthest progress of each leadership, the earliest first. Each stays until a later leader
/// has compared it: a later leader's own writes may have the numbers of those that were lost, so
/// the furthest of all would hide the progress of an earlier one.
#[derive(Clone, Debug, Default)]
pub(in crate::allocator) struct Observed(Vec<Progress>);

impl Observed {
    /// The progress of the last leadership that was observed.
    pub(in crate::allocator) fn last(&self) -> Progress {
        self.0.last().copied().unwrap_or_default()
    }

    /// Every number that was observed is below this.
    pub(in crate::allocator) fn high_water(&self) -> EpochNumber {
        self.0.iter().map(|observed| observed.high_water).max().unwrap_or_default()
    }

    /// The progress of each leadership.
    pub(in crate::allocator) fn each(&self) -> &[Progress] {
        &self.0
    }

    /// Adds the progress that a response named.
    pub(in crate::allocator) fn add(&mut self, at: Progress) {
        if at == Progress::default() {
            return;
        }
        let same = |known: &&mut Progress| known.epoch == at.epoch && known.leader == at.leader;
        match self.0.iter_mut().find(same) {
            Some(known) => {
                (known.write, known.high_water) =
                    (known.write.max(at.write), known.high_water.max(at.high_water));
            }
            None => self.0.insert(self.0.partition_point(|known| known.epoch <= at.epoch), at),
        }
        if self.0.len() > EPOCHS_MAX {
            // The earlier of them gets the marks of both: at worst a leader considers a write lost
            // that is not.
            let later = self.0.remove(1);
            self.0[0].write = self.0[0].write.max(later.write);
            self.0[0].high_water = self.0[0].high_water.max(later.high_water);
        }
    }

    /// A leader of `epoch` has compared `report`.
    pub(in crate::allocator) fn compared(&mut self, report: Progress, epoch: Epoch) {
        let observe = |known: &Progress| {
            known.epoch == report.epoch
                && known.leader == report.leader
                && known.write <= report.write
        };
        self.0.retain(|known| !(observe(known) && known.epoch < epoch));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::{Nonce, WriteNumber};

    fn at(epoch: u64, write: u64) -> Progress {
        Progress {
            epoch: Epoch::new(epoch),
            write: WriteNumber::new(write),
            high_water: EpochNumber::new(epoch * 1000),
            leader: Nonce::new(epoch),
        }
    }

    #[test]
    fn the_progress_of_an_earlier_leader_stays_until_a_later_one_has_compared_it() {
        let mut observed = Observed::default();
        for progress in [at(5, 10), at(7, 9), at(5, 8), at(7, 8), Progress::default()] {
            observed.add(progress);
        }
        assert_eq!(observed.each(), [at(5, 10), at(7, 9)]);
        observed.compared(at(5, 9), Epoch::new(7));
        assert_eq!(observed.each(), [at(5, 10), at(7, 9)], "observed more since it was reported");
        observed.compared(at(5, 10), Epoch::new(5));
        observed.compared(at(7, 9), Epoch::new(7));
        assert_eq!(observed.each(), [at(5, 10), at(7, 9)], "by the leader itself");
        observed.compared(at(5, 10), Epoch::new(7));
        assert_eq!((observed.each(), observed.last()), (&[at(7, 9)][..], at(7, 9)));
    }

    #[test]
    fn two_leaderships_of_one_epoch_are_distinct() {
        let (mut observed, other) =
            (Observed::default(), Progress { leader: Nonce::new(99), ..at(5, 3) });
        observed.add(at(5, 10));
        observed.add(other);
        assert_eq!(observed.each(), [at(5, 10), other]);
        observed.compared(at(5, 10), Epoch::new(7));
        assert_eq!(observed.each(), [other]);
    }

    #[test]
    fn too_many_leaderships_are_taken_together_on_the_safe_side() {
        let mut observed = Observed::default();
        for epoch in 1..100 {
            observed.add(at(epoch, 200 - epoch));
        }
        assert_eq!(observed.each().len(), EPOCHS_MAX);
        let first = observed.each()[0];
        assert_eq!((first.epoch, first.write), (Epoch::new(1), WriteNumber::new(199)));
        assert!(first.high_water.get() > 1000 && observed.high_water().get() == 99_000);
        assert_eq!(observed.last(), at(99, 101));
    }
}
