//! Sessions: how long a silent client's locks are kept, and exactly-once operations over a connection that may break.
//!
//! # Implementation details
//! A session's transactions are numbered by its client, and the operations of each transaction too (T2). An operation is
//! **decided** when its answer is known; decided answers are kept until the client acknowledges them, so that a replay is answered and
//! not done again. Operations of one transaction are decided in the order of their numbers, one at a time; later ones queue. `Undo` and `End`
//! act at once on the call that is being decided (they cancel its wait) and then take their turn. The turn of an `End` comes at once,
//! also past numbers that never arrived: whatever they were, they can no longer matter.
//!
//! A number that is refused leaves no hole behind which later ones would wait for ever: it is decided, in its turn, with the refusal.
//!
//! One mutex per session guards all of that. It is never held across an await, nor while an operation runs: the runner takes the
//! next operation under it, runs it without it, and files the answer under it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::clock::{Time, hi};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{SessionId, TableId};
use crate::key::LockItem;
use crate::service::txn::{TxnRecord, timer};
use crate::service::{Answer, Granted, Inner, LockService, Operation, Phase, Promise, TxnOp};
use crate::sync::Mutex;
use crate::table::Grant;

/// Most callers that wait for one operation's answer: its first sender, and those who sent it again.
const JOINED_MAX: usize = 16;

/// A client's session with this service (P1). A cheap handle.
#[derive(Debug, Clone)]
pub struct Session {
    pub(crate) record: Arc<SessionRecord>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct SessionRecord {
    id: SessionId,
    client: String,
    renewals: Arc<Renewals>,
    state: Mutex<State>,
    /// Why the session is lost, once it is.
    lost: watch::Sender<Option<Error>>,
    /// The number of the current attachment (T3).
    attached: watch::Sender<u64>,
}

/// When a session was last renewed. Shared with its transactions, whose grants rest on it.
#[derive(Debug)]
pub(crate) struct Renewals {
    pub(crate) ttl: Duration,
    /// Nanoseconds of the clock. Written under the session's mutex; grants read it without, and an older value only makes their
    /// promise shorter, so `Relaxed` suffices on both sides.
    renewed: AtomicU64,
}

impl Renewals {
    fn new(ttl: Duration, now: Time) -> Self {
        let renewals = Self { ttl, renewed: AtomicU64::new(0) };
        renewals.renew(now);
        renewals
    }

    fn renew(&self, now: Time) {
        self.renewed.store(u64::try_from(now.since_origin().as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn renewed(&self) -> Time {
        Time::from_origin(Duration::from_nanos(self.renewed.load(Relaxed)))
    }

    /// What is left of the session's promise, raw.
    pub(crate) fn remaining(&self, now: Time) -> Duration {
        (self.renewed() + self.ttl).remaining(now)
    }

    /// The client's locks are kept until then: hi(ttl) after the last answer to a renewal.
    fn expires(&self) -> Time {
        self.renewed() + hi(self.ttl)
    }
}

#[derive(Debug)]
struct State {
    open: bool,
    txns: BTreeMap<u64, Slot>,
    /// The highest transaction number that was ever used: a lower one that is not in `txns` has ended (T3).
    highest: u64,
}

/// One transaction of a session.
#[derive(Debug)]
struct Slot {
    txn: Arc<TxnRecord>,
    /// The sequence that is decided next.
    next: u64,
    /// Arrived but not decided. The first may be running.
    queue: BTreeMap<u64, Queued>,
    /// Answers that the client has not acknowledged.
    decided: BTreeMap<u64, Result<Answer>>,
    /// Sequences that were taken back, in whatever state they were. Forgotten once they are decided and acknowledged.
    undone: BTreeSet<u64>,
    /// What unacknowledged grants name beyond what they added: it was held already, perhaps by an earlier call that may yet be taken back.
    relied_on: BTreeMap<u64, Relied>,
    running: bool,
    /// The running call was cancelled by [`Session::cancel`]: no `Undo` will come to take its grant back.
    cancelled: bool,
    /// Ends the wait of the running call.
    cancel: Option<oneshot::Sender<()>>,
    /// An `End` has arrived: locks before it are refused.
    ending: bool,
    /// A number was refused for which there was no place left: what comes after it would wait for ever, so nothing but an `End` is taken in.
    broken: bool,
}

/// The items of a call that was granted, and their table.
#[derive(Debug, Clone)]
struct Relied {
    table: TableId,
    items: Arc<[LockItem]>,
}

#[derive(Debug)]
struct Queued {
    operation: Option<Operation>,
    waiting: Vec<oneshot::Sender<Result<Answer>>>,
}

/// Says when another connection has taken the session over.
#[derive(Debug)]
pub struct Attachment {
    number: u64,
    attached: watch::Receiver<u64>,
}

impl Attachment {
    /// Resolves when a later attachment has replaced this one: its frames are to be dropped (T3). Cancel safe.
    pub async fn replaced(&mut self) {
        let number = self.number;
        // The sender lives in the session; if that is gone, nothing can replace this attachment any more.
        if self.attached.wait_for(|current| *current > number).await.is_err() {
            std::future::pending().await
        }
    }
}

/// The answer to a submitted operation. Dropping it does not cancel the operation: submit an `Undo` for that.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Pending(PendingState);

// Not boxed: an operation that was decided at once is the usual case, and must not cost an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum PendingState {
    Ready(Option<Result<Answer>>),
    Waiting(oneshot::Receiver<Result<Answer>>),
}

impl Pending {
    fn ready(result: Result<Answer>) -> Self {
        Self(PendingState::Ready(Some(result)))
    }
}

impl Future for Pending {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            PendingState::Ready(result) => Poll::Ready(
                result
                    .take()
                    .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "an answer was polled after it was taken"))),
            ),
            PendingState::Waiting(answer) => Pin::new(answer).poll(cx).map(|result| {
                result.unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::SessionLost, "the session ended before the operation"))
                })
            }),
        }
    }
}

