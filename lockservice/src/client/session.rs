//! [`Session`]: what a client's locks hang on.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::clock::{Time, lo};
use lockservice_core::service::{LockSpec, TxnOptions};
use lockservice_core::{Error, ErrorKind, NodeName, Nonce, Result, ServiceId, SessionId};
use tokio::sync::{Semaphore, watch};

use super::Client;
use super::outbox::Outbox;
use super::txn::{LockGuard, Txn};
use crate::proto;

/// A session with a server (P1). It is renewed in the background, over broken connections, until it is closed or lost. A cheap handle;
/// when the last one, and the last transaction of it, is dropped, the session is given up.
#[derive(Clone, Debug)]
#[must_use]
pub struct Session {
    pub(super) handle: Arc<Handle>,
}

/// Dropped with the last user of a session.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closing.send_if_modified(|closing| {
            let first = *closing == Closing::No;
            if first {
                *closing = Closing::Dropped;
            }
            first
        });
    }
}

/// Whether the session is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    No,
    /// Nobody uses it any more: the driver gives it up.
    Dropped,
    /// It was given up.
    Closed,
}

/// What the handles and the driver of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) outbox: Arc<Outbox>,
    pub(super) info: Info,
    pub(super) guard: watch::Sender<Time>,
    pub(super) lost: watch::Sender<Option<Error>>,
    pub(super) closing: watch::Sender<Closing>,
    /// One permit for each lock operation that the server allows under way.
    pub(super) locks: Arc<Semaphore>,
}

/// What the server said of the session when it was opened.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub(super) session: SessionId,
    pub(super) service: ServiceId,
    pub(super) nonce: Nonce,
    pub(super) node: NodeName,
    pub(super) ttl: Duration,
    pub(super) message_bytes_max: usize,
    pub(super) volatile: bool,
}

impl Shared {
    /// Counts a promise of raw length `promised`, from the send of its request (P2).
    pub(super) fn guard_ends(&self, sent: Time, promised: Duration) -> Time {
        sent + lo(promised).saturating_sub(self.client.parts.stop_time)
    }

    /// Fails if the session is lost, or its guard is over by the clock, whoever else has noticed yet (P2).
    pub(super) fn check(&self) -> Result<()> {
        if let Some(why) = &*self.lost.borrow() {
            return Err(why.clone());
        }
        if self.client.clock().now() >= *self.guard.borrow() {
            return Err(guard_ended());
        }
        Ok(())
    }

    /// Marks the session lost. The first reason stays.
    pub(super) fn lose(&self, why: Error) {
        let why = if why.advice() == lockservice_core::Advice::NewSession {
            why
        } else {
            Error::new(ErrorKind::SessionLost, "the session cannot go on: stop the protected work and open a new one")
                .with_source(why)
        };
        let first = self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(why.clone());
            }
            first
        });
        if first {
            tracing::warn!(session = %self.info.session, reason = %why, "session lost");
            self.outbox.fail_locks(&why);
        }
    }

    /// Resolves when `deadline` has passed; never if there is none. Timers only wake, and stand still while the machine sleeps; the clock
    /// decides.
    pub(super) async fn past(&self, deadline: Option<Time>) {
        const NAP_MAX: Duration = Duration::from_secs(1);
        let Some(deadline) = deadline else { return std::future::pending().await };
        loop {
            let left = deadline.remaining(self.client.clock().now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(NAP_MAX)).await;
        }
    }

    /// The reason to give a caller whose answer will never come.
    pub(super) fn why_lost(&self) -> Error {
        let lost = self.lost.borrow();
        lost.clone().unwrap_or_else(|| Error::new(ErrorKind::SessionLost, "the session was closed: open a new one"))
    }

    /// Tells the server that the session is over and its work has stopped.
    pub(super) async fn give_up(&self) -> Result<()> {
        let reference = proto::SessionRef { session: self.info.session.get(), service: self.info.service.get() };
        let mut wire = self.client.locks_client();
        match self.client.call(wire.close_session(reference)).await {
            Ok(_) => Ok(()),
            // It is gone already.
            Err(e) if e.kind() == ErrorKind::SessionLost => Ok(()),
            Err(e) => Err(e),
        }
    }
}

