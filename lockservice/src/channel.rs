//! Connections to nodes: one HTTP/2 channel for each address, made when it is first used.

use std::collections::HashMap;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

/// Most addresses whose channels are kept. One that was forgotten is connected anew, which costs a round trip.
const CHANNELS_MAX: usize = 256;

/// The endpoint at `address`: `HOST:PORT` or `http://HOST:PORT`. Fails with `InvalidArgument` for an address that is none.
pub(crate) fn endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint> {
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
    let port_is_given = !address.contains("://") || uri.authority().map(|authority| authority.as_str()) != uri.host();
    if uri.host().is_none_or(str::is_empty) || (port_is_given && uri.port_u16().is_none_or(|port| port == 0)) {
        return Err(bad());
    }
    // A dead connection is noticed well within a promise, so that there is time to resume on a new one (P3).
    Ok(endpoint
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_millis(1_500))
        .keep_alive_while_idle(true))
}

/// Channels by address, a bounded number of them. A channel connects when it is first used, and again when it broke.
#[derive(Debug)]
pub(crate) struct Channels {
    connect_timeout: Duration,
    /// Locked for a lookup.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// How often any channel was asked for.
    uses: u64,
    /// By address, with the number of the last use.
    channels: HashMap<String, (u64, Channel)>,
}

impl Channels {
    /// None yet. To connect may take `connect_timeout`.
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, known: Mutex::default() }
    }

    /// The channel to `address`. Must be called within a tokio runtime. Fails with `InvalidArgument` for an address that is none.
    pub(crate) fn to(&self, address: &str) -> Result<Channel> {
        let mut known = self.known.lock();
        known.uses += 1;
        let uses = known.uses;
        if let Some((used, channel)) = known.channels.get_mut(address) {
            *used = uses;
            return Ok(channel.clone());
        }
        let channel = endpoint(address, self.connect_timeout)?.connect_lazy();
        known.keep(address, channel.clone());
        Ok(channel)
    }

    /// Keeps a channel that is connected already.
    #[cfg(feature = "client")]
    pub(crate) fn insert(&self, address: &str, channel: Channel) {
        let mut known = self.known.lock();
        known.uses += 1;
        known.keep(address, channel);
    }
}

impl Known {
    fn keep(&mut self, address: &str, channel: Channel) {
        if self.channels.len() >= CHANNELS_MAX {
            // Whoever uses it keeps a clone of it.
            let oldest = self.channels.iter().min_by_key(|(_, (used, _))| *used).map(|(address, _)| address.clone());
            oldest.map(|oldest| self.channels.remove(&oldest));
        }
        self.channels.insert(address.to_owned(), (self.uses, channel));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_refused() {
        for address in ["", "https://a:1", "http://", "a b:1", "ftp://a:1", "a", "a:0", "a:65536"] {
            let refused = endpoint(address, Duration::from_secs(1)).expect_err(address);
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{address}");
        }
        for address in ["a:1", "http://a:1", "[::1]:7654"] {
            endpoint(address, Duration::from_secs(1)).expect(address);
        }
    }

    #[tokio::test]
    async fn as_many_channels_are_kept_as_there_is_room_for_and_the_longest_unused_one_goes() {
        let channels = Channels::new(Duration::from_secs(1));
        for n in 1..=CHANNELS_MAX {
            channels.to(&format!("host:{n}")).expect("an address");
        }
        channels.to("host:1").expect("an address");
        channels.to("other:1").expect("an address");
        let known = &channels.known.lock().channels;
        assert_eq!(known.len(), CHANNELS_MAX);
        assert!(known.contains_key("host:1") && known.contains_key("other:1") && !known.contains_key("host:2"));
    }
}
