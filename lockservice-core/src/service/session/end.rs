//! The end of a session: closed, lapsed, killed, or with the service.
//!
//! It has two steps: the session is *stopped*, which its client learns; then it is *over*, and its
//! locks are released. An operator's kill lets time pass between them (P5).

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::id::HolderMark;
use crate::metrics::SessionEnd;
use crate::service::Phase;
use crate::service::kill::KillEnd;
use crate::service::session::Session;
use crate::service::session::quota::Charge;
use crate::service::session::state::Stage;
use crate::service::txn::timer;

/// Longest text about what a client left running.
pub const STILL_RUNNING_BYTES_MAX: usize = 1_024;

/// How far the end of a session has come. It never goes back, and the first reason stays.
#[derive(Clone, Debug, Default)]
pub(super) enum Ending {
    #[default]
    None,
    /// The session is lost for its client, which is to stop its work.
    Lost(Error),
    /// Its transactions were given up.
    Over(Error),
}

impl Ending {
    pub(super) fn why(&self) -> Option<&Error> {
        match self {
            Self::None => None,
            Self::Lost(why) | Self::Over(why) => Some(why),
        }
    }
}

impl Session {
    /// Gives the session up: its client has stopped all protected work (P5). Ends its transactions;
    /// idempotent.
    ///
    /// # Cancel safety
    /// Cancel safe: it waits for nothing.
    pub async fn close(&self) {
        let why = Error::new(ErrorKind::SessionLost, "the session was closed");
        self.finish(why, KillEnd::Confirmed);
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
        let mut ending = self.record.ending.subscribe();
        match ending.wait_for(|ending| ending.why().is_some()).await.as_deref().map(Ending::why) {
            Ok(Some(why)) => why.clone(),
            _ => unknown(),
        }
    }

    /// Resolves when the transactions of the session were given up.
    async fn over(&self) {
        let mut ending = self.record.ending.subscribe();
        // An error means that the session has gone, and `self` holds it.
        let _ = ending.wait_for(|ending| matches!(ending, Ending::Over(_))).await;
    }

    /// Resolves when the service begins to shut down, with the time that it gives its sessions to
    /// close.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stopping(&self) -> Duration {
        self.inner.stopping().await
    }

    pub(in crate::service) fn why_lost(&self) -> Error {
        self.record.ending.borrow().why().cloned().unwrap_or_else(unknown)
    }

    /// Marks the session lost: nothing more of it is renewed or granted, and its calls that wait
    /// fail. Its transactions keep their locks. Only the first call does anything.
    pub(super) fn stop(&self, why: &Error) {
        let queues = {
            let mut state = self.record.state.lock();
            if state.stage != Stage::Open {
                return;
            }
            state.stage = Stage::Stopped;
            self.record.renewals.stop();
            (state.kept_bytes, state.ops) = (0, 0);
            state.charge.set(0, 0);
            state.lost = Vec::new();
            let mut queues: Vec<_> = std::mem::take(&mut state.txns).into_iter().collect();
            // In an order that does not depend on hashes.
            queues.sort_unstable_by_key(|(number, _)| *number);
            state.stopped = queues.iter().map(|(_, queue)| Arc::clone(&queue.txn)).collect();
            queues
        };
        self.end_with(Ending::Lost(why.clone()));
        if planted!(WaiterNotFenced) {
            std::mem::forget(queues);
            return;
        }
        // Cancels running calls (their cancellers are dropped) and fails queued ones.
        for sender in queues.into_iter().flat_map(|(_, queue)| queue.into_waiting()) {
            let _ = sender.send(Err(why.clone()));
        }
    }

    /// Marks the session lost, then releases its locks. Only the first call does anything.
    pub(super) fn finish(&self, why: Error, end: KillEnd) {
        self.stop(&why);
        let (txns, killers) = {
            let mut state = self.record.state.lock();
            if state.stage == Stage::Over {
                return;
            }
            state.stage = Stage::Over;
            self.record.renewals.end();
            state.charge = Charge::default();
            (std::mem::take(&mut state.stopped), std::mem::take(&mut state.killers))
        };
        // First, for the thread that has stopped the session may not have told its reason yet.
        self.end_with(Ending::Over(why));
        // A session that was killed has another reason than its end.
        let first = self.why_lost();
        let counted = match end {
            _ if first.kind() == ErrorKind::Killed => SessionEnd::Killed,
            KillEnd::Confirmed => SessionEnd::Closed,
            KillEnd::Lapsed | KillEnd::Forced => SessionEnd::Lapsed,
            KillEnd::Sealed => SessionEnd::with(first.kind()),
        };
        self.inner.metrics().session_ended(counted);
        if !matches!(counted, SessionEnd::Closed | SessionEnd::Restarting) {
            let renewals = &self.record.renewals;
            tracing::warn!(
                client = %renewals.client,
                ttl = ?renewals.ttl,
                txns = txns.len(),
                reason = counted.name(),
                "a session is lost: {}",
                first.message()
            );
        }
        self.inner.abandon(txns, end, move |committing| {
            killers.into_iter().for_each(|killer| killer.tell(end, &committing));
        });
        if self.record.claims_from.is_some() {
            let mark = HolderMark::of(self.record.id);
            self.inner.holder_done(mark);
            self.inner.waiter_gone(mark);
        }
        self.inner.session_numbers.remove(self.record.renewals.handle.number);
        self.inner.sessions.remove(&self.record.id);
        self.inner.departures.note();
    }

    /// Tells all who wait for it how far the end has come.
    fn end_with(&self, to: Ending) {
        self.record.ending.send_if_modified(|ending| {
            *ending = match (&*ending, to) {
                (Ending::None, to) => to,
                (Ending::Lost(why), Ending::Over(_)) => Ending::Over(why.clone()),
                _ => return false,
            };
            true
        });
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
                self.finish(why, KillEnd::Lapsed);
                return;
            };
            tokio::select! {
                biased;
                () = self.inner.parts.env.sleep(timer(lapses, now)) => {}
                () = self.over() => return,
                sealed = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => {
                    let why = match sealed.as_deref() {
                        Ok(Phase::Sealed(why)) => why.clone(),
                        _ => unknown(),
                    };
                    // It locks the phase for reading, and so does `finish`: another thread that
                    // came in between to write would wait for the first, and the second for it.
                    drop(sealed);
                    self.finish(why, KillEnd::Sealed);
                    return;
                }
            }
        }
    }
}

pub(in crate::service) fn unknown() -> Error {
    Error::new(
        ErrorKind::SessionLost,
        "the session is unknown here or has lapsed, and its locks are given away: stop the \
            protected work and open a new session",
    )
}
