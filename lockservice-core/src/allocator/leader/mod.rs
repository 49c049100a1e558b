//! [`LocalAllocator`]: the pure state of [`state`](crate::allocator::state) in a thin shell that
//! writes to one [`BindStore`]. One of them is one leadership: when that is over, so is the
//! allocator.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`LocalAllocator`]: its start, and what it says at once |
//! | `shared` | what the calls and the tasks of a leadership share |
//! | `api` | every call of the leader |
//! | `bind`, `token_block` | granting binds and token blocks, in two halves |
//! | `incarnation` | the start and the resignation of incarnations, in two halves |
//! | `cannot_commit` | making a transaction unable to commit |
//! | `forget` | forgetting tables |
//! | `writer`, `raise` | the one task that writes to the store, and raises the epoch |
//! | `run` | a leadership from its start to its end |
//! | `recover`, `records` | its start: what it loads, compares and writes first |
//! | `sweep` | its search for lapsed incarnations and idle tables |
//! | `stop` | its end by a requested stop |
//! | `leadership` | the time until which it may respond; pure |
//! | `origins` | the origins of this process |
//!
//! ```text
//!   call ──▶ api ──▶ bind, incarnation, cannot_commit, forget     first half: the caller's task
//!                      │ Command::Write { ops, done }
//!                      ▼
//!                    writer ──▶ BindStore::write
//!                      │ done(outcome)                             second half: the writer's task
//!                      ▼
//!                    state: what has landed is visible; the caller wakes
//! ```

pub(in crate::allocator) mod api;
pub(in crate::allocator) mod bind;
pub(in crate::allocator) mod cannot_commit;
mod claim;
pub(in crate::allocator) mod forget;
pub(in crate::allocator) mod incarnation;
pub(crate) mod leadership;
pub(in crate::allocator) mod origins;
mod raise;
pub(in crate::allocator) mod records;
pub(in crate::allocator) mod recover;
pub(in crate::allocator) mod run;
mod shared;
pub(in crate::allocator) mod stop;
pub(in crate::allocator) mod sweep;
pub(in crate::allocator) mod token_block;
pub(in crate::allocator) mod writer;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::allocator::cluster::observed::Observed;
use crate::allocator::leader::run::lead;
use crate::allocator::leader::sweep::sweep;
use crate::allocator::messages::{BeginCommit, CommitAdmission};
use crate::allocator::settings::AllocatorSettings;
use crate::allocator::state::stopping;
use crate::env::{Env, JoinHandle};
use crate::error::{Error, Result};
use crate::id::{CommitAttempt, Epoch, TxnId};
use crate::store::{BindStore, Candidate};
use crate::sync::Mutex;

pub(in crate::allocator) use self::shared::{Beginning, Elected, LocalShared, NameHolder};
pub use self::stop::AllocatorStopped;

#[cfg(doc)]
use crate::allocator::{ElectedAllocator, LockTableAllocator};

/// The allocator of a process that leads its store (L1). Where several processes share a store,
/// [`ElectedAllocator`] makes one whenever its process is elected.
///
/// ```
/// use std::sync::Arc;
/// use lockservice_core::allocator::{
///     AllocatorSettings, LocalAllocator, LockTableAllocator, Registration,
/// };
/// use lockservice_core::clock::SystemClock;
/// use lockservice_core::store::MemoryStore;
/// use lockservice_core::{NodeName, Nonce, TableRef};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lockservice_core::Error> {
/// let (store, clock) = (Arc::new(MemoryStore::new(0)), Arc::new(SystemClock));
/// let node = NodeName::new("node-1")?;
/// let allocator =
///     LocalAllocator::open(store, clock, AllocatorSettings::default(), node.clone()).await?;
///
/// let nonce = Nonce::new(1);
/// let request = Registration { node, nonce, address: String::new(), replaces: None };
/// let service = allocator.register(&request).await?.service;
/// let bound = allocator.bind(service, &TableRef::new("bank", "accounts")?).await?;
/// assert_eq!(bound.bind.owner, service);
/// # Ok(())
/// # }
/// ```
///
/// # States
/// *opening* (the store is acquired and loaded; calls wait, and
/// [`begin_commit_now`](Self::begin_commit_now) fails with `Unavailable`) → *open* → *stopping*
/// ([`shutdown`](Self::shutdown)) → *stopped*; or *opening* → *failed*, in which every call fails
/// with that error; or *open* → *ended* ([`ended`](Self::ended)), in which every call fails with
/// `NotLeader`. While a shared store does not respond for longer than the leadership lasts, every
/// call fails with `Unavailable`; the allocator goes on by itself if the store is back before
/// another leads.
///
/// # What waits for what
/// Commits wait for nothing. Binds, token blocks, starts and fences wait for the store; concurrent
/// ones share a write (B6). A change that is queued is written, also if its caller is cancelled;
/// repeating the call is safe.
///
/// Dropping it without [`shutdown`](Self::shutdown) is an unclean stop: the next start waits as
/// after a crash.
pub struct LocalAllocator {
    pub(in crate::allocator) shared: Arc<LocalShared>,
    /// Writer and sweep. Locked for a moment, together with nothing.
    tasks: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
}

