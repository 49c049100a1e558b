//! The arrival of a response: its effect on the caller, and on the driver.

use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::service::{Granted, Promise};
use lockservice_core::table::Savepoint;
use lockservice_core::{Error, ErrorKind, Result};

use super::held::{Change, LockGrant};
use super::pending::{Pending, What};
use super::{CallId, FRAME_BYTES_MAX, OpId, Outbox, SavepointAt, wake};

/// A response that is no error.
#[allow(clippy::large_enum_variant, reason = "moved once; a grant is the usual response")]
#[derive(Debug)]
pub(in crate::client) enum Response {
    /// A grant, or why it cannot be read.
    Granted(Result<Granted>),
    /// A renewal was acknowledged.
    Promise(Promise),
    /// A savepoint was set.
    Savepoint(Savepoint),
    /// Anything else.
    Done,
}

/// The work of the driver after a response.
#[derive(Debug)]
pub(in crate::client) enum ResponseEffect {
    /// Nothing: it is a response to no operation that is known.
    None,
    /// Nothing more than that an operation which was sent at this time has its response.
    Answered(Time),
    /// A renewal, sent at this time, was acknowledged.
    Renewed(Time, Duration),
    /// A grant, requested at this time, carries a promise: the server renews a session with every
    /// message.
    Promised(Time, Duration),
    /// The server stops and is expected back.
    Restarting,
    /// The session cannot go on.
    Lost(Error),
}

impl Outbox {
    /// Hands a response to the caller that waits for it. A grant is refused, and rolled back,
    /// unless `accept` allows it (P2).
    // Long: an arm for each kind of operation, each of which frees the mutex at another point.
    pub(in crate::client) fn take_response(
        &self,
        id: OpId,
        response: Result<Response>,
        accept: &Result<()>,
    ) -> ResponseEffect {
        let mut state = self.state.lock();
        // No response comes before its operation was sent. One without an operation is left over
        // from an older stream.
        let id = id.get();
        let taken = state.pending.get_mut(id).and_then(|at| Some((at.sent?, at.quiet)));
        let Some((sent, quiet)) = taken else { return ResponseEffect::None };
        if let (Err(e), Some(pending)) = (&response, state.pending.get_mut(id))
            && e.kind() == ErrorKind::Restarting
        {
            // P6: this is no response. The next process of the server gets the operation again.
            pending.quiet = false;
            return ResponseEffect::None;
        }
        // A quiet one is acknowledged by its place too, and must not be taken for a later one then.
        let pending = if quiet { state.pending.dropped(id) } else { state.pending.finished(id) };
        let Some(pending) = pending else { return ResponseEffect::None };
        match pending.what {
            What::Heartbeat { flushed } => {
                drop(state);
                drop(flushed);
                match response {
                    Ok(Response::Promise(promise)) => {
                        ResponseEffect::Renewed(sent, promise.valid_for)
                    }
                    Ok(_) => ResponseEffect::Answered(sent),
                    Err(e) => ResponseEffect::Lost(e),
                }
            }
            what @ What::Release { .. } => {
                state.released(pending.op, &what, response.is_ok());
                drop(state);
                if let What::Release { reply: Some(reply), .. } = what {
                    // The caller may have stopped waiting.
                    let _ = reply.send(response.map(drop));
                }
                ResponseEffect::Answered(sent)
            }
            What::Savepoint { txn, sequence, reply } => {
                if let Some(slot) = state.txns.get_mut(txn.0) {
                    slot.responded(sequence);
                    slot.acknowledge(sequence);
                }
                let restarts = state.restarts;
                drop(state);
                let savepoint = response.and_then(|response| match response {
                    Response::Savepoint(number) => Ok(SavepointAt { number, sequence, restarts }),
                    _ => Err(Error::new(
                        ErrorKind::Internal,
                        "the server sent another response to a request for a savepoint",
                    )),
                });
                // The caller may have stopped waiting.
                let _ = reply.send(savepoint);
                ResponseEffect::Answered(sent)
            }
            What::Lock { txn, sequence, reply, _permit } => {
                // Dropped when the mutex is free.
                let _listener = state.stop_listening(CallId { txn, sequence });
                if let Some(slot) = state.txns.get_mut(txn.0) {
                    slot.responded(sequence);
                }
                if let Ok(Response::Granted(Ok(granted))) = &response {
                    if let Some(slot) = state.txns.get_mut(txn.0) {
                        slot.id = Some(granted.txn);
                    }
                    // Also one that is rolled back below: the roll-back is noted after it.
                    if let Some(grant) = LockGrant::of(granted) {
                        let lock = Change::Lock(pending.op.into_message(), grant);
                        state.note(txn, sequence, lock);
                    }
                }
                let (result, effect) = match response {
                    // P5: what the server promises now may not count for it.
                    Ok(_) if let Some(why) = state.why_lost(txn) => {
                        (Err(why), ResponseEffect::Answered(sent))
                    }
                    Ok(response) => granted(response, sent, accept),
                    Err(e) => {
                        drop(state);
                        let _ = reply.send(Err(e));
                        return ResponseEffect::Answered(sent);
                    }
                };
                let waker =
                    if result.is_err() { state.cancel(CallId { txn, sequence }) } else { None };
                drop(state);
                wake(waker);
                // A caller that has gone has put a `CancelOp` in itself.
                let _ = reply.send(result);
                effect
            }
        }
    }

