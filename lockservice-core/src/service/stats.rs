//! [`ServiceStats`]: the numbers of a node, and a bounded number of the worst of its keys, waits
//! and sessions.

use std::time::Duration;

use crate::id::{NodeName, ServiceId, TableRef};
use crate::metrics::{ServiceCounts, ServiceGauges, SessionEnd};
use crate::service::hot::{HotKey, HotWindow};
use crate::service::worst::LongWait;
use crate::service::{LockService, SessionStatus};

/// The state of a node's service at about one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceStats {
    /// The node.
    pub node: NodeName,
    /// The incarnation that serves now.
    pub service: ServiceId,
    /// The present state.
    pub gauges: ServiceGauges,
    /// What was counted since the process began.
    pub totals: Totals,
    /// See [`LockService::hot`].
    pub hot: Vec<HotKey>,
    /// See [`LockService::longest_waits`].
    pub longest_waits: Vec<LongWait>,
    /// See [`LockService::sessions_nearest_to_loss`].
    pub nearest_to_loss: Vec<SessionStatus>,
}

/// What a node has counted since its process began, over all its incarnations. Each of them grows;
/// one that has become smaller is of another process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Rows and ranges that were newly locked, or upgraded.
    pub granted: u64,
    /// Lock calls that failed.
    pub refused: u64,
    /// Lock calls that waited, and whose wait is over: granted or not.
    pub waits: u64,
    /// The sum of their times.
    pub waited: Duration,
    /// Deadlocks that were resolved by a failure.
    pub deadlocks: u64,
    /// Sessions that were opened.
    pub sessions_opened: u64,
    /// Sessions that ended, and were not closed by their clients.
    pub sessions_lost: u64,
    /// Incarnations whose lease was lost.
    pub leases_lost: u64,
}

impl From<&ServiceCounts> for Totals {
    fn from(counts: &ServiceCounts) -> Self {
        let (granted, in_vain) = (&counts.waited_for_grant, &counts.waited_in_vain);
        let lost = counts.sessions_ended.iter().filter(|(end, _)| *end != SessionEnd::Closed);
        Self {
            granted: counts.granted.iter().map(|(_, count)| count).sum(),
            refused: counts.refused.iter().map(|(_, count)| count).sum(),
            waits: granted.count() + in_vain.count(),
            // A histogram shows seconds, which it has counted in microseconds.
            waited: Duration::from_micros(((granted.sum + in_vain.sum) * 1e6).round() as u64),
            deadlocks: counts.deadlocks.count(),
            sessions_opened: counts.sessions_opened,
            sessions_lost: lost.map(|(_, count)| count).sum(),
            leases_lost: counts.leases_lost,
        }
    }
}

impl LockService {
    /// The numbers of this node, and of its hottest keys, longest waits and sessions nearest to a
    /// loss at most `lines` each. The keys and waits are those of one table if `table` is given.
    /// The hottest keys are those of `window`.
    ///
    /// It takes as long as [`gauges`](Self::gauges), and a while more, for it visits all waits and
    /// sessions. Run it where that holds up nothing.
    pub fn stats(&self, table: Option<&TableRef>, window: HotWindow, lines: usize) -> ServiceStats {
        // The gauges come first: they add what the engine has counted.
        let gauges = self.gauges();
        ServiceStats {
            node: self.node().clone(),
            service: self.id(),
            gauges,
            totals: Totals::from(&self.metrics().counts()),
            hot: self.hot(table, window, lines),
            longest_waits: self.longest_waits(table, lines),
            nearest_to_loss: self.sessions_nearest_to_loss(lines),
        }
    }
}
