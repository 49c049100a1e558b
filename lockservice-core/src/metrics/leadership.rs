//! [`LeadershipMetrics`]: the leadership of the store, as its holder sees it.

use std::time::Duration;

use super::{Counter, Distribution, Histogram};

/// What a node has counted of its leaderships, over all of them.
#[derive(Debug)]
pub struct LeadershipMetrics {
    acquired: Counter,
    renewals: Counter,
    renewals_failed: Counter,
    left: Histogram,
}

impl Default for LeadershipMetrics {
    fn default() -> Self {
        Self {
            acquired: Counter::default(),
            renewals: Counter::default(),
            renewals_failed: Counter::default(),
            left: Histogram::of_times(),
        }
    }
}

impl LeadershipMetrics {
    pub(crate) fn acquired(&self) {
        self.acquired.add(1);
    }

    /// A renewal was acknowledged when so much was left of the leadership.
    pub(crate) fn renewed(&self, left: Duration) {
        self.renewals.add(1);
        self.left.note_time(left);
    }

    pub(crate) fn renewal_failed(&self) {
        self.renewals_failed.add(1);
    }

    /// What was counted so far.
    pub fn counts(&self) -> LeadershipCounts {
        LeadershipCounts {
            acquired: self.acquired.get(),
            renewals: self.renewals.get(),
            renewals_failed: self.renewals_failed.get(),
            left: self.left.snapshot(),
        }
    }
}

/// What a node has counted of its leaderships.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct LeadershipCounts {
    /// Leaderships that the store gave to this node.
    pub acquired: u64,
    /// Renewals that were acknowledged. A store that one process opens exclusively needs none.
    pub renewals: u64,
    /// Attempts at a renewal that failed.
    pub renewals_failed: u64,
    /// The raw time that was left of the leadership at each acknowledged renewal.
    pub left: Distribution,
}
