//! Granting binds (B3, B6).
//!
//! # The two halves of a bind
//! 1. [`LocalShared::plan_bind`] runs on the caller's task, under the lock of the table's shard. It
//!    decides, takes the numbers, and queues the write. From then on
//!    [`TableEntry::pending`] makes every other caller wait.
//! 2. [`Grant::done`] runs on the writer's task, when the write has landed or failed. It makes the
//!    bind visible, or forgets the plan, and wakes the caller and those who wait for the table.
//!
//! A caller that goes away in between changes nothing: the second half runs all the same. A token
//! block goes the same way, in `token_block`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot, watch};

use crate::allocator::leader::LocalShared;
use crate::allocator::leader::token_block::next_block;
use crate::allocator::leader::writer::Command;
use crate::allocator::messages::BoundTable;
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::tokens::RaiseEpoch;
use crate::allocator::state::{
    AllocatorState, BindEntry, Service, TableById, TableClaims, TableEntry, lease_lost,
    reassigning, stopping,
};
use crate::bind::{Bind, TokenBlock};
use crate::clock::Time;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, FencingToken, ServiceId, TableId, TableRef};
use crate::store::{Op, ServiceState};
use crate::sync::atomic::Ordering;

/// The time for which a bind waits for the resignation of the table's owner: longer than its write
/// takes. A resignation that has to wait for commits in flight may take longer. The caller then
/// gets `Reassigning`.
const RESIGNING_MAX: Duration = Duration::from_millis(250);

/// The reason why a check of the table under its shard's lock has queued no write.
pub(in crate::allocator) enum NotQueued {
    /// The table is bound.
    Bound(Box<BoundTable>),
    /// A write is under way that decides about the table: look again when it has landed or failed.
    Pending(watch::Receiver<()>),
    /// The owner is just giving its binds up, which it must have done after so long: look again
    /// when it has.
    Resigning(Arc<Service>, Duration),
    /// The epoch must be raised first.
    Raise(RaiseEpoch),
    /// The call fails.
    Failed(Error),
}

impl From<Error> for NotQueued {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<RaiseEpoch> for NotQueued {
    fn from(wanted: RaiseEpoch) -> Self {
        Self::Raise(wanted)
    }
}

/// A table that may be bound now.
pub(super) struct FreeTable {
    /// `None` if the table is new.
    pub(super) id: Option<TableId>,
    pub(super) tokens_reserved_to: FencingToken,
    pub(super) partitions: usize,
    /// The last owner, if its end is not in the store yet.
    pub(super) fenced: Option<Arc<Service>>,
    /// Set if it is bound for claims.
    pub(super) claims: Option<TableClaims>,
}

/// The numbers of a new bind. They are taken even if its write fails: no number is used twice.
struct BindNumbers {
    id: TableId,
    version: BindVersion,
    block: TokenBlock,
}

impl BindNumbers {
    fn take(state: &AllocatorState, free: &FreeTable) -> Result<Self, NotQueued> {
        let block = next_block(state, free.tokens_reserved_to)?;
        let id = match free.id {
            Some(id) => id,
            None => state.sequence.take()?.into(),
        };
        Ok(Self { id, version: state.sequence.take()?.into(), block })
    }
}

impl LocalShared {
    /// Returns the owner of `table`, binding it to `service` if it has none (B3, B6).
    pub(in crate::allocator) async fn bind(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        service: ServiceId,
        table: &TableRef,
    ) -> Result<BoundTable> {
        let requester = state.service(service).ok_or_else(|| lease_lost(service))?;
        let mut patient = true;
        loop {
            let now = self.env.now();
            if !requester.check_holds(now) {
                return Err(lease_lost(service));
            }
            // Without queue room: nearly every call finds the table bound.
            let bound = state.tables.read(table, |entry| {
                let entry =
                    entry.filter(|entry| !entry.leaving && entry.open_claims(now).is_none())?;
                let bind = entry.binds.first().filter(|bind| bind.owner.holds(now))?;
                Some(bound_table(state, table, entry.id, bind, None))
            });
            if let Some(bound) = bound {
                return Ok(bound);
            }
            let room = self.room().await?;
            let plan = state
                .tables
                .alter(table, |slot| self.plan_bind(state, &requester, table, slot, room));
            match plan {
                Ok(landed) => return landed.await.unwrap_or_else(|_| Err(stopping())),
                Err(NotQueued::Bound(bound)) => return Ok(*bound),
                // It closes rather than changes: that is the event.
                Err(NotQueued::Pending(mut landed)) => drop(landed.changed().await),
                Err(NotQueued::Resigning(_, wait)) if !patient => {
                    return Err(reassigning(table, wait));
                }
                Err(NotQueued::Resigning(owner, wait)) => {
                    patient = false;
                    resigned(&self.env, &owner, wait.min(RESIGNING_MAX)).await;
                }
                Err(NotQueued::Raise(wanted)) => self.raise(wanted).await?,
                Err(NotQueued::Failed(e)) => return Err(e),
            }
        }
    }