impl LockService {
    /// Opens a session whose locks are kept for `ttl` (the default of the settings if `None`) after its last renewal.
    ///
    /// Fails with `InvalidArgument` for a TTL or a name out of bounds, `ShuttingDown` or `LeaseLost` if the service no longer serves,
    /// `ResourceExhausted` at the limit of sessions.
    pub fn open_session(&self, ttl: Option<Duration>, client: &str) -> Result<Session> {
        let inner = &self.inner;
        inner.check_serving()?;
        let ttl = inner.parts.settings.session_ttl(ttl)?;
        if client.len() > 255 || client.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a client's name is at most 255 bytes without control characters",
            ));
        }
        // Random, so that one client cannot use another's session by counting; below 2^53, as all ids; not 0.
        let id = SessionId::new(rand::random_range(1..1 << 53));
        let record = Arc::new(SessionRecord {
            id,
            client: client.to_owned(),
            renewals: Arc::new(Renewals::new(ttl, inner.parts.clock.now())),
            state: Mutex::new(State { open: true, txns: BTreeMap::new(), highest: 0 }),
            lost: watch::Sender::new(None),
            attached: watch::Sender::new(0),
        });
        inner.sessions.insert(id, Arc::clone(&record))?;
        let session = Session { record, inner: Arc::clone(inner) };
        inner.spawn(session.clone().watch_over());
        Ok(session)
    }

    /// The session with this id. Fails with `SessionLost` if there is none, or no longer: stop the protected work.
    pub fn session(&self, id: SessionId) -> Result<Session> {
        match self.inner.sessions.get(&id) {
            Some(record) => Ok(Session { record, inner: Arc::clone(&self.inner) }),
            None => Err(unknown()),
        }
    }
}

fn unknown() -> Error {
    Error::new(
        ErrorKind::SessionLost,
        "the session is unknown here or has lapsed, and its locks are given away: stop the protected work and open a new session",
    )
}

impl Session {
    /// The session's id: unguessable, to be shown to nobody but its client.
    pub fn id(&self) -> SessionId {
        self.record.id
    }

    /// How long a silent client's locks are kept.
    pub fn ttl(&self) -> Duration {
        self.record.renewals.ttl
    }

    /// Renews the session. The answer's promise counts from before the request was sent (P2).
    ///
    /// Fails with `SessionLost`, `LeaseLost` or `ShuttingDown`: stop the protected work.
    pub fn renew(&self) -> Result<Promise> {
        // A stopping service renews for those who are putting their work away; only its lease can end that.
        let state = self.record.state.lock();
        let now = self.inner.parts.clock.now();
        if !state.open || now >= self.record.renewals.expires() {
            return Err(self.why_lost());
        }
        let lease = self.inner.lease_remaining(now)?;
        self.record.renewals.renew(now);
        Ok(Promise { guard: lease.min(self.record.renewals.ttl) })
    }

