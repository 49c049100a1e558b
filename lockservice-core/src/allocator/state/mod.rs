//! [`AllocatorState`]: incarnations, tables and binds in memory, and commit admission over them.
//! Pure: takes time as an argument, never touches the store, never waits.
//!
//! # Invariants
//! - A partition's bind is valid while its owner's lease holds ([`Service::holds`]); it is *void*
//!   from the moment it does not (B3).
//! - What memory says of a table was durable before it was visible: a grant appears in
//!   [`TableEntry::binds`] when its write landed. [`TableEntry::pending`] says that a write is
//!   under way; there is at most one per table.
//! - A table that is being forgotten is [leaving](TableEntry::leaving) until it is gone: no pin is
//!   added to it.
//! - A pin is added under the shard's read lock, after the owner was seen live there. Whoever waits
//!   for pins first makes the owner not live, then visits the shard under its write lock: every
//!   admission before is counted then, every later one refused.
//!
//! # Locks, in the order of taking
//! 1. one shard of `tables`, of `services` or of `ids`: never two;
//! 2. [`forgotten`](AllocatorState::forgotten), or one stripe of a [`CommitControl`]. A write that
//!    closes over a bind may fence its lapsed owner, stripe after stripe, under the
//!    table's shard.

pub mod commits;
pub mod leases;
pub mod tokens;

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{Notify, watch};

use crate::allocator::leader::leadership::LeadershipCell;
use crate::allocator::leader::origins::Origins;
use crate::allocator::messages::{
    BeginCommit, BindState, BindStatus, CommitAdmission, PresentedBind, Progress,
};
use crate::allocator::state::commits::{CommitControl, Pin, PinSet, Pins, TxnLife};
use crate::allocator::state::leases::{LeaseCell, LeaseState};
use crate::allocator::state::tokens::{NextBlock, NumberSequence, TokenSource};
use crate::bind::Bind;
use crate::clock::{Time, hi};
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::guarded_map::GuardedMap;
use crate::id::{
    BindVersion, CommitAttempt, Epoch, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId,
};
use crate::store::{
    BindRecord, Cluster, Forgotten, LeadershipHistory, ServiceRecord, ServiceState, TableRecord,
};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// When to ask again about a transaction that its origin has not told of: it tells ahead, and at
/// once when it falls behind.
const TELLS_AGAIN: Duration = Duration::from_millis(50);

/// An incarnation (B1), with its lease and the control state of its commits.
#[derive(Debug)]
pub struct Service {
    /// The incarnation's id.
    pub id: ServiceId,
    /// The node it is an incarnation of.
    pub node: NodeName,
    /// Tells it from any other with the same id.
    pub nonce: Nonce,
    /// Where clients reach it.
    pub address: String,
    /// How long a renewal holds. For one of an earlier leadership the longer of the old and the new
    /// constant (B4).
    pub ttl: Duration,
    /// Whether it is alive.
    pub lease: LeaseCell,
    /// The commits of its transactions.
    pub commits: CommitControl,
    /// True once a state below `Live` is in the store.
    pub end_durable: AtomicBool,
    /// Binds and writes of binds that name it. The record goes only at zero.
    pub references: AtomicUsize,
    /// Told when its resignation has landed.
    pub gone: Notify,
}

impl Service {
    /// An incarnation whose lease was last renewed at `renewed_at`.
    pub fn new(
        record: ServiceRecord,
        ttl: Duration,
        renewed_at: Time,
        state: LeaseState,
        commits_max: usize,
    ) -> Self {
        Self {
            id: record.id,
            node: record.node,
            nonce: record.nonce,
            address: record.address,
            ttl,
            lease: LeaseCell::new(renewed_at, state),
            commits: CommitControl::new(commits_max),
            end_durable: AtomicBool::new(record.state != ServiceState::Live),
            references: AtomicUsize::new(0),
            gone: Notify::new(),
        }
    }

    /// Its resignation is durable: what it held may be granted anew at once. Changes nothing if it
    /// was fenced meanwhile.
    pub fn finish_resign(&self) {
        if self.lease.finish_resign() {
            self.gone.notify_waiters();
        }
    }

    /// True while its binds are valid. To be told to nobody if it is false: see
    /// [`check_holds`](Self::check_holds).
    pub fn holds(&self, now: Time) -> bool {
        self.lease.get().holds(self.ttl, now)
    }

