//! [`AllocatorState`]: incarnations, tables and binds in memory, and commit admission over them.
//! Pure: takes time as an argument, never touches the store, never waits.
//!
//! | file | noun |
//! |---|---|
//! | `service` | an incarnation: its lease, the control state of its commits |
//! | `leases` | the lease of an incarnation, as one atomic word |
//! | `table` | a table: its number, its binds |
//! | `slots` | the places in which a commit finds each bind |
//! | `pins` | the pins that keep a bind in place while a commit is in flight |
//! | `admission` | `begin_commit`, through all of these |
//! | `commits` | the commits in flight and the tombstones of one origin |
//! | `tokens` | numbers that are never handed out twice |
//! | `errors` | errors that several parts return |
//!
//! ```text
//!   begin_commit ──▶ slots: pin, compare ──▶ commits: register (one stripe)
//!   cannot_commit ─────────────────────────▶ commits: tombstone
//!   bind, keepalive, resign ──▶ services: lease ──▶ tables: bind ──▶ slots: open, close
//! ```
//!
//! # Invariants
//! - A partition's bind is valid while its owner's lease holds ([`Service::holds`]); it is
//!   *invalid* from the moment it does not (B3).
//! - Memory says of a table only what is durable: a grant appears in [`TableEntry::binds`] when its
//!   write landed. [`TableEntry::pending`] says that a write is under way; there is at most one per
//!   table.
//! - A table that is being forgotten is [leaving](TableEntry::leaving), and its binds are closed,
//!   until it is gone: no pin is added to it.
//! - The owner of a bind is seen live after the bind was pinned. A caller that waits for pins first
//!   makes the owner not live, then looks at the pins of each bind by an exchange of their word
//!   ([`Pins::held`](pins::Pins::held)): every admission before that is counted, every later one
//!   refused.
//! - [`ids`](AllocatorState::ids) has a bind's slot before [`tables`](AllocatorState::tables) has
//!   the bind: each bind that a caller has got is found.
//!
//! # Locks, in the order of taking
//! 1. one shard of `tables` or a copy of `services`;
//! 2. one shard of `ids`, [`forgotten`](AllocatorState::forgotten), the free slots, or one stripe
//!    of a [`CommitControl`](commits::CommitControl). A write that closes over a bind may fence its
//!    lapsed owner, stripe after stripe, under the table's shard.

mod admission;
pub(crate) mod commits;
mod errors;
#[cfg(test)]
mod fixture;
pub(crate) mod leases;
#[cfg(all(test, loom))]
mod loom;
pub(crate) mod pins;
mod service;
pub(crate) mod slots;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;
pub(crate) mod tokens;

use std::collections::HashMap;
use std::sync::Arc;

use crate::allocator::leader::leadership::LeadershipCell;
use crate::allocator::leader::origins::Origins;
use crate::allocator::messages::{Progress, Registration, TableClaim};
use crate::allocator::state::slots::BindSlots;
use crate::allocator::state::tokens::{NextBlock, NumberSequence, TokenSource};
use crate::bind::BindSlot;
use crate::clock::Time;
use crate::error::Result;
use crate::guarded_map::{GuardedMap, ReadMostlyMap};
use crate::id::{
    BindVersion, Epoch, EpochNumber, FencingToken, Nonce, ServiceId, TableId, TableRef, WriteNumber,
};
use crate::store::{Cluster, Forgotten, LeadershipHistory};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use self::errors::{lease_lost, not_leading, not_reported, reassigning, stopping};
pub(crate) use self::service::Service;
pub(crate) use self::table::{BindEntry, TableById, TableClaims, TableEntry};

/// The largest number of tables of which the next process of a node learns that they are held.
const LEFT_MAX: usize = 10_000;

