//! Requests, grants and settings of the lock engine, and the lines of its lists.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bind::Bind;
use crate::clock::Time;
use crate::error::Blocker;
use crate::id::{BindVersion, CommitTimestamp, FencingToken, TableId, TableRef, TxnId};
use crate::key::{Key, KeyRange, LockItem, LockMode};

/// A request for locks in one table, all or nothing.
#[derive(Clone, Debug)]
pub struct LockRequest {
    /// The table.
    pub table: TableId,
    /// The version of the bind. An owner serves exactly that version or refuses (B5).
    pub version: BindVersion,
    /// The rows and ranges. They are taken in key order; duplicates are harmless.
    pub items: Vec<LockItem>,
    /// The mode in which all of them are held.
    pub mode: LockMode,
    /// The behaviour if an item is not free.
    pub wait: WaitPolicy,
    /// The behaviour at a limit of memory. If true, the transaction's rows of the table and the
    /// items of the request become one range, unless that would have to wait. If false, or if it
    /// would, the request fails.
    pub escalate: bool,
}

/// The behaviour of a request whose items are not all free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Waits in the queue. The engine has no timeout: the caller drops the call instead.
    Wait,
    /// Waits for nothing:
    ///
    /// | if | the call fails with |
    /// |---|---|
    /// | a lock conflicts, or an earlier incompatible waiter | [`Conflict`] |
    /// | the table has no fencing token left | [`Unavailable`] |
    /// | the table waits to be reassigned | [`Reassigning`] |
    ///
    /// [`Conflict`]: crate::ErrorKind::Conflict
    /// [`Unavailable`]: crate::ErrorKind::Unavailable
    /// [`Reassigning`]: crate::ErrorKind::Reassigning
    NoWait,
    /// As [`NoWait`](Self::NoWait), except that a row that is not free is left out: the grant names
    /// the rows that were [skipped](Grant::skipped). For rows alone.
    SkipLocked,
}

impl WaitPolicy {
    /// True if a request waits for others.
    pub const fn is_patient(self) -> bool {
        matches!(self, Self::Wait)
    }
}

/// A commit, as those who release its locks know it (C5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Commit {
    /// Its timestamp.
    pub timestamp: CommitTimestamp,
    /// True if it changed the definition of a table, so that plans that were made before are
    /// stale. It counts for each table in which locks are released with it: a transaction that
    /// changed one of its tables unlocks that table with the mark, and ends without it.
    pub definition_changed: bool,
}

impl Commit {
    /// A commit that changed no definition.
    pub const fn at(timestamp: CommitTimestamp) -> Self {
        Self { timestamp, definition_changed: false }
    }
}

/// The locks that a call was granted.
///
/// On the owner of the table, a grant also holds the data that a roll-back needs. A grant that came
/// over the wire does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The bind on which it was granted, to be presented at the commit.
    pub bind: Bind,
    /// The call's fencing token (F1), taken after its last key was granted. If nothing was newly
    /// locked, it is the largest token under which the items were already held.
    pub token: FencingToken,
    /// False if every item was already held at least as strongly.
    pub newly_locked: bool,
    /// The time for which the call waited for others; `None` if it did not wait. The engine reads
    /// no clock: it returns zero for a call that waited, and its caller replaces that by the
    /// duration.
    pub waited: Option<Duration>,
    /// The first conflicting holder or waiter, if there was one: its transaction and item. The call
    /// waited for it, or skipped its row.
    pub conflict: Option<(TxnId, LockItem)>,
    /// The largest commit timestamp of the transactions that it waited for, over all its waits
    /// (C5). `None` if none of them committed with a timestamp.
    pub prev_commit_ts: Option<CommitTimestamp>,
    /// True if one of those commits changed the definition of the table.
    pub prev_definition_changed: bool,
    /// The largest commit timestamp that an unlock of this table carried since the bind was
    /// installed.
    pub table_commit_ts: Option<CommitTimestamp>,
    /// The largest of those whose commit changed the definition of the table. A plan that was made
    /// with an earlier snapshot is stale.
    pub table_definition_ts: Option<CommitTimestamp>,
    /// The rows that were not free and are not held, in key order: only with
    /// [`SkipLocked`](WaitPolicy::SkipLocked).
    pub skipped: Vec<Key>,
    /// The range that the transaction's rows of the table became, because a limit of memory was
    /// reached. A roll-back of this grant leaves it if it stands for earlier grants too.
    pub escalated: Option<Box<KeyRange>>,
    /// True if the table may have a commit that the transaction's snapshot does not show and whose
    /// timestamp is not known (C5). The caller then takes the snapshot after this grant.
    ///
    /// The engine knows of no snapshot. It sets this while a part of the history is unknown, and
    /// its caller, which knows the age of the snapshot, decides.
    pub history_unknown: bool,
    /// The part that stays with the owner of the table.
    pub(crate) owner: OwnerPart,
}

