//! [`Stop`]: the request to end early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Set once. Callers look at it between two cycles, so that nothing stays locked. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<StopShared>);

#[derive(Debug, Default)]
struct StopShared {
    /// `Release` in `request`, `Acquire` in `is_requested`: a reader of it also finds the permit.
    requested: AtomicBool,
    changed: Notify,
}

impl Stop {
    /// Requests the end.
    pub(super) fn request(&self) {
        self.0.requested.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// True if the end was requested.
    pub(super) fn is_requested(&self) -> bool {
        self.0.requested.load(Ordering::Acquire)
    }

    /// Resolves when the end is requested.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn requested(&self) {
        let notified = self.0.changed.notified();
        // The listener is registered before the check, so that no request in between is missed.
        let mut notified = std::pin::pin!(notified);
        notified.as_mut().enable();
        if !self.is_requested() {
            notified.await;
        }
    }
}
