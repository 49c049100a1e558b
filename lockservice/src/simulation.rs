//! What a simulation of whole nodes and clients is made of: this crate's own server and client,
//! over a network of the simulation's. For the tests of this project; no part of the API.

use std::sync::Arc;

use lockservice_core::allocator::LockTableAllocator;
use lockservice_core::env::Env;
use lockservice_core::store::Cluster;
use tokio::sync::watch;
use tonic::service::Routes;

pub use crate::channel::{Network, NetworkError, NetworkResponse};
use crate::client::ClientBuilder;
pub use crate::server::simulated::ClientRoutes;
use crate::server::{ServerSettings, simulated};

/// The calls that a node takes from other nodes.
pub fn peer_routes(
    allocator: Arc<dyn LockTableAllocator>,
    cluster: watch::Receiver<Option<Cluster>>,
    settings: &ServerSettings,
) -> Routes {
    simulated::peer_routes(allocator, cluster, settings)
}

/// A client whose calls `network` carries. No address is tried beforehand.
pub fn client(
    builder: ClientBuilder,
    env: Env,
    network: Arc<dyn Network>,
    addresses: &[String],
) -> crate::Client {
    builder.env(env).simulated(network, addresses)
}
