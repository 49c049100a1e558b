//! One error type: what happened, what the caller must do, and what it happened to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, NodeName, ServiceId, TableRef, TxnId};
use crate::key::{LockItem, LockMode};

/// The advice to the caller of a call that failed with an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// The request itself is wrong; sending it again will fail again.
    FixRequest,
    /// The same call may be made again, in the same transaction.
    RetryCall,
    /// End this transaction and start a new one.
    RetryTransaction,
    /// Everything held through this session is gone. Stop the protected work, open a new session,
    /// start over.
    NewSession,
    /// The program can do nothing by itself: tell an operator.
    Operator,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $name:literal, $advice:ident;)*) => {
        /// The kind of a failure. Each kind says what to do; [`Error::advice`] says it to programs.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $($(#[$doc])* $kind,)*
        }

        impl ErrorKind {
            /// Every kind there is.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The kind's stable name, as it goes over the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// The kind with this [`name`](Self::name).
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$kind),)* _ => None }
            }

            /// The advice to the caller.
            pub const fn advice(self) -> Advice {
                match self { $(Self::$kind => Advice::$advice,)* }
            }
        }
    };
}

kinds! {
    /// The request is malformed: an empty key, a range upside down, a bad name. Fix the request.
    InvalidArgument => "invalid_argument", FixRequest;
    /// The call needs a right, or a kind of transaction, that the caller does not have. Fix the
    /// request.
    NotPermitted => "not_permitted", FixRequest;
    /// `NoWait` met a lock, or an earlier incompatible waiter. Nothing was locked; try again later.
    Conflict => "conflict", RetryCall;
    /// The wait's deadline passed. Nothing was locked by this call; try again, or give up.
    Timeout => "timeout", RetryCall;
    /// The caller cancelled the call, or ended its transaction while the call waited. Nothing was
    /// locked by this call.
    Cancelled => "cancelled", RetryCall;
    /// A cycle of waits ran through this call, and it was chosen to break it ([`Error::deadlock`]
    /// tells the cycle). Nothing was locked by this call. Release the transaction's locks and start
    /// it again.
    Deadlock => "deadlock", RetryTransaction;
    /// The lock is held by the very work that asks for it and waits for the call to end: by one of
    /// the call's ancestors. It would never come. Use the lock that is held, instead of asking for
    /// it again.
    HeldByAncestor => "held_by_ancestor", FixRequest;
    /// A table that the transaction locked was reassigned: its locks there are invalid (T4). End
    /// the transaction and start it again.
    BindChanged => "bind_changed", RetryTransaction;
    /// The table's last owner may still be at work; it is reassigned after [`Error::retry_after`]
    /// (B3). Try again then.
    Reassigning => "rebinding", RetryCall;
    /// This service does not own the table; [`Error::owner`] does. Follow it.
    NotOwner => "not_owner", RetryCall;
    /// The transaction holds locks on one node and asked for a table of another: a transaction
    /// lives on one node (T5). Nothing was locked by this call. End the transaction; start it again
    /// if the table may be owned by the same node then, else lock its tables in transactions of
    /// their own.
    SpansNodes => "spans_nodes", RetryTransaction;
    /// A table was not dropped: something in it is locked or waited for, or a commit is in flight
    /// on its bind. Nothing was changed; try again when that has ended.
    TableInUse => "table_in_use", RetryCall;
    /// There is no such table. Correct its name; a lock makes it.
    TableNotFound => "table_not_found", FixRequest;
    /// The transaction is unknown here, or has ended. Start a new one.
    TxnNotFound => "txn_not_found", RetryTransaction;
    /// The commit was refused: the transaction was made unable to commit (C4), its origin is
    /// fenced, or it said that it would not validate. Start a new one.
    CannotCommit => "cannot_commit", RetryTransaction;
    /// The session is unknown, has lapsed, or was replaced by another connection. Its locks are, or
    /// will be, given away: stop the protected work.
    SessionLost => "session_lost", NewSession;
    /// The service's own lease has lapsed: it is sealed and grants nothing (B2). Its locks are
    /// invalid: stop the protected work.
    LeaseLost => "lease_lost", NewSession;
    /// The service is shutting down. Stop the protected work and confirm it by closing the session;
    /// then try another node, or later.
    ShuttingDown => "shutting_down", NewSession;
    /// The service or the store cannot be reached now. What was promised stays promised; try the
    /// call again.
    Unavailable => "unavailable", RetryCall;
    /// The outcome of a write is unknown: it may or may not have happened. Read before deciding.
    UnknownOutcome => "unknown_outcome", RetryCall;
    /// A limit on memory, queues or tables was reached. Try again when there is room, ask for less,
    /// or raise the limit. A request that is too large by itself is an `InvalidArgument`.
    ResourceExhausted => "resource_exhausted", RetryCall;
    /// This node does not lead the store; [`Error::leader`] does, if that is known. Follow it.
    NotLeader => "not_leader", RetryCall;
    /// The write names an epoch that is no longer current: another leader has taken over (L2). Stop
    /// leading.
    Fenced => "fenced", RetryCall;
    /// A live incarnation of this node name exists in another process (B1). Choose another name, or
    /// stop the other process.
    NameInUse => "name_in_use", Operator;
    /// The store is open in another process. Stop that process, or choose another store.
    StoreInUse => "store_in_use", Operator;
    /// The store's content cannot be read as what it should be. Restore it from a backup.
    StoreCorrupt => "store_corrupt", Operator;
    /// The store was written by a newer version of this software. Use that version.
    StoreNewer => "store_newer", Operator;
    /// The store cannot be opened or written: permission, a missing folder, a full disk. The
    /// message names the path and what to do.
    StoreUnusable => "store_unusable", Operator;
    /// A broken invariant of this software. Please report it.
    Internal => "internal", Operator;
}

