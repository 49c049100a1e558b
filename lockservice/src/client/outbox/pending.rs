//! Operations without a response, and the numbering of those of a transaction.

use std::collections::BTreeSet;

use lockservice_core::clock::Time;
use lockservice_core::service::Granted;
use lockservice_core::{Result, Sequence, TxnId, TxnNumber};
use prost::Message as _;
use prost::bytes::BytesMut;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::held::{Change, ChangeRef, Held};
use super::{CallId, OP_OVERHEAD_BYTES, OpId, SavepointAt, TxnKey};
use crate::convert::{millis_down, millis_up};
use crate::proto::client_op::Op;
use crate::{frame, proto};

/// The numbers of messages in a `ClientOp`.
const LOCK: u32 = 4;
const UNLOCK: u32 = 5;
const END: u32 = 8;
const DOWNGRADE: u32 = 9;

/// An encoded operation, without the fields that depend on the time of its send.
#[derive(Debug)]
pub(super) struct Encoded {
    number: u32,
    message: Vec<u8>,
}

impl Encoded {
    pub(super) fn lock(op: &proto::LockOp) -> Self {
        Self { number: LOCK, message: op.encode_to_vec() }
    }

    pub(super) fn of(op: &Op) -> Self {
        let (number, message) = match op {
            Op::Hello(op) => (2, op.encode_to_vec()),
            Op::Heartbeat(op) => (3, op.encode_to_vec()),
            Op::Lock(op) => return Self::lock(op),
            Op::Unlock(op) => (UNLOCK, op.encode_to_vec()),
            Op::Cancel(op) => (6, op.encode_to_vec()),
            Op::Goodbye(op) => (7, op.encode_to_vec()),
            Op::End(op) => (END, op.encode_to_vec()),
            Op::Downgrade(op) => (DOWNGRADE, op.encode_to_vec()),
            Op::Savepoint(op) => (10, op.encode_to_vec()),
            Op::RollBackTo(op) => (11, op.encode_to_vec()),
            Op::Claim(op) => (12, op.encode_to_vec()),
            Op::ClaimsDone(op) => (13, op.encode_to_vec()),
        };
        Self { number, message }
    }

    /// The encoded message, of a lock request that was granted.
    pub(super) fn into_message(self) -> Vec<u8> {
        self.message
    }

    /// The change of what its transaction holds, once the server has done the release.
    pub(super) fn into_change(self, what: &What) -> Option<Change> {
        match *what {
            What::Release { cancelled: Some(cancelled), .. } => Some(Change::Cancel(cancelled)),
            What::Release { back_to: Some(to), .. } => Some(Change::RollBackTo(to)),
            What::Release { .. } if self.number == UNLOCK => Some(Change::Unlock(self.message)),
            What::Release { .. } if self.number == DOWNGRADE => {
                Some(Change::Downgrade(self.message))
            }
            _ => None,
        }
    }

    /// As [`into_change`](Self::into_change), of a release that is under way.
    fn change(&self, what: &What) -> Option<ChangeRef<'_>> {
        match what {
            What::Release { cancelled: Some(cancelled), .. } => Some(ChangeRef::Cancel(*cancelled)),
            What::Release { back_to: Some(to), .. } => Some(ChangeRef::RollBackTo(*to)),
            What::Release { .. } if self.number == UNLOCK => Some(ChangeRef::Unlock(&self.message)),
            What::Release { .. } if self.number == DOWNGRADE => {
                Some(ChangeRef::Downgrade(&self.message))
            }
            _ => None,
        }
    }

    /// The field that makes it quiet, encoded. `None` if it cannot be.
    fn quiet(&self) -> Option<&'static [u8]> {
        match self.number {
            UNLOCK => Some(&[8 << 3, 1]),
            END => Some(&[4 << 3, 1]),
            _ => None,
        }
    }
}

/// An operation without a response.
#[derive(Debug)]
pub(super) struct Pending {
    /// Its place in the order of all.
    pub(super) order: u64,
    pub(super) op: Encoded,
    pub(super) bytes: usize,
    pub(super) what: What,
    /// The end of the wait that the operation requests.
    pub(super) deadline: Option<Time>,
    /// The begin of the snapshot whose age the operation carries.
    pub(super) snapshot: Option<Time>,
    /// The time of its last send, read before the send. The promise of its response counts from
    /// there (P2).
    pub(super) sent: Option<Time>,
    /// The time of its first send, on any stream.
    pub(super) first_sent: Option<Time>,
    /// It was last sent as one that needs no response: see [`is_quiet`](Self::is_quiet).
    pub(super) quiet: bool,
}

