//! [`Client`]: the connections that sessions share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockservice_core::clock::{Clock, Time};
use lockservice_core::env::Env;
use lockservice_core::{Epoch, Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::session::Session;
use super::{AdminClient, AllocatorClient, ClientBuilder};
use crate::channel::{Channels, Link, StreamChannel};
use crate::proto::locks_client::LocksClient;

/// The largest response, in bytes. It is larger than a server's frames, for a deadlock's cycle can
/// be long.
pub(super) const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// The least pause before another call to a server that is starting.
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
    /// The addresses as they were given, and one by one.
    pub(super) given: String,
    pub(super) addresses: Vec<String>,
    /// The one that responded last: a hint, so `Relaxed`, without a partner.
    pub(super) home: AtomicUsize,
    pub(super) channels: Channels,
    /// The address at which the allocator's leader was last. Locked for a copy.
    pub(super) leader: Mutex<Option<String>>,
    /// The last leadership that responded, and the time when it was first observed (L3). Locked for
    /// a comparison.
    pub(super) epoch: Mutex<(Epoch, Time)>,
    pub(super) name: String,
    pub(super) call_timeout: Duration,
    pub(super) start_timeout: Duration,
    pub(super) stop_time: Duration,
    pub(super) env: Env,
}

/// One server as a client sees it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) client: Client,
    pub(super) address: Arc<str>,
    pub(super) channel: Link,
}

/// The pause before another call to a server that is starting, or that lost its lease and will
/// serve as a new incarnation; `None` for any other `error`.
fn pause_of_a_start(error: &Error) -> Option<Duration> {
    match error.kind() {
        ErrorKind::LeaseLost | ErrorKind::Restarting => {
            Some(error.retry_after().unwrap_or(START_PAUSE))
        }
        // The state of a server that cannot be reached is unknown.
        ErrorKind::Unavailable => error.retry_after().map(|pause| pause.max(START_PAUSE)),
        _ => None,
    }
}

impl Client {
    /// Connects to the first server of `addresses` that responds: `HOST:PORT`,
    /// `http://HOST:PORT` or `https://HOST:PORT`, several separated by commas. With the defaults
    /// of [`ClientBuilder`].
    ///
    /// # Errors
    /// Those of [`ClientBuilder::connect`].
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
    /// client falls silent: at the server that responded last, or else at the next of the
    /// addresses.
    ///
    /// If no server can open it yet, but one is starting, all are tried again, for as long as
    /// [`start_timeout`](ClientBuilder::start_timeout) says.
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
        let give_up = self.env().now() + self.parts.start_timeout;
        loop {
            let error = match self.open_anywhere(ttl).await {
                Ok(session) => return Ok(session),
                Err(e) => e,
            };
            let Some(pause) = pause_of_a_start(&error) else { return Err(error) };
            if self.env().now() + pause >= give_up {
                return Err(error);
            }
            self.env().sleep(pause).await;
        }
    }

    /// Opens a session at the first server that can. If none can, the error of one that is starting
    /// comes before all others.
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
                ErrorKind::Unavailable
                    | ErrorKind::ShuttingDown
                    | ErrorKind::LeaseLost
                    | ErrorKind::Restarting
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
        self.parts.env.clock()
    }

    pub(super) fn env(&self) -> &Env {
        &self.parts.env
    }

    /// The server at `address`, connected when it is first called.
    pub(super) fn node(&self, address: &str) -> Result<Node> {
        Ok(Node {
            channel: self.parts.channels.to(address)?,
            client: self.clone(),
            address: address.into(),
        })
    }

    /// The server that responded last.
    pub(super) fn home(&self) -> Node {
        let address = &self.parts.addresses[self.parts.home.load(Ordering::Relaxed)];
        self.node(address).expect("addresses were looked at when they were given")
    }

    /// Every given address. The address of the server that responded last comes first.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> + Clone {
        let first = self.parts.home.load(Ordering::Relaxed);
        let all = &self.parts.addresses;
        all[first..].iter().chain(&all[..first]).map(String::as_str)
    }
}

impl Node {
    pub(super) fn locks_client(&self) -> LocksClient<Link> {
        LocksClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// For one session stream, which is counted until this is dropped.
    pub(super) fn stream_channel(&self) -> Result<StreamChannel> {
        self.client.parts.channels.for_stream(&self.address)
    }

    /// Waits for the response of a call, at most for the call time-out.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        match self.client.env().timeout(self.client.parts.call_timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(crate::convert::from_status(&status)),
            Err(_) => Err(self.no_response()),
        }
    }

    pub(super) fn no_response(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            "the server did not respond in time: it may be stopped or overloaded",
        )
        .with("address", &self.address)
    }
}