/// One edge of a deadlock: who waits for what, held or asked for earlier by whom.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadlockEdge {
    /// The transaction that waits.
    pub waiter: TxnId,
    /// The table in which it waits.
    pub table: TableRef,
    /// The row or range it waits for, as text.
    pub item: String,
    /// How it is wanted.
    pub mode: LockMode,
    /// The transaction it waits for.
    pub holder: TxnId,
    /// True for the transaction that is told this error. It may hold nothing, and then it knows
    /// itself by no other name.
    pub asker: bool,
    /// The label of the transaction that waits.
    pub label: String,
    /// The client of the transaction that waits.
    pub client: String,
}

/// The conflicting holder or waiter for which a request was not granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blocker {
    /// Its transaction.
    pub txn: TxnId,
    /// Its row or range that overlaps one of those asked for.
    pub item: LockItem,
    /// How it has it, or wants it.
    pub mode: LockMode,
    /// True if it holds the item; false if it waits for it, earlier in the queue.
    pub granted: bool,
    /// The transaction's label.
    pub label: String,
    /// The transaction's client.
    pub client: String,
}

impl Blocker {
    /// The transaction in words: the client, the transaction and its label.
    pub fn who(&self) -> String {
        let client = if self.client.is_empty() { "a client without a name" } else { &self.client };
        let label = if self.label.is_empty() { String::new() } else { format!(", {}", self.label) };
        format!("{client} (transaction {}{label})", self.txn)
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.granted { "held by" } else { "waited for earlier by" };
        write!(f, "{} is {how} {}", self.item, self.who())
    }
}

/// Machine-readable particulars of an [`Error`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Detail {
    /// The whole cycle of a [`ErrorKind::Deadlock`]: each edge's holder is the next edge's waiter.
    Deadlock(Vec<DeadlockEdge>),
    /// The conflicting holder or waiter, of a [`ErrorKind::Conflict`] or a [`ErrorKind::Timeout`].
    Blocked(Blocker),
    /// How long to wait before trying again.
    RetryAfter(Duration),
    /// The owner of the table.
    Owner {
        /// The owning incarnation.
        service: ServiceId,
        /// The owning node.
        node: NodeName,
        /// The address at which clients reach it.
        address: String,
    },
    /// The address at which the leader of the store is reached.
    Leader(String),
}

