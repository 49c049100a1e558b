//! [`ClientTxn`]: a transaction, which holds locks.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`ClientTxn`]: its calls, its end |
//! | `lock` | the way of a lock call |
//! | `call` | one lock call: its permit, its transaction, its request |
//! | `placement` | the node on which a transaction is |
//! | `partial` | savepoints and downgrades |
//! | `lock_guard`, `ended` | [`LockGuard`], [`Ended`] |

mod call;
mod ended;
mod lock;
mod lock_guard;
mod partial;
mod placement;

use std::sync::Arc;

use lockservice_core::clock::Time;
use lockservice_core::env::Env;
use lockservice_core::service::{LockSpec, TxnOptions, WaitsFor};
use lockservice_core::table::{Commit, Grant};
use lockservice_core::{Error, ErrorKind, LockItem, NodeName, Result, TableRef, TxnId};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::ended::Ended;
pub(super) use self::lock::timed_out;
pub use self::lock_guard::LockGuard;
use self::partial::TxnIdentity;
pub use self::partial::TxnSavepoint;
use self::placement::Placement;
use super::cluster_session::ClusterSession;
use super::node_session::Handle;
use crate::convert::{commit_to_proto, items_to_proto};
use crate::proto;
use crate::proto::client_op::Op;

/// A transaction of a session. Dropping it ends it.
///
/// It lives on one node: the owner of the table in which its first lock was granted (T5).
///
/// ```no_run
/// # async fn example(session: lockservice::Session) -> lockservice::Result<()> {
/// use lockservice::{Key, LockItem, LockSpec, TableRef, TxnOptions};
///
/// let accounts = TableRef::new("bank", "accounts")?;
/// let txn = session.txn(TxnOptions::default());
/// for name in ["alice", "bob"] {
///     let row = LockItem::Row(Key::new(name)?);
///     let grant = txn.lock(LockSpec::new(accounts.clone(), vec![row])).await?;
///     println!("{name} is locked under token {}", grant.token);
/// }
/// txn.end(None).await
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a transaction that is dropped has ended"]
pub struct ClientTxn {
    pub(super) cluster_session: Arc<ClusterSession>,
    options: TxnOptions,
    /// The time of its begin, by the client's clock: its snapshot is considered no older, unless a
    /// call passes another age. `None` if its snapshot may be older.
    began: Option<Time>,
    identity: Arc<TxnIdentity>,
    /// Locked alone, for a read or a change.
    placement: Mutex<Placement>,
    ended: bool,
}

impl ClientTxn {
    pub(super) fn new(
        cluster_session: Arc<ClusterSession>,
        options: TxnOptions,
        began: Option<Time>,
    ) -> Self {
        let placement = Placement::new(Arc::clone(&cluster_session.home), options.clone());
        let (identity, placement) = (Arc::new(TxnIdentity), Mutex::new(placement));
        Self { cluster_session, options, began, identity, placement, ended: false }
    }

    /// Locks all items of `spec`, or none: at the table's owner, to which a transaction that holds
    /// nothing moves (T5).
    ///
    /// The time-out counts from this call, over everything that it waits for: a place among the
    /// calls that the server allows under way, a connection, the table's owner, the locks. Only the
    /// server's own timeout error, which has more details, may take a tenth of a second longer.
    /// While the owner cannot be reached, a call that may wait tries again, for a minute if it has
    /// no time-out.
    ///
    /// [`Grant::history_unknown`] assumes a snapshot that was not begun before this transaction.
    /// The caller passes the age of an older one in [`LockSpec::snapshot_age`] (C5).
    ///
    /// # Errors
    /// | kind | the caller must |
    /// |---|---|
    /// | `Conflict`, `Timeout` | try again later: the lock is not free |
    /// | `Deadlock`, `BindChanged`, `TxnNotFound` | end this transaction and start another |
    /// | `TxnKilled`, `ClaimRefused` | stop the work under its locks, then end it |
    /// | `SpansNodes` | end it, and lock the tables of the two nodes in transactions of their own |
    /// | `SessionLost`, `LeaseLost`, `ShuttingDown` | stop the protected work |
    /// | `Reassigning` | try again after the time given: the table's last owner may still be at work |
    /// | `InvalidArgument`, `ResourceExhausted` | correct the request, or request less |
    ///
    /// # Cancel safety
    /// Dropping the call cancels its wait, or rolls its grant back: the caller may not rely on its
    /// items, and everything that it added is released. The transaction keeps the locks that it
    /// held before. If the call escalated, the range stays, for it stands for these.
    pub async fn lock(&self, spec: LockSpec) -> Result<Grant> {
        self.lock_with(spec, None).await
    }

    /// Like [`lock`](Self::lock). Also puts the holder for which the call waits into `waits`, as
    /// reported by the server: when the wait begins, and when the holder changes. A call that is
    /// decided at once puts nothing in.
    ///
    /// The holder is a hint for people: it may be out of date when it arrives. `waits` has one
    /// place for it: a slow reader misses replaced values, and delays nothing. The last value stays
    /// when the call is over. See the module for an example.
    ///
    /// # Errors
    /// Those of [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As for [`lock`](Self::lock).
    pub async fn lock_reporting(
        &self,
        spec: LockSpec,
        waits: &watch::Sender<Option<WaitsFor>>,
    ) -> Result<Grant> {
        self.lock_with(spec, Some(waits)).await
    }

