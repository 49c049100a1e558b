//! [`Client`]: the connections that sessions share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::{Epoch, Error, ErrorKind, Result};
use parking_lot::Mutex;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::session::Session;
use super::{AdminClient, AllocatorClient};
use crate::channel::{Channels, Dial, StreamChannel, Tried, endpoint, race};
use crate::proto::locks_client::LocksClient;

/// Most bytes of an answer. Larger than what a server puts into a frame, for a deadlock's cycle can
/// be long.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// The least pause before a server that is starting is asked again.
const START_PAUSE: Duration = Duration::from_millis(50);

/// Connections to the servers of one cluster. Cheap to clone; each connects again by itself when it
/// broke.
///
/// ```no_run
/// # async fn example() -> lockservice::Result<()> {
/// use std::time::Duration;
/// use lockservice::{Client, Key, LockItem, LockSpec, TableRef};
///
/// // Any node of the cluster will do; the first that responds is used.
/// let client = Client::builder()
///     .name("billing")
///     .connect_timeout(Duration::from_secs(1))
///     .connect("10.0.0.1:7654,10.0.0.2:7654")
///     .await?;
/// let session = client.session(Some(Duration::from_secs(10))).await?;
/// let row = LockItem::Row(Key::new("alice")?);
/// let lock = session.lock(LockSpec::new(TableRef::new("bank", "accounts")?, vec![row])).await?;
/// lock.release().await?;
/// session.close().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) parts: Arc<Parts>,
}

/// The parts that a client and its sessions share.
#[derive(Debug)]
pub(super) struct Parts {
    /// As they were given, and one by one.
    given: String,
    addresses: Vec<String>,
    /// Which of them responded last: a hint, so `Relaxed`, without a partner.
    home: AtomicUsize,
    channels: Channels,
    /// The address at which the allocator's leader was last. Locked for a copy.
    pub(super) leader: Mutex<Option<String>>,
    /// The last leadership that answered, and when it was first observed (L3). Locked for a
    /// comparison.
    pub(super) epoch: Mutex<(Epoch, Time)>,
    pub(super) name: String,
    pub(super) call_timeout: Duration,
    start_timeout: Duration,
    pub(super) stop_time: Duration,
    pub(super) clock: Arc<dyn Clock>,
}

/// One server as a client sees it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) client: Client,
    pub(super) address: Arc<str>,
    pub(super) channel: Channel,
}

/// How a [`Client`] is made.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    name: String,
    connect_timeout: Duration,
    call_timeout: Duration,
    start_timeout: Option<Duration>,
    stop_time: Duration,
    clock: Arc<dyn Clock>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            name: String::new(),
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            start_timeout: None,
            stop_time: Duration::ZERO,
            clock: Arc::new(SystemClock),
        }
    }
}

impl ClientBuilder {
    /// The name of the client, for operators. At most 255 bytes. Default: nothing.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long to try to connect. Default 3 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call that waits for no lock may take: opening a session, the calls of the
    /// allocator, lists. Default 10 s.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// How long a session waits to be opened while the servers that answer are starting. Default:
    /// as long as a call may take. Zero: it fails at once.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// How long the protected work needs to stop: the deadline of every session is earlier by this
    /// (P2). Default: zero.
    pub fn stop_time(mut self, time: Duration) -> Self {
        self.stop_time = time;
        self
    }