/// An error of this library: a [kind](ErrorKind), a sentence that says what to do, and what it
/// happened to.
///
/// Cheap enough to clone: an answer that is kept for a replay (T2) is the same error every time.
///
/// ```
/// use lockservice_core::{Error, ErrorKind, Key};
///
/// let error: Error = Key::new("").expect_err("a key is not empty");
/// assert_eq!(error.kind(), ErrorKind::InvalidArgument);
/// println!("{error}"); // what is wrong, and what to do
/// ```
#[derive(Clone)]
pub struct Error(Box<ErrorDetails>);

#[derive(Clone)]
struct ErrorDetails {
    kind: ErrorKind,
    message: String,
    context: Vec<(String, String)>,
    detail: Option<Detail>,
    leader_epoch: Option<Epoch>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with a sentence that says what happened and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorDetails {
            kind,
            message: message.into(),
            context: Vec::new(),
            detail: None,
            leader_epoch: None,
            source: None,
        }))
    }

    /// Adds what it happened to, for example `.with("path", path)`.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.0.context.push((name.into(), value.to_string()));
        self
    }

    /// Adds machine-readable particulars.
    #[must_use]
    pub fn with_detail(mut self, detail: Detail) -> Self {
        self.0.detail = Some(detail);
        self
    }

    /// Adds the epoch of the leadership that returned it (L3).
    #[must_use]
    pub fn with_leader_epoch(mut self, epoch: Epoch) -> Self {
        self.0.leader_epoch = Some(epoch);
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The advice to the caller.
    pub fn advice(&self) -> Advice {
        self.0.kind.advice()
    }

    /// The sentence alone, without context and source.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The objects of the failure, by name.
    pub fn context(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.context.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Machine-readable particulars, if there are any.
    pub fn detail(&self) -> Option<&Detail> {
        self.0.detail.as_ref()
    }

    /// The epoch of the leadership that returned it, for a refusal by another node's allocator. A
    /// caller that knows a later one must not act on it (L3).
    pub fn leader_epoch(&self) -> Option<Epoch> {
        self.0.leader_epoch
    }

    /// The whole cycle of a [`ErrorKind::Deadlock`].
    pub fn deadlock(&self) -> Option<&[DeadlockEdge]> {
        match self.detail() {
            Some(Detail::Deadlock(cycle)) => Some(cycle),
            _ => None,
        }
    }

    /// The conflicting holder or waiter, of a [`ErrorKind::Conflict`] or a [`ErrorKind::Timeout`],
    /// if that is known.
    pub fn blocker(&self) -> Option<&Blocker> {
        match self.detail() {
            Some(Detail::Blocked(blocker)) => Some(blocker),
            _ => None,
        }
    }

    /// The particulars, to be completed by one who knows more.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn detail_mut(&mut self) -> Option<&mut Detail> {
        self.0.detail.as_mut()
    }

    /// How long to wait before trying again, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.detail() {
            Some(Detail::RetryAfter(after)) => Some(*after),
            _ => None,
        }
    }

    /// The address of a table's owner, of a [`ErrorKind::NotOwner`].
    pub fn owner(&self) -> Option<&str> {
        match self.detail() {
            Some(Detail::Owner { address, .. }) => Some(address),
            _ => None,
        }
    }

    /// The address of the leader, of a [`ErrorKind::NotLeader`].
    pub fn leader(&self) -> Option<&str> {
        match self.detail() {
            Some(Detail::Leader(address)) => Some(address),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        for edge in self.deadlock().unwrap_or_default() {
            let asker = if edge.asker { " (this one)" } else { "" };
            write!(
                f,
                "; {}{asker} waits in {} for {} of {}",
                edge.waiter, edge.table, edge.item, edge.holder
            )?;
        }
        if let Some(blocker) = self.blocker() {
            write!(f, "; {blocker}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind.name())?;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_that_leads_back_to_it() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), Some(*kind));
        }
    }

    #[test]
    fn an_error_reads_as_a_sentence_and_debug_shows_its_causes() {
        let error = Error::new(
            ErrorKind::StoreUnusable,
            "cannot open the store: check the folder's permissions",
        )
        .with("path", "/x")
        .with_source(std::io::Error::other("denied"));
        assert_eq!(
            error.to_string(),
            "cannot open the store: check the folder's permissions (path: /x)"
        );
        assert_eq!(format!("{error:?}"), format!("store_unusable: {error}: denied"));
    }
}