    /// Makes the caller the session's one current connection (T3); earlier attachments learn that they were replaced.
    pub fn attach(&self) -> Attachment {
        let mut number = 0;
        self.record.attached.send_modify(|current| {
            *current += 1;
            number = *current;
        });
        Attachment { number, attached: self.record.attached.subscribe() }
    }

    /// The client has the answers of transaction `number` up to `sequence`.
    pub fn ack(&self, number: u64, sequence: u64) {
        let mut state = self.record.state.lock();
        if let Some(slot) = state.txns.get_mut(&number) {
            slot.acknowledge(sequence);
        }
    }

    /// Cancels a lock operation that waits, for its locks or for its turn, as if it had been taken back; does nothing to one that is
    /// decided, or has not arrived.
    pub fn cancel(&self, number: u64, sequence: u64) {
        let mut state = self.record.state.lock();
        if let Some(slot) = state.txns.get_mut(&number)
            && slot.queue.contains_key(&sequence)
        {
            slot.cancelled |= slot.running && slot.next == sequence;
            slot.undo(sequence);
        }
    }

    /// Takes an operation in. Its place in its transaction's order is given by its sequence (T2); a sequence that was seen before is answered
    /// with the answer of the first time, or joins it while it is being decided.
    ///
    /// # Errors
    /// Those of [`Txn::lock`](super::Txn::lock), and `SessionLost`; `TxnNotFound` for an operation of a transaction that has ended
    /// (but unlocks, ends and undos of such a one succeed); `ResourceExhausted` beyond the bounds on transactions and operations.
    ///
    /// # Cancel safety
    /// The operation goes on if the answer is dropped; take a lock back with [`Operation::Undo`].
    pub fn submit(&self, op: TxnOp, operation: Operation) -> Pending {
        let number = op.number;
        let (pending, run) = match self.enqueue(op, operation) {
            Ok(taken) => taken,
            Err(e) => return Pending::ready(Err(e)),
        };
        if run {
            // Most operations are decided without waiting: no task is made for them.
            let mut runner: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(self.clone().run(number));
            if runner.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.inner.spawn(runner);
            }
        }
        pending
    }

    fn enqueue(&self, op: TxnOp, operation: Operation) -> Result<(Pending, bool)> {
        let ended_is_fine = !matches!(operation, Operation::Lock(_) | Operation::Refuse(_));
        let mut state = self.record.state.lock();
        if !state.open {
            return Err(self.why_lost());
        }
        if op.number == 0 || op.sequence == 0 {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "transactions and their operations are numbered from 1",
            ));
        }
        if op.number > state.highest {
            if matches!(operation, Operation::End { .. }) {
                // Nothing was ever locked.
                state.highest = op.number;
                return Ok((Pending::ready(Ok(Answer::Done)), false));
            }
            if op.sequence != 1 {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "a transaction begins with the operation of sequence 1",
                )
                .with("number", op.number)
                .with("sequence", op.sequence));
            }
            // The number is spent, also if the transaction cannot begin: what follows is told that it has ended.
            state.highest = op.number;
            if state.txns.len() >= self.inner.parts.settings.txns_per_session_max {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    "too many transactions in one session: end some first",
                )
                .with("limit", self.inner.parts.settings.txns_per_session_max));
            }
            let txn = self.inner.begin(&op.options, Some(Arc::clone(&self.record.renewals)), &self.record.client)?;
            state.txns.insert(op.number, Slot::new(txn));
        }
        let Some(slot) = state.txns.get_mut(&op.number) else {
            // T3: below the floor and not there: it has ended, and nothing may bring it back.
            return if ended_is_fine {
                Ok((Pending::ready(Ok(Answer::Done)), false))
            } else {
                Err(Error::new(ErrorKind::TxnNotFound, "the transaction has ended: start a new one")
                    .with("number", op.number))
            };
        };
        slot.acknowledge(op.acked);
        if op.sequence < slot.next {
            // A replay of something decided.
            return match slot.decided.get(&op.sequence) {
                Some(answer) if slot.undone.contains(&op.sequence) => {
                    Ok((Pending::ready(answer.clone().and(Err(taken_back()))), false))
                }
                Some(answer) => Ok((Pending::ready(self.again(answer)), false)),
                None if slot.ending => Err(taken_back()),
                None => Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "this operation was answered, and its answer acknowledged",
                )
                .with("sequence", op.sequence)),
            };
        }
        let (sender, receiver) = oneshot::channel();
        let pending = Pending(PendingState::Waiting(receiver));
        if let Some(queued) = slot.queue.get_mut(&op.sequence) {
            // A replay of something that is still to be decided joins it. Those whose connection is gone do not count.
            queued.waiting.retain(|sender| !sender.is_closed());
            if queued.waiting.len() >= JOINED_MAX {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    "this operation is asked for too many times at once: wait for its answer",
                ));
            }
            queued.waiting.push(sender);
            return Ok((pending, false));
        }
        let operation = slot.admit(op.sequence, operation, self.inner.parts.settings.ops_per_txn_max)?;
        match &operation {
            Operation::Undo { sequence } => slot.undo(*sequence),
            Operation::End { .. } => slot.begin_to_end(),
            Operation::Lock(_) | Operation::Unlock { .. } | Operation::Refuse(_) => {}
        }
        slot.queue.insert(op.sequence, Queued { operation: Some(operation), waiting: vec![sender] });
        let run = !slot.running && (slot.ending || slot.queue.contains_key(&slot.next));
        slot.running |= run;
        Ok((pending, run))
    }

    /// The answer to a replay. Its promise counts from the replay's send (P2), so the promise of the first answer would be too long.
    fn again(&self, answer: &Result<Answer>) -> Result<Answer> {
        match answer.clone()? {
            Answer::Locked(granted) => {
                let promise = self.inner.promise(Some(&self.record.renewals))?;
                Ok(Answer::Locked(Granted { promise, ..granted }))
            }
            done => Ok(done),
        }
    }

    /// Decides the operations of one transaction, in order, until none is ready.
    async fn run(self, number: u64) {
        while let Some((txn, sequence, step)) = self.take_next(number) {
            let ends = matches!(step, Step::End(_));
            let mut relied = None;
            let result = match step {
                Step::Refuse(e) => Err(e),
                Step::Lock { spec, items, cancelled } => {
                    let result = tokio::select! {
                        biased;
                        result = self.inner.lock(&txn, spec) => result,
                        // Dropping the call takes its claim away, or hands on a grant that had just been made.
                        _ = cancelled => Err(taken_back()),
                    };
                    if let (Ok(granted), Some(items)) = (&result, items)
                        && granted.grant.changes.len() < items.len()
                    {
                        relied = Some(Relied { table: granted.grant.bind.id, items });
                    }
                    result.map(Answer::Locked)
                }
                Step::Unlock(table, items) => {
                    self.inner.unlock(&txn, &table, &items);
                    Ok(Answer::Done)
                }
                Step::TakeBack(None, _) => Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "the operation to take back was acknowledged, or never was: release its keys instead",
                )),
                Step::TakeBack(Some(answer), later) => {
                    if let Ok(Answer::Locked(mut granted)) = answer {
                        keep_relied_on(&mut granted.grant, &later);
                        self.inner.engine.take_back(txn.id, granted.grant.bind.id, &granted.grant);
                    }
                    Ok(Answer::Done)
                }
                Step::End(commit_ts) => {
                    self.inner.end(&txn, commit_ts);
                    Ok(Answer::Done)
                }
            };
            if !self.file(number, sequence, result, relied, ends) {
                return;
            }
        }
    }

    fn take_next(&self, number: u64) -> Option<(Arc<TxnRecord>, u64, Step)> {
        let mut state = self.record.state.lock();
        let slot = state.txns.get_mut(&number)?;
        // What has not arrived before an `End` can no longer matter: it is passed over.
        let sequence = if slot.ending { slot.queue.keys().next().copied() } else { Some(slot.next) };
        let Some((sequence, queued)) = sequence.and_then(|at| Some((at, slot.queue.get_mut(&at)?))) else {
            slot.running = false;
            return None;
        };
        slot.next = sequence;
        let step = match queued.operation.take() {
            // Cannot be: an operation is taken once, and then filed.
            None => Step::Refuse(Error::new(ErrorKind::Internal, "an operation was run twice")),
            Some(Operation::Lock(_)) if slot.ending || slot.undone.contains(&sequence) => Step::Refuse(taken_back()),
            Some(Operation::Lock(spec)) => {
                let (cancel, cancelled) = oneshot::channel();
                slot.cancel = Some(cancel);
                // Without an earlier grant that can still be taken back, which is the usual case, there is nothing to remember.
                let earlier = slot.decided.values().any(|answer| matches!(answer, Ok(Answer::Locked(_))));
                let items = earlier.then(|| Arc::from(spec.items.as_slice()));
                Step::Lock { spec, items, cancelled }
            }
            Some(Operation::Unlock { table, items }) => Step::Unlock(table, items),
            Some(Operation::End { commit_ts }) => Step::End(commit_ts),
            Some(Operation::Refuse(why)) => Step::Refuse(why),
            Some(Operation::Undo { sequence }) => {
                let later = slot.relied_on.range(sequence + 1..).filter(|(at, _)| !slot.undone.contains(at));
                Step::TakeBack(slot.decided.get(&sequence).cloned(), later.map(|(_, relied)| relied.clone()).collect())
            }
        };
        Some((Arc::clone(&slot.txn), sequence, step))
    }

    /// Files an answer. False if the transaction is over.
    fn file(&self, number: u64, sequence: u64, mut result: Result<Answer>, relied: Option<Relied>, ends: bool) -> bool {
        let mut state = self.record.state.lock();
        let Some(slot) = state.txns.get_mut(&number) else { return false };
        let mut given_back = None;
        if std::mem::take(&mut slot.cancelled)
            && let Ok(Answer::Locked(granted)) = &result
        {
            // It was cancelled when the grant had been made but was not filed yet.
            given_back = Some(granted.clone());
            result = Err(taken_back());
        } else if let Some(relied) = relied {
            slot.relied_on.insert(sequence, relied);
        }
        // The call is decided: its canceller has nothing to cancel. (A canceller that was used before the call was polled to its
        // end left it to the select above; the answer then says so.)
        slot.cancel = None;
        let waiting = slot.queue.remove(&sequence).map(|queued| queued.waiting).unwrap_or_default();
        slot.next = sequence + 1;
        slot.decided.insert(sequence, result.clone());
        // Replays of an ended transaction are answered by the floor.
        let over = if ends { state.txns.remove(&number) } else { None };
        drop(state);
        if let Some(granted) = given_back {
            self.inner.engine.take_back(granted.txn, granted.grant.bind.id, &granted.grant);
        }
        for sender in waiting {
            // A connection that is gone will ask again.
            let _ = sender.send(result.clone());
        }
        if let Some(slot) = over {
            for sender in slot.queue.into_values().flat_map(|queued| queued.waiting) {
                let _ =
                    sender.send(Err(Error::new(ErrorKind::TxnNotFound, "the transaction has ended: start a new one")));
            }
        }
        !ends
    }

    /// Gives the session up: its client has stopped all protected work (P5). Ends its transactions; idempotent.
    pub async fn close(&self) {
        self.finish(Error::new(ErrorKind::SessionLost, "the session was closed"));
    }

    /// Resolves when the session is lost or closed, with the reason. Cancel safe.
    pub async fn lost(&self) -> Error {
        let mut lost = self.record.lost.subscribe();
        match lost.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            _ => unknown(),
        }
    }

    /// Resolves when the service begins to shut down, with the time that it gives its sessions to close. Cancel safe.
    pub async fn stopping(&self) -> Duration {
        self.inner.stopping().await
    }

    fn why_lost(&self) -> Error {
        self.record.lost.borrow().clone().unwrap_or_else(unknown)
    }

    /// Marks the session lost, then lets go of what it held. Only the first call does anything.
    fn finish(&self, why: Error) {
        let slots = {
            let mut state = self.record.state.lock();
            if !std::mem::replace(&mut state.open, false) {
                return;
            }
            std::mem::take(&mut state.txns)
        };
        self.record.lost.send_replace(Some(why.clone()));
        // Cancels running calls (their cancellers are dropped) and answers queued ones.
        let mut txns = Vec::new();
        for slot in slots.into_values() {
            txns.push(slot.txn);
            for sender in slot.queue.into_values().flat_map(|queued| queued.waiting) {
                let _ = sender.send(Err(why.clone()));
            }
        }
        self.inner.abandon(txns);
        self.inner.sessions.remove(&self.record.id);
        self.inner.departed.notify_waiters();
    }

    /// Ends the session when its time is over, or with the service's lease.
    async fn watch_over(self) {
        let mut phase = self.inner.phase.subscribe();
        loop {
            let now = self.inner.parts.clock.now();
            let expires = self.record.renewals.expires();
            if now >= expires {
                tracing::info!(client = %self.record.client, ttl = ?self.record.renewals.ttl, "session lapsed: its client was silent");
                self.finish(Error::new(
                    ErrorKind::SessionLost,
                    "the session was not renewed in time and its locks are given away: stop the protected work and open a new session",
                ));
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(timer(expires, now)) => {}
                _ = self.lost() => return,
                sealed = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => {
                    let why = match sealed.as_deref() {
                        Ok(Phase::Sealed(why)) => why.clone(),
                        _ => unknown(),
                    };
                    self.finish(why);
                    return;
                }
            }
        }
    }
}