    pub(super) fn env(&self) -> &Env {
        self.cluster_session.home.shared.env()
    }

    /// The node on which the transaction is.
    pub(super) fn handle(&self) -> Arc<Handle> {
        Arc::clone(&self.placement.lock().handle)
    }

    /// Releases chosen items, exactly as they were locked; those not held are ignored. `commit` is
    /// the commit of the protected data, if it was committed (C5). If the returned value is dropped
    /// at once, the server sends no response.
    ///
    /// # Cancel safety
    /// The release is sent when this is called; waiting for the response is optional.
    pub fn unlock(&self, table: &TableRef, items: &[LockItem], commit: Option<Commit>) -> Ended {
        let (rows, ranges) = items_to_proto(items);
        let (commit_timestamp, definition_changed) = commit_to_proto(commit);
        self.send(Op::Unlock(proto::UnlockOp {
            txn: None,
            group: table.group.to_string(),
            table: table.name.to_string(),
            rows,
            ranges,
            commit_timestamp,
            definition_changed,
            quiet: false,
        }))
    }

    /// Sends an operation that ends locks, in full or in part.
    fn send(&self, op: Op) -> Ended {
        let (handle, txn_number) = self.place();
        match handle.shared.outbox.release(&txn_number, op) {
            Ok(response) => Ended::waiting(&handle, response),
            Err(e) => Ended::ready(Err(e)),
        }
    }

    /// Ends the transaction and releases everything it holds; `commit` is its commit, if it
    /// committed (C5).
    ///
    /// The release is sent when this is called. Waiting for the response is optional: if the
    /// returned value is dropped at once, the server sends none. The last release of a program is
    /// to be waited for, or its session closed: a release that is not sent before the runtime ends
    /// is never sent.
    ///
    /// # Errors
    /// `SessionLost`, `LeaseLost` if the session was lost before the end was acknowledged,
    /// `TxnKilled`, `ClaimRefused` or `BindChanged` if the transaction was: its locks may have gone
    /// to others before it ended.
    pub fn end(mut self, commit: Option<Commit>) -> Ended {
        self.ended = true;
        let (handle, txn_number) = self.place();
        let holds = self.placement.lock().holds;
        let lost = handle
            .shared
            .check()
            .err()
            .or_else(|| handle.shared.loss_of(&txn_number))
            .filter(|why| holds && why.kind() != ErrorKind::ShuttingDown);
        match (handle.shared.outbox.end(&txn_number, commit), lost) {
            // The release was sent all the same, so that others need not wait for the session to
            // lapse.
            (_, Some(why)) => Ended::ready(Err(why)),
            (Some(response), None) => Ended::waiting(&handle, response),
            (None, None) if holds => Ended::ready(Err(handle.shared.why_lost())),
            (None, None) => Ended::ready(Ok(())),
        }
    }

    /// The transaction's id, known once a lock was granted.
    pub fn id(&self) -> Option<TxnId> {
        self.placement.lock().id
    }

    /// The node where it is. It is final once a lock was granted.
    pub fn node(&self) -> NodeName {
        self.placement.lock().handle.shared.info.node.clone()
    }

    /// Like [`Session::lost`](super::Session::lost), for the node where the transaction is. Also
    /// resolves, with `TxnKilled`, when an operator or a limit of the server has ended the
    /// transaction while its session goes on: the caller stops the work under its locks, and then
    /// ends it. The server does not wait for that longer than until the [deadline](Self::deadline).
    /// The same holds for `ClaimRefused` and `BindChanged` after a restart of the server.
    ///
    /// # Cancel safety
    /// Nothing is lost: a later call resolves with the same reason.
    pub async fn lost(&self) -> Error {
        let (handle, txn_number) = self.place();
        let shared = &handle.shared;
        tokio::select! {
            biased;
            why = shared.lost() => why,
            why = shared.txn_lost(&txn_number) => why,
        }
    }

    /// The reason why the transaction, or the session at the node where it is, is lost, if it is.
    pub fn lost_now(&self) -> Option<Error> {
        let (handle, txn_number) = self.place();
        let lost = handle.shared.lost.borrow().clone();
        lost.or_else(|| handle.shared.loss_of(&txn_number))
    }

    /// Like [`Session::deadline`](super::Session::deadline), for the node where the transaction is.
    /// It does not move on once the transaction is [lost](Self::lost).
    pub fn deadline(&self) -> Time {
        let (handle, txn_number) = self.place();
        let deadline = *handle.shared.deadline.borrow();
        handle.shared.outbox.lost_deadline(&txn_number).map_or(deadline, |lost| lost.min(deadline))
    }

    /// Like [`Session::watch_connected`](super::Session::watch_connected), for the node where the
    /// transaction is.
    pub fn watch_connected(&self) -> watch::Receiver<bool> {
        self.placement.lock().handle.shared.connected.subscribe()
    }

    /// Like [`Session::watch_deadline`](super::Session::watch_deadline), for the node where the
    /// transaction is. Once the transaction is [lost](Self::lost), what it shows does not count.
    pub fn watch_deadline(&self) -> watch::Receiver<Time> {
        self.placement.lock().handle.shared.deadline.subscribe()
    }
}

impl Drop for ClientTxn {
    fn drop(&mut self) {
        if !self.ended {
            let (handle, txn_number) = self.place();
            // The response is not awaited.
            drop(handle.shared.outbox.end(&txn_number, None));
        }
    }
}
