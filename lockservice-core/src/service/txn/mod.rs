//! Transactions: one lock call at a time, checked again before its response, and ended exactly
//! once.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Txn`]: the transaction of an embedder |
//! | `record.rs` | a transaction as the service knows it |
//! | `lock.rs` | the lock call: `lock`, then `still_good`; what a lock rests on |
//! | `end.rs` | unlock, end, abandon |
//! | `room.rs` | the memory of its locks, within the limit of its client |
//! | `live.rs` | the validating transactions that are alive, and their report |
//! | `row.rs` | rows that are locked at once |
//! | `waits.rs` | the lock calls of a session that wait, and the conflicting holders |
//! | `trace.rs` | the trace of which a lock call is a part |
//!
//! # Where a transaction is
//! A transaction belongs to the handle of its owner: a [`Txn`], or a queue of its session. A map
//! leads only to those that an operator's list [names](TxnRecord::has_name). So the begin and the
//! end of an embedder's transaction look nothing up, and write two words that threads share: the
//! count and the number. The memory comes from the allocator of the process, which keeps some for
//! each thread. A list of free slots would be shared, or would be such an allocator once more.

mod end;
pub(in crate::service) mod live;
mod lock;
mod record;
mod room;
pub(in crate::service) mod row;
pub(in crate::service) mod slow;
pub(in crate::service) mod trace;
pub(in crate::service) mod waits;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::error::Result;
use crate::id::{TableRef, TxnId};
use crate::key::{LockItem, LockMode};
use crate::service::{Granted, LockService, LockSpec, Promise, ServiceInner, TxnOptions};
use crate::table::{Commit, Savepoint};

pub(in crate::service) use self::lock::{BegunLock, LockWait};
pub(in crate::service) use self::record::CallInFlight;
pub(crate) use self::record::TxnRecord;

/// A transaction of an embedder: it lives as long as this handle, and rests on the service's lease
/// alone.
///
/// Dropping it abandons it: if it said that it would validate, it is first made unable to commit,
/// then released.
#[derive(Debug)]
#[must_use = "dropping a transaction releases its locks"]
pub struct Txn {
    inner: Arc<ServiceInner>,
    record: Arc<TxnRecord>,
    /// When it was begun: its snapshot is taken to be no older, unless a call says otherwise.
    began: Time,
    /// T2: one lock call of a transaction is decided at a time.
    turn: tokio::sync::Mutex<()>,
    /// Its owner has ended it.
    is_over: bool,
}

impl LockService {
    /// Begins a transaction of an embedder, one that belongs to no session.
    ///
    /// # Errors
    /// `ShuttingDown`, `LeaseLost`: the service no longer serves. `ResourceExhausted`: the limit of
    /// transactions is reached; end some first.
    pub fn begin(&self, options: TxnOptions) -> Result<Txn> {
        let began = self.inner.parts.env.now();
        let record = self.inner.begin(began, &options, None, None)?;
        Ok(Txn {
            inner: Arc::clone(&self.inner),
            record,
            began,
            turn: tokio::sync::Mutex::new(()),
            is_over: false,
        })
    }
}

impl Txn {
    /// The transaction's id: to be presented at its commit.
    pub fn id(&self) -> TxnId {
        self.record.id
    }

