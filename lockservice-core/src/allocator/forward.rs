//! [`LockTableAllocator`] for types that hand every call on: one list of the calls, and `Arc<T>`
//! and `Box<T>`, whose calls go to what is inside.

use std::sync::Arc;

use async_trait::async_trait;

use crate::allocator::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, ClaimedTable, ClusterNodes,
    CommitAdmission, Forgetting, Incarnation, Latest, LeaseAck, LockTableAllocator, OriginTxns,
    Progress, Registration, Released, Report, ReservedTokens, TableClaim, TxnRange,
};
use crate::error::Result;
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::TableHolders;

/// Implements [`LockTableAllocator`] for `$type`: each call of `$this` goes to `$inner`.
///
/// `attach_origin` is no call and cannot fail, so that each type says by itself what it does there.
/// The caller imports the types that the trait names.
macro_rules! forward_calls {
    ([$($generics:tt)*] $type:ty: $this:ident => $inner:expr; $attach_origin:item) => {
        forward_calls! {
            @list [$($generics)*] $type: $this => $inner; $attach_origin
            register(request: &Registration) -> Incarnation;
            keepalive(service: ServiceId, nonce: Nonce, observed: Progress) -> LeaseAck;
            report(report: &Report) -> Progress;
            resign(service: ServiceId, nonce: Nonce) -> Progress;
            resign_held(service: ServiceId, nonce: Nonce, held: &[TableHolders]) -> Progress;
            claim_table(service: ServiceId, claim: &TableClaim) -> ClaimedTable;
            bind(service: ServiceId, table: &TableRef) -> BoundTable;
            reserve_tokens(
                service: ServiceId, table: TableId, version: BindVersion) -> ReservedTokens;
            release_table(
                service: ServiceId, nonce: Nonce, table: &TableRef, version: BindVersion
            ) -> Released;
            forget_table(table: &TableRef) -> Forgetting;
            latest(table: &TableRef) -> Latest;
            begin_commit(request: &BeginCommit) -> CommitAdmission;
            finish_commit(txn: TxnId, attempt: CommitAttempt) -> Progress;
            cannot_commit(txns: &[TxnId]) -> CannotCommit;
            report_txns(service: ServiceId, nonce: Nonce, range: TxnRange) -> Progress;
            nodes() -> ClusterNodes;
            status() -> AllocatorStatus;
        }
    };
    (
        @list [$($generics:tt)*] $type:ty: $this:ident => $inner:expr; $attach_origin:item
        $($name:ident($($argument:ident: $argument_type:ty),*) -> $response:ty;)*
    ) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<$($generics)*> LockTableAllocator for $type {
            $(async fn $name(&self, $($argument: $argument_type),*) -> Result<$response> {
                let $this = self;
                $inner.$name($($argument),*).await
            })*

            $attach_origin
        }
    };
}

#[cfg(any(test, feature = "testing"))]
pub(crate) use forward_calls;

macro_rules! forward_pointer {
    ($pointer:ident) => {
        forward_calls! {
            [A: LockTableAllocator + ?Sized] $pointer<A>: this => (**this);

            fn attach_origin(&self, service: ServiceId, origin: Arc<dyn OriginTxns>) {
                (**self).attach_origin(service, origin);
            }
        }
    };
}

forward_pointer!(Arc);
forward_pointer!(Box);
