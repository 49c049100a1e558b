//! Connections to nodes: HTTP/2 channels by address, made when they are first used.
//!
//! One channel for each address carries its calls. Session streams live long, and a peer bounds how
//! many streams a connection may have at once: one more waits without an error, and so does every
//! call behind it. So streams are counted, and further channels carry those for which the first
//! channel has no room.
//!
//! | file | noun |
//! |---|---|
//! | `credentials` | what this end trusts and shows; how it connects with that |
//! | `dial` | one attempt to connect to an address |
//! | `link` | a channel, with the token that its calls present |
//! | `network` | what carries calls in place of sockets, in a simulation |
//! | `race` | attempts one after the other, and a slow one beside the next |

mod credentials;
mod dial;
mod link;
#[cfg(feature = "simulation")]
mod network;
mod race;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tonic::transport::Endpoint;

pub use self::credentials::Credentials;
pub(crate) use self::credentials::Security;
pub(crate) use self::dial::Dial;
pub(crate) use self::link::Link;
#[cfg(feature = "simulation")]
pub use self::network::{Network, NetworkError, NetworkResponse};
#[cfg(feature = "client")]
pub(crate) use self::race::{Tried, race};

/// The largest number of addresses whose channels are kept. A forgotten address is connected again,
/// which costs a round trip.
const CHANNELS_MAX: usize = 256;
/// The largest number of session streams on one channel. HTTP/2 recommends that peers allow at
/// least 100 streams (RFC 9113, 6.5.2); the rest is for calls.
#[cfg(feature = "client")]
const STREAMS_PER_CHANNEL_MAX: usize = 90;

/// The scheme of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    /// In plain text.
    Http,
    /// TLS.
    Https,
}

/// The endpoint at `address`, without TLS, and its scheme: `HOST:PORT`, `http://HOST:PORT` or
/// `https://HOST:PORT`. Fails with `InvalidArgument` for an address that is none.
pub(crate) fn endpoint(
    address: &str,
    connect_timeout: Duration,
) -> Result<(Endpoint, Option<Scheme>)> {
    let bad = || no_address(address);
    let (scheme, rest) = match address.split_once("://") {
        None => (None, address),
        Some(("http", rest)) => (Some(Scheme::Http), rest),
        Some(("https", rest)) => (Some(Scheme::Https), rest),
        Some(_) => return Err(bad()),
    };
    let url = format!("http://{rest}");
    let endpoint = Endpoint::from_shared(url).map_err(|e| bad().with_source(e))?;
    let uri = endpoint.uri();
    // A port that is no number in range would be taken for none, and none for that of the scheme.
    let port_is_given =
        scheme.is_none() || uri.authority().map(|authority| authority.as_str()) != uri.host();
    if uri.host().is_none_or(str::is_empty)
        || (port_is_given && uri.port_u16().is_none_or(|port| port == 0))
    {
        return Err(bad());
    }
    // A dead connection is noticed well within a promise, so that there is time to resume on a new
    // one (P3).
    let endpoint = endpoint
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_millis(1_500))
        .keep_alive_while_idle(true);
    Ok((endpoint, scheme))
}

fn no_address(address: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "the server's address is HOST:PORT, http://HOST:PORT or https://HOST:PORT",
    )
    .with("address", address)
}

/// The reason why a connection could not be made that is found in `error` or below: one end did
/// not accept the other.
pub(crate) fn refusal<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        // The source of an I/O error is not the error inside, but that one's.
        error.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref()
    })
}

/// Channels by address, a bounded number of them. A channel connects when it is first used, and
/// again when it broke.
#[derive(Debug)]
pub(crate) struct Channels {
    security: Security,
    connect_timeout: Duration,
    /// Locked for a lookup.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The number of requests for any channel.
    uses: u64,
    channels: HashMap<String, Connections>,
}

/// The channels to one address.
#[derive(Debug)]
struct Connections {
    /// The number of the last use.
    used: u64,
    /// For calls, and for the first streams.
    first: Counted,
    /// For further streams; those without one are dropped.
    #[cfg_attr(
        not(feature = "client"),
        allow(dead_code, reason = "only clients have session streams")
    )]
    further: Vec<Counted>,
}

/// A channel, and a token of which each stream on it has a clone.
#[derive(Clone, Debug)]
struct Counted {
    channel: Link,
    #[cfg_attr(
        not(feature = "client"),
        allow(dead_code, reason = "only clients have session streams")
    )]
    streams: Arc<()>,
}

impl Counted {
    fn new(channel: Link) -> Self {
        Self { channel, streams: Arc::default() }
    }
}

#[cfg(feature = "client")]
impl Counted {
    fn streams(&self) -> usize {
        // Clones are made only under the mutex. A clone that is dropped meanwhile only makes room.
        Arc::strong_count(&self.streams) - 1
    }

    fn stream(&self) -> Option<StreamChannel> {
        (self.streams() < STREAMS_PER_CHANNEL_MAX).then(|| StreamChannel {
            channel: self.channel.clone(),
            _counted: Arc::clone(&self.streams),
        })
    }
}

