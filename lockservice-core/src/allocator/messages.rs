//! Requests and responses of a [`LockTableAllocator`](crate::allocator::LockTableAllocator).

use std::time::Duration;

use crate::bind::{Bind, BindSlot, TokenBlock};
use crate::error::Error;
use crate::id::{
    BindVersion, CommitAttempt, Epoch, EpochNumber, FencingToken, HolderMark, NodeName, Nonce,
    ServiceId, TableId, TableRef, TxnId, WriteNumber,
};
use crate::store::{ClusterConstants, ServiceState};

/// The progress of the allocator, which each of its responses carries. A node rejects responses of
/// an earlier leadership (L3). It reports its high-water mark, so that a leader notices that its
/// store went back (L4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Progress {
    /// The leadership's epoch at the response.
    pub epoch: Epoch,
    /// The number of the last write to the store at the response.
    pub write: WriteNumber,
    /// Every version, incarnation, table id and token that had been handed out is below this.
    pub high_water: EpochNumber,
    /// Distinguishes the leadership from another that was given the same epoch, by a store that
    /// went back; 0 if that is not known.
    pub leader: Nonce,
}

/// The distance by which an honest epoch can be above the clock of the store's server, or above a
/// leader where there is no clock: each leadership takes one, and skips up to 15 more.
const EPOCHS_AHEAD_MAX: u64 = 1 << 16;

impl Progress {
    /// This report as a leader of `epoch` may believe it, if its store's server vouches for
    /// `vouched`: invented reports must not use up all epochs and numbers.
    pub(in crate::allocator) fn believed(self, epoch: Epoch, vouched: Epoch) -> Self {
        if self.epoch > epoch && self.epoch.get() > vouched.get().saturating_add(EPOCHS_AHEAD_MAX) {
            tracing::warn!(observed = %self.epoch, %epoch, "a report of an epoch that no \
                leadership can have reached is ignored");
            return Self::default();
        }
        // Numbers lie below the end of their epoch.
        Self { high_water: self.high_water.min(self.epoch.end_number()), ..self }
    }
}

/// A node requests to start as a new incarnation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    /// The node's name, the same over its restarts.
    pub node: NodeName,
    /// Random number of the new incarnation.
    pub nonce: Nonce,
    /// The address at which clients reach it.
    pub address: String,
    /// The incarnation that this same process had before, if its lease was lost: it is replaced,
    /// and does not keep the name.
    pub replaces: Option<(ServiceId, Nonce)>,
}

/// A new incarnation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incarnation {
    /// Its id.
    pub service: ServiceId,
    /// The leadership that responded.
    pub at: Progress,
    /// Raw length of the lease, which begins with the request of this response.
    pub lease_ttl: Duration,
    /// The cluster's constants.
    pub constants: ClusterConstants,
    /// The tables that the node's last process left held when it resigned for a restart (P6).
    pub left: Vec<TableClaim>,
}

/// A bind from which holders claim (P6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableClaim {
    /// The table.
    pub table: TableRef,
    /// The version of the bind under which something was held.
    pub version: BindVersion,
}

/// A table that was bound for claims (P6): until the wait is over, or all holders have claimed,
/// nothing else may be granted in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimedTable {
    /// The bind; with a block of tokens if this call granted it.
    pub bound: BoundTable,
    /// Claims of this version and of later ones are of locks that no other was granted since.
    pub claimable_from: BindVersion,
    /// Every token that was granted under these versions is below this.
    pub tokens_below: FencingToken,
    /// The wait, from the response on, raw: its receiver counts [`hi`](crate::clock::hi) of it.
    pub wait: Duration,
    /// All sessions that hold something in the table, if that is known.
    pub holders: Option<Vec<HolderMark>>,
    /// Sessions that waited for something in it when the last owner stopped.
    pub waiters: Vec<HolderMark>,
}

/// A renewed lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseAck {
    /// The leadership that responded.
    pub at: Progress,
    /// Raw length of the lease, counted from before the renewal was sent.
    pub lease_ttl: Duration,
}

/// A bind, and what its owner needs to serve it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BoundTable {
    /// The bind.
    pub bind: Bind,
    /// The owner's node.
    pub node: NodeName,
    /// The address at which the owner is reached.
    pub address: String,
    /// The leadership that responded.
    pub at: Progress,
    /// The first block of tokens, if this call granted the bind.
    pub tokens: Option<TokenBlock>,
}

/// A further block of tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservedTokens {
    /// The block.
    pub tokens: TokenBlock,
    /// The leadership that responded.
    pub at: Progress,
}

/// The response to the release of a bind.
#[derive(Clone, Debug)]
pub struct Released {
    /// The reason why the bind was kept, and certainly is as before; `None` if the table was
    /// forgotten.
    pub kept: Option<Error>,
    /// The leadership that responded.
    pub at: Progress,
}

/// The response to an operator who wants a table forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forgetting {
    /// The outcome.
    pub outcome: ForgetOutcome,
    /// The leadership that responded.
    pub at: Progress,
}

