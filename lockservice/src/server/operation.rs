//! The messages of a session stream as operations, and results as messages.

use lockservice_core::service::{OpResponse, Operation, Promise, TxnClaim, TxnOp, TxnOptions};
use lockservice_core::table::Savepoint;
use lockservice_core::{Error, ErrorKind, LockMode, Result, Sequence, TxnNumber};

use prost::Message as _;
use prost::bytes::{Bytes, BytesMut};

use crate::convert::{self, KnownTables};
use crate::proto::{self, client_op::Op, server_op::Response as Wire};
use crate::server::Principal;
use crate::{codec, frame};

/// Messages that take no more bytes are decoded without a look at what their parts will take: that
/// is not much.
const MESSAGE_BYTES_SMALL: usize = 4 << 10;

/// The numbers of messages in a `ClientOp`.
const LOCK: u32 = 4;
const END: u32 = 8;

/// An operation of a stream.
pub(super) struct ReadOp {
    pub(super) requested: Requested,
    /// It has a response only if it fails or waits.
    pub(super) quiet: bool,
}

/// The request of an operation of a stream.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "moved once and never kept")]
pub(super) enum Requested {
    /// An operation of a transaction.
    Txn(TxnOp, Operation),
    /// One whose message is large in memory.
    Large(Op),
    Heartbeat(proto::Heartbeat),
    /// A claim of what a transaction held before a restart (P6).
    Claim(TxnClaim),
    /// Everything was claimed. It names the highest number of a transaction.
    ClaimsDone(TxnNumber),
    Goodbye,
    /// It cannot be understood.
    Refused(Error),
}

/// Reads the operations of one stream.
#[derive(Debug)]
pub(super) struct OpReader {
    items_max: usize,
    tables: KnownTables,
    /// Whose operations they are.
    caller: Principal,
    /// The last lock request: its memory is used again.
    lock: proto::LockOp,
}

impl OpReader {
    pub(super) fn new(items_max: usize, caller: Principal) -> Self {
        let (tables, lock) = Default::default();
        Self { items_max, tables, caller, lock }
    }

    /// The operations that follow are those of `caller`.
    pub(super) fn set_caller(&mut self, caller: Principal) {
        self.caller = caller;
    }

    /// Reads an operation. Fails with `InvalidArgument` if it is malformed, or has too many parts:
    /// then the stream is of no use any more.
    pub(super) fn read(&mut self, op: &frame::Op<'_>) -> Result<ReadOp> {
        let mut quiet = false;
        let small = op.kind().filter(|(_, length)| *length <= MESSAGE_BYTES_SMALL);
        let requested = match small {
            Some((LOCK, _)) => {
                self.lock.clear();
                self.lock.merge(op.message()).map_err(codec::malformed)?;
                lock_operation(&mut self.lock, self.items_max, &mut self.tables, &self.caller)
            }
            Some((END, _)) => {
                let end = proto::EndOp::decode(op.message()).map_err(codec::malformed)?;
                quiet = end.quiet;
                end_operation(end)
            }
            _ => match codec::decode::<proto::ClientOp>(op.whole())?.op {
                None => Err(invalid("the operation is empty, or newer than this server")),
                Some(Op::Heartbeat(heartbeat)) => {
                    return Ok(ReadOp { requested: Requested::Heartbeat(heartbeat), quiet });
                }
                Some(Op::Goodbye(_)) => {
                    return Ok(ReadOp { requested: Requested::Goodbye, quiet });
                }
                Some(Op::Claim(claim)) => {
                    let requested =
                        self.claim(&claim).map_or_else(Requested::Refused, Requested::Claim);
                    return Ok(ReadOp { requested, quiet });
                }
                Some(Op::ClaimsDone(done)) => {
                    let requested = Requested::ClaimsDone(TxnNumber::new(done.last_txn));
                    return Ok(ReadOp { requested, quiet });
                }
                Some(op) => {
                    quiet = is_quiet(&op);
                    if bytes_of(&op) > OP_BYTES_SMALL {
                        return Ok(ReadOp { requested: Requested::Large(op), quiet });
                    }
                    self.operation(op, None)
                }
            },
        };
        let requested = requested
            .map_or_else(Requested::Refused, |(txn, operation)| Requested::Txn(txn, operation));
        Ok(ReadOp { requested, quiet })
    }

