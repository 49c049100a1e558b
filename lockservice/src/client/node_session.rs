//! A session at one node.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use lockservice_core::clock::{Time, lo};
use lockservice_core::env::Env;
use lockservice_core::{Error, ErrorKind, NodeName, Result, ServiceId, SessionId, TxnNumber};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::cluster_session::ClusterSession;
use super::connect::Node;
use super::driver::Connected;
use super::outbox::{NumberedTxn, Outbox};
use crate::proto;

/// The longest time that the end of a session takes to send its last releases.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Dropped with the last user of a session.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Arc<SessionShared>,
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

/// The progress of a session's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    No,
    /// It has no user any more: the driver gives it up.
    Dropped,
    /// It was given up.
    Closed,
}

/// The state that the handles and the driver of a session share.
#[derive(Debug)]
pub(super) struct SessionShared {
    pub(super) node: Node,
    /// The session that spans nodes; not set while it is being opened.
    pub(super) cluster_session: OnceLock<Weak<ClusterSession>>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) info: Info,
    /// The incarnation that serves it. A leaf.
    pub(super) service: Mutex<ServiceId>,
    /// False from the end of a stream until the session goes on, on the next one.
    pub(super) connected: watch::Sender<bool>,
    pub(super) deadline: watch::Sender<Time>,
    pub(super) lost: watch::Sender<Option<Error>>,
    /// The number of transactions that the server has ended, or that were not claimed.
    pub(super) losses: watch::Sender<usize>,
    pub(super) closing: watch::Sender<Closing>,
    /// One permit for each lock operation that the server allows under way.
    pub(super) locks: Arc<Semaphore>,
}

/// The description of the session by the server when it was opened.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub(super) session: SessionId,
    pub(super) node: NodeName,
    pub(super) ttl: Duration,
    /// The longest promise of the server; zero if it did not say.
    pub(super) lease: Duration,
    pub(super) message_bytes_max: usize,
    pub(super) volatile: bool,
}

impl SessionShared {
    /// The incarnation that serves the session.
    pub(super) fn service(&self) -> ServiceId {
        *self.service.lock()
    }

    /// The next process of the server has taken the claims of the session.
    pub(super) fn set_service(&self, service: ServiceId) {
        *self.service.lock() = service;
    }

    /// Takes the promise of a new stream into account and opens the outbox.
    pub(super) fn begin(&self, connected: &Connected) {
        self.renewed(connected.sent, connected.promised);
        self.outbox.open(connected.message_bytes_max());
        self.connected.send_replace(true);
    }

    /// Counts a promise of raw length `promised`, from the send of its request (P2).
    pub(super) fn deadline_from(&self, sent: Time, promised: Duration) -> Time {
        sent + lo(promised).saturating_sub(self.node.client.parts.stop_time)
    }

    /// Fails if the session is lost, or its deadline has passed by the clock, even if no other has
    /// noticed yet (P2).
    pub(super) fn check(&self) -> Result<()> {
        if let Some(why) = &*self.lost.borrow() {
            return Err(why.clone());
        }
        if self.env().now() >= *self.deadline.borrow() {
            return Err(deadline_passed());
        }
        Ok(())
    }

    /// Marks a transaction lost. The session goes on.
    pub(super) fn lose_txn(&self, number: TxnNumber, why: Error) {
        let said = why.to_string();
        if self.outbox.lose_txn(number, why) {
            tracing::warn!(%number, "a transaction is lost: {said}");
            self.losses.send_modify(|losses| *losses += 1);
        }
    }

    /// A transaction was not claimed, and is lost. The session goes on.
    pub(super) fn txn_not_claimed(&self, number: TxnNumber, why: &Error) {
        tracing::warn!(%number, error = ?why, "a transaction is lost with a restart of its server");
        self.losses.send_modify(|losses| *losses += 1);
    }

    /// The reason why a transaction is lost while its session goes on, for the application: from
    /// here on the server hears that it knows.
    pub(super) fn loss_of(&self, txn: &NumberedTxn) -> Option<Error> {
        let deadline = *self.deadline.borrow();
        let (why, first) = self.outbox.tell_loss(txn, deadline)?;
        if first {
            self.outbox.heartbeat();
        }
        Some(why)
    }

