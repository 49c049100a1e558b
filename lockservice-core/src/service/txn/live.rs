//! Which validating transactions of this incarnation are alive, and what the allocator is told of
//! them (C4).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::allocator::{OriginTxns, TxnLife, TxnRange};
use crate::error::ErrorKind;
use crate::id::{Epoch, TxnId};
use crate::service::{Phase, ServiceInner};
use crate::sync::Mutex;

/// How many transactions the allocator is told of before they begin, so that none waits for that.
/// It is told again when half of them have begun.
const AHEAD: u64 = 1 << 16;

/// How often the allocator is told, if there is news and nothing is urgent.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The numbers of an incarnation's transactions, and which of the validating ones are alive.
#[derive(Debug)]
pub(crate) struct LiveTxns {
    /// The next number, for transactions of either kind. ORDERING: `Relaxed`, for only uniqueness
    /// matters; a validating transaction takes its number under `validating`, which orders it for
    /// a thread that looks there.
    next: AtomicU64,
    /// The numbers of those that are alive, or are being ended. Locked for one change or look, with
    /// nothing.
    validating: Mutex<BTreeSet<u64>>,
    /// The end that was reported to the allocator. Stored by `report`, loaded by `begin`. A hint:
    /// it only wakes the reporter.
    reported_end: AtomicU64,
    /// Told when much of what the allocator was told of has begun.
    behind: Notify,
}

impl LiveTxns {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            validating: Mutex::new(BTreeSet::new()),
            reported_end: AtomicU64::new(0),
            behind: Notify::new(),
        }
    }

    /// The number of a new transaction. One that validates is alive from here on.
    pub(crate) fn begin(&self, validates: bool) -> u64 {
        if !validates {
            return self.next.fetch_add(1, Ordering::Relaxed);
        }
        let mut validating = self.validating.lock();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        validating.insert(number);
        drop(validating);
        if number + AHEAD / 2 >= self.reported_end.load(Ordering::Relaxed) {
            self.behind.notify_one();
        }
        number
    }

    /// The transaction is over. To be called before others are granted what it held.
    pub(crate) fn end(&self, txn: TxnId) {
        if txn.validates() {
            self.validating.lock().remove(&txn.number());
        }
    }

    /// Which validating transactions can be alive, now and for the next [`AHEAD`].
    fn range(&self) -> TxnRange {
        let validating = self.validating.lock();
        // Under the lock: no validating transaction has a number that is neither in the set nor at
        // least this.
        let next = self.next.load(Ordering::Relaxed);
        TxnRange {
            floor: validating.first().copied().unwrap_or(next),
            end: next.saturating_add(AHEAD),
        }
    }
}

impl OriginTxns for LiveTxns {
    fn life(&self, number: u64) -> TxnLife {
        let validating = self.validating.lock();
        if validating.contains(&number) {
            TxnLife::Alive
        } else if number < self.next.load(Ordering::Relaxed) {
            TxnLife::Over
        } else {
            TxnLife::NotStarted
        }
    }
}

/// Tells the allocator which transactions can be alive, until the service is sealed or gives its
/// lease up.
pub(crate) async fn report(inner: Arc<ServiceInner>) {
    let mut phase = inner.phase.subscribe();
    let mut observed: Option<(TxnRange, Epoch)> = None;
    let mut pause = TELL_EVERY;
    loop {
        let range = inner.live.range();
        // A leader that follows was told nothing yet.
        let news = observed != Some((range, inner.observed().epoch));
        let work = async {
            if news {
                let outcome = inner.parts.allocator.report_txns(inner.id, inner.nonce, range).await;
                return Some(outcome);
            }
            tokio::select! {
                () = inner.live.behind.notified() => {}
                () = inner.parts.env.sleep(TELL_EVERY) => {}
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
                inner.live.reported_end.store(range.end, Ordering::Relaxed);
                observed = Some((range, at.epoch));
                pause = crate::service::tables::RETRY_FIRST;
            }
            // The lease renewal finds out the same.
            Some(Err(e)) if e.kind() == ErrorKind::LeaseLost => return,
            Some(Err(e)) => {
                tracing::debug!(error = ?e, "cannot tell the allocator which transactions are \
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
            () = inner.parts.env.sleep(TELL_EVERY) => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::ServiceId;

    fn txn(number: u64) -> TxnId {
        TxnId::new(ServiceId::new(1), number, true)
    }

    #[test]
    fn the_floor_is_the_lowest_validating_transaction_that_is_alive() {
        let live = LiveTxns::new();
        assert_eq!(live.range(), TxnRange { floor: 1, end: 1 + AHEAD });
        let numbers = [true, false, true, true].map(|validates| live.begin(validates));
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert_eq!(live.range(), TxnRange { floor: 1, end: 5 + AHEAD });
        live.end(txn(3));
        assert_eq!(live.range().floor, 1);
        assert_eq!(
            [1, 3, 5].map(|number| live.life(number)),
            [TxnLife::Alive, TxnLife::Over, TxnLife::NotStarted]
        );
        live.end(txn(1));
        assert_eq!(live.range().floor, 4, "one that does not validate does not count");
        live.end(txn(4));
        assert_eq!(live.range().floor, 5);
    }
}
