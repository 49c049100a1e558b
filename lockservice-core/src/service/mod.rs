//! The service: transactions and sessions over the lock engine, under the lease that the allocator
//! gives this node.
//!
//! One [`LockService`] is one **incarnation** of a node (B1). It lives through these phases:
//!
//! | phase | lock | unlock, renew | ends when |
//! |---|---|---|---|
//! | serving | yes | yes | [`shutdown`](LockService::shutdown), or the lease lapses |
//! | stopping | `ShuttingDown` | yes | every session has closed, or the grace is over |
//! | restarting | `Restarting` | `Restarting` | the allocator has responded, or it took too long |
//! | resigning | `ShuttingDown` | no session is left | the allocator has responded |
//! | sealed | the reason | the reason | never: start a new incarnation |
//!
//! # Files
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`LockService`]: started, listed, stopped |
//! | `inner.rs` | the parts of a service, and its effects: time, tasks, the high-water mark |
//! | `stop.rs` | a stop for good |
//! | `phase.rs` | serving, stopping, resigning, sealed |
//! | `messages.rs`, `settings.rs` | requests and responses; limits and defaults |
//! | `lease/` | the lease as a pure value, and its renewal |
//! | `tables/` | binds: found, waited for, supplied with tokens, forgotten |
//! | `txn/` | transactions: lock, end, abandon; who is alive, who waits |
//! | `kill.rs` | what kills of sessions and of transactions share |
//! | `session/` | sessions of clients, and operations that take effect once |
//! | `limits/` | limits of tables: on waits, and on how long locks are held |
//! | `reclaim/` | what was held before a restart, and who claims it |
//! | `list.rs` | locks and waits, with whose they are, for operators |
//! | `metrics.rs` | what is counted, and the present state |
//! | `owners.rs` | sessions and transactions, for operators |
//! | `hot/` | the rows and ranges that calls wait for most, in bounded memory |
//! | `stats.rs`, `worst.rs` | the numbers of a node; its longest waits, its sessions nearest to loss |
//!
//! The way of a lock: `session/operations.rs` (a client) or `txn/mod.rs` (an embedder), then
//! `ServiceInner::lock` (`txn/lock.rs`), `hand_over` (`tables/mod.rs`), the engine, `still_good`
//! (`txn/lock.rs`).
//!
//! # Invariants
//! - **No response rests on a lapsed promise** (B2, P1). The clock is read after the engine has
//!   granted and before the response is made; a grant whose lease, session or transaction is over
//!   by then is rolled back.
//! - **A lapse, a renewal and a grant are each decided in one critical section, in which the clock
//!   is read**: that of the lease, or of the session's promise. Whichever comes first is seen by
//!   the others, however long a thread stops between its reading and its act: what was acknowledged
//!   as renewed has not lapsed, and what was found over is never renewed.
//! - **Sealed is for ever.** The first call that finds the lease over seals the service; a renewal
//!   that is acknowledged later changes nothing.
//! - **A requested stop comes.** Once its shutdown was requested, a service is sealed with
//!   `ShuttingDown`, even if its lease ends meanwhile: `LeaseLost` makes the host start a new
//!   incarnation, and none is wanted.
//! - **First come, first served, also for a table.** Calls that find a table not bound here stand
//!   in one line per table (`line/`), and are made at the engine in its order before any later
//!   one.
//! - **One deadline for everything** that a call waits for: its turn, the bind, the locks, a token.
//!   It is made when the call comes. A call that may not wait waits for none of them; it calls the
//!   allocator once, for a second at most.
//! - **A transaction ends once.** Its state is set before its locks are released, so that a grant
//!   on its way is seen and rolled back.
//! - **A transaction that is ended alone**, by an operator or at a limit, keeps its locks until its
//!   client has ended it, or what was promised for them has run out: see `txn/kill.rs`.
//! - **A lost session's locks** go at once if their transaction does not validate, and otherwise
//!   only after the allocator made it unable to commit (C4); a commit in flight keeps them.

