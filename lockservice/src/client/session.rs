//! [`Session`]: the promise on which a client's locks rest.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::service::{LockSpec, STILL_RUNNING_BYTES_MAX, TxnOptions, WaitsFor};
use lockservice_core::{Error, NodeName, Result, ServiceId, SessionId};
use tokio::sync::watch;

use super::cluster_session::ClusterSession;
use super::connect::Node;
use super::driver;
use super::node_session::{Handle, SessionShared};
use super::outbox::WaitsSender;
use super::txn::{ClientTxn, LockGuard};

/// A session (P1), at the server where it was opened and at those whose tables its transactions
/// were sent on to (T5). It is renewed in the background, over broken connections, until it is
/// closed or lost. A cheap handle; when the last one, and the last transaction of it, is dropped,
/// the session is given up.
///
/// The session covers all of its locks: it is lost when it is lost at its first server, or at any
/// other where a transaction is. [`ClientTxn`] and [`LockGuard`] cover only the server of their
/// locks, which may last longer.
#[derive(Clone, Debug)]
#[must_use]
pub struct Session {
    cluster_session: Arc<ClusterSession>,
}

impl Session {
    /// Opens a session at `node`.
    pub(super) async fn open(node: &Node, ttl: Option<Duration>) -> Result<Self> {
        let home: Arc<Handle> = driver::open(node, ttl).await?;
        Ok(Self { cluster_session: ClusterSession::new(home, ttl) })
    }

    fn home(&self) -> &SessionShared {
        &self.cluster_session.home.shared
    }

    /// Begins a transaction. Nothing is sent before its first lock.
    pub fn txn(&self, options: TxnOptions) -> ClientTxn {
        ClientTxn::new(Arc::clone(&self.cluster_session), options, Some(self.home().env().now()))
    }

    /// Locks in a transaction of its own, which ends when the [`LockGuard`] is dropped.
    ///
    /// A caller that reads by a snapshot passes its age ([`LockSpec::snapshot_age`]). Without it,
    /// [`Grant::history_unknown`](lockservice_core::table::Grant::history_unknown) considers the
    /// snapshot old (C5).
    ///
    /// # Errors
    /// Those of [`ClientTxn::lock`].
    ///
    /// # Cancel safety
    /// Dropping the call cancels its wait, or rolls its grant back.
    pub async fn lock(&self, spec: LockSpec) -> Result<LockGuard> {
        self.lock_with(spec, None).await
    }

    /// Like [`lock`](Self::lock). Also reports the holder for which the call waits, as
    /// [`ClientTxn::lock_reporting`] does.
    ///
    /// # Errors
    /// Those of [`ClientTxn::lock`].
    ///
    /// # Cancel safety
    /// Dropping the call cancels its wait, or rolls its grant back.
    pub async fn lock_reporting(
        &self,
        spec: LockSpec,
        waits: &watch::Sender<Option<WaitsFor>>,
    ) -> Result<LockGuard> {
        self.lock_with(spec, Some(waits)).await
    }

    async fn lock_with(&self, spec: LockSpec, waits: Option<&WaitsSender>) -> Result<LockGuard> {
        let txn = ClientTxn::new(Arc::clone(&self.cluster_session), TxnOptions::default(), None);
        let grant = txn.lock_with(spec, waits).await?;
        Ok(LockGuard::new(txn, grant))
    }

    /// Resolves when the locks of the session must no longer be relied on, with the reason. The
    /// caller stops the protected work, then confirms that with [`close`](Self::close).
    ///
    /// A transaction that an operator or a limit of the server ends alone is reported by
    /// [`ClientTxn::lost`] and [`LockGuard::lost`]; so is one that could not claim its locks after
    /// a restart of the server. If neither is called, the session is not renewed any more, and lost
    /// at its deadline.
    ///
    /// `ShuttingDown` is early notice: the deadline has not passed, and closing lets the server
    /// stop cleanly. `LeaseLost` and `SessionLost` come at once if the server reports them, and at
    /// the latest at the deadline (P2). Never resolves for a session that was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost: a later call resolves with the same reason.
    pub async fn lost(&self) -> Error {
        self.cluster_session.lost().await
    }

