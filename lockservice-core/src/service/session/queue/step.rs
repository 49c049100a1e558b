//! [`Step`]: what is to be done for the operation whose turn it is.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::id::{Sequence, TableRef};
use crate::key::{LockItem, LockMode};
use crate::service::session::queue::{Relied, TxnQueue, rolled_back};
use crate::service::{LockSpec, OpResponse, Operation};
use crate::table::{Commit, Grant, Savepoint};

/// The step of the operation whose turn it is.
#[allow(
    clippy::large_enum_variant,
    reason = "moved once and never kept; a lock is the usual step, and must not cost an allocation"
)]
pub(in crate::service) enum Step {
    Refuse(Error),
    Lock {
        spec: LockSpec,
        /// When it arrived.
        arrived: Time,
        /// Its items once more, if the call may rely on what an earlier one added.
        items: Option<Arc<[LockItem]>>,
    },
    Unlock(TableRef, Vec<LockItem>, Option<Commit>),
    Downgrade(TableRef, Vec<LockItem>, LockMode),
    Savepoint,
    RollBackTo(Savepoint),
    /// Roll these grants back, each less what later calls rely on: see
    /// [`keep_relied_on`](super::keep_relied_on).
    RollBack(Vec<(Grant, Vec<Relied>)>),
    /// The rolled-back call added nothing that would be left.
    Done,
    End(Option<Commit>),
}

impl TxnQueue {
    /// The operation whose turn it is, and what to do for it. `None` if it has not arrived: the
    /// queue is to be run again when [`take_in`](Self::take_in) says so.
    pub(in crate::service) fn step(&mut self) -> Option<(Sequence, Step)> {
        // An operation that has not arrived before an `End` can no longer matter: it is skipped.
        let sequence = if self.ending { self.queue.first() } else { Some(self.next) };
        let Some((sequence, queued)) = sequence.and_then(|at| Some((at, self.queue.get_mut(at)?)))
        else {
            self.running = false;
            return None;
        };
        self.next = sequence;
        self.quiet = queued.quiet;
        queued.timer = None;
        let arrived = queued.arrived;
        let step = match queued.operation.take() {
            // Cannot be: an operation is taken once, and then filed.
            None => Step::Refuse(Error::new(ErrorKind::Internal, "an operation was run twice")),
            Some(operation) => self.step_of(sequence, *operation, arrived),
        };
        Some((sequence, step))
    }

    /// True if the turn of an operation that is queued has come.
    pub(super) fn is_due(&self) -> bool {
        if self.ending { !self.queue.is_empty() } else { self.queue.contains(self.next) }
    }

    /// What to do for an operation whose turn it is.
    pub(super) fn step_of(
        &mut self,
        sequence: Sequence,
        operation: Operation,
        arrived: Time,
    ) -> Step {
        match operation {
            Operation::Lock(_) if self.ending || self.closed.contains(&sequence) => {
                Step::Refuse(rolled_back())
            }
            Operation::Lock(spec) => {
                // Without an earlier grant that can still be rolled back, which is the usual case,
                // there is nothing to remember.
                let earlier = self
                    .decided
                    .values()
                    .any(|decided| matches!(decided.response, Ok(OpResponse::Locked(_))));
                let items = earlier.then(|| Arc::from(spec.items.as_slice()));
                Step::Lock { spec, arrived, items }
            }
            Operation::Unlock { table, items, commit } => Step::Unlock(table, items, commit),
            Operation::Downgrade { table, items, mode } => Step::Downgrade(table, items, mode),
            Operation::Savepoint => Step::Savepoint,
            Operation::RollBackTo(savepoint) => Step::RollBackTo(savepoint),
            Operation::End { commit } => Step::End(commit),
            Operation::Refuse(why) => Step::Refuse(why),
            Operation::Cancel { sequence } => self.roll_back(sequence),
        }
    }

    /// What resolves when the lock that runs is to wait no longer. It has resolved already if the
    /// lock was cancelled, or the transaction ended, since its turn came.
    pub(in crate::service) fn canceller(&mut self) -> oneshot::Receiver<()> {
        let (cancel, cancelled) = oneshot::channel();
        if !self.ending && !self.closed.contains(&self.next) {
            self.cancel = Some(cancel);
        }
        cancelled
    }

    fn roll_back(&self, sequence: Sequence) -> Step {
        match self.decided.get(sequence).map(|decided| &decided.response) {
            None => Step::Refuse(Error::new(
                ErrorKind::InvalidArgument,
                "the operation to cancel was acknowledged, or never was: release its keys \
                    instead",
            )),
            Some(Ok(OpResponse::Locked(_))) => {
                // Items of grants that were rolled back before may have been kept for it alone.
                let relies = self.relied_on.contains_key(&sequence);
                let before = self.closed.range(..sequence).filter(|_| relies);
                Step::RollBack(
                    before.chain([&sequence]).filter_map(|at| self.with_relied(*at)).collect(),
                )
            }
            Some(_) => Step::Done,
        }
    }

    /// A grant, and what later calls that were not rolled back rely on.
    fn with_relied(&self, sequence: Sequence) -> Option<(Grant, Vec<Relied>)> {
        let Ok(OpResponse::Locked(granted)) = &self.decided.get(sequence)?.response else {
            return None;
        };
        let later =
            self.relied_on.range(sequence.next()..).filter(|(at, _)| !self.closed.contains(at));
        Some((granted.grant.clone(), later.map(|(_, relied)| relied.clone()).collect()))
    }
}