/// The receiver of the response.
#[derive(Debug)]
pub(super) enum What {
    /// A caller, which acknowledges the sequence when it has taken the response.
    Lock {
        txn: TxnKey,
        sequence: Sequence,
        reply: oneshot::Sender<Result<Granted>>,
        _permit: OwnedSemaphorePermit,
    },
    /// The caller need not wait.
    Release {
        txn: TxnKey,
        sequence: Sequence,
        cancelled: Option<Sequence>,
        /// Of a roll-back: what was granted after this operation ends.
        back_to: Option<Sequence>,
        ends: bool,
        reply: Option<oneshot::Sender<Result<()>>>,
    },
    Savepoint {
        txn: TxnKey,
        sequence: Sequence,
        reply: oneshot::Sender<Result<SavepointAt>>,
    },
    Heartbeat {
        /// Dropped when everything that was sent before it has arrived.
        flushed: Option<oneshot::Sender<()>>,
    },
}

impl What {
    /// A release, which is no end.
    pub(super) fn release(
        CallId { txn, sequence }: CallId,
        reply: Option<oneshot::Sender<Result<()>>>,
    ) -> Self {
        let (cancelled, back_to, ends) = (None, None, false);
        Self::Release { txn, sequence, cancelled, back_to, ends, reply }
    }
}

/// A transaction that has begun and not ended: the numbering of its operations (T2), and what it
/// holds.
#[derive(Debug, Default)]
pub(super) struct OpenTxn {
    /// The transaction.
    pub(super) number: TxnNumber,
    pub(super) validates: bool,
    pub(super) label: String,
    /// Known once a lock was granted.
    pub(super) id: Option<TxnId>,
    pub(super) held: Held,
    /// The number of the restart after which it was last claimed; 0 if it never was.
    pub(super) claimed: u64,
    /// It was claimed on a stream, and the session has not gone on since.
    pub(super) is_claimed: bool,
    pub(super) last: Sequence,
    /// Every operation up to here has its response, or needs none.
    pub(super) decided: Sequence,
    /// All responses up to here were taken by their callers.
    pub(super) acked: Sequence,
    /// The server was told of those up to here.
    pub(super) acked_told: Sequence,
    /// The taken responses above that.
    pub(super) acked_above: BTreeSet<Sequence>,
    pub(super) under_way: u32,
}

impl OpenTxn {
    /// An operation has its response. Those before it were decided earlier (T2).
    pub(super) fn responded(&mut self, sequence: Sequence) {
        self.under_way = self.under_way.saturating_sub(1);
        self.decided = self.decided.max(sequence);
    }

    /// Counts the next operation in. Returns its number.
    pub(super) fn next(&mut self) -> Sequence {
        self.under_way += 1;
        self.last = self.last.next();
        self.last
    }

    /// The last operation as it goes to the server.
    pub(super) fn reference(&mut self) -> proto::TxnRef {
        self.acked_told = self.acked;
        proto::TxnRef {
            number: self.number.get(),
            sequence: self.last.get(),
            acked: self.acked.get(),
            ..proto::TxnRef::default()
        }
    }

    pub(super) fn acknowledge(&mut self, sequence: Sequence) {
        if sequence <= self.acked {
            return;
        }
        if sequence == self.acked.next() && self.acked_above.is_empty() {
            self.acked = sequence;
            return;
        }
        self.acked_above.insert(sequence);
        while self.acked_above.remove(&self.acked.next()) {
            self.acked = self.acked.next();
        }
    }
}

impl Pending {
    /// One that does not depend on the time of its send.
    pub(super) fn timeless(op: Encoded, bytes: usize, what: What) -> Self {
        let (deadline, snapshot, sent, first_sent) = (None, None, None, None);
        Self { order: 0, op, bytes, what, deadline, snapshot, sent, first_sent, quiet: false }
    }

    /// A heartbeat; `flushed` learns of its response.
    pub(super) fn heartbeat(
        heartbeat: proto::Heartbeat,
        flushed: Option<oneshot::Sender<()>>,
    ) -> Self {
        let op = Op::Heartbeat(heartbeat);
        let bytes = op.encoded_len() + OP_OVERHEAD_BYTES;
        Self::timeless(Encoded::of(&op), bytes, What::Heartbeat { flushed })
    }

    /// Takes a lock's caller out. The operation stays, is refused, and uses the lock's number up:
    /// the server may never have seen that (T2). `None` for anything but a lock.
    pub(super) fn take_lock(&mut self) -> Option<(CallId, What)> {
        let &What::Lock { txn, sequence, .. } = &self.what else { return None };
        // Rare: so what was encoded is read again.
        let reference = proto::LockOp::decode(&*self.op.message).ok()?.txn;
        // An unlock without items.
        self.op =
            Encoded::of(&Op::Unlock(proto::UnlockOp { txn: reference, ..Default::default() }));
        (self.bytes, self.deadline, self.snapshot) = (0, None, None);
        let refused = What::release(CallId { txn, sequence }, None);
        Some((CallId { txn, sequence }, std::mem::replace(&mut self.what, refused)))
    }

    /// The transaction and the number of the operation; `None` for a renewal.
    pub(super) fn of_txn(&self) -> Option<(TxnKey, Sequence)> {
        match self.what {
            What::Lock { txn, sequence, .. }
            | What::Release { txn, sequence, .. }
            | What::Savepoint { txn, sequence, .. } => Some((txn, sequence)),
            What::Heartbeat { .. } => None,
        }
    }

