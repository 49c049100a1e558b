//! [`Server`]: the listener for clients.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{LockTableAllocator, Role};
use lockservice_core::service::Stopped;
use lockservice_core::{Error, ErrorKind, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use super::access::{Access, Port};
use super::calls::Calls;
use super::deadline::Deadline;
use super::gate::Gate;
use super::serving::{Serving, transport};
use super::session_stream::SessionStreams;
use super::{ServerListener, ServerSettings, ServiceHost, Slot, admin, allocator, health, locks};
use crate::metrics::RpcMetrics;
use crate::proto;
use crate::proto::allocator_server::AllocatorServer;

/// The way in which a server stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// For a restart (P6): nobody's work ends, and it takes less than a second. What is held stays
    /// held, and the clients claim it at the node's next process, if that comes in time.
    Restart,
    /// For good: the sessions are told to stop their work, and waited for up to the grace.
    Drain,
}

/// The longest time that a stop for a restart waits for commits in flight, and for an allocator.
const RESTART_MAX: Duration = Duration::from_millis(500);

/// A gRPC server that listens to clients. `Allocator` serves at once, for calls to the leader may
/// come before this node's own service can start. The rest fails with `Unavailable` until the
/// service [stands](Self::host). Dropping it closes every connection.
#[derive(Debug)]
pub struct Server {
    slot: Slot,
    settings: ServerSettings,
    health: HealthReporter,
    /// The tasks that keep the health in step with the service and with the role.
    locks_health: JoinSet<()>,
    allocator_health: JoinSet<()>,
    serving: Serving,
    rpc: Arc<RpcMetrics>,
}

impl Server {
    /// Starts to listen. Calls of clients to the leader go to `allocator`:
    /// [`ElectedAllocator::for_clients`] where several nodes share a store.
    ///
    /// Must be called within a tokio runtime, in which it spawns a task.
    ///
    /// # Errors
    /// `Internal` if the API's descriptors are broken: report it.
    ///
    /// # Cancel safety
    /// Dropping the call closes the listener.
    ///
    /// [`ElectedAllocator::for_clients`]:
    /// lockservice_core::allocator::ElectedAllocator::for_clients
    pub async fn start(
        listener: impl Into<ServerListener>,
        allocator: Arc<dyn LockTableAllocator>,
        settings: ServerSettings,
    ) -> Result<Self> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let slot = Slot::default();
        let listener: ServerListener = listener.into();
        health::set_locks(&health, false).await;
        health::set_allocator(&health, true).await;
        let broken =
            |e| Error::new(ErrorKind::Internal, "the API's descriptors are broken").with_source(e);
        let reflection = reflection_builder().build_v1().map_err(broken)?;
        // Most clients are older than `v1`.
        let reflection_alpha = reflection_builder().build_v1alpha().map_err(broken)?;
        let rpc = Arc::<RpcMetrics>::default();
        let (most, access) = (settings.message_bytes_max, listener.access.clone());
        let calls = Calls::of(access.clone(), Port::Clients, most, Arc::clone(&rpc));
        let routes = routes(&calls, access, &slot, allocator, settings)
            .add_service(calls.checked(health_service))
            .add_service(calls.checked(reflection))
            .add_service(calls.checked(reflection_alpha));
        let router = transport().add_routes(routes);
        let serving = Serving::start(router, listener, settings);
        let (locks_health, allocator_health) = (JoinSet::new(), JoinSet::new());
        Ok(Self { slot, settings, health, locks_health, allocator_health, serving, rpc })
    }

    /// Adds the node's service: from now on its locks are served. Only the first call counts; the
    /// service replaces itself (see [`ServiceHost`]).
    ///
    /// # Cancel safety
    /// Once polled the service counts.
    pub async fn host(&mut self, host: ServiceHost) {
        if self.slot.fill(host.clone()) {
            health::set_locks(&self.health, true).await;
            self.locks_health.spawn(health::follow_host(self.health.clone(), host));
        }
    }

    /// What is counted of the calls of its clients.
    pub fn metrics(&self) -> &Arc<RpcMetrics> {
        &self.rpc
    }

    /// From now on the health of `Allocator` follows `roles`: it serves while the node leads, or
    /// knows the leader. Without this call it serves as long as the server listens.
    pub fn follow(&mut self, roles: watch::Receiver<Role>) {
        self.allocator_health.spawn(health::follow_roles(self.health.clone(), roles));
    }

    /// Serves until `stop` resolves, then stops the service in the way that it says. To drain it
    /// notifies the sessions, ends every wait, waits up to the grace for the sessions to close, and
    /// resigns the lease if all did. The connections stay, and the allocator still serves.
    ///
    /// # Errors
    /// `Unavailable` if the listener breaks: nothing was waited for, and the caller starts the node
    /// again.
    ///
    /// # Cancel safety
    /// Dropped before `stop` has resolved, it changes nothing. Dropped later, it leaves the service
    /// stopping; call it again.
    pub async fn run(&mut self, stop: impl Future<Output = Stop>) -> Result<Stopped> {
        let (stop, broken) = tokio::select! {
            stop = stop => (stop, None),
            // Nobody can be told anything any more.
            why = self.serving.broken() => (Stop::Restart, Some(why)),
        };
        // From here on the incarnation is not replaced.
        self.locks_health.shutdown().await;
        health::set_locks(&self.health, false).await;
        let grace = Duration::from_millis(self.settings.grace_ms);
        let stopped = match (self.slot.host(), stop) {
            (Some(host), Stop::Restart) => host.stop_for_restart(RESTART_MAX).await,
            (Some(host), Stop::Drain) => host.stop(grace).await,
            (None, _) => Stopped { resigned: true, confirmed: true, held: 0 },
        };
        broken.map_or(Ok(stopped), Err)
    }

    /// Closes the connections. The session streams have ended by themselves with their sessions;
    /// the others are cut.
    ///
    /// # Cancel safety
    /// Dropping the call closes the connections at once.
    pub async fn close(self) {
        self.serving.close().await;
    }
}

/// The calls that a node takes from clients, but for health and reflection.
pub(super) fn routes(
    calls: &Arc<Calls>,
    access: Access,
    slot: &Slot,
    allocator: Arc<dyn LockTableAllocator>,
    settings: ServerSettings,
) -> Routes {
    let locks = locks::LocksApi::new(slot.clone(), settings, access);
    let locks = SessionStreams::beside(locks, &settings);
    let allocator = AllocatorServer::new(allocator::AllocatorApi::new(allocator, Gate::open()))
        .max_decoding_message_size(settings.message_bytes_max);
    let admin =
        proto::admin_server::AdminServer::new(admin::AdminApi::new(slot.clone(), &settings));
    Routes::new(calls.checked(Deadline(locks)))
        .add_service(calls.checked(Deadline(allocator)))
        .add_service(calls.checked(Deadline(admin)))
}

/// Describes the API for clients, and nothing else.
fn reflection_builder() -> tonic_reflection::server::Builder<'static> {
    use proto::{admin_server, allocator_server, locks_server};
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(locks_server::SERVICE_NAME)
        .with_service_name(allocator_server::SERVICE_NAME)
        .with_service_name(admin_server::SERVICE_NAME)
        .with_service_name(tonic_health::pb::health_server::SERVICE_NAME)
}
