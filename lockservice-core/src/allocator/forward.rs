//! [`LockTableAllocator`] for `Arc<T>` and `Box<T>`: each call goes to what is inside.

use std::sync::Arc;

use async_trait::async_trait;

use crate::allocator::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, CommitAdmission, Forgetting,
    Incarnation, Latest, LeaseAck, LockTableAllocator, OriginTxns, Progress, Registration,
    Released, Report, ReservedTokens, TxnRange,
};
use crate::error::Result;
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};

macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<A: LockTableAllocator + ?Sized> LockTableAllocator for $pointer<A> {
            async fn register(&self, request: &Registration) -> Result<Incarnation> {
                (**self).register(request).await
            }

            async fn keepalive(
                &self,
                service: ServiceId,
                nonce: Nonce,
                observed: Progress,
            ) -> Result<LeaseAck> {
                (**self).keepalive(service, nonce, observed).await
            }

            async fn report(&self, report: &Report) -> Result<Progress> {
                (**self).report(report).await
            }

            async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
                (**self).resign(service, nonce).await
            }

            async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
                (**self).bind(service, table).await
            }

            async fn reserve_tokens(
                &self,
                service: ServiceId,
                table: TableId,
                version: BindVersion,
            ) -> Result<ReservedTokens> {
                (**self).reserve_tokens(service, table, version).await
            }

            async fn release_table(
                &self,
                service: ServiceId,
                nonce: Nonce,
                table: &TableRef,
                version: BindVersion,
            ) -> Result<Released> {
                (**self).release_table(service, nonce, table, version).await
            }

            async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
                (**self).forget_table(table).await
            }

            async fn latest(&self, table: &TableRef) -> Result<Latest> {
                (**self).latest(table).await
            }

            async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
                (**self).begin_commit(request).await
            }

            async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
                (**self).finish_commit(txn, attempt).await
            }

            async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
                (**self).cannot_commit(txns).await
            }

            async fn report_txns(
                &self,
                service: ServiceId,
                nonce: Nonce,
                range: TxnRange,
            ) -> Result<Progress> {
                (**self).report_txns(service, nonce, range).await
            }

            fn attach_origin(&self, service: ServiceId, origin: Arc<dyn OriginTxns>) {
                (**self).attach_origin(service, origin);
            }

            async fn status(&self) -> Result<AllocatorStatus> {
                (**self).status().await
            }
        }
    };
}

forward!(Arc);
forward!(Box);
