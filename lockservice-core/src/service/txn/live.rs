//! The reports to the allocator of the transactions that are alive (C4).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::allocator::TxnRange;
use crate::error::ErrorKind;
use crate::id::{Epoch, TxnId, TxnNumber};
use crate::live_txns::LiveTxns;
use crate::service::{Phase, ServiceInner};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The number of transactions that are reported to the allocator before they begin, so that none
/// waits for that. The next report comes when half of them have begun.
const AHEAD: u64 = 1 << 16;

/// The interval of the reports, if there is news and nothing is urgent.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The transactions of an incarnation, and the last report of them to the allocator.
#[derive(Debug)]
pub(crate) struct ReportedTxns {
    /// The transactions that are alive.
    pub(crate) txns: Arc<LiveTxns>,
    /// The end that was reported to the allocator. Stored by `report`, loaded by `begin`. A hint:
    /// it only wakes the reporter.
    reported_end: AtomicU64,
    /// Notified when much of the reported range has begun.
    behind: Notify,
}

impl ReportedTxns {
    pub(crate) fn new() -> Self {
        Self {
            txns: Arc::new(LiveTxns::new()),
            reported_end: AtomicU64::new(0),
            behind: Notify::new(),
        }
    }

    /// The number of a new transaction. One that validates is alive from here on.
    pub(crate) fn begin(&self, validates: bool) -> TxnNumber {
        let number = self.txns.begin(validates);
        if validates && number.get() + AHEAD / 2 >= self.reported_end.load(Ordering::Relaxed) {
            self.behind.notify_one();
        }
        number
    }

    /// The transaction is over. To be called before others are granted what it held.
    pub(crate) fn end(&self, txn: TxnId) {
        self.txns.end(txn);
    }
}

/// Reports the transactions that can be alive to the allocator, until the service is sealed or
/// gives its lease up.
pub(crate) async fn report(inner: Arc<ServiceInner>) {
    let mut phase = inner.phase.subscribe();
    let mut observed: Option<(TxnRange, Epoch)> = None;
    let mut pause = REPORT_EVERY;
    loop {
        let range = inner.live.txns.range(AHEAD);
        // A later leader has no report yet.
        let news = observed != Some((range, inner.observed().epoch));
        let work = async {
            if news {
                let outcome = inner.parts.allocator.report_txns(inner.id, inner.nonce, range).await;
                return Some(outcome);
            }
            tokio::select! {
                biased;
                () = inner.live.behind.notified() => {}
                () = inner.parts.env.sleep(REPORT_EVERY) => {}
            }
            None
        };
        let outcome = tokio::select! {
            biased;
            _ = phase.wait_for(Phase::gave_lease_up) => return,
            outcome = work => outcome,
        };
        match outcome {
            None => continue,
            Some(Ok(at)) => {
                inner.observe(at);
                inner.live.reported_end.store(range.end.get(), Ordering::Relaxed);
                observed = Some((range, at.epoch));
                pause = crate::service::tables::RETRY_FIRST;
            }
            // The lease renewal finds out the same.
            Some(Err(e)) if e.kind() == ErrorKind::LeaseLost => return,
            Some(Err(e)) => {
                tracing::debug!(error = ?e, "cannot report to the allocator which transactions are \
                    alive; trying again");
                inner.pause(pause).await;
                pause = (pause * 2).min(crate::service::tables::RETRY_MOST);
                continue;
            }
        }
        // Not at each transaction.
        tokio::select! {
            biased;
            _ = phase.wait_for(Phase::gave_lease_up) => return,
            () = inner.live.behind.notified() => {}
            () = inner.parts.env.sleep(REPORT_EVERY) => {}
        }
    }
}
