//! [`Node`]: one whole node on its machine: an elected allocator and a service that replaces
//! itself, served over the simulated network.

use std::sync::Arc;
use std::time::Duration;

use lockservice::peers::{GrpcPeers, Patience};
use lockservice::server::{ServerSettings, ServiceHost};
use lockservice::simulation::{ClientRoutes, peer_routes};
use lockservice_core::allocator::{AllocatorSettings, ElectedAllocator, LockTableAllocator};
use lockservice_core::clock::Clock;
use lockservice_core::env::{ClockRate, Env};
use lockservice_core::service::{LockService, ServiceParts};
use lockservice_core::store::{BindStore, MemoryStore, NodeAddress};
use lockservice_core::testing::SharedStore;
use lockservice_core::{ErrorKind, NodeName, Nonce, ServiceId};
use parking_lot::Mutex;

use super::log::Log;
use super::network::Network;
use super::store::{Connection, Troubles};

/// The pause before a node that could not start tries again.
const START_PAUSE: Duration = Duration::from_millis(200);
/// The longest time of a stop for a restart, and of a stop for good.
const RESTART_MAX: Duration = Duration::from_millis(500);
const DRAIN_MAX: Duration = Duration::from_secs(6);

/// Where the binds of a world are.
#[derive(Clone, Debug)]
pub enum Disk {
    /// A store that the nodes share.
    Shared(SharedStore),
    /// A store of one node alone.
    Alone(MemoryStore),
}

/// What all nodes of a world have in common.
#[derive(Clone, Debug)]
pub struct Site {
    /// The exact time.
    pub clock: Arc<dyn Clock>,
    /// Carries their calls.
    pub network: Network,
    /// Has their binds.
    pub disk: Disk,
    /// The troubles of a shared store.
    pub troubles: Troubles,
    /// Their settings.
    pub allocator: AllocatorSettings,
    /// What happened.
    pub log: Log,
}

/// A machine, and the process of the node that runs on it, if one does.
#[derive(Debug)]
pub struct Node {
    name: String,
    rate: ClockRate,
    site: Site,
    /// The incarnation whose process had the state file of the machine last.
    state_file: Arc<Mutex<Option<(ServiceId, Nonce)>>>,
    running: Option<Running>,
    /// The number of processes so far.
    processes: u64,
    seed: u64,
}

/// A process of a node.
#[derive(Clone, Debug)]
struct Running {
    env: Env,
    store: Option<Arc<Connection>>,
    allocator: Arc<ElectedAllocator>,
    host: Arc<Mutex<Option<ServiceHost>>>,
}

/// The way in which a process is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// For a restart (P6).
    Restart,
    /// For good: sessions are told to stop.
    Drain,
}

impl Node {
    /// A machine on which nothing runs.
    pub fn new(name: &str, site: &Site, rate: ClockRate, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            rate,
            site: site.clone(),
            state_file: Arc::default(),
            running: None,
            processes: 0,
            seed,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of the node for clients.
    pub fn address(name: &str) -> String {
        format!("{name}:1")
    }

    /// True if a process runs.
    pub fn runs(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !is_killed(&running.env))
    }

    /// The service of the process, if it stands.
    pub fn service(&self) -> Option<LockService> {
        let running = self.running.as_ref().filter(|running| !is_killed(&running.env))?;
        running.host.lock().as_ref().map(ServiceHost::current)
    }

    /// Starts a process. With a `state_file` it knows which incarnation the last one was (B1).
    ///
    /// # Panics
    /// If the settings are wrong.
    pub fn start(&mut self, state_file: bool) {
        self.kill();
        self.processes += 1;
        let seed = self.seed.wrapping_add(self.processes);
        let env = Env::simulated(Arc::clone(&self.site.clock), seed, self.rate);
        let Site { network, disk, troubles, allocator: settings, log, .. } = &self.site;
        let name = NodeName::new(&self.name).expect("a short name");
        let (store, connection): (Arc<dyn BindStore>, _) = match disk {
            Disk::Shared(store) => {
                let connection = Arc::new(Connection::new(store, troubles.clone()));
                (Arc::clone(&connection) as Arc<dyn BindStore>, Some(connection))
            }
            Disk::Alone(store) => (Arc::new(store.clone()), None),
        };
        let patience = Patience::for_lease(settings.constants.lease_ttl());
        let peers = GrpcPeers::simulated(patience, network.end(&self.name, &env));
        let address = NodeAddress {
            nodes: match disk {
                Disk::Shared(_) => format!("{}:2", self.name),
                Disk::Alone(_) => String::new(),
            },
            clients: Self::address(&self.name),
        };
        let allocator = ElectedAllocator::start(
            store,
            env.clone(),
            settings.clone(),
            name.clone(),
            address,
            Arc::new(peers),
        )
        .expect("valid settings");
        let server =
            ServerSettings { alone: matches!(disk, Disk::Alone(_)), ..ServerSettings::default() };
        if matches!(disk, Disk::Shared(_)) {
            let routes = peer_routes(allocator.as_leader(), allocator.cluster(), &server);
            network.serve(&format!("{}:2", self.name), &self.name, &env, routes);
        }
        let clients = ClientRoutes::new(allocator.for_clients(), server);
        network.serve(&Self::address(&self.name), &self.name, &env, clients.routes.clone());

        let mut parts = ServiceParts::new(
            Arc::clone(&allocator) as Arc<dyn LockTableAllocator>,
            env.clone(),
            name,
        );
        parts.address = Self::address(&self.name);
        if state_file {
            parts.replaces = *self.state_file.lock();
        }
        let host = Arc::<Mutex<Option<ServiceHost>>>::default();
        let (file, standing) = (Arc::clone(&self.state_file), Arc::clone(&host));
        let (log, name) = (log.clone(), self.name.clone());
        let timer = env.clone();
        env.spawn(async move {
            let started = loop {
                match ServiceHost::start(parts.clone()).await {
                    Ok(host) => break host,
                    Err(e) => {
                        log.note(|| format!("{name} cannot start: {e}"));
                        let pause = match e.kind() {
                            ErrorKind::NameInUse => e.retry_after(),
                            _ => None,
                        };
                        timer.sleep(pause.unwrap_or(START_PAUSE)).await;
                    }
                }
            };
            let service = started.current();
            log.note(|| format!("{name} stands as {}", service.id()));
            *file.lock() = Some((service.id(), service.nonce()));
            clients.host(started.clone());
            *standing.lock() = Some(started.clone());
            let why = started.ended().await;
            log.note(|| format!("{name} will serve no more: {why}"));
        });
        self.site.log.note(|| format!("{} started", self.name));
        self.running = Some(Running { env, store: connection, allocator, host });
    }

