//! What a leader answers: [`LockTableAllocator`] for [`LocalAllocator`].

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use smallvec::smallvec;
use tokio::sync::oneshot;

use crate::allocator::LockTableAllocator;
use crate::allocator::leader::writer::{Command, Done, end};
use crate::allocator::leader::{LocalAllocator, LocalShared};
use crate::allocator::messages::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, CommitAdmission, Forgetting,
    Incarnation, Latest, LeaseAck, Progress, Registration, Released, ReservedTokens, ServiceStatus,
};
use crate::allocator::report::Report;
use crate::allocator::state::commits::{Marked, OriginTxns, TxnLife, TxnRange};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::{AllocatorState, lease_lost, not_told, stopping};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::{Op, ServiceState, Turns};
use crate::sync::atomic::Ordering;

#[async_trait]
impl LockTableAllocator for LocalAllocator {
    async fn register(&self, request: &Registration) -> Result<Incarnation> {
        let state = self.shared.leading().await?;
        loop {
            let room = self.shared.room().await?;
            let number = match state.sequence.take() {
                Ok(number) => number,
                Err(wanted) => {
                    drop(room);
                    self.shared.raise(wanted).await?;
                    continue;
                }
            };
            let answer =
                self.shared.start_incarnation(&state, request, ServiceId::new(number), room)?;
            let service = match answer {
                Ok(service) => service,
                Err(landed) => landed.await.unwrap_or_else(|_| Err(stopping()))?,
            };
            tracing::info!(
                %service,
                node = %request.node,
                address = %request.address,
                replaces = ?request.replaces.map(|(replaced, _)| replaced.get()),
                "a node has started an incarnation"
            );
            let ttl = self.shared.settings.constants.lease_ttl();
            return Ok(Incarnation {
                service,
                at: state.progress(),
                lease_ttl: ttl,
                constants: self.shared.settings.constants,
            });
        }
    }

    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        let state = self.shared.leading().await?;
        // L4: nothing is believed of a stranger, who may have invented it. One that the store has
        // lost proves its report.
        let known = state
            .service(service)
            .filter(|known| known.nonce == nonce)
            .ok_or_else(|| lease_lost(service))?;
        self.shared.compare(&state, observed)?;
        if !known.renew(|| self.shared.env.now()) {
            return Err(lease_lost(service));
        }
        Ok(LeaseAck { at: state.progress(), lease_ttl: self.shared.settings.constants.lease_ttl() })
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        let state = self.shared.leading().await?;
        if !report.is_of(&state.cluster) {
            tracing::warn!(observed = ?report.observed, cluster = %state.cluster.id, "refused a report that is not of this cluster");
            return Err(Error::new(
                ErrorKind::NotPermitted,
                "the report does not come from a node of this cluster: does its store belong to \
                    another one?",
            ));
        }
        self.shared.compare(&state, report.observed)?;
        Ok(state.progress())
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        let state = self.shared.leading().await?;
        let known = state
            .service(service)
            .filter(|known| known.nonce == nonce)
            .ok_or_else(|| lease_lost(service))?;
        if known.lease.get().state == LeaseState::Resigned {
            return Ok(state.progress());
        }
        if !known.lease.begin_resign(known.ttl, || self.shared.env.now()) {
            return Err(lease_lost(service));
        }
        // From here on no new pin on its binds and, after the fence, no new commit of its
        // transactions.
        known.commits.fence();
        let (mut pins, mut turns) = (Vec::new(), Turns::default());
        for shard in 0..state.tables.shards() {
            turns.after(state.pins_in(shard, service, &mut pins)).await;
        }
        // C2: a resignation waits for pins. Polled: a commit must not pay for telling whoever
        // waits, and the wait is bounded by the lease.
        loop {
            let now = self.shared.env.now();
            pins.retain(|pins| pins.held(now));
            if pins.is_empty() && known.commits.in_flight_until(now).is_none() {
                break;
            }
            self.shared.env.sleep(Duration::from_millis(2)).await;
        }
        let ops = smallvec![Op::PutService(known.record(ServiceState::Resigned))];
        let (done, answer) = oneshot::channel();
        let ended = Arc::clone(&known);
        let done: Done = Box::new(move |outcome: Result<()>| {
            if outcome.is_ok() {
                ended.end_durable.store(true, Ordering::Release);
                // False if it was fenced meanwhile: then its binds wait for the lease, which is on
                // the safe side.
                ended.finish_resign();
            }
            drop(done.send(outcome));
        });
        self.shared.room().await?.send(Command::Write { ops, done });
        answer.await.unwrap_or_else(|_| Err(stopping()))?;
        tracing::info!(%service, node = %known.node, "an incarnation has resigned");
        Ok(state.progress())
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        let state = self.shared.leading().await?;
        self.shared.bind(&state, service, table).await
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        let state = self.shared.leading().await?;
        let tokens = self.shared.reserve_tokens(&state, service, table, version).await?;
        Ok(ReservedTokens { tokens, at: state.progress() })
    }

    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        let state = self.shared.leading().await?;
        let known = state
            .service(service)
            .filter(|known| known.nonce == nonce)
            .ok_or_else(|| lease_lost(service))?;
        let kept = self.shared.release_table(&state, &known, table, version).await?;
        Ok(Released { kept, at: state.progress() })
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        let state = self.shared.leading().await?;
        let outcome = self.shared.forget_table(&state, table).await?;
        Ok(Forgetting { outcome, at: state.progress() })
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        let state = self.shared.leading().await?;
        let now = self.shared.env.now();
        let bind = state.tables.read(table, |entry| entry?.status(table, 0, now));
        Ok(Latest { bind, at: state.progress() })
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        self.shared.leading().await?;
        self.begin_commit_now(request)
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        let state = self.shared.leading().await?;
        self.finish_commit_now(txn, attempt);
        Ok(state.progress())
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        let state = self.shared.leading().await?;
        let mut answer = CannotCommit::default();
        let mut writes = Vec::new();
        for &txn in txns {
            match self.shared.cannot_commit(&state, txn).await {
                Ok(Verdict::Committing) => answer.committing.push(txn),
                Ok(Verdict::Tombstoned) => answer.tombstoned.push(txn),
                Ok(Verdict::Writing(landed)) => writes.push((txn, landed)),
                Err(e) if of_the_leadership(&e) => return Err(e),
                Err(e) => answer.failed.push((txn, e)),
            }
        }
        for (txn, landed) in writes {
            // C4: the mark stays in memory whatever the outcome is.
            match landed.await.unwrap_or_else(|_| Err(stopping())) {
                Ok(()) => answer.tombstoned.push(txn),
                Err(e) if of_the_leadership(&e) => return Err(e),
                Err(e) => answer.failed.push((txn, e)),
            }
        }
        answer.at = state.progress();
        Ok(answer)
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        let state = self.shared.leading().await?;
        let known = state
            .service(service)
            .filter(|known| known.nonce == nonce)
            .ok_or_else(|| lease_lost(service))?;
        if !known.holds(self.shared.env.now()) {
            return Err(lease_lost(service));
        }
        known.commits.observe(range);
        Ok(state.progress())
    }

    fn attach_origin(&self, service: ServiceId, origin: Weak<dyn OriginTxns>) {
        self.shared.origins.attach(service, origin);
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        let state = self.shared.leading().await?;
        let now = self.shared.env.now();
        let mut status = AllocatorStatus { at: state.progress(), ..AllocatorStatus::default() };
        let mut turns = Turns::default();
        for shard in 0..state.tables.shards() {
            let visited = state.tables.for_each_in(shard, |table, entry| {
                status.binds.extend(
                    (0..entry.binds.len() as u32)
                        .filter_map(|partition| entry.status(table, partition, now)),
                );
            });
            turns.after(visited).await;
        }
        for shard in 0..state.services.shards() {
            let visited = state.services.for_each_in(shard, |_, service| {
                if service.holds(now) || service.references.load(Ordering::Acquire) > 0 {
                    status.services.push(ServiceStatus {
                        id: service.id,
                        node: service.node.clone(),
                        address: service.address.clone(),
                        state: service.state(),
                    });
                }
            });
            turns.after(visited).await;
        }
        // A million binds take seconds to sort.
        let sorted = self.shared.env.spawn_blocking(move || {
            status.binds.sort_by(|a, b| {
                (&a.bind.table, a.bind.partition).cmp(&(&b.bind.table, b.bind.partition))
            });
            status.services.sort_by_key(|service| service.id);
            status
        });
        let status = sorted.await.map_err(|_| stopping())?;
        // L1: nothing is answered once the leadership has run out.
        self.shared.leading().await?;
        Ok(status)
    }
}

