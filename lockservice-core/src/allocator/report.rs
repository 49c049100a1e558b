//! [`Report`]: the furthest progress that a node observed, for a leader that may not know the node
//! (L4).

use crate::allocator::messages::Progress;
use crate::store::{Cluster, Proof};

/// Progress that a node observed, and the proof that the report comes from a node that can read the
/// store of the cluster. A leader whose store has lost the node's incarnation has nothing else to
/// go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// The furthest progress of one leadership.
    pub observed: Progress,
    /// Made with the key of the cluster. See [`ClusterKey`](crate::store::ClusterKey).
    pub proof: Proof,
}

impl Report {
    /// A report by a node of `cluster`.
    pub fn new(observed: Progress, cluster: &Cluster) -> Self {
        Self { observed, proof: cluster.key.prove(&words(observed)) }
    }

    /// True if it comes from a node of `cluster`, or was made by one at some time: what is true
    /// stays so.
    pub(crate) fn is_of(&self, cluster: &Cluster) -> bool {
        cluster.key.proves(&words(self.observed), &self.proof)
    }
}

fn words(observed: Progress) -> [u8; 32] {
    let mut words = [0; 32];
    let numbers = [
        observed.epoch.get(),
        observed.write.get(),
        observed.high_water.get(),
        observed.leader.get(),
    ];
    for (bytes, number) in words.chunks_exact_mut(8).zip(numbers) {
        bytes.copy_from_slice(&number.to_be_bytes());
    }
    words
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::{Epoch, EpochNumber, Nonce, WriteNumber};

    #[test]
    fn a_report_holds_as_it_was_made_and_in_its_cluster_alone() {
        let (cluster, other) = (Cluster::random(), Cluster::random());
        let observed = Progress {
            epoch: Epoch::new(3),
            write: WriteNumber::new(5),
            high_water: EpochNumber::new(7),
            leader: Nonce::new(9),
        };
        let report = Report::new(observed, &cluster);
        assert!(report.is_of(&cluster) && !report.is_of(&other));
        for altered in [
            Progress { epoch: Epoch::new(4), ..observed },
            Progress { write: WriteNumber::new(6), ..observed },
            Progress { high_water: EpochNumber::new(8), ..observed },
            Progress { leader: Nonce::new(8), ..observed },
        ] {
            assert!(!Report { observed: altered, ..report }.is_of(&cluster), "{altered:?}");
        }
    }
}
