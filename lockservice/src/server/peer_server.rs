//! [`PeerServer`]: the listener for other nodes.

use std::sync::Arc;

use lockservice_core::Error;
use lockservice_core::allocator::LockTableAllocator;
use lockservice_core::store::Cluster;
use tokio::sync::watch;
use tonic::service::Routes;

use super::access::{Access, Port};
use super::calls::Calls;
use super::deadline::Deadline;
use super::gate::Gate;
use super::serving::{Serving, transport};
use super::{ServerListener, ServerSettings, allocator, peer};
use crate::metrics::RpcMetrics;
use crate::proto::allocator_server::AllocatorServer;
use crate::proto::peer_server::PeerServer as PeerServiceServer;

/// A gRPC server that listens to the other nodes of a cluster, on a listener of its own. The
/// [module](super) says which processes may reach it. Dropping it closes every connection.
#[derive(Debug)]
pub struct PeerServer {
    serving: Serving,
    rpc: Arc<RpcMetrics>,
}

impl PeerServer {
    /// Starts to listen. Calls of nodes to the leader go to `allocator`, which is
    /// [`ElectedAllocator::as_leader`]; a caller that is not of `cluster`, which is
    /// [`ElectedAllocator::cluster`], is refused (T3).
    ///
    /// Must be called within a tokio runtime, in which it spawns a task.
    ///
    /// [`ElectedAllocator::as_leader`]: lockservice_core::allocator::ElectedAllocator::as_leader
    /// [`ElectedAllocator::cluster`]: lockservice_core::allocator::ElectedAllocator::cluster
    pub fn start(
        listener: impl Into<ServerListener>,
        allocator: Arc<dyn LockTableAllocator>,
        cluster: watch::Receiver<Option<Cluster>>,
        settings: ServerSettings,
    ) -> Self {
        let listener: ServerListener = listener.into();
        let rpc = Arc::<RpcMetrics>::default();
        let access = listener.access.clone();
        let routes = routes(access, allocator, cluster, &settings, Arc::clone(&rpc));
        let router = transport().add_routes(routes);
        Self { serving: Serving::start(router, listener, settings), rpc }
    }

    /// What is counted of the calls of other nodes.
    pub fn metrics(&self) -> &Arc<RpcMetrics> {
        &self.rpc
    }

    /// Resolves when the listener breaks, with the reason: the node can lead no more then.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn broken(&mut self) -> Error {
        self.serving.broken().await
    }

    /// Closes the connections.
    ///
    /// # Cancel safety
    /// Dropping the call closes the connections at once.
    pub async fn close(self) {
        self.serving.close().await;
    }
}

/// The calls that a node takes from other nodes.
pub(super) fn routes(
    access: Access,
    allocator: Arc<dyn LockTableAllocator>,
    cluster: watch::Receiver<Option<Cluster>>,
    settings: &ServerSettings,
    rpc: Arc<RpcMetrics>,
) -> Routes {
    let most = settings.message_bytes_max;
    let calls = Calls::of(access, Port::Nodes, most, rpc);
    let gate = Gate::members_of(cluster);
    let peer = PeerServiceServer::new(peer::PeerApi::new(Arc::clone(&allocator), gate.clone()))
        .max_decoding_message_size(most);
    // Nodes also call on behalf of their clients.
    let allocator = AllocatorServer::new(allocator::AllocatorApi::new(allocator, gate))
        .max_decoding_message_size(most);
    Routes::new(calls.checked(Deadline(peer))).add_service(calls.checked(Deadline(allocator)))
}
