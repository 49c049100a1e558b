//! [`LocalAllocator`]: the pure state of [`state`](crate::allocator::state) in a thin shell that
//! writes to one [`BindStore`]. One of them is one leadership: when that is over, so is the
//! allocator.

pub(in crate::allocator) mod api;
pub(in crate::allocator) mod bind;
pub(in crate::allocator) mod forget;
pub(in crate::allocator) mod incarnation;
pub(crate) mod leadership;
pub(in crate::allocator) mod origins;
pub(in crate::allocator) mod records;
pub(in crate::allocator) mod recover;
pub(in crate::allocator) mod run;
pub(in crate::allocator) mod writer;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::allocator::cluster::observed::Observed;
use crate::allocator::leader::origins::Origins;
use crate::allocator::leader::run::{lead, sweep};
use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::messages::{BeginCommit, CommitAdmission};
use crate::allocator::settings::AllocatorSettings;
use crate::allocator::state::tokens::RaiseEpoch;
use crate::allocator::state::{AllocatorState, stopping};
use crate::clock::Time;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitAttempt, Epoch, NodeName, ServiceId, TxnId};
use crate::store::{Acquired, BindStore, Candidate, Op};
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;

#[cfg(doc)]
use crate::allocator::{ElectedAllocator, LockTableAllocator};

/// How long a stop waits for a write that is under way.
const STORE_GRACE: Duration = Duration::from_secs(5);

/// How [`LocalAllocator::shutdown`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocatorStopped {
    /// True if the leadership was given up durably: the next start waits for nothing.
    pub resigned: bool,
}

/// The allocator of a process that leads its store (L1). Where several processes share a store,
/// [`ElectedAllocator`] makes one whenever its process is elected.
///
/// # States
/// *opening* (the store is acquired and loaded; calls wait, and
/// [`begin_commit_now`](Self::begin_commit_now) answers `Unavailable`) → *open* → *stopping*
/// ([`shutdown`](Self::shutdown)) → *stopped*; or *opening* → *failed*, in which every call answers
/// the failure; or *open* → *ended* ([`ended`](Self::ended)), in which every call answers
/// `NotLeader`. While a shared store does not answer for longer than the leadership lasts, every
/// call answers `Unavailable`; it goes on by itself if the store is back before another leads.
///
/// # What waits for what
/// Commits wait for nothing. Binds, token blocks, starts and fences wait for the store; concurrent
/// ones share a write (B6). A caller that is cancelled does not undo what it queued; repeating the
/// call is safe.
///
/// Dropping it without [`shutdown`](Self::shutdown) is an unclean stop: the next start waits as
/// after a crash.
pub struct LocalAllocator {
    pub(in crate::allocator) shared: Arc<LocalShared>,
    /// Writer and sweep. Locked for a moment, together with nothing.
    tasks: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
}

/// A leadership that a store gave.
#[derive(Clone, Debug)]
pub(in crate::allocator) struct Elected {
    pub(in crate::allocator) acquired: Acquired,
    /// Before it was asked for: it counts from here.
    pub(in crate::allocator) sent: Time,
}

/// With what a leadership begins.
pub(in crate::allocator) struct Beginning {
    pub(in crate::allocator) candidate: Candidate,
    /// What the store gave; `None` to ask for it.
    pub(in crate::allocator) elected: Option<Elected>,
    /// What leaders have told this node (L4).
    pub(in crate::allocator) observed: Observed,
    /// The origins of this process, also those that a leader before this one was told of.
    pub(in crate::allocator) origins: Arc<Origins>,
}