/// A channel with room for one session stream. The caller keeps it as long as the stream lives.
#[cfg(feature = "client")]
#[derive(Debug)]
pub(crate) struct StreamChannel {
    pub(crate) channel: Link,
    _counted: Arc<()>,
}

impl Channels {
    /// Channels without any address yet. A connection may take `connect_timeout`.
    pub(crate) fn new(security: Security, connect_timeout: Duration) -> Self {
        Self { security, connect_timeout, known: Mutex::default() }
    }

    /// The channel to `address`. Must be called within a tokio runtime. Fails with
    /// `InvalidArgument` for an address that is none.
    pub(crate) fn to(&self, address: &str) -> Result<Link> {
        let mut known = self.known.lock();
        if let Some(connections) = known.used(address) {
            return Ok(connections.first.channel.clone());
        }
        let channel = self.new_channel(address)?;
        known.keep(address, channel.clone());
        Ok(channel)
    }

    /// A channel to `address` that has room for one more session stream. Must be called within a
    /// tokio runtime. Fails with `InvalidArgument` for an address that is none.
    #[cfg(feature = "client")]
    pub(crate) fn for_stream(&self, address: &str) -> Result<StreamChannel> {
        let mut known = self.known.lock();
        if known.used(address).is_none() {
            known.keep(address, self.new_channel(address)?);
        }
        let connections = known.used(address).expect("it was just kept");
        connections.further.retain(|further| further.streams() > 0);
        let room = std::iter::once(&connections.first)
            .chain(&connections.further)
            .find_map(Counted::stream);
        if let Some(stream) = room {
            return Ok(stream);
        }
        let further = Counted::new(self.new_channel(address)?);
        let stream = further.stream().expect("it is new");
        connections.further.push(further);
        Ok(stream)
    }

    fn new_channel(&self, address: &str) -> Result<Link> {
        self.security.link(address, self.connect_timeout)
    }

    /// Keeps a channel that is connected already.
    #[cfg(feature = "client")]
    pub(crate) fn insert(&self, address: &str, channel: Link) {
        self.known.lock().keep(address, channel);
    }
}

impl Known {
    fn used(&mut self, address: &str) -> Option<&mut Connections> {
        self.uses += 1;
        let connections = self.channels.get_mut(address)?;
        connections.used = self.uses;
        Some(connections)
    }

    fn keep(&mut self, address: &str, channel: Link) {
        if self.channels.len() >= CHANNELS_MAX {
            // Its users keep a clone of it.
            let oldest = self
                .channels
                .iter()
                .min_by_key(|(_, known)| known.used)
                .map(|(address, _)| address.clone());
            oldest.map(|oldest| self.channels.remove(&oldest));
        }
        self.uses += 1;
        let connections =
            Connections { used: self.uses, first: Counted::new(channel), further: Vec::new() };
        self.channels.insert(address.to_owned(), connections);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_refused() {
        for address in ["", "https://", "http://", "a b:1", "ftp://a:1", "a", "a:0", "a:65536"] {
            let refused = endpoint(address, Duration::from_secs(1)).expect_err(address);
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{address}");
        }
        for address in ["a:1", "http://a:1", "https://a:1", "[::1]:7654"] {
            endpoint(address, Duration::from_secs(1)).expect(address);
        }
    }

    #[tokio::test]
    async fn as_many_channels_are_kept_as_there_is_room_for_and_the_longest_unused_one_goes() {
        let channels = Channels::new(Security::default(), Duration::from_secs(1));
        for n in 1..=CHANNELS_MAX {
            channels.to(&format!("host:{n}")).expect("an address");
        }
        channels.to("host:1").expect("an address");
        channels.to("other:1").expect("an address");
        let known = &channels.known.lock().channels;
        assert_eq!(known.len(), CHANNELS_MAX);
        assert!(
            known.contains_key("host:1")
                && known.contains_key("other:1")
                && !known.contains_key("host:2")
        );
    }

    #[cfg(feature = "client")]
    #[tokio::test]
    async fn streams_beyond_what_a_channel_carries_get_further_channels_that_go_with_them() {
        let channels = Channels::new(Security::default(), Duration::from_secs(1));
        let further = || channels.known.lock().channels["host:1"].further.len();
        let mut streams: Vec<_> = (0..STREAMS_PER_CHANNEL_MAX)
            .map(|_| channels.for_stream("host:1").expect("an address"))
            .collect();
        assert_eq!(further(), 0);
        streams.extend(
            (0..=STREAMS_PER_CHANNEL_MAX)
                .map(|_| channels.for_stream("host:1").expect("an address")),
        );
        assert_eq!(further(), 2, "each carries at most {STREAMS_PER_CHANNEL_MAX}");
        streams.truncate(1);
        streams.push(channels.for_stream("host:1").expect("an address"));
        assert_eq!(further(), 0, "the first one has room again");
    }
}
