//! [`LocalAllocator`]: the pure state of [`state`](super::state) in a thin shell that writes to one [`BindStore`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use smallvec::{SmallVec, smallvec};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::lease::LeaseState;
use super::settings::AllocatorSettings;
use super::state::{AllocatorState, Service, lease_lost, stopping};
use super::tokens::RaiseEpoch;
use super::types::{
    AllocatorStatus, BeginCommit, BindStatus, BoundTable, CannotCommit, CommitAdmission, Incarnation, LeaseAck, Resume,
    ServiceStatus, TokenBlock,
};
use super::writer::{Command, Done, Writer};
use super::{LockTableAllocator, commit::Marked, open};
use crate::clock::{Clock, Time};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::{BindStore, Candidate, Op, ServiceState};
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;

/// How often the sweep looks for lapsed incarnations, at most: it decides nothing by its timer, it only looks.
const SWEEP_EVERY_MAX: Duration = Duration::from_millis(500);

/// How [`LocalAllocator::shutdown`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocatorStopped {
    /// True if the leadership was given up durably: the next start waits for nothing.
    pub resigned: bool,
}

/// The allocator of a process that leads its store (L1).
///
/// # States
/// *opening* (the store is acquired and loaded; calls wait, and [`begin_commit_now`](Self::begin_commit_now) answers `Unavailable`) →
/// *open* → *stopping* ([`shutdown`](Self::shutdown)) → *stopped*; or *opening* → *failed*, in which every call answers the failure.
///
/// # What waits for what
/// Commits wait for nothing. Binds, token blocks, starts and fences wait for the store; concurrent ones share a write (B6). A caller that
/// is cancelled does not undo what it queued; repeating the call is safe.
///
/// Dropping it without [`shutdown`](Self::shutdown) is an unclean stop: the next start waits as after a crash.
pub struct LocalAllocator {
    shared: Arc<Shared>,
    /// Writer and sweep. Locked for a moment, together with nothing.
    tasks: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
}

pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: AllocatorSettings,
    pub(super) queue: mpsc::Sender<Command>,
    /// Set once, when the opening succeeded.
    pub(super) state: std::sync::OnceLock<Arc<AllocatorState>>,
    /// `None` while opening.
    opened: watch::Sender<Option<Result<()>>>,
    /// Which incarnation has each name. Locked for a few lookups, never over an await or another lock but a service shard's.
    names: Mutex<HashMap<NodeName, NameHolder>>,
    /// Entries of `tables`, counted so that the limit holds without counting shards.
    pub(super) tables: crate::sync::atomic::AtomicUsize,
    constants_later: Mutex<Option<Time>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NameHolder {
    Known(ServiceId),
    /// Its record is being written.
    Starting(ServiceId),
}

impl LocalAllocator {
    /// Opens the store and leads it: [`start`](Self::start), then [`opened`](Self::opened).
    ///
    /// Fails with `InvalidArgument` for settings out of range, `StoreInUse` if another leads, and as the store does. Must be called
    /// within a tokio runtime, in which it spawns two tasks that end with the allocator.
    pub async fn open(
        store: Arc<dyn BindStore>,
        clock: Arc<dyn Clock>,
        settings: AllocatorSettings,
        candidate: impl Into<Candidate>,
    ) -> Result<Arc<Self>> {
        let allocator = Self::start(store, clock, settings, candidate)?;
        allocator.opened().await?;
        Ok(allocator)
    }

