//! Forgetting tables: released by their owner (B5), or given up by the leader because they have no
//! owner any more. A [`Forgotten`](crate::store::Forgotten) in the same batch keeps their numbers
//! from coming back.
//!
//! # Implementation details
//! 1. Under the table's shard it is decided that nothing rests on the bind. From there on the table
//!    is [leaving](crate::allocator::state::TableEntry::leaving): no commit is admitted on it (C2),
//!    and every bind of it waits.
//! 2. The batch removes its record and raises what is kept of its numbers.
//! 3. When that has landed the table is gone. The next bind of its name makes a new table, with a
//!    new id, above every number of the old one. If the write certainly has not landed, the bind is
//!    as before.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot, watch};

use crate::allocator::leader::LocalShared;
use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::messages::{BindStatus, ForgetOutcome};
use crate::allocator::state::{
    AllocatorState, BindEntry, Service, TableEntry, lease_lost, reassigning, stopping,
};
use crate::clock::Time;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{BindVersion, TableRef};
use crate::store::{Op, ServiceState};
use crate::sync::atomic::Ordering;

/// The pause before another check for the end of a commit in flight: most last for milliseconds.
const COMMIT_ENDS: Duration = Duration::from_millis(50);

/// The decision of a check of the table under its shard's lock.
enum Step {
    /// A write is under way that decides about the table: look again when it has landed or failed.
    Wait(watch::Receiver<()>),
    /// Nothing is forgotten, because a live incarnation owns it.
    Owned(BindStatus),
    /// Nothing is forgotten, for a reason that passes.
    Kept(Error),
    /// This call's own write is queued.
    Queued(oneshot::Receiver<Result<()>>),
}

