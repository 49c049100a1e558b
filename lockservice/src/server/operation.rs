//! The messages of a session stream as operations, and results as messages.

use lockservice_core::service::{OpResponse, Operation, TxnOp, TxnOptions};
use lockservice_core::{CommitTimestamp, Error, ErrorKind, Result, Sequence, TxnNumber};

use crate::convert;
use crate::proto::{self, client_op::Op, server_op::Response as Wire};

/// The estimated memory of the operations of a frame, beside its message: they share its bytes,
/// which were charged when it arrived.
pub(super) fn bytes_of(ops: &[proto::ClientOp]) -> usize {
    let of_items = |rows: &[prost::bytes::Bytes], ranges: &[proto::KeyRange]| {
        size_of_val(rows) + size_of_val(ranges)
    };
    let of_op = |op: &proto::ClientOp| match &op.op {
        Some(Op::Lock(lock)) => of_items(&lock.rows, &lock.ranges),
        Some(Op::Unlock(unlock)) => of_items(&unlock.rows, &unlock.ranges),
        Some(Op::Heartbeat(heartbeat)) => size_of_val(heartbeat.acked.as_slice()),
        _ => 0,
    };
    size_of_val(ops) + ops.iter().map(of_op).sum::<usize>()
}

/// The operation of a transaction that `op` requests. A lock is refused with the error `no_room`,
/// if there is one: its place in the order of the transaction is taken all the same.
pub(super) fn operation(
    op: Op,
    items_max: usize,
    no_room: Option<&Error>,
) -> Result<(TxnOp, Operation)> {
    match op {
        Op::Lock(lock) if let Some(e) = no_room => {
            Ok((txn_op(lock.txn)?, Operation::Refuse(e.clone())))
        }
        Op::Lock(lock) => lock_operation(lock, items_max),
        Op::Unlock(unlock) => unlock_operation(unlock, items_max),
        Op::End(end) => end_operation(end),
        Op::Cancel(cancel) => Ok((
            txn_op(cancel.txn)?,
            Operation::Cancel { sequence: Sequence::new(cancel.cancelled) },
        )),
        // The stream takes the last two itself.
        Op::Hello(_) | Op::Heartbeat(_) | Op::Goodbye(_) => {
            Err(invalid("a stream carries one session: hello comes first, and once"))
        }
    }
}

pub(super) fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

fn txn_op(txn: Option<proto::TxnRef>) -> Result<TxnOp> {
    let txn = txn.ok_or_else(|| invalid("the operation lacks its transaction"))?;
    Ok(TxnOp {
        number: TxnNumber::new(txn.number),
        sequence: Sequence::new(txn.sequence),
        acked: Sequence::new(txn.acked),
        options: TxnOptions { validates: txn.validates, label: txn.label },
    })
}

pub(super) fn lock_operation(
    mut lock: proto::LockOp,
    items_max: usize,
) -> Result<(TxnOp, Operation)> {
    let txn = txn_op(lock.txn.take())?;
    let spec = convert::lock_spec_from_proto(lock, items_max);
    // A malformed request takes its place in the transaction's order too, for the client numbered
    // it.
    Ok((txn, spec.map_or_else(Operation::Refuse, Operation::Lock)))
}

pub(super) fn unlock_operation(
    unlock: proto::UnlockOp,
    items_max: usize,
) -> Result<(TxnOp, Operation)> {
    let txn = txn_op(unlock.txn)?;
    let parsed = convert::table_from_proto(&unlock.group, &unlock.table).and_then(|table| {
        let items = convert::items_from_proto(&unlock.rows, unlock.ranges, items_max)?;
        if items.is_empty() {
            return Err(invalid(
                "an unlock names nothing: give rows or ranges, or end the transaction",
            ));
        }
        Ok(Operation::Unlock {
            table,
            items,
            commit_ts: unlock.commit_timestamp.map(CommitTimestamp::new),
        })
    });
    Ok((txn, parsed.unwrap_or_else(Operation::Refuse)))
}

pub(super) fn end_operation(end: proto::EndOp) -> Result<(TxnOp, Operation)> {
    Ok((
        txn_op(end.txn)?,
        Operation::End { commit_ts: end.commit_timestamp.map(CommitTimestamp::new) },
    ))
}

pub(super) fn response(id: u64, wire: Wire) -> proto::ServerOp {
    proto::ServerOp { id, response: Some(wire) }
}

pub(super) fn failed(id: u64, error: &Error) -> proto::ServerOp {
    response(id, Wire::Error(convert::error_to_proto(error)))
}

pub(super) fn result(id: u64, result: Result<OpResponse>) -> proto::ServerOp {
    match result {
        Ok(OpResponse::Locked(granted)) => {
            response(id, Wire::Locked(convert::granted_to_proto(&granted)))
        }
        Ok(OpResponse::Done { released }) => {
            response(id, Wire::Done(convert::done_to_proto(released)))
        }
        Err(e) => failed(id, &e),
    }
}
