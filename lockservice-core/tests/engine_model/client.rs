//! The caller of a transaction.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use lockservice_core::table::{Grant, LockCall, Savepoint};
use lockservice_core::{DeadlockEdge, Error};

#[derive(Default)]
pub(crate) struct Woken(pub(crate) AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One caller per transaction: its call, if one is in flight, and whether it looks at it.
pub(crate) struct Client {
    pub(crate) call: Option<LockCall>,
    /// Does not poll for now, as a busy task.
    pub(crate) busy: bool,
    pub(crate) polled: bool,
    pub(crate) woken: Arc<Woken>,
    pub(crate) received: Option<Result<Grant, Error>>,
    /// Its savepoints, and those of the model.
    pub(crate) savepoints: Vec<(Savepoint, u64)>,
    /// The items that it was granted since it last ended.
    pub(crate) grants: Vec<(usize, Grant)>,
}

impl Client {
    /// Polls if there is a reason to: never yet, or woken since. A wake-up that is lost leaves the
    /// outcome where it is.
    pub(crate) fn poll(&mut self, anyway: bool) {
        let Some(call) = &mut self.call else { return };
        let woken = self.woken.0.swap(false, Ordering::Relaxed);
        if !(anyway || woken || !self.polled) {
            return;
        }
        self.polled = true;
        let waker = Waker::from(Arc::clone(&self.woken));
        if let Poll::Ready(outcome) = Pin::new(call).poll(&mut Context::from_waker(&waker)) {
            self.call = None;
            self.received = Some(outcome);
        }
    }
}

/// The start of the search for a deadlock's cycle.
pub(crate) fn poll_all(clients: &mut [Client]) -> Vec<(usize, Vec<DeadlockEdge>)> {
    let mut found = Vec::new();
    for (txn, client) in clients.iter_mut().enumerate() {
        client.poll(true);
        if let Some(Err(error)) = &client.received
            && let Some(cycle) = error.deadlock()
        {
            found.push((txn, cycle.to_vec()));
        }
    }
    found
}
