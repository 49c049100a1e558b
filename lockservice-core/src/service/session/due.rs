//! An operation whose turn it is, and the outcomes on its way.

use std::sync::Arc;

use crate::error::Result;
use crate::id::Sequence;
use crate::service::OpResponse;
use crate::service::session::pending::Pending;
use crate::service::session::queue::Step;
use crate::service::txn::TxnRecord;

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
