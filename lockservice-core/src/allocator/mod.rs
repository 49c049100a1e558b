//! The allocator: which service owns which lock table, at which version, for how long, and whether
//! a commit may go ahead.
//!
//! | where | holds |
//! |---|---|
//! | this file | [`LockTableAllocator`]: what services, clients and operators call |
//! | `messages` | the requests and responses of these calls |
//! | `settings` | limits and constants |
//! | `report` | the high-water mark of a node, with its proof |
//! | `forward` | the trait for `Arc<T>` and `Box<T>` |
//! | `cluster` | [`ElectedAllocator`]: who leads, and how every node reaches the leader |
//! | `leader` | [`LocalAllocator`]: one leadership, its calls and its writes |
//! | `state` | the pure state of a leader |
//!
//! # The way of one bind
//! 1. `service/tables`, on any node, calls [`LockTableAllocator::bind`].
//! 2. `cluster/route.rs` finds the leader: this node, or another.
//! 3. `leader/api.rs` checks that the leadership lasts.
//! 4. `leader/bind.rs`, `plan_bind`: decides under the lock of the table's shard, and queues a
//!    write.
//! 5. `leader/writer.rs` writes it, with all others that were queued meanwhile, and calls the
//!    second half.
//! 6. `leader/bind.rs`, `Grant::done`: the bind is visible, and the caller has it.

pub(crate) mod cluster;
pub(crate) mod forward;
pub(crate) mod leader;
mod messages;
mod report;
mod settings;
mod state;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::TableHolders;

pub use crate::bind::{Bind, BindSlot, TokenBlock};

pub use self::cluster::{AllocatorPeers, ElectedAllocator, Role};
pub use self::leader::{AllocatorStopped, LocalAllocator};
pub use self::messages::{
    AllocatorStatus, BeginCommit, BindState, BindStatus, BoundTable, CannotCommit, ClaimedTable,
    ClusterNodes, CommitAdmission, CommitWindow, ForgetOutcome, Forgetting, Incarnation, Latest,
    LeaseAck, PresentedBind, Progress, Registration, Released, ReservedTokens, ServiceStatus,
    TableClaim,
};
pub use self::report::Report;
pub use self::settings::{AllocatorSettings, TTL_MS_MAX, TTL_MS_MIN};
pub use self::state::commits::{OriginTxns, TxnLife, TxnRange};

