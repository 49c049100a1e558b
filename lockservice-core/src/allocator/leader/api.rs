//! [`LockTableAllocator`] for [`LocalAllocator`]: every call of the leader, in a few lines each.
//! The work is done in the files that are named after it.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::Instrument as _;

use crate::allocator::LockTableAllocator;
use crate::allocator::leader::cannot_commit::Verdict;
use crate::allocator::leader::incarnation::Started;
use crate::allocator::leader::writer::{Command, end};
use crate::allocator::leader::{LocalAllocator, LocalShared};
use crate::allocator::messages::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, ClaimedTable, ClusterNodes,
    CommitAdmission, Forgetting, Incarnation, Latest, LeaseAck, Progress, Registration, Released,
    ReservedTokens, ServiceStatus, TableClaim,
};
use crate::allocator::report::Report;
use crate::allocator::state::commits::{OriginTxns, TxnRange};
use crate::allocator::state::{AllocatorState, Service, lease_lost, stopping};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::{TableHolders, Turns};
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
            let id = ServiceId::from(number);
            let service = match self.shared.start_incarnation(state, request, id, room)? {
                Started::Before(service) => service,
                Started::Queued(landed) => landed.await.unwrap_or_else(|_| Err(stopping()))?,
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
                left: state.left_to(service),
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
        // L4: nothing is believed of an incarnation that is not known: it may be invented. One that
        // the store has lost proves its report.
        let known = known(state, service, nonce)?;
        self.shared.compare(state, observed)?;
        if !known.renew(|| self.shared.env.now()) {
            return Err(lease_lost(service));
        }
        Ok(LeaseAck { at: state.progress(), lease_ttl: self.shared.settings.constants.lease_ttl() })
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        let state = self.shared.leading().await?;
        if !report.is_of(&state.cluster) {
            tracing::warn!(
                observed = ?report.observed,
                cluster = %state.cluster.id,
                "refused a report that is not of this cluster"
            );
            return Err(Error::new(
                ErrorKind::NotPermitted,
                "the report does not come from a node of this cluster: does its store belong to \
                    another one?",
            ));
        }
        self.shared.compare(state, report.observed)?;
        Ok(state.progress())
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        let state = self.shared.leading().await?;
        let known = known(state, service, nonce)?;
        self.shared.resign_incarnation(state, &known).await?;
        Ok(state.progress())
    }

    async fn resign_held(
        &self,
        service: ServiceId,
        nonce: Nonce,
        held: &[TableHolders],
    ) -> Result<Progress> {
        let state = self.shared.leading().await?;
        let known = known(state, service, nonce)?;
        known.leave(held);
        self.shared.resign_incarnation(state, &known).await?;
        Ok(state.progress())
    }

    async fn claim_table(&self, service: ServiceId, claim: &TableClaim) -> Result<ClaimedTable> {
        let state = self.shared.leading().await?;
        self.shared.claim_table(state, service, claim).await
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        let state = self.shared.leading().await?;
        let epoch = state.sequence.epoch();
        let span = tracing::debug_span!("bind", %table, %service, %epoch);
        self.shared.bind(state, service, table).instrument(span).await
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        let state = self.shared.leading().await?;
        let tokens = self.shared.reserve_tokens(state, service, table, version).await?;
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
        let known = known(state, service, nonce)?;
        let kept = self.shared.release_table(state, &known, table, version).await?;
        Ok(Released { kept, at: state.progress() })
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        let state = self.shared.leading().await?;
        let outcome = self.shared.forget_table(state, table).await?;
        Ok(Forgetting { outcome, at: state.progress() })
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        let state = self.shared.leading().await?;
        let now = self.shared.env.now();
        let bind = state.tables.read(table, |entry| entry?.status(table, 0, now));
        Ok(Latest { bind, at: state.progress() })
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        if self.shared.state.get().is_none() {
            Box::pin(self.shared.opened()).await?;
        }
        // It checks for itself that the leadership lasts.
        self.begin_commit_now(request)
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        let state = self.shared.leading().await?;
        self.finish_commit_now(txn, attempt);
        Ok(state.progress())
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        let state = self.shared.leading().await?;
        let mut response = CannotCommit::default();
        let mut writes = Vec::new();
        for &txn in txns {
            match self.shared.cannot_commit(state, txn).await {
                Ok(Verdict::Committing) => response.committing.push(txn),
                Ok(Verdict::Tombstoned) => response.tombstoned.push(txn),
                Ok(Verdict::Writing(landed)) => writes.push((txn, landed)),
                Err(e) if of_the_leadership(&e) => return Err(e),
                Err(e) => response.failed.push((txn, e)),
            }
        }
        for (txn, landed) in writes {
            // C4: the tombstone stays in memory after every outcome.
            match landed.await.unwrap_or_else(|_| Err(stopping())) {
                Ok(()) => response.tombstoned.push(txn),
                Err(e) if of_the_leadership(&e) => return Err(e),
                Err(e) => response.failed.push((txn, e)),
            }
        }
        response.at = state.progress();
        Ok(response)
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        let state = self.shared.leading().await?;
        let known = known(state, service, nonce)?;
        if !known.holds(self.shared.env.now()) {
            return Err(lease_lost(service));
        }
        known.commits.observe(range);
        Ok(state.progress())
    }

    fn attach_origin(&self, service: ServiceId, origin: Arc<dyn OriginTxns>) {
        self.shared.origins.attach(service, origin);
    }

    async fn nodes(&self) -> Result<ClusterNodes> {
        let state = self.shared.leading().await?;
        let now = self.shared.env.now();
        let mut nodes = Vec::new();
        state.services.for_each(|_, service| {
            if service.holds(now) {
                nodes.push(status_of(service));
            }
        });
        nodes.sort_by(|a: &ServiceStatus, b| (&a.node, a.id).cmp(&(&b.node, b.id)));
        Ok(ClusterNodes { at: state.progress(), nodes })
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
        let mut services = Vec::new();
        state.services.for_each(|_, service| services.push(Arc::clone(service)));
        turns.after(services.len()).await;
        services
            .retain(|service| service.holds(now) || service.references.load(Ordering::Acquire) > 0);
        status.services.extend(services.iter().map(|service| status_of(service)));
        // A million binds take seconds to sort.
        let sorted = self.shared.env.spawn_blocking(move || {
            status.binds.sort_by(|a, b| {
                (&a.bind.table, a.bind.partition).cmp(&(&b.bind.table, b.bind.partition))
            });
            status.services.sort_by_key(|service| service.id);
            status
        });
        let status = sorted.await.map_err(|_| stopping())?;
        // L1: no call succeeds once the leadership has run out.
        self.shared.leading().await?;
        Ok(status)
    }
}

