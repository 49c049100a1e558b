//! Sessions: how long a silent client's locks are kept, and exactly-once operations over a
//! connection that may break.
//!
//! # Implementation details
//! A session's transactions are numbered by its client, and the operations of each transaction too
//! (T2): their order, and how they take effect once, is the business of each transaction's
//! [`queue`](crate::service::session::queue).
//!
//! One mutex per session guards all of that. It is never held across an await, nor while an
//! operation runs: the runner takes the next operation under it, runs it without it, and files the
//! answer under it.

pub(in crate::service) mod pending;
pub(in crate::service) mod queue;
pub(in crate::service) mod quota;
pub(in crate::service) mod registry;
pub(in crate::service) mod weight;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{Clock, Time, hi};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{SessionId, TableRef, TxnId};
use crate::service::session::pending::Pending;
use crate::service::session::queue::{
    Filed, NumberedBy, Relied, Room, Step, Taken, Timer, TxnQueue, keep_relied_on, rolled_back,
};
use crate::service::session::quota::{Charge, Quota};
use crate::service::txn::waits::{WaitNotices, Waits};
use crate::service::txn::{TxnRecord, timer};
use crate::service::{
    Answer, Granted, LockService, LockSpec, Operation, Phase, Promise, ServiceInner, TxnOp,
    TxnOptions,
};
use crate::sync::Mutex;

/// Longest text about what a client left running.
pub const STILL_RUNNING_BYTES_MAX: usize = 1_024;

/// A client's session with this service (P1). A cheap handle.
#[derive(Debug, Clone)]
pub struct Session {
    pub(crate) record: Arc<SessionRecord>,
    inner: Arc<ServiceInner>,
}

#[derive(Debug)]
pub(crate) struct SessionRecord {
    id: SessionId,
    client: String,
    renewals: Arc<Renewals>,
    state: Mutex<SessionState>,
    /// Why the session is lost, once it is.
    lost: watch::Sender<Option<Error>>,
    /// The number of the current attachment (T3).
    attached: watch::Sender<u64>,
    /// Its lock calls that wait.
    waits: Waits,
}

impl SessionRecord {
    pub(in crate::service) fn waits(&self) -> &Waits {
        &self.waits
    }
}

/// A session's promise (P1): when it was last renewed, and whether it is over. Shared with its
/// transactions, whose grants rest on it.
///
/// A renewal, a lapse and a grant are each decided under its mutex, by a reading of the clock that
/// is made under it. So a renewal that is acknowledged counts for whoever looks for a lapse, and
/// nothing is renewed or granted once the lapse was decided.
#[derive(Debug)]
pub(crate) struct Renewals {
    pub(crate) ttl: Duration,
    kept: Mutex<Kept>,
    /// What its client left running when it went.
    still_running: OnceLock<String>,
}

#[derive(Debug)]
struct Kept {
    renewed: Time,
    /// It lapsed, or was given up. That is for ever.
    over: bool,
}

impl Renewals {
    fn new(ttl: Duration, now: Time) -> Self {
        Self {
            ttl,
            kept: Mutex::new(Kept { renewed: now, over: false }),
            still_running: OnceLock::new(),
        }
    }

    /// What its client left running when it went; empty unless it said so.
    pub(crate) fn still_running(&self) -> &str {
        self.still_running.get().map_or("", String::as_str)
    }

    /// Renews the promise; false if it is over.
    fn renew(&self, clock: &dyn Clock) -> bool {
        self.decide(clock, |kept, now| kept.renewed = now).is_some()
    }

    /// What is left of the promise, raw and not zero; `None` if nothing is.
    pub(crate) fn remaining(&self, clock: &dyn Clock) -> Option<Duration> {
        let left = self.decide(clock, |kept, now| (kept.renewed + self.ttl).remaining(now));
        left.filter(|left| !left.is_zero())
    }

    /// When the promise lapses unless it is renewed, and the reading by which it has not yet;
    /// `None` if it is over.
    fn lapses(&self, clock: &dyn Clock) -> Option<(Time, Time)> {
        self.decide(clock, |kept, now| (kept.renewed + hi(self.ttl), now))
    }