/// Everything the allocator knows. Shared by all its callers; see the [module](self) for its locks.
#[derive(Debug)]
pub(crate) struct AllocatorState {
    /// Every table, by group and name.
    pub(crate) tables: GuardedMap<TableRef, TableEntry>,
    /// Every incarnation.
    pub(crate) services: ReadMostlyMap<ServiceId, Arc<Service>>,
    /// The record of forgotten tables. Locked while a batch that depends on it is queued.
    pub(crate) forgotten: Mutex<Forgotten>,
    /// The name of each table and the slots of its binds, by its number.
    pub(crate) ids: GuardedMap<TableId, TableById>,
    /// Every bind, as commits see it.
    pub(crate) slots: Arc<BindSlots>,
    /// Versions, incarnations, table ids.
    pub(crate) sequence: NumberSequence,
    /// The source of tokens.
    pub(crate) tokens: TokenSource,
    /// Every token in a block that was planned is below this. Released by `token_block`, acquired
    /// by `progress`.
    pub(crate) tokens_end: AtomicU64,
    /// True if the store is open to this process alone (L1).
    pub(crate) exclusive: bool,
    /// The time until which the leader may respond (L1).
    pub(crate) leadership: Arc<LeadershipCell>,
    /// The number of the last write that landed. Released by the writer and the opening, acquired
    /// by `progress`.
    pub(crate) applied: AtomicU64,
    /// The first epoch of this leadership.
    pub(crate) first_epoch: Epoch,
    /// The leader's nonce.
    pub(crate) leader: Nonce,
    /// The cluster of the store.
    pub(crate) cluster: Cluster,
    /// An epoch that the clock of the store's server vouches for; the first of this leadership
    /// where there is none.
    pub(crate) vouched: Epoch,
    /// Incarnations below this are of earlier leaderships.
    pub(crate) first_service: ServiceId,
    /// True once the store knows that the wait until [`held_until`](Self::held_until) is over.
    /// Released by the writer, acquired by the sweep.
    pub(crate) resolved: AtomicBool,
    /// Progress of leaderships below this epoch is accounted for (L4). Released by the writer when
    /// a data loss is resolved, acquired when progress is compared.
    pub(crate) observed_before: AtomicU64,
    /// The writes at which this leadership and those before it began (L4).
    pub(crate) history: LeadershipHistory,
    /// Until then only earlier binds are granted, and no commit is admitted: the store may have
    /// lost writes. Every node that has observed such writes must first have run out of lease, or
    /// have reported them (L4). The time is past if the store is known to be whole.
    pub(crate) held_until: Time,
    /// Until then every transaction of an earlier leadership counts as committing (L1). Past after
    /// a clean stop.
    pub(crate) earlier_until: Time,
    /// Largest number of binds in one commit.
    pub(crate) commit_binds_max: usize,
    /// The origins of this process.
    pub(crate) origins: Arc<Origins>,
    /// False once the allocator is being stopped. Released by `shutdown`, acquired by
    /// `start_incarnation`; elsewhere a hint.
    pub(crate) admitting: AtomicBool,
}

impl AllocatorState {
    /// An empty state in `epoch`, on a store whose last write was `applied`; its numbers are above
    /// `from`.
    pub(crate) fn new(
        epoch: Epoch,
        from: EpochNumber,
        applied: WriteNumber,
        tokens: TokenSource,
        commit_binds_max: usize,
    ) -> Self {
        Self {
            tables: GuardedMap::new(),
            services: ReadMostlyMap::new(),
            forgotten: Mutex::new(Forgotten::default()),
            ids: GuardedMap::new(),
            slots: Arc::new(BindSlots::new()),
            sequence: NumberSequence::new(from, epoch),
            tokens,
            tokens_end: AtomicU64::new(0),
            exclusive: true,
            leadership: Arc::new(LeadershipCell::exclusive()),
            applied: AtomicU64::new(applied.get()),
            first_epoch: epoch,
            leader: Nonce::default(),
            cluster: Cluster::random(),
            vouched: epoch,
            first_service: from.next().into(),
            resolved: AtomicBool::new(true),
            observed_before: AtomicU64::new(0),
            history: LeadershipHistory::default(),
            held_until: Time::ZERO,
            earlier_until: Time::ZERO,
            commit_binds_max,
            origins: Arc::default(),
            admitting: AtomicBool::new(true),
        }
    }

    /// The number of the last write that landed.
    fn applied(&self) -> WriteNumber {
        // ORDERING: Acquire, the partner of the writer's release: a response names no less than
        // the write it rests on.
        WriteNumber::new(self.applied.load(Ordering::Acquire))
    }

    /// The progress of this leadership.
    pub(crate) fn progress(&self) -> Progress {
        let write = self.applied();
        // Read last: the numbers of a response were taken before it.
        let tokens_end = EpochNumber::new(self.tokens_end.load(Ordering::Acquire));
        let high_water = self.sequence.end().max(tokens_end);
        Progress { epoch: self.sequence.epoch(), write, high_water, leader: self.leader }
    }

    /// The next block of tokens of a table whose blocks so far end at `reserved_to`; see
    /// [`TokenSource::block`].
    pub(crate) fn token_block(&self, reserved_to: FencingToken) -> Result<NextBlock> {
        let block = self.tokens.block(reserved_to, self.sequence.epoch())?;
        if let NextBlock::Reserved(block) = &block {
            // ORDERING: Release, the partner of the acquire in `progress`. It is published before
            // it is durable: at worst the mark is higher than the numbers that were handed out.
            self.tokens_end.fetch_max(block.end.get(), Ordering::AcqRel);
        }
        Ok(block)
    }

