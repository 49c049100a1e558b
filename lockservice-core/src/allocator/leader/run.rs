//! What a leader does by itself: it opens the store, renews its leadership (L1) or watches over an
//! exclusive store, fences lapsed incarnations durably, and forgets what is over. Timers only wake;
//! everything is decided by the clock.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::allocator::leader::leadership::LeadershipCell;
use crate::allocator::leader::recover::{Hold, Opening, acquire};
use crate::allocator::leader::writer::{Command, Done, Writer, another_store, end};
use crate::allocator::leader::{Beginning, Elected, LocalShared, NameHolder};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::{AllocatorState, Service, stopping};
use crate::clock::{Time, hi};
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{Epoch, TxnId};
use crate::store::{Acquired, BindStore, Leadership, Lineage, Op, ServiceState};
use crate::sync::atomic::Ordering;

/// How often the sweep looks for lapsed incarnations, at most: it decides nothing by its timer, it
/// only looks.
const SWEEP_EVERY_MAX: Duration = Duration::from_millis(500);

/// Opens the store, then writes to it until told to stop. A shared store's leadership is renewed
/// beside that.
pub(in crate::allocator) async fn lead(
    shared: Arc<LocalShared>,
    store: Arc<dyn BindStore>,
    beginning: Beginning,
    commands: mpsc::Receiver<Command>,
) {
    let Elected { acquired, sent } = match elected(&shared, &*store, &beginning).await {
        Ok(elected) => elected,
        Err(e) => {
            shared.opened.send_replace(Some(Err(e)));
            return;
        }
    };
    let span = tracing::info_span!("leadership", epoch = %acquired.epoch);
    let leadership = if acquired.exclusive {
        LeadershipCell::exclusive()
    } else {
        LeadershipCell::shared(sent, shared.settings.constants.leadership_ttl())
    };
    let led = Led {
        head: Arc::new(tokio::sync::Mutex::new(acquired.epoch)),
        leadership: Arc::new(leadership),
        shared,
        store,
    };
    if acquired.exclusive {
        led.lead_exclusive(beginning, acquired, commands).instrument(span).await;
    } else {
        led.lead_shared(beginning, acquired, commands).instrument(span).await;
    }
}

/// A task that is aborted when this is dropped.
struct EndsWithMe(JoinHandle<()>);

impl Drop for EndsWithMe {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The leadership of the store, asked for once if need be. Fails with `StoreInUse` if another
/// leads.
async fn elected(
    shared: &LocalShared,
    store: &dyn BindStore,
    beginning: &Beginning,
) -> Result<Elected> {
    if let Some(elected) = &beginning.elected {
        return Ok(elected.clone());
    }
    let ttl = shared.settings.constants.leadership_ttl();
    match acquire(store, &shared.env, &beginning.candidate, ttl).await? {
        (Leadership::Acquired(acquired), sent) => Ok(Elected { acquired, sent }),
        (Leadership::Held { address, .. }, _) => Err(Error::new(
            ErrorKind::StoreInUse,
            "another allocator leads this store, or may be leading it: use that one, stop it, or \
                stand by for it",
        )
        .with("store", store.describe())
        .with("leader", address.as_ref().map_or("unknown", |address| &address.nodes))
        .with_detail(Detail::RetryAfter(hi(ttl)))),
    }
}

/// A leadership and its store.
#[derive(Clone)]
struct Led {
    shared: Arc<LocalShared>,
    store: Arc<dyn BindStore>,
    /// The epoch that the store has. Locked while it is raised.
    head: Arc<tokio::sync::Mutex<Epoch>>,
    leadership: Arc<LeadershipCell>,
}

impl Led {
    /// Leads a store that is open to this process alone, and looks after it meanwhile.
    async fn lead_exclusive(
        self,
        beginning: Beginning,
        acquired: Acquired,
        commands: mpsc::Receiver<Command>,
    ) {
        let (stop, stopped) = oneshot::channel();
        let watch = self.clone().watch(stopped);
        let writes = async {
            self.write(beginning, acquired, commands).await;
            drop(stop);
        };
        // A call that is under way ends first: it would hold the store open.
        tokio::join!(writes, watch);
    }

    /// Leads a shared store, and renews the leadership meanwhile.
    async fn lead_shared(
        self,
        beginning: Beginning,
        acquired: Acquired,
        commands: mpsc::Receiver<Command>,
    ) {
        // In a task of its own, from before the store is loaded: nothing that this one does in one
        // go keeps it from renewing. It ends with this one, also if that is aborted.
        let renewals = self.clone().renew(acquired.lineage.clone());
        let _renewals = EndsWithMe(self.shared.env.spawn(renewals.in_current_span()));
        // It has its first turn now: a task that is spawned, or woken, by one that then holds its
        // thread waits for it (tokio's LIFO slot).
        tokio::task::yield_now().await;
        self.write(beginning, acquired, commands).await;
    }

