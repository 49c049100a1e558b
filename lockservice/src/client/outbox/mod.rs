//! The operations of a session without a response, in the order of their calls.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the way of operations into frames |
//! | `response` | the way of a response to its caller |
//! | `loss` | the transactions that the server has ended |
//! | `state`, `pending`, `slots` | the state under the mutex; operations without a response; their ids |

mod loss;
mod pending;
mod response;
mod slots;
mod state;
#[cfg(test)]
mod tests;

use std::task::{Context, Poll, Waker};

use lockservice_core::clock::{Clock, Time};
use lockservice_core::service::{Granted, LockSpec, TxnOptions, Waiting, WaitsFor};
use lockservice_core::table::{Commit, Savepoint};
use lockservice_core::{Result, Sequence, TxnNumber};
use parking_lot::Mutex;
use prost::Message as _;
use prost::bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use self::pending::{Encoded, Pending, What};
pub(super) use self::response::{Response, ResponseEffect};
use self::slots::Slots;
use self::state::OutboxState;
pub(super) use self::state::{OpId, StreamNumber};
use crate::convert::{commit_to_proto, lock_spec_to_proto};
use crate::proto;
use crate::proto::client_op::Op;

/// The largest number of operations in one frame.
const FRAME_OPS_MAX: usize = 512;
/// The largest frame of several operations, in bytes. A renewal goes first in the next frame, so no
/// more than this is ahead of it; an operation that is larger by itself goes alone.
const FRAME_BYTES_MAX: usize = 16 << 10;
/// The largest number of operations of one transaction under way. A server keeps at least this
/// many, and as many again for their cancels.
const TXN_OPS_MAX: u32 = 64;
/// The largest number of quiet operations that are not acknowledged. One more has a response, which
/// acknowledges those before it.
const QUIET_MAX: usize = 1_024;
/// The largest number of transactions whose responses one renewal acknowledges.
const ACKED_MAX: usize = 2_048;
/// The most that an operation costs in a frame beyond its own encoding: its id, tags and lengths.
const OP_OVERHEAD_BYTES: usize = 32;

/// See the module's documentation. Its mutex is a leaf: nothing else is locked, and no task is
/// woken, under it.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
}

/// The channel on which a caller learns for which holder it waits.
pub(super) type WaitsSender = watch::Sender<Option<WaitsFor>>;

/// The context of a lock call.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallContext<'a> {
    /// The time at which its time-out ends.
    pub(super) deadline: Option<Time>,
    /// The time at which the transaction's snapshot was begun, if it is known.
    pub(super) snapshot: Option<Time>,
    /// The channel on which its caller learns for which holder it waits.
    pub(super) waits: Option<&'a WaitsSender>,
}

/// Names a lock operation that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallId {
    txn: TxnKey,
    sequence: Sequence,
}

/// The key of a transaction that has begun and not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TxnKey(u64);

/// The number and options of a transaction.
#[derive(Debug)]
pub(super) struct NumberedTxn {
    /// Not set until its first operation.
    key: Mutex<Option<TxnKey>>,
    options: TxnOptions,
}

impl NumberedTxn {
    pub(super) fn new(options: TxnOptions) -> Self {
        Self { key: Mutex::new(None), options }
    }
}

impl Outbox {
    /// Adds a lock request. Fails with `InvalidArgument` if it is too large to send,
    /// `ResourceExhausted` if too many are under way.
    pub(super) fn lock(
        &self,
        txn_number: &NumberedTxn,
        spec: &LockSpec,
        context: CallContext<'_>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(CallId, oneshot::Receiver<Result<Granted>>)> {
        let (reply, response) = oneshot::channel();
        // The transaction's number is chosen and its operation queued in one step: numbers must
        // arrive in rising order.
        let mut key = txn_number.key.lock();
        let mut state = self.state.lock();
        let last = std::mem::take(&mut state.lock);
        state.lock = lock_spec_to_proto(spec, last);
        let bytes = state.lock.encoded_len() + OP_OVERHEAD_BYTES + txn_number.options.label.len();
        state.check_size(bytes)?;
        let (call, reference) = state.next_op(&mut key, &txn_number.options)?;
        if let Some(waits) = context.waits {
            let number = TxnNumber::new(reference.number);
            state.listening.insert((number, call.sequence), waits.clone());
        }
        state.lock.txn = Some(reference);
        // Set when it is sent.
        (state.lock.timeout_ms, state.lock.snapshot_age_ms) = (None, None);
        let op = Encoded::lock(&state.lock);
        let CallId { txn, sequence } = call;
        let what = What::Lock { txn, sequence, reply, _permit: permit };
        let CallContext { deadline, snapshot, .. } = context;
        let waker =
            state.push(Pending { deadline, snapshot, ..Pending::timeless(op, bytes, what) });
        drop(state);
        wake(waker);
        Ok((call, response))
    }

