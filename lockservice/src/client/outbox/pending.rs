//! Operations without a response, and the numbering of those of a transaction.

use std::collections::BTreeSet;

use lockservice_core::Result;
use lockservice_core::clock::{Clock, Time};
use lockservice_core::service::Granted;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::CallId;
use crate::convert::millis_up;
use crate::proto;
use crate::proto::client_op::Op;

/// An operation without an answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) op: Op,
    pub(super) bytes: usize,
    pub(super) what: What,
    /// When the wait that the operation asks for is over.
    pub(super) deadline: Option<Time>,
    /// When the snapshot was begun that the operation tells the age of.
    pub(super) snapshot: Option<Time>,
    /// When it was last sent, read before: from then the promise of its answer counts (P2).
    pub(super) sent: Option<Time>,
}

/// The receiver of the response.
#[derive(Debug)]
pub(super) enum What {
    /// A caller, who settles the sequence when it has taken the answer.
    Lock {
        txn: u64,
        sequence: u64,
        reply: oneshot::Sender<Result<Granted>>,
        _permit: OwnedSemaphorePermit,
    },
    /// The caller need not wait.
    Release {
        txn: u64,
        sequence: u64,
        cancelled: u64,
        ends: bool,
        reply: Option<oneshot::Sender<Result<()>>>,
    },
    Heartbeat,
}

/// Numbering of one transaction's operations (T2).
#[derive(Debug, Default)]
pub(super) struct Sequences {
    pub(super) last: u64,
    /// Everything up to here is settled: its answer was taken.
    pub(super) acked: u64,
    /// Settled above that.
    pub(super) acked_above: BTreeSet<u64>,
    pub(super) under_way: u32,
}

impl Sequences {
    pub(super) fn acknowledge(&mut self, sequence: u64) {
        if sequence <= self.acked {
            return;
        }
        self.acked_above.insert(sequence);
        while self.acked_above.remove(&(self.acked + 1)) {
            self.acked += 1;
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
        // An unlock that names nothing.
        self.op = Op::Unlock(proto::UnlockOp { txn: lock.txn.take(), ..Default::default() });
        (self.bytes, self.deadline, self.snapshot) = (0, None, None);
        let refused = What::Release { txn, sequence, cancelled: 0, ends: false, reply: None };
        Some((CallId { txn, sequence }, std::mem::replace(&mut self.what, refused)))
    }

    pub(super) fn for_the_wire(&mut self, clock: &dyn Clock) -> Op {
        // P2: read before the frame is handed on, so before it can be sent.
        let now = clock.now();
        let mut op = self.op.clone();
        if let (Op::Lock(lock), Some(deadline)) = (&mut op, self.deadline) {
            // It counts from the call, not from this send, be it the first or another.
            lock.timeout_ms = Some(millis_up(deadline.remaining(now)));
        }
        if let (Op::Lock(lock), Some(snapshot)) = (&mut op, self.snapshot) {
            // C5: as old as it is when this is sent.
            lock.snapshot_age_ms = Some(millis_up(now.since(snapshot)));
        }
        self.sent = Some(now);
        op
    }
}