mod hot;
mod inner;
mod kill;
mod lease;
mod limits;
mod list;
mod messages;
mod metrics;
mod owners;
mod phase;
mod reclaim;
mod session;
mod settings;
mod stats;
mod stop;
mod tables;
mod txn;
mod worst;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::allocator::{OriginTxns, Registration};
use crate::clock::Clock;
use crate::env::Handle;
use crate::error::{Error, Result};
use crate::guarded_map::GuardedMap;
use crate::id::{NodeName, Nonce, ServiceId, TableRef};
use crate::key::{Key, LockItem};
use crate::live_txns::LiveTxns;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicBool;
use crate::table::LockEngine;

use crate::service::hot::HotKeys;
use crate::service::lease::{Lease, Serving};
use crate::service::phase::{Departures, Phase, shutting_down};
use crate::service::reclaim::Claims;
use crate::service::session::registry::{Count, Registry, SessionNumbers};
use crate::service::tables::Tables;
use crate::service::tables::line::StandingFilter;
use crate::service::txn::live::ReportedTxns;

pub use self::hot::{HotCounts, HotKey, HotWindow};
pub(crate) use self::inner::ServiceInner;
pub use self::kill::{AUDIT_TARGET, KillEnd, Killed, REASON_BYTES_MAX};
pub use self::limits::{TABLE_LIMITS_MAX, TableLimit, TableLimits};
pub use self::list::{LockList, WaitList};
pub use self::messages::{
    ANCESTORS_MAX, Granted, LockSpec, LockStatus, OpResponse, Operation, Promise, ServiceParts,
    Stopped, TxnOp, TxnOptions, TxnParty, WaitStatus,
};
pub use self::owners::{SessionList, SessionStatus, TxnList, TxnStatus};
pub use self::reclaim::{ClaimedLocks, TxnClaim};
pub use self::session::pending::Pending;
pub use self::session::quota::{CallMemory, OpenCall, Quota, QuotaOwner, QuotaSettings};
pub use self::session::{
    Attachment, HeldFrame, KillUnderWay, OpenedBy, STILL_RUNNING_BYTES_MAX, Session, SessionNotice,
    SessionNotices,
};
pub use self::settings::ServiceSettings;
pub use self::stats::{ServiceStats, Totals};
pub use self::txn::row::{RowLocked, Table};
pub use self::txn::trace::TraceContext;
pub use self::txn::waits::{Waiting, WaitsFor};
pub use self::txn::{ForcedRelease, Txn, TxnKillUnderWay};
pub use self::worst::LongWait;

/// Lines of a slice, where all of a list is wanted.
const SLICE: usize = 1_024;

/// One incarnation of a node: grants locks on the tables it owns. A cheap handle; the last one
/// dropped seals the service.
///
/// ```
/// # use std::time::Duration;
/// # use std::sync::Arc;
/// # use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
/// # use lockservice_core::clock::{Clock, SystemClock};
/// # use lockservice_core::service::{LockService, ServiceParts};
/// # use lockservice_core::store::MemoryStore;
/// # use lockservice_core::NodeName;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lockservice_core::Error> {
/// # let clock: Arc<dyn Clock> = Arc::new(SystemClock);
/// # let (node, store) = (NodeName::new("node-1")?, Arc::new(MemoryStore::new(0)));
/// # let settings = AllocatorSettings::default();
/// # let allocator = LocalAllocator::open(store, clock.clone(), settings, node.clone()).await?;
/// let service = LockService::start(ServiceParts::new(allocator.clone(), clock, node)).await?;
/// // ... sessions and transactions ...
/// // First the service, then what it rests on: the next start has nothing to wait for.
/// let stopped = service.shutdown(Duration::from_secs(1)).await;
/// allocator.shutdown(stopped.confirmed, Duration::from_secs(1)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LockService {
    pub(crate) inner: Arc<ServiceInner>,
    _last: Arc<SealOnDrop>,
}