pub(in crate::allocator) struct LocalShared {
    pub(in crate::allocator) env: Env,
    pub(in crate::allocator) settings: AllocatorSettings,
    pub(in crate::allocator) queue: mpsc::Sender<Command>,
    /// Set once, when the opening succeeded.
    pub(in crate::allocator) state: std::sync::OnceLock<Arc<AllocatorState>>,
    /// `None` while opening.
    pub(in crate::allocator) opened: watch::Sender<Option<Result<()>>>,
    /// Why the leadership is over, once it is.
    pub(in crate::allocator) ended: watch::Sender<Option<Error>>,
    /// A place in the queue that is kept for [`Command::RaiseAbove`], until it is sent: it must not
    /// be lost because there is much to write.
    pub(in crate::allocator) raise_above: Mutex<Option<mpsc::OwnedPermit<Command>>>,
    /// What leaders have told this node, or one that reported it where that shows that the store
    /// went back (L4).
    pub(in crate::allocator) observed: Mutex<Observed>,
    /// Which incarnation has each name. Locked for a few lookups, never over an await or another
    /// lock but a service shard's.
    pub(in crate::allocator) names: Mutex<HashMap<NodeName, NameHolder>>,
    /// Entries of `tables`, counted so that the limit holds without counting shards.
    pub(in crate::allocator) tables: crate::sync::atomic::AtomicUsize,
    pub(in crate::allocator) constants_later: Mutex<Option<Time>>,
    /// The origins of this process (C4).
    pub(in crate::allocator) origins: Arc<Origins>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::allocator) enum NameHolder {
    Known(ServiceId),
    /// Its record is being written.
    Starting(ServiceId),
}

impl LocalAllocator {
    /// Opens the store and leads it: [`start`](Self::start), then [`opened`](Self::opened).
    ///
    /// Fails with `InvalidArgument` for settings out of range, `StoreInUse` if another leads, and
    /// as the store does. Must be called within a tokio runtime, in which it spawns two tasks that
    /// end with the allocator.
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

