//! The gRPC server: a node's service and allocator, for every language.
//!
//! [`serve`] runs until it is told to stop. The session stream is the first-class API (see the proto file); the unary calls work on a
//! session too. Everything that a client can make large is bounded: connections, messages, operations under way, lists, the frames that
//! wait to be read.

mod admin;
mod allocator;
mod connection;
mod host;
mod incoming;
mod locks;

use std::future::Future;
use std::time::Duration;

use lockservice_core::service::Stopped;
use lockservice_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::proto;

pub use self::host::ServiceHost;

/// Limits of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Largest message that is accepted, in bytes. Default 4 MiB.
    pub message_bytes_max: usize,
    /// Most rows and ranges in one request: more are refused before they are taken apart. Default 20,000.
    pub items_per_request_max: usize,
    /// Most operations that may be under way in one session stream, waits included. Default 10,000.
    pub ops_under_way_max: usize,
    /// How long a client that does not read its answers is waited for, in milliseconds, before its stream is cut. Default 10,000.
    pub write_ms_max: u64,
    /// How long a new connection or stream may take to say something, in milliseconds, before it is closed. Default 10,000.
    pub hello_ms_max: u64,
    /// Most connections at once; more are closed as they come. Default 10,000.
    pub connections_max: usize,
    /// Most lines in a list of locks, waits or binds. The last line says how many more there are. Default 100,000.
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
            ("list_lines_max", self.list_lines_max, 1),
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

    pub(crate) fn write_max(&self) -> Duration {
        Duration::from_millis(self.write_ms_max)
    }

    pub(crate) fn hello_max(&self) -> Duration {
        Duration::from_millis(self.hello_ms_max)
    }
}

/// Serves until `stop` resolves, then stops in order: tells the sessions, ends every wait, waits up to the grace for the sessions to
/// close, resigns the lease if all did, and closes the connections.
///
/// Fails with `Unavailable` if the listener breaks.
pub async fn serve(
    listener: TcpListener,
    host: ServiceHost,
    settings: ServerSettings,
    stop: impl Future<Output = ()>,
) -> Result<Stopped> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let locks = proto::locks_server::LocksServer::new(locks::LocksApi::new(host.clone(), settings))
        .max_decoding_message_size(settings.message_bytes_max);
    let allocator = proto::allocator_server::AllocatorServer::new(allocator::AllocatorApi::new(host.allocator()))
        .max_decoding_message_size(settings.message_bytes_max);
    let admin = proto::admin_server::AdminServer::new(admin::AdminApi::new(host.clone(), &settings));
    health.set_serving::<proto::locks_server::LocksServer<locks::LocksApi>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .build_v1()
        .map_err(|e| Error::new(ErrorKind::Internal, "the API's descriptors are broken").with_source(e))?;
    let (finish, finished) = oneshot::channel::<()>();
    let router = tonic::transport::Server::builder()
        // A peer that vanished without a word is noticed, and its stream ends; its session lives on until its TTL.
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(Some(1_000))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(locks)
        .add_service(allocator)
        .add_service(admin);
    let incoming = incoming::incoming(listener, settings);
    let mut server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
        // An error means that the other side has gone: stop too.
        let _ = finished.await;
    }));
    let broken = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Unavailable, "the server cannot accept connections any more: start it again")
            .with_source(e)
    };
    tokio::select! {
        () = stop => {}
        ended = &mut server => {
            host.stop(Duration::ZERO).await?;
            return match ended {
                Ok(Ok(())) => Ok(Stopped { resigned: false }),
                Ok(Err(e)) => Err(broken(e.into())),
                Err(e) => Err(broken(e.into())),
            };
        }
    }
    health.set_not_serving::<proto::locks_server::LocksServer<locks::LocksApi>>().await;
    let stopped = host.stop(Duration::from_millis(settings.grace_ms)).await?;
    // The streams end by themselves once their sessions have gone; whoever still hangs on is cut.
    let _ = finish.send(());
    if tokio::time::timeout(Duration::from_secs(1), &mut server).await.is_err() {
        server.abort();
    }
    Ok(stopped)
}