#[derive(Debug)]
struct SealOnDrop(Arc<ServiceInner>);

impl Drop for SealOnDrop {
    fn drop(&mut self) {
        self.0.seal(shutting_down());
    }
}

impl LockService {
    /// Starts a node as a new incarnation: obtains a lease from the allocator and keeps it.
    ///
    /// Must be called within a tokio runtime with time enabled, on which the service's tasks then
    /// run.
    ///
    /// # Errors
    /// `InvalidArgument` for settings that make no sense, and those of
    /// [`register`](crate::allocator::LockTableAllocator::register).
    ///
    /// # Cancel safety
    /// An incarnation that was registered for a dropped call ends with its lease.
    pub async fn start(parts: ServiceParts) -> Result<Self> {
        parts.settings.check()?;
        let nonce = Nonce::new(parts.env.random_id());
        let sent = parts.env.now();
        let register = Registration {
            node: parts.node.clone(),
            nonce,
            address: parts.address.clone(),
            replaces: parts.replaces,
        };
        let incarnation = parts.allocator.register(&register).await?;
        let lease = Lease::new(sent, incarnation.lease_ttl);
        let inner = Arc::new(ServiceInner {
            id: incarnation.service,
            nonce,
            engine: LockEngine::with_clock(parts.settings.engine, Arc::clone(parts.env.clock())),
            tables: Tables::default(),
            claims: Claims::new(parts.env.now(), incarnation.lease_ttl),
            txns: Count::new("transactions", parts.settings.txns_max),
            named_txns: GuardedMap::new(),
            quota: Quota::new(QuotaOwner::Node, parts.settings.quota(), None),
            sessions: Registry::new("sessions", parts.settings.sessions_max),
            session_numbers: SessionNumbers::default(),
            live: ReportedTxns::new(),
            serving: Serving::new(&lease),
            lease: Mutex::new(lease),
            observed: Mutex::new(incarnation.at),
            phase: watch::Sender::new(Phase::Serving),
            departures: Departures::default(),
            limits_holds: AtomicBool::new(false),
            slow_waits: txn::slow::SlowWaits::default(),
            // Clients do not know the nonce.
            hot: HotKeys::new(parts.settings.hot_keys_max, nonce.get()),
            runtime: Handle::current(),
            parts,
        });
        tracing::info!(
            node = %inner.parts.node,
            service = %inner.id,
            lease = ?incarnation.lease_ttl,
            "service started"
        );
        let live: Arc<dyn OriginTxns> = Arc::<LiveTxns>::clone(&inner.live.txns);
        inner.parts.allocator.attach_origin(inner.id, live);
        inner.spawn(lease::renewal::keep_lease(Arc::clone(&inner)));
        inner.spawn(txn::live::report(Arc::clone(&inner)));
        inner.spawn(tables::forget::forget_idle(Arc::clone(&inner)));
        inner.spawn(limits::keep_limits(Arc::clone(&inner)));
        if !incarnation.left.is_empty() {
            inner.spawn(Arc::clone(&inner).claim_left(incarnation.left));
        }
        Ok(Self { _last: Arc::new(SealOnDrop(Arc::clone(&inner))), inner })
    }

    /// This incarnation.
    pub fn id(&self) -> ServiceId {
        self.inner.id
    }

    /// The random number that distinguishes this incarnation from any other.
    pub fn nonce(&self) -> Nonce {
        self.inner.nonce
    }

    /// The node's name.
    pub fn node(&self) -> &NodeName {
        &self.inner.parts.node
    }

    /// The settings of the service.
    pub fn settings(&self) -> &ServiceSettings {
        &self.inner.parts.settings
    }

