//! The operations of a session without a response, in the order of their calls.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the way of operations into the outbox |
//! | `sending` | the way of operations into frames |
//! | `response` | the way of a response to its caller |
//! | `loss` | the transactions that have lost their locks |
//! | `held` | what a transaction holds, by the client's own account |
//! | `claims` | the claims after a restart of the server (P6) |
//! | `roll_back` | roll-backs to savepoints, also to those from before a restart |
//! | `state`, `pending`, `slots` | the state under the mutex; operations without a response; their ids |

mod claims;
mod held;
mod loss;
mod pending;
mod response;
mod roll_back;
mod sending;
mod slots;
mod state;
#[cfg(test)]
mod tests;

use std::task::Waker;

use lockservice_core::clock::Time;
use lockservice_core::service::{Granted, LockSpec, TxnOptions, Waiting, WaitsFor};
use lockservice_core::table::{Commit, Savepoint};
use lockservice_core::{Result, Sequence, TxnNumber};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

pub(super) use self::claims::{ClaimId, Claims};
use self::pending::{Encoded, Pending, What};
pub(super) use self::response::{Response, ResponseEffect};
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

/// A savepoint of a transaction at one node.
#[derive(Clone, Copy, Debug)]
pub(super) struct SavepointAt {
    /// Its number at the process of the server that set it.
    number: Savepoint,
    /// The operation that set it.
    sequence: Sequence,
    /// The number of restarts before.
    restarts: u64,
}

impl SavepointAt {
    /// The one before the first operation.
    pub(super) const FIRST: Self =
        Self { number: Savepoint::FIRST, sequence: Sequence::new(0), restarts: 0 };
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
        let mut reply = Some(reply);
        let added = self.add(txn_number, op, |call| What::release(call, reply.take()));
        match (added, reply) {
            // The server has nothing of it.
            (Err(_), Some(reply)) if self.why_not_claimed(txn_number).is_some() => {
                let _ = reply.send(Ok(()));
            }
            (added, _) => added?,
        }
        Ok(response)
    }

    /// Adds a request for a savepoint.
    pub(super) fn savepoint(
        &self,
        txn_number: &NumberedTxn,
    ) -> Result<oneshot::Receiver<Result<SavepointAt>>> {
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
        op: Op,
        what: impl FnOnce(CallId) -> What,
    ) -> Result<()> {
        let mut key = txn_number.key.lock();
        let mut state = self.state.lock();
        let waker = state.add_op(&mut key, &txn_number.options, op, what)?;
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
        if state.why_not_claimed(txn).is_some() {
            let waker = state.end_not_claimed(txn);
            drop(state);
            wake(waker);
            let _ = reply.send(Ok(()));
            return Some(response);
        }
        let (sequence, reference) = state.release_op(txn)?;
        let (cancelled, back_to, ends) = (None, None, true);
        let what = What::Release { txn, sequence, cancelled, back_to, ends, reply: Some(reply) };
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

    /// Passes the holder for which a lock call waits to its caller, if it listens and still waits.
    pub(super) fn waiting(&self, waiting: Waiting) {
        let waits = self.state.lock().listening.get(&(waiting.number, waiting.sequence)).cloned();
        // Woken here, and not under the mutex.
        if let Some(waits) = waits {
            waits.send_replace(Some(waiting.waits_for));
        }
    }

    /// Notes that the caller has taken the response of a lock call: the server may forget it.
    pub(super) fn acknowledge(&self, call: CallId) {
        if let Some(txn) = self.state.lock().txns.get_mut(call.txn.0) {
            txn.acknowledge(call.sequence);
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
