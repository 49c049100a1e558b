//! [`SlowWaits`]: lock calls that wait for long are written to the log, as PostgreSQL does it with
//! `log_lock_waits`.
//!
//! A call that has waited for [`slow_wait_ms`](crate::service::ServiceSettings::slow_wait_ms) is
//! logged with what it waits for, and whose that is; and once more when its wait is over. There may
//! be thousands of them at one time, so that the lines of a second are bounded, and those that are
//! left out are counted in a later line.

use std::time::Duration;

use crate::clock::Time;
use crate::error::Error;
use crate::id::TableRef;
use crate::service::txn::TxnRecord;
use crate::service::{Granted, ServiceInner};
use crate::sync::Mutex;
use crate::table::LockCall;

/// The target of its lines, for filters of the log.
const TARGET: &str = "lockservice::slow_wait";

/// Most calls of a second that are logged.
const CALLS_MAX: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);

/// The bound on the lines. Its mutex is a leaf.
#[derive(Debug, Default)]
pub(in crate::service) struct SlowWaits(Mutex<Window>);

/// The lines of a second. Pure: time is an argument.
#[derive(Debug, Default)]
struct Window {
    began: Option<Time>,
    calls: u32,
    left_out: u64,
}

impl Window {
    /// `None` if a call at `now` is left out. Otherwise the number of calls that were left out
    /// since the last one that was not.
    fn admit(&mut self, now: Time) -> Option<u64> {
        if self.began.is_none_or(|began| now.since(began) >= SECOND) {
            (self.began, self.calls) = (Some(now), 0);
        }
        if self.calls == CALLS_MAX {
            self.left_out += 1;
            return None;
        }
        self.calls += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl ServiceInner {
    /// The time from which the wait of a call that arrived at `began` is slow; `None` if no wait
    /// is.
    pub(super) fn slow_from(&self, began: Time) -> Option<Time> {
        let ms = self.parts.settings.slow_wait_ms;
        (ms > 0).then(|| began + Duration::from_millis(ms))
    }

    /// Logs a call that has waited since `began`. False if it is left out.
    pub(super) fn log_slow_wait(
        &self,
        txn: &TxnRecord,
        table: &TableRef,
        call: &LockCall,
        began: Time,
    ) -> bool {
        let now = self.parts.env.now();
        let Some(left_out) = self.slow_waits.0.lock().admit(now) else { return false };
        let (client, label, waited) = (txn.client(), &*txn.label, now.since(began));
        match call.blocker() {
            Some(mut blocker) => {
                (blocker.label, blocker.client) = self.names(blocker.txn);
                tracing::warn!(
                    target: TARGET, txn = %txn.id, client, label, %table, ?waited, left_out,
                    item = %blocker.item, holder = %blocker.txn, holder_client = blocker.client,
                    holder_label = blocker.label, granted = blocker.granted,
                    "a lock call waits for long: {blocker}"
                );
            }
            None => tracing::warn!(
                target: TARGET, txn = %txn.id, client, label, %table, ?waited, left_out,
                "a lock call waits for long, for a fencing token or a table"
            ),
        }
        true
    }

    /// Logs that the wait of a call is over that was logged.
    pub(super) fn log_slow_end(
        &self,
        txn: &TxnRecord,
        began: Time,
        result: &Result<Granted, Error>,
    ) {
        let waited = self.parts.env.now().since(began);
        let outcome = result.as_ref().map_or_else(|error| error.kind().name(), |_| "granted");
        tracing::warn!(target: TARGET, txn = %txn.id, ?waited, outcome, "a slow wait is over");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_a_second_are_bounded_and_those_left_out_are_counted() {
        let at = |ms| Time::ZERO + Duration::from_millis(ms);
        let mut window = Window::default();
        for call in 0..u64::from(CALLS_MAX) {
            assert_eq!(window.admit(at(call)), Some(0));
        }
        assert_eq!([500, 999].map(|ms| window.admit(at(ms))), [None, None]);
        assert_eq!([1_000, 1_001].map(|ms| window.admit(at(ms))), [Some(2), Some(0)]);
    }
}
