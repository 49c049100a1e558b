//! [`Phase`]: from serving to sealed, and until when the lease lets the service serve.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::service::ServiceInner;
use crate::service::lease::Lease;
use crate::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Serving,
    Stopping {
        grace: Duration,
    },
    /// It stops for a restart (P6): sessions are not told, and the lease is renewed no more.
    Restarting,
    /// Everybody has gone and the lease is being given up: it is renewed no more, and that the
    /// allocator says so is no loss.
    Resigning,
    Sealed(Error),
}

impl Phase {
    /// True if the lease is not to be renewed any more.
    pub(super) fn gave_lease_up(&self) -> bool {
        matches!(self, Self::Restarting | Self::Resigning | Self::Sealed(_))
    }
}

pub(super) fn shutting_down() -> Error {
    Error::new(
        ErrorKind::ShuttingDown,
        "the server is shutting down: stop the protected work and try again later, or elsewhere",
    )
}

pub(super) fn restarting() -> Error {
    Error::new(
        ErrorKind::Restarting,
        "the server is being restarted: what is held stays held; try again within the time of the \
            call",
    )
}

pub(super) fn lease_lost() -> Error {
    Error::new(
        ErrorKind::LeaseLost,
        "the server's lease ran out before it could be renewed, and its locks are invalid: stop \
            the protected work and start again",
    )
}

impl ServiceInner {
    /// Fails unless locks may be granted now.
    pub(crate) fn check_serving(&self) -> Result<()> {
        self.check_serving_at(self.parts.env.now())
    }

    /// Like [`check_serving`](Self::check_serving), at a time that was just read.
    pub(crate) fn check_serving_at(&self, now: Time) -> Result<()> {
        if self.serving.is_at(now) {
            return Ok(());
        }
        // The reason follows.
        match &*self.phase.borrow() {
            Phase::Serving => {}
            Phase::Stopping { .. } | Phase::Resigning => return Err(shutting_down()),
            Phase::Restarting => return Err(restarting()),
            Phase::Sealed(why) => return Err(why.clone()),
        }
        self.lease_remaining().map(drop)
    }

    /// The raw remaining lease. Fails if there is none: seals the service on the spot (B2).
    pub(crate) fn lease_remaining(&self) -> Result<Duration> {
        // The usual case needs no mutex.
        if let Some(remaining) = self.serving.remaining(&**self.parts.env.clock()) {
            return Ok(remaining);
        }
        let remaining = self.with_lease(|lease, now| lease.remaining(now));
        if let Phase::Sealed(why) = &*self.phase.borrow() {
            return Err(why.clone());
        }
        // Found over under the mutex, it stays over: nothing can come between that and the seal.
        remaining.ok_or_else(|| self.seal(lease_lost()))
    }

    /// Decides something about the lease, by a reading of the clock that is made under its mutex.
    pub(crate) fn with_lease<T>(&self, decide: impl FnOnce(&mut Lease, Time) -> T) -> T {
        let mut lease = self.lease.lock();
        let now = self.parts.env.now();
        let decided = decide(&mut lease, now);
        self.serving.set(&lease);
        decided
    }

    /// From here on no call responds without a check of the phase.
    pub(super) fn close(&self) {
        let _lease = self.lease.lock();
        self.serving.close();
    }

    /// Stops all grants and responses (B2). Returns the reason: the first one stays, and a
    /// requested stop counts as the first.
    pub(crate) fn seal(&self, why: Error) -> Error {
        let mut reason = why;
        let first = self.phase.send_if_modified(|phase| {
            match phase {
                Phase::Sealed(earlier) => {
                    reason = earlier.clone();
                    return false;
                }
                Phase::Stopping { .. } | Phase::Resigning => reason = shutting_down(),
                Phase::Restarting => reason = restarting(),
                Phase::Serving => {}
            }
            *phase = Phase::Sealed(reason.clone());
            true
        });
        if first {
            tracing::info!(service = %self.id, %reason, "service sealed");
            self.close();
            self.engine.seal(match reason.kind() {
                ErrorKind::LeaseLost => lease_lost,
                ErrorKind::Restarting => restarting,
                _ => shutting_down,
            });
            self.count_engine();
            self.metrics().leases_lost.add(u64::from(reason.kind() == ErrorKind::LeaseLost));
            self.departures.note();
        }
        reason
    }

    /// True if the service stops and is not sealed: then its lease is renewed no more.
    pub(super) fn begin_to_resign(&self) -> bool {
        let mut resigning = false;
        self.phase.send_if_modified(|phase| {
            resigning = matches!(phase, Phase::Stopping { .. } | Phase::Resigning);
            if resigning {
                *phase = Phase::Resigning;
            }
            resigning
        });
        resigning
    }

    pub(crate) fn is_sealed(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Sealed(_))
    }

    /// Waits until the service no longer serves.
    pub(crate) async fn phase_changed(&self) {
        // An error means that the sender has gone, and `self` holds it.
        let _ = self.phase.subscribe().wait_for(|phase| !matches!(phase, Phase::Serving)).await;
    }

    pub(crate) async fn stopping(&self) -> Duration {
        // The end of a lease is none: the next incarnation serves.
        let is_stopping = |phase: &Phase| match phase {
            Phase::Serving | Phase::Restarting => false,
            Phase::Stopping { .. } | Phase::Resigning => true,
            Phase::Sealed(why) => why.kind() == ErrorKind::ShuttingDown,
        };
        let mut phase = self.phase.subscribe();
        match phase.wait_for(is_stopping).await.as_deref() {
            Ok(Phase::Stopping { grace }) => *grace,
            _ => Duration::ZERO,
        }
    }

    pub(super) async fn everybody_gone(&self) {
        let gone = || (self.sessions.is_empty() && self.txns.is_zero()) || self.is_sealed();
        self.departures.until(gone).await;
    }
}

/// The ends of sessions and transactions, for a service that waits for the last of them.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    /// True once somebody waits. Until then an end costs one look.
    ///
    /// ORDERING: `SeqCst`, with the count of what is left as its partner: see `Count`.
    is_awaited: AtomicBool,
    departed: Notify,
}

impl Departures {
    /// Something has ended.
    pub(crate) fn note(&self) {
        if self.is_awaited.load(Ordering::SeqCst) {
            self.departed.notify_waiters();
        }
    }

    /// Waits until `gone`, which is looked at after each end.
    async fn until(&self, gone: impl Fn() -> bool) {
        self.is_awaited.store(true, Ordering::SeqCst);
        loop {
            let mut departed = pin!(self.departed.notified());
            // Registered before the look, so that a departure in between is not missed.
            departed.as_mut().enable();
            if gone() {
                return;
            }
            departed.await;
        }
    }
}
