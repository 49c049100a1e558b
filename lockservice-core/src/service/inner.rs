//! [`ServiceInner`]: the parts of a service, and its effects.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;

use crate::allocator::Progress;
use crate::clock::Time;
use crate::env::{AbortHandle, Handle};
use crate::guarded_map::GuardedMap;
use crate::id::{Nonce, ServiceId, SessionId, TxnId};
use crate::service::hot::HotKeys;
use crate::service::lease::{Lease, Serving};
use crate::service::messages::ServiceParts;
use crate::service::phase::{Departures, Phase};
use crate::service::reclaim::Claims;
use crate::service::session::SessionRecord;
use crate::service::session::quota::Quota;
use crate::service::session::registry::{Count, Registry, SessionNumbers};
use crate::service::tables::Tables;
use crate::service::txn::live::ReportedTxns;
use crate::service::txn::slow::SlowWaits;
use crate::service::txn::{TxnRecord, timer};
use crate::sync::Mutex;
use crate::sync::atomic::AtomicBool;
use crate::table::LockEngine;

#[derive(Debug)]
pub(crate) struct ServiceInner {
    pub(crate) parts: ServiceParts,
    pub(crate) id: ServiceId,
    pub(super) nonce: Nonce,
    pub(crate) engine: LockEngine,
    pub(crate) tables: Tables,
    /// The tables that take claims.
    pub(super) claims: Claims,
    /// The number of transactions that have not ended.
    pub(crate) txns: Count,
    /// Those that operators know by a [name](TxnRecord::has_name). The others are in no map: each
    /// belongs to the handle of its owner.
    pub(crate) named_txns: GuardedMap<TxnId, Arc<TxnRecord>>,
    pub(crate) sessions: Registry<SessionId, Arc<SessionRecord>>,
    pub(crate) session_numbers: SessionNumbers,
    /// The use of all sessions together.
    pub(crate) quota: Arc<Quota>,
    /// The runtime on which it was started.
    pub(super) runtime: Handle,
    /// The transactions' numbers, and which of those that validate are alive.
    pub(crate) live: ReportedTxns,
    pub(super) lease: Mutex<Lease>,
    /// The time until which the lease lets it respond. Written under the mutex of `lease`.
    pub(crate) serving: Serving,
    /// The high-water mark over all responses of the allocator (L4). Locked for a comparison.
    pub(super) observed: Mutex<Progress>,
    pub(crate) phase: watch::Sender<Phase>,
    /// The ends of sessions and transactions.
    pub(crate) departures: Departures,
    /// Limits of holds count.
    ///
    /// ORDERING: `Relaxed`, with `keep_limits` as its partner, which writes it and then looks at
    /// what is held: a grant that does not see it is noted there.
    pub(super) limits_holds: AtomicBool,
    /// The bound on the lines about slow waits.
    pub(super) slow_waits: SlowWaits,
    /// The rows and ranges that calls wait for most.
    pub(super) hot: HotKeys,
}

impl ServiceInner {
    /// Raises the high-water mark to that of a response of the allocator (L4).
    pub(crate) fn observe(&self, at: Progress) {
        let mut observed = self.observed.lock();
        *observed = at.max(*observed);
    }

    /// The high-water mark over all responses of the allocator.
    pub(crate) fn observed(&self) -> Progress {
        *self.observed.lock()
    }

    /// Polls `future` until it is ready or `deadline` has passed by the service's clock; what is
    /// ready counts, also at the last moment.
    pub(crate) async fn until<F: Future>(&self, deadline: Time, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        // The usual case needs no timer.
        if let Poll::Ready(output) =
            std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
        {
            return Some(output);
        }
        loop {
            let now = self.parts.env.now();
            if now >= deadline {
                return None;
            }
            tokio::select! {
                biased;
                output = &mut future => return Some(output),
                // Timers only wake: they may be early (they do not count suspend) or late.
                () = self.parts.env.sleep(timer(deadline, now)) => {}
            }
        }
    }

    /// Lets time pass, or the service be sealed.
    pub(crate) async fn pause(&self, pause: Duration) {
        let mut phase = self.phase.subscribe();
        tokio::select! {
            biased;
            () = self.parts.env.sleep(pause) => {}
            _ = phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))) => {}
        }
    }

    /// Runs a task that ends with the service, or when it is aborted.
    ///
    /// It runs on the runtime on which the service was started. So an embedder may call from a
    /// thread that has none.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let _entered = self.runtime.enter();
        self.parts.env.spawn(task).abort_handle()
    }
}
