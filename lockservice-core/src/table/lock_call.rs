//! The future of a call, and the linearisation point of grant and cancel.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::call::{CallId, Outcome};
use super::engine::LockEngine;
use super::types::Grant;
use crate::error::{Blocker, Result};
use crate::id::TxnId;
use crate::key::LockItem;

/// A call for locks: a future that resolves to the grant, or to the error of
/// [`lock`](LockEngine::lock).
///
/// # Cancel safety
/// Dropping a call cancels its wait, or rolls back a grant that it has not returned yet. The
/// waiters behind it go on in both cases. A range to which it has [escalated](Grant::escalated)
/// earlier rows stays.
///
/// The linearisation point is the engine's mutex:
///
/// 1. A release writes the grant into the state under the mutex. From then on the transaction holds
///    the items.
/// 2. `poll` takes the outcome out under the mutex.
/// 3. `drop` checks the call under the mutex. A call that still waits leaves the queue. A grant is
///    rolled back.
///
/// So exactly one of 2 and 3 happens to a grant, and no interleaving loses a lock or a wake-up. The
/// items of a dropped call are free before `drop` returns. The release of many items takes further
/// holds of the mutex.
#[must_use = "dropping a call cancels it"]
pub struct LockCall {
    engine: LockEngine,
    txn: TxnId,
    progress: Progress,
}

enum Progress {
    /// The call was over before it was polled. In a box: a call that waits stays as it is for long,
    /// and there may be many.
    Over(Box<Result<Grant>>),
    /// The state keeps the call, and will have its outcome.
    Kept(CallId),
    /// The outcome was returned. If that was a failure: the first conflicting item.
    Received(Option<Box<LockItem>>),
}

impl LockCall {
    pub(super) fn over(engine: &LockEngine, txn: TxnId, outcome: Result<Grant>) -> Self {
        Self { engine: engine.clone(), txn, progress: Progress::Over(Box::new(outcome)) }
    }

    pub(super) fn kept(engine: &LockEngine, txn: TxnId, id: CallId) -> Self {
        Self { engine: engine.clone(), txn, progress: Progress::Kept(id) }
    }

    /// The outcome, if the call was over before it could be polled.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn take_outcome_at_once(&mut self) -> Option<Result<Grant>> {
        match std::mem::replace(&mut self.progress, Progress::Received(None)) {
            Progress::Over(outcome) => Some(*outcome),
            other => {
                self.progress = other;
                None
            }
        }
    }

    /// True if the call waits for a fencing token.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn awaits_token(&self) -> bool {
        match self.progress {
            Progress::Kept(id) => self.engine.with(|state| state.awaits_token(id)),
            Progress::Over(_) | Progress::Received(_) => false,
        }
    }

    /// The first conflicting holder or waiter, with empty names. `None` if the call does not wait
    /// for a lock.
    pub fn blocker(&self) -> Option<Blocker> {
        match self.progress {
            Progress::Kept(id) => self.engine.with(|state| state.blocker(id)),
            Progress::Over(_) | Progress::Received(_) => None,
        }
    }

    /// The item of the first conflicting lock or waiter of a call that was kept and not granted.
    /// `None` if it met none, or was granted: the [grant](Grant::conflict) says it then.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn conflicting_item(&self) -> Option<LockItem> {
        match &self.progress {
            Progress::Kept(id) => self.engine.with(|state| state.conflicting_item(*id)),
            Progress::Received(item) => item.as_deref().cloned(),
            Progress::Over(_) => None,
        }
    }
}

impl Future for LockCall {
    type Output = Result<Grant>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.progress, Progress::Received(None)) {
            Progress::Over(outcome) => Poll::Ready(*outcome),
            Progress::Kept(id) => {
                // Under one hold of the mutex, either the outcome is found, or the waker is stored
                // before the outcome can be written. A call between two slices goes on here, so
                // that an outcome that needs no wait is returned at once.
                let outcome = self.engine.in_slices(|state| {
                    if state.is_unfinished_after_a_slice(id) {
                        return None;
                    }
                    let outcome = state.take_outcome(id);
                    if outcome.is_none() {
                        let waker = &mut state.calls[id].waker;
                        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                            *waker = Some(context.waker().clone());
                        }
                    }
                    Some(outcome)
                });
                match outcome.flatten() {
                    Some(Outcome { result, conflicting }) => {
                        self.progress = Progress::Received(conflicting);
                        Poll::Ready(result)
                    }
                    None => {
                        self.progress = Progress::Kept(id);
                        Poll::Pending
                    }
                }
            }
            Progress::Received(_) => Poll::Pending,
        }
    }
}

impl Drop for LockCall {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.progress, Progress::Received(None)) {
            Progress::Over(outcome) => {
                if let Ok(grant) = &*outcome {
                    self.engine.roll_back_in_state(self.txn, grant.bind.id, grant);
                }
            }
            Progress::Kept(id) => {
                self.engine.in_slices(|state| state.abandon(id).then_some(()));
            }
            Progress::Received(_) => {}
        }
    }
}

impl fmt::Debug for LockCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.progress {
            Progress::Over(_) => "ready",
            Progress::Kept(_) => "in flight",
            Progress::Received(_) => "over",
        };
        f.debug_struct("LockCall")
            .field("txn", &self.txn)
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}
