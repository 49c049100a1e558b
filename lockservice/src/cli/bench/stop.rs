//! [`Stop`]: the wish to end early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Set once. Callers look at it between two cycles, so that nothing stays locked. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<StopShared>);

#[derive(Debug, Default)]
struct StopShared {
    /// `Release` in `ask`, `Acquire` in `is_requested`: a reader of it also finds the permit.
    requested: AtomicBool,
    changed: Notify,
}

impl Stop {
    /// Asks for the end.
    pub(super) fn ask(&self) {
        self.0.requested.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// True if the end was asked for.
    pub(super) fn is_requested(&self) -> bool {
        self.0.requested.load(Ordering::Acquire)
    }

    /// Resolves when the end is asked for.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn requested(&self) {
        let notified = self.0.changed.notified();
        // Registered before the look: a wish that comes in between is not missed.
        let mut notified = std::pin::pin!(notified);
        notified.as_mut().enable();
        if !self.is_requested() {
            notified.await;
        }
    }
}
