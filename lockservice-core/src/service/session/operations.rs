//! The way of an operation of a session: taken in, run in its turn, its result filed.
//!
//! 1. [`Session::submit`] takes it in (`take_in`). If its turn has come, and no other call runs the
//!    queue of its transaction, this call decides it at once, without a mutex, files the result
//!    (`file`), and returns it: it passes no queue and no channel.
//! 2. If it cannot be decided at once, it waits (`begin_wait`; `begin_due` and `spawn` in
//!    [`wait`](super::wait)): a task is made for it, which goes on with the queue.
//! 3. If its turn has not come it is queued. The call that runs the queue takes the next operation
//!    that is due, decides it, and files the result, until none is due (`decide_due`), or one has
//!    to wait: then as step 2.
//! 4. `file` sends the result to all callers that repeated the operation meanwhile.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Sequence, TxnNumber};
use crate::key::LockItem;
use crate::service::session::Session;
use crate::service::session::due::{Begun, Due, Outcome, TakenIn};
use crate::service::session::loss::Loss;
use crate::service::session::pending::Pending;
use crate::service::session::queue::{
    Filed, NumberedBy, RELIED_PAIRS_MAX, Relied, Room, Step, Taken, Timer, keep_relied_on,
};
use crate::service::session::state::{SessionState, Stage};
use crate::service::session::weight;
use crate::service::txn::TxnRecord;
use crate::service::{Granted, LockSpec, OpResponse, Operation, TxnOp};

impl Session {
    /// Accepts an operation. Its sequence is its place in the order of its transaction (T2). A
    /// repeated sequence gets the response of the first time, or joins it while it is being
    /// decided. An operation without a sequence (0) gets the next one, in a transaction where none
    /// has one: its response cannot be repeated.
    ///
    /// # Errors
    /// Those of [`Txn::lock`](crate::service::Txn::lock), and `SessionLost`; `TxnKilled` for a lock
    /// of a transaction that was ended alone (its unlocks and its end succeed); `TxnNotFound` for
    /// an operation of a transaction that has ended (but unlocks, ends and cancels of such a one
    /// succeed); `ResourceExhausted` beyond the bounds on transactions and operations.
    ///
    /// # Cancel safety
    /// The operation goes on if the returned value is dropped. [`Operation::Cancel`] rolls a lock
    /// back.
    pub fn submit(&self, op: TxnOp, operation: Operation) -> Pending {
        self.submit_as(op, operation, false)
    }

