//! [`Route`]: the way of one call to the leader, and the allocator of a node that is made of such
//! ways.
//!
//! # What a call does
//! 1. [`Route::next`] chooses the allocator to call:
//!    - a hint of the last refusal, if there is one (T5);
//!    - else this node's own, if it leads, or that of the leader which it follows;
//!    - else it waits until the campaign has found a leader.
//! 2. The call is made there.
//! 3. [`Route::checked`] compares the epoch of the response with the highest that this node has
//!    observed (L3). A response with a lower one is refused, and its leader is sent a report of the
//!    higher one, so that it raises its epoch above it or ends (L4).
//! 4. [`Route::again`] decides if the call is made once more: only after `NotLeader`, and only
//!    before the deadline of step 6. The address in the refusal becomes the next hint, at most
//!    [`HOPS_MAX`] times.
//! 5. Without a hint, the next round waits for the campaign, at most for [`TRY_AGAIN`].
//! 6. At the deadline, two times hi(leadership TTL) after the call began, the call fails with
//!    `Unavailable`.
//!
//! Every call of the allocator may be repeated, so that a response that was lost does no harm.

use std::sync::Arc;

use async_trait::async_trait;

use crate::allocator::LockTableAllocator;
use crate::allocator::cluster::{ElectedAllocator, ElectedShared, Role, TRY_AGAIN};
use crate::allocator::leader::LocalAllocator;
use crate::allocator::messages::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, ClaimedTable, ClusterNodes,
    CommitAdmission, Forgetting, Incarnation, Latest, LeaseAck, Progress, Registration, Released,
    ReservedTokens, Response, TableClaim,
};
use crate::allocator::report::Report;
use crate::allocator::state::commits::{OriginTxns, TxnRange};
use crate::allocator::state::stopping;
use crate::clock::{Time, hi};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, Epoch, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::TableHolders;

/// Largest number of hints that a call follows before it waits for the campaign to find the leader
/// (T5).
const HOPS_MAX: usize = 3;

impl ElectedShared {
    /// The report of what this node observed. `None` before the store has named its cluster.
    fn report(&self, observed: Progress) -> Option<Report> {
        self.cluster.borrow().map(|cluster| Report::new(observed, &cluster))
    }

    /// Renews at `leader`. A leader that does not know the incarnation believes nothing of it. It
    /// may have lost the record, so it is sent a report with a proof.
    async fn renew(
        &self,
        leader: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        let outcome = leader.keepalive(service, nonce, observed).await;
        if outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::LeaseLost)
            && let Some(report) = self.report(observed)
        {
            // The response makes no difference: the lease is lost.
            drop(leader.report(&report).await);
        }
        outcome
    }
}

/// One call's way to the leader.
struct Route<'a> {
    shared: &'a ElectedShared,
    give_up: Time,
    hint: Option<Arc<dyn LockTableAllocator>>,
    hops: usize,
    /// The leadership that the call is made at, if it is this node's own.
    own: Option<Epoch>,
    /// A later leadership that the last response does not know of: its leader was replaced, or
    /// leads a store that has lost it, and must raise its epoch above it (L4).
    newer: Option<Progress>,
    /// True if the node that seemed to lead does not, and named no other.
    wrong_node: bool,
}

impl<'a> Route<'a> {
    fn new(shared: &'a ElectedShared) -> Self {
        let patience = hi(shared.settings.constants.leadership_ttl()) * 2;
        Self {
            shared,
            give_up: shared.env.now() + patience,
            hint: None,
            hops: 0,
            own: None,
            newer: None,
            wrong_node: false,
        }
    }

    /// The allocator to call next.
    async fn next(&mut self) -> Result<Arc<dyn LockTableAllocator>> {
        self.own = None;
        if let Some(hint) = self.hint.take() {
            return Ok(hint);
        }
        let mut role = self.shared.role.subscribe();
        if std::mem::take(&mut self.wrong_node) {
            // The timer only wakes: it looks again.
            drop(self.shared.env.timeout(TRY_AGAIN, role.changed()).await);
        }
        loop {
            let unavailable = match &*role.borrow_and_update() {
                Role::Leading(local) => {
                    self.own = Some(local.epoch());
                    return Ok(Arc::<LocalAllocator>::clone(local));
                }
                Role::Following { allocator, .. } => return Ok(Arc::clone(allocator)),
                Role::Stopped(e) => return Err(e.clone()),
                Role::Searching(why) => {
                    let error = Error::new(
                        ErrorKind::Unavailable,
                        "no allocator leads the store now: try again",
                    );
                    why.as_ref()
                        .map_or_else(|| error.clone(), |why| error.clone().with_source(why.clone()))
                }
            };
            let left = self.give_up.remaining(self.shared.env.now());
            if left.is_zero() {
                return Err(unavailable);
            }
            // The timer only wakes.
            if let Ok(Err(_)) = self.shared.env.timeout(left, role.changed()).await {
                return Err(stopping());
            }
        }
    }