/// True for an error that says nothing of one transaction: whoever leads next must be asked about
/// all.
fn of_the_leadership(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotLeader | ErrorKind::ShuttingDown)
}

/// What becomes of one transaction of a `cannot_commit`.
enum Verdict {
    Committing,
    Tombstoned,
    Writing(oneshot::Receiver<Result<()>>),
}

impl LocalShared {
    /// Compares what a node was told with the store's history (L4). Fails with `NotLeader` if the
    /// store has lost it: the leadership is over.
    fn compare(&self, state: &AllocatorState, observed: Progress) -> Result<()> {
        let observed = observed.believed(state.sequence.epoch(), state.vouched);
        if !state.exclusive && state.went_back(observed) {
            return Err(self.raise_above(state, observed));
        }
        Ok(())
    }

    /// Ends the leadership because the store has lost what `observed` says: a new one steps over it
    /// (L4).
    fn raise_above(&self, state: &AllocatorState, observed: Progress) -> Error {
        let why = Error::new(
            ErrorKind::NotLeader,
            "the store has lost writes that a node was told of: the leadership ends, and a new \
                one takes every bind as void",
        )
        .with("told_epoch", observed.epoch)
        .with("told_write", observed.write);
        self.observed.lock().add(observed);
        // Without a wait: from here on nothing is answered. Whoever leads next must know, whichever
        // node that is.
        state.leadership.end();
        let place = self.raise_above.lock().take();
        if let Some(place) = place {
            place.send(Command::RaiseAbove { why: why.clone(), observed });
        }
        if self.queue.is_closed() {
            // The writer has ended, and cannot make it known.
            end(&self.ended, &why);
        }
        why
    }