/// The part of a grant that only the owner of the table has. Elsewhere it is empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
pub(crate) struct OwnerPart {
    /// Each item that was newly locked or upgraded: a roll-back ends exactly these (T2).
    pub(crate) changes: Vec<ItemGrant>,
    /// The time since which the owner knows the table's history, by the owner's clock: its
    /// takeover, or the last release that the holder did not request. `None` if it knows all of the
    /// history.
    pub(crate) history_since: Option<Time>,
    /// The number of tokens that are left to the table after this grant. The owner renews them
    /// ahead (F2).
    pub(crate) tokens_left: u64,
    /// When it was made, by the owner's clock, if a task waited for it.
    pub(crate) made_at: Option<Time>,
}

/// One change that a call made to the lock set of its transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ItemGrant {
    /// The item.
    pub(crate) item: LockItem,
    /// The mode and the token under which the transaction held exactly this item before; `None` if
    /// it did not. A roll-back of the grant leaves that hold, unless that hold was itself rolled
    /// back or released.
    pub(crate) before: Option<(LockMode, FencingToken)>,
}

impl Grant {
    /// A grant under `token` on `bind` without further information: nothing was newly locked, and
    /// the call did not wait.
    pub fn new(bind: Bind, token: FencingToken) -> Self {
        Self {
            bind,
            token,
            newly_locked: false,
            waited: None,
            conflict: None,
            prev_commit_ts: None,
            prev_definition_changed: false,
            table_commit_ts: None,
            table_definition_ts: None,
            skipped: Vec::new(),
            escalated: None,
            history_unknown: false,
            owner: OwnerPart::default(),
        }
    }
}

/// For tests of the engine.
#[cfg(any(test, feature = "testing"))]
impl Grant {
    /// Each item that was newly locked or upgraded, with the mode and token of the hold before.
    pub fn changes(&self) -> Vec<(LockItem, Option<(LockMode, FencingToken)>)> {
        self.owner.changes.iter().map(|change| (change.item.clone(), change.before)).collect()
    }

    /// The time since which the owner knows the table's history; `None` if it knows all of it.
    pub fn history_since(&self) -> Option<Time> {
        self.owner.history_since
    }

    /// The number of tokens that are left to the table after this grant.
    pub fn tokens_left(&self) -> u64 {
        self.owner.tokens_left
    }
}

/// Limits and policies of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// The largest number of rows and ranges in one request. Default 20,000.
    pub items_per_request_max: usize,
    /// The most memory that the locks and waits of this node may use, in bytes, as estimated: that
    /// is what the process uses within a fifth, for many locks of one kind. Default 1 GiB.
    ///
    /// A row that no other transaction wants takes about 85 bytes. One that another transaction has
    /// met takes about 310, and is kept beyond the limit; then calls are refused. A key of more
    /// than 22 bytes adds its length, once or up to three times.
    pub lock_bytes_max: usize,
    /// The most memory that the locks of one transaction may use, in bytes, as estimated, as if it
    /// shared none of them. Default 256 MiB.
    pub txn_lock_bytes_max: usize,
    /// The largest number of calls that may wait at once on this node. Default 100,000.
    pub waiters_max: usize,
    /// The choice of the transaction that fails in a deadlock.
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

/// The choice of the member of a deadlock's cycle that fails. If a wait closes several cycles, the
/// choice is among the members of all of them, so that one failure is enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VictimPolicy {
    /// The transaction with the fewest locks; of several, the youngest (the largest [`TxnId`]).
    #[default]
    FewestLocks,
    /// The youngest transaction: the largest [`TxnId`].
    Youngest,
}

/// A lock that is held or pending: a line of a [`LockList`](super::LockList) or of a
/// [`RowList`](super::RowList).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockInfo {
    /// The table.
    pub table: TableRef,
    /// The row or range.
    pub item: LockItem,
    /// The mode in which it is held.
    pub mode: LockMode,
    /// The holder.
    pub txn: TxnId,
    /// Its fencing token. A pending lock has the token of the former hold, or 0.
    pub token: FencingToken,
    /// True if it is not granted yet: a call in flight, which waits for further items, has taken or
    /// upgraded it. It conflicts with other requests all the same.
    pub pending: bool,
    /// The number of calls that wait for it.
    pub waiters: usize,
    /// `None` for a lock. In the [list of a row](super::RowList) a call that waits has a line too:
    /// when it was made. It holds nothing of this line, and its token is 0.
    pub waiting_since: Option<Time>,
}

/// A wait for one transaction: a line of a [`WaitList`](super::WaitList).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitInfo {
    /// The table.
    pub table: TableRef,
    /// The item that is waited for.
    pub item: LockItem,
    /// The requested mode.
    pub mode: LockMode,
    /// The transaction that waits.
    pub waiter: TxnId,
    /// The transaction that it waits for. Counter 0 stands for a whole incarnation: the last owner
    /// of a table, for which the call waits until the table can be reassigned. Origin 0 then stands
    /// for an unknown owner.
    pub holder: TxnId,
    /// The conflicting item of that transaction.
    pub held_item: LockItem,
    /// True if it holds that item; false if it waits for it, ahead in the queue.
    pub granted: bool,
    /// When the waiting call was made.
    pub since: Time,
}

/// The obstacle of a call that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum CallObstacle {
    /// The first conflicting holder or waiter, with empty names.
    Lock(Blocker),
    /// A fencing token.
    Token,
}