    /// Opens the store, then writes to it until told to stop.
    async fn write(
        self,
        beginning: Beginning,
        acquired: Acquired,
        commands: mpsc::Receiver<Command>,
    ) {
        let Self { shared, store, head, leadership } = self;
        let Beginning { mut candidate, observed, .. } = beginning;
        let lineage = acquired.lineage.clone();
        let exclusive = acquired.exclusive;
        let opening = Opening {
            store: &*store,
            env: &shared.env,
            settings: &shared.settings,
            candidate: &mut candidate,
            hold: Hold { head: &head, leadership: &leadership },
            observed: &observed,
        };
        let opened = match opening.open(acquired).await {
            Ok(opened) => opened,
            Err(e) => {
                end(&shared.ended, &e);
                shared.opened.send_replace(Some(Err(e)));
                return;
            }
        };
        let mut state = opened.state;
        (state.exclusive, state.leadership) = (exclusive, leadership);
        state.origins = Arc::clone(&shared.origins);
        let state = Arc::new(state);
        shared.tables.store(state.tables.len(), Ordering::Release);
        *shared.names.lock() =
            opened.names.into_iter().map(|(name, id)| (name, NameHolder::Known(id))).collect();
        *shared.constants_later.lock() = opened.constants_later;
        let writer = Writer {
            store,
            env: shared.env.clone(),
            candidate,
            leadership_ttl: shared.settings.constants.leadership_ttl(),
            epoch: opened.epoch,
            applied: opened.applied,
            batch_max: shared.settings.batch_max,
            lost: None,
            refused: false,
            lineage,
            uncertain: false,
            state: Arc::clone(&state),
            ended: shared.ended.clone(),
            head,
        };
        if shared.state.set(state).is_err() {
            unreachable!("only this task sets the state, once");
        }
        shared.opened.send_replace(Some(Ok(())));
        writer.run(commands).await;
    }

    /// Renews the leadership every third of its TTL, after a failure every tenth, until it is known
    /// that it is over.
    async fn renew(self, lineage: Lineage) {
        let Self { shared, store, head, leadership } = self;
        let ttl = shared.settings.constants.leadership_ttl();
        let mut pause = ttl / 3;
        while !leadership.ended() {
            shared.env.sleep(pause).await;
            let epoch = head.lock().await;
            let sent = shared.env.now();
            match store.renew(*epoch).await {
                Ok(renewal) if renewal.lineage != lineage => {
                    leadership.end();
                    end(&shared.ended, &another_store());
                }
                Ok(_) => {
                    leadership.renewed(sent);
                    pause = ttl / 3;
                }
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    leadership.end();
                    end(&shared.ended, &e);
                }
                Err(e) => {
                    let remaining = leadership.remaining(shared.env.now());
                    tracing::warn!(
                        error = ?e,
                        ?remaining,
                        "cannot renew the leadership; trying again"
                    );
                    pause = ttl / 10;
                }
            }
        }
    }

    /// Asks an exclusive store several times within a lease whether it still is exclusive. It need
    /// not be renewed (L1), but its file may have been taken away: then another process can open
    /// the path. Ends when the sender of `stopped` is dropped.
    async fn watch(self, mut stopped: oneshot::Receiver<Infallible>) {
        let Self { shared, store, leadership, .. } = self;
        let every = sweep_every(&shared);
        while !leadership.ended() {
            if shared.env.timeout(every, &mut stopped).await.is_ok() {
                return;
            }
            match store.applied().await {
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    leadership.end();
                    end(&shared.ended, &e);
                }
                // Callers that write get the error.
                Err(e) => tracing::warn!(error = ?e, "cannot look after the store; trying again"),
                Ok(_) => {}
            }
        }
    }
}

/// How often a leader looks for what no call tells it.
fn sweep_every(shared: &LocalShared) -> Duration {
    (shared.settings.constants.lease_ttl() / 8).min(SWEEP_EVERY_MAX)
}