    /// True if `observed` cannot be of this store: a leadership it knows nothing of, or a write
    /// that it had lost when this leadership began (L4).
    pub(crate) fn went_back(&self, observed: Progress) -> bool {
        if observed.epoch > self.sequence.epoch() {
            return true;
        }
        let mine = observed.leader == self.leader || observed.leader == Nonce::default();
        if observed.epoch >= self.first_epoch && mine {
            // This leadership published it, and its store has lost it since.
            return observed.write > self.applied();
        }
        // ORDERING: Acquire, the partner of the writer's release when a data loss is resolved.
        observed.epoch.get() >= self.observed_before.load(Ordering::Acquire)
            && self.history.lost(observed.epoch, observed.leader, observed.write)
    }

    /// Fails with `Unavailable` once the leadership has run out, `NotLeader` once it has ended
    /// (L1).
    pub(crate) fn check_leading(&self, now: Time) -> Result<()> {
        if !self.leadership.remaining(now).is_zero() {
            return Ok(());
        }
        // ORDERING: only a hint to fail well, without a partner.
        if !self.admitting.load(Ordering::Relaxed) {
            return Err(stopping());
        }
        Err(not_leading(self.leadership.ended()))
    }

    /// True if an incarnation with a higher number than `id` is in the store, ended or not.
    pub(crate) fn later_incarnation(&self, id: ServiceId) -> bool {
        let mut later = false;
        self.services.for_each(|known, _| later |= *known > id);
        later
    }

    /// Looks an incarnation up. Creates nothing.
    pub(crate) fn service(&self, id: ServiceId) -> Option<Arc<Service>> {
        self.services.read(&id, |service| service.map(Arc::clone))
    }

    /// The first incarnation that one which starts by `request` surely follows (P6); 0 if there is
    /// none. It names with its nonce the one that it replaces, so it is the next process of that.
    pub(crate) fn follows(&self, request: &Registration) -> ServiceId {
        let replaced = request.replaces.and_then(|(service, nonce)| {
            let known = self.service(service)?;
            (known.nonce == nonce && known.node == request.node).then_some(known)
        });
        replaced.map_or(ServiceId::default(), |replaced| match replaced.follows {
            first if first != ServiceId::default() => first,
            _ => replaced.id,
        })
    }

    /// True if an incarnation surely is over because the store was opened exclusively after it.
    pub(crate) fn is_over(&self, service: ServiceId) -> bool {
        self.exclusive && service < self.first_service
    }

    /// The tables that earlier processes of a node left held when they resigned for a restart, as
    /// far as their binds are still those. At most [`LEFT_MAX`]: the others wait for their holders.
    pub(crate) fn left_to(&self, service: ServiceId) -> Vec<TableClaim> {
        let Some(service) = self.service(service) else { return Vec::new() };
        let mut owners = Vec::new();
        self.services.for_each(|_, owner| {
            if owner.left().is_some() && owner.is_followed_by(&service, self.is_over(owner.id)) {
                owners.push(Arc::clone(owner));
            }
        });
        let mut left = Vec::new();
        for owner in owners {
            for table in owner.left().into_iter().flat_map(HashMap::keys) {
                let name = self.ids.read(table, |known| known.map(|known| known.name.clone()));
                let claim = name.and_then(|name| {
                    self.tables.read(&name, |entry| {
                        let bind = entry?.binds.first()?;
                        let version = (bind.owner.id == owner.id).then_some(bind.version)?;
                        Some(TableClaim { table: name.clone(), version })
                    })
                });
                left.extend(claim);
            }
        }
        left.sort_unstable_by(|a, b| a.table.cmp(&b.table));
        left.truncate(LEFT_MAX);
        left
    }

    /// Adds the binds of `owner` to `binds`, of the tables in one shard, with their slots; returns
    /// how many tables those are. Once its lease is not live, no commit is admitted on one of them
    /// that [`BindSlots::held`] does not count.
    pub(crate) fn binds_in(
        &self,
        shard: usize,
        owner: ServiceId,
        binds: &mut Vec<(BindSlot, BindVersion)>,
    ) -> usize {
        self.tables.for_each_in(shard, |_, entry| {
            let own = entry.binds.iter().filter(|bind| bind.owner.id == owner);
            binds.extend(own.map(|bind| (bind.slot.at(), bind.version)));
        })
    }
}