impl LocalShared {
    /// Forgets a table on the request of its owner, `service`. Returns why it was kept, if it
    /// certainly was; one that is gone already is no error.
    pub(in crate::allocator) async fn release_table(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        service: &Arc<Service>,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Option<Error>> {
        loop {
            let room = self.room().await?;
            let now = self.env.now();
            if !service.check_holds(now) {
                return Err(lease_lost(service.id));
            }
            let step = state.tables.update_existing(table, |entry| {
                self.plan_release(state, service, (table, version), entry, room)
            });
            match step {
                None => return Ok(None),
                Some(Err(e)) => return Err(e),
                // It closes rather than changes: that is the event.
                Some(Ok(Step::Wait(mut landed))) => drop(landed.changed().await),
                Some(Ok(Step::Kept(why))) => return Ok(Some(why)),
                Some(Ok(Step::Owned(_))) => return Err(not_current(table, version)),
                Some(Ok(Step::Queued(landed))) => {
                    return match landed.await.unwrap_or_else(|_| Err(stopping())) {
                        Ok(()) => {
                            tracing::info!(
                                %table,
                                %version,
                                service = %service.id,
                                "a table without locks was forgotten"
                            );
                            Ok(None)
                        }
                        // The caller must try at the next leader: this one does not know whether
                        // the write landed.
                        Err(e)
                            if matches!(
                                e.kind(),
                                ErrorKind::NotLeader | ErrorKind::ShuttingDown
                            ) =>
                        {
                            Err(e)
                        }
                        // The writer resolves unknown outcomes, so the write certainly is not
                        // there.
                        Err(e) => Ok(Some(e)),
                    };
                }
            }
        }
    }

    fn plan_release(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        service: &Arc<Service>,
        (table, version): (&TableRef, BindVersion),
        entry: &mut TableEntry,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<Step> {
        if let Some(pending) = &entry.pending {
            return Ok(Step::Wait(pending.clone()));
        }
        let own = |bind: &BindEntry| bind.version == version && bind.owner.id == service.id;
        if !entry.binds.iter().all(own) {
            return Err(not_current(table, version));
        }
        let now = self.env.now();
        if !service.check_holds(now) {
            return Err(lease_lost(service.id));
        }
        if !entry.close_unless_held(now) {
            let message = "a commit is in flight on the table's bind: try again when it has ended";
            let kept = Error::new(ErrorKind::TableInUse, message);
            return Ok(Step::Kept(
                kept.with("table", table).with_detail(Detail::RetryAfter(COMMIT_ENDS)),
            ));
        }
        Ok(Step::Queued(self.queue_forgetting(state, table, entry, now, room)))
    }

    /// Forgets a table on which no promise can hold; else returns its owner, or fails with the time
    /// to wait.
    pub(in crate::allocator) async fn forget_table(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        table: &TableRef,
    ) -> Result<ForgetOutcome> {
        loop {
            let room = self.room().await?;
            let step = state.tables.update_existing(table, |entry| {
                self.plan_forgetting(state, table, entry, None, room)
            });
            match step {
                None => return Ok(ForgetOutcome::Unknown),
                Some(Step::Wait(mut landed)) => drop(landed.changed().await),
                Some(Step::Owned(bind)) => return Ok(ForgetOutcome::Owned(bind)),
                Some(Step::Kept(why)) => return Err(why),
                Some(Step::Queued(landed)) => {
                    landed.await.unwrap_or_else(|_| Err(stopping()))?;
                    tracing::info!(%table, "a table without an owner was forgotten");
                    return Ok(ForgetOutcome::Forgotten);
                }
            }
        }
    }

    /// The condition is that of a bind: a table that may be reassigned may be forgotten (B3). With
    /// `idle`, only if the last renewal of its owner is that long ago.
    fn plan_forgetting(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        table: &TableRef,
        entry: &mut TableEntry,
        idle: Option<Duration>,
        room: mpsc::Permit<'_, Command>,
    ) -> Step {
        if let Some(pending) = &entry.pending {
            return Step::Wait(pending.clone());
        }
        let now = self.env.now();
        let mut wait = state.held_until.remaining(now);
        for (partition, bind) in entry.binds.iter().enumerate() {
            let owner = &bind.owner;
            owner.fence_if_lapsed(now);
            let lease = owner.lease.get();
            if lease.holds(owner.ttl, now)
                && let Some(status) = entry.status(table, partition as u32, now)
            {
                return Step::Owned(status);
            }
            wait = wait.max(owner.reassigned_in(entry.id, now));
            if let Some(idle) = idle {
                wait = wait.max((lease.renewed_at + idle).remaining(now));
            }
        }
        if !wait.is_zero() {
            return Step::Kept(reassigning(table, wait));
        }
        entry.close();
        Step::Queued(self.queue_forgetting(state, table, entry, now, room))
    }

    /// Queues the batch that forgets a table, whose binds are closed. Runs under the table's shard
    /// lock. `now` is the reading on which the caller decided whether an owner lives. A later
    /// reading could decide otherwise, and a live owner must not be recorded as fenced.
    fn queue_forgetting(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        table: &TableRef,
        entry: &mut TableEntry,
        now: Time,
        room: mpsc::Permit<'_, Command>,
    ) -> oneshot::Receiver<Result<()>> {
        let (closes, pending) = watch::channel(());
        (entry.pending, entry.leaving) = (Some(pending), true);
        // B1: the old owner's end is in the store no later than what follows it.
        let fenced = entry
            .binds
            .iter()
            .map(|bind| &bind.owner)
            .find(|owner| !owner.holds(now) && !owner.end_durable.load(Ordering::Acquire));
        let fenced = fenced.map(Arc::clone);
        let claims = entry.claims.as_ref();
        let record = entry.record(table, &entry.binds, entry.tokens_reserved_to, claims);
        let (caller, landed) = oneshot::channel();
        let mut ops: SmallVec<[Op; 2]> = SmallVec::new();
        ops.extend(fenced.as_ref().map(|owner| Op::PutService(owner.record(ServiceState::Fenced))));
        let (shared, of, name) = (Arc::clone(self), Arc::clone(state), table.clone());
        // The second half: runs on the writer's task, when the write has landed or failed.
        let done: Done = Box::new(move |outcome: Result<()>| {
            if outcome.is_ok() {
                if let Some(owner) = fenced {
                    owner.end_durable.store(true, Ordering::Release);
                }
                shared.forgetting_landed(&of, &name);
            } else {
                of.tables.update_existing(&name, |entry| {
                    (entry.pending, entry.leaving) = (None, false);
                    entry.reopen();
                });
            }
            drop(caller.send(outcome));
            drop(closes);
        });
        // Queued under the mutex: what is stored of several tables only grows.
        let mut forgotten = state.forgotten.lock();
        *forgotten = forgotten.with(&record);
        ops.extend([Op::PutForgotten(*forgotten), Op::RemoveTable(table.clone())]);
        room.send(Command::Write { ops, done });
        landed
    }

    fn forgetting_landed(&self, state: &AllocatorState, table: &TableRef) {
        let gone = state.tables.remove_if(table, |_| true);
        let Some(entry) = gone else { return };
        state.ids.remove_if(&entry.id, |_| true);
        self.tables.fetch_sub(1, Ordering::AcqRel);
        for bind in &entry.binds {
            bind.owner.references.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Forgets tables whose owners ended a
    /// [`table_idle_ms`](crate::allocator::AllocatorSettings::table_idle_ms) ago, at most one
    /// write's worth of them. `shard` is where the last call stopped.
    pub(in crate::allocator) async fn forget_unowned(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        shard: &mut usize,
    ) -> Result<()> {
        let Some(idle) = self.settings.table_idle() else { return Ok(()) };
        let now = self.env.now();
        if !any_unowned(state, idle, now) {
            return Ok(());
        }
        let mut landing = Vec::new();
        for _ in 0..state.tables.shards() {
            let mut found = Vec::new();
            state.tables.for_each_in(*shard, |table, entry| {
                let unowned = entry.binds.iter().all(|bind| is_over(&bind.owner, idle, now));
                if unowned && landing.len() + found.len() < self.settings.batch_max {
                    found.push(table.clone());
                }
            });
            for table in found {
                let room = self.room().await?;
                let plan = |entry: &mut TableEntry| {
                    self.plan_forgetting(state, &table, entry, Some(idle), room)
                };
                if let Some(Step::Queued(landed)) = state.tables.update_existing(&table, plan) {
                    landing.push(landed);
                }
            }
            if landing.len() >= self.settings.batch_max {
                break;
            }
            *shard = (*shard + 1) % state.tables.shards();
            // Between two shards every other task goes on.
            tokio::task::yield_now().await;
        }
        let count = landing.len();
        for landed in landing {
            landed.await.unwrap_or_else(|_| Err(stopping()))?;
        }
        if count > 0 {
            tracing::info!(
                tables = count,
                ?idle,
                "tables without an owner for so long were forgotten"
            );
        }
        Ok(())
    }
}

/// True if `service` ended so long ago. Its tables are looked at only then.
fn is_over(service: &Service, idle: Duration, now: Time) -> bool {
    !service.holds(now) && now >= service.lease.get().renewed_at + idle
}

fn any_unowned(state: &AllocatorState, idle: Duration, now: Time) -> bool {
    let mut any = false;
    state.services.for_each(|_, service| {
        any |= service.references.load(Ordering::SeqCst) > 0 && is_over(service, idle, now);
    });
    any
}

fn not_current(table: &TableRef, version: BindVersion) -> Error {
    Error::new(
        ErrorKind::BindChanged,
        "the bind is not current any more: serve the table at that version no longer",
    )
    .with("table", table)
    .with("version", version)
}
