//! The sweep: what a leader looks for by itself. It fences lapsed incarnations durably, and forgets
//! what is over. Its timer only wakes; the clock decides.

use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;

use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::leader::{LocalShared, NameHolder};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::{AllocatorState, Service, stopping};
use crate::clock::Time;
use crate::error::Result;
use crate::id::{TxnId, TxnNumber};
use crate::store::{Op, ServiceState};
use crate::sync::atomic::Ordering;

/// The shortest interval at which the sweep looks for lapsed incarnations. Its timer decides
/// nothing.
const SWEEP_EVERY_MAX: Duration = Duration::from_millis(500);

/// The interval at which a leader looks for events that no call reports.
pub(in crate::allocator) fn sweep_every(shared: &LocalShared) -> Duration {
    (shared.settings.constants.lease_ttl() / 8).min(SWEEP_EVERY_MAX)
}

/// Fences lapsed incarnations durably, forgets commits that have run out and incarnations that no
/// bind names. Holds nothing over an await.
pub(in crate::allocator) async fn sweep(shared: Arc<LocalShared>) {
    let Ok(state) = shared.opened().await else { return };
    let every = sweep_every(&shared);
    let (mut turn, mut shard) = (0, 0);
    while !shared.queue.is_closed() && !state.leadership.ended() {
        shared.env.sleep(every).await;
        let now = shared.env.now();
        if state.check_leading(now).is_err() {
            // Nothing can be stored now; an incarnation that lapses meanwhile is found later.
            continue;
        }
        let mut services = Vec::new();
        state.services.for_each(|_, service| services.push(Arc::clone(service)));
        for service in services {
            service.fence_if_lapsed(now);
            service.commits.sweep(turn, now);
            let swept = shared.sweep_service(state, &service, now).await;
            if let Err(e) = swept {
                tracing::warn!(
                    service = %service.id,
                    error = ?e,
                    "the end of an incarnation could not be stored yet; the next sweep tries again"
                );
            }
        }
        turn += 1;
        if let Err(e) = shared.forget_unowned(state, &mut shard).await {
            tracing::warn!(
                error = ?e,
                "tables without an owner could not be forgotten yet; the next sweep tries again"
            );
        }
        if now >= state.held_until && !state.resolved.load(Ordering::Acquire) {
            // Fails only once the allocator has stopped.
            drop(shared.queue.send(Command::Resolve).await);
        }
        let due = shared.constants_later.lock().is_some_and(|at| now >= at);
        if due && shared.write(smallvec![Op::PutConstants(shared.settings.constants)]).await.is_ok()
        {
            *shared.constants_later.lock() = None;
        }
    }
}

impl LocalShared {
    /// Makes the end of an incarnation durable, and forgets it when that is safe.
    async fn sweep_service(
        &self,
        state: &AllocatorState,
        service: &Arc<Service>,
        now: Time,
    ) -> Result<()> {
        let lease = service.lease.get();
        if !matches!(lease.state, LeaseState::Fenced | LeaseState::Resigned) {
            return self.forget_over(service).await;
        }
        self.store_end(service, service.state()).await?;
        // C4: from here on the end says of every transaction what their tombstones said. One that
        // cannot be removed now is removed by the next leader.
        for some in service.commits.take_tombstones(service.id).chunks(self.settings.batch_max) {
            let removals = some.iter().copied().map(Op::RemoveTombstone);
            self.write(removals.collect()).await?;
        }
        // Fences are for ever (C4), but they concern an id that is never handed out again (L4):
        // once no bind names the incarnation, its promises have run out and none of its commits is
        // in flight, an unknown origin and an unknown service are refused just the same.
        let unused = service.references.load(Ordering::SeqCst) == 0
            && lease.reassigned_in(service.ttl, now).is_zero()
            && service.commits.in_flight_until(now).is_none()
            && now >= state.earlier_until;
        if unused {
            let mut names = self.names.lock();
            if names.get(&service.node) == Some(&NameHolder::Known(service.id)) {
                names.remove(&service.node);
            }
        }
        // L4: a later leader must find the highest number that was handed out
        // (`StoreState::highest_number`).
        if unused && state.later_incarnation(service.id) {
            self.write(smallvec![Op::RemoveService(service.id)]).await?;
            state.services.remove_if(&service.id, |known| Arc::ptr_eq(known, service));
        }
        Ok(())
    }

    /// Takes off the tombstones below the floor of their origin, once that is durable and says the
    /// same of their transactions (C4).
    async fn forget_over(&self, service: &Service) -> Result<()> {
        let (origin, commits) = (service.id, &service.commits);
        let (floor, tombstones) = commits.below_floor();
        let mut put: SmallVec<[Op; 2]> = SmallVec::new();
        if !tombstones.is_empty() {
            let stored = commits.stored_floor();
            put.push(Op::PutTombstone(TxnId::floor_tombstone(origin, floor)));
            if stored > TxnNumber::default() && stored != floor {
                put.push(Op::RemoveTombstone(TxnId::floor_tombstone(origin, stored)));
            }
        }
        for some in tombstones.chunks(self.settings.batch_max) {
            let removals =
                some.iter().map(|&(counter, _)| Op::RemoveTombstone(TxnId { origin, counter }));
            // The floor first, and in a write before this one or the same.
            self.write(std::mem::take(&mut put).into_iter().chain(removals).collect()).await?;
            commits.floor_stored(floor);
            for &(counter, generation) in some {
                commits.remove(TxnId { origin, counter }, generation);
            }
        }
        commits.cleaned(floor);
        Ok(())
    }

    /// Makes the end of an incarnation durable, unless it is.
    pub(in crate::allocator) async fn store_end(
        &self,
        service: &Arc<Service>,
        state: ServiceState,
    ) -> Result<()> {
        if service.end_durable.load(Ordering::Acquire) {
            return Ok(());
        }
        let (done, response) = oneshot::channel();
        let ended = Arc::clone(service);
        let done: Done = Box::new(move |outcome: Result<()>| {
            if outcome.is_ok() {
                ended.end_durable.store(true, Ordering::Release);
            }
            // The caller may have gone; the write stands.
            drop(done.send(outcome));
        });
        service.commits.fence();
        let ops = smallvec![Op::PutService(service.record(state))];
        self.room().await?.send(Command::Write { ops, done });
        response.await.unwrap_or_else(|_| Err(stopping()))
    }
}