    /// Takes all the locks of `spec`, or none. Calls of one transaction are decided one after the
    /// other.
    ///
    /// A call that does not say how old the transaction's snapshot is says that it was not begun
    /// before the transaction.
    ///
    /// # Errors
    /// `Conflict`, `Timeout`: the lock is not free now; the transaction goes on. `Deadlock`,
    /// `BindChanged`, `TxnNotFound`: start a new transaction. `Reassigning` (NoWait only): try
    /// again after the time it names. `NotOwner`: call that node. `LeaseLost`, `ShuttingDown`:
    /// everything held here is, or will be, given away: stop the work. `InvalidArgument`,
    /// `ResourceExhausted`: request less.
    ///
    /// # Cancel safety
    /// A dropped call leaves the transaction's locks as they were before it. If it escalated, the
    /// range stays, for it stands for earlier locks.
    ///
    /// # Examples
    /// ```
    /// # use lockservice_core::service::{LockSpec, TxnOptions};
    /// # use lockservice_core::table::WaitPolicy;
    /// # use lockservice_core::{ErrorKind, Key, LockItem, TableRef};
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
    /// # let service = LockService::start(ServiceParts::new(allocator, clock, node)).await?;
    /// let accounts = TableRef::new("bank", "accounts")?;
    /// let alice = || Ok::<_, lockservice_core::Error>(vec![LockItem::Row(Key::new("alice")?)]);
    /// let first = service.begin(TxnOptions::default())?;
    /// let second = service.begin(TxnOptions::default())?;
    /// let granted = first.lock(LockSpec::new(accounts.clone(), alice()?)).await?;
    /// println!("locked under token {}", granted.grant.token);
    ///
    /// let at_once = LockSpec { wait: WaitPolicy::NoWait, ..LockSpec::new(accounts, alice()?) };
    /// assert_eq!(second.lock(at_once).await.expect_err("held").kind(), ErrorKind::Conflict);
    /// first.end(None);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lock(&self, mut spec: LockSpec) -> Result<Granted> {
        let now = self.inner.parts.env.now();
        spec.snapshot_age.get_or_insert_with(|| now.since(self.began));
        let Some(_turn) = self.inner.until(self.inner.deadline(&spec, now), self.turn.lock()).await
        else {
            let e = self.inner.timed_out(&spec.table, spec.timeout);
            self.inner.count_vain_wait(now, &e);
            return Err(e);
        };
        self.inner.lock(&self.record, spec, now).await
    }

    /// Releases chosen rows and ranges, and returns how many; those not held are ignored.
    /// `commit` is the commit of what they protect, if it was committed (C5).
    pub fn unlock(&self, table: &TableRef, items: &[LockItem], commit: Option<Commit>) -> usize {
        self.inner.unlock(&self.record, table, items, commit)
    }

    /// Makes chosen rows and ranges weaker that the transaction holds, and returns how many: `mode`
    /// from then on. Waiters that are compatible with it go on. Items that are not held, or that
    /// are held no more strongly, are ignored.
    ///
    /// The fencing token stays, for data may know it (F1). A reader that comes in does not learn of
    /// a commit that follows: what the transaction has written and not committed must not be
    /// visible.
    pub fn downgrade(&self, table: &TableRef, items: &[LockItem], mode: LockMode) -> usize {
        self.inner.downgrade(&self.record, table, items, mode)
    }

    /// Sets a savepoint, to which [`roll_back_to`](Self::roll_back_to) can go back. It costs
    /// nothing, and needs no release.
    ///
    /// # Errors
    /// `ResourceExhausted` after 2^32 calls of the transaction: the caller begins another one.
    pub fn savepoint(&self) -> Result<Savepoint> {
        self.inner.engine.savepoint(self.record.at_engine())
    }

    /// Ends what calls since a savepoint of this transaction were granted. Returns how many rows
    /// and ranges were released. What was upgraded since is held in the mode of the savepoint,
    /// under its present token. What was released or made weaker since stays so. The savepoint can
    /// be used again.
    ///
    /// # Errors
    /// `InvalidArgument` while a lock call of the transaction is in flight: the caller waits for
    /// it, or drops it.
    ///
    /// # Examples
    /// ```
    /// # use lockservice_core::service::{LockSpec, TxnOptions};
    /// # use lockservice_core::{Key, LockItem, TableRef};
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
    /// # let service = LockService::start(ServiceParts::new(allocator, clock, node)).await?;
    /// let row = |name| Ok::<_, lockservice_core::Error>(vec![LockItem::Row(Key::new(name)?)]);
    /// let accounts = TableRef::new("bank", "accounts")?;
    /// let txn = service.begin(TxnOptions::default())?;
    /// txn.lock(LockSpec::new(accounts.clone(), row("alice")?)).await?;
    ///
    /// // A statement that fails leaves no locks behind.
    /// let statement = txn.savepoint()?;
    /// txn.lock(LockSpec::new(accounts, row("bob")?)).await?;
    /// assert_eq!(txn.roll_back_to(statement)?, 1);
    /// txn.end(None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn roll_back_to(&self, savepoint: Savepoint) -> Result<usize> {
        self.inner.roll_back_to(&self.record, savepoint)
    }

    /// Ends the transaction, releases everything, and returns how many rows and ranges that were.
    /// `commit` is its commit, if it committed (C5).
    pub fn end(mut self, commit: Option<Commit>) -> usize {
        self.is_over = true;
        self.inner.end(&self.record, commit)
    }

    /// When the locks that this transaction holds stop being safe, unless the service renews its
    /// lease by then.
    ///
    /// # Errors
    /// `LeaseLost`, `ShuttingDown`: they no longer are safe. Stop the protected work.
    pub fn promise(&self) -> Result<Promise> {
        self.inner.promise(None)
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.abandon(vec![Arc::clone(&self.record)], |_| ());
        }
    }
}

/// The time left until `deadline`, for a timer.
pub(crate) fn timer(deadline: Time, now: Time) -> Duration {
    // Tokio's timers cannot be set further ahead than about two years; they only wake, and a
    // wake-up too early is harmless.
    deadline.remaining(now).min(Duration::from_secs(86_400))
}
