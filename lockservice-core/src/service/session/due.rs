//! An operation whose turn it is, the outcomes on its way, and its wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::error::Result;
use crate::id::{Sequence, TableRef};
use crate::key::LockItem;
use crate::service::session::pending::Pending;
use crate::service::session::queue::Step;
use crate::service::txn::{LockWait, TxnRecord};
use crate::service::{Granted, OpResponse};

/// The fate of an operation that was taken in.
#[allow(clippy::large_enum_variant, reason = "moved once and never kept")]
pub(super) enum TakenIn {
    /// This is its response.
    Known(Result<OpResponse>),
    /// It is to be decided by this call.
    Due(Due),
    /// It is queued, or joined the first of its sequence. If `run`, no call runs the queue, and it
    /// is to be run.
    Queued { pending: Pending, run: bool },
}

/// The outcome of an attempt to decide an operation without waiting.
#[allow(clippy::large_enum_variant, reason = "moved once and never kept")]
pub(super) enum Outcome {
    /// It is decided. If `more`, the turn of another one has come, and this call runs the queue.
    Decided { response: Result<OpResponse>, more: bool },
    /// A lock that is not free at once.
    MustWait(Due),
}

/// The outcome of an attempt to begin an operation that must wait.
#[allow(clippy::large_enum_variant, reason = "moved once and never kept")]
pub(super) enum Begun {
    Runs(Running),
    /// It was decided all the same. If `more`, the turn of another one has come.
    Decided {
        more: bool,
    },
}

/// An operation that waits.
pub(super) struct Running {
    pub(super) txn: Arc<TxnRecord>,
    pub(super) sequence: Sequence,
    pub(super) wait: Wait,
}

/// The wait of an operation.
pub(super) enum Wait {
    Lock {
        call: CallWait,
        /// Resolves when the call is to wait no longer.
        cancelled: oneshot::Receiver<()>,
        table: TableRef,
        /// Its items once more, if the call may rely on what an earlier one added.
        items: Option<Arc<[LockItem]>>,
    },
    /// Any other, which waits as [`Due::must_wait`] says.
    Other(Box<Step>),
    /// It is over.
    Over,
}

/// The wait of a lock call.
pub(super) enum CallWait {
    AtEngine(LockWait),
    InLine(Pin<Box<dyn Future<Output = Result<Granted>> + Send>>),
}

/// An operation whose turn it is.
pub(super) struct Due {
    pub(super) txn: Arc<TxnRecord>,
    pub(super) sequence: Sequence,
    pub(super) step: Step,
}

impl Due {
    /// True for a roll-back to a savepoint while a cancelled lock call of the transaction is still
    /// being made: its table was bound at that moment. It is dropped at once after that.
    pub(super) fn must_wait(&self) -> bool {
        matches!(self.step, Step::RollBackTo(_)) && self.txn.at_engine().has_call_in_flight()
    }
}