    /// Kills the process at once.
    pub fn kill(&mut self) {
        let Some(running) = self.running.take() else { return };
        if is_killed(&running.env) {
            return;
        }
        self.site.network.gone(&self.name);
        self.site.network.set_frozen(&self.name, false);
        if let Some(store) = &running.store {
            store.set_cut(true);
        }
        if let Some(process) = running.env.process() {
            process.kill();
        }
        self.site.log.note(|| format!("{} was killed", self.name));
    }

    /// Kills the process before the step after the next `steps` ones of its tasks.
    pub fn kill_after(&mut self, steps: u64) {
        let Some(running) = &self.running else { return };
        let Some(process) = running.env.process() else { return };
        let (network, store) = (self.site.network.clone(), running.store.clone());
        let (log, name) = (self.site.log.clone(), self.name.clone());
        process.on_kill(move || {
            network.gone(&name);
            if let Some(store) = store {
                store.set_cut(true);
            }
            log.note(|| format!("{name} was killed at a step"));
        });
        process.kill_after(Some(steps));
    }

    /// It is not to be killed at a step any more.
    pub fn live_on(&self) {
        if let Some(process) = self.running.as_ref().and_then(|running| running.env.process()) {
            process.kill_after(None);
        }
    }

    /// Lets the process make no step until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        let Some(process) = self.running.as_ref().and_then(|running| running.env.process()) else {
            return;
        };
        process.freeze();
        self.site.network.set_frozen(&self.name, true);
        self.site.log.note(|| format!("{} is frozen", self.name));
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        self.site.network.set_frozen(&self.name, false);
        if let Some(process) = self.running.as_ref().and_then(|running| running.env.process())
            && process.is_frozen()
        {
            process.thaw();
            self.site.log.note(|| format!("{} goes on", self.name));
        }
    }

    /// Cuts the process off from the store, or ends that.
    pub fn set_store_cut(&self, cut: bool) {
        if let Some(store) = self.running.as_ref().and_then(|running| running.store.as_ref()) {
            store.set_cut(cut);
        }
    }

    /// Stops the process as a signal does. It is gone when the returned future has resolved.
    pub fn stop(&self, how: Stop) -> impl Future<Output = ()> + Send + use<> {
        let running = self.running.clone();
        let (network, log, name) =
            (self.site.network.clone(), self.site.log.clone(), self.name.clone());
        async move {
            let Some(running) = running else { return };
            log.note(|| format!("{name} stops: {how:?}"));
            let (allocator, host) = (running.allocator, running.host.lock().clone());
            let stop = running.env.spawn(async move {
                let grace = match how {
                    Stop::Restart => RESTART_MAX,
                    Stop::Drain => DRAIN_MAX,
                };
                let quiet = match (host, how) {
                    (Some(host), Stop::Restart) => host.stop_for_restart(grace).await.confirmed,
                    (Some(host), Stop::Drain) => host.stop(grace).await.confirmed,
                    (None, _) => true,
                };
                drop(allocator.shutdown(quiet, grace).await);
            });
            // A process that is killed meanwhile never says that it has ended.
            drop(tokio::time::timeout(2 * DRAIN_MAX, stop).await);
            let Some(process) = running.env.process().filter(|it| !it.is_killed()) else { return };
            network.gone(&name);
            if let Some(store) = &running.store {
                store.set_cut(true);
            }
            process.kill();
            log.note(|| format!("{name} has stopped"));
        }
    }
}

fn is_killed(env: &Env) -> bool {
    env.process().is_some_and(lockservice_core::env::Process::is_killed)
}
