//! What goes into and comes out of the lock engine.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::allocator::Bind;
use crate::clock::Time;
use crate::error::Blocker;
use crate::id::{BindVersion, FencingToken, TableId, TableRef, TxnId};
use crate::key::{LockItem, LockMode};

/// A request for locks in one table, all or nothing.
#[derive(Clone, Debug)]
pub struct LockRequest {
    /// Who asks. One lock call of a transaction is decided at a time (T2).
    pub txn: TxnId,
    /// The table.
    pub table: TableId,
    /// The version of the bind; an owner serves exactly that one or refuses (B5).
    pub version: BindVersion,
    /// The rows and ranges. Taken in key order, whatever their order here; duplicates are harmless.
    pub items: Vec<LockItem>,
    /// How all of them are to be held.
    pub mode: LockMode,
    /// What to do about locks of others.
    pub wait: WaitPolicy,
}

/// What a request does about locks of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Wait in line. How long is the business of whoever polls the call.
    Wait,
    /// Fail at once with [`ErrorKind::Conflict`](crate::ErrorKind::Conflict). An earlier
    /// incompatible waiter counts as a lock. Nothing else is waited for either: where a table has
    /// no fencing token left, or is not bound, the call fails with `Unavailable` or `Reassigning`.
    NoWait,
}

/// What a request was granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The bind on which it was granted: to be presented at the commit.
    pub bind: Bind,
    /// The call's fencing token (F1), taken after its last key was granted. If nothing was newly
    /// locked, the largest token under which its items were already held.
    pub token: FencingToken,
    /// False if every item was already held at least as strongly.
    pub newly_locked: bool,
    /// How long the call waited for others; `None` if it did not. The engine reads no clock: it
    /// answers zero for a call that waited, and whoever took the time of the call puts the duration
    /// here.
    pub waited: Option<Duration>,
    /// The first lock or waiter that stood in the way, if any did: the transaction and the item.
    pub conflict: Option<(TxnId, LockItem)>,
    /// The largest commit timestamp of those it waited for, over all its waits (C5).
    pub prev_commit_ts: Option<u64>,
    /// The largest commit timestamp that any unlock of this table carried since the bind was
    /// installed.
    pub table_commit_ts: Option<u64>,
    /// Something may have been committed in the table that the transaction's snapshot does not show
    /// and no timestamp tells of: take the snapshot after this answer (C5). The engine knows of no
    /// snapshot and says so to everybody for as long as there is a
    /// [`history_since`](Self::history_since); whoever knows when the snapshot was begun decides.
    pub history_unknown: bool,
    /// Since when the owner knows the table's history: since it took over, or since the last
    /// release that its holder did not ask for. `None`: all of it. By the owner's clock, with whom
    /// it stays.
    pub history_since: Option<Time>,
    /// What exactly was newly locked or upgraded, so that it can be taken back (T2).
    pub changes: Vec<ItemGrant>,
    /// How many tokens are left to the owner of the table after this grant: it renews them ahead
    /// (F2).
    pub tokens_left: u64,
}

/// One change that a call made to its transaction's lock set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ItemGrant {
    /// The item.
    pub item: LockItem,
    /// How, and under which token, the transaction held exactly this item before; `None` if it did
    /// not. Taking the grant back leaves that hold, unless it was itself taken back or released.
    pub before: Option<(LockMode, FencingToken)>,
}

/// Limits and policies of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Most rows and ranges in one request. Default 20,000.
    pub items_per_request_max: usize,
    /// Most memory that the locks and waits of this node may use, in bytes, as estimated. Default 1
    /// GiB.
    pub lock_bytes_max: usize,
    /// Most memory that the locks of one transaction may use, in bytes, as estimated. Default 256
    /// MiB.
    pub txn_lock_bytes_max: usize,
    /// Most calls that may wait at once on this node. Default 100,000.
    pub waiters_max: usize,
    /// Who is told when a deadlock is found.
    pub victim: VictimPolicy,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            items_per_request_max: 20_000,
            lock_bytes_max: 1 << 30,
            txn_lock_bytes_max: 256 << 20,
            waiters_max: 100_000,
            victim: VictimPolicy::FewestLocks,
        }
    }
}

/// Which member of a deadlock's cycle is told. If a wait closes several cycles, one of those that
/// are on all of them: the others go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VictimPolicy {
    /// The one that holds the fewest locks; among those, the youngest (the largest [`TxnId`]).
    #[default]
    FewestLocks,
    /// The youngest: the largest [`TxnId`].
    Youngest,
}

/// A lock that is held or kept, as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockInfo {
    /// The table.
    pub table: TableRef,
    /// What is locked.
    pub item: LockItem,
    /// How.
    pub mode: LockMode,
    /// By whom.
    pub txn: TxnId,
    /// Under which token. If it is pending: that of the former hold, or 0.
    pub token: FencingToken,
    /// True if it is not granted: a call that still waits for more has taken it, or upgraded it,
    /// and keeps others from it meanwhile.
    pub pending: bool,
    /// How many calls wait because of it.
    pub waiters: usize,
}

/// A wait, as an operator sees it: one line for each transaction waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitInfo {
    /// The table.
    pub table: TableRef,
    /// What is waited for.
    pub item: LockItem,
    /// How it is wanted.
    pub mode: LockMode,
    /// Who waits.
    pub waiter: TxnId,
    /// For whom. Counter 0 names no transaction but a whole incarnation: the last owner of a table
    /// that is waited for until it can be bound again, or, with origin 0, that its owner is
    /// unknown.
    pub holder: TxnId,
    /// What of the holder's is in the way.
    pub held_item: LockItem,
    /// True if the holder holds its lock; false if it waits for it itself, earlier in the queue.
    pub granted: bool,
    /// When the call that waits was made.
    pub since: Time,
}

/// What a call waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum CallObstacle {
    /// The first one found in its way, with the names left empty.
    Lock(Blocker),
    /// A fencing token.
    Token,
}