    async fn cannot_commit(&self, state: &Arc<AllocatorState>, txn: TxnId) -> Result<Verdict> {
        let now = self.env.now();
        // T1: it is refused at begin_commit anyway.
        if !txn.validates() {
            return Ok(Verdict::Tombstoned);
        }
        let origin = state.service(txn.origin);
        // L1: a commit that an earlier leader admitted may still be in flight. (One origin of a
        // shared store may live on, and one that the store has lost may have any number.)
        if (txn.origin < state.first_service || origin.is_none()) && now < state.earlier_until {
            return Ok(Verdict::Committing);
        }
        // An origin that is unknown now stays unknown: ids are never handed out twice (L4).
        let Some(origin) = origin else { return Ok(Verdict::Tombstoned) };
        // A mark on a number that is yet to come would hit a transaction that nobody meant.
        match state.origins.life(txn) {
            Some(TxnLife::NotBegun) => {
                return Err(Error::new(
                    ErrorKind::TxnNotFound,
                    "the transaction was never begun: correct its id",
                )
                .with("txn", txn));
            }
            None if !origin.commits.may_have_begun(txn) => return Err(not_told(txn)),
            // One that is over as its origin says is marked like any other: a later leader may hear
            // of its end only later.
            _ => {}
        }
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
            Marked::Full => {
                tracing::error!(service = %txn.origin, "too many transactions of silent clients \
                    are kept from committing one by one: the incarnation is fenced, and its node \
                    starts a new one");
                // Its binds are void from here on, and granted anew when its lease must have run
                // out (B3).
                origin.fence();
                self.store_end(&origin, origin.state()).await?;
                Ok(Verdict::Tombstoned)
            }
            Marked::Committing => Ok(Verdict::Committing),
            Marked::Durable | Marked::Over => Ok(Verdict::Tombstoned),
            Marked::ToWrite(_) => Ok(Verdict::Writing(landed)),
            Marked::Fenced => match origin.lease.get().state {
                // Not an end of its own yet: it says the same to whoever commits now, and its end
                // will be stored before anything is given away.
                LeaseState::Fenced | LeaseState::Resigned => {
                    self.store_end(&origin, origin.state()).await?;
                    Ok(Verdict::Tombstoned)
                }
                LeaseState::Resigning => Err(Error::new(
                    ErrorKind::Unavailable,
                    "the transaction's origin is just resigning: try again",
                )
                .with("txn", txn)),
                // Only a stop fences the origins of live leases.
                LeaseState::Live => Err(stopping()),
            },
        }
    }
}
