//! A node: its listener, its place in the cluster, and its service, from the first try to start to
//! the last word when it stops.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockservice_core::allocator::{ElectedAllocator, LockTableAllocator, Role};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::metrics::MeteredStore;
use lockservice_core::service::{ServiceParts, TableLimits};
use lockservice_core::store::NodeAddress;
use lockservice_core::{Error, NodeName};
use tokio::net::TcpListener;

use super::config::{Config, misconfigured};
use super::exit::{self, Failure};
use super::monitoring;
use super::node_state::NodeState;
use super::starting::{Joined, Waiting, await_role, open_store};
use crate::metrics::{MetricsServer, NodeMetrics};
use crate::peers::{GrpcPeers, Patience};
use crate::server::{
    Access, PeerServer, Server, ServerListener, ServerSettings, ServerTls, ServiceHost, Stop,
    may_pass, start_patiently,
};

/// A node that has started and does not serve yet.
pub(crate) struct Node {
    server: Server,
    /// `None` if there can be no other nodes.
    peers: Option<PeerServer>,
    /// The address on which it listens to clients.
    pub(crate) address: SocketAddr,
    /// Metrics and health over HTTP, and its address, if that is wanted.
    pub(crate) metrics: Option<(MetricsServer, SocketAddr)>,
    /// The address on which it listens to other nodes.
    pub(crate) peer_address: Option<SocketAddr>,
    allocator: Arc<ElectedAllocator>,
    /// The service that runs on it.
    pub(crate) host: ServiceHost,
    /// Limits.
    pub(crate) settings: ServerSettings,
    /// The certificates, if it serves with TLS.
    pub(crate) tls: Option<ServerTls>,
    /// The description of the store, without secrets.
    pub(crate) store: String,
    /// Locked for as long as the process may act as the node.
    state: Option<Arc<NodeState>>,
    /// The way in which it stops.
    stop: Stop,
}

/// The longest time that a stop for a restart waits for commits in flight before it gives the
/// leadership up.
const RESTART_MAX: Duration = Duration::from_millis(200);

impl Node {
    /// Starts a node. It waits for anything that time may cure, and reports it to `waiting`: a
    /// store that does not respond yet, no leader, or a lease of the node's last process. Any other
    /// problem is an error at once.
    ///
    /// If it fails or is dropped, `joined` has to leave.
    // Long: the steps of a start in their order, which matters.
    pub(crate) async fn start(
        config: &Config,
        name: NodeName,
        access: Access,
        limits: Arc<TableLimits>,
        joined: &Joined,
        waiting: &Waiting,
    ) -> Result<Self, Failure> {
        // The port comes first: a second server on the same port must not touch the store of the
        // first.
        let tls = match config.tls.is_set() {
            true => Some(ServerTls::load(&config.tls).map_err(misconfigured)?),
            false => None,
        };
        let secured = |listener: TcpListener| {
            let listener = ServerListener::from(listener).with_access(access.clone());
            match &tls {
                Some(tls) => listener.with_tls(tls.clone()),
                None => listener,
            }
        };
        let (listener, address) = listen(&config.addresses()?, "--listen").await?;
        let peer_listener = match config.peer_addresses(address)? {
            Some(addresses) => Some(listen(&addresses, "--peer-listen").await?),
            None => None,
        };
        let measured = Arc::new(NodeMetrics::default());
        let metrics = monitoring::start(config, address, &measured, waiting.is_json()).await?;
        let advertised = NodeAddress {
            nodes: match &peer_listener {
                Some((_, address)) => config.peer_advertised(*address)?,
                None => String::new(),
            },
            clients: config.advertised(address)?,
        };
        let store_url = config.store_url()?;
        let store = open_store(&store_url, waiting).await?;
        let described = store.describe();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = MeteredStore::new(store, Arc::clone(&measured.store), Arc::clone(&clock));
        let patience = Patience::for_lease(config.allocator.constants.lease_ttl());
        let peers = GrpcPeers::with_credentials(patience, &config.peer_credentials())
            .map_err(misconfigured)?;
        let allocator = ElectedAllocator::start(
            Arc::new(store),
            Arc::clone(&clock),
            config.allocator.clone(),
            name.clone(),
            advertised.clone(),
            Arc::new(peers),
        )?;
        joined.set(&allocator);
        measured.watch_allocator(Arc::clone(&allocator));
        let settings = ServerSettings {
            volatile: store_url.is_volatile(),
            alone: !store_url.is_shared(),
            ..config.server
        };
        // This comes before the service. If this node is elected, the other nodes and its own
        // service need its allocator.
        let peer_address = peer_listener.as_ref().map(|(_, address)| *address);
        let peers = peer_listener.map(|(listener, _)| {
            let (leader, cluster) = (allocator.as_leader(), allocator.cluster());
            PeerServer::start(secured(listener), leader, cluster, settings)
        });
        peers.iter().for_each(|peers| measured.watch_peers(peers));
        let mut server =
            Server::start(secured(listener), allocator.for_clients(), settings).await?;
        server.follow(allocator.roles());
        measured.watch_server(&server);
        await_role(&allocator, waiting).await?;
        let state = match store_url.is_shared() {
            true => NodeState::of(config, &allocator, &name, |why| waiting.say(why)).await?,
            false => None,
        };
        let replaces = match &state {
            Some(state) => state.replaces().await,
            None => None,
        };
        let parts = ServiceParts {
            address: advertised.clients,
            settings: config.service,
            limits,
            metrics: Arc::clone(&measured.service),
            replaces,
            #[cfg(feature = "otel")]
            continue_trace: crate::trace::continue_trace,
            ..ServiceParts::new(Arc::clone(&allocator) as Arc<dyn LockTableAllocator>, clock, name)
        };
        let service = start_patiently(&parts, may_pass, |e| waiting.say_error(e)).await?;
        if let Some(state) = &state {
            state.keep(&service).await;
        }
        let host = ServiceHost::keep(parts, service);
        if let Some(state) = &state {
            tokio::spawn(Arc::clone(state).follow(host.incarnations()));
        }
        server.host(host.clone()).await;
        measured.watch_service(host.clone());
        Ok(Self {
            server,
            peers,
            address,
            metrics,
            peer_address,
            allocator,
            host,
            settings,
            tls,
            store: described,
            state,
            // A store that forgets everything leaves nothing to claim.
            stop: if config.drain_stop || settings.volatile { Stop::Drain } else { Stop::Restart },
        })
    }

