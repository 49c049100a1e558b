//! The errors of the allocator that several of its parts return.

use std::time::Duration;

use crate::allocator::state::commits::TxnLife;
use crate::error::{Detail, Error, ErrorKind};
use crate::id::{ServiceId, TableRef, TxnId};

/// The pause before another try for a transaction that its origin has not reported: it reports
/// ahead, and at once when it falls behind.
const REPORTS_AGAIN: Duration = Duration::from_millis(50);

/// The error for a transaction that its origin says is not alive.
pub(crate) fn not_alive(txn: TxnId, life: TxnLife) -> Error {
    let message = match life {
        TxnLife::NotStarted => "the transaction was never begun: begin one, and present its id",
        TxnLife::Alive | TxnLife::Over => "the transaction has ended: start a new one",
    };
    Error::new(ErrorKind::CannotCommit, message).with("txn", txn)
}

/// The error for a transaction that its origin, another process, has not reported yet.
pub(crate) fn not_reported(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the transaction's origin has not reported yet that it has begun: try again",
    )
    .with("txn", txn)
    .with_detail(Detail::RetryAfter(REPORTS_AGAIN))
}

/// The error of a leader whose leadership ran out, or ended.
pub(crate) fn not_leading(ended: bool) -> Error {
    if ended {
        Error::new(
            ErrorKind::NotLeader,
            "this node does not lead the store any more: call the leader",
        )
    } else {
        Error::new(
            ErrorKind::Unavailable,
            "the store does not respond and the leadership has run out: try again; nothing is lost",
        )
    }
}

/// The error while the allocator is being stopped.
pub(crate) fn stopping() -> Error {
    Error::new(
        ErrorKind::ShuttingDown,
        "the allocator is shutting down: try again when it has started again",
    )
}

/// The error for an incarnation that may not act any more.
pub(crate) fn lease_lost(service: ServiceId) -> Error {
    Error::new(
        ErrorKind::LeaseLost,
        "the service's lease has lapsed, or it was replaced: seal it and start a new incarnation",
    )
    .with("service", service)
}

/// The error for a table that cannot be reassigned yet (B3).
pub(crate) fn reassigning(table: &TableRef, after: Duration) -> Error {
    Error::new(
        ErrorKind::Reassigning,
        "the table's last owner may still be at work: try again when its lease must have run out",
    )
    .with("table", table)
    .with("remaining_ms", after.as_millis())
    .with_detail(Detail::RetryAfter(after))
}
