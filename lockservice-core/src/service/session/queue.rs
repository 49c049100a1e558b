//! [`TxnQueue`]: the operations of one transaction of a session, in order, each taking effect once
//! (T2). Pure: it runs nothing, waits for nothing and reads no clock;
//! [`Session`](crate::service::Session) does what the [`Step`]s say and files what came of it.
//!
//! # States of an operation, by its sequence
//! unseen → *queued* → *running* (one at a time) → *decided* (its answer is kept) → *acknowledged*
//! (forgotten). One that arrives again while queued or running joins the first; one that is decided
//! is answered with the first answer; one that is acknowledged is refused.
//!
//! # Invariants
//! - **In order.** What is decided is all of `1..next`, until an `End` has arrived. The turn of an
//!   `End` comes at once, also past numbers that never arrived: whatever they were, they can no
//!   longer matter.
//! - **No hole.** A number that is refused is decided, in its turn, with the refusal; else later
//!   ones would wait for it for ever. Where even the refusal finds no room the queue is *broken*,
//!   and takes in nothing but an `End`.
//! - **In time.** A lock's time-out counts from its arrival. One whose time is up before its turn
//!   is answered then; it keeps its place in the order, and is decided with that answer.
//! - **Kept until acknowledged.** An answer is never dropped before its client has it. So what is
//!   taken in is what bounds memory: an operation weighs as much as it and its answer can come to,
//!   until it is decided; from then on its answer weighs what it takes.
//! - [`kept_bytes`](TxnQueue::kept_bytes) is the sum of the weights of all that is queued or
//!   decided and not acknowledged.
//! - **Closed is closed.** A sequence in `undone` is never granted: a call that runs is cancelled,
//!   one that is queued or comes later is refused, and a grant that was filed is rolled back in
//!   the `Undo`'s turn.
//! - **Numbered by one side.** Either the client numbers the operations of a transaction, or the
//!   service does, in the order in which they arrive. The results of those cannot be asked for
//!   again, so none is kept.
//! - **Only what a call added is rolled back**, less what a later call was told it holds
//!   (`relied_on`): that call's answer would else become untrue. It goes when the last of those
//!   calls is rolled back too; once one of them was acknowledged, it stays until the transaction
//!   ends.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitTimestamp, TableId, TableRef};
use crate::key::LockItem;
use crate::service::session::weight;
use crate::service::txn::TxnRecord;
use crate::service::{Answer, Granted, LockSpec, Operation};
use crate::table::Grant;

/// Most callers that wait for one operation's answer: its first sender, and those who sent it
/// again.
const JOINED_MAX: usize = 16;

/// Comparing more pairs than this for one Undo is not worth the time: then the rest is kept.
pub(in crate::service) const RELIED_PAIRS_MAX: usize = 1 << 20;

/// Where an answer is sent.
pub(in crate::service) type Waiting = oneshot::Sender<Result<Answer>>;

/// One transaction of a session.
#[derive(Debug)]
pub(in crate::service) struct TxnQueue {
    pub(in crate::service) txn: Arc<TxnRecord>,
    /// The sequence that is decided next.
    next: u64,
    /// Arrived but not decided. The first may be running.
    queue: BTreeMap<u64, Queued>,
    /// Answers that the client has not acknowledged.
    decided: BTreeMap<u64, Decided>,
    /// What `queue`, `decided` and `relied_on` weigh.
    kept_bytes: usize,
    /// Sequences that were undone, in whatever state they were. Forgotten once they are decided
    /// and acknowledged.
    undone: BTreeSet<u64>,
    /// What unacknowledged grants name beyond what they added: it was held already, perhaps by an
    /// earlier call that may yet be rolled back.
    relied_on: BTreeMap<u64, Relied>,
    running: bool,
    /// The running call was cancelled by [`cancel`](Self::cancel): no `Undo` will come to take its
    /// grant back.
    cancelled: bool,
    /// Ends the wait of the running call.
    cancel: Option<oneshot::Sender<()>>,
    /// An `End` has arrived: locks before it are refused.
    ending: bool,
    /// A number was refused for which there was no place left.
    broken: bool,
    /// Who numbers the operations; `None` before the first.
    numbered_by: Option<NumberedBy>,
}

/// Who gives operations, or transactions, their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::service) enum NumberedBy {
    Client,
    Service,
}