/// Fences lapsed incarnations durably, forgets commits that have run out and incarnations nobody
/// refers to. Holds nothing over an await.
pub(in crate::allocator) async fn sweep(shared: Arc<LocalShared>) {
    let Ok(state) = shared.opened().await else { return };
    let every = sweep_every(&shared);
    let (mut turn, mut shard) = (0, 0);
    while !shared.queue.is_closed() && !state.leadership.ended() {
        shared.env.sleep(every).await;
        let now = shared.env.now();
        if state.check_leading(now).is_err() {
            // Nothing can be stored now; whoever lapses meanwhile is found later.
            continue;
        }
        let mut services = Vec::new();
        state.services.for_each(|_, service| services.push(Arc::clone(service)));
        for service in services {
            service.fence_if_lapsed(now);
            service.commits.sweep(turn, now);
            let swept = shared.sweep_service(&state, &service, now).await;
            if let Err(e) = swept {
                tracing::warn!(service = %service.id, error = ?e, "the end of an incarnation \
                    could not be stored yet");
            }
        }
        turn += 1;
        if let Err(e) = shared.forget_unowned(&state, &mut shard).await {
            tracing::warn!(error = ?e, "tables that nobody owns could not be forgotten yet");
        }
        if now >= state.held_until && !state.resolved.load(Ordering::Acquire) {
            // Fails only once the allocator has stopped.
            drop(shared.queue.send(Command::Resolve).await);
        }
        let due = shared.constants_later.lock().is_some_and(|at| now >= at);
        if due && shared.write(smallvec![Op::PutConstants(shared.settings.constants)]).await.is_ok()
        {
            *shared.constants_later.lock() = None;
        }
    }
}

impl LocalShared {
    /// Makes the end of an incarnation durable, and forgets it when that is safe.
    async fn sweep_service(
        &self,
        state: &AllocatorState,
        service: &Arc<Service>,
        now: Time,
    ) -> Result<()> {
        let lease = service.lease.get();
        if !matches!(lease.state, LeaseState::Fenced | LeaseState::Resigned) {
            return self.forget_over(service).await;
        }
        self.store_end(service, service.state()).await?;
        // C4: from here on the end says of every transaction what their tombstones said. One that
        // cannot be removed now is removed by the next leader.
        for some in service.commits.take_marks().chunks(self.settings.batch_max) {
            let marks = some
                .iter()
                .map(|&counter| Op::RemoveTombstone(TxnId { origin: service.id, counter }));
            self.write(marks.collect()).await?;
        }
        // Fences are for ever (C4), but they concern an id that is never handed out again (L4):
        // once no bind names the incarnation, its promises have run out and none of its commits is
        // in flight, an unknown origin and an unknown service are refused just the same.
        let unused = service.references.load(Ordering::SeqCst) == 0
            && lease.reassigned_in(service.ttl, now).is_zero()
            && service.commits.in_flight_until(now).is_none()
            && now >= state.earlier_until;
        if unused {
            let mut names = self.names.lock();
            if names.get(&service.node) == Some(&NameHolder::Known(service.id)) {
                names.remove(&service.node);
            }
        }
        // L4: a later leader must find the highest number that was handed out
        // (`StoreState::highest_number`).
        if unused && state.later_incarnation(service.id) {
            self.write(smallvec![Op::RemoveService(service.id)]).await?;
            state.services.remove_if(&service.id, |known| Arc::ptr_eq(known, service));
        }
        Ok(())
    }

    /// Takes off the tombstones below the floor of their origin, once that is durable and says the
    /// same of their transactions (C4).
    async fn forget_over(&self, service: &Service) -> Result<()> {
        let (origin, commits) = (service.id, &service.commits);
        let (floor, marks) = commits.below_floor();
        let mut put: SmallVec<[Op; 2]> = SmallVec::new();
        if !marks.is_empty() {
            let stored = commits.stored_floor();
            put.push(Op::PutTombstone(TxnId::floor_mark(origin, floor)));
            if stored > 0 && stored != floor {
                put.push(Op::RemoveTombstone(TxnId::floor_mark(origin, stored)));
            }
        }
        for some in marks.chunks(self.settings.batch_max) {
            let marks =
                some.iter().map(|&(counter, _)| Op::RemoveTombstone(TxnId { origin, counter }));
            // The floor first, and in a write before this one or the same.
            self.write(std::mem::take(&mut put).into_iter().chain(marks).collect()).await?;
            commits.floor_stored(floor);
            for &(counter, generation) in some {
                commits.remove(TxnId { origin, counter }, generation);
            }
        }
        commits.cleaned(floor);
        Ok(())
    }

    /// Makes the end of an incarnation durable, unless it is.
    pub(in crate::allocator) async fn store_end(
        &self,
        service: &Arc<Service>,
        state: ServiceState,
    ) -> Result<()> {
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
        service.commits.fence();
        let ops = smallvec![Op::PutService(service.record(state))];
        self.room().await?.send(Command::Write { ops, done });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}
