//! Metrics and health over HTTP, for monitoring: a listener of its own, off by default.
//!
//! | path | response |
//! |---|---|
//! | `/metrics` | all metrics, as text in the OpenMetrics format, which Prometheus reads |
//! | `/healthz` | 200 as long as the process responds |
//! | `/readyz` | 200 while locks are granted; 503 with the reason before, and while the node stops |
//!
//! The parts of a node count by themselves ([`lockservice_core::metrics`]). [`NodeMetrics`] knows
//! where each part is, and [`MetricsServer`] reads them when it is asked. The responses name no
//! table, key or client, and nothing can be changed: see the README for who should reach it.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`NodeMetrics`] |
//! | `families.rs` | the names of the metrics, with what each of them means |
//! | `encode.rs` | the text |
//! | `rpc.rs` | [`RpcMetrics`]: calls by method |
//! | `http.rs` | [`MetricsServer`] |

mod encode;
mod families;
mod http;
mod rpc;

use std::sync::{Arc, OnceLock};

use lockservice_core::allocator::ElectedAllocator;
use lockservice_core::metrics::{ServiceMetrics, StoreMetrics};

pub use self::http::MetricsServer;
pub use self::rpc::RpcMetrics;
use crate::server::{PeerServer, Server, ServiceHost};

/// The metrics of a node, from before it has a store or a service.
#[derive(Debug, Default)]
pub struct NodeMetrics {
    /// For [`ServiceParts::metrics`](lockservice_core::service::ServiceParts::metrics).
    pub service: Arc<ServiceMetrics>,
    /// For the [`MeteredStore`](lockservice_core::metrics::MeteredStore) under the allocator.
    pub store: Arc<StoreMetrics>,
    rpc: OnceLock<Arc<RpcMetrics>>,
    peer_rpc: OnceLock<Arc<RpcMetrics>>,
    allocator: OnceLock<Arc<ElectedAllocator>>,
    host: OnceLock<ServiceHost>,
}

impl NodeMetrics {
    /// Adds the server that listens to clients. Only the first call counts.
    pub fn watch_server(&self, server: &Server) {
        // A node has one.
        drop(self.rpc.set(Arc::clone(server.metrics())));
    }

    /// Adds the server that listens to other nodes. Only the first call counts.
    pub fn watch_peers(&self, peers: &PeerServer) {
        // A node has one.
        drop(self.peer_rpc.set(Arc::clone(peers.metrics())));
    }

    /// Adds the allocator. Only the first call counts.
    pub fn watch_allocator(&self, allocator: Arc<ElectedAllocator>) {
        // A node has one.
        drop(self.allocator.set(allocator));
    }

    /// Adds the service. Only the first call counts.
    pub fn watch_service(&self, host: ServiceHost) {
        // A node has one.
        drop(self.host.set(host));
    }

    /// The reason why no locks are granted now; `None` if they are.
    pub fn not_ready(&self) -> Option<&'static str> {
        match self.host.get() {
            None => Some("the node is starting and has no lease yet"),
            Some(host) if host.current().serves() => None,
            Some(_) => Some("the node has lost its lease, or is stopping"),
        }
    }
}
