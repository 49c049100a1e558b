//! Requests and responses of a [`LockService`](crate::service::LockService).

use std::sync::Arc;
use std::time::Duration;

use crate::allocator::LockTableAllocator;
use crate::env::Env;
use crate::error::Error;
use crate::id::{NodeName, Nonce, Sequence, ServiceId, SessionHandle, TableRef, TxnId, TxnNumber};
use crate::key::{LockItem, LockMode};
use crate::metrics::ServiceMetrics;
use crate::service::{OpenedBy, ServiceSettings, TableLimits, TraceContext};
use crate::table::{Commit, Grant, LockInfo, Savepoint, WaitInfo, WaitPolicy};

/// The components of a service.
#[derive(Clone, Debug)]
pub struct ServiceParts {
    /// The allocator, which binds tables and admits commits.
    pub allocator: Arc<dyn LockTableAllocator>,
    /// The source of time, randomness, tasks and timers.
    pub env: Env,
    /// The node's name, the same over its restarts.
    pub node: NodeName,
    /// The address at which clients reach it.
    pub address: String,
    /// Limits and defaults.
    pub settings: ServiceSettings,
    /// Limits of tables. The incarnations of the node share them.
    pub limits: Arc<TableLimits>,
    /// What the node counts. Its incarnations share it.
    pub metrics: Arc<ServiceMetrics>,
    /// The incarnation that this process had before, if that one's lease was lost.
    pub replaces: Option<(ServiceId, Nonce)>,
    /// Makes a span of the service a child of the span of a caller, as far as the subscriber of the
    /// process can do that. Called for each traced lock call ([`LockSpec::trace`]).
    pub continue_trace: fn(&tracing::Span, &TraceContext),
}

impl ServiceParts {
    /// A service that is reached only from within this process, with default settings.
    pub fn new(
        allocator: Arc<dyn LockTableAllocator>,
        env: impl Into<Env>,
        node: NodeName,
    ) -> Self {
        Self {
            allocator,
            env: env.into(),
            node,
            address: String::new(),
            settings: ServiceSettings::default(),
            limits: Arc::default(),
            metrics: Arc::default(),
            replaces: None,
            continue_trace: |_, _| {},
        }
    }
}

/// The options of a transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnOptions {
    /// True if it will validate its commit with `begin_commit` (T1). Any other is refused there.
    pub validates: bool,
    /// A name for operators. At most 255 bytes.
    pub label: String,
}

/// A request for locks, as a caller makes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockSpec {
    /// The table.
    pub table: TableRef,
    /// Rows and ranges; at least one. All or nothing.
    pub items: Vec<LockItem>,
    /// The mode in which all of them are requested.
    pub mode: LockMode,
    /// True if the call waits for locks of others.
    pub wait: WaitPolicy,
    /// True if the transaction's rows of the table may become one range at a limit of memory. The
    /// range locks the rows between them too. An escalation never waits: if the range is not free,
    /// the call fails with [`ResourceExhausted`](crate::ErrorKind::ResourceExhausted), as it does
    /// without an escalation.
    pub escalate: bool,
    /// The longest time to wait; the service's ceiling if `None`. Counts from the call, over
    /// everything it waits for.
    pub timeout: Option<Duration>,
    /// The raw age of the transaction's snapshot at the call (C5). `None` if it is unknown, which
    /// counts as older than everything; a [`Txn`](crate::service::Txn) then uses the time of its
    /// own begin.
    pub snapshot_age: Option<Duration>,
    /// The transactions whose work waits until this call has ended, at most [`ANCESTORS_MAX`]:
    /// those of an outer command that started this one, say. The call never waits for their locks
    /// (`HeldByAncestor`, at once), and a cycle of waits through them is a deadlock. This claim is
    /// not checked: if only a claim closes a cycle, the call that makes it fails.
    pub ancestors: Vec<TxnId>,
    /// For how long the call has waited at earlier incarnations of the node, raw (P6). It is served
    /// as one that came so long ago: among the calls that wait for the table to be bound, and ahead
    /// of those that came to this incarnation first. Its time-out is what is left of it.
    pub waited: Duration,
    /// The trace of which the call is a part, if the caller records one: see [`TraceContext`].
    pub trace: Option<Box<TraceContext>>,
}

/// The largest number of ancestors of one call.
pub const ANCESTORS_MAX: usize = 64;

impl LockSpec {
    /// Exclusive locks on `items`, waited for as long as the service allows.
    pub fn new(table: TableRef, items: Vec<LockItem>) -> Self {
        let (mode, wait) = (LockMode::Exclusive, WaitPolicy::Wait);
        Self {
            table,
            items,
            mode,
            wait,
            escalate: false,
            timeout: None,
            snapshot_age: None,
            ancestors: Vec::new(),
            waited: Duration::ZERO,
            trace: None,
        }
    }
}

/// The raw time for which locks are safe: its receiver counts [`lo`](crate::clock::lo) of it, from
/// before it sent its request (P2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Promise {
    /// The shortest promise on which the locks rest, never longer than the session's TTL (P1).
    pub valid_for: Duration,
}

