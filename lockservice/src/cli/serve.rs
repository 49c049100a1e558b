//! `serve`: runs a server until it is told to stop.

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::NodeName;
use lockservice_core::allocator::{LocalAllocator, LockTableAllocator};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::ServiceParts;
use lockservice_core::store::Candidate;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::args::ServeArgs;
use super::config::Config;
use super::exit::{self, Failure, say_note};
use super::output::Output;
use crate::server::{self, ServerSettings, ServiceHost};
use crate::store;

/// Runs a server. Answers the exit status.
pub(crate) fn run(args: &ServeArgs, json: bool) -> Result<u8, Failure> {
    let config = Config::load(args, std::env::vars())?;
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(super::no_runtime)?;
    runtime.block_on(serve(config, json))
}

/// Warnings go to stderr; `RUST_LOG` says what else.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // Fails only if the process has a subscriber already: then that one is meant.
    let colours = io::stderr().is_terminal();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr).try_init();
}

/// A node that stands, before it serves.
struct Node {
    listener: TcpListener,
    address: SocketAddr,
    allocator: Arc<LocalAllocator>,
    host: ServiceHost,
    settings: ServerSettings,
    /// What the store is, without secrets.
    store: String,
}

impl Node {
    async fn start(config: &Config, name: NodeName) -> Result<Self, Failure> {
        // The port first: a second server on the same port must not touch the first one's store.
        let (listener, address) = listen(config).await?;
        let store = store::open(&config.store).await?;
        let described = store.describe();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let candidate = Candidate::new(name.clone(), address.to_string());
        let allocator = LocalAllocator::open(store, Arc::clone(&clock), config.allocator.clone(), candidate).await?;
        let parts = ServiceParts {
            address: address.to_string(),
            settings: config.service,
            ..ServiceParts::new(Arc::clone(&allocator) as Arc<dyn LockTableAllocator>, clock, name)
        };
        let host = ServiceHost::start(parts).await?;
        let settings = ServerSettings { volatile: store::is_volatile(&config.store), ..config.server };
        Ok(Self { listener, address, allocator, host, settings, store: described })
    }

    /// Serves until `stop` resolves, then gives everything back that may be. True if that was everything.
    async fn serve(self, stop: impl Future<Output = ()>) -> Result<bool, Failure> {
        let grace = Duration::from_millis(self.settings.grace_ms);
        let stopped = server::serve(self.listener, self.host, self.settings, stop).await?;
        let left = self.allocator.shutdown(stopped.resigned, grace).await?;
        Ok(stopped.resigned && left.resigned)
    }
}

/// A server in this process, in memory, on a free port of loopback.
pub(crate) struct InMemory {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<bool, Failure>>,
}

/// Starts a server in this process.
pub(crate) async fn in_memory() -> Result<InMemory, Failure> {
    let config = Config { listen: "127.0.0.1:0".to_owned(), store: "memory:".to_owned(), ..Config::default() };
    let node = Node::start(&config, config.node()?).await?;
    let address = node.address;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(node.serve(async {
        // An error means that nobody needs the server any more.
        let _ = stopped.await;
    }));
    Ok(InMemory { address, stop, serving })
}

impl InMemory {
    /// Stops it in order.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        // An error means that it has ended by itself, and says why below.
        let _ = self.stop.send(());
        match self.serving.await {
            Ok(result) => result.map(drop),
            Err(error) => {
                Err(Failure::new(exit::LOST, "internal", format!("the server failed: {error}; please report it")))
            }
        }
    }
}

async fn serve(config: Config, json: bool) -> Result<u8, Failure> {
    let signals =
        StopSignals::take().map_err(|error| Failure::new(exit::OS, "os", format!("cannot take signals: {error}")))?;
    let name = config.node()?;
    let node = Node::start(&config, name.clone()).await?;
    let address = node.address;
    let incarnation = node.host.current().id();
    if node.settings.volatile {
        // B7.
        say_note(
            json,
            "the store is memory: locks exclude each other and tokens grow only within the life of this process, and a restart waits \
             for no lock; use file:PATH for anything that matters",
        );
    }
    let ready = if json {
        json!({
            "event": "ready",
            "address": address.to_string(),
            "store": node.store,
            "node": name.as_str(),
            "incarnation": incarnation.get(),
        })
        .to_string()
    } else {
        format!(
            "lockservice is ready: listening on {address}, store {}, node {name}, incarnation {incarnation}",
            node.store
        )
    };
    // A server whose output nobody reads serves on.
    let _ = Output::new(json).line(&ready);

    let (stop, again) = stop_and_again(signals);
    let everything = tokio::select! {
        everything = node.serve(stop) => everything?,
        () = again => {
            // Nothing was resigned (P5).
            return Err(Failure::new(
                exit::UNAVAILABLE,
                "stopped",
                "told to stop twice, stopped at once: the next start waits until the promises made have run out",
            ));
        }
    };
    let end = if everything {
        "stopped: everything was given back"
    } else {
        "stopped, but a client did not confirm in time that its work has ended: the next start waits until its promise has run out"
    };
    say_note(json, end);
    Ok(0)
}

/// Two futures: the first signal, which stops the server in order, and the one after it, which stops it at once.
fn stop_and_again(mut signals: StopSignals) -> (impl Future<Output = ()>, impl Future<Output = ()>) {
    let (pass, passed) = oneshot::channel::<StopSignals>();
    let first = async move {
        signals.next().await;
        // The other side is dropped only when the server has ended.
        let _ = pass.send(signals);
    };
    let second = async move {
        match passed.await {
            Ok(mut signals) => signals.next().await,
            // The server ended by itself: there is no second signal.
            Err(_) => std::future::pending().await,
        }
    };
    (first, second)
}

struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn take() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn listen(config: &Config) -> Result<(TcpListener, SocketAddr), Failure> {
    let addresses = config.addresses()?;
    let bound = TcpListener::bind(&*addresses).await.and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|error| {
        let what_to_do = match error.kind() {
            io::ErrorKind::AddrInUse => "another process has it: stop that one, or choose another port with --listen",
            io::ErrorKind::PermissionDenied => "this user may not: choose a port above 1023 with --listen",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address: correct --listen",
            _ => "correct --listen",
        };
        Failure::new(exit::OS, "listen", format!("cannot listen on {}: {error}; {what_to_do}", config.listen))
    })
}
