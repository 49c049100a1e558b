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
    if endpoint.uri().host().is_none_or(str::is_empty) {
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
    /// With the number of the last use. Locked for a lookup.
    known: Mutex<(u64, HashMap<String, (u64, Channel)>)>,
}

impl Channels {
    /// None yet. To connect may take `connect_timeout`.
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, known: Mutex::new((0, HashMap::new())) }
    }

    /// The channel to `address`. Must be called within a tokio runtime. Fails with `InvalidArgument` for an address that is none.
    pub(crate) fn to(&self, address: &str) -> Result<Channel> {
        let mut known = self.known.lock();
        let (uses, channels) = &mut *known;
        *uses += 1;
        if let Some((used, channel)) = channels.get_mut(address) {
            *used = *uses;
            return Ok(channel.clone());
        }
        let channel = endpoint(address, self.connect_timeout)?.connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            // Whoever uses it keeps a clone of it.
            let oldest = channels.iter().min_by_key(|(_, (used, _))| *used).map(|(address, _)| address.clone());
            oldest.map(|oldest| channels.remove(&oldest));
        }
        channels.insert(address.to_owned(), (*uses, channel.clone()));
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_refused() {
        for address in ["", "https://a:1", "http://", "a b:1", "ftp://a:1"] {
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
        for n in 0..CHANNELS_MAX {
            channels.to(&format!("host:{n}")).expect("an address");
        }
        channels.to("host:0").expect("an address");
        channels.to("other:1").expect("an address");
        let known = &channels.known.lock().1;
        assert_eq!(known.len(), CHANNELS_MAX);
        assert!(known.contains_key("host:0") && known.contains_key("other:1") && !known.contains_key("host:1"));
    }
}
