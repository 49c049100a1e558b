//! Opening: from a store to an [`AllocatorState`] (L1, L4, B1, B4).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::allocator::cluster::observed::Observed;
use crate::allocator::leader::leadership::LeadershipCell;
use crate::allocator::leader::writer::another_store;
use crate::allocator::messages::Progress;
use crate::allocator::settings::AllocatorSettings;
use crate::allocator::state::commits::{Marked, Pins};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::tokens::TokenSource;
use crate::allocator::state::{AllocatorState, BindEntry, Service, TableEntry};
use crate::clock::{Clock, Time, hi};
use crate::error::{ErrorKind, Result};
use crate::id::{EPOCH_SHIFT, Epoch, NodeName, Nonce, ServiceId, TxnId};
use crate::store::{
    Applied, Batch, BindStore, Candidate, Cluster, DataLoss, Floor, Leadership, LeadershipHistory,
    Lineage, Loss, NodeAddress, Op, Seen, ServiceRecord, ServiceState, StoreState, Turns,
};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Between two attempts to read a store that does not answer.
const LOAD_AGAIN: Duration = Duration::from_millis(50);

/// What an opening found.
pub(in crate::allocator) struct Opened {
    pub(in crate::allocator) state: AllocatorState,
    pub(in crate::allocator) names: HashMap<NodeName, ServiceId>,
    pub(in crate::allocator) epoch: Epoch,
    pub(in crate::allocator) applied: u64,
    /// To be stored once the promises under the old constants have run out (B4), and when that is.
    pub(in crate::allocator) constants_later: Option<Time>,
}

/// By what a leadership is held that is renewed meanwhile.
#[derive(Clone, Copy)]
pub(in crate::allocator) struct Hold<'a> {
    /// The epoch that the renewals name.
    pub(in crate::allocator) head: &'a tokio::sync::Mutex<Epoch>,
    pub(in crate::allocator) leadership: &'a LeadershipCell,
}

/// A leadership that a store gave.
#[derive(Clone, Debug)]
pub(in crate::allocator) struct Acquired {
    pub(in crate::allocator) epoch: Epoch,
    pub(in crate::allocator) applied: u64,
    pub(in crate::allocator) exclusive: bool,
    pub(in crate::allocator) clean: bool,
    pub(in crate::allocator) continuous: bool,
    pub(in crate::allocator) loss: Loss,
    pub(in crate::allocator) history: LeadershipHistory,
    pub(in crate::allocator) floor: Floor,
    pub(in crate::allocator) lineage: Lineage,
    pub(in crate::allocator) cluster: Cluster,
    /// Before it was asked for: it counts from here.
    pub(in crate::allocator) sent: Time,
}

