//! [`HookedAllocator`]: a local allocator, some of whose calls a test changes.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::allocator::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, ClaimedTable, ClusterNodes,
    CommitAdmission, Forgetting, Incarnation, Latest, LeaseAck, LocalAllocator, LockTableAllocator,
    OriginTxns, Progress, Registration, Released, Report, ReservedTokens, TableClaim, TxnRange,
};
use crate::error::Result;
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::TableHolders;

/// The changes of a test in the calls of a service to its allocator: it may delay a call, lose it,
/// lose its response, or change that. By default each call goes to `inner`.
#[async_trait]
pub trait AllocatorHooks: fmt::Debug + Send + Sync + 'static {
    /// In place of [`LockTableAllocator::keepalive`].
    async fn keepalive(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        inner.keepalive(service, nonce, observed).await
    }

    /// In place of [`LockTableAllocator::resign`].
    async fn resign(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
    ) -> Result<Progress> {
        inner.resign(service, nonce).await
    }

    /// In place of [`LockTableAllocator::claim_table`].
    async fn claim_table(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        claim: &TableClaim,
    ) -> Result<ClaimedTable> {
        inner.claim_table(service, claim).await
    }

    /// In place of [`LockTableAllocator::bind`].
    async fn bind(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        table: &TableRef,
    ) -> Result<BoundTable> {
        inner.bind(service, table).await
    }

    /// In place of [`LockTableAllocator::reserve_tokens`].
    async fn reserve_tokens(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        inner.reserve_tokens(service, table, version).await
    }

    /// In place of [`LockTableAllocator::release_table`].
    async fn release_table(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        inner.release_table(service, nonce, table, version).await
    }
}

/// An allocator whose calls go through [`AllocatorHooks`] to a local one.
#[derive(Debug)]
pub struct HookedAllocator<H> {
    /// The allocator that the calls go to.
    pub inner: Arc<LocalAllocator>,
    /// The changes of the test.
    pub hooks: H,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<H: AllocatorHooks> LockTableAllocator for HookedAllocator<H> {
    async fn register(&self, request: &Registration) -> Result<Incarnation> {
        self.inner.register(request).await
    }

    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        self.hooks.keepalive(&*self.inner, service, nonce, observed).await
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        self.inner.report(report).await
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        self.hooks.resign(&*self.inner, service, nonce).await
    }

    async fn resign_held(
        &self,
        service: ServiceId,
        nonce: Nonce,
        held: &[TableHolders],
    ) -> Result<Progress> {
        self.inner.resign_held(service, nonce, held).await
    }

    async fn claim_table(&self, service: ServiceId, claim: &TableClaim) -> Result<ClaimedTable> {
        self.hooks.claim_table(&*self.inner, service, claim).await
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        self.hooks.bind(&*self.inner, service, table).await
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        self.hooks.reserve_tokens(&*self.inner, service, table, version).await
    }

    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        self.hooks.release_table(&*self.inner, service, nonce, table, version).await
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        self.inner.forget_table(table).await
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        self.inner.latest(table).await
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        self.inner.begin_commit(request).await
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        self.inner.finish_commit(txn, attempt).await
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        self.inner.cannot_commit(txns).await
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        self.inner.report_txns(service, nonce, range).await
    }

    fn attach_origin(&self, service: ServiceId, origin: Arc<dyn OriginTxns>) {
        self.inner.attach_origin(service, origin);
    }

    async fn nodes(&self) -> Result<ClusterNodes> {
        self.inner.nodes().await
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        self.inner.status().await
    }
}