    /// As [`holds`](Self::holds), and fences it if it has lapsed: what somebody was told is over is
    /// renewed by nothing, also not by a thread that has read the clock before.
    pub fn check_holds(&self, now: Time) -> bool {
        self.holds(now) || {
            self.fence_if_lapsed(now);
            self.holds(now)
        }
    }

    /// Renews its lease. False, with the lease fenced, if it has lapsed or was fenced before.
    pub fn renew(&self, now: impl Fn() -> Time) -> bool {
        self.lease.renew(self.ttl, &now) || {
            self.fence_if_lapsed(now());
            false
        }
    }

    /// Its record, in `state`.
    pub fn record(&self, state: ServiceState) -> ServiceRecord {
        ServiceRecord {
            id: self.id,
            node: self.node.clone(),
            nonce: self.nonce,
            address: self.address.clone(),
            state,
        }
    }

    /// What became of it, as the store would say.
    pub fn state(&self) -> ServiceState {
        match self.lease.get().state {
            LeaseState::Live | LeaseState::Resigning => ServiceState::Live,
            LeaseState::Fenced => ServiceState::Fenced,
            LeaseState::Resigned => ServiceState::Resigned,
        }
    }

    /// Fences it if its lease has lapsed; its transactions too, before anything of it can be given
    /// away. False if it holds, or is fenced already.
    pub fn fence_if_lapsed(&self, now: Time) -> bool {
        let lapsed = self.lease.fence_if(|lease| lease.lapsed(self.ttl, now));
        if lapsed {
            self.commits.fence();
        }
        lapsed
    }

    /// Fences it whether it lapsed or not (it is replaced).
    pub fn fence(&self) {
        self.lease.fence_if(|_| true);
        self.commits.fence();
    }
}

/// A lock table.
#[derive(Debug)]
pub struct TableEntry {
    /// The table's number (B6).
    pub id: TableId,
    /// First token that no block has covered yet, as the store says (F2).
    pub tokens_reserved_to: u64,
    /// One bind per partition. Empty until the first grant landed.
    pub binds: SmallVec<[BindEntry; 1]>,
    /// Closes when the write that is under way has landed or failed.
    pub pending: Option<watch::Receiver<()>>,
    /// True while the write that is under way forgets the table: nothing may rely on its binds any
    /// more.
    pub leaving: bool,
}

/// Whom a partition is, or was last, bound to.
#[derive(Debug, Clone)]
pub struct BindEntry {
    /// The owner.
    pub owner: Arc<Service>,
    /// The bind's version.
    pub version: BindVersion,
    /// The commits in flight on it.
    pub pins: Arc<Pins>,
}

impl TableEntry {
    /// The table's record with these binds and this end of its token blocks.
    pub fn record(
        &self,
        table: &TableRef,
        binds: &[BindEntry],
        tokens_reserved_to: u64,
    ) -> TableRecord {
        TableRecord {
            table: table.clone(),
            id: self.id,
            partitions: binds.len() as u32,
            tokens_reserved_to,
            binds: binds
                .iter()
                .map(|bind| BindRecord { owner: bind.owner.id, version: bind.version })
                .collect(),
        }
    }

    /// What an operator sees of one partition.
    pub fn status(&self, table: &TableRef, partition: u32, now: Time) -> Option<BindStatus> {
        let bind = self.binds.get(partition as usize)?;
        let lease = bind.owner.lease.get();
        let state = if lease.holds(bind.owner.ttl, now) {
            BindState::Bound
        } else {
            BindState::Invalid { reassigned_in: lease.reassigned_in(bind.owner.ttl, now) }
        };
        Some(BindStatus {
            bind: Bind {
                table: table.clone(),
                id: self.id,
                partition,
                owner: bind.owner.id,
                version: bind.version,
            },
            node: bind.owner.node.clone(),
            address: bind.owner.address.clone(),
            state,
        })
    }
}

