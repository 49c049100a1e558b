//! The gRPC server: a node's service and allocator, for every language.
//!
//! A [`Server`] listens before the node's service stands; [`serve`] runs a node that stands until
//! it is told to stop. The session stream is the first-class API (see the proto file); the unary
//! calls work on a session too. Everything that a client can make large is bounded: connections,
//! messages, operations under way, lists, the frames that wait to be read.
//!
//! Where several nodes share a store, each needs a [`PeerServer`] beside it, on a listener of its
//! own. **Whoever reaches that listener owns the cluster**: it can take over nodes and end leases.
//! Clients need nothing of it, and nothing that a client is told lets it act as a node.

mod admin;
mod allocator;
mod caller;
mod calls;
mod connection;
mod deadline;
mod gate;
mod health;
mod host;
mod incoming;
mod locks;
mod peer;

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockservice_core::allocator::{LockTableAllocator, Role};
use lockservice_core::service::{QuotaSettings, Stopped};
use lockservice_core::store::Cluster;
use lockservice_core::{Detail, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic_health::server::HealthReporter;

use self::calls::BoundedCalls;
use self::deadline::Deadline;
use self::gate::Gate;
use crate::proto;
use crate::proto::allocator_server::AllocatorServer;
use crate::proto::peer_server::PeerServer as PeerServiceServer;

pub use self::host::ServiceHost;
#[cfg(feature = "cli")]
pub(crate) use self::host::{may_pass, start_patiently};

/// Most streams of one connection at once: calls, and the streams of its sessions.
const STREAMS_MAX: u32 = 10_000;

/// Bytes that a connection may have sent and nobody has looked at: the least that HTTP/2 knows.
const WINDOW_BYTES: u32 = 65_535;

/// Most bytes of the metadata of one call, as HTTP/2 counts them.
const HEADER_BYTES_MAX: u32 = 8 << 10;

/// Limits of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Largest message that is accepted, in bytes. Default 4 MiB.
    pub message_bytes_max: usize,
    /// Most rows and ranges in one request: more are refused before they are taken apart. Default
    /// 20,000.
    pub items_per_request_max: usize,
    /// Most operations that may be under way in one session stream, waits included. Default 10,000.
    pub ops_under_way_max: usize,
    /// How long a client that does not read its answers is waited for, in milliseconds, before its
    /// stream is cut. Default 10,000.
    pub write_ms_max: u64,
    /// How long a new connection or stream may take to say something, in milliseconds, before it is
    /// closed. Default 10,000.
    pub hello_ms_max: u64,
    /// Most connections at once; more are closed as they come. Default 10,000.
    pub connections_max: usize,
    /// Most connections of one address at once; more are closed as they come. Default 2,000: each
    /// may hold 64 KiB that were not looked at yet.
    pub connections_per_address_max: usize,
    /// Most sessions that one connection may have opened and that still live. Default 1,000.
    pub sessions_per_connection_max: usize,
    /// Most operations under way in the sessions of one connection, waits included. Default 20,000.
    pub ops_per_connection_max: usize,
    /// Most calls that one connection may have open, session streams included; as many again of
    /// those that release something. Default 5,000.
    pub calls_per_connection_max: usize,
    /// Most memory that messages which arrive, queued operations and unacknowledged answers of one
    /// connection may use, in bytes, as estimated. Default 64 MiB.
    pub kept_bytes_per_connection_max: usize,
    /// Most sessions of one address. Default 5,000: one address cannot shut all others out.
    pub sessions_per_address_max: usize,
    /// Most operations under way in the sessions of one address, waits included. Default 50,000.
    pub ops_per_address_max: usize,
    /// As `calls_per_connection_max`, of one address. Default 10,000.
    pub calls_per_address_max: usize,
    /// As `kept_bytes_per_connection_max`, of one address. Default 256 MiB.
    pub kept_bytes_per_address_max: usize,
    /// Most lines in a list of locks, waits or binds. The last line says how many more there are.
    /// Default 100,000.
    pub list_lines_max: usize,
    /// How long a stop waits for the sessions to close, in milliseconds. Default 6,000.
    pub grace_ms: u64,
    /// True if the bindings live in memory; clients are told so (B7).
    #[serde(skip)]
    pub volatile: bool,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            message_bytes_max: 4 << 20,
            items_per_request_max: 20_000,
            ops_under_way_max: 10_000,
            write_ms_max: 10_000,
            hello_ms_max: 10_000,
            connections_max: 10_000,
            connections_per_address_max: 2_000,
            sessions_per_connection_max: 1_000,
            ops_per_connection_max: 20_000,
            calls_per_connection_max: 5_000,
            kept_bytes_per_connection_max: 64 << 20,
            sessions_per_address_max: 5_000,
            ops_per_address_max: 50_000,
            calls_per_address_max: 10_000,
            kept_bytes_per_address_max: 256 << 20,
            list_lines_max: 100_000,
            grace_ms: 6_000,
            volatile: false,
        }
    }
}

