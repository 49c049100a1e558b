//! Opening: from a store to an [`AllocatorState`] (L1, L4, B1, B4).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::commit::Pins;
use super::lease::LeaseState;
use super::settings::AllocatorSettings;
use super::state::{AllocatorState, BindEntry, Service, TableEntry};
use super::tokens::TokenSource;
use crate::clock::{Clock, Time, hi};
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{EPOCH_SHIFT, Epoch, NodeName, Nonce, ServiceId};
use crate::store::{Batch, BindStore, Candidate, Leadership, Op, ServiceRecord, ServiceState, StoreState};
use crate::sync::atomic::Ordering;

/// What an opening found.
pub(super) struct Opened {
    pub(super) state: AllocatorState,
    pub(super) names: HashMap<NodeName, ServiceId>,
    pub(super) epoch: Epoch,
    pub(super) applied: u64,
    /// To be stored once the promises under the old constants have run out (B4), and when that is.
    pub(super) constants_later: Option<Time>,
}

/// Acquires the leadership, loads everything, and makes the first write.
///
/// Fails with `StoreInUse` if another leads, else as the store does. Repeating it is safe.
pub(super) async fn open(
    store: &dyn BindStore,
    clock: &dyn Clock,
    settings: &AllocatorSettings,
    candidate: &mut Candidate,
) -> Result<Opened> {
    let ttl = settings.constants.leadership_ttl();
    let (mut epoch, mut applied, exclusive, clean) = acquire(store, candidate, ttl).await?;
    let loaded = store.load().await?;
    // L4: numbers begin with the epoch. A store that lost its newest epoch but not its records is stepped over.
    let used = highest_epoch(&loaded);
    if used > epoch {
        candidate.floor = candidate.floor.max(used);
        (epoch, applied, ..) = acquire(store, candidate, ttl).await?;
    }
    // Counted from after the answer: nobody else can have been promised anything later (B4).
    let now = clock.now();
    let new = settings.constants;
    let old = loaded.constants.unwrap_or(new);
    let wait_ttl = old.lease_ttl().max(new.lease_ttl());
    // L1: an exclusive store was waited for by nobody, so after an unclean stop everything earlier counts for hi(lease TTL).
    let earlier_until = if exclusive && !clean { now + hi(wait_ttl) } else { now };
    let tokens = match loaded.volatile_tokens_from {
        Some(from) => TokenSource::Volatile { from },
        None => TokenSource::Epoch,
    };
    let state = AllocatorState::new(epoch, tokens, earlier_until, settings.commit_binds_max);
    let mut batch = Batch::new();
    let mut constants_later = None;
    if loaded.constants != Some(new) {
        if new.lease_ttl_ms < old.lease_ttl_ms {
            // Stored now, a second restart would wait for the shorter promise only.
            constants_later = Some(now + hi(wait_ttl));
        } else {
            batch.push(Op::PutConstants(new));
        }
    }
    let mut names = HashMap::new();
    for mut record in loaded.services {
        // B1: whoever opens a store exclusively replaces the process before it. Else a live one counts as renewed now (B4).
        let live = record.state == ServiceState::Live;
        let lease = match record.state {
            ServiceState::Live if !exclusive => LeaseState::Live,
            ServiceState::Resigned => LeaseState::Resigned,
            // After a clean stop nothing of the past is in use.
            _ if clean => LeaseState::Resigned,
            _ => LeaseState::Fenced,
        };
        if live && exclusive {
            record.state = ServiceState::Fenced;
            batch.push(Op::PutService(record.clone()));
        }
        if live && !exclusive {
            names.insert(record.node.clone(), record.id);
        }
        let service = Arc::new(Service::new(record, wait_ttl, now, lease, settings.commits_max));
        if lease != LeaseState::Live {
            service.commits.fence();
        }
        state.services.upsert(service.id, || Arc::clone(&service), |_| ());
    }
    for txn in loaded.tombstones {
        match state.service(txn.origin).filter(|origin| origin.lease.get().state == LeaseState::Live) {
            Some(origin) => restore_tombstone(&origin, txn, now),
            // C4: its origin is fenced, which says the same.
            None => batch.push(Op::RemoveTombstone(txn)),
        }
    }
    for table in loaded.tables {
        let binds: SmallVec<[BindEntry; 1]> = table
            .binds
            .iter()
            .map(|bind| {
                let owner =
                    state.service(bind.owner).unwrap_or_else(|| forgotten(&state, bind.owner, wait_ttl, now, clean));
                owner.references.fetch_add(1, Ordering::AcqRel);
                BindEntry { owner, version: bind.version, pins: Arc::new(Pins::default()) }
            })
            .collect();
        state.ids.upsert(table.id, || table.table.clone(), |_| ());
        let entry = TableEntry { id: table.id, tokens_reserved_to: table.tokens_reserved_to, binds, pending: None };
        state.tables.upsert(table.table, || entry, |_| ());
    }
    if !batch.is_empty() {
        match store.write(epoch, applied + 1, &batch).await {
            Ok(_) => applied += 1,
            // L2: settled by reading the number. It is a new leadership's first write, so no other can have that number.
            Err(e) if e.kind() == ErrorKind::UnknownOutcome && store.applied().await?.number == applied + 1 => {
                applied += 1
            }
            Err(e) => return Err(e),
        }
    }
    Ok(Opened { state, names, epoch, applied, constants_later })
}