#[allow(
    clippy::large_enum_variant,
    reason = "moved once and never kept; a lock is the usual step, and must not cost an allocation"
)]
enum Step {
    Refuse(Error),
    Lock {
        spec: crate::service::LockSpec,
        /// Its items once more, if the call may rely on what an earlier one added.
        items: Option<Arc<[LockItem]>>,
        cancelled: oneshot::Receiver<()>,
    },
    Unlock(crate::id::TableRef, Vec<LockItem>),
    /// The answer of the call that is taken back, and what later calls rely on.
    TakeBack(Option<Result<Answer>>, Vec<Relied>),
    End(Option<u64>),
}

impl Slot {
    fn new(txn: Arc<TxnRecord>) -> Self {
        Self {
            txn,
            next: 1,
            queue: BTreeMap::new(),
            decided: BTreeMap::new(),
            undone: BTreeSet::new(),
            relied_on: BTreeMap::new(),
            running: false,
            cancelled: false,
            cancel: None,
            ending: false,
            broken: false,
        }
    }

    /// Bounds what is kept of the transaction. An operation that finds no room takes its place all the same and is refused in its turn,
    /// else what follows would wait for it for ever (T2). `Undo`s have as much room again, and an `End` is always taken in: it makes room.
    fn admit(&mut self, sequence: u64, operation: Operation, most: usize) -> Result<Operation> {
        let kept = self.queue.len() + self.decided.len();
        let exhausted = || {
            Error::new(
                ErrorKind::ResourceExhausted,
                "too many operations of one transaction are queued or unacknowledged: wait for answers and acknowledge them",
            )
            .with("limit", most)
        };
        match operation {
            Operation::End { .. } if !self.ending => Ok(operation),
            _ if self.broken || kept >= most.saturating_mul(2) => {
                self.broken = true;
                Err(exhausted())
            }
            Operation::Undo { sequence: undone } if undone >= sequence => Ok(Operation::Refuse(Error::new(
                ErrorKind::InvalidArgument,
                "only an earlier operation of the transaction can be taken back",
            ))),
            Operation::Undo { .. } => Ok(operation),
            _ if kept >= most => Ok(Operation::Refuse(exhausted())),
            _ => Ok(operation),
        }
    }