    /// Resolves when a transaction is lost while its session goes on, with the reason, for the
    /// application.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn txn_lost(&self, txn: &NumberedTxn) -> Error {
        let mut losses = self.losses.subscribe();
        loop {
            if let Some(why) = self.loss_of(txn) {
                return why;
            }
            if losses.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Marks the session lost. The first reason stays.
    pub(super) fn lose(&self, why: Error) {
        let why = if why.advice() == lockservice_core::Advice::NewSession {
            why
        } else {
            Error::new(
                ErrorKind::SessionLost,
                "the session cannot go on: stop the protected work and open a new one",
            )
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
            tracing::warn!(
                session = %self.info.session,
                error = ?why,
                "the session is lost: its locks are not safe any more"
            );
            self.outbox.fail_locks(&why);
            if let Some(cluster_session) = self.cluster_session() {
                cluster_session.lost_at(self, &why);
            }
        }
    }

    /// Moves the deadline on after an acknowledged renewal.
    pub(super) fn renewed(&self, sent: Time, promised: Duration) {
        self.move_deadline(self.deadline_from(sent, promised), Duration::ZERO);
    }

    /// Takes the promise of a grant into account. True if it moves the deadline on, which it does
    /// only if the gain is worth a wake-up of all watchers.
    pub(super) fn promised(&self, sent: Time, promised: Duration) -> bool {
        self.move_deadline(self.deadline_from(sent, promised), promised / 16)
    }

    /// The deadline never moves back, for an earlier promise still holds. It stays if a transaction
    /// was not claimed and the application was not told: then the session ends in its place (P5).
    fn move_deadline(&self, end: Time, least: Duration) -> bool {
        if end <= *self.deadline.borrow() + least || self.outbox.is_held_back() {
            return false;
        }
        let moved = self.deadline.send_if_modified(|deadline| {
            let moves = end > *deadline + least;
            if moves {
                *deadline = end;
            }
            moves
        });
        if moved && let Some(cluster_session) = self.cluster_session() {
            cluster_session.refresh();
        }
        moved
    }

    pub(super) fn env(&self) -> &Env {
        self.node.client.env()
    }

    pub(super) fn cluster_session(&self) -> Option<Arc<ClusterSession>> {
        self.cluster_session.get().and_then(Weak::upgrade)
    }

    /// Waits until the releases that were put in have arrived, if there is a stream. Nothing else
    /// is put in from here on.
    ///
    /// # Cancel safety
    /// The releases are sent all the same.
    pub(super) async fn flush(&self) {
        let Some(arrived) = self.outbox.flush() else { return };
        // Either outcome ends the wait: what did not arrive is released with the session.
        let longest = FLUSH_MAX.min(self.node.client.parts.call_timeout);
        drop(self.env().timeout(longest, arrived).await);
    }

    /// Ends the session on this side, without a message to the server. Returns its former state.
    pub(super) fn shut(&self) -> Closing {
        let before = self.closing.send_replace(Closing::Closed);
        self.outbox.close();
        before
    }

    /// Resolves when the session is lost, with the reason; never for one that was closed. Cancel
    /// safe.
    pub(super) async fn lost(&self) -> Error {
        let mut lost = self.lost.subscribe();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        // The sender lives in `self`.
        why.unwrap_or_else(deadline_passed)
    }

    /// Resolves when `deadline` has passed; never if there is none. Timers only wake, and stand
    /// still while the machine sleeps; the clock decides.
    pub(super) async fn past(&self, deadline: Option<Time>) {
        const NAP_MAX: Duration = Duration::from_secs(1);
        let Some(deadline) = deadline else { return std::future::pending().await };
        loop {
            let left = deadline.remaining(self.env().now());
            if left.is_zero() {
                return;
            }
            self.env().sleep(left.min(NAP_MAX)).await;
        }
    }

    /// The error for a caller whose response will never come.
    pub(super) fn why_lost(&self) -> Error {
        let lost = self.lost.borrow();
        lost.clone().unwrap_or_else(|| {
            Error::new(ErrorKind::SessionLost, "the session was closed: open a new one")
        })
    }

    /// Reports the work that may still be running to the server, after the session has ended on
    /// this side.
    pub(super) async fn leave(&self, still_running: &str) -> Result<()> {
        let session =
            proto::SessionRef { session: self.info.session.get(), service: self.service().get() };
        let leaving =
            proto::Leaving { session: Some(session), still_running: still_running.to_owned() };
        let mut wire = self.node.locks_client();
        match self.node.call(wire.leave_session(leaving)).await {
            Ok(_) => Ok(()),
            // It has lapsed: there is nothing left to explain.
            Err(e) if e.kind() == ErrorKind::SessionLost => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Reports to the server that the session is over and its work has stopped.
    pub(super) async fn give_up(&self) -> Result<()> {
        let reference =
            proto::SessionRef { session: self.info.session.get(), service: self.service().get() };
        let mut wire = self.node.locks_client();
        match self.node.call(wire.close_session(reference)).await {
            Ok(_) => Ok(()),
            // It is gone already.
            Err(e) if e.kind() == ErrorKind::SessionLost => Ok(()),
            Err(e) => Err(e),
        }
    }
}

pub(super) fn deadline_passed() -> Error {
    Error::new(
        ErrorKind::SessionLost,
        "the server did not renew the session in time: the locks may be given away, stop the \
            protected work",
    )
}
