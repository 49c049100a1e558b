//! `serve`: runs a server until it is told to stop.

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::args::ServeArgs;
use super::config::Config;
use super::exit::{self, Failure, say_note};
use super::limits;
use super::node::{Ending, Joined, Node, Waiting};
use super::output::Output;

/// Runs a server. Answers the exit status.
pub(crate) fn run(args: &ServeArgs, json: bool) -> Result<u8, Failure> {
    let config = Config::load(args, std::env::vars())?;
    log_to_stderr();
    limits::allow_connections(config.server.connections_max, json);
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

/// A server in this process, in memory, on a free port of loopback.
pub(crate) struct InMemory {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<Ending, Failure>>,
}

/// Starts a server in this process.
pub(crate) async fn in_memory() -> Result<InMemory, Failure> {
    let config = Config { listen: "127.0.0.1:0".to_owned(), store: "memory:".to_owned(), ..Config::default() };
    let node = Node::start(&config, config.node()?, &Joined::default(), &Waiting::new(true)).await?;
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
    let mut signals =
        StopSignals::take().map_err(|error| Failure::new(exit::OS, "os", format!("cannot take signals: {error}")))?;
    let name = config.node()?;
    let (joined, waiting) = (Joined::default(), Waiting::new(json));
    let node = tokio::select! {
        node = within(&config, &waiting, Node::start(&config, name.clone(), &joined, &waiting)) => match node {
            Ok(node) => node,
            Err(failure) => {
                joined.leave().await;
                return Err(failure);
            }
        },
        () = signals.next() => {
            joined.leave().await;
            say_note(json, "stopped before it was ready");
            return Ok(0);
        }
    };
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
    let ending = tokio::select! {
        ending = node.serve(stop) => ending?,
        () = again => {
            // Nothing was resigned (P5).
            return Err(Failure::new(
                exit::UNAVAILABLE,
                "stopped",
                "told to stop twice, stopped at once: the next start waits until the promises made have run out",
            ));
        }
    };
    say_note(json, ending.sentence());
    Ok(0)
}

/// Starts within the time that the configuration allows, if it sets any.
async fn within(
    config: &Config,
    waiting: &Waiting,
    start: impl Future<Output = Result<Node, Failure>>,
) -> Result<Node, Failure> {
    if config.start_ms_max == 0 {
        return start.await;
    }
    let most = Duration::from_millis(config.start_ms_max);
    tokio::time::timeout(most, start).await.unwrap_or_else(|_| {
        let why = waiting.last().unwrap_or_else(|| "it is not known why".to_owned());
        Err(Failure::new(exit::UNAVAILABLE, "start_timeout", format!("not ready within {most:?}: {why}")))
    })
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