    /// Adds an operation that ends locks, in full or in part. Its transaction is set here.
    pub(super) fn release(
        &self,
        txn_number: &NumberedTxn,
        op: Op,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        let (reply, response) = oneshot::channel();
        self.add(txn_number, op, |CallId { txn, sequence }| What::Release {
            txn,
            sequence,
            cancelled: None,
            ends: false,
            reply: Some(reply),
        })?;
        Ok(response)
    }

    /// Adds a request for a savepoint.
    pub(super) fn savepoint(
        &self,
        txn_number: &NumberedTxn,
    ) -> Result<oneshot::Receiver<Result<Savepoint>>> {
        let (reply, response) = oneshot::channel();
        let op = Op::Savepoint(proto::SavepointOp { txn: None });
        let what = |CallId { txn, sequence }| What::Savepoint { txn, sequence, reply };
        self.add(txn_number, op, what)?;
        Ok(response)
    }

    /// Adds an operation that waits for no lock.
    fn add(
        &self,
        txn_number: &NumberedTxn,
        mut op: Op,
        what: impl FnOnce(CallId) -> What,
    ) -> Result<()> {
        let bytes = op.encoded_len() + OP_OVERHEAD_BYTES + txn_number.options.label.len();
        let mut key = txn_number.key.lock();
        let mut state = self.state.lock();
        state.check_size(bytes)?;
        let (call, txn) = state.next_op(&mut key, &txn_number.options)?;
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
        let waker = state.push(Pending::timeless(Encoded::of(&op), bytes, what));
        drop(state);
        wake(waker);
        Ok(())
    }

    /// Ends a transaction; `None` if it never did anything.
    pub(super) fn end(
        &self,
        txn_number: &NumberedTxn,
        commit: Option<Commit>,
    ) -> Option<oneshot::Receiver<Result<()>>> {
        let txn = (*txn_number.key.lock())?;
        let (reply, response) = oneshot::channel();
        let mut state = self.state.lock();
        let (sequence, reference) = state.release_op(txn)?;
        let what = What::Release { txn, sequence, cancelled: None, ends: true, reply: Some(reply) };
        let (commit_timestamp, definition_changed) = commit_to_proto(commit);
        let (txn, quiet) = (Some(reference), false);
        let op = proto::EndOp { txn, commit_timestamp, definition_changed, quiet };
        let waker = state.push(Pending::timeless(Encoded::of(&Op::End(op)), 64, what));
        drop(state);
        wake(waker);
        Some(response)
    }

    /// Cancels a lock call, or rolls its grant back (T2). Until that is acknowledged no caller may
    /// rely on its keys.
    pub(super) fn cancel(&self, call: CallId) {
        let mut state = self.state.lock();
        let waker = state.cancel(call);
        drop(state);
        wake(waker);
    }

    /// Notes that the caller has taken the response of a lock call: the server may forget it.
    pub(super) fn acknowledge(&self, call: CallId) {
        if let Some(txn) = self.state.lock().txns.get_mut(call.txn.0) {
            txn.acknowledge(call.sequence);
        }
    }

