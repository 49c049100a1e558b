//! The state under the mutex of an [`Outbox`](super::Outbox).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::Waker;

use lockservice_core::service::TxnOptions;
use lockservice_core::{Error, ErrorKind, Result};

use super::pending::{Pending, Sequences, What};
use super::{CallId, TXN_OPS_MAX, WaitsSender};
use crate::proto;
use crate::proto::client_op::Op;

#[derive(Debug, Default)]
pub(super) struct OutboxState {
    pub(super) last_id: u64,
    pub(super) last_txn: u64,
    /// Every operation without a response.
    pub(super) pending: BTreeMap<u64, Pending>,
    /// The operations that the current stream has not sent, in order.
    pub(super) unsent: VecDeque<u64>,
    pub(super) txns: HashMap<u64, Sequences>,
    /// The callers that listen for the holder for which they wait, by transaction and sequence.
    pub(super) listening: HashMap<(u64, u64), WaitsSender>,
    /// Number of the current stream; the request sides of older ones end (T3).
    pub(super) stream: u64,
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
    pub(super) fn stop_listening(&mut self, txn: u64, sequence: u64) -> Option<WaitsSender> {
        // Listeners are rare.
        if self.listening.is_empty() { None } else { self.listening.remove(&(txn, sequence)) }
    }

    pub(super) fn next_op(
        &mut self,
        number: &mut u64,
        options: &TxnOptions,
    ) -> Result<proto::TxnRef> {
        if self.closed {
            return Err(Error::new(
                ErrorKind::SessionLost,
                "the session was closed: open a new one",
            ));
        }
        if *number == 0 {
            self.last_txn += 1;
            *number = self.last_txn;
            self.txns.insert(*number, Sequences::default());
        }
        let Some(slot) = self.txns.get_mut(number) else {
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
        slot.under_way += 1;
        slot.last += 1;
        let mut txn = proto::TxnRef {
            number: *number,
            sequence: slot.last,
            acked: slot.acked,
            ..proto::TxnRef::default()
        };
        if slot.last == 1 {
            txn.validates = options.validates;
            txn.label.clone_from(&options.label);
        }
        Ok(txn)
    }

    /// Like [`next_op`](Self::next_op), for an operation that must never be refused; `None` if the
    /// transaction has ended.
    pub(super) fn release_op(&mut self, number: u64) -> Option<proto::TxnRef> {
        let slot = self.txns.get_mut(&number)?;
        slot.under_way += 1;
        slot.last += 1;
        Some(proto::TxnRef {
            number,
            sequence: slot.last,
            acked: slot.acked,
            ..proto::TxnRef::default()
        })
    }

    pub(super) fn cancel(&mut self, call: CallId) -> Option<Waker> {
        let txn = self.release_op(call.txn)?;
        let (number, sequence) = (call.txn, txn.sequence);
        let what = What::Release {
            txn: number,
            sequence,
            cancelled: call.sequence,
            ends: false,
            reply: None,
        };
        let op = Op::Cancel(proto::CancelOp { txn: Some(txn), cancelled: call.sequence });
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

    pub(super) fn add(&mut self, pending: Pending) -> u64 {
        self.last_id += 1;
        self.pending.insert(self.last_id, pending);
        self.last_id
    }

    pub(super) fn waker_if_open(&mut self) -> Option<Waker> {
        if self.open { self.waker.take() } else { None }
    }
}