/// Everything the allocator knows. Shared by all its callers; see the [module](self) for its locks.
#[derive(Debug)]
pub struct AllocatorState {
    /// Every table, by group and name.
    pub tables: GuardedMap<TableRef, TableEntry>,
    /// Every incarnation.
    pub services: GuardedMap<ServiceId, Arc<Service>>,
    /// What is kept of tables that were forgotten. Locked while what follows from it is queued.
    pub forgotten: Mutex<Forgotten>,
    /// The name of each table, by its number.
    pub ids: GuardedMap<TableId, TableRef>,
    /// Versions, incarnations, table ids.
    pub sequence: NumberSequence,
    /// Where tokens come from.
    pub tokens: TokenSource,
    /// Every token in a block that was planned is below this.
    pub tokens_end: AtomicU64,
    /// True if the store is open to this process alone (L1).
    pub exclusive: bool,
    /// How long the leader may still answer (L1).
    pub leadership: Arc<LeadershipCell>,
    /// The number of the last write that landed.
    pub applied: AtomicU64,
    /// The first epoch of this leadership.
    pub first_epoch: Epoch,
    /// The leader's nonce.
    pub leader: Nonce,
    /// Whose the store is.
    pub cluster: Cluster,
    /// An epoch that the clock of the store's server vouches for; the first of this leadership
    /// where there is none.
    pub vouched: Epoch,
    /// Incarnations below this are of earlier leaderships.
    pub first_service: ServiceId,
    /// True once the store knows that the wait until [`held_until`](Self::held_until) is over.
    pub resolved: AtomicBool,
    /// What leaderships before this one told is accounted for (L4).
    pub observed_before: AtomicU64,
    /// Where this leadership and those before it began (L4).
    pub history: LeadershipHistory,
    /// Until then nothing is granted that was not bound before, and no commit is admitted: the
    /// store may have lost writes, and whoever was told of them must have run out of lease, or have
    /// said so, first (L4). Past if the store is known to be whole.
    pub held_until: Time,
    /// Until then every transaction of an earlier leadership counts as committing (L1). Past after
    /// a clean stop.
    pub earlier_until: Time,
    /// Largest number of binds in one commit.
    pub commit_binds_max: usize,
    /// The origins of this process.
    pub origins: Arc<Origins>,
    /// False once the allocator is being stopped.
    pub admitting: AtomicBool,
}