    /// Begins to open the store, and answers at once: calls wait until it is open.
    ///
    /// Fails with `InvalidArgument` for settings out of range.
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
        });
        let writer = env.spawn(lead(Arc::clone(&shared), store, beginning, commands));
        let sweep = env.spawn(sweep(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared, tasks: Mutex::new(Some((writer, sweep))) }))
    }

    /// Waits until the store is open; fails as the opening did. Cancel safe.
    pub async fn opened(&self) -> Result<()> {
        self.shared.opened().await.map(drop)
    }

    /// Resolves when the leadership is over for good, with the reason: another leads, or the store
    /// is not the one it was. Never for an exclusive store that works. Cancel safe.
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

    /// True while it may answer: its store is open, and the leadership has not run out (L1).
    pub fn answers(&self) -> bool {
        self.shared
            .state
            .get()
            .is_some_and(|state| state.check_leading(self.shared.env.now()).is_ok())
    }

    /// True if the store is open to this process alone. False while it is being opened.
    pub(in crate::allocator) fn is_exclusive(&self) -> bool {
        self.shared.state.get().is_some_and(|state| state.exclusive)
    }

    /// What this leader has told, and others before it (L4).
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
    /// Answers `Unavailable` while the store is being opened: try again.
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

    /// Stops: admits nothing more, waits up to `grace` for commits in flight, and gives the
    /// leadership up durably if that is safe.
    ///
    /// For an exclusive store `quiet` is the caller's word that nothing of its own services is in
    /// use (P5), and no promise of an incarnation that did not resign may still hold; without it,
    /// there is no wait. A shared store's next leader takes every live incarnation as renewed (B4),
    /// so that only commits are waited for. Both tasks have ended when it answers.
    ///
    /// Not cancel safe in this sense: dropped half way, the allocator may be left stopping; call it
    /// again.
    pub async fn shutdown(&self, quiet: bool, grace: Duration) -> Result<AllocatorStopped> {
        let mut outcome = Ok(AllocatorStopped { resigned: false });
        if let Some(state) = self.shared.state.get() {
            // ORDERING: the fences below are what keeps commits out; this only makes answers clear.
            state.admitting.store(false, Ordering::Release);
            state.services.for_each(|_, service| service.commits.fence());
            let give_up = self.shared.env.now() + grace;
            let may_resign = quiet || !state.exclusive;
            if may_resign && !self.wait_for_promises(state, give_up).await {
                // A store that is away must not hold up the stop: the writer may be settling a
                // write for as long as that lasts (L2).
                outcome = match self.shared.env.timeout(STORE_GRACE, self.resign()).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        // Whoever waits for the writer is told, and a resignation that lands yet is
                        // one of a leader that answers nothing.
                        state.leadership.end();
                        Ok(AllocatorStopped { resigned: false })
                    }
                };
            }
        }
        let tasks = self.tasks.lock().take();
        if let Some((writer, sweep)) = tasks {
            // What the sweep queued stays queued.
            sweep.abort();
            if self.shared.state.get().is_none() {
                writer.abort();
            }
            let writer_stop = writer.abort_handle();
            let stop = async {
                // Fails only if the writer has ended already; so does a join of a task that was
                // aborted.
                drop(self.shared.queue.send(Command::Stop).await);
                drop(writer.await);
            };
            // A store that is away must not hold up the stop: a write of unknown outcome lands
            // under this epoch or never (L2).
            if self.shared.env.timeout(STORE_GRACE, stop).await.is_err() {
                writer_stop.abort();
            }
            drop(sweep.await);
        }
        outcome
    }

    /// Gives the leadership up, once everything that is queued was written.
    async fn resign(&self) -> Result<AllocatorStopped> {
        let (done, answer) = oneshot::channel();
        match self.shared.queue.send(Command::Resign { done }).await {
            Ok(()) => answer
                .await
                .unwrap_or_else(|_| Err(stopping()))
                .map(|()| AllocatorStopped { resigned: true }),
            // Stopped before.
            Err(_) => Ok(AllocatorStopped { resigned: false }),
        }
    }

    /// True if a promise still holds when `give_up` comes.
    async fn wait_for_promises(&self, state: &AllocatorState, give_up: Time) -> bool {
        loop {
            let now = self.shared.env.now();
            let mut until: Option<Time> = None;
            state.services.for_each(|_, service| {
                until = until.max(service.commits.in_flight_until(now));
                let left = service.lease.get().reassigned_in(service.ttl, now);
                if state.exclusive && !left.is_zero() {
                    until = until.max(Some(now + left));
                }
            });
            match until {
                None => return false,
                Some(_) if now >= give_up => return true,
                // Polled: a commit that finishes must not pay for telling whoever waits.
                Some(until) => {
                    self.shared
                        .env
                        .sleep(until.min(give_up).remaining(now).min(Duration::from_millis(5)))
                        .await
                }
            }
        }
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

impl LocalShared {
    /// The state, once the store is open.
    pub(in crate::allocator) async fn opened(&self) -> Result<Arc<AllocatorState>> {
        if let Some(state) = self.state.get() {
            return Ok(Arc::clone(state));
        }
        let mut opened = self.opened.subscribe();
        let outcome = opened.wait_for(Option::is_some).await.map_err(|_| stopping())?.clone();
        outcome.unwrap_or_else(|| Err(stopping()))?;
        self.state.get().map(Arc::clone).ok_or_else(stopping)
    }

    /// The state, if the leader may answer now (L1). Every answer of the allocator begins here.
    pub(in crate::allocator) async fn leading(&self) -> Result<Arc<AllocatorState>> {
        let state = self.opened().await?;
        state.check_leading(self.env.now())?;
        Ok(state)
    }

    fn not_open(&self) -> Error {
        match &*self.opened.borrow() {
            Some(Err(e)) => e.clone(),
            _ => {
                Error::new(ErrorKind::Unavailable, "the allocator is opening its store: try again")
            }
        }
    }

    /// Room in the writer's queue for one change. Fails once the allocator has stopped.
    pub(in crate::allocator) async fn room(&self) -> Result<mpsc::Permit<'_, Command>> {
        self.queue.reserve().await.map_err(|_| stopping())
    }

    /// Writes `ops` and waits for it.
    pub(in crate::allocator) async fn write(&self, ops: SmallVec<[Op; 2]>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.room().await?.send(Command::Write { ops, done: send_to(done) });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Raises the epoch to at least `wanted`.
    pub(in crate::allocator) async fn raise(&self, wanted: RaiseEpoch) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.room().await?.send(Command::Raise { wanted: wanted.0, done });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Hands the outcome to a caller that may have gone.
pub(in crate::allocator) fn send_to(done: oneshot::Sender<Result<()>>) -> Done {
    Box::new(move |outcome| drop(done.send(outcome)))
}
