//! Granting binds and token blocks: decided under the table's shard, written in a shared batch,
//! visible when durable (B6).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::sync::{mpsc, oneshot, watch};

use crate::allocator::leader::LocalShared;
use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::messages::{Bind, BoundTable, TokenBlock};
use crate::allocator::state::commits::Pins;
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::tokens::RaiseEpoch;
use crate::allocator::state::{
    AllocatorState, BindEntry, Service, TableEntry, lease_lost, reassigning, stopping,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, ServiceId, TableId, TableRef};
use crate::store::{Op, ServiceState};
use crate::sync::atomic::Ordering;

/// How long a bind waits for the resignation of the table's owner: longer than its write takes. One
/// that has to wait for commits in flight may last; whoever asks is told so.
const RESIGNING_MAX: Duration = Duration::from_millis(250);

/// What a look at the table under its shard's lock decided.
enum Step<T> {
    /// The answer is there.
    Answer(T),
    /// A write is under way that decides about the table: look again when it has landed or failed.
    Wait(watch::Receiver<()>),
    /// The owner is just giving its binds up, which it must have done after so long: look again
    /// when it has.
    Resigning(Arc<Service>, Duration),
    /// The epoch must be raised first.
    Raise(RaiseEpoch),
    /// This call's own write is queued.
    Queued(oneshot::Receiver<Result<T>>),
}

impl LocalShared {
    /// Answers whom `table` is bound to, binding it to `service` if nobody owns it (B3, B6).
    pub(in crate::allocator) async fn bind(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        service: ServiceId,
        table: &TableRef,
    ) -> Result<BoundTable> {
        let asker = state.service(service).ok_or_else(|| lease_lost(service))?;
        let mut patient = true;
        loop {
            let now = self.clock.now();
            if !asker.check_holds(now) {
                return Err(lease_lost(service));
            }
            // Without queue room: nearly every call finds the table bound.
            let bound = state.tables.read(table, |entry| {
                let entry = entry.filter(|entry| !entry.leaving)?;
                let bind = entry.binds.first().filter(|bind| bind.owner.holds(now))?;
                Some(bound_table(state, table, entry.id, bind, None))
            });
            if let Some(bound) = bound {
                return Ok(bound);
            }
            let room = self.room().await?;
            let step = state
                .tables
                .alter(table, |slot| self.plan_bind(state, &asker, table, slot, room))?;
            match step {
                Step::Answer(bound) => return Ok(bound),
                // It closes rather than changes: that is the event.
                Step::Wait(mut landed) => drop(landed.changed().await),
                Step::Resigning(_, wait) if !patient => return Err(reassigning(table, wait)),
                Step::Resigning(owner, wait) => {
                    patient = false;
                    resigned(&owner, wait.min(RESIGNING_MAX)).await;
                }
                Step::Raise(wanted) => self.raise(wanted).await?,
                Step::Queued(landed) => return landed.await.unwrap_or_else(|_| Err(stopping())),
            }
        }
    }