    /// The reason why the session is lost, if it is.
    pub fn lost_now(&self) -> Option<Error> {
        self.cluster_session.lost.borrow().clone()
    }

    /// The instant, by the client's clock, until which the locks of the session are safe (P2): the
    /// earliest deadline of its servers. Moves on with the acknowledged renewals, and back when a
    /// transaction is sent on to a server with an earlier one.
    pub fn deadline(&self) -> Time {
        *self.cluster_session.deadline.borrow()
    }

    /// The [`deadline`](Self::deadline) as it changes, for a supervisor of protected work that must
    /// not depend on this task being run.
    pub fn watch_deadline(&self) -> watch::Receiver<Time> {
        self.cluster_session.deadline.subscribe()
    }

    /// True while the session is connected to the server where it was opened. A lost connection is
    /// no lost session: the locks are safe until the [deadline](Self::deadline), and all of it goes
    /// on when this is true again (P3, P6).
    pub fn watch_connected(&self) -> watch::Receiver<bool> {
        self.home().connected.subscribe()
    }

    /// Gives the session up, at every server: ends its transactions, releases their locks, and
    /// confirms that all protected work has stopped (P5).
    ///
    /// # Errors
    /// `Unavailable` if some server does not respond; there the session lapses by its TTL.
    ///
    /// # Cancel safety
    /// Once polled the session is over on this side.
    pub async fn close(&self) -> Result<()> {
        self.cluster_session.close().await
    }

    /// Ends the session on this side, as [`abandon`](Self::abandon) does, and reports the reason to
    /// every server: `still_running` names the work that could not be stopped. Operators see it
    /// with the locks, which stay until the session has lapsed (P5). Only the beginning of a long
    /// text is sent, without control characters.
    ///
    /// # Errors
    /// `Unavailable` if some server does not respond. The session is over on this side all the
    /// same.
    ///
    /// # Cancel safety
    /// Once polled the session is over on this side.
    pub async fn leave(&self, still_running: &str) -> Result<()> {
        let mut text: String = still_running.chars().filter(|c| !c.is_control()).collect();
        text.truncate(text.floor_char_boundary(STILL_RUNNING_BYTES_MAX));
        if text.is_empty() {
            text.push_str("not known");
        }
        self.cluster_session.leave(&text).await
    }

    /// Ends the session on this side without a message to any server. It is for protected work that
    /// may still go on and cannot be stopped: nothing is released, and no other gets the locks
    /// before the session has lapsed by its TTL (P5).
    pub fn abandon(&self) {
        self.cluster_session.abandon();
    }

    /// The session's id: unguessable, and a secret.
    pub fn id(&self) -> SessionId {
        self.home().info.session
    }

    /// The incarnation that serves it now, at the server where it was opened. After a restart of
    /// that server it is another one (P6).
    pub fn service(&self) -> ServiceId {
        self.home().service()
    }

    /// That server's node.
    pub fn node(&self) -> &NodeName {
        &self.home().info.node
    }

    /// The time for which the locks of a silent client are kept.
    pub fn ttl(&self) -> Duration {
        self.home().info.ttl
    }

    /// The longest time for which the server promises anything, its own lease; `None` if it did not
    /// say. The locks of this session are safe without a response for the shorter of this and the
    /// [`ttl`](Self::ttl), less the margins for the clocks (P1, P2).
    pub fn longest_promise(&self) -> Option<Duration> {
        Some(self.home().info.lease).filter(|lease| !lease.is_zero())
    }

    /// True if the server keeps its bindings in memory: exclusion and the order of tokens hold only
    /// within its life (B7).
    pub fn volatile(&self) -> bool {
        self.home().info.volatile
    }
}
