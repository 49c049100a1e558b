//! What a session has asked and not been answered yet, in the order in which it was asked.

mod pending;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lockservice_core::clock::{Clock, Time};
use lockservice_core::service::{Granted, TxnOptions, Waiting, WaitsFor};
use lockservice_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use self::pending::{Pending, Sequences, What};
use crate::proto;
use crate::proto::client_op::Op;

/// Most operations in one frame.
const FRAME_OPS_MAX: usize = 128;
/// Most bytes of a frame of several operations. A renewal goes first in the next frame, so no more
/// than this is ahead of it; an operation that is larger by itself goes alone.
const FRAME_BYTES_MAX: usize = 4 << 10;
/// Most operations of one transaction under way. A server keeps at least this many, and as many
/// again for their undos.
const TXN_OPS_MAX: u32 = 64;
/// What an operation may cost in a frame beyond its own encoding: its id, tags and lengths.
const OP_OVERHEAD_BYTES: usize = 32;

/// See the module's documentation. Its mutex is a leaf: nothing else is locked, and nobody is
/// woken, under it.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
}

#[derive(Debug, Default)]
struct OutboxState {
    last_id: u64,
    last_txn: u64,
    /// Every operation that has no answer yet.
    pending: BTreeMap<u64, Pending>,
    /// Those of them that the current stream has not sent, in order.
    unsent: VecDeque<u64>,
    txns: HashMap<u64, Sequences>,
    /// Where callers want to know what their calls wait for, by transaction and sequence.
    listening: HashMap<(u64, u64), WaitsSender>,
    /// Number of the current stream; the request sides of older ones end (T3).
    stream: u64,
    /// True once the current stream was welcomed.
    open: bool,
    /// True once nothing will be sent or answered any more.
    closed: bool,
    frame_bytes_max: usize,
    waker: Option<Waker>,
}

/// Where a caller is told what its call waits for.
pub(super) type WaitsSender = watch::Sender<Option<WaitsFor>>;

/// What a lock call says beyond what it asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallContext<'a> {
    /// When its time is up.
    pub(super) deadline: Option<Time>,
    /// When the transaction's snapshot was begun, if that is known.
    pub(super) snapshot: Option<Time>,
    /// Where its caller is told what it waits for.
    pub(super) waits: Option<&'a WaitsSender>,
}

/// What the driver must do about an answer.
#[derive(Debug)]
pub(super) enum Answered {
    /// Nothing.
    Done,
    /// A renewal, sent at this time, was acknowledged.
    Renewed(Time, Duration),
    /// A grant, asked for at this time, carries a promise: the server renews a session with
    /// everything that it takes in.
    Promised(Time, Duration),
    /// The session cannot go on.
    Lost(Error),
}

/// Names a lock operation that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallId {
    txn: u64,
    sequence: u64,
}

/// What a transaction knows of itself.
#[derive(Debug)]
pub(super) struct TxnNumber {
    /// Its number; 0 until its first operation.
    number: Mutex<u64>,
    options: TxnOptions,
}

impl TxnNumber {
    pub(super) fn new(options: TxnOptions) -> Self {
        Self { number: Mutex::new(0), options }
    }
}

impl Outbox {
    /// Puts a lock request in. Fails with `InvalidArgument` if it is too large to send,
    /// `ResourceExhausted` if too many are under way.
    pub(super) fn lock(
        &self,
        txn_number: &TxnNumber,
        mut op: proto::LockOp,
        context: CallContext<'_>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(CallId, oneshot::Receiver<Result<Granted>>)> {
        let (reply, answer) = oneshot::channel();
        let bytes = op.encoded_len() + OP_OVERHEAD_BYTES + txn_number.options.label.len();
        // The transaction's number is chosen and its operation queued in one step: numbers must
        // arrive in rising order.
        let mut number = txn_number.number.lock();
        let mut state = self.state.lock();
        state.check_size(bytes)?;
        let txn = state.next_op(&mut number, &txn_number.options)?;
        let call = CallId { txn: txn.number, sequence: txn.sequence };
        op.txn = Some(txn);
        let what = What::Lock { txn: call.txn, sequence: call.sequence, reply, _permit: permit };
        if let Some(waits) = context.waits {
            state.listening.insert((call.txn, call.sequence), waits.clone());
        }
        let CallContext { deadline, snapshot, .. } = context;
        let waker =
            state.push(Pending { op: Op::Lock(op), bytes, what, deadline, snapshot, sent: None });
        drop(state);
        wake(waker);
        Ok((call, answer))
    }