    /// The client has the answers up to `acked`: nothing of them will be asked for again.
    fn acknowledge(&mut self, acked: u64) {
        self.decided.retain(|decided, _| *decided > acked);
        self.relied_on.retain(|decided, _| *decided > acked);
        let next = self.next;
        self.undone.retain(|undone| *undone > acked || *undone >= next);
    }

    /// T2: closes `sequence`, and cancels it if it is being decided.
    fn undo(&mut self, sequence: u64) {
        self.undone.insert(sequence);
        if self.running && self.next == sequence {
            self.cancel_running();
        }
    }

    fn begin_to_end(&mut self) {
        self.ending = true;
        self.cancel_running();
    }

    fn cancel_running(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            // The call may have been decided at this very moment; then its answer stands until the Undo takes its turn.
            let _ = cancel.send(());
        }
    }
}

/// Comparing more pairs than this is not worth the time: then all of it is kept.
const RELIED_PAIRS_MAX: usize = 1 << 20;

/// Leaves out of what is to be taken back the items that a later call of the transaction was told it holds (T2: only what the call
/// added is taken back, and what another was granted is not this call's any more). They go with the transaction's end.
fn keep_relied_on(grant: &mut Grant, later: &[Relied]) {
    for relied in later.iter().filter(|relied| relied.table == grant.bind.id) {
        let too_many = grant.changes.len().saturating_mul(relied.items.len()) > RELIED_PAIRS_MAX;
        grant.changes.retain(|change| !too_many && !relied.items.iter().any(|item| item.overlaps(&change.item)));
    }
}

fn taken_back() -> Error {
    Error::new(ErrorKind::Cancelled, "the call was taken back, or its transaction ended, before it was decided")
}
