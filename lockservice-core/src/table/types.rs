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

/// The locks that a call was granted.
///
/// The owner of the table also keeps what a roll-back needs in it; a grant that came over the wire
/// has none of that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The bind on which it was granted, to be presented at the commit.
    pub bind: Bind,
    /// The call's fencing token (F1), taken after its last key was granted. If nothing was newly
    /// locked, the largest token under which its items were already held.
    pub token: FencingToken,
    /// False if every item was already held at least as strongly.
    pub newly_locked: bool,
    /// How long the call waited for others; `None` if it did not wait. The engine reads no clock:
    /// it returns zero for a call that waited, and its caller replaces that by the duration.
    pub waited: Option<Duration>,
    /// The first conflicting holder or waiter, if there was one: its transaction and item.
    pub conflict: Option<(TxnId, LockItem)>,
    /// The largest commit timestamp of the transactions that it waited for, over all its waits
    /// (C5).
    pub prev_commit_ts: Option<u64>,
    /// The largest commit timestamp that an unlock of this table carried since the bind was
    /// installed.
    pub table_commit_ts: Option<u64>,
    /// True if something may have been committed in the table that the transaction's snapshot does
    /// not show and that no timestamp tells of (C5). Take the snapshot after this grant.
    ///
    /// The engine knows of no snapshot. It sets this while a part of the history is unknown, and
    /// its caller, which knows the age of the snapshot, decides.
    pub history_unknown: bool,
    /// Stays with the owner of the table.
    pub(crate) owner: OwnerPart,
}

/// What only the owner of a table knows of a grant. Empty at everybody else.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct OwnerPart {
    /// Each item that was newly locked or upgraded: a roll-back ends exactly these (T2).
    pub(crate) changes: Vec<ItemGrant>,
    /// Since when the owner knows the table's history, by the owner's clock: since it took over,
    /// or since the last release that its holder did not ask for. `None`: all of it.
    pub(crate) history_since: Option<Time>,
    /// How many tokens are left to the table after this grant. The owner renews them ahead (F2).
    pub(crate) tokens_left: u64,
}

/// One change that a call made to the lock set of its transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ItemGrant {
    /// The item.
    pub(crate) item: LockItem,
    /// How, and under which token, the transaction held exactly this item before; `None` if it did
    /// not. Rolling the grant back leaves that hold, unless it was itself rolled back or released.
    pub(crate) before: Option<(LockMode, FencingToken)>,
}

impl Grant {
    /// A grant under `token` on `bind` that nothing else is known of: nothing was newly locked, and
    /// the call did not wait.
    pub fn new(bind: Bind, token: FencingToken) -> Self {
        Self {
            bind,
            token,
            newly_locked: false,
            waited: None,
            conflict: None,
            prev_commit_ts: None,
            table_commit_ts: None,
            history_unknown: false,
            owner: OwnerPart::default(),
        }
    }
}

/// For tests of the engine, which look at what its owner keeps.
#[cfg(any(test, feature = "testing"))]
impl Grant {
    /// Each item that was newly locked or upgraded, with the mode and token of the hold before.
    pub fn changes(&self) -> Vec<(LockItem, Option<(LockMode, FencingToken)>)> {
        self.owner.changes.iter().map(|change| (change.item.clone(), change.before)).collect()
    }

    /// Since when the owner knows the table's history; `None`: all of it.
    pub fn history_since(&self) -> Option<Time> {
        self.owner.history_since
    }

    /// How many tokens are left to the table after this grant.
    pub fn tokens_left(&self) -> u64 {
        self.owner.tokens_left
    }
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
