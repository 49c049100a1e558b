//! [`ClientTxn`]: a transaction, which holds locks.
//!
//! | file | noun |
//! |---|---|
//! | `call` | one lock call: its permit, its transaction, its request |
//! | `placement` | the node on which a transaction is |
//! | `lock_guard`, `ended` | [`LockGuard`], [`Ended`] |

mod call;
mod ended;
mod lock_guard;
mod placement;

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::clock::{Clock, Time, lo};
use lockservice_core::service::{LockSpec, TxnOptions, WaitsFor};
use lockservice_core::table::{Commit, Grant, Savepoint};
use lockservice_core::{Error, ErrorKind, LockItem, LockMode, NodeName, Result, TableRef, TxnId};
use parking_lot::Mutex;
use tokio::sync::watch;

use self::call::{Call, Turn, permit};
pub use self::ended::Ended;
pub use self::lock_guard::LockGuard;
use self::placement::Placement;
use super::cluster_session::ClusterSession;
use super::follow;
use super::node_session::Handle;
use super::outbox::{CallContext, NumberedTxn, WaitsSender};
use crate::convert::{commit_to_proto, items_to_proto, lock_spec_to_proto, mode_to_proto};
use crate::proto;
use crate::proto::client_op::Op;

/// The time past its deadline for which a call waits for the server's own response. A timeout from
/// the server names the conflicting holder, and a grant in time is as good as any.
const RESPONSE_GRACE: Duration = Duration::from_millis(100);

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

/// The identity of a transaction, wherever it is: compared by address.
#[derive(Debug)]
struct TxnIdentity;

/// A savepoint of a [`ClientTxn`].
#[derive(Clone, Debug)]
pub struct TxnSavepoint {
    of: Arc<TxnIdentity>,
    number: Savepoint,
}

