//! [`LocalPeers`]: nodes of one process that reach each other without a network.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::allocator::forward::forward_calls;
use crate::allocator::{
    AllocatorPeers, AllocatorStatus, BeginCommit, BoundTable, CannotCommit, ClaimedTable,
    ClusterNodes, CommitAdmission, Forgetting, Incarnation, Latest, LeaseAck, LockTableAllocator,
    OriginTxns, Progress, Registration, Released, Report, ReservedTokens, TableClaim, TxnRange,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, CommitAttempt, Nonce, ServiceId, TableId, TableRef, TxnId};
use crate::store::ClusterId;
use crate::store::TableHolders;

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
            Error::new(ErrorKind::Unavailable, "no node responds there")
                .with("address", &self.address)
        })
    }
}

forward_calls! {
    [] Connection: this => this.node()?;

    /// The origins of a process are not reached from another.
    fn attach_origin(&self, _service: ServiceId, _origin: Arc<dyn OriginTxns>) {}
}
