//! What the parts of a node count, for operators: counters and histograms, without an exporter.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | counters, and counters by kind of error |
//! | `histogram.rs` | [`Histogram`], and [`Distribution`]: what it shows |
//! | `service.rs` | [`ServiceMetrics`]: locks, waits, sessions, the lease |
//! | `leadership.rs` | [`LeadershipMetrics`]: the leadership of the store |
//! | `store.rs` | [`MeteredStore`]: a store whose calls are counted |
//!
//! # Implementation details
//! - Nothing is global: a process may run many nodes. What is counted belongs to the node, and not
//!   to one of its incarnations, so that counters grow over the loss of a lease.
//! - The hot path counts nothing in words that threads share. A row that is locked at once is
//!   counted in its shard, whose mutex is held anyway. A snapshot visits one shard after another,
//!   and holds no other mutex meanwhile.
//! - Pure state does not count time. It returns what has happened, and the shell around it counts.
//! - The order of counts is not defined: two counters of one snapshot may be of different moments.
//!   Each of them never goes back.
#![cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]

mod histogram;
mod leadership;
mod service;
mod store;

use crate::error::ErrorKind;
use crate::sync::atomic::{AtomicU64, Ordering};

pub(crate) use self::histogram::Lengths;
pub use self::histogram::{Distribution, Histogram};
pub use self::leadership::{LeadershipCounts, LeadershipMetrics};
pub use self::service::{ServiceCounts, ServiceGauges, ServiceMetrics, SessionEnd, TxnKillCause};
pub use self::store::{MeteredStore, StoreCall, StoreCallCounts, StoreMetrics};

/// A number that only grows.
///
/// ORDERING: `Relaxed`, without a partner: no other memory depends on it.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter for each kind of error.
#[derive(Debug)]
pub(crate) struct ByKind(Box<[Counter]>);

impl Default for ByKind {
    fn default() -> Self {
        Self(ErrorKind::ALL.iter().map(|_| Counter::default()).collect())
    }
}

impl ByKind {
    pub(crate) fn note(&self, kind: ErrorKind) {
        if let Some(counter) = self.0.get(kind as usize) {
            counter.add(1);
        }
    }

    /// Every kind with its count, in the order of [`ErrorKind::ALL`].
    pub(crate) fn counts(&self) -> Vec<(ErrorKind, u64)> {
        ErrorKind::ALL.iter().copied().zip(self.0.iter().map(Counter::get)).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_counter_of_its_own() {
        let by_kind = ByKind::default();
        for (at, kind) in ErrorKind::ALL.iter().enumerate() {
            (0..=at).for_each(|_| by_kind.note(*kind));
        }
        for (at, (kind, count)) in by_kind.counts().into_iter().enumerate() {
            assert_eq!((kind, count), (ErrorKind::ALL[at], at as u64 + 1));
        }
    }
}