async fn acquire(store: &dyn BindStore, candidate: &Candidate, ttl: Duration) -> Result<(Epoch, u64, bool, bool)> {
    match store.acquire_leadership(candidate, ttl).await? {
        Leadership::Acquired { epoch, applied, exclusive, clean, .. } => Ok((epoch, applied, exclusive, clean)),
        Leadership::Held { address, .. } => {
            Err(Error::new(ErrorKind::StoreInUse, "another allocator leads this store: use that one, or stop it")
                .with("store", store.describe())
                .with("leader", address.as_deref().unwrap_or("unknown"))
                .with_detail(Detail::RetryAfter(hi(ttl))))
        }
    }
}

/// The highest epoch that any number in the store begins with. Tokens of a block's end belong to the block before.
fn highest_epoch(loaded: &StoreState) -> Epoch {
    let tables = loaded.tables.iter().flat_map(|table| {
        let tokens = match loaded.volatile_tokens_from {
            Some(_) => 0,
            None => table.tokens_reserved_to.saturating_sub(1),
        };
        table.binds.iter().map(|bind| bind.version.get()).chain([table.id.get(), tokens])
    });
    let numbers = tables.chain(loaded.services.iter().map(|service| service.id.get()));
    Epoch::new(numbers.max().unwrap_or(0) >> EPOCH_SHIFT)
}

fn restore_tombstone(origin: &Service, txn: crate::id::TxnId, now: Time) {
    let marked = origin.commits.tombstone(txn, now, |marked| marked);
    match marked {
        Ok(super::commit::Marked::ToWrite(generation)) => origin.commits.durable(txn, generation),
        // Over the limit of this run's settings: refuse all of the origin rather than forget one.
        Err(_) => origin.fence(),
        Ok(_) => {}
    }
}

/// An owner whose record is not in the store: it is as good as fenced, and its binds void.
fn forgotten(state: &AllocatorState, id: ServiceId, ttl: Duration, now: Time, clean: bool) -> Arc<Service> {
    let record = ServiceRecord {
        id,
        node: NodeName::new("unknown").expect("a valid name"),
        nonce: Nonce::default(),
        address: String::new(),
        state: ServiceState::Fenced,
    };
    let lease = if clean { LeaseState::Resigned } else { LeaseState::Fenced };
    let service = Arc::new(Service::new(record, ttl, now, lease, 1));
    service.commits.fence();
    state.services.upsert(id, || Arc::clone(&service), |_| ());
    service
}