impl AllocatorState {
    /// An empty state in `epoch`, on a store whose last write was `applied`; its numbers are above
    /// `from`.
    pub fn new(
        epoch: Epoch,
        from: u64,
        applied: u64,
        tokens: TokenSource,
        commit_binds_max: usize,
    ) -> Self {
        Self {
            tables: GuardedMap::new(),
            services: GuardedMap::new(),
            forgotten: Mutex::new(Forgotten::default()),
            ids: GuardedMap::new(),
            sequence: NumberSequence::new(from, epoch),
            tokens,
            tokens_end: AtomicU64::new(0),
            exclusive: true,
            leadership: Arc::new(LeadershipCell::exclusive()),
            applied: AtomicU64::new(applied),
            first_epoch: epoch,
            leader: Nonce::default(),
            cluster: Cluster::random(),
            vouched: epoch,
            first_service: ServiceId::new(from + 1),
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

    /// How far this leadership has come.
    pub fn progress(&self) -> Progress {
        // ORDERING: Acquire, the partner of the writer's release: an answer names no less than the
        // write it rests on.
        let write = self.applied.load(Ordering::Acquire);
        // Read last: what an answer tells of was taken before it.
        let numbers = self.sequence.end().max(self.tokens_end.load(Ordering::Acquire));
        Progress { epoch: self.sequence.epoch(), write, high_water: numbers, leader: self.leader }
    }

    /// The next block of tokens of a table whose blocks so far end at `reserved_to`; see
    /// [`TokenSource::block`].
    pub fn token_block(&self, reserved_to: u64) -> Result<NextBlock> {
        let block = self.tokens.block(reserved_to, self.sequence.epoch())?;
        if let NextBlock::Reserved(block) = &block {
            // ORDERING: Release, the partner of the acquire in `progress`. Before it is durable: at
            // worst more is told than was handed out.
            self.tokens_end.fetch_max(block.end.get(), Ordering::AcqRel);
        }
        Ok(block)
    }

    /// True if `observed` cannot be of this store: a leadership it knows nothing of, or a write
    /// that it had lost when this leadership began (L4).
    pub fn went_back(&self, observed: Progress) -> bool {
        if observed.epoch > self.sequence.epoch() {
            return true;
        }
        let mine = observed.leader == self.leader || observed.leader == Nonce::default();
        if observed.epoch >= self.first_epoch && mine {
            // This one told what its store has lost since.
            return observed.write > self.applied.load(Ordering::Acquire);
        }
        // ORDERING: Acquire, the partner of the writer's release when it settles a doubt.
        observed.epoch.get() >= self.observed_before.load(Ordering::Acquire)
            && self.history.lost(observed.epoch, observed.leader, observed.write)
    }

    /// Fails with `Unavailable` once the leader must not answer (L1).
    pub fn check_leading(&self, now: Time) -> Result<()> {
        if !self.leadership.remaining(now).is_zero() {
            return Ok(());
        }
        // ORDERING: only a hint to answer well.
        if !self.admitting.load(Ordering::Relaxed) {
            return Err(stopping());
        }
        Err(not_leading(self.leadership.ended()))
    }

    /// True if an incarnation with a higher number than `id` is in the store, ended or not.
    pub fn later_incarnation(&self, id: ServiceId) -> bool {
        let mut later = false;
        self.services.for_each(|known, _| later |= *known > id);
        later
    }

    /// Looks an incarnation up. Creates nothing.
    pub fn service(&self, id: ServiceId) -> Option<Arc<Service>> {
        self.services.read(&id, |service| service.map(Arc::clone))
    }

    /// Validates and admits a commit (C1 to C3), or refuses it. No store, no wait, no global lock;
    /// creates nothing on a miss.
    pub fn begin_commit(&self, request: &BeginCommit, now: Time) -> Result<CommitAdmission> {
        let txn = request.txn;
        // ORDERING: only a hint to answer well; what keeps commits out of a stop is the fence of
        // every origin.
        if !self.admitting.load(Ordering::Relaxed) {
            return Err(stopping());
        }
        self.check_leading(now)?;
        let held = self.held_until.remaining(now);
        if !held.is_zero() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the store may have lost writes, and whoever was told of them is waited for: try \
                    again",
            )
            .with_detail(Detail::RetryAfter(held)));
        }
        if !txn.validates() {
            return Err(Error::new(
                ErrorKind::CannotCommit,
                "the transaction said at its start that it would not validate: start a validating \
                    one",
            )
            .with("txn", txn));
        }
        if request.binds.len() > self.commit_binds_max {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "the commit presents too many binds: lock fewer tables in one transaction, or \
                    raise commit_binds_max",
            )
            .with("binds", request.binds.len()));
        }
        let Some(origin) = self.service(txn.origin) else {
            return Err(Error::new(
                ErrorKind::CannotCommit,
                "the transaction's origin is unknown: start a new transaction",
            )
            .with("txn", txn));
        };
        self.check_alive(&origin, txn)?;
        // C1: no commit outlives the leadership, nor the leases it rests on.
        let mut window = request
            .asked
            .most
            .min(origin.lease.get().remaining(origin.ttl, now))
            .min(self.leadership.remaining(now));
        let mut pins = PinSet::new();
        for presented in &request.binds {
            let (pin, remaining) = self.pin(presented, window, now)?;
            pins.push(pin);
            window = window.min(remaining);
        }
        if window < request.asked.least || window.is_zero() {
            // An origin whose lease is over is told so: more time will not come.
            if !origin.check_holds(now) {
                return Err(Error::new(
                    ErrorKind::CannotCommit,
                    "the transaction's origin is fenced: start a new transaction",
                )
                .with("txn", txn));
            }
            return Err(Error::new(
                ErrorKind::Timeout,
                "less time is left of a lease than the commit needs: try again",
            )
            .with("txn", txn)
            .with("left_ms", window.as_millis()));
        }
        let commit_before = origin.commits.admit(txn, request.attempt, pins, window, now)?;
        if commit_before < request.asked.least {
            return Err(Error::new(
                ErrorKind::CannotCommit,
                "somebody asked for the end of the transaction, and less time is left of its \
                 admission than it needs: start a \
                 new one",
            )
            .with("txn", txn)
            .with("left_ms", commit_before.as_millis()));
        }
        Ok(CommitAdmission { commit_before, at: self.progress() })
    }

    /// Fails unless the transaction has begun and has not ended, as far as its origin has told
    /// (C4).
    fn check_alive(&self, origin: &Service, txn: TxnId) -> Result<()> {
        match self.origins.life(txn) {
            Some(TxnLife::Alive) => Ok(()),
            None if origin.commits.may_have_begun(txn) => Ok(()),
            None => Err(not_told(txn)),
            Some(life) => Err(not_alive(txn, life)),
        }
    }

    /// Ends an admitted commit. Idempotent; unknown ones change nothing.
    pub fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) {
        if let Some(origin) = self.service(txn.origin) {
            origin.commits.finish(txn, attempt);
        }
    }

    /// Adds to `pins` what holds the binds of `owner` in place, of the tables in one shard; returns
    /// how many tables those are. Once its lease is not live, no commit that these do not count can
    /// be admitted on them.
    pub fn pins_in(&self, shard: usize, owner: ServiceId, pins: &mut Vec<Arc<Pins>>) -> usize {
        // Exclusively: a commit that saw the owner live under the shard's lock has added its pin
        // before this gets the lock.
        self.tables.update_each_in(shard, |_, entry| {
            let own = entry.binds.iter().filter(|bind| bind.owner.id == owner);
            pins.extend(own.map(|bind| Arc::clone(&bind.pins)));
        })
    }

    /// Compares and pins one presented bind, under its shard's lock (C3), and answers what is left
    /// of its owner's lease.
    fn pin(
        &self,
        presented: &PresentedBind,
        window: Duration,
        now: Time,
    ) -> Result<(Pin, Duration)> {
        let pinned = self.tables.read(&presented.table, |entry| {
            let entry = entry.filter(|entry| !entry.leaving)?;
            let bind = entry.binds.get(presented.partition as usize)?;
            if bind.version != presented.version
                || bind.owner.id != presented.owner
                || !bind.owner.check_holds(now)
            {
                return None;
            }
            let remaining = bind.owner.lease.get().remaining(bind.owner.ttl, now);
            // The window can only shrink from here, so this is late enough; and it must be there
            // before the shard's lock is left.
            Some((Pin::new(&bind.pins, now + hi(window.min(remaining))), remaining))
        });
        pinned.ok_or_else(|| {
            Error::new(
                ErrorKind::BindChanged,
                "a table that the transaction locked is bound anew, or its bind is void: end the \
                    transaction and start it again",
            )
            .with("table", &presented.table)
            .with("version", presented.version)
        })
    }
}