    /// Like [`submit`](Self::submit), for an unlock or an end whose client needs no response if it
    /// succeeds (T2). Its response is then not kept. A repetition must be quiet too: it succeeds.
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit).
    ///
    /// # Cancel safety
    /// As for [`submit`](Self::submit).
    pub fn submit_quiet(&self, op: TxnOp, operation: Operation) -> Pending {
        self.submit_as(op, operation, true)
    }

    fn submit_as(&self, op: TxnOp, operation: Operation, quiet: bool) -> Pending {
        let number = op.number;
        match self.take_in(op, operation, quiet) {
            Ok(TakenIn::Known(response)) => Pending::ready(response),
            Ok(TakenIn::Due(due)) => self.record.span.in_scope(|| self.decide_now(number, due)),
            Ok(TakenIn::Queued { pending, run }) => {
                if run {
                    self.record.span.in_scope(|| self.decide_due(number));
                }
                pending
            }
            Err(e) => Pending::ready(Err(e)),
        }
    }

    fn take_in(&self, op: TxnOp, mut operation: Operation, quiet: bool) -> Result<TakenIn> {
        if let Operation::Lock(spec) = &mut operation
            && self.record.claims_from.is_none()
        {
            // Its word: nobody who was not here before the restart has waited.
            spec.waited = Duration::ZERO;
        }
        let ended_is_fine =
            !matches!(operation, Operation::Lock(_) | Operation::Savepoint | Operation::Refuse(_));
        // Before anything is waited for: from here its time-out counts, and now its snapshot is as
        // old as it says.
        let now = self.inner.parts.env.now();
        let mut state = self.record.state.lock();
        if state.stage != Stage::Open {
            return Err(self.why_lost());
        }
        if op.number == TxnNumber::default() {
            return Err(Error::new(ErrorKind::InvalidArgument, "transactions are numbered from 1"));
        }
        let is_new = op.number > state.highest
            || planted!(ReplayTakenTwice)
                && matches!(operation, Operation::Lock(_))
                && state.with_queue(op.number, |_, _| ()).is_none();
        if is_new && !self.begin_with(&mut state, &op, &operation)? {
            return Ok(TakenIn::Known(Ok(OpResponse::DONE)));
        }
        let settings = &self.inner.parts.settings;
        let exhausted = state.charge.check_room().err();
        let taken: Option<Result<(Taken, Sequence, Arc<TxnRecord>)>> =
            state.with_queue(op.number, |queue, others| {
                queue.acknowledge(op.acked);
                self.inner.note_call(&queue.txn, || now);
                let room = Room {
                    ops_max: settings.ops_per_txn_max,
                    bytes_max: settings.kept_bytes_per_session_max,
                    bytes_of_others: others,
                    exhausted,
                };
                let sequence = queue.number(op.sequence)?;
                let taken = queue.take_in(sequence, operation, now, room, quiet)?;
                Ok((taken, sequence, Arc::clone(&queue.txn)))
            });
        match taken {
            // T3: below the floor and not there: it has ended, and nothing may bring it back.
            None if ended_is_fine => Ok(TakenIn::Known(Ok(OpResponse::DONE))),
            None => Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            )
            .with("number", op.number)),
            Some(taken) => Ok(match taken? {
                (Taken::Decided(response), ..) => TakenIn::Known(self.again(response)),
                (Taken::Due(step), sequence, txn) => TakenIn::Due(Due { txn, sequence, step }),
                (Taken::Queued { response, run, behind }, sequence, _) => {
                    if behind {
                        state.with_queue(op.number, |queue, _| {
                            queue.time(sequence, |spec| self.timer(op.number, sequence, spec, now));
                        });
                    }
                    TakenIn::Queued { pending: Pending::waiting(response, sequence), run }
                }
            }),
        }
    }

    /// Begins the transaction of its first operation. Returns false for an `End`: nothing was ever
    /// locked, and nothing is left to do.
    fn begin_with(
        &self,
        state: &mut SessionState,
        op: &TxnOp,
        operation: &Operation,
    ) -> Result<bool> {
        state.number_by(NumberedBy::Client)?;
        if matches!(operation, Operation::End { .. }) {
            state.highest = op.number;
            return Ok(false);
        }
        if op.sequence != Sequence::FIRST {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a transaction begins with the operation of sequence 1",
            )
            .with("number", op.number)
            .with("sequence", op.sequence));
        }
        self.begin_as(state, op.number, &op.options)?;
        Ok(true)
    }

    /// Refuses a lock whose time is up before its turn has come.
    fn timer(&self, number: TxnNumber, sequence: Sequence, spec: &LockSpec, now: Time) -> Timer {
        let (deadline, table, timeout) =
            (self.inner.deadline(spec, now), spec.table.clone(), spec.timeout);
        let this = self.clone();
        Timer(self.inner.spawn(async move {
            // The clock decides whether the time is up.
            this.inner.until(deadline, std::future::pending::<()>()).await;
            let error = this.inner.timed_out(&table, timeout);
            let mut state = this.record.state.lock();
            let early = state.with_queue(number, |queue, _| queue.expire(sequence, error.clone()));
            drop(state);
            for sender in early.into_iter().flatten() {
                // A connection that is gone will submit it again.
                let _ = sender.send(Err(error.clone()));
            }
        }))
    }

    /// The response to a replay. Its promise counts from the replay's send (P2), so the promise of
    /// the first response would be too long.
    fn again(&self, response: Result<OpResponse>) -> Result<OpResponse> {
        match response? {
            OpResponse::Locked(granted) => {
                let promise = self.inner.promise(Some(&self.record.renewals))?;
                let granted = Granted { promise, ..Arc::unwrap_or_clone(granted) };
                Ok(OpResponse::Locked(Arc::new(granted)))
            }
            done => Ok(done),
        }
    }

    /// Decides an operation that runs since it arrived, and then what is due after it.
    fn decide_now(&self, number: TxnNumber, due: Due) -> Pending {
        if due.must_wait() {
            return self.begin_wait(number, due);
        }
        match self.decide(number, due) {
            Outcome::Decided { response, more } => {
                if more {
                    self.decide_due(number);
                }
                Pending::ready(response)
            }
            Outcome::MustWait(due) => self.begin_wait(number, due),
        }
    }

    /// Decides the operations of one transaction that are due, in order, until one must wait.
    fn decide_due(&self, number: TxnNumber) {
        if let Some(running) = self.advance(number) {
            self.spawn(number, running);
        }
    }

    /// Has an operation wait that runs since it arrived.
    fn begin_wait(&self, number: TxnNumber, due: Due) -> Pending {
        let sequence = due.sequence;
        let (arrived, bytes) = match &due.step {
            Step::Lock { spec, arrived, .. } => (*arrived, weight::of_lock(spec)),
            // A roll-back to a savepoint, which waits for a moment.
            _ => (self.inner.parts.env.now(), weight::OPERATION),
        };
        let response = self
            .record
            .state
            .lock()
            .with_queue(number, |queue, _| queue.begin_wait(arrived, bytes));
        let Some(response) = response else { return Pending::ready(Err(self.why_lost())) };
        match self.begin_due(number, due) {
            Begun::Runs(running) => self.spawn(number, running),
            Begun::Decided { more: true } => self.decide_due(number),
            Begun::Decided { more: false } => {}
        }
        Pending::waiting(response, sequence)
    }

    /// Decides an operation without waiting, and files the result.
    pub(super) fn decide(&self, number: TxnNumber, due: Due) -> Outcome {
        let Due { txn, sequence, step } = due;
        let ends = matches!(step, Step::End(_));
        let result = match step {
            Step::Refuse(e) => Err(e),
            Step::Lock { spec, arrived, items } => {
                return match self.inner.lock_at_once(&txn, &spec, arrived) {
                    Some(granted) => self.file_lock(&txn, (number, sequence), granted, items),
                    None => {
                        let step = Step::Lock { spec, arrived, items };
                        Outcome::MustWait(Due { txn, sequence, step })
                    }
                };
            }
            Step::Done => Ok(OpResponse::DONE),
            Step::Unlock(table, items, commit) => {
                Ok(OpResponse::Done { released: self.inner.unlock(&txn, &table, &items, commit) })
            }
            Step::Downgrade(table, items, mode) => {
                Ok(OpResponse::Done { released: self.inner.downgrade(&txn, &table, &items, mode) })
            }
            Step::Savepoint => {
                self.inner.engine.savepoint(txn.at_engine()).map(OpResponse::Savepoint)
            }
            Step::RollBackTo(savepoint) => {
                let released = self.inner.roll_back_to(&txn, savepoint);
                if released.is_ok() {
                    let mut state = self.record.state.lock();
                    state.with_queue(number, |queue, _| queue.rolled_back_to(savepoint));
                }
                released.map(|released| OpResponse::Done { released })
            }
            Step::RollBack(grants) => {
                let mut pairs = RELIED_PAIRS_MAX;
                for (mut grant, later) in grants {
                    keep_relied_on(&mut grant, &later, &mut pairs);
                    self.inner.roll_back(&txn, &grant);
                }
                Ok(OpResponse::DONE)
            }
            Step::End(commit) => Ok(OpResponse::Done { released: self.inner.end(&txn, commit) }),
        };
        self.file(&txn, (number, sequence), result, None, ends)
    }

    /// Files the result of a lock.
    pub(super) fn file_lock(
        &self,
        txn: &TxnRecord,
        op: (TxnNumber, Sequence),
        result: Result<Granted>,
        items: Option<Arc<[LockItem]>>,
    ) -> Outcome {
        let mut relied = None;
        if let (Ok(granted), Some(items)) = (&result, items) {
            relied = Relied::of(granted, &items, txn.at_engine().position());
        }
        let result = result.map(|granted| OpResponse::Locked(Arc::new(granted)));
        self.file(txn, op, result, relied, false)
    }

    pub(super) fn take_next(&self, number: TxnNumber) -> Option<Due> {
        let mut state = self.record.state.lock();
        let step = state.with_queue(number, |queue, _| {
            let (sequence, step) = queue.step()?;
            Some(Due { txn: Arc::clone(&queue.txn), sequence, step })
        });
        step.flatten()
    }

    /// Files a result, and sends it to the callers that wait for it.
    fn file(
        &self,
        txn: &TxnRecord,
        (number, sequence): (TxnNumber, Sequence),
        result: Result<OpResponse>,
        relied: Option<Relied>,
        ends: bool,
    ) -> Outcome {
        let mut state = self.record.state.lock();
        let filed = state.with_queue(number, |queue, _| queue.file(sequence, result, relied));
        let Some(Filed { result, waiting, rolled_back_grant, more }) = filed else {
            drop(state);
            return Outcome::Decided { response: Err(self.why_lost()), more: false };
        };
        // The floor decides replays of an ended transaction.
        let over = if ends { state.remove_queue(number) } else { None };
        if over.as_ref().is_some_and(|queue| queue.loss == Loss::Unknown) {
            // Its client has stopped the work under its locks.
            self.record.renewals.grant();
        }
        drop(state);
        if let Some(granted) = rolled_back_grant {
            self.inner.roll_back(txn, &granted.grant);
        }
        for sender in waiting {
            // A connection that is gone will submit it again.
            let _ = sender.send(result.clone());
        }
        for sender in over.into_iter().flat_map(|queue| queue.into_waiting()) {
            let _ = sender.send(Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            )));
        }
        Outcome::Decided { response: result, more: more && !ends }
    }
}