impl ServerSettings {
    /// Fails with `InvalidArgument`, naming the setting, if one makes no sense.
    pub fn check(&self) -> Result<()> {
        let least = [
            ("message_bytes_max", self.message_bytes_max, 1 << 10),
            ("items_per_request_max", self.items_per_request_max, 1),
            ("ops_under_way_max", self.ops_under_way_max, 1),
            ("connections_max", self.connections_max, 1),
            ("connections_per_address_max", self.connections_per_address_max, 1),
            ("sessions_per_connection_max", self.sessions_per_connection_max, 1),
            ("ops_per_connection_max", self.ops_per_connection_max, 1),
            ("calls_per_connection_max", self.calls_per_connection_max, 1),
            ("kept_bytes_per_connection_max", self.kept_bytes_per_connection_max, 1 << 16),
            ("sessions_per_address_max", self.sessions_per_address_max, 1),
            ("ops_per_address_max", self.ops_per_address_max, 1),
            ("calls_per_address_max", self.calls_per_address_max, 1),
            ("kept_bytes_per_address_max", self.kept_bytes_per_address_max, 1 << 16),
            ("list_lines_max", self.list_lines_max, 1),
            // Nobody answers, or greets, within no time.
            ("write_ms_max", usize::try_from(self.write_ms_max).unwrap_or(usize::MAX), 1),
            ("hello_ms_max", usize::try_from(self.hello_ms_max).unwrap_or(usize::MAX), 1),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            None => Ok(()),
            Some((name, _, least)) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("the setting server.{name} must be at least {least}"),
            )
            .with("setting", name)),
        }
    }

    fn of_a_connection(&self) -> QuotaSettings {
        QuotaSettings {
            sessions_max: self.sessions_per_connection_max,
            ops_max: self.ops_per_connection_max,
            kept_bytes_max: self.kept_bytes_per_connection_max,
            calls_max: self.calls_per_connection_max,
        }
    }

    fn of_an_address(&self) -> QuotaSettings {
        QuotaSettings {
            sessions_max: self.sessions_per_address_max,
            ops_max: self.ops_per_address_max,
            kept_bytes_max: self.kept_bytes_per_address_max,
            calls_max: self.calls_per_address_max,
        }
    }

    pub(crate) fn write_max(&self) -> Duration {
        Duration::from_millis(self.write_ms_max)
    }

    pub(crate) fn hello_max(&self) -> Duration {
        Duration::from_millis(self.hello_ms_max)
    }
}

/// A gRPC server that listens to clients. `Allocator` answers at once, for the leader may be asked
/// before this node's own service can start; the rest answers `Unavailable` until the service
/// [stands](Self::host). Dropping it closes every connection.
#[derive(Debug)]
pub struct Server {
    slot: Slot,
    settings: ServerSettings,
    health: HealthReporter,
    /// What keeps the health as the service is, and as the role is.
    locks_health: JoinSet<()>,
    allocator_health: JoinSet<()>,
    serving: Serving,
}