    fn claim(&self, claim: &proto::ClaimOp) -> Result<TxnClaim> {
        let claim = convert::claim_from_proto(claim, self.items_max)?;
        for locks in &claim.locks {
            self.caller.may_use(&locks.table)?;
        }
        Ok(claim)
    }

    /// The operation of a transaction that `op` requests. A lock is refused with the error
    /// `no_room`, if there is one: its place in the order of the transaction is taken all the same.
    pub(super) fn operation(
        &mut self,
        op: Op,
        no_room: Option<&Error>,
    ) -> Result<(TxnOp, Operation)> {
        match op {
            Op::Lock(lock) if let Some(e) = no_room => {
                Ok((txn_op(lock.txn)?, Operation::Refuse(e.clone())))
            }
            Op::Lock(mut lock) => {
                lock_operation(&mut lock, self.items_max, &mut self.tables, &self.caller)
            }
            Op::Unlock(unlock) => unlock_operation(unlock, self.items_max, &self.caller),
            Op::Downgrade(downgrade) => {
                downgrade_operation(downgrade, self.items_max, &self.caller)
            }
            Op::Savepoint(savepoint) => savepoint_operation(savepoint),
            Op::RollBackTo(back) => roll_back_to_operation(back),
            Op::End(end) => end_operation(end),
            Op::Cancel(cancel) => Ok((
                txn_op(cancel.txn)?,
                Operation::Cancel { sequence: Sequence::new(cancel.cancelled) },
            )),
            // The stream takes the others itself.
            Op::Hello(_) | Op::Heartbeat(_) | Op::Goodbye(_) | Op::Claim(_) | Op::ClaimsDone(_) => {
                Err(invalid("a stream carries one session: hello comes first, and once"))
            }
        }
    }
}

/// The frames of a client, split into operations.
///
/// # Panics
/// If an operation is read otherwise after others than on its own: memory is used again.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_client_frame(input: &[u8]) {
    let reader = || OpReader::new(100, Principal::Anyone);
    let read = |reader: &mut OpReader, op: &frame::Op<'_>| {
        let requested = match reader.read(op)?.requested {
            Requested::Large(op) => reader
                .operation(op, None)
                .map_or_else(Requested::Refused, |(txn, op)| Requested::Txn(txn, op)),
            other => other,
        };
        Ok::<_, Error>(format!("{requested:?}"))
    };
    let (mut used, mut ops) = (reader(), frame::Ops::of(Bytes::copy_from_slice(input)));
    while let Some(Ok(op)) = ops.next() {
        let (one, other) = (read(&mut used, &op), read(&mut reader(), &op));
        assert_eq!(one.as_ref().ok(), other.as_ref().ok());
        if one.is_err() {
            return;
        }
    }
}

fn is_quiet(op: &Op) -> bool {
    match op {
        Op::Unlock(unlock) => unlock.quiet,
        Op::End(end) => end.quiet,
        _ => false,
    }
}

/// Operations that take no more memory are not counted while they are read: a stream has one at a
/// time.
const OP_BYTES_SMALL: usize = 64 << 10;

