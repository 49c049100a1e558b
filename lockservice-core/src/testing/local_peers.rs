//! [`LocalPeers`]: nodes of one process that reach each other without a network.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::allocator::{
    AllocatorPeers, AllocatorStatus, BeginCommit, BoundTable, CannotCommit, CommitAdmission,
    Forgetting, Incarnation, Latest, LeaseAck, LockTableAllocator, Progress, Registration,
    Released, Report, ReservedTokens, TxnRange,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::ClusterId;

/// The nodes of one process, by address. A connection looks the node up on every call, as a network
/// does. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct LocalPeers(Arc<Mutex<HashMap<String, Arc<dyn LockTableAllocator>>>>);

impl LocalPeers {
    /// Lets `allocator` respond at `address`, in place of the one before.
    pub fn join(&self, address: &str, allocator: Arc<dyn LockTableAllocator>) {
        self.0.lock().insert(address.to_owned(), allocator);
    }

    /// Lets no allocator respond at `address` any more.
    pub fn leave(&self, address: &str) {
        self.0.lock().remove(address);
    }
}

impl AllocatorPeers for LocalPeers {
    fn connect(&self, address: &str, _cluster: ClusterId) -> Result<Arc<dyn LockTableAllocator>> {
        Ok(Arc::new(Connection { peers: self.clone(), address: address.to_owned() }))
    }
}

#[derive(Debug)]
struct Connection {
    peers: LocalPeers,
    address: String,
}

impl Connection {
    fn node(&self) -> Result<Arc<dyn LockTableAllocator>> {
        let node = self.peers.0.lock().get(&self.address).map(Arc::clone);
        node.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "no node answers there")
                .with("address", &self.address)
        })
    }
}

macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),*) -> $response:ty;)*) => {
        #[async_trait]
        impl LockTableAllocator for Connection {
            $(async fn $name(&self, $($argument: $type),*) -> Result<$response> {
                self.node()?.$name($($argument),*).await
            })*
        }
    };
}

forward! {
    register(request: &Registration) -> Incarnation;
    keepalive(service: ServiceId, nonce: Nonce, observed: Progress) -> LeaseAck;
    report(report: &Report) -> Progress;
    resign(service: ServiceId, nonce: Nonce) -> Progress;
    bind(service: ServiceId, table: &TableRef) -> BoundTable;
    reserve_tokens(service: ServiceId, table: TableId, version: BindVersion) -> ReservedTokens;
    release_table(
        service: ServiceId, nonce: Nonce, table: &TableRef, version: BindVersion) -> Released;
    forget_table(table: &TableRef) -> Forgetting;
    latest(table: &TableRef) -> Latest;
    begin_commit(request: &BeginCommit) -> CommitAdmission;
    finish_commit(txn: TxnId, attempt: CommitAttempt) -> Progress;
    cannot_commit(txns: &[TxnId]) -> CannotCommit;
    report_txns(service: ServiceId, nonce: Nonce, range: TxnRange) -> Progress;
    status() -> AllocatorStatus;
}