    /// The source of time. Default: the machine's clock, which counts through suspend.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Connects to the first server that answers of `addresses`: `HOST:PORT` or `http://HOST:PORT`,
    /// several separated by commas.
    ///
    /// They are tried in the order given. Each is tried alone for 300 ms; if it has neither
    /// answered nor failed by then, the next one is tried beside it. A server that answers that it
    /// cannot serve yet is taken only if no other can. A name that stands for several addresses is
    /// tried in the same way, at each of them.
    ///
    /// # Errors
    /// `InvalidArgument`: an address cannot be read. `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn connect(self, addresses: &str) -> Result<Client> {
        let given: Vec<String> =
            addresses.split(',').map(str::trim).filter(|a| !a.is_empty()).map(Into::into).collect();
        let mut endpoints = Vec::with_capacity(given.len());
        for address in &given {
            endpoints.push(endpoint(address, self.connect_timeout)?);
        }
        if endpoints.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the server's address is HOST:PORT or http://HOST:PORT",
            )
            .with("address", addresses));
        }
        let (home, channel) =
            first_to_respond(endpoints, self.connect_timeout).await.map_err(|why| {
                let error = Error::new(
                    ErrorKind::Unavailable,
                    "no server answers: is it running, and is the address right?",
                );
                let error = error.with("address", addresses);
                match why {
                    Some(why) => error.with_source(why),
                    None => error,
                }
            })?;
        let channels = Channels::new(self.connect_timeout);
        channels.insert(&given[home], channel);
        let parts = Parts {
            given: addresses.to_owned(),
            addresses: given,
            home: AtomicUsize::new(home),
            channels,
            leader: Mutex::new(None),
            epoch: Mutex::new((Epoch::default(), Time::ZERO)),
            name: self.name,
            call_timeout: self.call_timeout,
            start_timeout: self.start_timeout.unwrap_or(self.call_timeout),
            stop_time: self.stop_time,
            clock: self.clock,
        };
        Ok(Client { parts: Arc::new(parts) })
    }
}

/// When to ask a server again that is starting, or that lost its lease and is about to serve on as
/// a new incarnation; `None` if `error` says neither.
fn pause_of_a_start(error: &Error) -> Option<Duration> {
    match error.kind() {
        ErrorKind::LeaseLost => Some(error.retry_after().unwrap_or(START_PAUSE)),
        // Of a server that cannot be reached nothing is known.
        ErrorKind::Unavailable => error.retry_after().map(|pause| pause.max(START_PAUSE)),
        _ => None,
    }
}

/// The number of the endpoint that answers first, and its channel. One that answers that it cannot
/// serve yet is second best. Fails with the last reason.
async fn first_to_respond(
    endpoints: Vec<Endpoint>,
    each: Duration,
) -> Result<(usize, Channel), Option<tonic::transport::Error>> {
    // One address alone is taken as soon as it is connected: there is nothing to choose.
    let alone = endpoints.len() == 1;
    race(endpoints.into_iter().enumerate().map(|(n, endpoint)| async move {
        match tokio::time::timeout(each, try_one(&endpoint, each, alone)).await {
            Ok(Tried::Good(channel)) => Tried::Good((n, channel)),
            Ok(Tried::SecondBest(channel)) => Tried::SecondBest((n, channel)),
            Ok(Tried::Failed(why)) => Tried::Failed(why),
            Err(_) => Tried::Failed(None),
        }
    }))
    .await
}