/// About how much memory an operation takes, beside its message: it shares its bytes, which were
/// charged when it arrived.
pub(super) fn bytes_of(op: &Op) -> usize {
    let of_items =
        |rows: &[Bytes], ranges: &[proto::KeyRange]| size_of_val(rows) + size_of_val(ranges);
    match op {
        Op::Lock(lock) => of_items(&lock.rows, &lock.ranges),
        Op::Unlock(unlock) => of_items(&unlock.rows, &unlock.ranges),
        Op::Downgrade(downgrade) => of_items(&downgrade.rows, &downgrade.ranges),
        Op::Heartbeat(heartbeat) => {
            size_of_val(heartbeat.acked.as_slice()) + size_of_val(heartbeat.lost.as_slice())
        }
        _ => 0,
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

/// Takes the transaction out of `lock`.
pub(super) fn lock_operation(
    lock: &mut proto::LockOp,
    items_max: usize,
    tables: &mut KnownTables,
    caller: &Principal,
) -> Result<(TxnOp, Operation)> {
    let txn = txn_op(lock.txn.take())?;
    let spec = convert::lock_spec_from_proto(lock, items_max, tables)
        .and_then(|spec| caller.may_use(&spec.table).map(|()| spec));
    // A malformed request takes its place in the transaction's order too: the client numbered it.
    Ok((txn, spec.map_or_else(Operation::Refuse, Operation::Lock)))
}

pub(super) fn unlock_operation(
    unlock: proto::UnlockOp,
    items_max: usize,
    caller: &Principal,
) -> Result<(TxnOp, Operation)> {
    let txn = txn_op(unlock.txn)?;
    let parsed = convert::table_from_proto(&unlock.group, &unlock.table).and_then(|table| {
        caller.may_use(&table)?;
        let items = convert::items_from_proto(&unlock.rows, &unlock.ranges, items_max)?;
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
    caller: &Principal,
) -> Result<(TxnOp, Operation)> {
    let txn = txn_op(downgrade.txn)?;
    let parsed = convert::table_from_proto(&downgrade.group, &downgrade.table).and_then(|table| {
        caller.may_use(&table)?;
        let items = convert::items_from_proto(&downgrade.rows, &downgrade.ranges, items_max)?;
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

/// The responses that go out in the next frame.
#[derive(Debug, Default)]
pub(super) struct Responses {
    frame: BytesMut,
    count: usize,
    /// The number of quiet operations that the client knows to be done.
    quiet_done: u64,
    /// The promise of the session, raw, when the last frame was taken in; 0 if there was none.
    valid_for_ms: u64,
    /// The last grant: its memory is used again.
    locked: proto::ServerOp,
}

impl Responses {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// A frame of the client is about to be taken in, and renewed the session. Every operation that
    /// has its response in the next frame was sent before that (P2).
    pub(super) fn renewed(&mut self, promise: Option<Promise>) {
        self.valid_for_ms = promise.map_or(0, |promise| convert::millis_down(promise.valid_for));
    }

    /// Takes the frame out. It acknowledges the first `quiet_done` quiet operations of the stream:
    /// after the responses, which may tell that one of them failed.
    pub(super) fn take(&mut self, quiet_done: u64) -> Bytes {
        self.count = 0;
        if self.quiet_done != quiet_done {
            self.quiet_done = quiet_done;
            frame::push_quiet_done(&mut self.frame, quiet_done);
        }
        frame::push_valid_for(&mut self.frame, self.valid_for_ms);
        self.frame.split().freeze()
    }

    pub(super) fn push(&mut self, id: u64, response: Wire) {
        self.count += 1;
        frame::push(&mut self.frame, &proto::ServerOp { id, response: Some(response) });
    }

    pub(super) fn push_error(&mut self, id: u64, error: &Error) {
        self.push(id, Wire::Error(convert::error_to_proto(error)));
    }

    pub(super) fn push_result(&mut self, id: u64, result: Result<OpResponse>) {
        match result {
            Ok(OpResponse::Locked(granted)) => {
                let last = match self.locked.response.take() {
                    Some(Wire::Locked(last)) => last,
                    _ => proto::Locked::default(),
                };
                let locked = Wire::Locked(convert::granted_to_proto(&granted, last));
                self.locked = proto::ServerOp { id, response: Some(locked) };
                self.count += 1;
                frame::push(&mut self.frame, &self.locked);
            }
            Ok(OpResponse::Savepoint(savepoint)) => {
                self.push(id, Wire::Savepoint(proto::Savepoint { number: savepoint.get() }));
            }
            Ok(OpResponse::Done { released }) => {
                self.push(id, Wire::Done(convert::done_to_proto(released)));
            }
            Err(e) => self.push_error(id, &e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_usual_operations_are_those_of_the_messages() {
        let number = |op| {
            let mut frame = BytesMut::new();
            frame::push(&mut frame, &proto::ClientOp { id: 1, op: Some(op) });
            let mut ops = frame::Ops::of(frame.freeze());
            ops.next().expect("one").expect("well formed").kind().expect("one message").0
        };
        assert_eq!(number(Op::Lock(proto::LockOp::default())), LOCK);
        assert_eq!(number(Op::End(proto::EndOp::default())), END);
    }
}
