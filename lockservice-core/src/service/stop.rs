//! The stop of a service for good: its clients are told to stop their work. A stop for a restart is
//! in [`reclaim`](crate::service::reclaim).

use std::time::Duration;

use crate::service::phase::{Phase, shutting_down};
use crate::service::{LockService, Stopped};

impl LockService {
    /// Stops: ends every wait with `ShuttingDown`, notifies the sessions, waits up to `grace` for
    /// them to close, and resigns the lease if nothing is in use any more (P5), so that the next
    /// start need not wait for it.
    ///
    /// If it was not to resign, or the allocator could not be reached, the tables wait out the
    /// lease at the next start. The result says so, and the log says why.
    ///
    /// # Cancel safety
    /// Dropped halfway it leaves the service stopping; call it again.
    pub async fn shutdown(&self, grace: Duration) -> Stopped {
        let inner = &self.inner;
        inner.phase.send_if_modified(|phase| {
            let first = matches!(phase, Phase::Serving);
            if first {
                *phase = Phase::Stopping { grace };
            }
            first
        });
        inner.close();
        inner.engine.seal(shutting_down);
        let deadline = inner.parts.env.now() + grace;
        let gone = inner.until(deadline, inner.everybody_gone()).await.is_some();
        let resigned = if gone && inner.begin_to_resign() {
            // Once the lease must have run out there is nothing left to resign, however long the
            // allocator takes.
            let lapsed_at = inner.lease.lock().lapsed_at();
            match inner.until(lapsed_at, inner.resign()).await {
                Some(Ok(_)) => true,
                Some(Err(e)) => {
                    tracing::warn!(error = ?e, "could not resign the lease: the next start waits \
                        for it");
                    false
                }
                None => {
                    tracing::warn!(
                        "the allocator did not respond to the resignation while the lease lasted"
                    );
                    false
                }
            }
        } else {
            false
        };
        inner.seal(shutting_down());
        // A sealed service is not waited for, even if sessions are still open.
        let confirmed = gone && inner.sessions.is_empty() && inner.txns.is_zero();
        Stopped { confirmed, resigned, held: 0 }
    }
}