    /// The first half of a bind. Runs on the caller's task, under the table's shard lock: creates
    /// nothing unless it queues the write that binds the table. The receiver gets the outcome of
    /// the second half.
    fn plan_bind(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        requester: &Arc<Service>,
        table: &TableRef,
        slot: &mut Option<TableEntry>,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<oneshot::Receiver<Result<BoundTable>>, NotQueued> {
        let now = self.env.now();
        let free = self.free_table(state, (requester.id, table), slot.as_ref(), now)?;
        self.queue_bind(state, requester, (table, slot), free, now, room)
    }

    /// Queues the write that binds a free table, with the numbers that it takes.
    pub(super) fn queue_bind(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        requester: &Arc<Service>,
        (table, slot): (&TableRef, &mut Option<TableEntry>),
        free: FreeTable,
        now: Time,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<oneshot::Receiver<Result<BoundTable>>, NotQueued> {
        // B6: id, layout, bind and first token block are one batch.
        let BindNumbers { id, version, block } = BindNumbers::take(state, &free)?;
        // ORDERING: SeqCst, the partner of the look at the references by `forget`, which looks in
        // the opposite order: counted before the lease is looked at again.
        requester.references.fetch_add(free.partitions, Ordering::SeqCst);
        if !requester.check_holds(now) {
            requester.references.fetch_sub(free.partitions, Ordering::SeqCst);
            return Err(lease_lost(requester.id).into());
        }
        let new_bind = |partition| {
            BindEntry::closed(&state.slots, id, partition, Arc::clone(requester), version)
        };
        let binds: SmallVec<[BindEntry; 1]> = (0..free.partitions as u32).map(new_bind).collect();
        if slot.is_none() {
            self.tables.fetch_add(1, Ordering::AcqRel);
        }
        let entry = slot.get_or_insert_with(|| TableEntry {
            id,
            tokens_reserved_to: free.tokens_reserved_to,
            binds: SmallVec::new(),
            pending: None,
            leaving: false,
            claims: None,
        });
        let FreeTable { fenced, claims, .. } = free;
        let mut ops: SmallVec<[Op; 2]> = SmallVec::new();
        ops.extend(fenced.as_ref().map(|owner| Op::PutService(owner.record(ServiceState::Fenced))));
        ops.push(Op::PutTable(entry.record(table, &binds, block.end, claims.as_ref())));
        let (closes, pending) = watch::channel(());
        entry.pending = Some(pending);
        let (caller, landed) = oneshot::channel();
        let (shared, state, table) = (Arc::clone(self), Arc::clone(state), table.clone());
        let grant =
            Grant { shared, state, table, id, binds, block, fenced, claims, caller, closes };
        room.send(Command::Write { ops, done: Box::new(|outcome| grant.done(outcome)) });
        Ok(landed)
    }

    /// Decides if a table may be bound now, from what stands in its slot.
    fn free_table(
        &self,
        state: &AllocatorState,
        (requester, table): (ServiceId, &TableRef),
        slot: Option<&TableEntry>,
        now: Time,
    ) -> Result<FreeTable, NotQueued> {
        // L4: the last owner's bind may be among what the store lost.
        let held = state.held_until.remaining(now);
        let Some(entry) = slot else {
            if self.tables.load(Ordering::Acquire) >= self.settings.tables_max {
                return Err(too_many_tables(table, self.settings.tables_max).into());
            }
            if !held.is_zero() {
                return Err(reassigning(table, held).into());
            }
            // F1: a table of this name may have been forgotten.
            let tokens_reserved_to = state.forgotten.lock().tokens_reserved_to;
            let (id, partitions) = (None, 1);
            return Ok(FreeTable {
                id,
                tokens_reserved_to,
                partitions,
                fenced: None,
                claims: None,
            });
        };
        if let Some(pending) = &entry.pending {
            return Err(NotQueued::Pending(pending.clone()));
        }
        let mut fenced = None;
        if let Some(bind) = entry.binds.first() {
            let owner = &bind.owner;
            // A lapse is found by the first look after it; the sweep makes sure that there is one.
            owner.fence_if_lapsed(now);
            let lease = owner.lease.get();
            if lease.holds(owner.ttl, now) {
                // P6: its owner does not know yet that it was bound for claims.
                if let Some(claims) = entry.open_claims(now)
                    && owner.id == requester
                {
                    return Err(reassigning(table, claims.until.remaining(now)).into());
                }
                let bound = bound_table(state, table, entry.id, bind, None);
                return Err(NotQueued::Bound(Box::new(bound)));
            }
            let wait = owner.reassigned_in(entry.id, now).max(held);
            if !wait.is_zero() {
                if lease.state == LeaseState::Resigning {
                    return Err(NotQueued::Resigning(Arc::clone(owner), wait));
                }
                return Err(reassigning(table, wait).into());
            }
            // B1: the old owner's end is in the store no later than the bind that follows it.
            // ORDERING: Acquire, the partner of the release in `Grant::landed`.
            if !owner.end_durable.load(Ordering::Acquire) {
                fenced = Some(Arc::clone(owner));
            }
        }
        Ok(FreeTable {
            id: Some(entry.id),
            tokens_reserved_to: entry.tokens_reserved_to,
            partitions: entry.binds.len().max(1),
            fenced,
            claims: None,
        })
    }
}

/// A bind that is being written.
struct Grant {
    shared: Arc<LocalShared>,
    state: Arc<AllocatorState>,
    table: TableRef,
    id: TableId,
    binds: SmallVec<[BindEntry; 1]>,
    block: TokenBlock,
    /// The last owner, if its end is in the same write.
    fenced: Option<Arc<Service>>,
    /// Set if it is bound for claims.
    claims: Option<TableClaims>,
    caller: oneshot::Sender<Result<BoundTable>>,
    /// Its drop wakes those who wait for the table.
    closes: watch::Sender<()>,
}

impl Grant {
    /// The second half of a bind. Runs on the writer's task, when the write has landed or failed.
    fn done(mut self, outcome: Result<()>) {
        let result = match outcome {
            Ok(()) => Ok(self.landed()),
            Err(e) => {
                self.failed();
                Err(e)
            }
        };
        // The caller first, so that it is the one that gets the tokens; then those who wait for the
        // table.
        drop(self.caller.send(result));
        drop(self.closes);
    }

    fn landed(&mut self) -> BoundTable {
        if let Some(owner) = &self.fenced {
            // ORDERING: Release, the partner of the acquire in `free_table`.
            owner.end_durable.store(true, Ordering::Release);
        }
        let (binds, claims) = (std::mem::take(&mut self.binds), self.claims.take());
        let Self { state, table, id, block, .. } = &*self;
        let bound = bound_table(state, table, *id, &binds[0], Some(*block));
        binds.iter().for_each(|bind| bind.slot.pins().open());
        // Before the bind is visible, so that a caller that learns of it finds it.
        let by_id = || TableById::new(table.clone(), &binds);
        state.ids.upsert(*id, by_id, |known| *known = by_id());
        let old = state.tables.update_existing(table, |entry| {
            entry.pending = None;
            entry.tokens_reserved_to = block.end;
            entry.claims = claims;
            std::mem::replace(&mut entry.binds, binds)
        });
        for bind in old.unwrap_or_default() {
            bind.owner.references.fetch_sub(1, Ordering::SeqCst);
        }
        bound
    }

    /// A table that was never bound is forgotten again.
    fn failed(&self) {
        if let Some(bind) = self.binds.first() {
            bind.owner.references.fetch_sub(self.binds.len(), Ordering::SeqCst);
        }
        let gone = self.state.tables.alter(&self.table, |slot| {
            if let Some(entry) = slot {
                entry.pending = None;
                if entry.binds.is_empty() {
                    *slot = None;
                    return true;
                }
            }
            false
        });
        if gone {
            self.shared.tables.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn too_many_tables(table: &TableRef, limit: usize) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "the limit of lock tables is reached: use fewer tables, or raise tables_max",
    )
    .with("table", table)
    .with("limit", limit)
}

/// Waits until the resignation of `owner` has landed, at most so long.
async fn resigned(env: &Env, owner: &Service, at_most: Duration) {
    let mut gone = pin!(owner.gone.notified());
    // Registered before the look, so that a resignation that lands in between is not missed.
    gone.as_mut().enable();
    if owner.lease.get().state == LeaseState::Resigning {
        // The timer only wakes: the caller looks again.
        drop(env.timeout(at_most, gone).await);
    }
}

pub(super) fn bound_table(
    state: &AllocatorState,
    table: &TableRef,
    id: TableId,
    bind: &BindEntry,
    tokens: Option<TokenBlock>,
) -> BoundTable {
    BoundTable {
        bind: Bind {
            table: table.clone(),
            id,
            partition: 0,
            owner: bind.owner.id,
            version: bind.version,
            slot: bind.slot.at(),
        },
        node: bind.owner.node.clone(),
        address: bind.owner.address.clone(),
        at: state.progress(),
        tokens,
    }
}
