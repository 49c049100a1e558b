//! The one task that writes to the store: group commit, numbering and unknown outcomes (L2, B6). It
//! raises the epoch too (`raise.rs`).
//!
//! # Implementation details
//! Changes wait in a bounded queue; the task takes as many as there are (up to a limit) and writes
//! them as one batch. It lets other tasks run before it takes them, as long as more keep coming, so
//! that a storm of binds becomes a few large batches. A change that is queued is written, also if
//! its caller goes away: the change's `done` brings memory up to date on this task.
//!
//! # Invariants
//! - One write is under way at a time, and its number is one above the last applied (L2).
//! - After an unknown outcome nothing else is written until the number was read: the same batch is
//!   written again only if it is not there.
//! - Changes land in the order in which they were queued.
//! - After a write was refused as fenced nothing is written any more.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument as _;

use crate::allocator::messages::Progress;
use crate::allocator::state::{AllocatorState, not_leading};
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, WriteNumber};
use crate::store::{Applied, Batch, BindStore, Candidate, Lineage, Op};
use crate::sync::atomic::Ordering;

/// Pause after the first failure of the store; doubled up to [`PAUSE_MAX`].
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

pub(super) fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSE_MAX)
}

/// The second half of a change: runs on the writer's task once the change has landed, or certainly
/// has not. Must not block.
pub(in crate::allocator) type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// A request to the writer.
pub(in crate::allocator) enum Command {
    /// Write these, all in one batch.
    Write { ops: SmallVec<[Op; 2]>, done: Done },
    /// Raise the epoch to at least this.
    Raise { wanted: Epoch, done: oneshot::Sender<Result<()>> },
    /// Record that no node can still rely on anything that the store lost (L4).
    Resolve,
    /// Record that the store has lost writes of earlier leaderships (L4), as reported, and end the
    /// leadership because of it.
    RaiseAbove { why: Error, observed: Progress },
    /// Give the leadership up and stop.
    Resign { done: oneshot::Sender<Result<()>> },
    /// Stop without giving it up.
    Stop,
}

/// The writer's own state.
pub(in crate::allocator) struct Writer {
    pub(in crate::allocator) store: Arc<dyn BindStore>,
    pub(in crate::allocator) env: Env,
    pub(in crate::allocator) candidate: Candidate,
    pub(in crate::allocator) leadership_ttl: Duration,
    pub(in crate::allocator) epoch: Epoch,
    pub(in crate::allocator) applied: WriteNumber,
    pub(in crate::allocator) batch_max: usize,
    pub(in crate::allocator) lost: Option<Error>,
    /// True from a write that the store refused until one that it took.
    pub(in crate::allocator) refused: bool,
    /// The copy of the store that was acquired (L4).
    pub(in crate::allocator) lineage: Lineage,
    /// True while it is unknown whether the store's epoch was raised.
    pub(in crate::allocator) uncertain: bool,
    /// The leadership to which the writes and the epochs belong.
    pub(in crate::allocator) state: Arc<AllocatorState>,
    /// Gets the reason why nothing can be written any more, once.
    pub(in crate::allocator) ended: watch::Sender<Option<Error>>,
    /// The epoch that the store has. Locked while it is raised: a renewal must not name one that is
    /// being replaced.
    pub(in crate::allocator) head: Arc<tokio::sync::Mutex<Epoch>>,
}

