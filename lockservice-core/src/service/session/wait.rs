//! The wait of an operation that cannot be decided at once.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tracing::Instrument as _;

use crate::id::TxnNumber;
use crate::service::session::Session;
use crate::service::session::due::{Begun, CallWait, Due, Outcome, Running, Wait};
use crate::service::session::queue::{Step, rolled_back};
use crate::service::txn::BegunLock;

impl Session {
    /// Decides the operations of one transaction that are due, in order, and begins the first that
    /// must wait.
    pub(super) fn advance(&self, number: TxnNumber) -> Option<Running> {
        loop {
            let due = self.take_next(number)?;
            let outcome = match due.must_wait() {
                true => Outcome::MustWait(due),
                false => self.decide(number, due),
            };
            match outcome {
                Outcome::Decided { more: true, .. } => {}
                Outcome::Decided { more: false, .. } => return None,
                Outcome::MustWait(due) => match self.begin_due(number, due) {
                    Begun::Runs(running) => return Some(running),
                    Begun::Decided { more: true } => {}
                    Begun::Decided { more: false } => return None,
                },
            }
        }
    }

    /// Begins an operation that must wait. It is registered with the object of its wait before this
    /// returns.
    pub(super) fn begin_due(&self, number: TxnNumber, due: Due) -> Begun {
        let Due { txn, sequence, step } = due;
        let Step::Lock { spec, arrived, items } = step else {
            return Begun::Runs(Running { txn, sequence, wait: Wait::Other(Box::new(step)) });
        };
        let canceller = self.record.state.lock().with_queue(number, |queue, _| queue.canceller());
        let Some(cancelled) = canceller else { return Begun::Decided { more: false } };
        let table = spec.table.clone();
        let mut call = self.inner.begin_lock(&txn, spec, arrived);
        if let BegunLock::InLine(waiting) = &mut call {
            let first = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(granted) = first {
                call = BegunLock::Decided(granted);
            }
        }
        let call = match call {
            BegunLock::Waits(wait) => CallWait::AtEngine(wait),
            BegunLock::InLine(waiting) => CallWait::InLine(waiting),
            BegunLock::Decided(granted) => {
                let filed = self.file_lock(&txn, (number, sequence), granted, items);
                return Begun::Decided {
                    more: matches!(filed, Outcome::Decided { more: true, .. }),
                };
            }
        };
        let wait = Wait::Lock { call, cancelled, table, items };
        Begun::Runs(Running { txn, sequence, wait })
    }

    /// Makes a task for an operation that waits, and for those after it. There may be many: what it
    /// keeps is written so that nothing is in it twice.
    pub(super) fn spawn(&self, number: TxnNumber, mut running: Running) {
        let (this, span) = (self.clone(), self.record.span.clone());
        let run = async move {
            while this.wait(number, &mut running).await {
                let Some(next) = this.advance(number) else { return };
                running = next;
            }
        };
        self.inner.spawn(run.instrument(span));
    }

    /// Waits for the operation that runs, and files its result. True if the turn of another one has
    /// come.
    async fn wait(&self, number: TxnNumber, running: &mut Running) -> bool {
        let Running { txn, sequence, wait } = running;
        let op = (number, *sequence);
        let result = match wait {
            Wait::Over => return false,
            Wait::Other(_) => {
                while txn.at_engine().has_call_in_flight() {
                    tokio::task::yield_now().await;
                }
                None
            }
            Wait::Lock { call, cancelled, table, .. } => {
                let now = self.inner.parts.env.now();
                let _noted = self.record.waits.begin(op, txn.id, table.clone(), now);
                let decided = async {
                    match call {
                        CallWait::AtEngine(wait) => self.inner.wait_for_lock(wait).await,
                        CallWait::InLine(waiting) => waiting.await,
                    }
                };
                let decided = tokio::select! {
                    biased;
                    result = decided => Some(result),
                    _ = cancelled => None,
                };
                Some(decided.unwrap_or_else(|| {
                    if let CallWait::AtEngine(wait) = call {
                        self.inner.note_contention(wait);
                    }
                    let e = rolled_back();
                    self.inner.count_vain_wait(now, &e);
                    Err(e)
                }))
            }
        };
        let outcome = match (std::mem::replace(wait, Wait::Over), result) {
            (Wait::Lock { call, items, .. }, Some(result)) => {
                // Takes the claim away, or hands on a grant that had just been made.
                drop(call);
                self.file_lock(txn, op, result, items)
            }
            (Wait::Other(step), _) => {
                self.decide(number, Due { txn: Arc::clone(txn), sequence: *sequence, step: *step })
            }
            (Wait::Lock { .. } | Wait::Over, _) => return false,
        };
        matches!(outcome, Outcome::Decided { more: true, .. })
    }
}
