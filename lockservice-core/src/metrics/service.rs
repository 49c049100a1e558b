//! [`ServiceMetrics`]: what a node's lock service has counted, over all its incarnations.

use std::time::Duration;

use super::{ByKind, Counter, Distribution, Histogram};
use crate::error::ErrorKind;
use crate::key::LockMode;
use crate::table::EngineCounts;

/// The way in which a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum SessionEnd {
    /// Its client closed it: nothing was lost.
    Closed,
    /// Its client was silent for longer than the TTL.
    Lapsed,
    /// The lease of the node was lost.
    LeaseLost,
    /// The node stopped, and the client had not closed it by the end of the grace.
    ShuttingDown,
    /// An operator ended it.
    Killed,
    /// The node was stopped for a restart: its client claims what it holds at the next process.
    Restarting,
}

impl SessionEnd {
    /// Every way there is.
    pub const ALL: [Self; 6] = [
        Self::Closed,
        Self::Lapsed,
        Self::LeaseLost,
        Self::ShuttingDown,
        Self::Killed,
        Self::Restarting,
    ];

    /// A stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Lapsed => "lapsed",
            Self::LeaseLost => "lease_lost",
            Self::ShuttingDown => "shutting_down",
            Self::Killed => "killed",
            Self::Restarting => "restarting",
        }
    }

    /// The end of the sessions of an incarnation that was sealed for this reason.
    pub(crate) fn with(sealed: ErrorKind) -> Self {
        match sealed {
            ErrorKind::LeaseLost => Self::LeaseLost,
            ErrorKind::Restarting => Self::Restarting,
            _ => Self::ShuttingDown,
        }
    }
}

/// Why a transaction was ended while its session lived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum TxnKillCause {
    /// An operator wanted it.
    Operator,
    /// It held locks for longer than a limit of their table allows.
    LongestHold,
    /// It held locks, and made no call, for longer than a limit of their table allows.
    LongestIdleHold,
    /// After a restart another transaction claimed what it had claimed, under a larger token.
    Claim,
}

impl TxnKillCause {
    /// Every cause there is.
    pub const ALL: [Self; 4] =
        [Self::Operator, Self::LongestHold, Self::LongestIdleHold, Self::Claim];

    /// A stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::LongestHold => "longest_hold",
            Self::LongestIdleHold => "longest_idle_hold",
            Self::Claim => "claim",
        }
    }
}

/// What a node's lock service has counted. Incarnations of one node share it, so that its counts
/// grow over the loss of a lease: see [`ServiceParts::metrics`](crate::service::ServiceParts).
#[derive(Debug)]
pub struct ServiceMetrics {
    granted: [Counter; LockMode::ALL.len()],
    deadlocks: Histogram,
    pub(crate) refused: ByKind,
    pub(crate) waited_for_grant: Histogram,
    pub(crate) waited_in_vain: Histogram,
    pub(crate) hand_over: Histogram,
    pub(crate) held: Histogram,
    pub(crate) sessions_opened: Counter,
    sessions_ended: [Counter; SessionEnd::ALL.len()],
    txns_killed: [Counter; TxnKillCause::ALL.len()],
    pub(crate) session_left: Histogram,
    pub(crate) lease_renewals: Counter,
    pub(crate) lease_renewals_failed: Counter,
    pub(crate) lease_left: Histogram,
    pub(crate) leases_lost: Counter,
}

impl Default for ServiceMetrics {
    fn default() -> Self {
        Self {
            granted: Default::default(),
            deadlocks: Histogram::of_lengths(),
            refused: ByKind::default(),
            waited_for_grant: Histogram::of_times(),
            waited_in_vain: Histogram::of_times(),
            hand_over: Histogram::of_times(),
            held: Histogram::of_times(),
            sessions_opened: Counter::default(),
            sessions_ended: Default::default(),
            txns_killed: Default::default(),
            session_left: Histogram::of_parts(),
            lease_renewals: Counter::default(),
            lease_renewals_failed: Counter::default(),
            lease_left: Histogram::of_times(),
            leases_lost: Counter::default(),
        }
    }
}

impl ServiceMetrics {
    pub(crate) fn add_engine(&self, counts: &EngineCounts) {
        for (counter, more) in self.granted.iter().zip(counts.granted) {
            counter.add(more);
        }
        self.deadlocks.add_lengths(&counts.deadlocks);
    }