/// An incarnation, as an operator sees it.
fn status_of(service: &Service) -> ServiceStatus {
    ServiceStatus {
        id: service.id,
        node: service.node.clone(),
        address: service.address.clone(),
        state: service.state(),
    }
}

/// The incarnation `service`, if it is known with this nonce.
fn known(state: &AllocatorState, service: ServiceId, nonce: Nonce) -> Result<Arc<Service>> {
    state.service(service).filter(|known| known.nonce == nonce).ok_or_else(|| lease_lost(service))
}

/// True for an error that does not concern one transaction: the caller must try all of them at the
/// next leader.
fn of_the_leadership(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotLeader | ErrorKind::ShuttingDown)
}

impl LocalShared {
    /// Compares what a node observed with the store's history (L4). Fails with `NotLeader` if the
    /// store has lost it: the leadership is over.
    fn compare(&self, state: &AllocatorState, observed: Progress) -> Result<()> {
        let observed = observed.believed(state.sequence.epoch(), state.vouched);
        if !state.exclusive && state.went_back(observed) {
            return Err(self.raise_above(state, observed));
        }
        Ok(())
    }

    /// Ends the leadership because the store has lost what `observed` says: a new one begins above
    /// it (L4).
    fn raise_above(&self, state: &AllocatorState, observed: Progress) -> Error {
        let why = Error::new(
            ErrorKind::NotLeader,
            "the store has lost writes that a node had observed: the leadership ends, and a new \
                one takes every bind as invalid",
        )
        .with("observed_epoch", observed.epoch)
        .with("observed_write", observed.write);
        self.observed.lock().add(observed);
        // Without a wait: from here on no call succeeds. The next leader must know, whichever node
        // that is.
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
}