/// A connection says little: the kernel accepts for a process that is stopped. So a call is made.
async fn try_one(
    endpoint: &Endpoint,
    each: Duration,
    alone: bool,
) -> Tried<Channel, tonic::transport::Error> {
    let channel = match endpoint.connect_with_connector(Dial::new(each)).await {
        Ok(channel) => channel,
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

impl Client {
    /// Connects to the first server that answers of `addresses`: `HOST:PORT` or `http://HOST:PORT`,
    /// several separated by commas. With the defaults of [`ClientBuilder`].
    ///
    /// # Errors
    /// `InvalidArgument`: an address cannot be read. `Unavailable`: no server responds; try again.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn connect(addresses: &str) -> Result<Self> {
        Self::builder().connect(addresses).await
    }

    /// A client with settings of its own.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Opens a session whose locks are kept for `ttl` (the server's default if `None`) when the
    /// client falls silent: at the server that answered last, or else at the next of the addresses.
    ///
    /// If no server can open it yet, but one says that it is starting, all are asked again, for as
    /// long as [`start_timeout`](ClientBuilder::start_timeout) says.
    ///
    /// # Errors
    /// - `InvalidArgument`: the server does not allow the TTL. Use another.
    /// - `Unavailable`: no server responds, or none has started in time. Try again.
    /// - `ShuttingDown`, `LeaseLost`: the server stops. Try again, at another.
    /// - `ResourceExhausted`: a limit of the server was reached. Use fewer sessions.
    ///
    /// # Cancel safety
    /// A session that was opened for a dropped call lapses by its TTL.
    pub async fn session(&self, ttl: Option<Duration>) -> Result<Session> {
        let give_up = self.clock().now() + self.parts.start_timeout;
        loop {
            let error = match self.open_anywhere(ttl).await {
                Ok(session) => return Ok(session),
                Err(e) => e,
            };
            let Some(pause) = pause_of_a_start(&error) else { return Err(error) };
            if self.clock().now() + pause >= give_up {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Opens a session at the first server that can. Else that one is starting is said before
    /// anything else.
    async fn open_anywhere(&self, ttl: Option<Duration>) -> Result<Session> {
        let count = self.parts.addresses.len();
        let first = self.parts.home.load(Ordering::Relaxed);
        let (mut tried, mut starting) = (0, None);
        loop {
            let at = (first + tried) % count;
            let error = match Session::open(&self.node(&self.parts.addresses[at])?, ttl).await {
                Ok(session) => {
                    self.parts.home.store(at, Ordering::Relaxed);
                    return Ok(session);
                }
                Err(e) => e,
            };
            tried += 1;
            let elsewhere = matches!(
                error.kind(),
                ErrorKind::Unavailable | ErrorKind::ShuttingDown | ErrorKind::LeaseLost
            );
            if !elsewhere {
                return Err(error);
            }
            if starting.is_none() && pause_of_a_start(&error).is_some() {
                starting = Some(error.clone());
            }
            if tried == count {
                return Err(starting.unwrap_or(error));
            }
        }
    }

    /// Validation of commits: calls go to the leader, wherever it is.
    pub fn allocator(&self) -> AllocatorClient {
        AllocatorClient::new(self)
    }

    /// The lists and calls for operators, of the server that responded last.
    pub fn admin(&self) -> AdminClient {
        AdminClient::new(self.home())
    }

    /// The lists and calls for operators, of the server at `address`.
    ///
    /// # Errors
    /// `InvalidArgument`: the address cannot be read.
    pub fn admin_at(&self, address: &str) -> Result<AdminClient> {
        Ok(AdminClient::new(self.node(address)?))
    }

    /// The addresses, as they were given.
    pub fn address(&self) -> &str {
        &self.parts.given
    }

    /// The clock by which deadlines are counted.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.parts.clock
    }

    /// The server at `address`, connected when it is first called.
    pub(super) fn node(&self, address: &str) -> Result<Node> {
        Ok(Node {
            channel: self.parts.channels.to(address)?,
            client: self.clone(),
            address: address.into(),
        })
    }

    /// The server that answered last.
    pub(super) fn home(&self) -> Node {
        let address = &self.parts.addresses[self.parts.home.load(Ordering::Relaxed)];
        self.node(address).expect("addresses were looked at when they were given")
    }

    /// Every address that was given, that of the server that answered last first.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> + Clone {
        let first = self.parts.home.load(Ordering::Relaxed);
        let all = &self.parts.addresses;
        all[first..].iter().chain(&all[..first]).map(String::as_str)
    }
}

impl Node {
    pub(super) fn locks_client(&self) -> LocksClient<Channel> {
        LocksClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// For one session stream, which is counted until the second part of the answer is dropped.
    pub(super) fn stream_client(&self) -> Result<(LocksClient<Channel>, StreamChannel)> {
        let stream = self.client.parts.channels.for_stream(&self.address)?;
        let wire =
            LocksClient::new(stream.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX);
        Ok((wire, stream))
    }

    /// Waits for a call's answer, at most as long as was set.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.client.parts.call_timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(crate::convert::from_status(&status)),
            Err(_) => Err(self.no_response()),
        }
    }

    pub(super) fn no_response(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            "the server did not answer in time: it may be stopped or overloaded",
        )
        .with("address", &self.address)
    }
}
