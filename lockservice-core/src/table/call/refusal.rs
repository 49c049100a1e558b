//! The errors of calls.

use super::EngineCall;
use crate::error::{Detail, Error, ErrorKind};
use crate::id::{TableId, TxnId};

pub(super) fn exhausted(limit: &'static str) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "a limit of the lock engine is reached: try later, request less, or raise the limit",
    )
    .with("limit", limit)
}

pub(super) fn no_token() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the table has no fencing token left until the store responds: try again, or wait for the \
            lock",
    )
}

pub(super) fn held_by_ancestor(call: &EngineCall, ancestor: TxnId) -> Error {
    Error::new(
        ErrorKind::HeldByAncestor,
        "the lock is held by an outer call, which waits until this one has ended, so it would \
         never be granted: use the lock that the outer call holds, and do not request it again",
    )
    .with("item", call.item())
    .with("holder", ancestor)
}

pub(super) fn conflict(call: &EngineCall) -> Error {
    let error =
        Error::new(ErrorKind::Conflict, "a lock is not free: try again later, or wait for it");
    match &call.conflict {
        Some(first) => error.with_detail(Detail::Blocked(first.to_blocker(&call.items))),
        None => error,
    }
}

pub(in crate::table) fn bind_changed(table: TableId) -> Error {
    Error::new(
        ErrorKind::BindChanged,
        "this version of the table's bind is not served here: end the transaction and start it \
            again",
    )
    .with("table", table)
}

pub(in crate::table) fn call_in_flight(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "a lock call of this transaction is still in flight: wait for it, or cancel it",
    )
    .with("txn", txn)
}
