//! The caller at the other end of a connection, and the client that it is: whose use of the node is
//! bounded together.
//!
//! Callers of one identity are one client, wherever they call from. Where callers have no identity,
//! those of one address are. Connections are counted by address, for they come before it is known
//! who calls.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};

use lockservice_core::service::{Quota, QuotaOwner};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Extensions;

use super::ServerSettings;
use super::access::{Access, Principal};
use super::turns::Turns;

/// The number of clients that are kept without a check of their use.
const UNUSED_MAX: usize = 1_000;

/// The most lists of one client at a time: a quarter of those that a node sends. Further ones wait
/// their turn.
const LISTS_MAX: usize = 16;

/// The most TLS handshakes with one address at a time. Each takes about a millisecond of one
/// processor, and further ones wait.
const HANDSHAKES_MAX: usize = 16;

/// The callers of a server.
#[derive(Clone, Debug)]
pub(super) struct Callers {
    settings: ServerSettings,
    access: Access,
    /// A leaf, but for the mutex of a connection's clients, which is taken before it.
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Those with open connections.
    addresses: HashMap<IpAddr, OfAddress>,
    /// Each lives as long as a connection or a session of it.
    clients: HashMap<ClientName, OfClient>,
    /// The number of clients above which unused ones are dropped.
    clean_at: usize,
}

/// The connections of an address.
#[derive(Debug)]
struct OfAddress {
    /// Open ones; not 0.
    connections: usize,
    handshakes: Arc<Semaphore>,
}

/// What tells two clients apart.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum ClientName {
    Address(IpAddr),
    Identity(String),
}

#[derive(Debug)]
struct OfClient {
    quota: Weak<Quota>,
    turns: Turns,
    lists: Arc<Semaphore>,
}

/// The client that a call is of. A cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The quota of its connection, within its own.
    pub(super) quota: Arc<Quota>,
    pub(super) turns: Turns,
    lists: Arc<Semaphore>,
}

impl Client {
    /// The client of a call. `None` for a call that came over no connection of a
    /// [`Server`](crate::server::Server).
    pub(crate) fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().cloned()
    }

    /// Resolves when the client may have one more list, until the returned value is dropped.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the queue is lost.
    pub(super) async fn list_place(&self) -> Option<OwnedSemaphorePermit> {
        // Nothing closes the semaphore.
        Arc::clone(&self.lists).acquire_owned().await.ok()
    }
}

/// The caller at the end of one connection, as the calls on it see it.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Arc<OfConnection>);

#[derive(Debug)]
struct OfConnection {
    callers: Callers,
    /// Its other end.
    address: SocketAddr,
    /// Set before the first call arrives.
    channel: OnceLock<Channel>,
    /// The client of calls without an identity.
    anyone: Client,
    /// The others, by the name of the identity. There are no more than identities.
    known: Mutex<HashMap<String, KnownClient>>,
}

#[derive(Debug)]
struct KnownClient {
    client: Client,
    /// Whose limits were set last.
    caller: Principal,
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
    /// The caller of a call; `None` for a call that came over no connection of a server.
    pub(super) fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().cloned()
    }

    /// The address of the caller; `None` for a call that came over no connection of a server.
    pub(crate) fn address(extensions: &Extensions) -> Option<SocketAddr> {
        extensions.get::<Self>().map(|caller| caller.0.address)
    }

    /// The client that `caller` is, of which a call comes over this connection. If the limits of
    /// its identity have changed, the new ones count from now on.
    pub(super) fn client(&self, caller: &Principal) -> Client {
        let connection = &*self.0;
        let Some(identity) = caller.identity() else { return connection.anyone.clone() };
        let mut known = connection.known.lock();
        match known.entry(identity.to_owned()) {
            Entry::Occupied(entry) if entry.get().caller.is_same(caller) => {
                entry.get().client.clone()
            }
            Entry::Occupied(mut entry) => {
                connection.callers.renew_limits(identity);
                entry.get_mut().caller = caller.clone();
                entry.get().client.clone()
            }
            Entry::Vacant(entry) => {
                let client = connection.callers.client(&ClientName::Identity(identity.to_owned()));
                let caller = caller.clone();
                entry.insert(KnownClient { client, caller }).client.clone()
            }
        }
    }

    /// Notes how the connection is protected.
    pub(super) fn set_channel(&self, channel: Channel) {
        // A connection is set up once.
        drop(self.0.channel.set(channel));
    }

    /// How the connection is protected; `None` before that is known.
    pub(super) fn channel(&self) -> Option<&Channel> {
        self.0.channel.get()
    }
}

/// A connection that is counted, until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    ip: IpAddr,
    known: Arc<Mutex<Known>>,
    /// The turns of the TLS handshakes with its address.
    pub(super) handshakes: Arc<Semaphore>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut known = self.known.lock();
        if let Some(of_address) = known.addresses.get_mut(&self.ip) {
            of_address.connections -= 1;
            if of_address.connections == 0 {
                known.addresses.remove(&self.ip);
            }
        }
    }
}

impl Callers {
    /// Those of a server whose identities are those of `access`. Must be called within a tokio
    /// runtime, as the other functions.
    pub(super) fn new(settings: ServerSettings, access: Access) -> Self {
        Self { settings, access, known: Arc::default() }
    }