pub(super) fn guard_ended() -> Error {
    Error::new(
        ErrorKind::SessionLost,
        "the server did not renew the session in time: the locks may be given away, stop the protected work",
    )
}

impl Session {
    /// Begins a transaction. Nothing is sent before its first lock.
    pub fn txn(&self, options: TxnOptions) -> Txn {
        Txn::new(Arc::clone(&self.handle), options)
    }

    /// Locks in a transaction of its own, which ends when the guard is dropped.
    ///
    /// # Errors
    /// Those of [`Txn::lock`].
    ///
    /// # Cancel safety
    /// Dropping the call takes the request back.
    pub async fn lock(&self, spec: LockSpec) -> Result<LockGuard> {
        let txn = self.txn(TxnOptions::default());
        let grant = txn.lock(spec).await?;
        Ok(LockGuard::new(txn, grant))
    }

    /// Resolves when the locks of the session must no longer be relied on, with the reason: stop the protected work, then
    /// [`close`](Self::close) the session to say so.
    ///
    /// `ShuttingDown` is early notice: the guard still holds, and closing lets the server stop cleanly. `LeaseLost` and `SessionLost` come at
    /// once when the server says so, and at the latest when the guard ends (P2). Never resolves for a session that was closed. Cancel safe.
    pub async fn lost(&self) -> Error {
        let mut lost = self.handle.shared.lost.subscribe();
        match lost.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(why)) => why.clone(),
            // The sender lives in `self`.
            _ => guard_ended(),
        }
    }

    /// The reason why the session is lost, if it is.
    pub fn lost_now(&self) -> Option<Error> {
        self.handle.shared.lost.borrow().clone()
    }

    /// Until when, by the client's clock, the locks of the session are safe (P2). Moves on with every acknowledged renewal.
    pub fn guard_deadline(&self) -> Time {
        *self.handle.shared.guard.borrow()
    }

    /// The guard's deadline as it changes, for whoever supervises protected work and must not depend on this task being run.
    pub fn guard(&self) -> watch::Receiver<Time> {
        self.handle.shared.guard.subscribe()
    }

    /// Gives the session up: ends its transactions, releases their locks, and confirms that all protected work has stopped (P5).
    ///
    /// Fails with `Unavailable` if no server answers; the session then lapses by its TTL.
    ///
    /// # Cancel safety
    /// Once polled the session is over on this side.
    pub async fn close(&self) -> Result<()> {
        let shared = &self.handle.shared;
        let before = shared.closing.send_replace(Closing::Closed);
        shared.outbox.close();
        if before == Closing::Closed {
            return Ok(());
        }
        shared.give_up().await
    }

    /// Ends the session on this side without a word to the server, for when protected work may still go on and cannot be stopped: nothing is
    /// released, and nobody else gets the locks before the session has lapsed by its TTL (P5).
    pub fn abandon(&self) {
        let shared = &self.handle.shared;
        shared.closing.send_replace(Closing::Closed);
        shared.outbox.close();
    }

    /// The session's id: unguessable, to be shown to nobody.
    pub fn id(&self) -> SessionId {
        self.handle.shared.info.session
    }

    /// The incarnation of the server.
    pub fn service(&self) -> ServiceId {
        self.handle.shared.info.service
    }

    /// The incarnation's random number.
    pub fn nonce(&self) -> Nonce {
        self.handle.shared.info.nonce
    }

    /// The server's node.
    pub fn node(&self) -> &NodeName {
        &self.handle.shared.info.node
    }

    /// How long a silent client's locks are kept.
    pub fn ttl(&self) -> Duration {
        self.handle.shared.info.ttl
    }

    /// True if the server keeps its bindings in memory: exclusion and the order of tokens hold only within its life (B7).
    pub fn volatile(&self) -> bool {
        self.handle.shared.info.volatile
    }
}