#[derive(Debug)]
struct Queued {
    operation: Option<Operation>,
    /// When it arrived, for the first time.
    arrived: Time,
    waiting: Vec<Waiting>,
    bytes: usize,
    /// Answers it when its time is up before its turn.
    timer: Option<Timer>,
    /// That has happened, and this was the answer.
    expired: Option<Error>,
}

/// A task that ends with what it was made for.
#[derive(Debug)]
pub(in crate::service) struct Timer(pub(in crate::service) AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Decided {
    answer: Result<Answer>,
    /// What it weighs, with what it relies on.
    bytes: usize,
}

/// How much may be kept.
#[derive(Debug)]
pub(in crate::service) struct Room {
    /// Operations and answers of this transaction.
    pub(in crate::service) ops_max: usize,
    /// Weight of all that its session keeps.
    pub(in crate::service) bytes_max: usize,
    /// What the session's other transactions weigh.
    pub(in crate::service) bytes_of_others: usize,
    /// Why no lock is taken in now, whatever there is room for here.
    pub(in crate::service) exhausted: Option<Error>,
}

/// The items of a call that was granted, and their table.
#[derive(Debug, Clone)]
pub(in crate::service) struct Relied {
    table: TableId,
    items: Arc<[LockItem]>,
}

impl Relied {
    /// What `granted` says is held although it did not add it, if it is anything. `items` are what
    /// was asked for. What it upgraded is not among them: an upgrade stands without what it lies
    /// on.
    pub(in crate::service) fn of(granted: &Granted, items: &[LockItem]) -> Option<Self> {
        let (table, changes) = (granted.grant.bind.id, &granted.grant.owner.changes);
        if changes.len() >= items.len() {
            return None;
        }
        let changed: HashSet<&LockItem> = changes.iter().map(|change| &change.item).collect();
        let items: Arc<[LockItem]> =
            items.iter().filter(|item| !changed.contains(item)).cloned().collect();
        (!items.is_empty()).then_some(Self { table, items })
    }
}

/// What became of an operation that arrived.
#[allow(clippy::large_enum_variant, reason = "moved once and never kept")]
pub(in crate::service) enum Taken {
    /// It was decided before: this was its answer.
    Decided(Result<Answer>),
    /// Its answer will come here. If `run`, no task runs the queue, and it is to be run. If
    /// `behind`, it is new and its turn comes later: a lock is to be [timed](TxnQueue::time).
    Queued { answer: oneshot::Receiver<Result<Answer>>, run: bool, behind: bool },
}

/// What is to be done for the operation whose turn it is.
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
        cancelled: oneshot::Receiver<()>,
    },
    Unlock(TableRef, Vec<LockItem>, Option<CommitTimestamp>),
    /// Take these grants back, each less what later calls rely on: see [`keep_relied_on`].
    RollBack(Vec<(Grant, Vec<Relied>)>),
    /// The rolled-back call added nothing that would be left.
    Done,
    End(Option<CommitTimestamp>),
}

/// An answer that was filed.
pub(in crate::service) struct Filed {
    /// The answer as it stands.
    pub(in crate::service) result: Result<Answer>,
    /// Who is to be told.
    pub(in crate::service) waiting: Vec<Waiting>,
    /// A grant that came too late: take it back.
    pub(in crate::service) rolled_back_grant: Option<Granted>,
}

impl TxnQueue {
    pub(in crate::service) fn new(txn: Arc<TxnRecord>) -> Self {
        Self {
            txn,
            next: 1,
            queue: BTreeMap::new(),
            decided: BTreeMap::new(),
            kept_bytes: 0,
            undone: BTreeSet::new(),
            relied_on: BTreeMap::new(),
            running: false,
            cancelled: false,
            cancel: None,
            ending: false,
            broken: false,
            numbered_by: None,
        }
    }