    /// Until the returned value is dropped, an operation that is put in does not wake the sender:
    /// the next operations of several callers share a frame.
    pub(super) fn gather(&self) -> Gathering<'_> {
        self.state.lock().gathering = true;
        Gathering(self)
    }

    /// Puts a renewal in, ahead of everything that is not sent yet.
    pub(super) fn heartbeat(&self) {
        let mut state = self.state.lock();
        let (acked, lost) = (state.take_acked(), state.told_losses());
        let waker = state.push_first(Pending::heartbeat(proto::Heartbeat { acked, lost }, None));
        drop(state);
        wake(waker);
    }

    /// Accepts no further operation of a caller. The returned value resolves when the server has
    /// those that release something, or the stream has ended; `None` if it has them, or there is no
    /// stream.
    pub(super) fn flush(&self) -> Option<oneshot::Receiver<()>> {
        let mut state = self.state.lock();
        state.closed = true;
        let releases =
            state.pending.iter().any(|(_, pending)| matches!(pending.what, What::Release { .. }));
        if !state.open || !releases {
            return None;
        }
        let (flushed, arrived) = oneshot::channel();
        let waker = state.push(Pending::heartbeat(proto::Heartbeat::default(), Some(flushed)));
        drop(state);
        wake(waker);
        Some(arrived)
    }

    /// Begins a new stream: the request side of the former one ends. Nothing is sent before
    /// [`open`](Self::open).
    pub(super) fn new_stream(&self) -> StreamNumber {
        let mut state = self.state.lock();
        state.stream = state.stream.next();
        state.open = false;
        let number = state.stream;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        number
    }

    /// Opens the current stream, which the server welcomed: all operations without a response are
    /// sent again, in the old order (T2).
    pub(super) fn open(&self, frame_bytes_max: usize) {
        let mut state = self.state.lock();
        state.open = true;
        state.frame_bytes_max = frame_bytes_max;
        // A renewal counts from its send on this stream, so an old one is useless.
        let is_renewal =
            |(_, pending): &(_, &Pending)| matches!(pending.what, What::Heartbeat { .. });
        let old: Vec<_> = state.pending.iter().filter(is_renewal).map(|(id, _)| id).collect();
        let old: Vec<_> = old.into_iter().filter_map(|id| state.pending.dropped(id)).collect();
        // They are counted for each stream.
        state.quiet.clear();
        state.quiet_done = 0;
        // What an older stream told may not have arrived.
        state.txns.iter_mut().for_each(|txn| txn.acked_told = Sequence::default());
        state.send_all();
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        drop(old);
    }

    /// Passes the holder for which a lock call waits to its caller, if it listens and still waits.
    pub(super) fn waiting(&self, waiting: Waiting) {
        let waits = self.state.lock().listening.get(&(waiting.number, waiting.sequence)).cloned();
        // Woken here, and not under the mutex.
        if let Some(waits) = waits {
            waits.send_replace(Some(waiting.waits_for));
        }
    }

    /// The next frame of stream `number`; `None` if another stream has taken its place.
    pub(super) fn poll_frame(
        &self,
        number: StreamNumber,
        clock: &dyn Clock,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Bytes>> {
        let mut state = self.state.lock();
        if state.stream != number {
            return Poll::Ready(None);
        }
        let (mut frame, mut ops, mut bytes) = (BytesMut::new(), 0, 0);
        let now = clock.now();
        while state.open && ops < FRAME_OPS_MAX {
            let Some(&id) = state.unsent.front() else { break };
            let bytes_max = state.frame_bytes_max.min(FRAME_BYTES_MAX);
            let Some(pending) = state.pending.get_mut(id.get()) else {
                state.unsent.pop_front();
                continue;
            };
            if ops > 0 && bytes + pending.bytes > bytes_max {
                break;
            }
            bytes += pending.bytes;
            ops += 1;
            state.unsent.pop_front();
            state.choose_quiet(id);
            if let Some(pending) = state.pending.get_mut(id.get()) {
                pending.send(id, now, &mut frame);
            }
        }
        if ops == 0 {
            // The task is rarely another one, and cloning a waker costs more than a comparison.
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(Some(frame.freeze()))
    }

    /// Closes the outbox: nothing is sent any more, and no response comes.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.stream = state.stream.next();
        state.open = false;
        state.closed = true;
        let pending = std::mem::take(&mut state.pending);
        let listening = std::mem::take(&mut state.listening);
        state.unsent.clear();
        state.txns = Slots::default();
        state.lost.clear();
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        // Dropped senders end the calls.
        drop((pending, listening));
    }
}

/// See [`Outbox::gather`].
#[derive(Debug)]
pub(super) struct Gathering<'a>(&'a Outbox);

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.gathering = false;
        let waker = if state.unsent.is_empty() { None } else { state.waker_if_open() };
        drop(state);
        wake(waker);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
