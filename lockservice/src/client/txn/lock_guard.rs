//! [`LockGuard`]: locks held by a transaction of their own.

use lockservice_core::allocator::Bind;
use lockservice_core::clock::Time;
use lockservice_core::table::Grant;
use lockservice_core::{Error, FencingToken, Result};
use tokio::sync::watch;

use super::{ClientTxn, Ended};

/// Locks held by a transaction of their own. Dropping it releases them.
///
/// ```no_run
/// # use lockservice::{LockSpec, Result, Session};
/// # async fn example(session: Session, spec: LockSpec) -> Result<()> {
/// let lock = session.lock(spec).await?;
/// tokio::select! {
///     why = lock.lost() => return Err(why), // stop the protected work
///     () = write_with(lock.token()) => {}
/// }
/// lock.release().await
/// # }
/// # async fn write_with(_: lockservice::FencingToken) {}
/// ```
#[derive(Debug)]
#[must_use = "locks are released when their `LockGuard` is dropped"]
pub struct LockGuard {
    txn: ClientTxn,
    grant: Grant,
}

impl LockGuard {
    pub(in crate::client) fn new(txn: ClientTxn, grant: Grant) -> Self {
        Self { txn, grant }
    }

    /// The fencing token (F1): present it with every write that the lock protects.
    pub fn token(&self) -> FencingToken {
        self.grant.token
    }

    /// The bind on which the locks were granted, to be presented at a commit.
    pub fn bind(&self) -> &Bind {
        &self.grant.bind
    }

    /// The grant of the server.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The transaction that holds the locks.
    pub fn txn(&self) -> &ClientTxn {
        &self.txn
    }

    /// Like [`Session::lost`](crate::client::Session::lost), for the node where the locks are; also
    /// when these locks alone are lost: see [`ClientTxn::lost`].
    ///
    /// # Cancel safety
    /// Nothing is lost: a later call resolves with the same reason.
    pub async fn lost(&self) -> Error {
        self.txn.lost().await
    }

    /// The reason why the locks are lost, if they are.
    pub fn lost_now(&self) -> Option<Error> {
        self.txn.lost_now()
    }

    /// The instant, by the client's clock, until which the locks are safe (P2).
    pub fn deadline(&self) -> Time {
        self.txn.deadline()
    }

    /// The [`deadline`](Self::deadline) as it changes. Once the locks are [lost](Self::lost), what
    /// it shows does not count.
    pub fn watch_deadline(&self) -> watch::Receiver<Time> {
        self.txn.watch_deadline()
    }

    /// True while the session is connected to the server of the locks. A lost connection is no lost
    /// lock: see [`Session::watch_connected`](crate::client::Session::watch_connected).
    pub fn watch_connected(&self) -> watch::Receiver<bool> {
        self.txn.watch_connected()
    }

    /// Releases the locks. The release is sent at once. Waiting for the response is optional, see
    /// [`release`](Self::release).
    pub fn unlock(self) -> Ended {
        self.txn.end(None)
    }

    /// Releases the locks, and waits until the server has acknowledged it. The last release of a
    /// program must be this one: if a release is not sent before the runtime ends, others wait
    /// until the session has lapsed.
    ///
    /// # Errors
    /// Those of [`ClientTxn::end`].
    ///
    /// # Cancel safety
    /// The release is sent when this is first polled.
    pub async fn release(self) -> Result<()> {
        self.unlock().await
    }
}