/// The outcome for a table that an operator wants forgotten. Exhaustive: an operator must see each.
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ForgetOutcome {
    /// It is forgotten.
    Forgotten,
    /// There is no such table.
    Unknown,
    /// A live incarnation owns it, and decides.
    Owned(BindStatus),
}

/// The last known bind of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Latest {
    /// Its bind; `None` if it has none.
    pub bind: Option<BindStatus>,
    /// The leadership that responded.
    pub at: Progress,
}

/// A bind as a transaction presents it at its commit: in numbers, as its lock results had it.
///
/// It comes from a [`Bind`], and is copied. The four numbers name the bind; the slot only saves the
/// allocator of this process a look-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PresentedBind {
    /// The table's number.
    pub table: TableId,
    /// The partition.
    pub partition: u32,
    /// The owner on which the locks were taken.
    pub owner: ServiceId,
    /// The version at which they were taken.
    pub version: BindVersion,
    /// The slot in which the allocator keeps the bind; [`BindSlot::NONE`] if it is not known.
    pub slot: BindSlot,
}

impl From<&Bind> for PresentedBind {
    fn from(bind: &Bind) -> Self {
        let Bind { id, partition, owner, version, slot, .. } = *bind;
        Self { table: id, partition, owner, version, slot }
    }
}

/// The time that a commit needs: at least `least`, at most `most`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommitWindow {
    /// The admission is refused if it would be shorter.
    pub least: Duration,
    /// The admission is never longer.
    pub most: Duration,
}

/// The request of a transaction to commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BeginCommit {
    /// The transaction.
    pub txn: TxnId,
    /// Every bind on which it holds locks. Empty for a transaction without locks.
    pub binds: Vec<PresentedBind>,
    /// Names the attempt: a repeat is idempotent, and may extend the time.
    pub attempt: CommitAttempt,
    /// The time that it needs.
    pub window: CommitWindow,
}

/// A commit may go ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommitAdmission {
    /// The write must have landed before this much time has passed, lo-counted from before the
    /// request was sent (C1).
    pub commit_before: Duration,
    /// The leadership that responded.
    pub at: Progress,
}

/// The outcome for each transaction of a
/// [`cannot_commit`](crate::allocator::LockTableAllocator::cannot_commit).
#[derive(Clone, Debug, Default)]
pub struct CannotCommit {
    /// The leadership that responded.
    pub at: Progress,
    /// These can never commit any more: their locks may be released.
    pub tombstoned: Vec<TxnId>,
    /// The commit of these is in flight: keep their locks and try again later.
    pub committing: Vec<TxnId>,
    /// It is not known whether these can commit, for this reason: keep their locks and try again
    /// later.
    pub failed: Vec<(TxnId, Error)>,
}

/// A response of an allocator, which names the leadership that gave it (L3).
pub(in crate::allocator) trait Response {
    /// The leadership that responded.
    fn at(&self) -> Progress;
}

impl Response for Progress {
    fn at(&self) -> Progress {
        *self
    }
}

macro_rules! responses {
    ($($response:ty),* $(,)?) => {
        $(impl Response for $response {
            fn at(&self) -> Progress {
                self.at
            }
        })*
    };
}

impl Response for ClaimedTable {
    fn at(&self) -> Progress {
        self.bound.at
    }
}

responses!(
    Incarnation,
    LeaseAck,
    BoundTable,
    ReservedTokens,
    Released,
    Forgetting,
    Latest,
    CommitAdmission,
    CannotCommit,
    ClusterNodes,
    AllocatorStatus,
);

/// The nodes of a cluster, as far as they have a lease.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterNodes {
    /// The leadership that responded.
    pub at: Progress,
    /// The incarnation of each node that has a lease, ordered by the names of the nodes.
    pub nodes: Vec<ServiceStatus>,
}

/// An allocator, as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AllocatorStatus {
    /// The leadership that responded.
    pub at: Progress,
    /// Every incarnation that is live or still owns a bind.
    pub services: Vec<ServiceStatus>,
    /// Every bind, ordered by table.
    pub binds: Vec<BindStatus>,
}

/// An incarnation, as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceStatus {
    /// The incarnation.
    pub id: ServiceId,
    /// Its node.
    pub node: NodeName,
    /// The address at which clients reach it.
    pub address: String,
    /// The state of the incarnation: it may renew or not.
    pub state: ServiceState,
}

/// A bind, as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BindStatus {
    /// The bind.
    pub bind: Bind,
    /// The owner's node.
    pub node: NodeName,
    /// The address at which the owner is reached.
    pub address: String,
    /// The validity of the bind.
    pub state: BindState,
}

/// The validity of a bind (B3). Exhaustive: callers must distinguish the cases.
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindState {
    /// The owner's lease holds.
    Bound,
    /// The owner has lapsed or was replaced. The table can be reassigned after this much time.
    Invalid {
        /// Zero if it can be reassigned now.
        reassigned_in: Duration,
    },
}

impl BindState {
    /// `bound`, `waiting` (invalid, and not yet to be reassigned) or `invalid`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Invalid { reassigned_in } if reassigned_in.is_zero() => "invalid",
            Self::Invalid { .. } => "waiting",
        }
    }
}