    /// Runs under the table's shard lock: creates nothing unless it queues the write that binds it.
    fn plan_bind(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        asker: &Arc<Service>,
        table: &TableRef,
        slot: &mut Option<TableEntry>,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<Step<BoundTable>> {
        let now = self.clock.now();
        // L4: the last owner's bind may be among what the store lost.
        let held = state.held_until.remaining(now);
        let mut fenced = None;
        let (id, reserved_to, partitions) = match slot.as_ref() {
            Some(entry) => {
                if let Some(pending) = &entry.pending {
                    return Ok(Step::Wait(pending.clone()));
                }
                if let Some(bind) = entry.binds.first() {
                    let owner = &bind.owner;
                    // A lapse is found by whoever looks first; the sweep only makes sure that
                    // somebody does.
                    owner.fence_if_lapsed(now);
                    let lease = owner.lease.get();
                    if lease.holds(owner.ttl, now) {
                        return Ok(Step::Answer(bound_table(state, table, entry.id, bind, None)));
                    }
                    let wait = lease.reassigned_in(owner.ttl, now).max(held);
                    if !wait.is_zero() {
                        if lease.state == LeaseState::Resigning {
                            return Ok(Step::Resigning(Arc::clone(owner), wait));
                        }
                        return Err(reassigning(table, wait));
                    }
                    if !owner.end_durable.load(Ordering::Acquire) {
                        // B1: the old owner's end is in the store no later than the bind that
                        // follows it.
                        fenced = Some(Arc::clone(owner));
                    }
                }
                (Some(entry.id), entry.tokens_reserved_to, entry.binds.len().max(1))
            }
            None if self.tables.load(Ordering::Acquire) >= self.settings.tables_max => {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    "the limit of lock tables is reached: use fewer tables, or raise tables_max",
                )
                .with("table", table)
                .with("limit", self.settings.tables_max));
            }
            None if !held.is_zero() => return Err(reassigning(table, held)),
            // F1: a table of this name may have been forgotten.
            None => (None, state.forgotten.lock().tokens_reserved_to, 1),
        };
        // B6: id, layout, bind and first token block are one batch.
        let block = match state.token_block(reserved_to)? {
            Ok(block) => block,
            Err(wanted) => return Ok(Step::Raise(wanted)),
        };
        let id = match id.map_or_else(|| state.sequence.take().map(TableId::new), Ok) {
            Ok(id) => id,
            Err(wanted) => return Ok(Step::Raise(wanted)),
        };
        let version = match state.sequence.take() {
            Ok(number) => BindVersion::new(number),
            Err(wanted) => return Ok(Step::Raise(wanted)),
        };
        // Counted before it is looked at again: whoever forgets ended incarnations looks in the
        // opposite order.
        asker.references.fetch_add(partitions, Ordering::SeqCst);
        if !asker.check_holds(now) {
            asker.references.fetch_sub(partitions, Ordering::SeqCst);
            return Err(lease_lost(asker.id));
        }
        let binds: SmallVec<[BindEntry; 1]> = (0..partitions)
            .map(|_| BindEntry {
                owner: Arc::clone(asker),
                version,
                pins: Arc::new(Pins::default()),
            })
            .collect();
        if slot.is_none() {
            self.tables.fetch_add(1, Ordering::AcqRel);
        }
        let entry = slot.get_or_insert_with(|| TableEntry {
            id,
            tokens_reserved_to: reserved_to,
            binds: SmallVec::new(),
            pending: None,
            leaving: false,
        });
        let mut ops: SmallVec<[Op; 2]> = SmallVec::new();
        ops.extend(fenced.as_ref().map(|owner| Op::PutService(owner.record(ServiceState::Fenced))));
        ops.push(Op::PutTable(entry.record(table, &binds, block.end.get())));
        let (closes, pending) = watch::channel(());
        entry.pending = Some(pending);
        let (answer, landed) = oneshot::channel();
        let (shared, state, table) = (Arc::clone(self), Arc::clone(state), table.clone());
        let done: Done = Box::new(move |outcome: Result<()>| {
            let result = match outcome {
                Ok(()) => {
                    if let Some(owner) = fenced {
                        owner.end_durable.store(true, Ordering::Release);
                    }
                    Ok(shared.grant_landed(&state, &table, id, binds, block))
                }
                Err(e) => {
                    if let Some(bind) = binds.first() {
                        bind.owner.references.fetch_sub(binds.len(), Ordering::SeqCst);
                    }
                    shared.grant_failed(&state, &table);
                    Err(e)
                }
            };
            // The caller first, so that it is the one that gets the tokens; then those who wait for
            // the table.
            drop(answer.send(result));
            drop(closes);
        });
        room.send(Command::Write { ops, done });
        Ok(Step::Queued(landed))
    }

    fn grant_landed(
        &self,
        state: &AllocatorState,
        table: &TableRef,
        id: TableId,
        binds: SmallVec<[BindEntry; 1]>,
        block: TokenBlock,
    ) -> BoundTable {
        state.ids.upsert(id, || table.clone(), |_| ());
        let bound = bound_table(state, table, id, &binds[0], Some(block));
        let old = state.tables.update_existing(table, |entry| {
            entry.pending = None;
            entry.tokens_reserved_to = block.end.get();
            std::mem::replace(&mut entry.binds, binds)
        });
        for bind in old.unwrap_or_default() {
            bind.owner.references.fetch_sub(1, Ordering::SeqCst);
        }
        bound
    }

    /// A table that was never bound is forgotten again.
    fn grant_failed(&self, state: &AllocatorState, table: &TableRef) {
        let gone = state.tables.alter(table, |slot| {
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
            self.tables.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Reserves a further block for a bind that is current (F2).
    pub(in crate::allocator) async fn reserve_tokens(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        service: ServiceId,
        id: TableId,
        version: BindVersion,
    ) -> Result<TokenBlock> {
        let changed = || {
            Error::new(
                ErrorKind::BindChanged,
                "the bind is not current any more: no tokens are reserved for it",
            )
            .with("table", id)
            .with("version", version)
        };
        let table = state.ids.read(&id, |table| table.cloned()).ok_or_else(changed)?;
        loop {
            let room = self.room().await?;
            let now = self.clock.now();
            let step = state.tables.update_existing(&table, |entry| {
                let current = entry.id == id
                    && entry.binds.iter().any(|bind| {
                        bind.version == version
                            && bind.owner.id == service
                            && bind.owner.check_holds(now)
                    });
                if !current {
                    return Err(changed());
                }
                self.plan_tokens(state, &table, entry, room)
            });
            match step.ok_or_else(changed)?? {
                Step::Answer(block) => return Ok(block),
                // Only of a table that is not bound.
                Step::Resigning(..) => return Err(changed()),
                Step::Wait(mut landed) => drop(landed.changed().await),
                Step::Raise(wanted) => self.raise(wanted).await?,
                Step::Queued(landed) => return landed.await.unwrap_or_else(|_| Err(stopping())),
            }
        }
    }

    fn plan_tokens(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        table: &TableRef,
        entry: &mut TableEntry,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<Step<TokenBlock>> {
        if let Some(pending) = &entry.pending {
            return Ok(Step::Wait(pending.clone()));
        }
        let block = match state.token_block(entry.tokens_reserved_to)? {
            Ok(block) => block,
            Err(wanted) => return Ok(Step::Raise(wanted)),
        };
        let record = entry.record(table, &entry.binds, block.end.get());
        let (closes, pending) = watch::channel(());
        entry.pending = Some(pending);
        let (answer, landed) = oneshot::channel();
        let (state, table) = (Arc::clone(state), table.clone());
        let done: Done = Box::new(move |outcome: Result<()>| {
            state.tables.update_existing(&table, |entry| {
                entry.pending = None;
                if outcome.is_ok() {
                    entry.tokens_reserved_to = block.end.get();
                }
            });
            // A block whose caller has gone is lost, which tokens can bear: they only grow.
            drop(answer.send(outcome.map(|()| block)));
            drop(closes);
        });
        room.send(Command::Write { ops: smallvec![Op::PutTable(record)], done });
        Ok(Step::Queued(landed))
    }
}

/// Waits until the resignation of `owner` has landed, at most so long.
async fn resigned(owner: &Service, at_most: Duration) {
    let mut gone = pin!(owner.gone.notified());
    // Registered before the look, so that a resignation that lands in between is not missed.
    gone.as_mut().enable();
    if owner.lease.get().state == LeaseState::Resigning {
        // The timer only wakes: the caller looks again.
        drop(tokio::time::timeout(at_most, gone).await);
    }
}

fn bound_table(
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
        },
        node: bind.owner.node.clone(),
        address: bind.owner.address.clone(),
        at: state.progress(),
        tokens,
    }
}