/// The answer about a transaction that its origin says is not alive.
fn not_alive(txn: TxnId, life: TxnLife) -> Error {
    let message = match life {
        TxnLife::NotBegun => "the transaction was never begun: begin one, and present its id",
        TxnLife::Alive | TxnLife::Over => "the transaction has ended: start a new one",
    };
    Error::new(ErrorKind::CannotCommit, message).with("txn", txn)
}

/// The answer about a transaction of which its origin, another process, has told nothing yet.
pub fn not_told(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the transaction's origin has not told yet that it has begun: try again",
    )
    .with("txn", txn)
    .with_detail(Detail::RetryAfter(TELLS_AGAIN))
}

/// The answer of a leader whose leadership ran out, or ended.
pub fn not_leading(ended: bool) -> Error {
    if ended {
        Error::new(
            ErrorKind::NotLeader,
            "this node does not lead the store any more: ask the leader",
        )
    } else {
        Error::new(
            ErrorKind::Unavailable,
            "the store does not answer, and the leadership has run out: try again; nothing is lost",
        )
    }
}

/// The answer while the allocator is being stopped.
pub fn stopping() -> Error {
    Error::new(
        ErrorKind::ShuttingDown,
        "the allocator is shutting down: try again when it has started anew",
    )
}

/// The answer for an incarnation that may not act any more.
pub fn lease_lost(service: ServiceId) -> Error {
    Error::new(
        ErrorKind::LeaseLost,
        "the service's lease has lapsed, or it was replaced: seal it and start a new incarnation",
    )
    .with("service", service)
}

/// The answer for a table that cannot be granted anew yet (B3).
pub fn reassigning(table: &TableRef, after: Duration) -> Error {
    Error::new(
        ErrorKind::Reassigning,
        "the table's last owner may still be at work: try again when its lease must have run out",
    )
    .with("table", table)
    .with("remaining_ms", after.as_millis())
    .with_detail(Detail::RetryAfter(after))
}
