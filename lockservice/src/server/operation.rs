//! The messages of a session stream as operations, and results as messages.

use lockservice_core::service::{OpResponse, Operation, TxnOp, TxnOptions};
use lockservice_core::table::Savepoint;
use lockservice_core::{Error, ErrorKind, LockMode, Result, Sequence, TxnNumber};

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
        Some(Op::Downgrade(downgrade)) => of_items(&downgrade.rows, &downgrade.ranges),
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
        Op::Downgrade(downgrade) => downgrade_operation(downgrade, items_max),
        Op::Savepoint(savepoint) => savepoint_operation(savepoint),
        Op::RollBackTo(back) => roll_back_to_operation(back),
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
            commit: convert::commit_from_proto(unlock.commit_timestamp, unlock.definition_changed),
        })
    });
    Ok((txn, parsed.unwrap_or_else(Operation::Refuse)))
}

pub(super) fn end_operation(end: proto::EndOp) -> Result<(TxnOp, Operation)> {
    let commit = convert::commit_from_proto(end.commit_timestamp, end.definition_changed);
    Ok((txn_op(end.txn)?, Operation::End { commit }))
}

pub(super) fn downgrade_operation(
    downgrade: proto::DowngradeOp,
    items_max: usize,
) -> Result<(TxnOp, Operation)> {
    let txn = txn_op(downgrade.txn)?;
    let parsed = convert::table_from_proto(&downgrade.group, &downgrade.table).and_then(|table| {
        let items = convert::items_from_proto(&downgrade.rows, downgrade.ranges, items_max)?;
        let mode = convert::mode_from_proto(downgrade.mode)?;
        if items.is_empty() || mode == LockMode::Exclusive {
            return Err(invalid(
                "a downgrade names nothing, or no weaker mode: give rows or ranges, and the mode \
                 shared or update",
            ));
        }
        Ok(Operation::Downgrade { table, items, mode })
    });
    Ok((txn, parsed.unwrap_or_else(Operation::Refuse)))
}

pub(super) fn savepoint_operation(savepoint: proto::SavepointOp) -> Result<(TxnOp, Operation)> {
    Ok((txn_op(savepoint.txn)?, Operation::Savepoint))
}

pub(super) fn roll_back_to_operation(back: proto::RollBackToOp) -> Result<(TxnOp, Operation)> {
    Ok((txn_op(back.txn)?, Operation::RollBackTo(Savepoint::new(back.savepoint))))
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
        Ok(OpResponse::Savepoint(savepoint)) => {
            response(id, Wire::Savepoint(proto::Savepoint { number: savepoint.get() }))
        }
        Ok(OpResponse::Done { released }) => {
            response(id, Wire::Done(convert::done_to_proto(released)))
        }
        Err(e) => failed(id, &e),
    }
}
