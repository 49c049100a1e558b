//! [`ServerSettings`]: the limits of the server.

use std::time::Duration;

use lockservice_core::service::QuotaSettings;
use lockservice_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::access::{BYTES_MIN, ClientLimits};

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
    /// The time that a client may take to read its responses, in milliseconds, before its stream is
    /// cut. Default 10,000.
    pub write_ms_max: u64,
    /// The time that a new connection or stream may be silent, in milliseconds, before it is
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
    /// Most memory that messages which arrive, queued operations and unacknowledged responses of
    /// one connection may use, in bytes, as estimated. Default 64 MiB.
    pub kept_bytes_per_connection_max: usize,
    /// Most sessions of one client: an identity, or an address of callers without one. Default
    /// 5,000, half of `service.sessions_max`, so that one client cannot shut all others out. The
    /// other limits of a client are likewise below those of the node.
    pub sessions_per_client_max: usize,
    /// Most transactions of the sessions of one client. Default 500,000, half of
    /// `service.txns_max`.
    pub txns_per_client_max: usize,
    /// Most operations under way in the sessions of one client, waits included. Default 50,000,
    /// half of `service.engine.waiters_max`.
    pub ops_per_client_max: usize,
    /// As `calls_per_connection_max`, of one client. Default 10,000.
    pub calls_per_client_max: usize,
    /// As `kept_bytes_per_connection_max`, of one client. Default 256 MiB, a quarter of
    /// `service.kept_bytes_max`.
    pub kept_bytes_per_client_max: usize,
    /// Most memory of the locks of one client, in bytes, as estimated: about 85 for a row with a
    /// short key. Default 512 MiB, half of `service.engine.lock_bytes_max`. A transaction takes a
    /// kibibyte when it begins.
    pub lock_bytes_per_client_max: usize,
    /// Most lines in a list of locks, waits or binds. The last line says how many more there are.
    /// Default 100,000.
    pub list_lines_max: usize,
    /// The time that a stop waits for the sessions to close, in milliseconds. Default 6,000.
    pub grace_ms: u64,
    /// True if the binds live in memory. The server reports it to clients (B7).
    #[serde(skip)]
    pub volatile: bool,
    /// True if the store is open to this process alone. The server reports it to clients, which
    /// then claim what they hold at a process of another name too (P6).
    #[serde(skip)]
    pub alone: bool,
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
            sessions_per_client_max: 5_000,
            txns_per_client_max: 500_000,
            ops_per_client_max: 50_000,
            calls_per_client_max: 10_000,
            kept_bytes_per_client_max: 256 << 20,
            lock_bytes_per_client_max: 512 << 20,
            list_lines_max: 100_000,
            grace_ms: 6_000,
            volatile: false,
            alone: false,
        }
    }
}

impl ServerSettings {
    /// Checks every setting.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the setting, if one makes no sense: correct it.
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
            ("kept_bytes_per_connection_max", self.kept_bytes_per_connection_max, BYTES_MIN),
            ("sessions_per_client_max", self.sessions_per_client_max, 1),
            ("txns_per_client_max", self.txns_per_client_max, 1),
            ("ops_per_client_max", self.ops_per_client_max, 1),
            ("calls_per_client_max", self.calls_per_client_max, 1),
            ("kept_bytes_per_client_max", self.kept_bytes_per_client_max, BYTES_MIN),
            ("lock_bytes_per_client_max", self.lock_bytes_per_client_max, BYTES_MIN),
            ("list_lines_max", self.list_lines_max, 1),
            // A client needs some time to read, or to send its hello.
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

    pub(super) fn of_a_connection(&self) -> QuotaSettings {
        QuotaSettings {
            sessions_max: self.sessions_per_connection_max,
            ops_max: self.ops_per_connection_max,
            kept_bytes_max: self.kept_bytes_per_connection_max,
            calls_max: self.calls_per_connection_max,
            // They are bounded for the whole client.
            ..QuotaSettings::default()
        }
    }

    /// The limits of one client, which has some of its own perhaps.
    pub(super) fn of_a_client(&self, own: Option<ClientLimits>) -> QuotaSettings {
        own.unwrap_or_default().or(QuotaSettings {
            sessions_max: self.sessions_per_client_max,
            txns_max: self.txns_per_client_max,
            ops_max: self.ops_per_client_max,
            calls_max: self.calls_per_client_max,
            kept_bytes_max: self.kept_bytes_per_client_max,
            lock_bytes_max: self.lock_bytes_per_client_max,
        })
    }

    pub(crate) fn write_max(&self) -> Duration {
        Duration::from_millis(self.write_ms_max)
    }

    pub(crate) fn hello_max(&self) -> Duration {
        Duration::from_millis(self.hello_ms_max)
    }
}
