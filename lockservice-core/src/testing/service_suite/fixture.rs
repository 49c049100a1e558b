//! The fixture: what the suite needs of a lock service, wherever it runs. It does what only one
//! side can do, or must be set in its own way, is the fixture's business.

use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;

use crate::allocator::{BeginCommit, CannotCommit};
use crate::error::{Error, Result};
use crate::id::{CommitAttempt, TableRef, TxnId};
use crate::key::{LockItem, LockMode};
use crate::service::{LockSpec, LockStatus, Stopped, TxnOptions, WaitStatus};
use crate::table::{Commit, Grant};

/// One lock service under test: one node with an allocator over a new store, that owns every table
/// it is requested.
///
/// # Contract
/// - Timers of tokio and the service's clock go together: both are real, or both are those of a
///   paused runtime.
/// - Settings are the defaults, but that a stop may give the sessions less time; it gives them some
///   seconds.
#[async_trait]
pub trait ServiceFixture: Send + Sync {
    /// Opens a session of a client named `client`, which is renewed until it is closed or
    /// [falls silent](SessionFixture::fall_silent). A client that is silent for `ttl` loses it; the
    /// service's default if `None`.
    async fn session(&self, client: &str, ttl: Option<Duration>)
    -> Result<Box<dyn SessionFixture>>;
    /// Requests an exclusive lock on items that need not make sense, as a client in any language
    /// may, in a session and a transaction of its own that end with the call. Does not wait.
    async fn lock_unparsed(&self, table: &TableRef, items: Vec<UnparsedItem>) -> Result<()>;
    /// Every lock held; of one table if `table` is given.
    async fn locks(&self, table: Option<&TableRef>) -> Result<Vec<LockStatus>>;
    /// Every wait; of one table if `table` is given.
    async fn waits(&self, table: Option<&TableRef>) -> Result<Vec<WaitStatus>>;
    /// Requests the allocator to admit a commit. Returns how long it is admitted for, raw.
    async fn begin_commit(&self, request: &BeginCommit) -> Result<Duration>;
    /// Has the allocator, as a third party, make transactions unable to commit.
    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit>;
    /// Ends a commit.
    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<()>;
    /// Stops the service in order. Resolves when it has stopped.
    async fn stop(&self) -> Stopped;
}

/// A session. Dropping it may leave it to its TTL.
#[async_trait]
pub trait SessionFixture: Send + Sync {
    /// Begins a transaction. It may be that the service learns of it only with its first call.
    fn begin(&self, options: TxnOptions) -> Box<dyn TxnFixture>;
    /// Resolves when the session's locks must no longer be relied on, or the service is about to
    /// stop, with the reason.
    async fn lost(&self) -> Error;
    /// From now on no more messages come from the client, as if its machine had been cut off.
    async fn fall_silent(&self);
    /// Gives the session up: its transactions end, and its work has stopped.
    async fn close(&self) -> Result<()>;
}

/// A transaction. Dropping it may end it, or leave it to its session.
#[async_trait]
pub trait TxnFixture: Send + Sync {
    /// Its id, known once a lock was granted, also after its end.
    fn id(&self) -> Option<TxnId>;
    /// Locks. One call at a time. Dropping the future takes the request back, and what it may have
    /// been granted meanwhile, if need be after a while.
    async fn lock(&self, spec: LockSpec) -> Result<Grant>;
    /// Releases chosen items, with the timestamp of their commit if there was one; resolves when
    /// that is done.
    async fn unlock(
        &self,
        table: &TableRef,
        items: &[LockItem],
        commit: Option<Commit>,
    ) -> Result<()>;
    /// Makes chosen items weaker; resolves when that is done.
    async fn downgrade(&self, table: &TableRef, items: &[LockItem], mode: LockMode) -> Result<()>;
    /// Sets a savepoint, and returns the number of those that were set before.
    async fn savepoint(&self) -> Result<usize>;
    /// Ends what was granted since the savepoint of that number; resolves when that is done.
    async fn roll_back_to(&self, savepoint: usize) -> Result<()>;
    /// Ends the transaction; resolves when that is done. No other call is under way. Nothing
    /// happens the second time.
    async fn end(&self, commit: Option<Commit>) -> Result<()>;
}

/// An item that a client requests, before it was parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnparsedItem {
    /// One row.
    Row(Vec<u8>),
    /// One range.
    Range(Bound<Vec<u8>>, Bound<Vec<u8>>),
}
