//! The state under the mutex of an [`Outbox`](super::Outbox).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::Waker;

use lockservice_core::service::TxnOptions;
use lockservice_core::{Error, ErrorKind, Result, Sequence, TxnNumber};

use super::pending::{Pending, Sequences, What};
use super::{CallId, TXN_OPS_MAX, WaitsSender};
use crate::proto;
use crate::proto::client_op::Op;

/// The number of an operation in its session, from 1: its response names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::client) struct OpId(u64);

impl OpId {
    /// The id of the greeting. Other ids never get here.
    pub(in crate::client) const HELLO: Self = Self(u64::MAX);

    /// The id that came with a response.
    pub(in crate::client) const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number for the wire.
    pub(in crate::client) const fn get(self) -> u64 {
        self.0
    }

    const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The number of a stream in its session, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::client) struct StreamNumber(u64);

impl StreamNumber {
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[derive(Debug, Default)]
pub(super) struct OutboxState {
    pub(super) last_id: OpId,
    pub(super) last_txn: TxnNumber,
    /// Every operation without a response.
    pub(super) pending: BTreeMap<OpId, Pending>,
    /// The operations that the current stream has not sent, in order.
    pub(super) unsent: VecDeque<OpId>,
    pub(super) txns: HashMap<TxnNumber, Sequences>,
    /// The callers that listen for the holder for which they wait, by transaction and sequence.
    pub(super) listening: HashMap<(TxnNumber, Sequence), WaitsSender>,
    /// Number of the current stream; the request sides of older ones end (T3).
    pub(super) stream: StreamNumber,
    /// True once the current stream was welcomed.
    pub(super) open: bool,
    /// True once nothing is sent any more, and no response comes.
    pub(super) closed: bool,
    pub(super) frame_bytes_max: usize,
    pub(super) waker: Option<Waker>,
}

impl OutboxState {
    pub(super) fn check_size(&self, bytes: usize) -> Result<()> {
        if bytes > self.frame_bytes_max {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the request is larger than the server accepts: lock fewer keys at a time, or a \
                    range that covers them",
            )
            .with("bytes", bytes)
            .with("limit", self.frame_bytes_max));
        }
        Ok(())
    }

    /// The sender of a call that has ended, if its caller listened. It is dropped when the mutex is
    /// free.
    pub(super) fn stop_listening(
        &mut self,
        txn: TxnNumber,
        sequence: Sequence,
    ) -> Option<WaitsSender> {
        // Listeners are rare.
        if self.listening.is_empty() { None } else { self.listening.remove(&(txn, sequence)) }
    }

    /// Numbers the next operation of a transaction, and the transaction if this is its first.
    ///
    /// # Errors
    /// `SessionLost` if the session was closed, `TxnNotFound` if the transaction has ended,
    /// `ResourceExhausted` if too many of its operations are under way.
    pub(super) fn next_op(
        &mut self,
        number: &mut Option<TxnNumber>,
        options: &TxnOptions,
    ) -> Result<(CallId, proto::TxnRef)> {
        if self.closed {
            return Err(Error::new(
                ErrorKind::SessionLost,
                "the session was closed: open a new one",
            ));
        }
        let number = *number.get_or_insert_with(|| {
            self.last_txn = self.last_txn.next();
            self.txns.insert(self.last_txn, Sequences::default());
            self.last_txn
        });
        let Some(slot) = self.txns.get_mut(&number) else {
            return Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            ));
        };
        if slot.under_way >= TXN_OPS_MAX {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "too many calls of one transaction at once: wait for some of them",
            ));
        }
        let sequence = slot.next();
        let mut txn = slot.reference(number);
        if sequence == Sequence::FIRST {
            txn.validates = options.validates;
            txn.label.clone_from(&options.label);
        }
        Ok((CallId { txn: number, sequence }, txn))
    }

    /// Like [`next_op`](Self::next_op), for an operation that must never be refused; `None` if the
    /// transaction has ended.
    pub(super) fn release_op(&mut self, number: TxnNumber) -> Option<(Sequence, proto::TxnRef)> {
        let slot = self.txns.get_mut(&number)?;
        let sequence = slot.next();
        Some((sequence, slot.reference(number)))
    }

    pub(super) fn cancel(&mut self, call: CallId) -> Option<Waker> {
        let (sequence, txn) = self.release_op(call.txn)?;
        let what = What::Release {
            txn: call.txn,
            sequence,
            cancelled: Some(call.sequence),
            ends: false,
            reply: None,
        };
        let op = Op::Cancel(proto::CancelOp { txn: Some(txn), cancelled: call.sequence.get() });
        self.push(Pending { op, bytes: 64, what, deadline: None, snapshot: None, sent: None })
    }

    pub(super) fn push(&mut self, pending: Pending) -> Option<Waker> {
        let id = self.add(pending);
        self.unsent.push_back(id);
        self.waker_if_open()
    }

    pub(super) fn push_first(&mut self, pending: Pending) -> Option<Waker> {
        let id = self.add(pending);
        self.unsent.push_front(id);
        self.waker_if_open()
    }

    pub(super) fn add(&mut self, pending: Pending) -> OpId {
        self.last_id = self.last_id.next();
        self.pending.insert(self.last_id, pending);
        self.last_id
    }

    pub(super) fn waker_if_open(&mut self) -> Option<Waker> {
        if self.open { self.waker.take() } else { None }
    }
}