impl Server {
    /// Starts to listen. What clients ask of the leader goes to `allocator`:
    /// [`ElectedAllocator::for_clients`] where several nodes share a store.
    ///
    /// Must be called within a tokio runtime, in which it spawns a task.
    ///
    /// [`ElectedAllocator::for_clients`]:
    /// lockservice_core::allocator::ElectedAllocator::for_clients
    pub async fn start(
        listener: TcpListener,
        allocator: Arc<dyn LockTableAllocator>,
        settings: ServerSettings,
    ) -> Result<Self> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let slot = Slot::default();
        let locks =
            proto::locks_server::LocksServer::new(locks::LocksApi::new(slot.clone(), settings))
                .max_decoding_message_size(settings.message_bytes_max);
        let allocator = AllocatorServer::new(allocator::AllocatorApi::new(allocator, Gate::open()))
            .max_decoding_message_size(settings.message_bytes_max);
        let admin =
            proto::admin_server::AdminServer::new(admin::AdminApi::new(slot.clone(), &settings));
        health::set_locks(&health, false).await;
        health::set_allocator(&health, true).await;
        let broken =
            |e| Error::new(ErrorKind::Internal, "the API's descriptors are broken").with_source(e);
        let reflection = reflection_builder().build_v1().map_err(broken)?;
        // For clients made before there was `v1`, as most are.
        let reflection_alpha = reflection_builder().build_v1alpha().map_err(broken)?;
        let bounded = BoundedCalls::within(settings.message_bytes_max);
        let router = transport()
            .add_service(bounded.of(health_service))
            .add_service(bounded.of(reflection))
            .add_service(bounded.of(reflection_alpha))
            .add_service(bounded.of(Deadline(locks)))
            .add_service(bounded.of(Deadline(allocator)))
            .add_service(bounded.of(Deadline(admin)));
        let serving = Serving::start(router, listener, settings);
        let (locks_health, allocator_health) = (JoinSet::new(), JoinSet::new());
        Ok(Self { slot, settings, health, locks_health, allocator_health, serving })
    }

    /// The node's service stands: from now on its locks are served. Only the first one counts; it
    /// replaces itself (see [`ServiceHost`]).
    pub async fn host(&mut self, host: ServiceHost) {
        if self.slot.fill(host.clone()) {
            health::set_locks(&self.health, true).await;
            self.locks_health.spawn(health::follow_host(self.health.clone(), host));
        }
    }

    /// From now on the health of `Allocator` follows `roles`: it serves while the node leads, or
    /// knows who does. Without this it serves as long as the server listens.
    pub fn follow(&mut self, roles: watch::Receiver<Role>) {
        self.allocator_health.spawn(health::follow_roles(self.health.clone(), roles));
    }

    /// Serves until `stop` resolves, then stops the service in order: tells the sessions, ends
    /// every wait, waits up to the grace for the sessions to close, and resigns the lease if all
    /// did. The connections stay, and the allocator answers.
    ///
    /// Fails with `Unavailable` if the listener breaks; then nothing was waited for.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<Stopped> {
        let broken = tokio::select! {
            () = stop => None,
            why = self.serving.broken() => Some(why),
        };
        // The incarnation is not replaced any more.
        self.locks_health.shutdown().await;
        health::set_locks(&self.health, false).await;
        let grace = if broken.is_some() { 0 } else { self.settings.grace_ms };
        let stopped = match self.slot.host() {
            Some(host) => host.stop(Duration::from_millis(grace)).await?,
            None => Stopped { resigned: true, confirmed: true },
        };
        broken.map_or(Ok(stopped), Err)
    }

    /// Closes the connections. The session streams have ended by themselves with their sessions;
    /// whoever still hangs on is cut.
    pub async fn close(self) {
        self.serving.close().await;
    }
}

/// A gRPC server that listens to the other nodes of a cluster, on a listener of its own. See the
/// [module](self) for who may reach it. Dropping it closes every connection.
#[derive(Debug)]
pub struct PeerServer(Serving);