    /// Serves until `stop` resolves, then ends the service, and then resigns the leadership. If the
    /// node can serve no more, it stops the node and fails.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> Result<Ending, Failure> {
        let Self { mut server, mut peers, allocator, host, settings, .. } = self;
        let (_metrics, _state) = (self.metrics, self.state);
        let over = OnceLock::new();
        let how = self.stop;
        let stop = async {
            let why = tokio::select! {
                () = stop => return how,
                why = host.ended() => why,
                why = stopped_by_itself(&allocator) => why,
                why = broken(&mut peers) => why,
            };
            drop(over.set(why));
            Stop::Drain
        };
        let service = server.run(stop).await;
        let quiet = service.as_ref().is_ok_and(|stopped| stopped.confirmed);
        // The connections are still there: other nodes learn at once that they must look for
        // another leader.
        let grace = match how {
            Stop::Restart => RESTART_MAX,
            Stop::Drain => Duration::from_millis(settings.grace_ms),
        };
        let left = allocator.shutdown(quiet, grace).await;
        server.close().await;
        if let Some(peers) = peers {
            peers.close().await;
        }
        if let Some(why) = over.into_inner() {
            return Err(why.into());
        }
        let service = service?;
        Ok(match left {
            _ if how == Stop::Restart && !service.resigned => Ending::AsAfterACrash,
            _ if !service.confirmed => Ending::NotConfirmed,
            _ if !service.resigned => Ending::LeaseKept,
            Ok(left) if left.resigned && service.held > 0 => Ending::ForRestart(service.held),
            Ok(left) if left.resigned => Ending::Everything,
            _ if how == Stop::Restart => Ending::AsAfterACrash,
            Ok(_) | Err(_) => Ending::LeadershipKept,
        })
    }
}

/// The outcome of a stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// Everything was confirmed as released.
    Everything,
    /// So many tables are left held, for a restart.
    ForRestart(usize),
    /// It stopped for a restart, and the next start cannot know that nobody else holds anything.
    AsAfterACrash,
    /// A client did not confirm that its work has ended.
    NotConfirmed,
    /// The lease was not returned: no allocator accepted it.
    LeaseKept,
    /// The leadership was not resigned.
    LeadershipKept,
}

impl Ending {
    /// The meaning for the next start.
    pub(crate) fn sentence(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Everything => "stopped: everything was given back",
            Self::ForRestart(tables) => {
                let held = if tables == 1 { "table" } else { "tables" };
                return Cow::Owned(format!(
                    "stopped for a restart: the locks in {tables} {held} stay held, and the next \
                     start takes their holders in if it comes in time (--drain-stop has them stop)"
                ));
            }
            Self::AsAfterACrash => {
                "stopped for a restart: what is held stays so, and the tables wait at the next \
                 start as after a crash (a commit was in flight, the lease of a process that \
                 crashed before has not run out, or no allocator took the lease back)"
            }
            Self::NotConfirmed => {
                "stopped, but a client did not confirm in time that its work has ended: the next \
                    start waits until its promise has run out"
            }
            Self::LeaseKept => {
                "stopped, but no allocator took the lease back: the tables of this node are \
                    reassigned when it has run out"
            }
            Self::LeadershipKept => {
                "stopped, but the leadership could not be given up (a commit was in flight, the \
                 lease of a process that crashed before has not run out, or the store did not \
                 respond): the next leader waits until it has run out"
            }
        })
    }
}

/// Resolves when the allocator has stopped by itself: its exclusive store failed, or was taken
/// over.
async fn stopped_by_itself(allocator: &ElectedAllocator) -> Error {
    let mut roles = allocator.roles();
    let stopped =
        roles.wait_for(|role| matches!(role, Role::Stopped(_))).await.ok().map(|role| role.clone());
    match stopped {
        Some(Role::Stopped(why)) => why,
        // The sender lives in `allocator`.
        _ => std::future::pending().await,
    }
}

/// Resolves when other nodes can no longer reach this one.
async fn broken(peers: &mut Option<PeerServer>) -> Error {
    match peers {
        Some(peers) => peers.broken().await,
        None => std::future::pending().await,
    }
}

/// Listens on the first of `addresses` that is free. `flag` names the option for errors.
pub(super) async fn listen(
    addresses: &[SocketAddr],
    flag: &str,
) -> Result<(TcpListener, SocketAddr), Failure> {
    let bound = TcpListener::bind(addresses).await.and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|error| {
        let what_to_do = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another process has it: stop that one, or choose another port with"
            }
            io::ErrorKind::PermissionDenied => "this user may not: choose a port above 1023 with",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address: correct",
            _ => "correct",
        };
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        let addresses = addresses.join(", ");
        Failure::new(
            exit::OS,
            "listen",
            format!("cannot listen on {addresses}: {error}; {what_to_do} {flag}"),
        )
    })
}
