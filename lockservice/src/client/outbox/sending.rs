//! The way of operations out of the outbox: streams, and their frames.

use std::task::{Context, Poll};

use lockservice_core::Sequence;
use lockservice_core::clock::Clock;
use prost::bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::pending::{Pending, What};
use super::slots::Slots;
use super::{FRAME_BYTES_MAX, FRAME_OPS_MAX, Outbox, StreamNumber, wake};
use crate::proto;

impl Outbox {
    /// Until the returned value is dropped, an operation that is put in does not wake the sender:
    /// the next operations of several callers share a frame.
    pub(in crate::client) fn gather(&self) -> Gathering<'_> {
        self.state.lock().gathering = true;
        Gathering(self)
    }

    /// Puts a renewal in, ahead of everything that is not sent yet.
    pub(in crate::client) fn heartbeat(&self) {
        let mut state = self.state.lock();
        let (acked, lost) = (state.take_acked(), state.told_losses());
        let waker = state.push_first(Pending::heartbeat(proto::Heartbeat { acked, lost }, None));
        drop(state);
        wake(waker);
    }

    /// Accepts no further operation of a caller. The returned value resolves when the server has
    /// those that release something, or the stream has ended; `None` if it has them, or there is no
    /// stream.
    pub(in crate::client) fn flush(&self) -> Option<oneshot::Receiver<()>> {
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
    pub(in crate::client) fn new_stream(&self) -> StreamNumber {
        let mut state = self.state.lock();
        state.stream = state.stream.next();
        state.open = false;
        state.claims.clear();
        let number = state.stream;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        number
    }

    /// Opens the current stream, which the server welcomed: all operations without a response are
    /// sent again, in the old order (T2).
    pub(in crate::client) fn open(&self, frame_bytes_max: usize) {
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
        for txn in state.txns.iter_mut() {
            (txn.acked_told, txn.is_claimed) = (Sequence::default(), false);
        }
        state.send_all();
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        drop(old);
    }

    /// The next frame of stream `number`; `None` if another stream has taken its place.
    pub(in crate::client) fn poll_frame(
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
        if let Some(claims) = state.claims.pop_front() {
            // P2: read before the frame is handed on.
            state.claims_sent = state.claims.is_empty().then_some(now);
            return Poll::Ready(Some(claims));
        }
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
    pub(in crate::client) fn close(&self) {
        let mut state = self.state.lock();
        state.stream = state.stream.next();
        state.open = false;
        state.closed = true;
        let pending = std::mem::take(&mut state.pending);
        let listening = std::mem::take(&mut state.listening);
        state.unsent.clear();
        state.claims.clear();
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
pub(in crate::client) struct Gathering<'a>(&'a Outbox);

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.gathering = false;
        let waker = if state.unsent.is_empty() { None } else { state.waker_if_open() };
        drop(state);
        wake(waker);
    }
}