impl PeerServer {
    /// Starts to listen. What nodes ask of the leader goes to `allocator`, which is
    /// [`ElectedAllocator::as_leader`]; whoever is not of `cluster`, which is
    /// [`ElectedAllocator::cluster`], is refused (T3).
    ///
    /// Must be called within a tokio runtime, in which it spawns a task.
    ///
    /// [`ElectedAllocator::as_leader`]: lockservice_core::allocator::ElectedAllocator::as_leader
    /// [`ElectedAllocator::cluster`]: lockservice_core::allocator::ElectedAllocator::cluster
    pub fn start(
        listener: TcpListener,
        allocator: Arc<dyn LockTableAllocator>,
        cluster: watch::Receiver<Option<Cluster>>,
        settings: ServerSettings,
    ) -> Self {
        let gate = Gate::members_of(cluster);
        let peer = PeerServiceServer::new(peer::PeerApi::new(Arc::clone(&allocator), gate.clone()))
            .max_decoding_message_size(settings.message_bytes_max);
        // Nodes ask on behalf of their clients, too.
        let allocator = AllocatorServer::new(allocator::AllocatorApi::new(allocator, gate))
            .max_decoding_message_size(settings.message_bytes_max);
        let router = transport().add_service(Deadline(peer)).add_service(Deadline(allocator));
        Self(Serving::start(router, listener, settings))
    }

    /// Resolves when the listener breaks, with the reason: the node can lead no more then. Cancel
    /// safe.
    pub async fn broken(&mut self) -> Error {
        self.0.broken().await
    }

    /// Closes the connections.
    pub async fn close(self) {
        self.0.close().await;
    }
}

/// Describes what is served to clients, and nothing else.
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

/// What every server has in common.
fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        // A peer that vanished without a word is noticed, and its stream ends; its session lives on
        // until its TTL.
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // Beyond it a client waits without a word, so what bounds its sessions is their number.
        .max_concurrent_streams(Some(STREAMS_MAX))
        // What a peer may send before somebody looks at it: nothing else bounds that.
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
}

/// A task that serves a listener.
#[derive(Debug)]
struct Serving {
    finish: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    /// True once the task's end was seen.
    ended: bool,
}

impl Serving {
    fn start(
        router: tonic::transport::server::Router,
        listener: TcpListener,
        settings: ServerSettings,
    ) -> Self {
        let (finish, finished) = oneshot::channel::<()>();
        let incoming = incoming::incoming(listener, settings);
        let task = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
            // An error means that the other side has gone: stop too.
            let _ = finished.await;
        }));
        Self { finish: Some(finish), task, ended: false }
    }

    /// Resolves when nothing can be served any more. Cancel safe.
    async fn broken(&mut self) -> Error {
        let ended = if self.ended { Ok(Ok(())) } else { (&mut self.task).await };
        self.ended = true;
        let why: Box<dyn std::error::Error + Send + Sync> = match ended {
            Ok(Ok(())) => "it was closed".into(),
            Ok(Err(e)) => e.into(),
            Err(e) => e.into(),
        };
        Error::new(
            ErrorKind::Unavailable,
            "the server cannot accept connections any more: start it again",
        )
        .with_source(why)
    }

    async fn close(mut self) {
        // Nobody listens if the listener broke.
        self.finish.take().map(|finish| finish.send(()));
        if !self.task.is_finished() {
            // Dropping the server cuts those who do not go.
            drop(tokio::time::timeout(Duration::from_secs(1), &mut self.task).await);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a node that stands until `stop` resolves, then stops in order and closes the connections:
/// see [`Server::run`].
///
/// Where several nodes share a store, use [`Server`] and [`PeerServer`] instead.
pub async fn serve(
    listener: TcpListener,
    host: ServiceHost,
    settings: ServerSettings,
    stop: impl Future<Output = ()>,
) -> Result<Stopped> {
    let mut server = Server::start(listener, host.allocator(), settings).await?;
    server.host(host).await;
    let stopped = server.run(stop).await;
    server.close().await;
    stopped
}

/// When one who meets a node that is starting is to ask again.
const STARTING_PAUSE: Duration = Duration::from_millis(100);

/// Where the node's service will stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot(Arc<OnceLock<ServiceHost>>);

impl Slot {
    /// False for a second one, which does not count.
    fn fill(&self, host: ServiceHost) -> bool {
        self.0.set(host).is_ok()
    }

    fn host(&self) -> Option<&ServiceHost> {
        self.0.get()
    }

    /// The node's service. Fails with `Unavailable` before it stands.
    pub(crate) fn get(&self) -> Result<&ServiceHost> {
        self.host().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the node is starting and has no lease yet: try again, or ask another node",
            )
            // So a client tells this from a server that cannot be reached.
            .with_detail(Detail::RetryAfter(STARTING_PAUSE))
        })
    }
}
