//! The start and the resignation of incarnations: names, replacement, records (B1, C2).
//!
//! A start has two halves, as a bind has: [`LocalShared::start_incarnation`] runs on the caller's
//! task and queues the record, [`Start::done`] runs on the writer's task when that has landed or
//! failed.

use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::sync::{mpsc, oneshot};

use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::leader::{LocalShared, NameHolder};
use crate::allocator::messages::Registration;
use crate::allocator::state::commits::CommitControl;
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::{AllocatorState, Service, lease_lost, stopping};
use crate::clock::hi;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{NodeName, ServiceId};
use crate::store::{Op, ServiceRecord, ServiceState, Succession, Turns};
use crate::sync::atomic::Ordering;

/// Between two looks at pins: see [`LocalShared::resign_incarnation`].
const PINS_POLL: Duration = Duration::from_millis(2);

/// The result of [`LocalShared::start_incarnation`].
pub(in crate::allocator) enum Started {
    /// The same process has registered before, as this incarnation.
    Before(ServiceId),
    /// The record is queued.
    Queued(oneshot::Receiver<Result<ServiceId>>),
}

impl LocalShared {
    /// Decides about a new incarnation (B1) and queues its record.
    pub(in crate::allocator) fn start_incarnation(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        request: &Registration,
        id: ServiceId,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<Started> {
        // ORDERING: Acquire, the partner of the release in `LocalAllocator::shutdown`.
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
                    // A process that repeats its request counts its lease from the repetition (B2),
                    // so the lease must be renewed.
                    if known.nonce == request.nonce && known.renew(|| self.env.now()) {
                        return Ok(Started::Before(known.id));
                    }
                    self.replace(&known, request)?;
                    replaced = Some(known);
                }
            }
        }
        let record = ServiceRecord {
            id,
            node: request.node.clone(),
            nonce: request.nonce,
            address: request.address.clone(),
            state: ServiceState::Live,
            succession: Succession { follows: state.follows(request), held: Vec::new() },
        };
        let mut ops: SmallVec<[Op; 2]> = smallvec![Op::PutService(record.clone())];
        if let Some(replaced) =
            replaced.as_ref().filter(|replaced| !replaced.end_durable.load(Ordering::Acquire))
        {
            ops.insert(0, Op::PutService(replaced.record(replaced.state())));
        }
        let before = names.insert(request.node.clone(), NameHolder::Starting(id));
        let (caller, landed) = oneshot::channel();
        let (shared, state) = (Arc::clone(self), Arc::clone(state));
        let start = Start { shared, state, record, before, replaced, caller };
        room.send(Command::Write { ops, done: Box::new(|outcome| start.done(outcome)) });
        Ok(Started::Queued(landed))
    }

    /// Fences `known`, whose name another incarnation requests, if it may be replaced.
    fn replace(&self, known: &Service, request: &Registration) -> Result<()> {
        let (now, lease) = (self.env.now(), known.lease.get());
        let replaces = request.replaces == Some((known.id, known.nonce));
        if lease.holds(known.ttl, now) && !replaces {
            return Err(name_in_use(&request.node, Some(lease.remaining(known.ttl, now))));
        }
        // B3: its binds are invalid at once. They are reassigned after its lease, although it says
        // itself that it is over.
        known.fence();
        Ok(())
    }

    /// Gives an incarnation up, once no commit is in flight on its binds (C2).
    pub(in crate::allocator) async fn resign_incarnation(
        &self,
        state: &AllocatorState,
        known: &Arc<Service>,
    ) -> Result<()> {
        if known.lease.get().state == LeaseState::Resigned {
            return Ok(());
        }
        if !known.lease.begin_resign(known.ttl, || self.env.now()) {
            return Err(lease_lost(known.id));
        }
        // From here on no new pin on its binds and, after the fence, no new commit of its
        // transactions.
        known.commits.fence();
        let (mut binds, mut turns) = (Vec::new(), Turns::default());
        for shard in 0..state.tables.shards() {
            turns.after(state.binds_in(shard, known.id, &mut binds)).await;
        }
        // C2: a resignation waits for pins. Polled: a commit must not pay for waking those who
        // wait, and the wait is bounded by the lease.
        loop {
            let now = self.env.now();
            binds.retain(|&(at, version)| state.slots.held(at, version, now));
            if binds.is_empty() && known.commits.in_flight_until(now).is_none() {
                break;
            }
            self.env.sleep(PINS_POLL).await;
        }
        let ops = smallvec![Op::PutService(known.record(ServiceState::Resigned))];
        let (done, landed) = oneshot::channel();
        let ended = Arc::clone(known);
        // Runs on the writer's task.
        let done: Done = Box::new(move |outcome: Result<()>| {
            if outcome.is_ok() {
                ended.end_durable.store(true, Ordering::Release);
                // False if it was fenced meanwhile: then its binds wait for the lease, which is on
                // the safe side.
                ended.finish_resign();
            }
            drop(done.send(outcome));
        });
        self.room().await?.send(Command::Write { ops, done });
        landed.await.unwrap_or_else(|_| Err(stopping()))?;
        tracing::info!(service = %known.id, node = %known.node, "an incarnation has resigned");
        Ok(())
    }
}

/// An incarnation whose record is being written.
struct Start {
    shared: Arc<LocalShared>,
    state: Arc<AllocatorState>,
    record: ServiceRecord,
    /// The incarnation that had the name before.
    before: Option<NameHolder>,
    /// The incarnation whose end is in the same write.
    replaced: Option<Arc<Service>>,
    caller: oneshot::Sender<Result<ServiceId>>,
}

impl Start {
    /// The second half of a start. Runs on the writer's task, when the write has landed or failed.
    fn done(self, outcome: Result<()>) {
        let Self { shared, state, record, before, replaced, caller } = self;
        let (id, node) = (record.id, record.node.clone());
        let mut names = shared.names.lock();
        match &outcome {
            Ok(()) => {
                if let Some(replaced) = replaced {
                    replaced.end_durable.store(true, Ordering::Release);
                }
                // C3: control state is created here, at the origin's registration. The lease counts
                // from now: after the response can have been sent no later than the next reading,
                // and before it can be used.
                let (ttl, max) =
                    (shared.settings.constants.lease_ttl(), shared.settings.commits_max);
                let now = shared.env.now();
                let commits = CommitControl::new(max, &state.slots);
                let service = Arc::new(Service::new(record, ttl, now, LeaseState::Live, commits));
                // A stop that began meanwhile fenced those it saw: this one must not escape it.
                state.services.insert(id, Arc::clone(&service));
                if !state.admitting.load(Ordering::SeqCst) {
                    service.commits.fence();
                }
                names.insert(node, NameHolder::Known(id));
            }
            Err(_) => {
                match before {
                    Some(before) => names.insert(node, before),
                    None => names.remove(&node),
                };
            }
        }
        drop(names);
        drop(caller.send(outcome.map(|()| id)));
    }
}

fn name_in_use(node: &NodeName, remaining: Option<Duration>) -> Error {
    let error = Error::new(
        ErrorKind::NameInUse,
        "another process holds the lease of this node name: choose another name, or stop that \
            process",
    )
    .with("node", node);
    match remaining {
        Some(remaining) => error.with_detail(Detail::RetryAfter(hi(remaining))),
        None => error,
    }
}
