//! [`LeaderView`]: the calls that others may make to the allocator of this node.
//!
//! It never passes a call on: it serves as the leader, or refuses and names the address of the
//! leader.

use std::sync::Arc;

use async_trait::async_trait;

use crate::allocator::LockTableAllocator;
use crate::allocator::cluster::{ElectedShared, Role};
use crate::allocator::leader::LocalAllocator;
use crate::allocator::messages::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, ClaimedTable, ClusterNodes,
    CommitAdmission, Forgetting, Incarnation, Latest, LeaseAck, Progress, Registration, Released,
    ReservedTokens, TableClaim,
};
use crate::allocator::report::Report;
use crate::allocator::state::commits::TxnRange;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::TableHolders;

impl ElectedShared {
    /// The error that says who leads, to a node or to a client.
    fn not_leader(&self, nodes: bool) -> Error {
        let error =
            Error::new(ErrorKind::NotLeader, "this node does not lead the store: call the leader");
        let role = self.role.borrow();
        let address = match &*role {
            Role::Following { address, clients, .. } => {
                if nodes {
                    address
                } else {
                    clients
                }
            }
            _ => return error,
        };
        if address.is_empty() {
            return error;
        }
        error.with("leader", address).with_detail(Detail::Leader(address.clone()))
    }
}

/// See [`ElectedAllocator::as_leader`] and [`ElectedAllocator::for_clients`].
#[derive(Debug)]
pub(super) struct LeaderView {
    pub(super) shared: Arc<ElectedShared>,
    /// True for nodes, false for clients.
    pub(super) nodes: bool,
}

impl LeaderView {
    fn local(&self) -> Result<Arc<LocalAllocator>> {
        if let Role::Leading(local) = &*self.shared.role.borrow() {
            return Ok(Arc::clone(local));
        }
        Err(self.shared.not_leader(self.nodes))
    }

    /// Makes `call` at this node's leader. A refusal names the leadership that refused (L3).
    async fn call<T, F>(&self, call: impl FnOnce(Arc<LocalAllocator>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let local = self.local()?;
        // Before the call: what it decides is decided under this epoch or a later one.
        let epoch = local.epoch();
        call(local).await.map_err(|e| {
            // To callers on other machines it does not matter that this leader stops: another will
            // lead.
            let e = if e.kind() == ErrorKind::ShuttingDown {
                self.shared.not_leader(self.nodes)
            } else {
                e
            };
            e.with_leader_epoch(epoch)
        })
    }

    /// Makes a `call` that is for nodes.
    ///
    /// Fails with `NotPermitted` for clients, and on an exclusive store: that has no other node.
    async fn call_as_node<T, F>(&self, call: impl FnOnce(Arc<LocalAllocator>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        if !self.nodes {
            return Err(Error::new(ErrorKind::NotPermitted, "this call is for nodes"));
        }
        if self.local()?.is_exclusive() {
            return Err(not_for_others());
        }
        self.call(call).await
    }
}

/// The refusal of a call that is for nodes, where there can be only one.
fn not_for_others() -> Error {
    Error::new(
        ErrorKind::NotPermitted,
        "this call is for nodes, and the store is open to this node alone: share a store between \
            nodes instead",
    )
}

#[async_trait]
impl LockTableAllocator for LeaderView {
    async fn register(&self, request: &Registration) -> Result<Incarnation> {
        self.call_as_node(async |local| local.register(request).await).await
    }

    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        self.call_as_node(async |local| local.keepalive(service, nonce, observed).await).await
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        self.call_as_node(async |local| local.report(report).await).await
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        self.call_as_node(async |local| local.resign(service, nonce).await).await
    }

    async fn resign_held(
        &self,
        service: ServiceId,
        nonce: Nonce,
        held: &[TableHolders],
    ) -> Result<Progress> {
        self.call_as_node(async |local| local.resign_held(service, nonce, held).await).await
    }

    async fn claim_table(&self, service: ServiceId, claim: &TableClaim) -> Result<ClaimedTable> {
        self.call_as_node(async |local| local.claim_table(service, claim).await).await
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        self.call_as_node(async |local| local.bind(service, table).await).await
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        self.call_as_node(async |local| local.reserve_tokens(service, table, version).await).await
    }

    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        self.call_as_node(async |local| local.release_table(service, nonce, table, version).await)
            .await
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        self.call_as_node(async |local| local.forget_table(table).await).await
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        self.call(async |local| local.latest(table).await).await
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        self.call(async |local| local.begin_commit(request).await).await
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        self.call(async |local| local.finish_commit(txn, attempt).await).await
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        self.call_as_node(async |local| local.cannot_commit(txns).await).await
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        self.call_as_node(async |local| local.report_txns(service, nonce, range).await).await
    }

    async fn nodes(&self) -> Result<ClusterNodes> {
        self.call(async |local| local.nodes().await).await
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        self.call(async |local| local.status().await).await
    }
}