/// Loads everything that a new leader must know, and makes its first write. `observed` is what
/// leaders have told this node.
///
/// Fails as the store does. Repeating it is safe.
pub(in crate::allocator) async fn open(
    store: &dyn BindStore,
    clock: &dyn Clock,
    settings: &AllocatorSettings,
    candidate: &mut Candidate,
    acquired: Acquired,
    hold: Hold<'_>,
    observed: &Observed,
) -> Result<Opened> {
    let ttl = settings.constants.leadership_ttl();
    if !acquired.exclusive {
        // From here on it has something in memory.
        (candidate.elected, candidate.seen) = (true, None);
    }
    let Acquired {
        mut epoch,
        mut applied,
        exclusive,
        clean,
        continuous,
        mut loss,
        mut history,
        floor,
        lineage,
        cluster,
        ..
    } = acquired;
    let loaded = load(store, clock, hold.leadership, exclusive, hi(ttl)).await?;
    // L4: a copy that was promoted meanwhile may have neither the leadership nor the last writes
    // before it.
    if !exclusive
        && store.applied().await? != (Applied { epoch, number: applied, lineage: lineage.clone() })
    {
        return Err(another_store());
    }
    loaded.check_finished()?;
    // L4: numbers lie below the end of their epoch. A store that lost its newest epoch but not its
    // records is stepped over.
    let reported = observed.high_water().max(loss.high_water);
    let used = loaded
        .highest_epoch()
        .max(observed.last().epoch)
        .max(Epoch::new(reported.saturating_sub(1) >> EPOCH_SHIFT));
    // This node was told of writes that are not there. Whatever they were, nothing in the store can
    // be relied on: everybody starts again.
    let lost = |observed: &Progress| {
        observed.epoch >= loss.observed_before
            && history.lost(observed.epoch, observed.leader, observed.write)
    };
    let found_out = !exclusive && observed.each().iter().any(lost);
    // A leader before may have found out, and not have lived to step over it.
    let went_back = found_out || loss.known;
    let continuous = continuous && !went_back;
    if went_back {
        tracing::error!(?observed, applied, ?loss, "the store has lost writes: every bind is void");
    }
    if used > epoch || found_out {
        candidate.floor = candidate.floor.max(used);
        if found_out {
            candidate.data_loss = DataLoss::Raised { high_water: observed.high_water() };
        }
        // No renewal may name the epoch that is being replaced.
        let mut head = hold.head.lock().await;
        match acquire(store, clock, candidate, ttl).await? {
            Ok(again)
                if again.lineage == lineage
                    && again.applied == applied
                    && again.cluster == cluster =>
            {
                (epoch, loss, history) = (again.epoch, again.loss, again.history);
            }
            _ => return Err(another_store()),
        }
        *head = epoch;
        candidate.data_loss = DataLoss::Unknown;
    }
    // Counted from after the answer: nobody else can have been promised anything later (B4).
    let now = clock.now();
    let new = settings.constants;
    let old = loaded.constants.unwrap_or(new);
    let wait_ttl = old.lease_ttl().max(new.lease_ttl());
    // L1: an exclusive store was waited for by nobody, so after an unclean stop everything earlier
    // counts for hi(lease TTL).
    let earlier_until = if (exclusive && !clean) || !continuous { now + hi(wait_ttl) } else { now };
    let held_until = if continuous { now } else { now + hi(wait_ttl) };
    // L4: above everything that was ever handed out. Where the server has a clock that vouches for
    // it, the epoch does not count: see `Floor`.
    let vouched = match floor.number() {
        0 => epoch.first_number(),
        number => number,
    };
    let from = vouched.max(loaded.highest_number()).max(reported);
    let tokens = match loaded.volatile_tokens_from {
        Some(from) => TokenSource::Volatile { from },
        None => TokenSource::Epoch { from },
    };
    let mut state = AllocatorState::new(epoch, from, applied, tokens, settings.commit_binds_max);
    state.forgotten = Mutex::new(loaded.forgotten);
    (state.earlier_until, state.held_until) = (earlier_until, held_until);
    (state.leader, state.cluster) = (candidate.nonce, cluster);
    if floor.number() > 0 {
        state.sure = floor.epoch();
    }
    (state.observed_before, state.history) = (AtomicU64::new(loss.observed_before.get()), history);
    state.settled = AtomicBool::new(continuous);
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
    let mut turns = Turns::default();
    for mut record in loaded.services {
        turns.next().await;
        // B1: whoever opens a store exclusively replaces the process before it. Else a live one
        // counts as renewed now (B4).
        let live = record.state == ServiceState::Live;
        let lease = match record.state {
            ServiceState::Live if !exclusive && !went_back => LeaseState::Live,
            ServiceState::Resigned => LeaseState::Resigned,
            // After a clean stop of the only process nothing of the past is in use.
            _ if exclusive && clean => LeaseState::Resigned,
            _ => LeaseState::Fenced,
        };
        if live && lease != LeaseState::Live {
            record.state = ServiceState::Fenced;
            batch.push(Op::PutService(record.clone()));
        }
        if lease == LeaseState::Live {
            names.insert(record.node.clone(), record.id);
        }
        let service = Arc::new(Service::new(record, wait_ttl, now, lease, settings.commits_max));
        if lease != LeaseState::Live {
            service.commits.fence();
        }
        state.services.upsert(service.id, || Arc::clone(&service), |_| ());
    }
    // C4: the floors first, for they say the same as the tombstones below them.
    let (floors, tombstones): (Vec<_>, Vec<_>) =
        loaded.tombstones.into_iter().partition(|txn| !txn.validates());
    let live = |txn: &TxnId| {
        state.service(txn.origin).filter(|origin| origin.lease.get().state == LeaseState::Live)
    };
    for mark in &floors {
        turns.next().await;
        if let Some(origin) = live(mark) {
            origin.commits.raise_floor(mark.number());
            origin.commits.floor_stored(mark.number());
        }
    }
    for txn in floors.into_iter().chain(tombstones) {
        turns.next().await;
        match live(&txn) {
            Some(origin) if txn.validates() && txn.number() >= origin.commits.stored_floor() => {
                restore_tombstone(&origin, txn, now);
            }
            Some(origin) if !txn.validates() && txn.number() == origin.commits.stored_floor() => {}
            // Its origin is fenced or its floor is higher, which says the same.
            _ => batch.push(Op::RemoveTombstone(txn)),
        }
    }
    for table in loaded.tables {
        turns.next().await;
        let binds: SmallVec<[BindEntry; 1]> = table
            .binds
            .iter()
            .map(|bind| {
                let owner = state.service(bind.owner).unwrap_or_else(|| {
                    forgotten(&state, bind.owner, wait_ttl, now, exclusive && clean)
                });
                owner.references.fetch_add(1, Ordering::AcqRel);
                BindEntry { owner, version: bind.version, pins: Arc::new(Pins::default()) }
            })
            .collect();
        state.ids.upsert(table.id, || table.table.clone(), |_| ());
        let tokens_reserved_to = table.tokens_reserved_to;
        let entry =
            TableEntry { id: table.id, tokens_reserved_to, binds, pending: None, leaving: false };
        state.tables.upsert(table.table, || entry, |_| ());
    }
    // In this order: what is no longer needed goes after what makes it so. Repeated from the start
    // if it is interrupted.
    for some in batch.chunks(settings.batch_max) {
        match store.write(epoch, applied + 1, &some.to_vec()).await {
            Ok(ack) if ack.lineage == lineage => {}
            Ok(_) => return Err(another_store()),
            // L2: settled by reading the number. It is a new leadership's write, so no other can
            // have that number.
            Err(e) if e.kind() == ErrorKind::UnknownOutcome => {
                if store.applied().await?
                    != (Applied { epoch, number: applied + 1, lineage: lineage.clone() })
                {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
        applied += 1;
    }
    state.applied.store(applied, Ordering::Release);
    Ok(Opened { state, names, epoch, applied, constants_later })
}

/// Reads everything. A shared store that does not answer is asked again for `patience`, as long as
/// the leadership lasts: to give that up would cost the cluster another TTL.
async fn load(
    store: &dyn BindStore,
    clock: &dyn Clock,
    leadership: &LeadershipCell,
    exclusive: bool,
    patience: Duration,
) -> Result<StoreState> {
    let give_up = clock.now() + patience;
    loop {
        match store.load().await {
            Err(e) if e.kind() == ErrorKind::Unavailable && !exclusive => {
                // It is renewed meanwhile, but whoever cannot read must let another lead.
                let now = clock.now();
                if leadership.remaining(now).is_zero() || give_up.remaining(now).is_zero() {
                    return Err(e);
                }
                tracing::warn!(store = %store.describe(), error = ?e, "cannot read the store yet; \
                    trying again");
                tokio::time::sleep(LOAD_AGAIN).await;
            }
            loaded => return loaded,
        }
    }
}

/// Asks for the leadership. `Ok(Err(..))` says who holds it.
pub(in crate::allocator) async fn acquire(
    store: &dyn BindStore,
    clock: &dyn Clock,
    candidate: &Candidate,
    ttl: Duration,
) -> Result<Result<Acquired, HeldBy>> {
    let sent = clock.now();
    Ok(match store.acquire_leadership(candidate, ttl).await? {
        Leadership::Acquired {
            epoch,
            applied,
            exclusive,
            clean,
            continuous,
            loss,
            history,
            floor,
            lineage,
            cluster,
        } => Ok(Acquired {
            epoch,
            applied,
            exclusive,
            clean,
            continuous,
            loss,
            history,
            floor,
            lineage,
            cluster,
            sent,
        }),
        Leadership::Held { seen, address, cluster } => Err(HeldBy { seen, address, cluster }),
    })
}

/// Who holds a leadership that was asked for.
#[derive(Debug)]
pub(in crate::allocator) struct HeldBy {
    pub(in crate::allocator) seen: Seen,
    pub(in crate::allocator) address: Option<NodeAddress>,
    pub(in crate::allocator) cluster: Option<Cluster>,
}

fn restore_tombstone(origin: &Service, txn: TxnId, now: Time) {
    let marked = origin.commits.tombstone(txn, now, |marked| marked);
    match marked {
        Ok(Marked::ToWrite(generation)) => origin.commits.durable(txn, generation),
        // Over the limit of this run's settings: refuse all of the origin rather than forget one.
        Ok(Marked::Full) | Err(_) => origin.fence(),
        Ok(Marked::Committing | Marked::Durable | Marked::Fenced | Marked::Over) => {}
    }
}

/// An owner whose record is not in the store: it is as good as fenced, and its binds void.
fn forgotten(
    state: &AllocatorState,
    id: ServiceId,
    ttl: Duration,
    now: Time,
    clean: bool,
) -> Arc<Service> {
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