    /// Nothing is renewed or granted any more.
    fn end(&self) {
        self.kept.lock().over = true;
    }

    /// Acts on a promise that is not over now. One that has lapsed, hi(ttl) after its last renewal,
    /// is over from here on.
    fn decide<T>(&self, clock: &dyn Clock, act: impl FnOnce(&mut Kept, Time) -> T) -> Option<T> {
        let mut kept = self.kept.lock();
        let now = clock.now();
        kept.over |= now >= kept.renewed + hi(self.ttl);
        (!kept.over).then(|| act(&mut kept, now))
    }
}

#[derive(Debug)]
struct SessionState {
    open: bool,
    txns: BTreeMap<u64, TxnQueue>,
    /// The highest transaction number that was ever used: a lower one that is not in `txns` has
    /// ended (T3).
    highest: u64,
    /// Who numbers the transactions; `None` before the first.
    numbered_by: Option<NumberedBy>,
    /// About how much memory is in use for what `txns` keep.
    kept_bytes: usize,
    /// How many operations of `txns` are queued or being decided.
    ops: usize,
    charge: Charge,
}

impl SessionState {
    /// Lets `change` change the queue of a transaction, if there is it, and counts what is kept. It
    /// is told what all others keep.
    fn with_queue<R>(
        &mut self,
        number: u64,
        change: impl FnOnce(&mut TxnQueue, usize) -> R,
    ) -> Option<R> {
        let queue = self.txns.get_mut(&number)?;
        let others = self.kept_bytes - queue.kept_bytes();
        let other_ops = self.ops - queue.ops_under_way();
        let answer = change(queue, others);
        self.kept_bytes = others + queue.kept_bytes();
        self.ops = other_ops + queue.ops_under_way();
        self.charge.set(self.ops, self.kept_bytes);
        Some(answer)
    }

    fn remove_queue(&mut self, number: u64) -> Option<TxnQueue> {
        let queue = self.txns.remove(&number)?;
        self.kept_bytes -= queue.kept_bytes();
        self.ops -= queue.ops_under_way();
        self.charge.set(self.ops, self.kept_bytes);
        Some(queue)
    }

    /// Fails unless the transactions are numbered by this side, or there was none yet.
    fn number_by(&mut self, by: NumberedBy) -> Result<()> {
        if *self.numbered_by.get_or_insert(by) == by {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidArgument,
            "either the client numbers the transactions of a session or the server does: begin \
                them all in one way",
        ))
    }
}

/// A frame that is counted in memory: see [`Session::hold_frame`].
#[derive(Debug)]
#[must_use = "a frame that is dropped counts no more"]
pub struct HeldFrame<'a> {
    session: &'a Session,
    bytes: usize,
}

impl Drop for HeldFrame<'_> {
    fn drop(&mut self) {
        self.session.record.state.lock().charge.let_go_of(self.bytes);
    }
}

/// Says when another connection has taken the session over.
#[derive(Debug)]
pub struct Attachment {
    number: u64,
    attached: watch::Receiver<u64>,
}

impl Attachment {
    /// Resolves when a later attachment has replaced this one: its frames are to be dropped (T3).
    /// Cancel safe.
    pub async fn replaced(&mut self) {
        let number = self.number;
        // The sender lives in the session; if that is gone, nothing can replace this attachment any
        // more.
        if self.attached.wait_for(|current| *current > number).await.is_err() {
            std::future::pending().await
        }
    }
}

impl LockService {
    /// Opens a session whose locks are kept for `ttl` (the default of the settings if `None`) after
    /// its last renewal.
    ///
    /// Fails with `InvalidArgument` for a TTL or a name out of bounds, `ShuttingDown` or
    /// `LeaseLost` if the service no longer serves, `ResourceExhausted` at the limit of sessions.
    pub fn open_session(&self, ttl: Option<Duration>, client: &str) -> Result<Session> {
        self.open_session_of(None, ttl, client)
    }

