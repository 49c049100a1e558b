//! What a service counts, and its present state, for operators.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::error::{Error, Result};
use crate::metrics::{ServiceGauges, ServiceMetrics};
use crate::service::phase::Phase;
use crate::service::txn::TxnRecord;
use crate::service::{LockService, ServiceInner};

/// One of so many transactions has the time measured for which it holds locks.
const HOLDS_SAMPLED: u64 = 16;

impl LockService {
    /// What the node counts, over all its incarnations.
    pub fn metrics(&self) -> &Arc<ServiceMetrics> {
        &self.inner.parts.metrics
    }

    /// True if locks are granted: there is a lease, and the service is not stopping.
    pub fn serves(&self) -> bool {
        let inner = &self.inner;
        let is_serving = matches!(&*inner.phase.borrow(), Phase::Serving);
        is_serving && inner.serving.is_at(inner.parts.env.now())
    }

    /// The present state. Also adds what the engine has counted to [`metrics`](Self::metrics).
    ///
    /// It visits the shards of every table, one after the other, so it takes the longer the more
    /// tables there are: about 0.3 µs a table. Grants go on meanwhile.
    pub fn gauges(&self) -> ServiceGauges {
        let (inner, settings) = (&self.inner, &self.inner.parts.settings);
        let engine = inner.count_engine();
        ServiceGauges {
            serves: self.serves(),
            lease_left: inner.serving.left(inner.parts.env.now()),
            tables: engine.tables,
            held: engine.held,
            waiting: engine.waiting,
            waiting_for_tables: inner.tables.lines.lock().waiting(),
            waiting_max: settings.engine.waiters_max,
            lock_bytes: engine.bytes,
            lock_bytes_max: settings.engine.lock_bytes_max,
            sessions: inner.sessions.len(),
            sessions_max: settings.sessions_max,
            txns: inner.txns.alive(),
            txns_max: settings.txns_max,
            kept_bytes: inner.quota.kept_bytes(),
        }
    }
}

impl ServiceInner {
    pub(crate) fn metrics(&self) -> &ServiceMetrics {
        &self.parts.metrics
    }

    /// Adds what the engine has counted since it was last asked. Returns its present state.
    pub(crate) fn count_engine(&self) -> crate::table::EngineGauges {
        let (counts, gauges) = self.engine.take_counts();
        self.parts.metrics.add_engine(&counts);
        gauges
    }

    /// A lock call failed at once.
    pub(crate) fn count_refusal<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|e| self.parts.metrics.refused.note(e.kind()))
    }

    /// A lock call that arrived at `began` waited, and failed.
    pub(crate) fn count_vain_wait(&self, began: Time, e: &Error) {
        let waited = self.parts.env.now().since(began);
        self.parts.metrics.waited_in_vain.note_time(waited);
        self.parts.metrics.refused.note(e.kind());
    }

    /// A call that waited was granted at `made_at`, and its task goes on `now`.
    pub(crate) fn count_granted_wait(&self, waited: Duration, made_at: Option<Time>, now: Time) {
        self.parts.metrics.waited_for_grant.note_time(waited);
        if let Some(made_at) = made_at {
            self.parts.metrics.hand_over.note_time(now.since(made_at));
        }
    }

    /// A transaction was granted a lock. `now` is called only for the first grant, and only if
    /// lists show since when it holds locks, or if it is measured: the usual case of an embedder
    /// reads no clock for this.
    pub(crate) fn count_hold(&self, txn: &TxnRecord, now: impl FnOnce() -> Time) {
        if is_measured(txn) || txn.has_name() {
            txn.held_since.note(now);
        }
    }

    /// A transaction has ended.
    pub(crate) fn count_end(&self, txn: &TxnRecord) {
        if is_measured(txn)
            && let Some(since) = txn.held_since.get()
        {
            self.parts.metrics.held.note_time(self.parts.env.now().since(since));
        }
    }
}

/// True for the transactions of which the metrics have the time of their holds.
fn is_measured(txn: &TxnRecord) -> bool {
    txn.id.number().get().is_multiple_of(HOLDS_SAMPLED)
}
