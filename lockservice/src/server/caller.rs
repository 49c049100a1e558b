//! The caller at the other end of a connection, and its quota of the node.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};

use lockservice_core::service::Quota;
use parking_lot::Mutex;
use tonic::Extensions;

use crate::server::ServerSettings;

/// The number of addresses whose quotas are kept without a check of their use.
const UNUSED_MAX: usize = 1_000;

/// The callers of a server, by address.
#[derive(Clone, Debug)]
pub(super) struct Callers {
    settings: ServerSettings,
    /// A leaf.
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Open connections; no entry is 0.
    connections: HashMap<IpAddr, usize>,
    /// Each quota lives as long as a connection or a session of the address.
    quotas: HashMap<IpAddr, Weak<Quota>>,
    /// The number of quotas above which unused ones are dropped.
    clean_at: usize,
}

/// The caller at the end of one connection, as the calls on it see it.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The quota of the connection, within that of its address.
    quota: Arc<Quota>,
    /// Its other end.
    address: SocketAddr,
    /// Set before the first call arrives.
    channel: Arc<OnceLock<Channel>>,
}

/// How a connection is protected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Channel {
    /// In plain text, on a listener without TLS.
    Plain,
    /// In plain text, on a listener with TLS: every call is refused.
    #[cfg(feature = "tls")]
    PlainToTls,
    /// TLS, with a client certificate of this common name.
    #[cfg(feature = "tls")]
    Tls(Option<String>),
}

impl Caller {
    /// The quota of the caller: see [`Callers`]. `None` for a call that came over no
    /// connection of a [`Server`](crate::server::Server).
    pub(crate) fn quota(extensions: &Extensions) -> Option<Arc<Quota>> {
        extensions.get::<Self>().map(Self::shared_quota)
    }

    /// The address of the caller; `None` as for [`quota`](Self::quota).
    pub(crate) fn address(extensions: &Extensions) -> Option<SocketAddr> {
        extensions.get::<Self>().map(|caller| caller.address)
    }

    /// The quota of this caller.
    pub(super) fn shared_quota(&self) -> Arc<Quota> {
        Arc::clone(&self.quota)
    }

    /// Notes how the connection is protected.
    pub(super) fn set_channel(&self, channel: Channel) {
        // A connection is set up once.
        drop(self.channel.set(channel));
    }

    /// How the connection is protected; `None` before that is known.
    pub(super) fn channel(&self) -> Option<&Channel> {
        self.channel.get()
    }
}

/// A connection that is counted, until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    ip: IpAddr,
    known: Arc<Mutex<Known>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut known = self.known.lock();
        if let Some(connections) = known.connections.get_mut(&self.ip) {
            *connections -= 1;
            if *connections == 0 {
                known.connections.remove(&self.ip);
            }
        }
    }
}

impl Callers {
    pub(super) fn new(settings: ServerSettings) -> Self {
        Self { settings, known: Arc::default() }
    }

    /// Counts a connection from `address`. `None` if that address has as many as are allowed.
    pub(super) fn connected(&self, address: SocketAddr) -> Option<(Caller, Counted)> {
        // An IPv4 address that came over an IPv6 socket is the same address.
        let ip = address.ip().to_canonical();
        let of_address = {
            let mut known = self.known.lock();
            let connections = known.connections.entry(ip).or_default();
            if *connections >= self.settings.connections_per_address_max {
                return None;
            }
            *connections += 1;
            known.quota(ip, &self.settings)
        };
        let quota =
            Quota::new("of one connection", self.settings.of_a_connection(), Some(of_address));
        Some((
            Caller { quota, address, channel: Arc::default() },
            Counted { ip, known: Arc::clone(&self.known) },
        ))
    }
}

impl Known {
    fn quota(&mut self, ip: IpAddr, settings: &ServerSettings) -> Arc<Quota> {
        if let Some(quota) = self.quotas.get(&ip).and_then(Weak::upgrade) {
            return quota;
        }
        if self.quotas.len() >= self.clean_at.max(UNUSED_MAX) {
            self.quotas.retain(|_, quota| quota.strong_count() > 0);
            // With many addresses in use, not every new one costs a check of all others.
            self.clean_at = 2 * self.quotas.len();
        }
        let quota = Quota::new("of one address", settings.of_an_address(), None);
        self.quotas.insert(ip, Arc::downgrade(&quota));
        quota
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from(host), 1))
    }

    #[test]
    fn an_address_has_as_many_connections_as_it_may_and_others_do_not_count() {
        let callers = Callers::new(ServerSettings {
            connections_per_address_max: 2,
            ..ServerSettings::default()
        });
        let first = callers.connected(address(1)).expect("room");
        let _second = callers.connected(address(1)).expect("room");
        assert!(callers.connected(address(1)).is_none());
        let mapped = SocketAddr::from((std::net::Ipv4Addr::from(1).to_ipv6_mapped(), 1));
        assert!(callers.connected(mapped).is_none(), "the same address, over IPv6");
        let _other = callers.connected(address(2)).expect("another address");
        drop(first);
        assert!(callers.connected(address(1)).is_some());
    }

    #[test]
    fn an_address_keeps_its_quota_as_long_as_it_uses_any_and_is_forgotten_then() {
        let callers = Callers::new(ServerSettings::default());
        let (kept, counted) = callers.connected(address(1)).expect("room");
        // A session that outlives its connection does the same.
        drop(counted);
        let of_address = || {
            callers.known.lock().quotas[&address(1).ip()].upgrade().map(|quota| Arc::as_ptr(&quota))
        };
        let before = of_address().expect("in use");
        let (_again, _counted) = callers.connected(address(1)).expect("room");
        assert_eq!(of_address(), Some(before));
        for host in 2..10_000 {
            drop(callers.connected(address(host)).expect("room"));
        }
        assert!(callers.known.lock().quotas.len() <= UNUSED_MAX + 1);
        assert_eq!(of_address(), Some(before));
        assert_eq!(callers.known.lock().connections.len(), 1);
        drop(kept);
    }
}