/// Locks that were granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Granted {
    /// The transaction that holds them.
    pub txn: TxnId,
    /// The grant.
    pub grant: Grant,
    /// The time for which they are safe without a renewal.
    pub promise: Promise,
    /// For how long, raw, the owner has known the table's history: what was committed earlier may
    /// be unknown (C5). `None`: it knows all.
    ///
    /// A request carries the age of its snapshot at its send, and cannot carry its own travel time.
    /// So a client checks once more when the response arrives: unless its snapshot was begun less
    /// than [`lo`](crate::clock::lo) of this before, the history is unknown to it, even if
    /// [`Grant::history_unknown`] is false.
    pub history_known: Option<Duration>,
}

/// Names an operation of a session (T2).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnOp {
    /// The client's number of the transaction in the session, from 1. Numbers are first used in
    /// rising order, and never again.
    pub number: TxnNumber,
    /// The operation's number in the transaction: 1, 2, 3, …; 0 lets the service number all of
    /// them, as they arrive.
    pub sequence: Sequence,
    /// The client has every response of this transaction up to here: they may be forgotten.
    pub acked: Sequence,
    /// The options of the transaction; read with sequence 1 only.
    pub options: TxnOptions,
}

/// An operation of a session.
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Locks.
    Lock(LockSpec),
    /// Releases chosen keys; those not held are ignored.
    Unlock {
        /// The table.
        table: TableRef,
        /// Exactly the rows and ranges that were locked.
        items: Vec<LockItem>,
        /// The commit of what they protect, if it was committed (C5).
        commit: Option<Commit>,
    },
    /// Makes chosen keys weaker; those not held, or held no more strongly, are ignored.
    Downgrade {
        /// The table.
        table: TableRef,
        /// Exactly the rows and ranges that were locked.
        items: Vec<LockItem>,
        /// The mode in which they are held from then on.
        mode: LockMode,
    },
    /// Sets a savepoint.
    Savepoint,
    /// Ends what was granted since a savepoint of the same transaction.
    RollBackTo(Savepoint),
    /// Ends the transaction: cancels its waiting call and releases everything.
    End {
        /// The commit, if it committed (C5).
        commit: Option<Commit>,
    },
    /// Rolls back or cancels one lock operation of the same transaction, whether it waits, was
    /// granted or has not arrived.
    Cancel {
        /// Its sequence.
        sequence: Sequence,
    },
    /// Fails with this error, in its turn: the place in the order of an operation that could not be
    /// understood.
    Refuse(Error),
}

/// The response to an [`Operation`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpResponse {
    /// To [`Operation::Lock`]. Shared with the session, which keeps it for a replay.
    Locked(Arc<Granted>),
    /// To [`Operation::Savepoint`].
    Savepoint(Savepoint),
    /// To all others.
    Done {
        /// The number of rows and ranges that an `Unlock`, an `End` or a `RollBackTo` released, or
        /// that a `Downgrade` made weaker; 0 for a `Cancel`.
        released: usize,
    },
}

impl OpResponse {
    /// It was done, and released nothing.
    pub(crate) const DONE: Self = Self::Done { released: 0 };
}

/// A transaction that holds or waits, as operators know it. Of an embedder's transaction only the
/// label and [`held`](Self::held) are known, of one without a label nothing, and nothing of one
/// that has ended since its line was made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnParty {
    /// Its label.
    pub label: String,
    /// The name that the client of its session gave itself. The command line names its host and its
    /// process there: `lock@HOST:PID`.
    pub client: String,
    /// Its session.
    pub session: Option<SessionHandle>,
    /// Who opened that session, and from where.
    pub opened_by: OpenedBy,
    /// What is left of the session's promise: until then its locks stay, unless the client gives
    /// them up, and longer if it renews.
    pub left: Option<Duration>,
    /// The time since it was first granted a lock, also if it has released that one. `None` if it
    /// was granted none.
    pub held: Option<Duration>,
    /// The processes that the client left running when it went; empty unless it said so. The locks
    /// stay until the session has lapsed.
    pub still_running: String,
}

/// A held lock, with what operators know of its holder. In the [list of a
/// row](crate::service::LockService::row_list) also a call that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockStatus {
    /// The lock.
    pub info: LockInfo,
    /// The holder, or the waiter.
    pub party: TxnParty,
    /// For how long a call has waited; `None` for a lock.
    pub waiting: Option<Duration>,
}

/// A wait, with what operators know of both sides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitStatus {
    /// The wait.
    pub info: WaitInfo,
    /// The time for which it has lasted.
    pub waiting: Duration,
    /// The side that waits.
    pub waiter: TxnParty,
    /// The side that is waited for. Of a table's last owner the label says what it is, and the
    /// client is its node.
    pub holder: TxnParty,
}

/// The result of a service's stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// True if every session and transaction had ended in time: nothing of the service is in use
    /// any more.
    pub confirmed: bool,
    /// True if everything was released and the lease resigned: the next start need not wait.
    /// False if some session did not confirm in time that its work had stopped (P5).
    pub resigned: bool,
    /// The number of tables that were left held, for a restart (P6): they wait for their holders.
    pub held: usize,
}
