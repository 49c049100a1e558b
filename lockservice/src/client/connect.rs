//! [`Client`]: a connection that sessions share.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::{Error, ErrorKind, Result};
use tonic::transport::{Channel, Endpoint};

use super::session::Session;
use super::{AdminClient, AllocatorClient, driver};

/// Most bytes of an answer. Larger than what a server puts into a frame, for a deadlock's cycle can be long.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection to a server. Cheap to clone; it connects again by itself when it broke.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) channel: Channel,
    pub(super) parts: Arc<Parts>,
}

/// What a client and its sessions are made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) address: String,
    pub(super) name: String,
    pub(super) call_timeout: Duration,
    pub(super) stop_time: Duration,
    pub(super) clock: Arc<dyn Clock>,
}

/// How a [`Client`] is made.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    name: String,
    connect_timeout: Duration,
    call_timeout: Duration,
    stop_time: Duration,
    clock: Arc<dyn Clock>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            name: String::new(),
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            stop_time: Duration::ZERO,
            clock: Arc::new(SystemClock),
        }
    }
}

impl ClientBuilder {
    /// Who the client is, for operators. At most 255 bytes. Default: nothing.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long to try to connect. Default 3 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call that waits for no lock may take: opening a session, the calls of the allocator, lists. Default 10 s.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// How long the protected work needs to stop: the guard of every session ends earlier by this (P2). Default: zero.
    pub fn stop_time(mut self, time: Duration) -> Self {
        self.stop_time = time;
        self
    }

    /// Where time comes from. Default: the machine's clock, which counts through suspend.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Connects to `address`: `HOST:PORT` or `http://HOST:PORT`.
    ///
    /// Fails with `InvalidArgument` for an address that is none, `Unavailable` if no server answers.
    pub async fn connect(self, address: &str) -> Result<Client> {
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let bad = || {
            Error::new(ErrorKind::InvalidArgument, "the server's address is HOST:PORT or http://HOST:PORT")
                .with("address", address)
        };
        if !url.starts_with("http://") {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(url).map_err(|e| bad().with_source(e))?;
        let uri = endpoint.uri();
        // A port that is no number in range would be taken for none, and none for that of the scheme.
        let port_is_given =
            !address.contains("://") || uri.authority().map(|authority| authority.as_str()) != uri.host();
        if uri.host().is_none_or(str::is_empty) || (port_is_given && uri.port_u16().is_none_or(|port| port == 0)) {
            return Err(bad());
        }
        // A dead connection is noticed well within a promise, so that there is time to resume on a new one (P3).
        let endpoint = endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_millis(1_500))
            .keep_alive_while_idle(true);
        let no_server = || {
            Error::new(ErrorKind::Unavailable, "no server answers: is it running, and is the address right?")
                .with("address", address)
        };
        let channel = match tokio::time::timeout(self.connect_timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Err(no_server().with_source(e)),
            Err(_) => return Err(no_server()),
        };
        let parts = Parts {
            address: address.to_owned(),
            name: self.name,
            call_timeout: self.call_timeout,
            stop_time: self.stop_time,
            clock: self.clock,
        };
        Ok(Client { channel, parts: Arc::new(parts) })
    }
}

impl Client {
    /// Connects to `address`, `HOST:PORT` or `http://HOST:PORT`, with the defaults of [`ClientBuilder`].
    ///
    /// Fails with `InvalidArgument` for an address that is none, `Unavailable` if no server answers.
    pub async fn connect(address: &str) -> Result<Self> {
        Self::builder().connect(address).await
    }

    /// A client with settings of its own.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Opens a session whose locks are kept for `ttl` (the server's default if `None`) when the client falls silent.
    ///
    /// Fails with `InvalidArgument` for a TTL that the server does not allow, `Unavailable` if no server answers, `ShuttingDown`,
    /// `LeaseLost` or `ResourceExhausted` as the server says.
    ///
    /// # Cancel safety
    /// A session that was opened for a dropped call lapses by its TTL.
    pub async fn session(&self, ttl: Option<Duration>) -> Result<Session> {
        driver::open(self, ttl).await
    }

    /// Validation of commits.
    pub fn allocator(&self) -> AllocatorClient {
        AllocatorClient::new(self)
    }

    /// What operators see.
    pub fn admin(&self) -> AdminClient {
        AdminClient::new(self)
    }

    /// The address that was connected to, as it was given.
    pub fn address(&self) -> &str {
        &self.parts.address
    }

    /// The clock by which guards are counted.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.parts.clock
    }

    pub(super) fn locks_client(&self) -> crate::proto::locks_client::LocksClient<Channel> {
        crate::proto::locks_client::LocksClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Waits for a call's answer, at most as long as was set.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.parts.call_timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(crate::convert::from_status(&status)),
            Err(_) => Err(self.no_answer()),
        }
    }

    pub(super) fn no_answer(&self) -> Error {
        Error::new(ErrorKind::Unavailable, "the server did not answer in time: it may be stopped or overloaded")
            .with("address", &self.parts.address)
    }
}