    /// Puts an unlock of chosen keys in.
    pub(super) fn unlock(
        &self,
        txn_number: &TxnNumber,
        mut op: proto::UnlockOp,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        let (reply, answer) = oneshot::channel();
        let bytes = op.encoded_len() + OP_OVERHEAD_BYTES + txn_number.options.label.len();
        let mut number = txn_number.number.lock();
        let mut state = self.state.lock();
        state.check_size(bytes)?;
        let txn = state.next_op(&mut number, &txn_number.options)?;
        let what = What::Release {
            txn: txn.number,
            sequence: txn.sequence,
            undone: 0,
            ends: false,
            reply: Some(reply),
        };
        op.txn = Some(txn);
        let waker = state.push(Pending {
            op: Op::Unlock(op),
            bytes,
            what,
            deadline: None,
            snapshot: None,
            sent: None,
        });
        drop(state);
        wake(waker);
        Ok(answer)
    }

    /// Ends a transaction; `None` if it never did anything.
    pub(super) fn end(
        &self,
        txn_number: &TxnNumber,
        commit_timestamp: Option<u64>,
    ) -> Option<oneshot::Receiver<Result<()>>> {
        let number = *txn_number.number.lock();
        if number == 0 {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        let mut state = self.state.lock();
        let txn = state.release_op(number)?;
        let what = What::Release {
            txn: number,
            sequence: txn.sequence,
            undone: 0,
            ends: true,
            reply: Some(reply),
        };
        let op = Op::End(proto::EndOp { txn: Some(txn), commit_timestamp });
        let waker =
            state.push(Pending { op, bytes: 64, what, deadline: None, snapshot: None, sent: None });
        drop(state);
        wake(waker);
        Some(answer)
    }

    /// Takes a lock call back (T2). Until that is acknowledged nobody may rely on its keys.
    pub(super) fn undo(&self, call: CallId) {
        let mut state = self.state.lock();
        let waker = state.undo(call);
        drop(state);
        wake(waker);
    }

    /// The caller has taken the answer of a lock call: the server may forget it.
    pub(super) fn acknowledge(&self, call: CallId) {
        if let Some(txn) = self.state.lock().txns.get_mut(&call.txn) {
            txn.acknowledge(call.sequence);
        }
    }

    /// Puts a renewal in, ahead of everything that is not sent yet.
    pub(super) fn heartbeat(&self) {
        let mut state = self.state.lock();
        let op = Op::Heartbeat(proto::Heartbeat::default());
        let bytes = OP_OVERHEAD_BYTES;
        let waker = state.push_first(Pending {
            op,
            bytes,
            what: What::Heartbeat,
            deadline: None,
            snapshot: None,
            sent: None,
        });
        drop(state);
        wake(waker);
    }

    /// Begins a new stream: the request side of the former one ends. Nothing is sent before
    /// [`open`](Self::open).
    pub(super) fn new_stream(&self) -> u64 {
        let mut state = self.state.lock();
        state.stream += 1;
        state.open = false;
        let number = state.stream;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        number
    }

    /// The server welcomed the current stream: everything unanswered is sent, again and in the old
    /// order (T2).
    pub(super) fn open(&self, frame_bytes_max: usize) {
        let mut state = self.state.lock();
        state.open = true;
        state.frame_bytes_max = frame_bytes_max;
        // A renewal counts from its send on this stream: an old one is of no use.
        state.pending.retain(|_, pending| !matches!(pending.what, What::Heartbeat));
        state.unsent = state.pending.keys().copied().collect();
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Tells the caller of a lock call what it waits for, if it wants to know and waits yet.
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
        number: u64,
        clock: &dyn Clock,
        cx: &mut Context<'_>,
    ) -> Poll<Option<proto::ClientFrame>> {
        let mut state = self.state.lock();
        if state.stream != number {
            return Poll::Ready(None);
        }
        let mut ops = Vec::new();
        let mut bytes = 0;
        while state.open && ops.len() < FRAME_OPS_MAX {
            let Some(&id) = state.unsent.front() else { break };
            let bytes_max = state.frame_bytes_max.min(FRAME_BYTES_MAX);
            let Some(pending) = state.pending.get_mut(&id) else {
                state.unsent.pop_front();
                continue;
            };
            if !ops.is_empty() && bytes + pending.bytes > bytes_max {
                break;
            }
            bytes += pending.bytes;
            ops.push(proto::ClientOp { id, op: Some(pending.for_the_wire(clock)) });
            state.unsent.pop_front();
        }
        if ops.is_empty() {
            // Rarely another task: cloning a waker costs more than looking.
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(Some(proto::ClientFrame { ops }))
    }

    /// Hands an answer to whoever waits for it. A grant is refused, and given back, unless `accept`
    /// allows it (P2).
    pub(super) fn answer(
        &self,
        id: u64,
        answer: Result<proto::server_op::Answer>,
        accept: impl FnOnce() -> Result<()>,
    ) -> Answered {
        use proto::server_op::Answer;
        let mut state = self.state.lock();
        // An answer to nothing: one that an older stream had sent for.
        let Some(pending) = state.pending.remove(&id) else { return Answered::Done };
        match pending.what {
            What::Heartbeat => match answer {
                Ok(Answer::Promise(promise)) => {
                    // Nothing is answered before it was sent.
                    let sent = pending.sent.unwrap_or_default();
                    Answered::Renewed(sent, Duration::from_millis(promise.valid_for_ms))
                }
                Ok(_) => Answered::Done,
                Err(e) => Answered::Lost(e),
            },
            What::Release { txn, sequence, undone, ends, reply } => {
                if let Some(slot) = state.txns.get_mut(&txn) {
                    slot.under_way = slot.under_way.saturating_sub(1);
                    slot.acknowledge(sequence);
                    if undone > 0 {
                        slot.acknowledge(undone);
                    }
                }
                if ends {
                    state.txns.remove(&txn);
                }
                drop(state);
                if let Some(reply) = reply {
                    // Nobody need wait for it.
                    let _ = reply.send(answer.map(drop));
                }
                Answered::Done
            }
            What::Lock { txn, sequence, reply, _permit } => {
                // Dropped when the mutex is free.
                let _listener = state.stop_listening(txn, sequence);
                if let Some(slot) = state.txns.get_mut(&txn) {
                    slot.under_way = slot.under_way.saturating_sub(1);
                }
                let mut answered = Answered::Done;
                let result = match answer {
                    Ok(Answer::Locked(locked)) => {
                        let promise =
                            Duration::from_millis(locked.promise.unwrap_or_default().valid_for_ms);
                        answered = Answered::Promised(pending.sent.unwrap_or_default(), promise);
                        crate::convert::granted_from_proto(locked)
                            .and_then(|granted| accept().map(|()| granted))
                    }
                    Ok(_) => Err(Error::new(
                        ErrorKind::Internal,
                        "the server answered a lock request with something else",
                    )),
                    Err(e) => {
                        drop(state);
                        let _ = reply.send(Err(e));
                        return Answered::Done;
                    }
                };
                let waker =
                    if result.is_err() { state.undo(CallId { txn, sequence }) } else { None };
                drop(state);
                wake(waker);
                // A caller that has gone has put an Undo in itself.
                let _ = reply.send(result);
                answered
            }
        }
    }

    /// Answers the callers of large requests that were sent with `why`, and takes the requests
    /// back: the server has no room for one of them. Everything else is sent again.
    pub(super) fn fail_large_locks(&self, why: &Error) {
        let mut state = self.state.lock();
        let is_large =
            |pending: &Pending| pending.sent.is_some() && pending.bytes > FRAME_BYTES_MAX;
        let large: Vec<u64> =
            state.pending.iter().filter(|(_, p)| is_large(p)).map(|(id, _)| *id).collect();
        // Kept until the mutex is free: dropping one wakes whoever waits for its permit.
        let mut failed = Vec::with_capacity(large.len());
        let mut waker = None;
        for id in large {
            let Some((call, what)) = state.pending.get_mut(&id).and_then(Pending::take_lock) else {
                continue;
            };
            // It may have been granted, and only the answer is lost.
            waker = waker.or(state.undo(call));
            failed.push(what);
        }
        drop(state);
        wake(waker);
        for what in failed {
            if let What::Lock { reply, .. } = what {
                // A caller that has gone needs no answer.
                let _ = reply.send(Err(why.clone()));
            }
        }
    }

    /// Answers every caller with `why`. What releases stays, to be sent if there is still a stream.
    pub(super) fn fail_locks(&self, why: &Error) {
        let mut state = self.state.lock();
        let locks: Vec<u64> = state
            .pending
            .iter()
            .filter(|(_, p)| matches!(p.what, What::Lock { .. }))
            .map(|(id, _)| *id)
            .collect();
        let mut waker = None;
        // Kept until the mutex is free: dropping one wakes whoever waits for its permit.
        let mut failed = Vec::with_capacity(locks.len());
        for id in locks {
            let Some(pending) = state.pending.remove(&id) else { continue };
            // P2: a grant on its way is given back. What was never sent leaves a hole that only the
            // end of the session fills, and the session is ending.
            if pending.sent.is_some()
                && let What::Lock { txn, sequence, .. } = pending.what
            {
                waker = waker.or(state.undo(CallId { txn, sequence }));
            }
            failed.push(pending.what);
        }
        let listening = std::mem::take(&mut state.listening);
        drop(state);
        wake(waker);
        drop(listening);
        for what in failed {
            if let What::Lock { reply, .. } = what {
                // A caller that has gone has put an Undo in itself.
                let _ = reply.send(Err(why.clone()));
            }
        }
    }

    /// Nothing will be sent or answered any more.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.stream += 1;
        state.open = false;
        state.closed = true;
        let pending = std::mem::take(&mut state.pending);
        let listening = std::mem::take(&mut state.listening);
        state.unsent.clear();
        state.txns.clear();
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        // Dropped senders tell the callers.
        drop((pending, listening));
    }
}

impl OutboxState {
    fn check_size(&self, bytes: usize) -> Result<()> {
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

    /// Who wanted to know what a call waits for, which is over: to be dropped when the mutex is
    /// free.
    fn stop_listening(&mut self, txn: u64, sequence: u64) -> Option<WaitsSender> {
        // Nearly nobody listens.
        if self.listening.is_empty() { None } else { self.listening.remove(&(txn, sequence)) }
    }

    fn next_op(&mut self, number: &mut u64, options: &TxnOptions) -> Result<proto::TxnRef> {
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

    /// As [`next_op`](Self::next_op), for what must never be refused; `None` if the transaction has
    /// ended.
    fn release_op(&mut self, number: u64) -> Option<proto::TxnRef> {
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

    fn undo(&mut self, call: CallId) -> Option<Waker> {
        let txn = self.release_op(call.txn)?;
        let (number, sequence) = (call.txn, txn.sequence);
        let what = What::Release {
            txn: number,
            sequence,
            undone: call.sequence,
            ends: false,
            reply: None,
        };
        let op = Op::Undo(proto::UndoOp { txn: Some(txn), undone: call.sequence });
        self.push(Pending { op, bytes: 64, what, deadline: None, snapshot: None, sent: None })
    }

    fn push(&mut self, pending: Pending) -> Option<Waker> {
        let id = self.add(pending);
        self.unsent.push_back(id);
        self.waker_if_open()
    }

    fn push_first(&mut self, pending: Pending) -> Option<Waker> {
        let id = self.add(pending);
        self.unsent.push_front(id);
        self.waker_if_open()
    }

    fn add(&mut self, pending: Pending) -> u64 {
        self.last_id += 1;
        self.pending.insert(self.last_id, pending);
        self.last_id
    }

    fn waker_if_open(&mut self) -> Option<Waker> {
        if self.open { self.waker.take() } else { None }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