    /// Takes a response into account. One of an earlier leadership than the highest that was
    /// observed is refused, also if it is a refusal itself (L3).
    fn checked<T: Response>(&mut self, outcome: Result<T>) -> Result<T> {
        let epoch = match &outcome {
            Ok(response) => Some(response.at().epoch),
            // It says itself that another leads, and may know where.
            Err(e) if e.kind() == ErrorKind::NotLeader => None,
            Err(e) => e.leader_epoch().or(self.own),
        };
        let Some(epoch) = epoch else { return outcome };
        let mut observed = self.shared.observed.lock();
        let last = observed.last().epoch;
        if epoch < last && !planted!(OldEpochAccepted) {
            self.newer = Some(observed.last());
            return Err(Error::new(
                ErrorKind::NotLeader,
                "an earlier leader responded, which does not know yet that it was replaced: try \
                    again",
            )
            .with("epoch", epoch)
            .with("known", last));
        }
        if let Ok(response) = &outcome {
            observed.add(response.at());
        }
        outcome
    }

    /// True if the call should be made again, because the called node does not lead.
    fn again<T>(&mut self, outcome: &Result<T>) -> bool {
        let Err(e) = outcome else { return false };
        if e.kind() != ErrorKind::NotLeader
            || self.give_up.remaining(self.shared.env.now()).is_zero()
        {
            return false;
        }
        self.hint = e
            .leader()
            .filter(|address| *address != self.shared.address.nodes && self.hops < HOPS_MAX)
            .zip(*self.shared.cluster.borrow())
            .and_then(|(address, cluster)| self.shared.peers.connect(address, cluster.id).ok());
        self.hops += 1;
        self.wrong_node = self.hint.is_none();
        true
    }
}

/// The error of a call that found no leader.
fn no_leader(last: Error) -> Error {
    if last.kind() != ErrorKind::NotLeader {
        return last;
    }
    Error::new(ErrorKind::Unavailable, "no allocator leads the store now: try again")
        .with_source(last)
}

/// Makes a call at the leader, on this node or another: steps 1 to 6 of the [module](self). A
/// macro, because each call borrows its own arguments over the await.
macro_rules! routed {
    ($self:ident, $leader:ident => $call:expr) => {{
        let mut route = Route::new(&$self.shared);
        loop {
            let $leader = route.next().await?;
            let outcome = route.checked($call.await);
            if let Some(report) =
                route.newer.take().and_then(|observed| $self.shared.report(observed))
            {
                // The response makes no difference.
                drop($leader.report(&report).await);
            }
            if !route.again(&outcome) {
                break outcome.map_err(no_leader);
            }
        }
    }};
}

impl ElectedAllocator {
    /// Reports the high-water mark of an earlier leader to the leader. A report that is not
    /// accepted is kept, to be made again.
    async fn report_earlier(&self, observed: Progress) -> Result<()> {
        let Some(report) = self.shared.report(observed) else { return Ok(()) };
        match self.report(&report).await {
            Ok(at) => self.shared.observed.lock().compared(observed, at.epoch),
            // This node does not know the cluster of the store yet.
            Err(e) if e.kind() == ErrorKind::NotPermitted => {
                tracing::warn!(
                    error = ?e,
                    "the leader does not believe a report of this node; it is reported again"
                );
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LockTableAllocator for ElectedAllocator {
    async fn register(&self, request: &Registration) -> Result<Incarnation> {
        routed!(self, leader => leader.register(request))
    }

    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        let mut reports = {
            let mut all = self.shared.observed.lock();
            all.add(observed);
            all.each().to_vec()
        };
        // L4: a later leader gets a report of each earlier one, hardly ever more than one.
        let last = reports.pop().unwrap_or_default();
        for observed in reports {
            self.report_earlier(observed).await?;
        }
        let response =
            routed!(self, leader => self.shared.renew(leader.as_ref(), service, nonce, last))?;
        self.shared.observed.lock().compared(last, response.at.epoch);
        Ok(response)
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        routed!(self, leader => leader.report(report))
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        routed!(self, leader => leader.resign(service, nonce))
    }

    async fn resign_held(
        &self,
        service: ServiceId,
        nonce: Nonce,
        held: &[TableHolders],
    ) -> Result<Progress> {
        routed!(self, leader => leader.resign_held(service, nonce, held))
    }

    async fn claim_table(&self, service: ServiceId, claim: &TableClaim) -> Result<ClaimedTable> {
        routed!(self, leader => leader.claim_table(service, claim))
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        routed!(self, leader => leader.bind(service, table))
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        routed!(self, leader => leader.reserve_tokens(service, table, version))
    }

    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        routed!(self, leader => leader.release_table(service, nonce, table, version))
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        routed!(self, leader => leader.forget_table(table))
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        routed!(self, leader => leader.latest(table))
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        routed!(self, leader => leader.begin_commit(request))
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        routed!(self, leader => leader.finish_commit(txn, attempt))
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        routed!(self, leader => leader.cannot_commit(txns))
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        routed!(self, leader => leader.report_txns(service, nonce, range))
    }

    /// Each leadership of this node, now and later, reads the origin itself.
    fn attach_origin(&self, service: ServiceId, origin: Arc<dyn OriginTxns>) {
        self.shared.origins.attach(service, origin);
    }

    async fn nodes(&self) -> Result<ClusterNodes> {
        routed!(self, leader => leader.nodes())
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        routed!(self, leader => leader.status())
    }
}
