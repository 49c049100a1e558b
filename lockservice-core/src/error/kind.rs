//! [`ErrorKind`]: what happened; [`Advice`]: what the caller must do about it.

#[cfg(doc)]
use crate::error::Error;

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
    /// The program can do nothing by itself: report to an operator.
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
    /// One end did not prove to the other who it is: its certificate or token is missing, unknown,
    /// expired or revoked, or one end speaks TLS and the other does not. Correct the credentials,
    /// or the address.
    Unauthenticated => "unauthenticated", FixRequest;
    /// `NoWait` met a lock, or an earlier incompatible waiter. Nothing was locked; try again later.
    Conflict => "conflict", RetryCall;
    /// The wait's deadline passed. Nothing was locked by this call; try again, or give up.
    Timeout => "timeout", RetryCall;
    /// The caller cancelled the call, or ended its transaction while the call waited. Nothing was
    /// locked by this call.
    Cancelled => "cancelled", RetryCall;
    /// A cycle of waits ran through this call, and it was chosen to break it ([`Error::deadlock`]
    /// returns the cycle). Nothing was locked by this call. Release the transaction's locks and
    /// start it again.
    Deadlock => "deadlock", RetryTransaction;
    /// The lock is held by one of the call's ancestors, which waits for the call to end. So it
    /// would never be granted. Use the lock that is held, and do not request it again.
    HeldByAncestor => "held_by_ancestor", FixRequest;
    /// A table that the transaction locked was reassigned: its locks there are invalid (T4). End
    /// the transaction and start it again.
    BindChanged => "bind_changed", RetryTransaction;
    /// The table's last owner may still be at work; it is reassigned after [`Error::retry_after`]
    /// (B3). Try again then.
    Reassigning => "reassigning", RetryCall;
    /// This service does not own the table; [`Error::owner`] does. Follow it.
    NotOwner => "not_owner", RetryCall;
    /// The transaction holds locks on one node and requested a table of another: a transaction
    /// lives on one node (T5). Nothing was locked by this call. End the transaction; start it again
    /// if the table may be owned by the same node then, else lock its tables in transactions of
    /// their own.
    SpansNodes => "spans_nodes", RetryTransaction;
    /// A table was not dropped: something in it is locked or waited for, or a commit is in flight
    /// on its bind. Nothing was changed; try again when that has ended.
    TableInUse => "table_in_use", RetryCall;
    /// There is no such table. Correct its name; a lock makes it.
    TableNotFound => "table_not_found", FixRequest;
    /// There is no session with this handle at this node, or no longer. Take the handle from the
    /// node's list of sessions.
    SessionNotFound => "session_not_found", FixRequest;
    /// The transaction is unknown here, or has ended. Start a new one.
    TxnNotFound => "txn_not_found", RetryTransaction;
    /// The commit was refused: the transaction was made unable to commit (C4), its origin is
    /// fenced, or it said that it would not validate. Start a new one.
    CannotCommit => "cannot_commit", RetryTransaction;
    /// The session is unknown, has lapsed, or was replaced by another connection. Its locks are, or
    /// will be, given away: stop the protected work.
    SessionLost => "session_lost", NewSession;
    /// An operator ended the session; the message says why. Stop the protected work, and confirm it
    /// by closing the session. Do not start again without being told to.
    Killed => "killed", NewSession;
    /// An operator, or a limit of the server, ended the transaction; the message says why. Nothing
    /// more is granted to it, and its locks will be given away; its session goes on. Stop the
    /// protected work, and confirm it by ending the transaction.
    TxnKilled => "txn_killed", RetryTransaction;
    /// The service's own lease has lapsed: it is sealed and grants nothing (B2). Its locks are
    /// invalid: stop the protected work.
    LeaseLost => "lease_lost", NewSession;
    /// The service is shutting down. Stop the protected work and confirm it by closing the session;
    /// then try another node, or later.
    ShuttingDown => "shutting_down", NewSession;
    /// The server stops, and is expected to start again. Nothing was locked by this call. Try it
    /// again, within its time: what is held stays held, if it is claimed (P6).
    Restarting => "restarting", RetryCall;
    /// What a transaction held before a restart of its server could not be claimed (P6): the
    /// message says why. Nothing of it was claimed: stop the work under its locks, and end it.
    ClaimRefused => "claim_refused", RetryTransaction;
    /// The service or the store cannot be reached now. What was promised stays promised; try the
    /// call again.
    Unavailable => "unavailable", RetryCall;
    /// The outcome of a write is unknown: it may or may not have happened. Read before deciding.
    UnknownOutcome => "unknown_outcome", RetryCall;
    /// A limit on memory, queues or tables was reached. Try again when there is room, request less,
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
