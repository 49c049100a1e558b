//! The arrival of an operation: it is queued, joins the first of its sequence, or is decided
//! already.

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::clock::Time;
use crate::env::AbortHandle;
use crate::error::{Error, ErrorKind, Result};
use crate::id::Sequence;
use crate::service::session::queue::{Room, Step, TxnQueue, Waiting};
use crate::service::session::weight;
use crate::service::{LockSpec, OpResponse, Operation};

/// The largest number of callers that wait for one operation's response: its first sender, and
/// those of repetitions.
const JOINED_MAX: usize = 16;

/// The fate of an operation that arrived.
#[allow(clippy::large_enum_variant, reason = "moved once and never kept")]
pub(in crate::service) enum Taken {
    /// It was decided before, with this response.
    Decided(Result<OpResponse>),
    /// It is running: its turn has come, and the caller is to decide it. One that cannot be decided
    /// at once is to [wait](TxnQueue::begin_wait).
    Due(Step),
    /// Its response will come here. If `run`, no task runs the queue, and the caller has to. If
    /// `behind`, it is new and its turn comes later: a lock is to be [timed](TxnQueue::time).
    Queued { response: oneshot::Receiver<Result<OpResponse>>, run: bool, behind: bool },
}

#[derive(Debug)]
pub(super) struct Queued {
    /// In a box: one that runs has none, and there may be many that wait.
    pub(super) operation: Option<Box<Operation>>,
    /// When it arrived, for the first time.
    pub(super) arrived: Time,
    pub(super) waiting: SmallVec<[Waiting; 1]>,
    pub(super) bytes: usize,
    /// Its response is kept only if it is an error.
    pub(super) quiet: bool,
    /// Refuses it when its time is up before its turn.
    pub(super) timer: Option<Timer>,
    /// That has happened, with this response.
    pub(super) expired: Option<Error>,
}

impl Queued {
    /// An operation that runs: another task has what it requests.
    fn running(arrived: Time) -> Self {
        let (operation, waiting, bytes, quiet, timer, expired) = Default::default();
        Self { operation, arrived, waiting, bytes, quiet, timer, expired }
    }

    /// One more caller waits for the response.
    fn join(&mut self) -> oneshot::Receiver<Result<OpResponse>> {
        let (sender, response) = oneshot::channel();
        self.waiting.push(sender);
        response
    }
}

/// A task that ends with what it was made for.
#[derive(Debug)]
pub(in crate::service) struct Timer(pub(in crate::service) AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl TxnQueue {
    /// Takes an operation that arrived at `now` in, at its place in the order, if there is `room`.
    /// The response of a `quiet` one is kept only if it is an error.
    pub(in crate::service) fn take_in(
        &mut self,
        sequence: Sequence,
        operation: Operation,
        now: Time,
        room: Room,
        quiet: bool,
    ) -> Result<Taken> {
        if sequence < self.next {
            return self.decided_before(sequence, quiet).map(Taken::Decided);
        }
        if self.is_running(sequence) && !self.queue.contains(sequence) {
            self.queue.insert(sequence, Queued::running(now));
        }
        if let Some(queued) = self.queue.get_mut(sequence) {
            if let Some(error) = &queued.expired {
                return Ok(Taken::Decided(Err(error.clone())));
            }
            // A replay of something that is still to be decided joins it. Those whose connection is
            // gone do not count.
            queued.waiting.retain(|sender| !sender.is_closed());
            if queued.waiting.len() >= JOINED_MAX {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    "this operation is requested too many times at once: wait for its response",
                ));
            }
            return Ok(Taken::Queued { response: queued.join(), run: false, behind: false });
        }
        let operation = self.admit(sequence, operation, room)?;
        match &operation {
            Operation::Cancel { sequence } => self.close(*sequence),
            Operation::End { .. } => {
                self.ending = true;
                self.cancel_running();
            }
            Operation::Lock(_)
            | Operation::Unlock { .. }
            | Operation::Downgrade { .. }
            | Operation::Savepoint
            | Operation::RollBackTo(_)
            | Operation::Refuse(_) => {}
        }
        let first = sequence == self.next || self.ending && self.queue.is_empty();
        if first && !self.running {
            self.running = true;
            self.next = sequence;
            self.quiet = quiet;
            return Ok(Taken::Due(self.step_of(sequence, operation, now)));
        }
        let bytes = weight::of_operation(&operation);
        self.kept_bytes += bytes;
        let mut queued =
            Queued { operation: Some(Box::new(operation)), bytes, quiet, ..Queued::running(now) };
        let response = queued.join();
        self.queue.insert(sequence, queued);
        let run = !self.running && self.is_due();
        self.running |= run;
        Ok(Taken::Queued { response, run, behind: !run })
    }

    /// The operation that runs cannot be decided at once: it waits, and takes `bytes` meanwhile.
    /// Returns its response.
    pub(in crate::service) fn begin_wait(
        &mut self,
        arrived: Time,
        bytes: usize,
    ) -> oneshot::Receiver<Result<OpResponse>> {
        if !self.queue.contains(self.next) {
            self.queue.insert(self.next, Queued::running(arrived));
        }
        let Some(queued) = self.queue.get_mut(self.next) else {
            // Cannot be: it was just put in. Its caller learns that the session ended.
            return oneshot::channel().1;
        };
        queued.bytes = bytes;
        self.kept_bytes += bytes;
        queued.join()
    }

    /// Has an operation that stands behind others watched by a timer, if it is a lock. The timer is
    /// to call [`expire`](Self::expire); it ends with the operation's turn.
    pub(in crate::service) fn time(
        &mut self,
        sequence: Sequence,
        timer: impl FnOnce(&LockSpec) -> Timer,
    ) {
        if let Some(queued) = self.queue.get_mut(sequence)
            && let Some(Operation::Lock(spec)) = queued.operation.as_deref()
        {
            queued.timer = Some(timer(spec));
        }
    }

    /// The time of a lock is up: unless its turn has come, it is refused with `error` in its turn,
    /// and the callers that wait for its result get the error now.
    pub(in crate::service) fn expire(
        &mut self,
        sequence: Sequence,
        error: Error,
    ) -> SmallVec<[Waiting; 1]> {
        let Some(queued) = self.queue.get_mut(sequence) else { return SmallVec::new() };
        if !matches!(queued.operation.as_deref(), Some(Operation::Lock(_))) {
            return SmallVec::new();
        }
        queued.operation = Some(Box::new(Operation::Refuse(error.clone())));
        queued.expired = Some(error);
        std::mem::take(&mut queued.waiting)
    }
}