    /// The change of what its transaction holds once it is done, if it releases something.
    pub(super) fn change(&self) -> Option<ChangeRef<'_>> {
        self.op.change(&self.what)
    }

    /// A roll-back becomes a savepoint, which nobody uses: its savepoint was one of an earlier
    /// process of the server, and the client has rolled back what it claims. The server gets the
    /// sequence all the same. False, and nothing has changed, if that cannot be.
    pub(super) fn make_roll_back_a_savepoint(&mut self) -> bool {
        let What::Release { back_to, .. } = &mut self.what else { return false };
        // Rare: so what was encoded is read again.
        let Ok(op) = proto::RollBackToOp::decode(&*self.op.message) else { return false };
        self.op = Encoded::of(&Op::Savepoint(proto::SavepointOp { txn: op.txn }));
        *back_to = None;
        true
    }

    /// True if nobody wants its response: it succeeds, as far as its caller minds.
    pub(super) fn is_quiet(&self) -> bool {
        let What::Release { cancelled: None, reply, .. } = &self.what else { return false };
        reply.as_ref().is_none_or(oneshot::Sender::is_closed) && self.op.quiet().is_some()
    }

    /// Appends it to a frame that is sent `now` or later. P2: that was read before the frame is
    /// handed on, so before it can be sent.
    pub(super) fn send(&mut self, id: OpId, now: Time, frame: &mut BytesMut) {
        self.sent = Some(now);
        let first_sent = *self.first_sent.get_or_insert(now);
        let is_lock = self.op.number == LOCK;
        let waited_ms = if is_lock { millis_down(now.since(first_sent)) } else { 0 };
        let mut times = Vec::new();
        if self.deadline.is_some() || self.snapshot.is_some() || waited_ms > 0 {
            let times_now = proto::LockOp {
                // The time-out counts from the call, and not from this send.
                timeout_ms: self.deadline.map(|deadline| millis_up(deadline.remaining(now))),
                // C5: the age at the time of the send.
                snapshot_age_ms: self.snapshot.map(|snapshot| millis_up(now.since(snapshot))),
                // It counts among those that came when it was first sent.
                waited_ms,
                ..proto::LockOp::default()
            };
            times = times_now.encode_to_vec();
        }
        let quiet = self.op.quiet().filter(|_| self.quiet);
        let last = quiet.unwrap_or(&times);
        frame::push_encoded(frame, id.get(), self.op.number, [&self.op.message, last]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_encoded_as_its_message_says() {
        let txn = Some(proto::TxnRef { number: 7, sequence: 1, ..proto::TxnRef::default() });
        let ops = [
            Op::Hello(proto::Hello { ttl_ms: 1, ..Default::default() }),
            Op::Heartbeat(proto::Heartbeat::default()),
            Op::Lock(proto::LockOp { txn: txn.clone(), ..Default::default() }),
            Op::Unlock(proto::UnlockOp { txn: txn.clone(), ..Default::default() }),
            Op::Cancel(proto::CancelOp { txn: txn.clone(), cancelled: 3 }),
            Op::Goodbye(proto::Goodbye::default()),
            Op::End(proto::EndOp { txn: txn.clone(), ..Default::default() }),
            Op::Downgrade(proto::DowngradeOp { txn: txn.clone(), ..Default::default() }),
            Op::Savepoint(proto::SavepointOp { txn: txn.clone() }),
            Op::RollBackTo(proto::RollBackToOp { txn, savepoint: 4 }),
            Op::Claim(proto::ClaimOp { txn: 7, ..Default::default() }),
            Op::ClaimsDone(proto::ClaimsDone { last_txn: 7 }),
        ];
        for op in ops {
            let what = What::Heartbeat { flushed: None };
            let mut pending = Pending::timeless(Encoded::of(&op), 0, what);
            let mut frame = BytesMut::new();
            pending.send(OpId::new(300), Time::ZERO, &mut frame);
            let sent = proto::ClientFrame::decode(frame.freeze()).expect("well formed");
            assert_eq!(sent.ops, [proto::ClientOp { id: 300, op: Some(op) }]);
        }
    }

    #[test]
    fn an_unlock_and_an_end_are_encoded_as_quiet() {
        let end = proto::EndOp { commit_timestamp: Some(9), ..Default::default() };
        let unlock = proto::UnlockOp { table: "t".to_owned(), ..Default::default() };
        let quiet = [
            Op::End(proto::EndOp { quiet: true, ..end.clone() }),
            Op::Unlock(proto::UnlockOp { quiet: true, ..unlock.clone() }),
        ];
        for (op, quiet) in [Op::End(end), Op::Unlock(unlock)].iter().zip(quiet) {
            let what = What::Heartbeat { flushed: None };
            let mut pending = Pending::timeless(Encoded::of(op), 0, what);
            pending.quiet = true;
            let mut frame = BytesMut::new();
            pending.send(OpId::new(1), Time::ZERO, &mut frame);
            let sent = proto::ClientFrame::decode(frame.freeze()).expect("well formed");
            assert_eq!(sent.ops[0].op.as_ref(), Some(&quiet));
        }
    }
}