    /// The service's clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        self.inner.parts.env.clock()
    }

    /// The raw length of this service's lease, as the allocator gave it last: no promise to a
    /// session is longer (P1).
    pub fn lease_ttl(&self) -> Duration {
        self.inner.lease.lock().ttl()
    }

    /// Every lock held here, of one table if `table` is given; as [`lock_list`](Self::lock_list),
    /// to its end.
    pub fn locks(&self, table: Option<&TableRef>) -> Vec<LockStatus> {
        let mut list = self.lock_list(table);
        std::iter::from_fn(|| list.next_slice(SLICE)).flatten().collect()
    }

    /// Every wait here: the waiter, the item and the holder; of one table if `table` is given. It
    /// is the whole [`wait_list`](Self::wait_list).
    pub fn waits(&self, table: Option<&TableRef>) -> Vec<WaitStatus> {
        let mut list = self.wait_list(table);
        std::iter::from_fn(|| list.next_slice(SLICE)).flatten().collect()
    }

    /// The locks held here, of one table if `table` is given, slice by slice: all other calls go on
    /// between two slices.
    pub fn lock_list(&self, table: Option<&TableRef>) -> LockList {
        let list = self.table_filter(table).map(|only| self.inner.engine.lock_list(only));
        LockList::new(Arc::clone(&self.inner), list)
    }

    /// The locks here that overlap a row of a table, then the calls that wait for something that
    /// overlaps it, in their order, slice by slice. It costs what overlaps, however much else there
    /// is. Calls that wait for the table to be bound here come last, and are looked at one by one.
    pub fn row_list(&self, table: &TableRef, row: &Key) -> LockList {
        let inner = Arc::clone(&self.inner);
        let bound = inner.tables.served(table);
        let list = bound.map(|bound| inner.engine.row_list(bound.bind().id, row.clone()));
        let (table, item) = (Some(table.clone()), Some(LockItem::Row(row.clone())));
        LockList::of_row(inner, list, StandingFilter { table, item })
    }

    /// The waits here, of one table if `table` is given, slice by slice: all other calls go on
    /// between two slices. The waits for a table to be bound here come last; the holder is then the
    /// table's last owner.
    pub fn wait_list(&self, table: Option<&TableRef>) -> WaitList {
        let list = self.table_filter(table).map(|only| self.inner.engine.wait_list(only));
        WaitList::new(Arc::clone(&self.inner), list, table.cloned())
    }

    /// The sessions here in the order in which they were opened, slice by slice.
    pub fn session_list(&self) -> SessionList {
        SessionList::new(Arc::clone(&self.inner))
    }

    /// The transactions here in no order, slice by slice. Those of an embedder that have no label
    /// are not listed.
    pub fn txn_list(&self) -> TxnList {
        TxnList::new(Arc::clone(&self.inner))
    }

    /// `None` if the requested table is not bound here; this call binds nothing.
    fn table_filter(&self, table: Option<&TableRef>) -> Option<Option<crate::id::TableId>> {
        match table {
            None => Some(None),
            Some(table) => self.inner.tables.owned(table).map(|bound| Some(bound.bind().id)),
        }
    }

    /// Resolves when this incarnation is sealed, with the reason: after `LeaseLost` the host starts
    /// a new incarnation that replaces this one, after `ShuttingDown` it does not.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn sealed(&self) -> Error {
        let mut phase = self.inner.phase.subscribe();
        match phase.wait_for(|phase| matches!(phase, Phase::Sealed(_))).await.as_deref() {
            Ok(Phase::Sealed(why)) => why.clone(),
            _ => shutting_down(),
        }
    }
}

/// For tests of what is called memory.
#[cfg(any(test, feature = "testing"))]
impl LockService {
    /// The estimated memory of queued operations and unacknowledged responses, in bytes.
    pub fn kept_bytes(&self) -> usize {
        self.inner.quota.kept_bytes()
    }

    /// The estimated memory of all locks and waits, in bytes.
    pub fn lock_bytes(&self) -> usize {
        self.inner.engine.bytes()
    }
}