impl Writer {
    /// Runs until it is stopped, or until no sender is left.
    pub(in crate::allocator) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.recv().await {
            // Let the tasks that are ready queue theirs too.
            let mut waiting = queue.len();
            loop {
                tokio::task::yield_now().await;
                let now = queue.len();
                if now == waiting || now >= self.batch_max {
                    break;
                }
                waiting = now;
            }
            let mut next = Some(first);
            let (mut batch, mut dones) = (Batch::new(), Vec::new());
            let mut special = None;
            while let Some(command) = next {
                match command {
                    Command::Write { ops, done } => {
                        batch.extend(ops);
                        dones.push(done);
                    }
                    other => {
                        special = Some(other);
                        break;
                    }
                }
                next = if batch.len() < self.batch_max { queue.try_recv().ok() } else { None };
            }
            if !batch.is_empty() {
                let outcome = self.write(&batch).await;
                self.log(&outcome);
                for done in dones {
                    done(outcome.clone());
                }
            }
            match special {
                None | Some(Command::Write { .. }) => {}
                // The caller may be gone: the epoch is raised all the same.
                Some(Command::Raise { wanted, done }) => drop(done.send(self.raise(wanted).await)),
                // A failed request is repeated by its caller.
                Some(Command::Resolve) => drop(self.resolve().await),
                Some(Command::RaiseAbove { why, observed }) => {
                    self.raise_above(why, observed).await
                }
                Some(Command::Resign { done }) => {
                    let outcome = self.resign().await;
                    let stop = outcome.is_ok();
                    drop(done.send(outcome));
                    if stop {
                        return;
                    }
                }
                Some(Command::Stop) => return,
            }
        }
    }

    /// Logs once that the store takes no writes, and once that it takes them again. Each caller
    /// gets the error too, but an operator reads the log.
    fn log(&mut self, outcome: &Result<()>) {
        match outcome {
            Err(e) if self.lost.is_none() => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::error!(
                        store = %self.store.describe(),
                        error = ?e,
                        "the store cannot be written: what is bound goes on, nothing new is bound \
                            until it can"
                    );
                }
            }
            // Said where it was lost.
            Err(_) => {}
            Ok(()) => {
                if std::mem::take(&mut self.refused) {
                    tracing::warn!(store = %self.store.describe(), "the store can be written \
                        again");
                }
            }
        }
    }

    /// Writes `batch` under the next number, and finds out whether it is there.
    async fn write(&mut self, batch: &Batch) -> Result<()> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        if self.uncertain {
            self.raise(self.epoch.next()?).await?;
        }
        let number = self.applied.next();
        let span = tracing::debug_span!(
            "store_write",
            epoch = %self.epoch,
            write = number.get(),
            changes = batch.len()
        );
        self.write_as(number, batch).instrument(span).await
    }

    async fn write_as(&mut self, number: WriteNumber, batch: &Batch) -> Result<()> {
        let mut pause = PAUSE_FIRST;
        let mut unknown = false;
        loop {
            let outcome = self.store.write(self.epoch, number, batch).await;
            match outcome {
                Ok(ack) => return self.landed(number, &ack.lineage),
                Err(e) if e.kind() == ErrorKind::UnknownOutcome => unknown = true,
                // After an unknown outcome this means that the first try landed late, or that
                // another leads. The number and the epoch decide which.
                Err(e) if e.kind() == ErrorKind::Fenced && !unknown => return Err(self.lose(e)),
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    if let Err(fenced) = self.store.renew(self.epoch).await
                        && fenced.kind() == ErrorKind::Fenced
                    {
                        return Err(self.lose(fenced));
                    }
                }
                // Certainly not applied by this try; but an earlier one with an unknown outcome may
                // yet land.
                Err(e) if !unknown => return Err(e),
                Err(_) => {}
            }
            if self.is_there(number, &mut pause).await? {
                return Ok(());
            }
            self.env.sleep(pause).await;
            pause = longer(pause);
        }
    }

    /// Resolves an unknown outcome by reading the number (L2), however long that takes; the callers
    /// have deadlines of their own. False if the write is not there and may be sent again.
    async fn is_there(&mut self, number: WriteNumber, pause: &mut Duration) -> Result<bool> {
        loop {
            if self.state.leadership.ended() {
                return Err(self.give_up());
            }
            match self.store.applied().await {
                // The number alone would not do: another leader's first write has it too.
                Ok(Applied { epoch, number: applied, lineage })
                    if epoch == self.epoch && applied == number =>
                {
                    return self.landed(number, &lineage).map(|()| true);
                }
                Ok(Applied { epoch, number: applied, .. })
                    if epoch == self.epoch && number.follows(applied) =>
                {
                    return Ok(false);
                }
                Ok(Applied { epoch, number: applied, .. }) => {
                    let error = Error::new(
                        ErrorKind::Fenced,
                        "the store's epoch or write number is not the leader's: another leads, or \
                            the store went back",
                    )
                    .with("epoch", epoch)
                    .with("applied", applied)
                    .with("number", number);
                    return Err(self.lose(error));
                }
                Err(e) => {
                    tracing::warn!(
                        store = %self.store.describe(),
                        error = ?e,
                        "the outcome of a write is not known yet; reading the store again"
                    );
                    self.env.sleep(*pause).await;
                    *pause = longer(*pause);
                }
            }
        }
    }

    /// The write `number` is in the store, if the store still is the one that was acquired (L4).
    fn landed(&mut self, number: WriteNumber, lineage: &Lineage) -> Result<()> {
        if *lineage != self.lineage {
            return Err(self.lose(another_store()));
        }
        self.applied = number;
        self.state.applied.store(number.get(), Ordering::Release);
        Ok(())
    }

    async fn resign(&mut self) -> Result<()> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        // L1: it has stopped responding before another can lead.
        self.state.leadership.end();
        self.store.resign(self.epoch).await
    }

    /// Another task ended the leadership. It records the reason, or has this task do so
    /// (`RaiseAbove`). Nothing more is written.
    pub(super) fn give_up(&mut self) -> Error {
        let lost = not_leading(true);
        self.lost = Some(lost.clone());
        lost
    }

    pub(super) fn lose(&mut self, error: Error) -> Error {
        self.state.leadership.end();
        end(&self.ended, &error);
        let lost = not_leading(true).with_source(error);
        self.lost = Some(lost.clone());
        lost
    }
}

/// Says why a leadership is over. The first reason stays.
pub(in crate::allocator) fn end(ended: &watch::Sender<Option<Error>>, why: &Error) {
    let first = ended.send_if_modified(|ended| {
        let first = ended.is_none();
        if first {
            *ended = Some(why.clone());
        }
        first
    });
    if first {
        tracing::error!(error = ?why, "the leadership is lost");
    }
}

/// The error of a leader that finds another copy of its store (L4), and stops.
pub(in crate::allocator) fn another_store() -> Error {
    Error::new(
        ErrorKind::Fenced,
        "the store was restarted, restored or replaced by a copy, and may have gone back in time: \
            a new leadership starts",
    )
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("epoch", &self.epoch)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}