    /// Counts a connection from `address`. `None` if that address has as many as are allowed.
    pub(super) fn connected(&self, address: SocketAddr) -> Option<(Caller, Counted)> {
        // An IPv4 address that came over an IPv6 socket is the same address.
        let ip = address.ip().to_canonical();
        let handshakes = {
            let mut known = self.known.lock();
            let of_address = known.addresses.entry(ip).or_insert_with(|| OfAddress {
                connections: 0,
                handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            });
            if of_address.connections >= self.settings.connections_per_address_max {
                return None;
            }
            of_address.connections += 1;
            Arc::clone(&of_address.handshakes)
        };
        let (channel, known) = Default::default();
        let anyone = self.client(&ClientName::Address(ip));
        let connection = OfConnection { callers: self.clone(), address, channel, anyone, known };
        let counted = Counted { ip, known: Arc::clone(&self.known), handshakes };
        Some((Caller(Arc::new(connection)), counted))
    }

    /// A client, with a quota of one connection within its own.
    fn client(&self, name: &ClientName) -> Client {
        let mut known = self.known.lock();
        let settings = &self.settings;
        let (of_client, turns, lists) = known.client(name, || match name {
            ClientName::Address(ip) => {
                let owner = QuotaOwner::Client(format!("the address {ip}"));
                Quota::new(owner, settings.of_a_client(None), None)
            }
            ClientName::Identity(identity) => {
                let owner = QuotaOwner::Client(format!("the identity {identity:?}"));
                Quota::new(owner, settings.of_a_client(None), None)
            }
        });
        if let ClientName::Identity(identity) = name {
            // Under the mutex, so that of two that do this the last one knows the last limits.
            of_client.set_limits(settings.of_a_client(self.access.limits(identity)));
        }
        let quota = Quota::new(QuotaOwner::Connection, settings.of_a_connection(), Some(of_client));
        Client { quota, turns, lists }
    }

    /// Has the present limits of an identity count.
    fn renew_limits(&self, identity: &str) {
        let known = self.known.lock();
        let name = ClientName::Identity(identity.to_owned());
        if let Some(quota) = known.clients.get(&name).and_then(|client| client.quota.upgrade()) {
            quota.set_limits(self.settings.of_a_client(self.access.limits(identity)));
        }
    }
}

impl Known {
    fn client(
        &mut self,
        name: &ClientName,
        quota: impl FnOnce() -> Arc<Quota>,
    ) -> (Arc<Quota>, Turns, Arc<Semaphore>) {
        if let Some(client) = self.clients.get(name)
            && let Some(quota) = client.quota.upgrade()
        {
            return (quota, client.turns.clone(), Arc::clone(&client.lists));
        }
        if self.clients.len() >= self.clean_at.max(UNUSED_MAX) {
            self.clients.retain(|_, client| client.quota.strong_count() > 0);
            // With many clients, not every new one costs a check of all others.
            self.clean_at = 2 * self.clients.len();
        }
        let (quota, turns) = (quota(), Turns::new());
        let lists = Arc::new(Semaphore::new(LISTS_MAX));
        let client = OfClient {
            quota: Arc::downgrade(&quota),
            turns: turns.clone(),
            lists: Arc::clone(&lists),
        };
        self.clients.insert(name.clone(), client);
        (quota, turns, lists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u32) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from(host), 1))
    }

    fn callers(settings: ServerSettings) -> Callers {
        Callers::new(settings, Access::default())
    }

    #[tokio::test]
    async fn an_address_has_as_many_connections_as_it_may_and_others_do_not_count() {
        let callers =
            callers(ServerSettings { connections_per_address_max: 2, ..ServerSettings::default() });
        let first = callers.connected(address(1)).expect("room");
        let _second = callers.connected(address(1)).expect("room");
        assert!(callers.connected(address(1)).is_none());
        let mapped = SocketAddr::from((std::net::Ipv4Addr::from(1).to_ipv6_mapped(), 1));
        assert!(callers.connected(mapped).is_none(), "the same address, over IPv6");
        let _other = callers.connected(address(2)).expect("another address");
        drop(first);
        assert!(callers.connected(address(1)).is_some());
    }

    #[tokio::test]
    async fn an_address_keeps_its_quota_as_long_as_it_uses_any_and_is_forgotten_then() {
        let callers = callers(ServerSettings::default());
        let (kept, counted) = callers.connected(address(1)).expect("room");
        // A session that outlives its connection does the same.
        drop(counted);
        let name = ClientName::Address(address(1).ip());
        let of_address = || {
            let known = callers.known.lock();
            known.clients[&name].quota.upgrade().map(|quota| Arc::as_ptr(&quota))
        };
        let before = of_address().expect("in use");
        let (_again, _counted) = callers.connected(address(1)).expect("room");
        assert_eq!(of_address(), Some(before));
        for host in 2..10_000 {
            drop(callers.connected(address(host)).expect("room"));
        }
        assert!(callers.known.lock().clients.len() <= UNUSED_MAX + 1);
        assert_eq!(of_address(), Some(before));
        assert_eq!(callers.known.lock().addresses.len(), 1);
        drop(kept);
    }
}
