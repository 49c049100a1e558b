//! The end of a session: closed, lapsed, or with the service. Its locks are released.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::SessionEnd;
use crate::service::Phase;
use crate::service::session::Session;
use crate::service::session::quota::Charge;
use crate::service::txn::timer;

/// Longest text about what a client left running.
pub const STILL_RUNNING_BYTES_MAX: usize = 1_024;

impl Session {
    /// Gives the session up: its client has stopped all protected work (P5). Ends its transactions;
    /// idempotent.
    ///
    /// # Cancel safety
    /// Cancel safe: it waits for nothing.
    pub async fn close(&self) {
        let why = Error::new(ErrorKind::SessionLost, "the session was closed");
        self.finish(why, SessionEnd::Closed);
    }

    /// The client goes while work that the locks protect may still be running: `still_running`
    /// names it, in at most [`STILL_RUNNING_BYTES_MAX`] bytes without control characters. Operators
    /// see it; the first text stays. Nothing is released, ended or renewed: others get the locks
    /// when the session has lapsed (P5).
    ///
    /// # Errors
    /// `InvalidArgument` for a text out of bounds.
    pub fn leave(&self, still_running: &str) -> Result<()> {
        let bad = still_running.len() > STILL_RUNNING_BYTES_MAX
            || still_running.chars().any(char::is_control);
        if bad || still_running.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "say what may still be running, without control characters and not at such length; \
                 or close the session",
            )
            .with("bytes", still_running.len())
            .with("limit", STILL_RUNNING_BYTES_MAX));
        }
        let renewals = &self.record.renewals;
        if renewals.still_running.set(still_running.to_owned()).is_ok() {
            tracing::warn!(
                client = %renewals.client,
                ttl = ?renewals.ttl,
                still_running,
                "a client went without having stopped its work: its locks stay until its session \
                    has lapsed"
            );
        }
        Ok(())
    }

    /// Resolves when the session is lost or closed, with the reason.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&self) -> Error {
        let mut lost = self.record.lost.subscribe();
        match lost.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            _ => unknown(),
        }
    }

    /// Resolves when the service begins to shut down, with the time that it gives its sessions to
    /// close.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stopping(&self) -> Duration {
        self.inner.stopping().await
    }

    pub(super) fn why_lost(&self) -> Error {
        self.record.lost.borrow().clone().unwrap_or_else(unknown)
    }

    /// Marks the session lost, then releases its locks. Only the first call does anything, and
    /// returns true.
    fn finish(&self, why: Error, end: SessionEnd) -> bool {
        let queues = {
            let mut state = self.record.state.lock();
            if !std::mem::replace(&mut state.open, false) {
                return false;
            }
            self.record.renewals.end();
            (state.kept_bytes, state.ops) = (0, 0);
            state.charge = Charge::default();
            let mut queues: Vec<_> = std::mem::take(&mut state.txns).into_iter().collect();
            // In an order that does not depend on hashes.
            queues.sort_unstable_by_key(|(number, _)| *number);
            queues
        };
        self.inner.metrics().session_ended(end);
        self.record.lost.send_replace(Some(why.clone()));
        // Cancels running calls (their cancellers are dropped) and fails queued ones.
        let mut txns = Vec::new();
        for (_, queue) in queues {
            txns.push(Arc::clone(&queue.txn));
            for sender in queue.into_waiting() {
                let _ = sender.send(Err(why.clone()));
            }
        }
        self.inner.abandon(txns);
        self.inner.sessions.remove(&self.record.id);
        self.inner.departures.note();
        true
    }

    /// Ends the session when its time is over, or with the service's lease.
    pub(super) async fn watch_over(self) {
        let mut phase = self.inner.phase.subscribe();
        loop {
            let Some((lapses, now)) = self.record.renewals.lapses(&**self.inner.parts.env.clock())
            else {
                let why = Error::new(
                    ErrorKind::SessionLost,
                    "the session was not renewed in time and its locks are given away: stop the \
                        protected work and open a new session",
                );
                if self.finish(why, SessionEnd::Lapsed) {
                    tracing::info!(
                        client = %self.record.renewals.client,
                        ttl = ?self.record.renewals.ttl,
                        "session lapsed: its client was silent"
                    );
                }
                return;
            };
            tokio::select! {
                () = self.inner.parts.env.sleep(timer(lapses, now)) => {}
                _ = self.lost() => return,
                sealed = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => {
                    let why = match sealed.as_deref() {
                        Ok(Phase::Sealed(why)) => why.clone(),
                        _ => unknown(),
                    };
                    // It locks the phase for reading, and so does `finish`: another thread that
                    // came in between to write would wait for the first, and the second for it.
                    drop(sealed);
                    let end = SessionEnd::with(why.kind());
                    self.finish(why, end);
                    return;
                }
            }
        }
    }
}

pub(super) fn unknown() -> Error {
    Error::new(
        ErrorKind::SessionLost,
        "the session is unknown here or has lapsed, and its locks are given away: stop the \
            protected work and open a new session",
    )
}
