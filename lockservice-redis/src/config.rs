//! [`RedisConfig`]: the address of Redis, and the way to use it.

use std::fmt;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};

/// The place of Redis, and how it is used. Made from a URL by [`from_url`](Self::from_url), or
/// field by field over [`default`](Self::default).
///
/// `Debug` shows no secret.
#[derive(Clone)]
pub struct RedisConfig {
    /// The servers. Default: one server, `127.0.0.1:6379`.
    pub servers: Servers,
    /// The name to log in with; `None` for Redis's own default user.
    pub username: Option<String>,
    /// The password to log in with.
    pub password: Option<String>,
    /// The name to log in to the Sentinels with.
    pub sentinel_username: Option<String>,
    /// The password to log in to the Sentinels with.
    pub sentinel_password: Option<String>,
    /// The number of the database. Default 0; a Cluster has no other.
    pub database: i64,
    /// The encryption of connections, those to Sentinels too; `None` sends everything in the clear.
    pub tls: Option<RedisTls>,
    /// Distinguishes several clusters of lockservice that share a Redis: 1 to 64 letters, digits,
    /// `.`, `_` and `-`. Default `default`. Everything is kept under the one key
    /// `{lockservice:NAME}`.
    pub name: String,
    /// The number of replicas that must have received a change before it counts (L4). Default 0.
    /// Unless it is the number of *all* replicas that can be promoted, a fail-over can lose
    /// acknowledged changes.
    pub replicas: u32,
    /// The time to wait for [`replicas`](Self::replicas). Default 500 ms.
    pub wait_timeout: Duration,
    /// The time to wait for a connection, or for one response of a Sentinel. Default 1 s.
    pub connect_timeout: Duration,
    /// The time to wait for a response of the server. Default 1 s.
    pub response_timeout: Duration,
    /// The longest time for any call in all, with the search for a new master. Default 2 s. It must
    /// be well below the leadership's TTL, or one call that fails costs the leadership.
    pub call_timeout: Duration,
    /// The longest time for reading the whole store. Default 30 s.
    pub load_timeout: Duration,
}

/// The servers to connect to.
#[derive(Clone)]
#[non_exhaustive]
pub enum Servers {
    /// One server, or a name that always leads to the master.
    Single(Address),
    /// Sentinels, and the name of the master that they watch.
    Sentinel {
        /// The Sentinels. All are queried; the first response counts.
        sentinels: Vec<Address>,
        /// The name of the group of servers in the Sentinels' configuration.
        master: String,
    },
    /// Some nodes of a Cluster. The others are learnt from them.
    Cluster(Vec<Address>),
    /// A ready client; its address, credentials and encryption are used instead of the
    /// configuration's.
    Client(redis::Client),
}

/// The address of a server.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Address {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The encryption of connections (rustls).
#[derive(Clone, Default)]
pub struct RedisTls {
    /// Certificates of the authorities to trust, in PEM; `None` trusts those of the operating
    /// system.
    pub authorities: Option<Vec<u8>>,
    /// The client's certificate chain and private key, in PEM, for mutual TLS.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Address {
    /// An address.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            servers: Servers::Single(Address::new("127.0.0.1", 6379)),
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            database: 0,
            tls: None,
            name: "default".to_owned(),
            replicas: 0,
            wait_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(2),
            load_timeout: Duration::from_secs(30),
        }
    }
}

impl RedisConfig {
    /// Fails with `InvalidArgument` for settings that cannot be meant.
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidArgument, message));
        let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(in_name) {
            return invalid("the store's name must be 1 to 64 letters, digits, `.`, `_` or `-`");
        }
        let times =
            [self.connect_timeout, self.response_timeout, self.call_timeout, self.load_timeout];
        if times.contains(&Duration::ZERO) {
            return invalid(
                "a time-out of the Redis store is zero: set it to at least a millisecond",
            );
        }
        if self.replicas > 0 && self.wait_timeout < Duration::from_millis(1) {
            return invalid("the time to wait for replicas must be at least a millisecond");
        }
        let identity = self.tls.as_ref().and_then(|tls| tls.identity.as_ref());
        if identity.is_some_and(|(certificate, key)| certificate.is_empty() || key.is_empty()) {
            return invalid(
                "for mutual TLS name both the client's certificate (`cert`) and its key (`key`)",
            );
        }
        match &self.servers {
            Servers::Sentinel { sentinels, .. } if sentinels.is_empty() => {
                invalid("no Sentinel is named")
            }
            Servers::Cluster(nodes) if nodes.is_empty() => {
                invalid("no node of the Redis Cluster is named")
            }
            Servers::Cluster(_) if self.database != 0 => {
                invalid("a Redis Cluster has only database 0: leave the number out of the URL")
            }
            _ => Ok(()),
        }
    }

    /// The one key that holds everything. Braces, so that the channel beside it lies in the same
    /// slot of a Cluster.
    pub(crate) fn key(&self) -> String {
        format!("{{lockservice:{}}}", self.name)
    }

    /// The channel on which changes of leadership are announced.
    pub(crate) fn channel(&self) -> String {
        format!("{{lockservice:{}}}:leader", self.name)
    }

    /// The URL without secrets.
    pub(crate) fn describe(&self) -> String {
        let list = |addresses: &[Address]| {
            addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(",")
        };
        let plain_or_tls = |plain: &str, tls: &str| {
            if self.tls.is_some() { tls.to_owned() } else { plain.to_owned() }
        };
        let (scheme, place) = match &self.servers {
            Servers::Single(address) => {
                (plain_or_tls("redis", "rediss"), format!("{address}/{}", self.database))
            }
            Servers::Sentinel { sentinels, master } => (
                plain_or_tls("redis-sentinel", "rediss-sentinel"),
                format!("{}/{master}/{}", list(sentinels), self.database),
            ),
            Servers::Cluster(nodes) => {
                (plain_or_tls("redis-cluster", "rediss-cluster"), list(nodes))
            }
            Servers::Client(client) => {
                let info = client.get_connection_info();
                ("redis".to_owned(), format!("{}/{}", info.addr(), info.redis_settings().db()))
            }
        };
        format!("{scheme}://{place}?name={}", self.name)
    }

    /// Every secret, so that none gets into a message.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let mut secrets: Vec<_> =
            [&self.password, &self.sentinel_password].into_iter().flatten().cloned().collect();
        if let Servers::Client(client) = &self.servers {
            secrets.extend(
                client.get_connection_info().redis_settings().password().map(str::to_owned),
            );
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "***");
        f.debug_struct("RedisConfig")
            .field("servers", &self.servers)
            .field("username", &self.username)
            .field("password", &hidden(&self.password))
            .field("sentinel_username", &self.sentinel_username)
            .field("sentinel_password", &hidden(&self.sentinel_password))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("name", &self.name)
            .field("replicas", &self.replicas)
            .field("wait_timeout", &self.wait_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("call_timeout", &self.call_timeout)
            .field("load_timeout", &self.load_timeout)
            .finish()
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(address) => f.debug_tuple("Single").field(address).finish(),
            Self::Sentinel { sentinels, master } => f
                .debug_struct("Sentinel")
                .field("sentinels", sentinels)
                .field("master", master)
                .finish(),
            Self::Cluster(nodes) => f.debug_tuple("Cluster").field(nodes).finish(),
            // The driver's own output may name the password.
            Self::Client(client) => f
                .debug_tuple("Client")
                .field(&client.get_connection_info().addr().to_string())
                .finish(),
        }
    }
}

impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTls")
            .field("own_authorities", &self.authorities.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}
