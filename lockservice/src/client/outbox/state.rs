//! The state under the mutex of an [`Outbox`](super::Outbox).

use std::collections::{HashMap, VecDeque};
use std::task::Waker;

use lockservice_core::clock::Time;
use lockservice_core::service::TxnOptions;
use lockservice_core::{Error, ErrorKind, Result, Sequence, TxnNumber};
use prost::bytes::Bytes;

use super::claims::Rebound;
use super::held::Change;
use super::loss::TxnLoss;
use super::pending::{Encoded, OpenTxn, Pending, What};
use super::slots::Slots;
use super::{ACKED_MAX, CallId, OP_OVERHEAD_BYTES, QUIET_MAX, TXN_OPS_MAX, TxnKey, WaitsSender};
use crate::proto;
use crate::proto::client_op::Op;

/// The id of an operation, by which its response names it: a key of [`Slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) struct OpId(u64);

impl OpId {
    /// The id of the greeting. Other ids never get here, nor to those of claims.
    pub(in crate::client) const HELLO: Self = Self(u64::MAX);

    /// The id that came with a response.
    pub(in crate::client) const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number for the wire.
    pub(in crate::client) const fn get(self) -> u64 {
        self.0
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
    pub(super) last_order: u64,
    pub(super) last_txn: TxnNumber,
    /// Every operation without a response, by its id.
    pub(super) pending: Slots<Pending>,
    /// Those of them that the current stream has not sent, in order.
    pub(super) unsent: VecDeque<OpId>,
    pub(super) txns: Slots<OpenTxn>,
    /// Those of them that the server has ended, or that could not be claimed.
    pub(super) lost: HashMap<TxnNumber, TxnLoss>,
    /// Those that the current stream has sent quiet, in order, without the acknowledged ones.
    pub(super) quiet: VecDeque<OpId>,
    /// How many quiet ones of the current stream were acknowledged.
    pub(super) quiet_done: u64,
    /// The last lock request: its memory is used again.
    pub(super) lock: proto::LockOp,
    /// The callers that want to know for which holder they wait, by transaction and sequence.
    pub(super) listening: HashMap<(TxnNumber, Sequence), WaitsSender>,
    /// Number of the current stream; the request sides of older ones end (T3).
    pub(super) stream: StreamNumber,
    /// True once the current stream was welcomed.
    pub(super) open: bool,
    /// The frames of claims that the current stream has still to send, before anything else.
    pub(super) claims: VecDeque<Bytes>,
    /// The time before the last of them was sent.
    pub(super) claims_sent: Option<Time>,
    /// Under which binds claimed locks are held.
    pub(super) rebound: Rebound,
    /// The number of restarts of the server after which claims were made.
    pub(super) restarts: u64,
    /// True while operations are put in that are to share a frame.
    pub(super) gathering: bool,
    /// True once nothing will be sent or received any more.
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

    /// The sender of a call that has ended, if its caller wanted to know: to be dropped when the
    /// mutex is free.
    pub(super) fn stop_listening(&mut self, call: CallId) -> Option<WaitsSender> {
        // Listeners are rare.
        if self.listening.is_empty() {
            return None;
        }
        let number = self.txns.get_mut(call.txn.0)?.number;
        self.listening.remove(&(number, call.sequence))
    }

    /// Numbers the next operation of a transaction, and the transaction if this is its first.
    ///
    /// # Errors
    /// `SessionLost` if the session was closed, `TxnNotFound` if the transaction has ended,
    /// `ResourceExhausted` if too many of its operations are under way.
    pub(super) fn next_op(
        &mut self,
        key: &mut Option<TxnKey>,
        options: &TxnOptions,
    ) -> Result<(CallId, proto::TxnRef)> {
        if self.closed {
            return Err(Error::new(
                ErrorKind::SessionLost,
                "the session was closed: open a new one",
            ));
        }
        let key = *key.get_or_insert_with(|| {
            self.last_txn = self.last_txn.next();
            let (number, validates) = (self.last_txn, options.validates);
            let label = options.label.clone();
            TxnKey(self.txns.insert(OpenTxn { number, validates, label, ..OpenTxn::default() }))
        });
        if let Some(why) = self.why_not_claimed(key) {
            return Err(why);
        }
        let Some(slot) = self.txns.get_mut(key.0) else {
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
        let mut txn = slot.reference();
        if sequence == Sequence::FIRST {
            txn.validates = options.validates;
            txn.label.clone_from(&options.label);
        }
        Ok((CallId { txn: key, sequence }, txn))
    }

    /// Adds an operation that waits for no lock.
    pub(super) fn add_op(
        &mut self,
        key: &mut Option<TxnKey>,
        options: &TxnOptions,
        mut op: Op,
        what: impl FnOnce(CallId) -> What,
    ) -> Result<Option<Waker>> {
        let bytes = op.encoded_len() + OP_OVERHEAD_BYTES + options.label.len();
        self.check_size(bytes)?;
        let (call, txn) = self.next_op(key, options)?;
        let what = what(call);
        let of_op = match &mut op {
            // `quiet` is decided when it is sent.
            Op::Unlock(op) => Some(&mut op.txn),
            Op::Downgrade(op) => Some(&mut op.txn),
            Op::Savepoint(op) => Some(&mut op.txn),
            Op::RollBackTo(op) => Some(&mut op.txn),
            // These have their own ways into the outbox.
            Op::Hello(_)
            | Op::Heartbeat(_)
            | Op::Lock(_)
            | Op::Cancel(_)
            | Op::End(_)
            | Op::Goodbye(_)
            | Op::Claim(_)
            | Op::ClaimsDone(_) => None,
        };
        if let Some(of_op) = of_op {
            *of_op = Some(txn);
        }
        Ok(self.push(Pending::timeless(Encoded::of(&op), bytes, what)))
    }

    /// As [`next_op`](Self::next_op), for what must never be refused; `None` if the transaction has
    /// ended.
    pub(super) fn release_op(&mut self, txn: TxnKey) -> Option<(Sequence, proto::TxnRef)> {
        let slot = self.txns.get_mut(txn.0)?;
        let sequence = slot.next();
        Some((sequence, slot.reference()))
    }

    pub(super) fn cancel(&mut self, call: CallId) -> Option<Waker> {
        if self.why_not_claimed(call.txn).is_some() {
            // The server has nothing of it.
            return None;
        }
        let (sequence, txn) = self.release_op(call.txn)?;
        let what = What::Release {
            txn: call.txn,
            sequence,
            cancelled: Some(call.sequence),
            back_to: None,
            ends: false,
            reply: None,
        };
        let op = proto::CancelOp { txn: Some(txn), cancelled: call.sequence.get() };
        self.push(Pending::timeless(Encoded::of(&Op::Cancel(op)), 64, what))
    }

    /// The responses that callers have taken and the server does not know of, of some transactions:
    /// one that only holds its locks sends nothing else, and the server would keep them.
    pub(super) fn take_acked(&mut self) -> Vec<proto::Acked> {
        let news = self.txns.iter_mut().filter(|txn| txn.acked > txn.acked_told);
        let tell = |txn: &mut OpenTxn| {
            txn.acked_told = txn.acked;
            proto::Acked { txn: txn.number.get(), sequence: txn.acked.get() }
        };
        news.take(ACKED_MAX).map(tell).collect()
    }

    /// Decides whether an operation that is about to be sent is quiet. It is not if many are
    /// under way: they are acknowledged by responses, and there may be none otherwise.
    pub(super) fn choose_quiet(&mut self, id: OpId) {
        let Some(pending) = self.pending.get_mut(id.get()) else { return };
        pending.quiet = false;
        if !pending.is_quiet() || self.quiet.len() >= QUIET_MAX {
            return;
        }
        let What::Release { txn, .. } = pending.what else { return };
        if self.txns.get_mut(txn.0).is_some_and(|txn| txn.under_way <= TXN_OPS_MAX / 2) {
            pending.quiet = true;
            self.quiet.push_back(id);
        }
    }

    /// Notes an operation that the server has done, and that changed what its transaction holds.
    pub(super) fn note(&mut self, txn: TxnKey, sequence: Sequence, change: Change) {
        let Some(slot) = self.txns.get_mut(txn.0) else { return };
        // One that validates is never claimed (T4).
        if slot.validates || !slot.held.note(sequence, change) {
            return;
        }
        let of_txn = |pending: &Pending| pending.of_txn().filter(|(of, _)| *of == txn);
        let under_way = self.pending.iter().filter_map(|(_, pending)| of_txn(pending));
        let first_under_way = under_way.map(|(_, sequence)| sequence).min();
        slot.held.compact(first_under_way.unwrap_or(slot.last.next()));
    }

    /// A release is over: its response has come, or was not needed.
    pub(super) fn released(&mut self, op: Encoded, what: &What, is_done: bool) {
        let &What::Release { txn, sequence, cancelled, ends, .. } = what else { return };
        if is_done
            && !ends
            && let Some(change) = op.into_change(what)
        {
            self.note(txn, sequence, change);
        }
        if let Some(slot) = self.txns.get_mut(txn.0) {
            slot.responded(sequence);
            slot.acknowledge(sequence);
            if let Some(cancelled) = cancelled {
                slot.acknowledge(cancelled);
            }
        }
        if ends
            && let Some(ended) = self.txns.dropped(txn.0)
            && !self.lost.is_empty()
        {
            self.lost.remove(&ended.number);
        }
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

    fn add(&mut self, mut pending: Pending) -> OpId {
        self.last_order += 1;
        pending.order = self.last_order;
        OpId(self.pending.insert(pending))
    }

    /// Every operation without a response is to be sent, again and in the old order.
    pub(super) fn send_all(&mut self) {
        let mut all: Vec<_> = self.pending.iter().map(|(id, op)| (op.order, id)).collect();
        all.sort_unstable();
        self.unsent = all.into_iter().map(|(_, id)| OpId(id)).collect();
    }

    pub(super) fn waker_if_open(&mut self) -> Option<Waker> {
        if self.open && !self.gathering { self.waker.take() } else { None }
    }
}
