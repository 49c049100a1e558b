//! Operations without a response, and the numbering of those of a transaction.

use std::collections::BTreeSet;

use lockservice_core::clock::{Clock, Time};
use lockservice_core::service::Granted;
use lockservice_core::table::Savepoint;
use lockservice_core::{Result, Sequence, TxnNumber};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::CallId;
use crate::convert::millis_up;
use crate::proto;
use crate::proto::client_op::Op;

/// An operation without a response.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) op: Op,
    pub(super) bytes: usize,
    pub(super) what: What,
    /// The end of the wait that the operation requests.
    pub(super) deadline: Option<Time>,
    /// The begin of the snapshot whose age the operation carries.
    pub(super) snapshot: Option<Time>,
    /// The time of its last send, read before the send. The promise of its response counts from
    /// there (P2).
    pub(super) sent: Option<Time>,
}

/// The receiver of the response.
#[derive(Debug)]
pub(super) enum What {
    /// A caller, which acknowledges the sequence when it has taken the response.
    Lock {
        txn: TxnNumber,
        sequence: Sequence,
        reply: oneshot::Sender<Result<Granted>>,
        _permit: OwnedSemaphorePermit,
    },
    /// The caller need not wait.
    Release {
        txn: TxnNumber,
        sequence: Sequence,
        cancelled: Option<Sequence>,
        ends: bool,
        reply: Option<oneshot::Sender<Result<()>>>,
    },
    Savepoint {
        txn: TxnNumber,
        sequence: Sequence,
        reply: oneshot::Sender<Result<Savepoint>>,
    },
    Heartbeat,
}

/// Numbering of one transaction's operations (T2).
#[derive(Debug, Default)]
pub(super) struct Sequences {
    pub(super) last: Sequence,
    /// All responses up to here were taken by their callers.
    pub(super) acked: Sequence,
    /// The taken responses above that.
    pub(super) acked_above: BTreeSet<Sequence>,
    pub(super) under_way: u32,
}

impl Sequences {
    /// Counts the next operation in. Returns its number.
    pub(super) fn next(&mut self) -> Sequence {
        self.under_way += 1;
        self.last = self.last.next();
        self.last
    }

    /// The last operation as it goes to the server, in transaction `number`.
    pub(super) fn reference(&self, number: TxnNumber) -> proto::TxnRef {
        proto::TxnRef {
            number: number.get(),
            sequence: self.last.get(),
            acked: self.acked.get(),
            ..proto::TxnRef::default()
        }
    }

    pub(super) fn acknowledge(&mut self, sequence: Sequence) {
        if sequence <= self.acked {
            return;
        }
        self.acked_above.insert(sequence);
        while self.acked_above.remove(&self.acked.next()) {
            self.acked = self.acked.next();
        }
    }
}

impl Pending {
    /// Takes a lock's caller out. The operation stays, is refused, and uses the lock's number up:
    /// the server may never have seen that (T2). `None` for anything but a lock.
    pub(super) fn take_lock(&mut self) -> Option<(CallId, What)> {
        let (Op::Lock(lock), &What::Lock { txn, sequence, .. }) = (&mut self.op, &self.what) else {
            return None;
        };
        // An unlock without items.
        self.op = Op::Unlock(proto::UnlockOp { txn: lock.txn.take(), ..Default::default() });
        (self.bytes, self.deadline, self.snapshot) = (0, None, None);
        let refused = What::Release { txn, sequence, cancelled: None, ends: false, reply: None };
        Some((CallId { txn, sequence }, std::mem::replace(&mut self.what, refused)))
    }

    pub(super) fn for_the_wire(&mut self, clock: &dyn Clock) -> Op {
        // P2: read before the frame is handed on, so before it can be sent.
        let now = clock.now();
        let mut op = self.op.clone();
        if let (Op::Lock(lock), Some(deadline)) = (&mut op, self.deadline) {
            // The time-out counts from the call, and not from this send.
            lock.timeout_ms = Some(millis_up(deadline.remaining(now)));
        }
        if let (Op::Lock(lock), Some(snapshot)) = (&mut op, self.snapshot) {
            // C5: the age at the time of the send.
            lock.snapshot_age_ms = Some(millis_up(now.since(snapshot)));
        }
        self.sent = Some(now);
        op
    }
}