    /// Begins to open the store, and answers at once: calls wait until it is open.
    ///
    /// Fails with `InvalidArgument` for settings out of range.
    pub fn start(
        store: Arc<dyn BindStore>,
        clock: Arc<dyn Clock>,
        settings: AllocatorSettings,
        candidate: impl Into<Candidate>,
    ) -> Result<Arc<Self>> {
        settings.check()?;
        let candidate = candidate.into();
        let (queue, commands) = mpsc::channel(settings.queue_max);
        let shared = Arc::new(Shared {
            clock,
            settings,
            queue,
            state: std::sync::OnceLock::new(),
            opened: watch::Sender::new(None),
            names: Mutex::new(HashMap::new()),
            tables: crate::sync::atomic::AtomicUsize::new(0),
            constants_later: Mutex::new(None),
        });
        let writer = tokio::spawn(lead(Arc::clone(&shared), store, candidate, commands));
        let sweep = tokio::spawn(sweep(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared, tasks: Mutex::new(Some((writer, sweep))) }))
    }

    /// Waits until the store is open; fails as the opening did. Cancel safe.
    pub async fn opened(&self) -> Result<()> {
        self.shared.opened().await.map(drop)
    }

    /// [`LockTableAllocator::begin_commit`] without a wait: no await, no store, no lock that all commits share.
    ///
    /// Answers `Unavailable` while the store is being opened: try again.
    pub fn begin_commit_now(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        let state = self.shared.state.get().ok_or_else(|| self.shared.not_open())?;
        state.begin_commit(request, self.shared.clock.now())
    }

    /// [`LockTableAllocator::finish_commit`] without a wait.
    pub fn finish_commit_now(&self, txn: TxnId, attempt: CommitAttempt) {
        if let Some(state) = self.shared.state.get() {
            state.finish_commit(txn, attempt);
        }
    }

    /// The number of tables and of incarnations in memory, and of transactions with control state: for tests and operators.
    pub fn entries(&self) -> (usize, usize, usize) {
        let Some(state) = self.shared.state.get() else { return (0, 0, 0) };
        let mut transactions = 0;
        state.services.for_each(|_, service| transactions += service.commits.len());
        (state.tables.len(), state.services.len(), transactions)
    }

    /// Stops: admits nothing more, waits up to `grace` for commits in flight, and gives the leadership up durably if that is safe (P5):
    /// `quiet` is the caller's word that nothing of its own services is in use, no commit is in flight, and no promise of any
    /// incarnation that did not resign can still hold. Both tasks have ended when it answers.
    ///
    /// Not cancel safe in this sense: dropped half way, the allocator may be left stopping; call it again.
    pub async fn shutdown(&self, quiet: bool, grace: Duration) -> Result<AllocatorStopped> {
        let mut outcome = Ok(AllocatorStopped { resigned: false });
        if let Some(state) = self.shared.state.get() {
            // ORDERING: the fences below are what keeps commits out; this only makes answers clear.
            state.admitting.store(false, Ordering::Release);
            state.services.for_each(|_, service| drop(service.commits.fence()));
            let give_up = self.shared.clock.now() + grace;
            let still = self.wait_for_promises(state, give_up).await;
            if quiet && !still {
                let (done, answer) = oneshot::channel();
                outcome = match self.shared.queue.send(Command::Resign { done }).await {
                    Ok(()) => {
                        answer.await.unwrap_or_else(|_| Err(stopping())).map(|()| AllocatorStopped { resigned: true })
                    }
                    // Stopped before.
                    Err(_) => Ok(AllocatorStopped { resigned: false }),
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
            // Fails only if the writer has ended already; so does a join of a task that was aborted.
            drop(self.shared.queue.send(Command::Stop).await);
            drop(writer.await);
            drop(sweep.await);
        }
        outcome
    }

    /// True if a promise still holds when `give_up` comes.
    async fn wait_for_promises(&self, state: &AllocatorState, give_up: Time) -> bool {
        loop {
            let now = self.shared.clock.now();
            let mut until: Option<Time> = None;
            state.services.for_each(|_, service| {
                until = until.max(service.commits.in_flight_until(now));
                let lease = service.lease.get();
                let left = lease.granted_anew_in(service.ttl, now);
                if !left.is_zero() {
                    until = until.max(Some(now + left));
                }
            });
            match until {
                None => return false,
                Some(_) if now >= give_up => return true,
                // Polled: a commit that finishes must not pay for telling whoever waits.
                Some(until) => {
                    tokio::time::sleep(until.min(give_up).remaining(now).min(Duration::from_millis(5))).await
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
        f.debug_struct("LocalAllocator").field("open", &self.shared.state.get().is_some()).finish_non_exhaustive()
    }
}

/// Opens the store, then writes to it until told to stop.
async fn lead(
    shared: Arc<Shared>,
    store: Arc<dyn BindStore>,
    mut candidate: Candidate,
    commands: mpsc::Receiver<Command>,
) {
    let opened = open::open(&*store, &*shared.clock, &shared.settings, &mut candidate).await;
    let opened = match opened {
        Ok(opened) => opened,
        Err(e) => {
            shared.opened.send_replace(Some(Err(e)));
            return;
        }
    };
    let state = Arc::new(opened.state);
    shared.tables.store(state.tables.len(), Ordering::Release);
    *shared.names.lock() = opened.names.into_iter().map(|(name, id)| (name, NameHolder::Known(id))).collect();
    *shared.constants_later.lock() = opened.constants_later;
    let raised = Arc::clone(&state);
    let writer = Writer {
        store,
        candidate,
        leadership_ttl: shared.settings.constants.leadership_ttl(),
        epoch: opened.epoch,
        applied: opened.applied,
        batch_max: shared.settings.batch_max,
        lost: None,
        uncertain: false,
        raised: Box::new(move |epoch| raised.numbers.raise(epoch)),
    };
    if shared.state.set(state).is_err() {
        unreachable!("only this task sets the state, once");
    }
    shared.opened.send_replace(Some(Ok(())));
    writer.run(commands).await;
}

/// Fences lapsed incarnations durably, forgets commits that have run out and incarnations nobody refers to. Holds nothing over an await.
async fn sweep(shared: Arc<Shared>) {
    let Ok(state) = shared.opened().await else { return };
    let every = (shared.settings.constants.lease_ttl() / 8).min(SWEEP_EVERY_MAX);
    let mut turn = 0;
    while !shared.queue.is_closed() {
        tokio::time::sleep(every).await;
        let now = shared.clock.now();
        let mut services = Vec::new();
        state.services.for_each(|_, service| services.push(Arc::clone(service)));
        for service in services {
            service.fence_if_lapsed(now);
            service.commits.sweep(turn, now);
            let swept = shared.sweep_service(&state, &service, now).await;
            if let Err(e) = swept {
                tracing::warn!(service = %service.id, error = ?e, "the end of an incarnation could not be stored yet");
            }
        }
        turn += 1;
        let due = shared.constants_later.lock().is_some_and(|at| now >= at);
        if due && shared.write(smallvec![Op::PutConstants(shared.settings.constants)]).await.is_ok() {
            *shared.constants_later.lock() = None;
        }
    }
}

impl Shared {
    /// The state, once the store is open.
    pub(super) async fn opened(&self) -> Result<Arc<AllocatorState>> {
        if let Some(state) = self.state.get() {
            return Ok(Arc::clone(state));
        }
        let mut opened = self.opened.subscribe();
        let outcome = opened.wait_for(Option::is_some).await.map_err(|_| stopping())?.clone();
        outcome.unwrap_or_else(|| Err(stopping()))?;
        self.state.get().map(Arc::clone).ok_or_else(stopping)
    }

    fn not_open(&self) -> Error {
        match &*self.opened.borrow() {
            Some(Err(e)) => e.clone(),
            _ => Error::new(ErrorKind::Unavailable, "the allocator is opening its store: try again"),
        }
    }

    /// Room in the writer's queue for one change. Fails once the allocator has stopped.
    pub(super) async fn room(&self) -> Result<mpsc::Permit<'_, Command>> {
        self.queue.reserve().await.map_err(|_| stopping())
    }

    /// Writes `ops` and waits for it.
    pub(super) async fn write(&self, ops: SmallVec<[Op; 2]>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.room().await?.send(Command::Write { ops, done: send_to(done) });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Raises the epoch to at least `wanted`.
    pub(super) async fn raise(&self, wanted: RaiseEpoch) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.room().await?.send(Command::Raise { wanted: wanted.0, done });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Makes the end of an incarnation durable, and forgets it when that is safe.
    async fn sweep_service(&self, state: &AllocatorState, service: &Arc<Service>, now: Time) -> Result<()> {
        let lease = service.lease.get();
        if !matches!(lease.state, LeaseState::Fenced | LeaseState::Resigned) {
            return Ok(());
        }
        self.store_end(service, service.state()).await?;
        // Fences are for ever (C4), but they concern an id that is never handed out again (L4): once no bind names the incarnation, its
        // promises have run out and none of its commits is in flight, an unknown origin and an unknown service are refused just the same.
        let unused = service.references.load(Ordering::SeqCst) == 0
            && lease.granted_anew_in(service.ttl, now).is_zero()
            && service.commits.in_flight_until(now).is_none()
            && now >= state.earlier_until;
        if unused {
            self.write(smallvec![Op::RemoveService(service.id)]).await?;
            state.services.remove_if(&service.id, |known| Arc::ptr_eq(known, service));
            let mut names = self.names.lock();
            if names.get(&service.node) == Some(&NameHolder::Known(service.id)) {
                names.remove(&service.node);
            }
        }
        Ok(())
    }

    /// Makes the end of an incarnation durable, unless it is.
    pub(super) async fn store_end(&self, service: &Arc<Service>, state: ServiceState) -> Result<()> {
        if service.end_durable.load(Ordering::Acquire) {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        let ended = Arc::clone(service);
        let done: Done = Box::new(move |outcome: Result<()>| {
            if outcome.is_ok() {
                ended.end_durable.store(true, Ordering::Release);
            }
            // The caller may have gone; the write stands.
            drop(done.send(outcome));
        });
        let mut ops: SmallVec<[Op; 2]> = smallvec![Op::PutService(service.record(state))];
        // C4: the fence says of every transaction what their tombstones said. (They are taken off memory by the fence itself.)
        ops.extend(
            service
                .commits
                .fence()
                .into_iter()
                .map(|counter| Op::RemoveTombstone(TxnId { origin: service.id, counter })),
        );
        self.room().await?.send(Command::Write { ops, done });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Hands the outcome to a caller that may have gone.
fn send_to(done: oneshot::Sender<Result<()>>) -> Done {
    Box::new(move |outcome| drop(done.send(outcome)))
}

#[async_trait]
impl LockTableAllocator for LocalAllocator {
    async fn resume(&self, request: &Resume) -> Result<Incarnation> {
        let state = self.shared.opened().await?;
        loop {
            let room = self.shared.room().await?;
            let number = match state.numbers.take() {
                Ok(number) => number,
                Err(wanted) => {
                    drop(room);
                    self.shared.raise(wanted).await?;
                    continue;
                }
            };
            let answer = self.shared.start_incarnation(&state, request, ServiceId::new(number), room)?;
            let service = match answer {
                Ok(service) => service,
                Err(landed) => landed.await.unwrap_or_else(|_| Err(stopping()))?,
            };
            let ttl = self.shared.settings.constants.lease_ttl();
            return Ok(Incarnation {
                service,
                epoch: state.numbers.epoch(),
                lease_ttl: ttl,
                constants: self.shared.settings.constants,
            });
        }
    }

    async fn keepalive(&self, service: ServiceId, nonce: Nonce) -> Result<LeaseAck> {
        let state = self.shared.opened().await?;
        let known = state.service(service).filter(|known| known.nonce == nonce).ok_or_else(|| lease_lost(service))?;
        let now = self.shared.clock.now();
        if !known.lease.renew(known.ttl, now) {
            return Err(lease_lost(service));
        }
        Ok(LeaseAck { epoch: state.numbers.epoch(), lease_ttl: self.shared.settings.constants.lease_ttl() })
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<()> {
        let state = self.shared.opened().await?;
        let known = state.service(service).filter(|known| known.nonce == nonce).ok_or_else(|| lease_lost(service))?;
        if known.lease.get().state == LeaseState::Resigned {
            return Ok(());
        }
        if !known.lease.begin_resign(known.ttl, self.shared.clock.now()) {
            return Err(lease_lost(service));
        }
        // From here on no new pin on its binds and, after the fence, no new commit of its transactions.
        let marked = known.commits.fence();
        let mut pins = state.pins_of(service);
        // C2: a resignation waits for pins. Polled: a commit must not pay for telling whoever waits, and the wait is bounded by the lease.
        loop {
            let now = self.shared.clock.now();
            pins.retain(|pins| pins.held(now));
            if pins.is_empty() && known.commits.in_flight_until(now).is_none() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut ops: SmallVec<[Op; 2]> = smallvec![Op::PutService(known.record(ServiceState::Resigned))];
        ops.extend(marked.into_iter().map(|counter| Op::RemoveTombstone(TxnId { origin: service, counter })));
        let (done, answer) = oneshot::channel();
        let ended = Arc::clone(&known);
        let done: Done = Box::new(move |outcome: Result<()>| {
            if outcome.is_ok() {
                ended.end_durable.store(true, Ordering::Release);
                // False if it was fenced meanwhile: then its binds wait for the lease, which is on the safe side.
                ended.lease.finish_resign();
            }
            drop(done.send(outcome));
        });
        self.shared.room().await?.send(Command::Write { ops, done });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        let state = self.shared.opened().await?;
        self.shared.bind(&state, service, table).await
    }

    async fn reserve_tokens(&self, service: ServiceId, table: TableId, version: BindVersion) -> Result<TokenBlock> {
        let state = self.shared.opened().await?;
        self.shared.reserve_tokens(&state, service, table, version).await
    }

    async fn latest(&self, table: &TableRef) -> Result<Option<BindStatus>> {
        let state = self.shared.opened().await?;
        let now = self.shared.clock.now();
        Ok(state.tables.read(table, |entry| entry?.status(table, 0, now)))
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        self.shared.opened().await?;
        self.begin_commit_now(request)
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<()> {
        self.shared.opened().await?;
        self.finish_commit_now(txn, attempt);
        Ok(())
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        let state = self.shared.opened().await?;
        let mut answer = CannotCommit::default();
        let mut writes = Vec::new();
        for &txn in txns {
            match self.shared.cannot_commit(&state, txn).await? {
                Verdict::Committing => answer.committing.push(txn),
                Verdict::Tombstoned => answer.tombstoned.push(txn),
                Verdict::Writing(landed) => writes.push((txn, landed)),
            }
        }
        for (txn, landed) in writes {
            // C4: the mark stays in memory whatever the outcome is.
            landed.await.unwrap_or_else(|_| Err(stopping()))?;
            answer.tombstoned.push(txn);
        }
        Ok(answer)
    }

    async fn confirm_ended(&self, txns: &[TxnId]) -> Result<()> {
        let state = self.shared.opened().await?;
        let mut writes = Vec::new();
        for &txn in txns {
            let Some(origin) = state.service(txn.origin) else { continue };
            let room = self.shared.room().await?;
            let (done, landed) = oneshot::channel();
            let control = Arc::clone(&origin);
            let began = origin.commits.ended(txn, |generation| {
                let done: Done = Box::new(move |outcome: Result<()>| {
                    if outcome.is_ok() {
                        control.commits.remove(txn, generation);
                    }
                    drop(done.send(outcome));
                });
                room.send(Command::Write { ops: smallvec![Op::RemoveTombstone(txn)], done });
            });
            if began.is_some() {
                writes.push(landed);
            }
        }
        for landed in writes {
            landed.await.unwrap_or_else(|_| Err(stopping()))?;
        }
        Ok(())
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        let state = self.shared.opened().await?;
        let now = self.shared.clock.now();
        let mut status = AllocatorStatus { epoch: state.numbers.epoch(), ..AllocatorStatus::default() };
        state.tables.for_each(|table, entry| {
            status
                .binds
                .extend((0..entry.binds.len() as u32).filter_map(|partition| entry.status(table, partition, now)));
        });
        state.services.for_each(|_, service| {
            if service.holds(now) || service.references.load(Ordering::Acquire) > 0 {
                status.services.push(ServiceStatus {
                    id: service.id,
                    node: service.node.clone(),
                    address: service.address.clone(),
                    state: service.state(),
                });
            }
        });
        status.binds.sort_by(|a, b| (&a.bind.table, a.bind.partition).cmp(&(&b.bind.table, b.bind.partition)));
        status.services.sort_by_key(|service| service.id);
        Ok(status)
    }
}

/// What becomes of one transaction of a `cannot_commit`.
enum Verdict {
    Committing,
    Tombstoned,
    Writing(oneshot::Receiver<Result<()>>),
}

impl Shared {
    async fn cannot_commit(&self, state: &Arc<AllocatorState>, txn: TxnId) -> Result<Verdict> {
        let now = self.clock.now();
        // T1: it is refused at begin_commit anyway.
        if !txn.validates() {
            return Ok(Verdict::Tombstoned);
        }
        // L1: a commit that an earlier leader admitted may still be in flight. (One origin of a shared store may live on.)
        if txn.origin < state.first_service && now < state.earlier_until {
            return Ok(Verdict::Committing);
        }
        // An origin that is unknown now stays unknown: ids are never handed out twice (L4).
        let Some(origin) = state.service(txn.origin) else { return Ok(Verdict::Tombstoned) };
        let room = self.room().await?;
        let (done, landed) = oneshot::channel();
        let control = Arc::clone(&origin);
        let marked = origin.commits.tombstone(txn, now, |marked| {
            if let Marked::ToWrite(generation) = marked {
                let done: Done = Box::new(move |outcome: Result<()>| {
                    if outcome.is_ok() {
                        control.commits.durable(txn, generation);
                    }
                    drop(done.send(outcome));
                });
                room.send(Command::Write { ops: smallvec![Op::PutTombstone(txn)], done });
            }
            marked
        })?;
        match marked {
            Marked::Committing => Ok(Verdict::Committing),
            Marked::Durable => Ok(Verdict::Tombstoned),
            Marked::ToWrite(_) => Ok(Verdict::Writing(landed)),
            Marked::Fenced => match origin.lease.get().state {
                // Not an end of its own yet: it says the same to whoever commits now, and its end will be stored before anything is given away.
                LeaseState::Fenced | LeaseState::Resigned => {
                    self.store_end(&origin, origin.state()).await?;
                    Ok(Verdict::Tombstoned)
                }
                LeaseState::Resigning => {
                    Err(Error::new(ErrorKind::Unavailable, "the transaction's origin is just resigning: try again")
                        .with("txn", txn))
                }
                // Only a stop fences the origins of live leases.
                LeaseState::Live => Err(stopping()),
            },
        }
    }

    /// Decides about a new incarnation (B1) and queues its record. `Ok(Ok(id))` if this very process has asked before.
    #[allow(clippy::type_complexity, reason = "one caller, which takes it apart at once")]
    fn start_incarnation(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        request: &Resume,
        id: ServiceId,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<Result<ServiceId, oneshot::Receiver<Result<ServiceId>>>> {
        let now = self.clock.now();
        if !state.admitting.load(Ordering::Acquire) {
            return Err(stopping());
        }
        let mut names = self.names.lock();
        let mut replaced = None;
        match names.get(&request.node) {
            None if names.len() >= self.settings.nodes_max => {
                return Err(Error::new(
                    ErrorKind::ResourceExhausted,
                    "the limit of nodes is reached: stop one, or raise nodes_max",
                ));
            }
            None => {}
            Some(NameHolder::Starting(_)) => return Err(name_in_use(&request.node, None)),
            Some(NameHolder::Known(known)) => {
                if let Some(known) = state.service(*known) {
                    // Whoever asks again counts its lease from this request (B2), so it must be renewed as by any other.
                    if known.nonce == request.nonce && known.lease.renew(known.ttl, now) {
                        return Ok(Ok(known.id));
                    }
                    let lease = known.lease.get();
                    let replaces = request.replaces == Some((known.id, known.nonce));
                    if lease.holds(known.ttl, now) && !replaces {
                        return Err(name_in_use(&request.node, Some(lease.remaining(known.ttl, now))));
                    }
                    // B3: its binds are void at once. Their regrant waits for its lease, although it says itself that it is over.
                    known.fence();
                    replaced = Some(known);
                }
            }
        }
        let record = crate::store::ServiceRecord {
            id,
            node: request.node.clone(),
            nonce: request.nonce,
            address: request.address.clone(),
            state: ServiceState::Live,
        };
        let mut ops: SmallVec<[Op; 2]> = smallvec![Op::PutService(record.clone())];
        if let Some(replaced) = replaced.as_ref().filter(|replaced| !replaced.end_durable.load(Ordering::Acquire)) {
            ops.insert(0, Op::PutService(replaced.record(replaced.state())));
        }
        let before = names.insert(request.node.clone(), NameHolder::Starting(id));
        let (done, landed) = oneshot::channel();
        let (shared, state) = (Arc::clone(self), Arc::clone(state));
        let done: Done = Box::new(move |outcome: Result<()>| {
            let mut names = shared.names.lock();
            match &outcome {
                Ok(()) => {
                    if let Some(replaced) = replaced {
                        replaced.end_durable.store(true, Ordering::Release);
                    }
                    // C3: control state is created here, at the origin's registration. The lease counts from now: after the answer can
                    // have been sent no later than the next reading, and before it can be used.
                    let ttl = shared.settings.constants.lease_ttl();
                    let max = shared.settings.commits_max;
                    let node = record.node.clone();
                    let service = Arc::new(Service::new(record, ttl, shared.clock.now(), LeaseState::Live, max));
                    // A stop that began meanwhile fenced those it saw: this one must not escape it.
                    state.services.upsert(id, || Arc::clone(&service), |_| ());
                    if !state.admitting.load(Ordering::SeqCst) {
                        service.commits.fence();
                    }
                    names.insert(node, NameHolder::Known(id));
                }
                Err(_) => {
                    match before {
                        Some(before) => names.insert(record.node.clone(), before),
                        None => names.remove(&record.node),
                    };
                }
            }
            drop(names);
            drop(done.send(outcome.map(|()| id)));
        });
        room.send(Command::Write { ops, done });
        Ok(Err(landed))
    }
}

fn name_in_use(node: &NodeName, remaining: Option<Duration>) -> Error {
    let error = Error::new(
        ErrorKind::NameInUse,
        "another process holds the lease of this node name: choose another name, or stop that process",
    )
    .with("node", node);
    match remaining {
        Some(remaining) => error.with_detail(crate::error::Detail::RetryAfter(crate::clock::hi(remaining))),
        None => error,
    }
}