    /// The sequence of an operation whose client gives it none (0), or gives it `sequence`.
    ///
    /// Fails with `InvalidArgument` if the transaction's operations were numbered by the other side
    /// before.
    pub(in crate::service) fn number(&mut self, sequence: u64) -> Result<u64> {
        let by = if sequence == 0 { NumberedBy::Service } else { NumberedBy::Client };
        if *self.numbered_by.get_or_insert(by) != by {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "either all operations of a transaction have a sequence, or none has",
            )
            .with("sequence", sequence));
        }
        let next =
            self.queue.last_key_value().map_or(self.next, |(last, _)| last.saturating_add(1));
        Ok(if sequence == 0 { next } else { sequence })
    }

    /// About how much memory is in use for what is queued or not acknowledged.
    pub(in crate::service) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// How many operations are queued or being decided.
    pub(in crate::service) fn ops_under_way(&self) -> usize {
        self.queue.len()
    }

    /// Takes an operation that arrived at `now` in, at its place in the order, if there is `room`.
    pub(in crate::service) fn take_in(
        &mut self,
        sequence: u64,
        operation: Operation,
        now: Time,
        room: Room,
    ) -> Result<Taken> {
        if sequence < self.next {
            return self.decided_before(sequence).map(Taken::Decided);
        }
        let (sender, answer) = oneshot::channel();
        if let Some(queued) = self.queue.get_mut(&sequence) {
            if let Some(error) = &queued.expired {
                return Ok(Taken::Decided(Err(error.clone())));
            }
            // A replay of something that is still to be decided joins it. Those whose connection is
            // gone do not count.
            queued.waiting.retain(|sender| !sender.is_closed());
            if queued.waiting.len() >= JOINED_MAX {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    "this operation is asked for too many times at once: wait for its answer",
                ));
            }
            queued.waiting.push(sender);
            return Ok(Taken::Queued { answer, run: false, behind: false });
        }
        let operation = self.admit(sequence, operation, room)?;
        match &operation {
            Operation::Undo { sequence } => self.undo(*sequence),
            Operation::End { .. } => {
                self.ending = true;
                self.cancel_running();
            }
            Operation::Lock(_) | Operation::Unlock { .. } | Operation::Refuse(_) => {}
        }
        let bytes = weight::of_operation(&operation);
        self.kept_bytes += bytes;
        let queued = Queued {
            operation: Some(operation),
            arrived: now,
            waiting: vec![sender],
            bytes,
            timer: None,
            expired: None,
        };
        self.queue.insert(sequence, queued);
        let run = !self.running && (self.ending || self.queue.contains_key(&self.next));
        self.running |= run;
        Ok(Taken::Queued { answer, run, behind: !run })
    }

    /// Has an operation that stands behind others watched by a timer, if it is a lock. The timer is
    /// to call [`expire`](Self::expire); it ends with the operation's turn.
    pub(in crate::service) fn time(
        &mut self,
        sequence: u64,
        timer: impl FnOnce(&LockSpec) -> Timer,
    ) {
        if let Some(queued) = self.queue.get_mut(&sequence)
            && let Some(Operation::Lock(spec)) = &queued.operation
        {
            queued.timer = Some(timer(spec));
        }
    }

    /// The time of a lock is up: unless its turn has come, it is refused with `error` in its turn,
    /// and those who wait for its result are told now.
    pub(in crate::service) fn expire(&mut self, sequence: u64, error: Error) -> Vec<Waiting> {
        let Some(queued) = self.queue.get_mut(&sequence) else { return Vec::new() };
        if !matches!(queued.operation, Some(Operation::Lock(_))) {
            return Vec::new();
        }
        queued.operation = Some(Operation::Refuse(error.clone()));
        queued.expired = Some(error);
        std::mem::take(&mut queued.waiting)
    }

    /// The first answer of an operation that was decided.
    fn decided_before(&self, sequence: u64) -> Result<Result<Answer>> {
        match self.decided.get(&sequence).map(|decided| &decided.answer) {
            Some(answer) if self.undone.contains(&sequence) => {
                Ok(answer.clone().and(Err(rolled_back())))
            }
            Some(answer) => Ok(answer.clone()),
            None if self.ending => Err(rolled_back()),
            None => Err(Error::new(
                ErrorKind::InvalidArgument,
                "this operation was answered, and its answer acknowledged",
            )
            .with("sequence", sequence)),
        }
    }

    /// Bounds what is kept. An operation that finds no room takes its place all the same and is
    /// refused in its turn, else what follows would wait for it for ever. `Undo`s have as much room
    /// again, and an `End` is always taken in: it makes room.
    fn admit(&mut self, sequence: u64, operation: Operation, room: Room) -> Result<Operation> {
        let (ops, bytes) =
            (self.queue.len() + self.decided.len(), self.kept_bytes + room.bytes_of_others);
        let full =
            |times: usize| {
                if ops >= room.ops_max.saturating_mul(times) {
                    Some(Error::new(
                    ErrorKind::ResourceExhausted,
                    "too many operations of one transaction are queued or unacknowledged: wait \
                        for answers and acknowledge them",
                )
                .with("limit", room.ops_max))
                } else if bytes >= room.bytes_max.saturating_mul(times) {
                    Some(
                        Error::new(
                            ErrorKind::ResourceExhausted,
                            "too much of one session is queued or unacknowledged: wait for answers \
                            and acknowledge them",
                        )
                        .with("limit_bytes", room.bytes_max),
                    )
                } else {
                    None
                }
            };
        if matches!(operation, Operation::End { .. }) && !self.ending {
            return Ok(operation);
        }
        // Once broken it stays so: a number is missing.
        if let Some(exhausted) = full(if self.broken { 0 } else { 2 }) {
            self.broken = true;
            return Err(exhausted);
        }
        match operation {
            Operation::Undo { sequence: undone } if undone >= sequence => {
                Ok(Operation::Refuse(Error::new(
                    ErrorKind::InvalidArgument,
                    "only an earlier operation of the transaction can be undone",
                )))
            }
            Operation::Undo { .. } => Ok(operation),
            Operation::Lock(_) => {
                Ok(full(1).or(room.exhausted).map_or(operation, Operation::Refuse))
            }
            operation => Ok(full(1).map_or(operation, Operation::Refuse)),
        }
    }

    /// The client has the answers up to `acked`: nothing of them will be asked for again.
    pub(in crate::service) fn acknowledge(&mut self, acked: u64) {
        let (relied_on, undone) = (&self.relied_on, &self.undone);
        self.decided.retain(|sequence, decided| {
            // The part of a rolled-back grant that was kept for later calls goes with the last of
            // them.
            let mut later = relied_on.range(sequence + 1..).filter(|(at, _)| !undone.contains(at));
            let kept = *sequence > acked
                || undone.contains(sequence) && later.next().is_some_and(|(at, _)| *at > acked);
            if !kept {
                self.kept_bytes -= decided.bytes;
            }
            kept
        });
        self.relied_on.retain(|decided, _| *decided > acked);
        let (next, decided) = (self.next, &self.decided);
        self.undone
            .retain(|undone| *undone > acked || *undone >= next || decided.contains_key(undone));
    }

    /// Cancels an operation that waits, for its locks or for its turn, as if it had been taken
    /// back.
    pub(in crate::service) fn cancel(&mut self, sequence: u64) {
        if self.queue.contains_key(&sequence) {
            self.cancelled |= self.running && self.next == sequence;
            self.undo(sequence);
        }
    }

    /// Closes `sequence`, and cancels it if it is being decided.
    fn undo(&mut self, sequence: u64) {
        self.undone.insert(sequence);
        if self.running && self.next == sequence {
            self.cancel_running();
        }
    }

    fn cancel_running(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            // The call may have been decided at this very moment; then its answer stands until the
            // Undo takes its turn.
            let _ = cancel.send(());
        }
    }

    /// The operation whose turn it is, and what to do for it. `None` if it has not arrived: the
    /// queue is to be run again when [`take_in`](Self::take_in) says so.
    pub(in crate::service) fn step(&mut self) -> Option<(u64, Step)> {
        // What has not arrived before an `End` can no longer matter: it is passed over.
        let sequence =
            if self.ending { self.queue.keys().next().copied() } else { Some(self.next) };
        let Some((sequence, queued)) = sequence.and_then(|at| Some((at, self.queue.get_mut(&at)?)))
        else {
            self.running = false;
            return None;
        };
        self.next = sequence;
        queued.timer = None;
        let step = match queued.operation.take() {
            // Cannot be: an operation is taken once, and then filed.
            None => Step::Refuse(Error::new(ErrorKind::Internal, "an operation was run twice")),
            Some(Operation::Lock(_)) if self.ending || self.undone.contains(&sequence) => {
                Step::Refuse(rolled_back())
            }
            Some(Operation::Lock(spec)) => {
                let (cancel, cancelled) = oneshot::channel();
                self.cancel = Some(cancel);
                // Without an earlier grant that can still be rolled back, which is the usual case,
                // there is nothing to remember.
                let earlier = self
                    .decided
                    .values()
                    .any(|decided| matches!(decided.answer, Ok(Answer::Locked(_))));
                let items = earlier.then(|| Arc::from(spec.items.as_slice()));
                Step::Lock { spec, arrived: queued.arrived, items, cancelled }
            }
            Some(Operation::Unlock { table, items, commit_ts }) => {
                Step::Unlock(table, items, commit_ts)
            }
            Some(Operation::End { commit_ts }) => Step::End(commit_ts),
            Some(Operation::Refuse(why)) => Step::Refuse(why),
            Some(Operation::Undo { sequence }) => self.roll_back(sequence),
        };
        Some((sequence, step))
    }

    fn roll_back(&self, sequence: u64) -> Step {
        match self.decided.get(&sequence).map(|decided| &decided.answer) {
            None => Step::Refuse(Error::new(
                ErrorKind::InvalidArgument,
                "the operation to undo was acknowledged, or never was: release its keys \
                    instead",
            )),
            Some(Ok(Answer::Locked(_))) => {
                // What it relied on may have been kept for it alone of grants that were rolled back
                // before.
                let relies = self.relied_on.contains_key(&sequence);
                let before = self.undone.range(..sequence).filter(|_| relies);
                Step::RollBack(
                    before.chain([&sequence]).filter_map(|at| self.with_relied(*at)).collect(),
                )
            }
            Some(_) => Step::Done,
        }
    }

    /// A grant, and what later calls that were not rolled back rely on.
    fn with_relied(&self, sequence: u64) -> Option<(Grant, Vec<Relied>)> {
        let Ok(Answer::Locked(granted)) = &self.decided.get(&sequence)?.answer else { return None };
        let later =
            self.relied_on.range(sequence + 1..).filter(|(at, _)| !self.undone.contains(at));
        Some((granted.grant.clone(), later.map(|(_, relied)| relied.clone()).collect()))
    }

    /// Files the answer of the operation that ran.
    pub(in crate::service) fn file(
        &mut self,
        sequence: u64,
        mut result: Result<Answer>,
        relied: Option<Relied>,
    ) -> Filed {
        let mut rolled_back_grant = None;
        let mut bytes = 0;
        if std::mem::take(&mut self.cancelled)
            && let Ok(Answer::Locked(granted)) = &result
        {
            // It was cancelled when the grant had been made but was not filed yet.
            rolled_back_grant = Some(granted.clone());
            result = Err(rolled_back());
        } else if let Some(relied) = relied {
            bytes += weight::of_items(&relied.items);
            self.relied_on.insert(sequence, relied);
        }
        // The call is decided: its canceller has nothing to cancel. (A canceller that was used
        // before the call was polled to its end left it to the task that ran the call; the answer
        // then says so.)
        self.cancel = None;
        let mut waiting = Vec::new();
        if let Some(queued) = self.queue.remove(&sequence) {
            self.kept_bytes -= queued.bytes;
            waiting = queued.waiting;
        }
        self.next = sequence + 1;
        if self.numbered_by == Some(NumberedBy::Service) {
            self.relied_on.remove(&sequence);
        } else {
            bytes += weight::of_answer(&result);
            self.kept_bytes += bytes;
            self.decided.insert(sequence, Decided { answer: result.clone(), bytes });
        }
        Filed { result, waiting, rolled_back_grant }
    }

    /// Everybody who waits for an answer that will not come. The wait of a running call ends with
    /// this too: its canceller is dropped.
    pub(in crate::service) fn into_waiting(self) -> impl Iterator<Item = Waiting> {
        self.queue.into_values().flat_map(|queued| queued.waiting)
    }
}

/// Leaves out of a roll-back the items that a later call of the transaction was told
/// it holds: what another was granted is not this call's any more. They go when that is rolled
/// back, or with the transaction's end. May take a while: not to be called under a lock. `pairs` is
/// how many comparisons are left to the operation, over all of its grants.
pub(in crate::service) fn keep_relied_on(grant: &mut Grant, later: &[Relied], pairs: &mut usize) {
    for relied in later.iter().filter(|relied| relied.table == grant.bind.id) {
        let cost = grant.owner.changes.len().saturating_mul(relied.items.len());
        let too_many = cost > *pairs;
        *pairs = pairs.saturating_sub(cost);
        grant.owner.changes.retain(|change| {
            !too_many && !relied.items.iter().any(|item| item.overlaps(&change.item))
        });
    }
}

/// The result of a call that was undone before it was decided.
pub(in crate::service) fn rolled_back() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the call was undone, or its transaction ended, before it was decided",
    )
}
