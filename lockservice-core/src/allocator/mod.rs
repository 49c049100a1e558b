//! The allocator: which service owns which lock table, at which version, for how long, and whether
//! a commit may go ahead.

pub(crate) mod cluster;
pub(crate) mod leader;
mod messages;
mod report;
mod settings;
pub mod state;

use std::fmt;
use std::sync::Weak;

use async_trait::async_trait;

#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};

pub use crate::bind::{Bind, TokenBlock};

pub use self::cluster::{AllocatorPeers, ElectedAllocator, Role};
pub use self::leader::{AllocatorStopped, LocalAllocator};
pub use self::messages::{
    AllocatorStatus, BeginCommit, BindState, BindStatus, BoundTable, CannotCommit, CommitAdmission,
    CommitWindow, ForgetOutcome, Forgetting, Incarnation, Latest, LeaseAck, PresentedBind,
    Progress, Registration, Released, ReservedTokens, ServiceStatus,
};
pub use self::report::Report;
pub use self::settings::{AllocatorSettings, TTL_MS_MAX, TTL_MS_MIN};
pub use self::state::commits::{OriginTxns, TxnLife, TxnRange};

/// What services call to have tables bound, to stay alive, and to have commits validated.
///
/// # Contract
/// - **One owner** (B3, B5). A table is given to another incarnation only after the promises that
///   rest on its last bind have run out, or its owner resigned.
/// - **Leases** (B1, B2, B4). An incarnation that does not renew within its lease is fenced,
///   durably and for ever.
/// - **Commits** (C1 to C4). After [`cannot_commit`](Self::cannot_commit) answered that a
///   transaction is tombstoned, no `begin_commit` of it succeeds, on this leader or a later one.
///   After it answered that one is committing, nothing more of it is admitted or extended, and it
///   is tombstoned when what was admitted has ended.
/// - **Who answered** (L3). Every answer tells the leadership that gave it, refusals by
///   [`Error::answered_by`] where they crossed a network: a caller that knows a later one must not
///   act on it. [`ElectedAllocator`] sees to that.
/// - No method creates anything for a name or id that it does not know, except
///   [`register`](Self::register) and [`bind`](Self::bind).
///
/// # Cancel safety
/// Every method may be dropped at any await; what it had begun then either happens whole or not at
/// all, and repeating it is safe.
#[async_trait]
pub trait LockTableAllocator: fmt::Debug + Send + Sync + 'static {
    /// Starts, or starts again, a node as a new incarnation (B1), and creates the control state of
    /// its commits (C3).
    ///
    /// Fails with `NameInUse` while another process holds a lease under this name,
    /// `ResourceExhausted` at the limit of nodes.
    async fn register(&self, request: &Registration) -> Result<Incarnation>;

    /// Renews an incarnation's lease. The answer's lease counts from before the call was sent.
    /// `observed` is the furthest that any answer of any allocator has told the caller (L4).
    ///
    /// Fails with `LeaseLost` if it has lapsed or was replaced, or is not known: the service must
    /// seal itself and start again as a new incarnation. Nothing is believed of one that is not
    /// known: that is what [`report`](Self::report) is for.
    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck>;

    /// Tells the leader what an earlier one told, whichever incarnation that was told to (L4).
    ///
    /// Fails with `NotPermitted` if the report is not of this cluster, and with `NotLeader` if the
    /// leader's store has lost what it tells of: then its leadership is over.
    async fn report(&self, report: &Report) -> Result<Progress>;

    /// Gives an incarnation up: its tables may be granted anew at once. Only to be called when
    /// nothing of it is in use (P5).
    ///
    /// Waits for commits in flight on its binds (C2). Fails with `LeaseLost` if it had already
    /// lapsed.
    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress>;

    /// Answers whom `table` is bound to, binding it to `service` if nobody owns it.
    ///
    /// Fails with `Reassigning` (with the time to wait) while the last owner may still be at work
    /// (of one that is just giving its binds up it waits a moment for that first), `LeaseLost` if
    /// `service` is not live, `ResourceExhausted` at the limit of tables, `Unavailable` or
    /// `StoreUnusable` if the store cannot be written.
    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable>;

    /// Reserves a further block of fencing tokens for a bind (F2). Fails with `BindChanged` if the
    /// bind is not current.
    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens>;

    /// The owner of a bind gives it up, and the table is forgotten (B5): no number of it comes
    /// back, and whoever binds its name again gets another table. To be called when nothing is
    /// locked in the table, and nothing more is granted in it.
    ///
    /// The answer says if the bind was kept instead: then it is what it was, and nothing of this
    /// call lands later. One that is repeated because its answer was lost finds the table gone,
    /// which is no error.
    ///
    /// # Errors
    /// `BindChanged` if `version` is not current: it was released before, and the table bound anew.
    /// `LeaseLost` if `service` is not live. After any other error it is not known whether the
    /// table was forgotten, or will be: ask again, and do not serve it meanwhile.
    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released>;

    /// Forgets a table that nobody owns any more, for an operator. Of one that a live incarnation
    /// owns it changes nothing, and answers who that is.
    ///
    /// # Errors
    /// `Reassigning` (with the time to wait) while its last owner may still be at work (B3);
    /// `Unavailable` or `StoreUnusable` if the store cannot be written.
    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting>;

    /// The bind of `table` if there is one. Binds nothing.
    async fn latest(&self, table: &TableRef) -> Result<Latest>;

    /// Validates a transaction's binds and admits its commit for a limited time (C1 to C3). Writes
    /// nothing to the store.
    ///
    /// Fails with `BindChanged` if a presented bind is not current or void, `CannotCommit` if the
    /// transaction or its origin is fenced, if it has ended or was never begun, or if it said that
    /// it would not validate; with `Timeout` if less than `asked.least` could be promised, and with
    /// `Unavailable` if its origin has not told yet that it has begun.
    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission>;

    /// Ends a commit that was admitted, whether the data was written or not. Idempotent; an unknown
    /// attempt is no error.
    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress>;

    /// Makes transactions unable to ever commit, unless their commit is in flight (C4): those are
    /// answered as committing and left alone.
    ///
    /// Each transaction is answered by itself: one that fails (`UnknownOutcome`, `Unavailable`,
    /// `ResourceExhausted`) does not keep the others from being answered.
    ///
    /// # Errors
    /// `NotLeader`, `ShuttingDown`, `Unavailable`: nothing is known of any of them. Ask again.
    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit>;

    /// The origin tells which of its validating transactions can be alive. Those outside the range
    /// are refused from here on, and the tombstones below it may go (C4). To be called whenever
    /// another leader answers, and ahead of what is begun.
    ///
    /// # Errors
    /// `LeaseLost` if the incarnation is not live.
    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress>;

    /// Lets an allocator of this process ask an origin of this process about each of its
    /// transactions, for as long as the origin lives. Without a wait. Others leave it at what
    /// [`report_txns`](Self::report_txns) tells.
    fn attach_origin(&self, service: ServiceId, origin: Weak<dyn OriginTxns>) {
        let _ = (service, origin);
    }

    /// Everything an operator wants to see: nodes and binds.
    async fn status(&self) -> Result<AllocatorStatus>;
}