    /// The first `done` quiet operations of the current stream are done.
    pub(in crate::client) fn quiet_done(&self, done: u64) {
        let mut state = self.state.lock();
        while state.quiet_done < done
            && let Some(id) = state.quiet.pop_front()
        {
            state.quiet_done += 1;
            // One that had a response is gone, or is sent again.
            if state.pending.get_mut(id.get()).is_some_and(|pending| pending.quiet)
                && let Some(pending) = state.pending.finished(id.get())
            {
                state.released(pending.op, &pending.what, true);
            }
        }
    }

    /// Fails the callers of large requests that were sent with `why`, and cancels the requests: the
    /// server has no room for one of them. Everything else is sent again.
    pub(in crate::client) fn fail_large_locks(&self, why: &Error) {
        let mut state = self.state.lock();
        let is_large =
            |pending: &Pending| pending.sent.is_some() && pending.bytes > FRAME_BYTES_MAX;
        let large: Vec<u64> =
            state.pending.iter().filter(|(_, p)| is_large(p)).map(|(id, _)| id).collect();
        // Kept until the mutex is free: dropping one wakes the next that waits for its permit.
        let mut failed = Vec::with_capacity(large.len());
        let mut waker = None;
        for id in large {
            let Some((call, what)) = state.pending.get_mut(id).and_then(Pending::take_lock) else {
                continue;
            };
            // It may have been granted, with only the response lost.
            waker = waker.or(state.cancel(call));
            failed.push(what);
        }
        drop(state);
        wake(waker);
        for what in failed {
            if let What::Lock { reply, .. } = what {
                // A caller that has gone needs no response.
                let _ = reply.send(Err(why.clone()));
            }
        }
    }

    /// Fails every lock call with `why`. Releases stay, to be sent if there is still a stream.
    pub(in crate::client) fn fail_locks(&self, why: &Error) {
        let mut state = self.state.lock();
        let locks: Vec<u64> = state
            .pending
            .iter()
            .filter(|(_, p)| matches!(p.what, What::Lock { .. }))
            .map(|(id, _)| id)
            .collect();
        let mut waker = None;
        // Kept until the mutex is free: dropping one wakes the next that waits for its permit.
        let mut failed = Vec::with_capacity(locks.len());
        for id in locks {
            let Some(pending) = state.pending.dropped(id) else { continue };
            // P2: a grant on its way is rolled back. A call that was never sent leaves a hole that
            // only the end of the session fills, and the session is ending.
            if pending.sent.is_some()
                && let What::Lock { txn, sequence, .. } = pending.what
            {
                waker = waker.or(state.cancel(CallId { txn, sequence }));
            }
            failed.push(pending.what);
        }
        let listening = std::mem::take(&mut state.listening);
        drop(state);
        wake(waker);
        drop(listening);
        for what in failed {
            if let What::Lock { reply, .. } = what {
                // A caller that has gone has put a `CancelOp` in itself.
                let _ = reply.send(Err(why.clone()));
            }
        }
    }
}

/// The result of a lock call whose response is no error, and its effect: the grant if `accept`
/// allows it.
fn granted(
    response: Response,
    sent: Time,
    accept: &Result<()>,
) -> (Result<Granted>, ResponseEffect) {
    let Response::Granted(granted) = response else {
        let e =
            Error::new(ErrorKind::Internal, "the server sent another response to a lock request");
        return (Err(e), ResponseEffect::Answered(sent));
    };
    let Ok(granted) = granted else { return (granted, ResponseEffect::Answered(sent)) };
    let effect = ResponseEffect::Promised(sent, granted.promise.valid_for);
    (accept.clone().map(|()| granted), effect)
}
