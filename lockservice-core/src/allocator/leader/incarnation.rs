//! Starting incarnations: names, replacement, records (B1).

use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::sync::{mpsc, oneshot};

use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::leader::{LocalShared, NameHolder};
use crate::allocator::messages::Registration;
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::{AllocatorState, Service, stopping};
use crate::clock::hi;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{NodeName, ServiceId};
use crate::store::{Op, ServiceRecord, ServiceState};
use crate::sync::atomic::Ordering;

impl LocalShared {
    /// Decides about a new incarnation (B1) and queues its record. `Ok(Ok(id))` if this very
    /// process has asked before.
    #[allow(clippy::type_complexity, reason = "one caller, which takes it apart at once")]
    pub(in crate::allocator) fn start_incarnation(
        self: &Arc<Self>,
        state: &Arc<AllocatorState>,
        request: &Registration,
        id: ServiceId,
        room: mpsc::Permit<'_, Command>,
    ) -> Result<Result<ServiceId, oneshot::Receiver<Result<ServiceId>>>> {
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
                    // Whoever asks again counts its lease from this request (B2), so it must be
                    // renewed as by any other.
                    if known.nonce == request.nonce && known.renew(|| self.env.now()) {
                        return Ok(Ok(known.id));
                    }
                    let (now, lease) = (self.env.now(), known.lease.get());
                    let replaces = request.replaces == Some((known.id, known.nonce));
                    if lease.holds(known.ttl, now) && !replaces {
                        return Err(name_in_use(
                            &request.node,
                            Some(lease.remaining(known.ttl, now)),
                        ));
                    }
                    // B3: its binds are void at once. Their regrant waits for its lease, although
                    // it says itself that it is over.
                    known.fence();
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
        };
        let mut ops: SmallVec<[Op; 2]> = smallvec![Op::PutService(record.clone())];
        if let Some(replaced) =
            replaced.as_ref().filter(|replaced| !replaced.end_durable.load(Ordering::Acquire))
        {
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
                    // C3: control state is created here, at the origin's registration. The lease
                    // counts from now: after the answer can have been sent no later than the next
                    // reading, and before it can be used.
                    let ttl = shared.settings.constants.lease_ttl();
                    let max = shared.settings.commits_max;
                    let node = record.node.clone();
                    let service = Arc::new(Service::new(
                        record,
                        ttl,
                        shared.env.now(),
                        LeaseState::Live,
                        max,
                    ));
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
        "another process holds the lease of this node name: choose another name, or stop that \
            process",
    )
    .with("node", node);
    match remaining {
        Some(remaining) => error.with_detail(Detail::RetryAfter(hi(remaining))),
        None => error,
    }
}
