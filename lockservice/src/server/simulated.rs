//! A server without a listener: a simulation carries its calls.

use std::sync::Arc;

use lockservice_core::allocator::LockTableAllocator;
use lockservice_core::store::Cluster;
use tokio::sync::watch;
use tonic::service::Routes;

use super::access::{Access, Port};
use super::calls::Calls;
use super::{ServerSettings, ServiceHost, Slot, client_server, peer_server};

/// The calls that a node takes from clients.
#[derive(Debug)]
pub struct ClientRoutes {
    slot: Slot,
    /// The calls.
    pub routes: Routes,
}

impl ClientRoutes {
    /// Serves as a [`Server`](super::Server) with this allocator does.
    pub fn new(allocator: Arc<dyn LockTableAllocator>, settings: ServerSettings) -> Self {
        let (slot, access) = (Slot::default(), Access::default());
        let most = settings.message_bytes_max;
        let calls = Calls::of(access.clone(), Port::Clients, most, Arc::default());
        let routes = client_server::routes(&calls, access, &slot, allocator, settings);
        Self { slot, routes }
    }

    /// See [`Server::host`](super::Server::host).
    pub fn host(&self, host: ServiceHost) {
        self.slot.fill(host);
    }
}

/// See [`peer_routes`](crate::simulation::peer_routes).
pub(crate) fn peer_routes(
    allocator: Arc<dyn LockTableAllocator>,
    cluster: watch::Receiver<Option<Cluster>>,
    settings: &ServerSettings,
) -> Routes {
    peer_server::routes(Access::default(), allocator, cluster, settings, Arc::default())
}