impl LocalAllocator {
    /// Opens the store and leads it: [`start`](Self::start), then [`opened`](Self::opened).
    ///
    /// # Errors
    /// - `InvalidArgument` for settings out of range.
    /// - `StoreInUse` if another leads: use that one, or stop it.
    /// - As the store fails.
    ///
    /// # Cancel safety
    /// Dropped half way, the store is let go as by a crash.
    ///
    /// # Panics
    /// Outside of a tokio runtime, in which it spawns two tasks that end with the allocator.
    pub async fn open(
        store: Arc<dyn BindStore>,
        env: impl Into<Env>,
        settings: AllocatorSettings,
        candidate: impl Into<Candidate>,
    ) -> Result<Arc<Self>> {
        let allocator = Self::start(store, env, settings, candidate)?;
        allocator.opened().await?;
        Ok(allocator)
    }

    /// Begins to open the store, and returns at once: calls wait until it is open.
    ///
    /// # Errors
    /// `InvalidArgument` for settings out of range.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        store: Arc<dyn BindStore>,
        env: impl Into<Env>,
        settings: AllocatorSettings,
        candidate: impl Into<Candidate>,
    ) -> Result<Arc<Self>> {
        let beginning = Beginning {
            candidate: candidate.into(),
            elected: None,
            observed: Observed::default(),
            origins: Arc::default(),
            metrics: Arc::default(),
        };
        Self::begin(store, env.into(), settings, beginning)
    }

    /// Begins to open a store whose leadership may have been acquired already.
    pub(in crate::allocator) fn begin(
        store: Arc<dyn BindStore>,
        env: Env,
        settings: AllocatorSettings,
        beginning: Beginning,
    ) -> Result<Arc<Self>> {
        settings.check()?;
        let (queue, commands) = mpsc::channel(settings.queue_max + 1);
        let raise_above = Mutex::new(queue.clone().try_reserve_owned().ok());
        let shared = Arc::new(LocalShared {
            env: env.clone(),
            settings,
            queue,
            raise_above,
            state: std::sync::OnceLock::new(),
            opened: watch::Sender::new(None),
            ended: watch::Sender::new(None),
            observed: Mutex::new(beginning.observed.clone()),
            names: Mutex::new(HashMap::new()),
            tables: crate::sync::atomic::AtomicUsize::new(0),
            constants_later: Mutex::new(None),
            origins: Arc::clone(&beginning.origins),
            metrics: Arc::clone(&beginning.metrics),
        });
        let writer = env.spawn(lead(Arc::clone(&shared), store, beginning, commands));
        let sweep = env.spawn(sweep(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared, tasks: Mutex::new(Some((writer, sweep))) }))
    }

    /// Waits until the store is open.
    ///
    /// # Errors
    /// As the opening failed: it is not tried again.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn opened(&self) -> Result<()> {
        self.shared.opened().await.map(drop)
    }

    /// Returns when the leadership is over for good, with the reason: another leads, or the store
    /// was replaced. Never for an exclusive store that works.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) -> Error {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(why)) => why.clone(),
            // The sender lives in `self`.
            _ => stopping(),
        }
    }

    /// The leadership's epoch now; zero while the store is being opened.
    pub(in crate::allocator) fn epoch(&self) -> Epoch {
        self.shared.state.get().map_or_else(Epoch::default, |state| state.sequence.epoch())
    }

    /// True while its calls may succeed: its store is open, and the leadership has not run out
    /// (L1).
    pub fn leads(&self) -> bool {
        self.shared
            .state
            .get()
            .is_some_and(|state| state.check_leading(self.shared.env.now()).is_ok())
    }

    /// The changes that wait for the store, those with a place in the queue whose caller is about
    /// to fill it included. The batch that is being written is none of them.
    pub fn queued_changes(&self) -> usize {
        let kept = usize::from(self.shared.raise_above.lock().is_some());
        let queue = &self.shared.queue;
        (queue.max_capacity() - queue.capacity()).saturating_sub(kept)
    }

    /// True if the store is open to this process alone. False while it is being opened.
    pub(in crate::allocator) fn is_exclusive(&self) -> bool {
        self.shared.state.get().is_some_and(|state| state.exclusive)
    }

    /// The progress of this leadership, and of others before it (L4).
    pub(in crate::allocator) fn observed(&self) -> Observed {
        let mut observed = self.shared.observed.lock().clone();
        if let Some(state) = self.shared.state.get() {
            observed.add(state.progress());
        }
        observed
    }

    /// [`LockTableAllocator::begin_commit`] without a wait: no await, no store, no lock that all
    /// commits share.
    ///
    /// # Errors
    /// As there; also `Unavailable` while the store is being opened: try again.
    pub fn begin_commit_now(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        let state = self.shared.state.get().ok_or_else(|| self.shared.not_open())?;
        state.begin_commit(request, self.shared.env.now())
    }

    /// [`LockTableAllocator::finish_commit`] without a wait.
    pub fn finish_commit_now(&self, txn: TxnId, attempt: CommitAttempt) {
        if let Some(state) = self.shared.state.get() {
            state.finish_commit(txn, attempt);
        }
    }

    /// The number of tables and of incarnations in memory, and of transactions with control state:
    /// for tests and operators.
    pub fn entries(&self) -> (usize, usize, usize) {
        let Some(state) = self.shared.state.get() else { return (0, 0, 0) };
        let mut transactions = 0;
        state.services.for_each(|_, service| transactions += service.commits.len());
        (state.tables.len(), state.services.len(), transactions)
    }
}

impl Drop for LocalAllocator {
    fn drop(&mut self) {
        if let Some((writer, sweep)) = self.tasks.lock().take() {
            writer.abort();
            sweep.abort();
        }
    }
}

impl fmt::Debug for LocalAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalAllocator")
            .field("open", &self.shared.state.get().is_some())
            .finish_non_exhaustive()
    }
}