impl ClientTxn {
    pub(super) fn new(
        cluster_session: Arc<ClusterSession>,
        options: TxnOptions,
        began: Option<Time>,
    ) -> Self {
        let placement = Placement {
            handle: Arc::clone(&cluster_session.home),
            txn_number: Arc::new(NumberedTxn::new(options.clone())),
            id: None,
            under_way: 0,
            holds: false,
            pin: None,
        };
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
    /// | `SpansNodes` | end it, and lock the tables of the two nodes in transactions of their own |
    /// | `SessionLost`, `LeaseLost`, `ShuttingDown` | stop the protected work |
    /// | `Reassigning` | try again after the time given: the table's last owner may still be at work |
    /// | `InvalidArgument`, `ResourceExhausted` | correct the request, or request less |
    ///
    /// # Cancel safety
    /// Dropping the call cancels its wait, or rolls its grant back: the caller may not rely on its
    /// items, and everything that it added is released. The transaction keeps the locks that it
    /// held before.
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

    /// Locks. Also reports the holder for which it waits, if the caller listens.
    pub(super) async fn lock_with(
        &self,
        spec: LockSpec,
        waits: Option<&WaitsSender>,
    ) -> Result<Grant> {
        let deadline = spec.timeout.map(|timeout| self.clock().now() + timeout);
        let snapshot = spec.snapshot_age.map(|age| self.clock().now() - age).or(self.began);
        let context = CallContext { deadline, snapshot, waits };
        // The future is rarely needed, and large.
        if let Some(address) = self.cluster_session.owner_of(&spec.table) {
            Box::pin(follow::go_to_last_owner(self, &spec, &address, deadline)).await;
        }
        match self.try_lock(&spec, context).await {
            Err(e) if follow::helps(self, &e) => {
                Box::pin(follow::lock(self, &spec, context, e)).await
            }
            outcome => outcome,
        }
    }

    /// Locks where the transaction is.
    pub(super) async fn try_lock(
        &self,
        spec: &LockSpec,
        context: CallContext<'_>,
    ) -> Result<Grant> {
        let CallContext { deadline, snapshot, .. } = context;
        let turn = Turn::begin(self);
        let shared = &turn.handle.shared;
        shared.check()?;
        // An item takes three bytes at least: if even that is too much, encoding is useless.
        if spec.items.len().saturating_mul(3) > shared.info.message_bytes_max {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "too many keys in one request: lock fewer at a time, or a range that covers them",
            )
            .with("keys", spec.items.len()));
        }
        let permit = permit(shared, spec.wait, deadline).await?;
        // The wait for the permit may have taken long.
        shared.check()?;
        let (call, response) =
            shared.outbox.lock(&turn.txn_number, lock_spec_to_proto(spec), context, permit)?;
        let mut call = Call { shared, call: Some(call), response };
        let result = tokio::select! {
            biased;
            response = &mut call.response => response.unwrap_or_else(|_| Err(shared.why_lost())),
            // `call` is still armed: the request is cancelled, wherever it is.
            () = shared.past(deadline.map(|deadline| deadline + RESPONSE_GRACE)) => {
                return Err(timed_out("the server did not respond within the time-out of the lock: \
                    try again, or allow more time"));
            }
        };
        if result.is_ok() {
            // P2: the clock decides at this moment, for the response may have lain here for long.
            // On failure `call` is still armed, so that the grant is rolled back.
            shared.check()?;
        }
        call.acknowledge();
        let mut granted = result?;
        turn.granted(granted.txn);
        if let (Some(known), Some(snapshot)) = (granted.history_known, snapshot) {
            // C5: the server does not know the travel time of the request.
            granted.grant.history_unknown |=
                shared.node.client.clock().now().since(snapshot) >= lo(known);
        }
        Ok(granted.grant)
    }

    /// Moves to the node of `handle`, unless something is held at the present node, or may be. True
    /// if it is at the new node afterwards.
    pub(super) fn move_to(&self, handle: &Arc<Handle>) -> bool {
        let next = Placement {
            handle: Arc::clone(handle),
            txn_number: Arc::new(NumberedTxn::new(self.options.clone())),
            id: None,
            under_way: 0,
            holds: false,
            pin: None,
        };
        let left = {
            let mut placement = self.placement.lock();
            if Arc::ptr_eq(&placement.handle, handle) {
                return true;
            }
            if placement.holds || placement.under_way > 0 {
                return false;
            }
            std::mem::replace(&mut *placement, next)
        };
        // The response is not awaited: the transaction holds nothing.
        drop(left.handle.shared.outbox.end(&left.txn_number, None));
        true
    }

    fn place(&self) -> (Arc<Handle>, Arc<NumberedTxn>) {
        let placement = self.placement.lock();
        (Arc::clone(&placement.handle), Arc::clone(&placement.txn_number))
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        self.cluster_session.home.shared.node.client.clock()
    }

    /// The node on which the transaction is.
    pub(super) fn handle(&self) -> Arc<Handle> {
        Arc::clone(&self.placement.lock().handle)
    }

    /// True if it may move.
    pub(super) fn is_free(&self) -> bool {
        let placement = self.placement.lock();
        !placement.holds && placement.under_way == 0
    }

    /// Releases chosen items, exactly as they were locked; those not held are ignored. `commit` is
    /// the commit of the protected data, if it was committed (C5).
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
        }))
    }

    /// Makes chosen items weaker, exactly as they were locked: `mode` from then on. Those that are
    /// not held, or that are held no more strongly, are ignored. Waiters that are compatible with
    /// it go on.
    ///
    /// # Errors
    /// `InvalidArgument` if `mode` is exclusive: no mode is stronger.
    ///
    /// # Cancel safety
    /// The request is sent when this is called; waiting for the response is optional.
    pub fn downgrade(&self, table: &TableRef, items: &[LockItem], mode: LockMode) -> Ended {
        let (rows, ranges) = items_to_proto(items);
        self.send(Op::Downgrade(proto::DowngradeOp {
            txn: None,
            group: table.group.to_string(),
            table: table.name.to_string(),
            rows,
            ranges,
            mode: mode_to_proto(mode),
        }))
    }

    /// Sets a savepoint, to which [`roll_back_to`](Self::roll_back_to) can go back. It costs the
    /// server nothing, and needs no release.
    ///
    /// # Errors
    /// `TxnNotFound` if the transaction has ended, `SessionLost` and `LeaseLost` if the session is
    /// lost: the caller begins another one. `ResourceExhausted` if too many calls of the
    /// transaction are under way: the caller waits for some of them.
    ///
    /// # Cancel safety
    /// A savepoint that is not received is of no use, and does no harm.
    pub async fn savepoint(&self) -> Result<TxnSavepoint> {
        let (handle, txn_number) = self.place();
        let number = if self.is_free() {
            // Nothing was locked yet. The transaction may move until then, so no node is called.
            Savepoint::FIRST
        } else {
            let response = handle.shared.outbox.savepoint(&txn_number)?;
            response.await.unwrap_or_else(|_| Err(handle.shared.why_lost()))?
        };
        Ok(TxnSavepoint { of: Arc::clone(&self.identity), number })
    }

    /// Ends what was granted since a savepoint of this transaction: items that were locked since
    /// are released, items that were upgraded since are held as at the savepoint. Items that were
    /// released or made weaker since stay so. The savepoint can be used again.
    ///
    /// # Errors
    /// `InvalidArgument` if the savepoint is of another transaction. `SessionLost`, `LeaseLost` if
    /// the session is lost: the locks may have gone to others.
    ///
    /// # Cancel safety
    /// The request is sent when this is called; waiting for the response is optional.
    pub fn roll_back_to(&self, savepoint: &TxnSavepoint) -> Ended {
        if !Arc::ptr_eq(&self.identity, &savepoint.of) {
            return Ended::ready(Err(Error::new(
                ErrorKind::InvalidArgument,
                "the savepoint is of another transaction: use one of this transaction",
            )));
        }
        let savepoint = savepoint.number.get();
        self.send(Op::RollBackTo(proto::RollBackToOp { txn: None, savepoint }))
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
    /// The release is sent when this is called. Waiting for the response is optional, except for
    /// the last release of a program: a release that is not sent before the runtime ends is never
    /// sent.
    ///
    /// # Errors
    /// `SessionLost`, `LeaseLost` if the session was lost before the end was acknowledged: the
    /// locks of the transaction may have gone to others before it ended.
    pub fn end(mut self, commit: Option<Commit>) -> Ended {
        self.ended = true;
        let (handle, txn_number) = self.place();
        let holds = self.placement.lock().holds;
        let lost = handle
            .shared
            .check()
            .err()
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

    /// Like [`Session::lost`](super::Session::lost), for the node where the transaction is.
    ///
    /// # Cancel safety
    /// Nothing is lost: a later call resolves with the same reason.
    pub async fn lost(&self) -> Error {
        let handle = self.handle();
        handle.shared.lost().await
    }

    /// The reason why the session is lost at the node where the transaction is, if it is.
    pub fn lost_now(&self) -> Option<Error> {
        self.placement.lock().handle.shared.lost.borrow().clone()
    }

    /// Like [`Session::deadline`](super::Session::deadline), for the node where the transaction is.
    pub fn deadline(&self) -> Time {
        *self.placement.lock().handle.shared.deadline.borrow()
    }

    /// Like [`Session::watch_deadline`](super::Session::watch_deadline), for the node where the
    /// transaction is.
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

pub(super) fn timed_out(message: &str) -> Error {
    Error::new(ErrorKind::Timeout, message)
}
