//! [`ClientBuilder`]: the settings of a client, and its first connection.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::env::Env;
use lockservice_core::{Epoch, Error, ErrorKind, Result};
use parking_lot::Mutex;
use tonic::Code;
use tonic::transport::Endpoint;

use super::connect::{Client, Parts};
use crate::channel::{Channels, Credentials, Dial, Link, Security, Tried, race, refusal};

/// The settings of a [`Client`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    name: String,
    credentials: Credentials,
    connect_timeout: Duration,
    call_timeout: Duration,
    start_timeout: Option<Duration>,
    stop_time: Duration,
    env: Env,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            name: String::new(),
            credentials: Credentials::default(),
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            start_timeout: None,
            stop_time: Duration::ZERO,
            env: Env::system(),
        }
    }
}

impl ClientBuilder {
    /// The name of the client, for operators. At most 255 bytes. Default: nothing.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What the client trusts, and what it shows of itself. Default: nothing of either; servers
    /// are reached in plain text unless their addresses begin with `https://`.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// The time to try to connect. Default 3 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The longest time for a call that waits for no lock: opening a session, the calls of the
    /// allocator, lists. Default 10 s.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// The time for which a session waits to be opened while the servers that respond are starting.
    /// Default: as long as a call may take. Zero: it fails at once.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// The time that the protected work needs to stop: the deadline of every session is earlier by
    /// this (P2). Default: zero.
    pub fn stop_time(mut self, time: Duration) -> Self {
        self.stop_time = time;
        self
    }

    /// The source of time, randomness, tasks and timers; a [`Clock`] alone will do. Default: the
    /// machine's, whose clock counts through suspend.
    ///
    /// [`Clock`]: lockservice_core::clock::Clock
    pub fn env(mut self, env: impl Into<Env>) -> Self {
        self.env = env.into();
        self
    }

    /// Connects to the first server of `addresses` that responds: `HOST:PORT`, `http://HOST:PORT`
    /// or `https://HOST:PORT`, several separated by commas. One without a scheme is reached with
    /// TLS if the [`Credentials`] have a CA or a certificate, or another one begins with
    /// `https://`.
    ///
    /// They are tried in the order given. Each is tried alone for 300 ms; if it has neither
    /// responded nor failed by then, the next one is tried beside it. A server that responds that
    /// it cannot serve yet is used only if no other can. A name that stands for several addresses
    /// is tried in the same way, at each of them.
    ///
    /// # Errors
    /// - `InvalidArgument`: an address cannot be read, or a file of the credentials cannot be used.
    /// - `Unauthenticated`: the client and a server did not accept each other. The sentence says
    ///   which certificate is to be corrected, and why.
    /// - `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn connect(self, addresses: &str) -> Result<Client> {
        let given: Vec<String> =
            addresses.split(',').map(str::trim).filter(|a| !a.is_empty()).map(Into::into).collect();
        let security = Security::load(&self.credentials, &given)?;
        let mut endpoints = Vec::with_capacity(given.len());
        for address in &given {
            endpoints.push(security.reach(address, self.connect_timeout)?);
        }
        if endpoints.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the server's address is HOST:PORT, http://HOST:PORT or https://HOST:PORT",
            )
            .with("address", addresses));
        }
        let (home, channel) =
            first_to_respond(endpoints, &security, self.connect_timeout).await.map_err(|why| {
                if let Some(refusal) = why.as_ref().and_then(|why| refusal(why)) {
                    return refusal.clone();
                }
                let error = Error::new(
                    ErrorKind::Unavailable,
                    "no server responds: is it running, and is the address right?",
                );
                let error = error.with("address", addresses);
                match why {
                    Some(why) => error.with_source(why),
                    None => error,
                }
            })?;
        let channels = Channels::new(security, self.connect_timeout);
        channels.insert(&given[home], channel);
        Ok(self.client(addresses, given, home, channels))
    }

    /// A client whose calls go over a simulated network.
    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(
        self,
        network: Arc<dyn crate::channel::Network>,
        addresses: &[String],
    ) -> Client {
        let channels = Channels::new(Security::simulated(network), self.connect_timeout);
        self.client(&addresses.join(","), addresses.to_vec(), 0, channels)
    }

    fn client(
        self,
        given: &str,
        addresses: Vec<String>,
        home: usize,
        channels: Channels,
    ) -> Client {
        let parts = Parts {
            given: given.to_owned(),
            addresses,
            home: AtomicUsize::new(home),
            channels,
            leader: Mutex::new(None),
            epoch: Mutex::new((Epoch::default(), Time::ZERO)),
            name: self.name,
            call_timeout: self.call_timeout,
            start_timeout: self.start_timeout.unwrap_or(self.call_timeout),
            stop_time: self.stop_time,
            env: self.env,
        };
        Client { parts: Arc::new(parts) }
    }
}

/// The number of the endpoint that responds first, and its channel. An endpoint that cannot serve
/// yet is second best. Fails with the last reason.
async fn first_to_respond(
    endpoints: Vec<(Endpoint, Dial)>,
    security: &Security,
    each: Duration,
) -> Result<(usize, Link), Option<tonic::transport::Error>> {
    // A single address is used as soon as it is connected: there is no choice.
    let alone = endpoints.len() == 1;
    race(endpoints.into_iter().enumerate().map(|(n, (endpoint, dial))| async move {
        match tokio::time::timeout(each, try_one(&endpoint, dial, security, alone)).await {
            Ok(Tried::Good(channel)) => Tried::Good((n, channel)),
            Ok(Tried::SecondBest(channel)) => Tried::SecondBest((n, channel)),
            Ok(Tried::Failed(why)) => Tried::Failed(why),
            Err(_) => Tried::Failed(None),
        }
    }))
    .await
}

/// A connection proves little: the kernel accepts it for a process that is stopped. So a call is
/// made.
async fn try_one(
    endpoint: &Endpoint,
    dial: Dial,
    security: &Security,
    alone: bool,
) -> Tried<Link, tonic::transport::Error> {
    let channel = match endpoint.connect_with_connector(dial).await {
        Ok(channel) => security.over(channel),
        Err(e) => return Tried::Failed(Some(e)),
    };
    if alone {
        return Tried::Good(channel);
    }
    match crate::proto::admin_client::AdminClient::new(channel.clone())
        .get_node(crate::proto::GetNodeRequest {})
        .await
    {
        Ok(_) => Tried::Good(channel),
        Err(status) if status.code() != Code::Unavailable => Tried::Good(channel),
        // A server puts the error into the details; the transport has none.
        Err(status) if !status.details().is_empty() => Tried::SecondBest(channel),
        Err(_) => Tried::Failed(None),
    }
}