    /// As [`open_session`](Self::open_session), for a peer whose sessions together are bounded by
    /// `quota`. Fails with `ResourceExhausted` at its bounds, too.
    pub fn open_session_within(
        &self,
        quota: Arc<Quota>,
        ttl: Option<Duration>,
        client: &str,
    ) -> Result<Session> {
        self.open_session_of(Some(quota), ttl, client)
    }

    fn open_session_of(
        &self,
        quota: Option<Arc<Quota>>,
        ttl: Option<Duration>,
        client: &str,
    ) -> Result<Session> {
        let inner = &self.inner;
        inner.check_serving()?;
        let ttl = inner.parts.settings.session_ttl(ttl)?;
        if client.len() > 255 || client.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a client's name is at most 255 bytes without control characters",
            ));
        }
        let charge = Charge::session(quota, &inner.quota)?;
        // Random, so that one client cannot use another's session by counting; below 2^53, as all
        // ids; not 0.
        let id = SessionId::new(inner.parts.env.random_id());
        let record = Arc::new(SessionRecord {
            id,
            client: client.to_owned(),
            renewals: Arc::new(Renewals::new(ttl, inner.parts.env.now())),
            state: Mutex::new(SessionState {
                open: true,
                txns: BTreeMap::new(),
                highest: 0,
                numbered_by: None,
                kept_bytes: 0,
                ops: 0,
                charge,
            }),
            lost: watch::Sender::new(None),
            attached: watch::Sender::new(0),
            waits: Waits::default(),
        });
        inner.sessions.insert(id, Arc::clone(&record))?;
        let session = Session { record, inner: Arc::clone(inner) };
        inner.spawn(session.clone().watch_over());
        Ok(session)
    }

    /// The session with this id. Fails with `SessionLost` if there is none, or no longer: stop the
    /// protected work.
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
        "the session is unknown here or has lapsed, and its locks are given away: stop the \
            protected work and open a new session",
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
        // A stopping service renews for those who are putting their work away; only its lease can
        // end that.
        let lease = self.inner.lease_remaining()?;
        if !self.record.renewals.renew(&**self.inner.parts.env.clock()) {
            return Err(self.why_lost());
        }
        Ok(Promise { guard: lease.min(self.record.renewals.ttl) })
    }

    /// Counts a frame of about `bytes` in memory among what the session's peer and the node keep,
    /// until the answer is dropped.
    ///
    /// Fails with `ResourceExhausted` if there is no room for it: refuse what it asks for.
    pub fn hold_frame(&self, bytes: usize) -> Result<HeldFrame<'_>> {
        self.record.state.lock().charge.hold(bytes)?;
        Ok(HeldFrame { session: self, bytes })
    }

    /// Makes the caller the session's one current connection (T3); earlier attachments learn that
    /// they were replaced.
    pub fn attach(&self) -> Attachment {
        let mut number = 0;
        self.record.attached.send_modify(|current| {
            *current += 1;
            number = *current;
        });
        Attachment { number, attached: self.record.attached.subscribe() }
    }

    /// Tells of the session's lock calls that wait, those that wait already included: for the one
    /// connection that the session has now. Of two that listen, each is told of some.
    pub fn waits(&self) -> WaitNotices {
        self.record.waits.renew(self.inner.parts.env.now());
        WaitNotices { record: Arc::clone(&self.record), inner: Arc::clone(&self.inner) }
    }

    /// The client has the answers of transaction `number` up to `sequence`.
    pub fn ack(&self, number: u64, sequence: u64) {
        self.record.state.lock().with_queue(number, |queue, _| queue.acknowledge(sequence));
    }

    /// Cancels a lock operation that waits, for its locks or for its turn, as if it had been taken
    /// back; does nothing to one that is decided, or has not arrived.
    pub fn cancel(&self, number: u64, sequence: u64) {
        self.record.state.lock().with_queue(number, |queue, _| queue.cancel(sequence));
    }

    /// Begins a transaction, and gives it its number in the session: for clients whose calls arrive
    /// in no order, as those of several threads. Answers the transaction's id, too.
    ///
    /// # Errors
    /// `InvalidArgument` for a label that is too long, and in a session whose client has numbered
    /// transactions itself; `ResourceExhausted` beyond the bounds on transactions; `SessionLost`,
    /// `LeaseLost`, `ShuttingDown`.
    pub fn begin(&self, options: &TxnOptions) -> Result<(u64, TxnId)> {
        let mut state = self.record.state.lock();
        if !state.open {
            return Err(self.why_lost());
        }
        state.number_by(NumberedBy::Service)?;
        let number = state.highest + 1;
        let id = self.begin_as(&mut state, number, options)?;
        Ok((number, id))
    }

    /// Begins transaction `number`. The number is spent, also if the transaction cannot begin: what
    /// follows is told that it has ended.
    fn begin_as(
        &self,
        state: &mut SessionState,
        number: u64,
        options: &TxnOptions,
    ) -> Result<TxnId> {
        state.highest = number;
        if state.txns.len() >= self.inner.parts.settings.txns_per_session_max {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "too many transactions in one session: end some first",
            )
            .with("limit", self.inner.parts.settings.txns_per_session_max));
        }
        let txn = self.inner.begin(
            options,
            Some(Arc::clone(&self.record.renewals)),
            &self.record.client,
        )?;
        let id = txn.id;
        state.txns.insert(number, TxnQueue::new(txn));
        Ok(id)
    }

    /// Takes an operation in. Its place in its transaction's order is given by its sequence (T2); a
    /// sequence that was seen before is answered with the answer of the first time, or joins it
    /// while it is being decided. One without a sequence (0) gets the next one, in a transaction
    /// where none has one: its answer cannot be asked for again.
    ///
    /// # Errors
    /// Those of [`Txn::lock`](crate::service::Txn::lock), and `SessionLost`; `TxnNotFound` for an
    /// operation of a transaction that has ended (but unlocks, ends and undos of such a one
    /// succeed); `ResourceExhausted` beyond the bounds on transactions and operations.
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
            let mut runner: Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(self.clone().run(number));
            if runner.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.inner.spawn(runner);
            }
        }
        pending
    }

    fn enqueue(&self, op: TxnOp, operation: Operation) -> Result<(Pending, bool)> {
        let ended_is_fine = !matches!(operation, Operation::Lock(_) | Operation::Refuse(_));
        // Before anything is waited for: from here its time-out counts, and now its snapshot is as
        // old as it says.
        let now = self.inner.parts.env.now();
        let mut state = self.record.state.lock();
        if !state.open {
            return Err(self.why_lost());
        }
        if op.number == 0 {
            return Err(Error::new(ErrorKind::InvalidArgument, "transactions are numbered from 1"));
        }
        if op.number > state.highest {
            state.number_by(NumberedBy::Client)?;
            if matches!(operation, Operation::End { .. }) {
                // Nothing was ever locked.
                state.highest = op.number;
                return Ok((Pending::ready(Ok(Answer::DONE)), false));
            }
            if op.sequence != 1 {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "a transaction begins with the operation of sequence 1",
                )
                .with("number", op.number)
                .with("sequence", op.sequence));
            }
            self.begin_as(&mut state, op.number, &op.options)?;
        }
        let settings = &self.inner.parts.settings;
        let exhausted = state.charge.check_room().err();
        let taken: Option<Result<(Taken, u64)>> = state.with_queue(op.number, |queue, others| {
            queue.acknowledge(op.acked);
            let room = Room {
                ops_max: settings.ops_per_txn_max,
                bytes_max: settings.kept_bytes_per_session_max,
                bytes_of_others: others,
                exhausted,
            };
            let sequence = queue.number(op.sequence)?;
            Ok((queue.take_in(sequence, operation, now, room)?, sequence))
        });
        match taken {
            // T3: below the floor and not there: it has ended, and nothing may bring it back.
            None if ended_is_fine => Ok((Pending::ready(Ok(Answer::DONE)), false)),
            None => Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            )
            .with("number", op.number)),
            Some(taken) => Ok(match taken? {
                (Taken::Decided(answer), _) => (Pending::ready(self.again(answer)), false),
                (Taken::Queued { answer, run, behind }, sequence) => {
                    if behind {
                        state.with_queue(op.number, |queue, _| {
                            queue.time(sequence, |spec| self.timer(op.number, sequence, spec, now));
                        });
                    }
                    (Pending::waiting(answer, sequence), run)
                }
            }),
        }
    }

    /// Answers a lock whose time is up before its turn has come.
    fn timer(&self, number: u64, sequence: u64, spec: &LockSpec, now: Time) -> Timer {
        let (deadline, table, timeout) =
            (self.inner.deadline(spec, now), spec.table.clone(), spec.timeout);
        let this = self.clone();
        Timer(self.inner.spawn(async move {
            // Whether the time is up is decided by the clock.
            this.inner.until(deadline, std::future::pending::<()>()).await;
            let error = this.inner.timed_out(&table, timeout);
            let mut state = this.record.state.lock();
            let told = state.with_queue(number, |queue, _| queue.expire(sequence, error.clone()));
            drop(state);
            for sender in told.into_iter().flatten() {
                // A connection that is gone will ask again.
                let _ = sender.send(Err(error.clone()));
            }
        }))
    }

    /// The answer to a replay. Its promise counts from the replay's send (P2), so the promise of
    /// the first answer would be too long.
    fn again(&self, answer: Result<Answer>) -> Result<Answer> {
        match answer? {
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
                Step::Lock { spec, arrived, items, cancelled } => {
                    let table = spec.table.clone();
                    let lock = self.inner.lock(&txn, spec, arrived);
                    let result = tokio::select! {
                        biased;
                        result = self.noting_a_wait((number, sequence), txn.id, table, lock) => result,
                        // Dropping the call takes its claim away, or hands on a grant that had just
                        // been made.
                        _ = cancelled => Err(rolled_back()),
                    };
                    if let (Ok(granted), Some(items)) = (&result, items) {
                        relied = Relied::of(granted, &items);
                    }
                    result.map(Answer::Locked)
                }
                Step::Unlock(table, items, commit_ts) => Ok(Answer::Done {
                    released: self.inner.unlock(&txn, &table, &items, commit_ts),
                }),
                Step::TakeBack(grants) => {
                    for (mut grant, later) in grants {
                        keep_relied_on(&mut grant, &later);
                        self.inner.engine.roll_back(txn.id, grant.bind.id, &grant);
                    }
                    Ok(Answer::DONE)
                }
                Step::Done => Ok(Answer::DONE),
                Step::End(commit_ts) => {
                    Ok(Answer::Done { released: self.inner.end(&txn, commit_ts) })
                }
            };
            if !self.file(number, sequence, result, relied, ends) {
                return;
            }
        }
    }

    /// Runs a lock call, and notes that it waits if it is not decided at once.
    async fn noting_a_wait<T>(
        &self,
        op: (u64, u64),
        txn: TxnId,
        table: TableRef,
        lock: impl Future<Output = T>,
    ) -> T {
        let mut lock = pin!(lock);
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(lock.as_mut().poll(cx))).await {
            return output;
        }
        let _waits = self.record.waits.begin(op, txn, table, self.inner.parts.env.now());
        lock.await
    }

    fn take_next(&self, number: u64) -> Option<(Arc<TxnRecord>, u64, Step)> {
        let mut state = self.record.state.lock();
        let step = state.with_queue(number, |queue, _| {
            let (sequence, step) = queue.step()?;
            Some((Arc::clone(&queue.txn), sequence, step))
        });
        step.flatten()
    }

    /// Files an answer. False if the transaction is over.
    fn file(
        &self,
        number: u64,
        sequence: u64,
        result: Result<Answer>,
        relied: Option<Relied>,
        ends: bool,
    ) -> bool {
        let mut state = self.record.state.lock();
        let filed = state.with_queue(number, |queue, _| queue.file(sequence, result, relied));
        let Some(Filed { result, waiting, given_back }) = filed else { return false };
        // Replays of an ended transaction are answered by the floor.
        let over = if ends { state.remove_queue(number) } else { None };
        drop(state);
        if let Some(granted) = given_back {
            self.inner.engine.roll_back(granted.txn, granted.grant.bind.id, &granted.grant);
        }
        for sender in waiting {
            // A connection that is gone will ask again.
            let _ = sender.send(result.clone());
        }
        for sender in over.into_iter().flat_map(TxnQueue::into_waiting) {
            let _ = sender.send(Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            )));
        }
        !ends
    }

    /// Gives the session up: its client has stopped all protected work (P5). Ends its transactions;
    /// idempotent.
    pub async fn close(&self) {
        self.finish(Error::new(ErrorKind::SessionLost, "the session was closed"));
    }

    /// The client goes while work that the locks protect may still be running: `still_running` says
    /// which, in at most [`STILL_RUNNING_BYTES_MAX`] bytes without control characters. Operators
    /// are told; the first word stays. Nothing is released, ended or renewed: others get the locks
    /// when the session has lapsed (P5).
    ///
    /// # Errors
    /// `InvalidArgument` for a text out of bounds.
    pub fn leave(&self, still_running: &str) -> Result<()> {
        let bad = still_running.len() > STILL_RUNNING_BYTES_MAX
            || still_running.chars().any(char::is_control);
        if bad || still_running.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "say what may still be running, without control characters and not at such length; \
                 or close the session",
            )
            .with("bytes", still_running.len())
            .with("limit", STILL_RUNNING_BYTES_MAX));
        }
        let renewals = &self.record.renewals;
        if renewals.still_running.set(still_running.to_owned()).is_ok() {
            tracing::warn!(
                client = %self.record.client,
                ttl = ?renewals.ttl,
                still_running,
                "a client went without having stopped its work: its locks stay until its session \
                    has lapsed"
            );
        }
        Ok(())
    }

    /// Resolves when the session is lost or closed, with the reason. Cancel safe.
    pub async fn lost(&self) -> Error {
        let mut lost = self.record.lost.subscribe();
        match lost.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            _ => unknown(),
        }
    }

    /// Resolves when the service begins to shut down, with the time that it gives its sessions to
    /// close. Cancel safe.
    pub async fn stopping(&self) -> Duration {
        self.inner.stopping().await
    }

    fn why_lost(&self) -> Error {
        self.record.lost.borrow().clone().unwrap_or_else(unknown)
    }

    /// Marks the session lost, then lets go of what it held. Only the first call does anything, and
    /// answers true.
    fn finish(&self, why: Error) -> bool {
        let queues = {
            let mut state = self.record.state.lock();
            if !std::mem::replace(&mut state.open, false) {
                return false;
            }
            self.record.renewals.end();
            (state.kept_bytes, state.ops) = (0, 0);
            state.charge = Charge::default();
            std::mem::take(&mut state.txns)
        };
        self.record.lost.send_replace(Some(why.clone()));
        // Cancels running calls (their cancellers are dropped) and answers queued ones.
        let mut txns = Vec::new();
        for queue in queues.into_values() {
            txns.push(Arc::clone(&queue.txn));
            for sender in queue.into_waiting() {
                let _ = sender.send(Err(why.clone()));
            }
        }
        self.inner.abandon(txns);
        self.inner.sessions.remove(&self.record.id);
        self.inner.departed.notify_waiters();
        true
    }

    /// Ends the session when its time is over, or with the service's lease.
    async fn watch_over(self) {
        let mut phase = self.inner.phase.subscribe();
        loop {
            let Some((lapses, now)) = self.record.renewals.lapses(&**self.inner.parts.env.clock())
            else {
                let why = Error::new(
                    ErrorKind::SessionLost,
                    "the session was not renewed in time and its locks are given away: stop the \
                        protected work and open a new session",
                );
                if self.finish(why) {
                    tracing::info!(client = %self.record.client, ttl = ?self.record.renewals.ttl, "session lapsed: its client was silent");
                }
                return;
            };
            tokio::select! {
                () = self.inner.parts.env.sleep(timer(lapses, now)) => {}
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