/// The interface by which services bind tables, stay alive and validate commits.
///
/// # Contract
/// - **One owner** (B3, B5). A table is given to another incarnation only after the promises that
///   rest on its last bind have run out, or its owner resigned.
/// - **Leases** (B1, B2, B4). An incarnation that does not renew within its lease is fenced,
///   durably and for ever.
/// - **Commits** (C1 to C4). After [`cannot_commit`](Self::cannot_commit) returned that a
///   transaction is tombstoned, no `begin_commit` of it succeeds, on this leader or a later one.
///   After it returned that one is committing, nothing more of it is admitted or extended, and it
///   is tombstoned when what was admitted has ended.
/// - **Epochs** (L3). Every response names the leadership that gave it, refusals by
///   [`Error::leader_epoch`] where they crossed a network: a caller that knows a later leadership
///   must not act on it. [`ElectedAllocator`] sees to that.
/// - No method creates anything for a name or id that it does not know, except
///   [`register`](Self::register) and [`bind`](Self::bind).
///
/// # Errors
/// Every method fails with these, besides its own; none of them says that nothing has happened:
///
/// | kind | what it means, and what the caller does |
/// |---|---|
/// | `NotLeader` | another leads, or this leadership has ended: call the leader |
/// | `Unavailable` | no node leads now, or the store does not respond: call again later |
/// | `ShuttingDown` | the allocator is being stopped: call again when another leads |
/// | `UnknownOutcome` | a write may have landed: call again |
///
/// # Cancel safety
/// Every method may be dropped at any await. Its effect then happens whole or not at all, and
/// calling it again is safe.
#[async_trait]
pub trait LockTableAllocator: fmt::Debug + Send + Sync + 'static {
    /// Starts, or starts again, a node as a new incarnation (B1), and creates the control state of
    /// its commits (C3).
    ///
    /// # Errors
    /// - `NameInUse` while another process holds a lease under this name: choose another name, or
    ///   stop that process.
    /// - `ResourceExhausted` at the limit of nodes.
    async fn register(&self, request: &Registration) -> Result<Incarnation>;

    /// Renews an incarnation's lease. The lease in the response counts from before the call was
    /// sent. `observed` is the furthest [`Progress`] of any response that the caller has got (L4).
    ///
    /// # Errors
    /// `LeaseLost` if the incarnation has lapsed, was replaced, or is not known: the service must
    /// seal itself and start again as a new incarnation. A leader believes nothing of an
    /// incarnation that it does not know: that is what [`report`](Self::report) is for.
    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck>;

    /// Reports the progress of an earlier leader, as observed by any incarnation, to the leader
    /// (L4).
    ///
    /// # Errors
    /// - `NotPermitted` if the report is not of this cluster.
    /// - `NotLeader` if the leader's store has lost a write that the report proves: its leadership
    ///   is over, and a later one accounts for the loss.
    async fn report(&self, report: &Report) -> Result<Progress>;

    /// Gives an incarnation up: its tables may be reassigned at once. Only to be called when
    /// nothing of it is in use (P5). Waits for commits in flight on its binds (C2).
    ///
    /// # Errors
    /// `LeaseLost` if it had already lapsed: its tables are reassigned after its lease.
    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress>;

    /// Like [`resign`](Self::resign), for a restart, while sessions still hold something (P6):
    /// `held` names each table in which that is so, with all of these sessions. Those tables wait
    /// as after a crash, unless the node's next process takes the claims of all these sessions. No
    /// commit of the incarnation is admitted any more, and none is in flight when this returns.
    ///
    /// # Errors
    /// `LeaseLost` if it had already lapsed.
    async fn resign_held(
        &self,
        service: ServiceId,
        nonce: Nonce,
        held: &[TableHolders],
    ) -> Result<Progress>;

    /// Binds a table that waits to be reassigned to `service`, the next process of its last owner,
    /// so that it takes the claims of holders (P6). A repetition returns the same.
    ///
    /// # Errors
    /// - `ClaimRefused` if the table does not wait, not for this node, or if nothing can be held in
    ///   it under this version: what was held is lost.
    /// - `LeaseLost` if `service` is not live: start a new incarnation.
    /// - `StoreUnusable` if the store cannot be written until an operator has helped.
    async fn claim_table(&self, service: ServiceId, claim: &TableClaim) -> Result<ClaimedTable>;

    /// Returns the owner of `table`, binding it to `service` if it has none.
    ///
    /// # Errors
    /// - `Reassigning`, with the time to wait, while the last owner may still be at work. While
    ///   that owner resigns, the call waits a moment first.
    /// - `LeaseLost` if `service` is not live: start a new incarnation.
    /// - `ResourceExhausted` at the limit of tables.
    /// - `StoreUnusable` if the store cannot be written until an operator has helped.
    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable>;

    /// Reserves a further block of fencing tokens for a bind (F2).
    ///
    /// # Errors
    /// - `BindChanged` if the bind is not current: grant nothing more on it.
    /// - `StoreUnusable` if the store cannot be written until an operator has helped.
    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens>;

    /// The owner of a bind gives it up, and the table is forgotten (B5): no number of it comes
    /// back, and the next bind of its name makes another table. To be called when nothing is locked
    /// in the table, and nothing more is granted in it.
    ///
    /// The response says if the bind was kept instead: then it is as before, and nothing of this
    /// call lands later. A call that is repeated because its response was lost finds the table
    /// gone, which is no error.
    ///
    /// # Errors
    /// - `BindChanged` if `version` is not current: the table was released before, and bound again.
    /// - `LeaseLost` if `service` is not live.
    /// - After any other error it is not known whether the table was forgotten, or will be: call
    ///   again, and do not serve the table meanwhile.
    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released>;

    /// Forgets a table that has no owner any more, for an operator. A table that a live incarnation
    /// owns is left as it is, and the response names that owner.
    ///
    /// # Errors
    /// - `Reassigning`, with the time to wait, while its last owner may still be at work (B3).
    /// - `StoreUnusable` if the store cannot be written until an operator has helped.
    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting>;

    /// The bind of `table` if there is one. Binds nothing.
    async fn latest(&self, table: &TableRef) -> Result<Latest>;

    /// Validates a transaction's binds and admits its commit for a limited time (C1 to C3). Writes
    /// nothing to the store.
    ///
    /// # Errors
    /// - `BindChanged` if a presented bind is not current, or invalid: end the transaction and
    ///   start it again.
    /// - `CannotCommit` if the transaction is tombstoned, has ended, was never begun, or said that
    ///   it would not validate, or if its origin is fenced: start a new transaction.
    /// - `Timeout` if less than `window.least` could be promised: call again.
    /// - `Unavailable` also if its origin has not reported yet that the transaction has begun: call
    ///   again.
    /// - `ResourceExhausted` at the limits of binds in a commit, and of commits of an origin.
    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission>;

    /// Ends a commit that was admitted, whether the data was written or not. Idempotent; an unknown
    /// attempt is no error.
    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress>;

    /// Makes transactions unable to ever commit, unless their commit is in flight (C4): those are
    /// returned as committing and left alone.
    ///
    /// Each transaction has an outcome of its own: one that fails (`UnknownOutcome`, `Unavailable`,
    /// `ResourceExhausted`) does not keep the others from theirs.
    ///
    /// # Errors
    /// `NotLeader`, `ShuttingDown`, `Unavailable`: nothing is known of any of them. Call again.
    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit>;

    /// Reports the validating transactions of an origin that can be alive. Those outside the range
    /// are refused from here on, and the tombstones below it may go (C4). The origin calls this
    /// whenever another leader responds, and ahead of the transactions that begin.
    ///
    /// # Errors
    /// `LeaseLost` if the incarnation is not live.
    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress>;

    /// Lets an allocator of this process look up each transaction of an origin in this process. It
    /// keeps the origin, at least until another is attached and nothing else refers to this one.
    /// Returns at once. An allocator in another process goes by [`report_txns`](Self::report_txns)
    /// alone.
    fn attach_origin(&self, service: ServiceId, origin: Arc<dyn OriginTxns>) {
        let _ = (service, origin);
    }

    /// The nodes that have a lease, and where clients reach them.
    async fn nodes(&self) -> Result<ClusterNodes>;

    /// Everything that an operator wants to see: nodes and binds. There may be a million binds.
    async fn status(&self) -> Result<AllocatorStatus>;
}