    pub(crate) fn session_ended(&self, end: SessionEnd) {
        self.sessions_ended[end as usize].add(1);
    }

    pub(crate) fn txn_killed(&self, cause: TxnKillCause) {
        self.txns_killed[cause as usize].add(1);
    }

    /// What was counted so far. Locks and deadlocks of a service that runs are counted up to the
    /// last call of [`LockService::gauges`](crate::service::LockService::gauges).
    pub fn counts(&self) -> ServiceCounts {
        ServiceCounts {
            granted: LockMode::ALL.map(|mode| (mode, self.granted[mode.index()].get())),
            deadlocks: self.deadlocks.snapshot(),
            refused: self.refused.counts(),
            waited_for_grant: self.waited_for_grant.snapshot(),
            waited_in_vain: self.waited_in_vain.snapshot(),
            hand_over: self.hand_over.snapshot(),
            held: self.held.snapshot(),
            sessions_opened: self.sessions_opened.get(),
            sessions_ended: SessionEnd::ALL
                .map(|end| (end, self.sessions_ended[end as usize].get())),
            txns_killed: TxnKillCause::ALL
                .map(|cause| (cause, self.txns_killed[cause as usize].get())),
            session_left: self.session_left.snapshot(),
            lease_renewals: self.lease_renewals.get(),
            lease_renewals_failed: self.lease_renewals_failed.get(),
            lease_left: self.lease_left.snapshot(),
            leases_lost: self.leases_lost.get(),
        }
    }
}

/// What a lock service has counted since its node began.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct ServiceCounts {
    /// Rows and ranges that were newly locked, or upgraded, by the mode of the request.
    pub granted: [(LockMode, u64); LockMode::ALL.len()],
    /// Cycles of waits that were resolved by a failure, by the number of their transactions.
    pub deadlocks: Distribution,
    /// Lock calls that failed, by kind.
    pub refused: Vec<(ErrorKind, u64)>,
    /// How long calls waited that were granted then; those that did not wait are not counted.
    pub waited_for_grant: Distribution,
    /// How long calls waited that failed then.
    pub waited_in_vain: Distribution,
    /// The time from the grant to a waiting call, made by the thread that released the lock, to the
    /// response of that call.
    pub hand_over: Distribution,
    /// The time from the first grant of a transaction to its end, for one of 16 transactions.
    pub held: Distribution,
    /// Sessions that were opened.
    pub sessions_opened: u64,
    /// Sessions that ended.
    pub sessions_ended: [(SessionEnd, u64); SessionEnd::ALL.len()],
    /// Transactions that were ended while their session lived.
    pub txns_killed: [(TxnKillCause, u64); TxnKillCause::ALL.len()],
    /// The part of a session's TTL that was left at each renewal.
    pub session_left: Distribution,
    /// Renewals of the node's lease that were acknowledged.
    pub lease_renewals: u64,
    /// Attempts at a renewal that failed.
    pub lease_renewals_failed: u64,
    /// What was left until the node would have stopped to serve, at each acknowledged renewal.
    pub lease_left: Distribution,
    /// Incarnations whose lease was lost.
    pub leases_lost: u64,
}

/// The present state of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ServiceGauges {
    /// Locks are granted: there is a lease, and the service is not stopping.
    pub serves: bool,
    /// What is left until the service stops to serve unless its lease is renewed.
    pub lease_left: Duration,
    /// Tables that are bound to this service.
    pub tables: usize,
    /// Holds of rows and ranges. A row that several transactions share counts for each of them.
    pub held: usize,
    /// Lock calls that wait for a lock or a token.
    pub waiting: usize,
    /// Lock calls that wait for their table to be bound to this service.
    pub waiting_for_tables: usize,
    /// The most calls that may wait, of each of these.
    pub waiting_max: usize,
    /// Estimated memory of all locks and waits, in bytes, with what shards have on credit.
    pub lock_bytes: usize,
    /// The most that it may be.
    pub lock_bytes_max: usize,
    /// Sessions that are open.
    pub sessions: usize,
    /// The most that may be open.
    pub sessions_max: usize,
    /// Transactions that have not ended.
    pub txns: usize,
    /// The most that there may be.
    pub txns_max: usize,
    /// Estimated memory of queued operations and of responses that were not acknowledged, in bytes.
    pub kept_bytes: usize,
}
