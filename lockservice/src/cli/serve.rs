//! `serve`: runs a server until a signal stops it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::NodeName;
use lockservice_core::clock::{Clock as _, SystemClock, Time};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::args::ServeArgs;
use super::config::{Config, IdentityFiles, LimitFile, misconfigured};
use super::exit::{self, Failure, say_note};
use super::limits;
use super::log::Log;
use super::memory;
use super::node::{Ending, Node};
use super::signals::Ignored;
use super::sink;
use super::starting::{Joined, Waiting};
use crate::reload::CHECK_INTERVAL;
use crate::server::{Access, ServerTls};

/// A second signal stops the server at once only if it comes at least so long after the first.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Runs a server. Returns the exit status.
pub(crate) fn run(args: &ServeArgs, json: bool) -> Result<u8, Failure> {
    let (config, origin) = Config::load(args, std::env::vars_os())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(super::no_runtime)?;
    // Dropped before the runtime, which carries the last spans.
    #[cfg(feature = "otel")]
    let traces = {
        let _entered = runtime.enter();
        super::traces::Traces::start(&config)?
    };
    let log = Log::start(
        &config,
        args,
        json,
        #[cfg(feature = "otel")]
        traces.as_ref(),
    );
    memory::give_back();
    origin.say(json);
    limits::allow_connections(config.server.connections_max, json);
    limits::warn_of_shares(&config, json);
    let identities = IdentityFiles::load(&config, args.config.as_deref());
    let identities = identities.map_err(misconfigured)?;
    let limits = args.config.as_deref().map(LimitFile::load).transpose().map_err(misconfigured)?;
    runtime.block_on(serve(config, SettingsRead { identities, limits, log }, json))
}

/// A server in this process, in memory, on a free port of loopback.
pub(crate) struct InMemory {
    /// The address on which it listens.
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<Ending, Failure>>,
}

/// Starts a server in this process.
pub(crate) async fn in_memory() -> Result<InMemory, Failure> {
    let config = Config {
        listen: "127.0.0.1:0".to_owned(),
        store: "memory:".to_owned(),
        ..Config::default()
    };
    let (joined, waiting) = (Joined::default(), Waiting::new(true));
    let (access, limits) = (Access::default(), Arc::default());
    let starting = Node::start(&config, config.node()?, access, limits, &joined, &waiting);
    let node = starting.await?;
    let address = node.address;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(node.serve(async {
        // An error means that no caller needs the server any more.
        let _ = stopped.await;
    }));
    Ok(InMemory { address, stop, serving })
}

impl InMemory {
    /// Stops it in order.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        // An error means that the server has ended by itself. The reason is reported below.
        let _ = self.stop.send(());
        match self.serving.await {
            Ok(result) => result.map(drop),
            Err(error) => Err(Failure::new(
                exit::LOST,
                "internal",
                format!("the server failed: {error}; please report it"),
            )),
        }
    }
}

async fn serve(config: Config, read: SettingsRead, json: bool) -> Result<u8, Failure> {
    let mut signals = StopSignals::take()
        .map_err(|error| Failure::new(exit::OS, "os", format!("cannot take signals: {error}")))?;
    let name = config.node()?;
    let (joined, waiting) = (Joined::default(), Waiting::new(json));
    let access = read.identities.as_ref().map(IdentityFiles::access).unwrap_or_default();
    let limits = read.limits.as_ref().map(LimitFile::limits).unwrap_or_default();
    let starting = Node::start(&config, name.clone(), access, limits, &joined, &waiting);
    let node = tokio::select! {
        node = within(&config, &waiting, starting) => match node {
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
    if node.settings.volatile {
        // B7.
        say_note(
            json,
            "the store is memory: locks exclude each other and tokens grow only within the life \
             of this process, and a restart waits \
             for no lock; use file:PATH for anything that matters",
        );
    }
    // A server whose output is not read continues to serve.
    sink::stdout().line(format!("{}\n", ready_line(&node, &name, json)));

    let followed = Followed { tls: node.tls.clone(), read };
    let reload = keep_fresh(followed, Arc::clone(&signals.reload));
    let (stop, again) = stop_and_again(signals);
    let ending = tokio::select! {
        ending = node.serve(stop) => ending?,
        never = reload => match never {},
        () = again => {
            // Nothing was resigned (P5).
            return Err(Failure::new(
                exit::UNAVAILABLE,
                "stopped",
                "a second signal came, stopped at once: the next start waits until the promises \
                    made have run out",
            ));
        }
    };
    say_note(json, &ending.sentence());
    Ok(0)
}

/// What is read again while a server runs.
struct Followed {
    tls: Option<ServerTls>,
    read: SettingsRead,
}

/// The settings that are read again.
struct SettingsRead {
    identities: Option<IdentityFiles>,
    limits: Option<LimitFile>,
    log: Log,
}

/// Reads the certificates, the identities, the limits of tables and the filter of the log again
/// each time that `reload` is notified, and the identities and the limits when they have changed,
/// for ever. Certificates are watched by the servers.
async fn keep_fresh(followed: Followed, reload: Arc<Notify>) -> Infallible {
    let Followed { tls, read: SettingsRead { identities, limits, log } } = followed;
    let log = Arc::new(log);
    let is_watched = identities.is_some() || limits.is_some();
    loop {
        let requested = tokio::select! {
            () = reload.notified() => true,
            () = tokio::time::sleep(CHECK_INTERVAL), if is_watched => false,
        };
        if let Some(identities) = &identities {
            identities.check(requested).await;
        }
        if let Some(limits) = &limits {
            limits.check(requested).await;
        }
        if requested && log.has_file() {
            let log = Arc::clone(&log);
            // An error means that the runtime is going away.
            let _ = tokio::task::spawn_blocking(move || log.reload()).await;
        }
        match &tls {
            _ if !requested => {}
            Some(tls) => tls.reload().await,
            None if identities.is_some() || log.has_file() => {}
            // Other daemons read their settings again on this signal.
            None => tracing::warn!(
                "SIGHUP changes nothing: settings are read at the start; SIGTERM stops the server"
            ),
        }
    }
}

/// The line that says that the node serves.
fn ready_line(node: &Node, name: &NodeName, json: bool) -> String {
    let address = node.address;
    let peer_address = node.peer_address.map(|address| address.to_string());
    let metrics_address = node.metrics.as_ref().map(|(_, address)| address.to_string());
    let incarnation = node.host.current().id();
    if json {
        json!({
            "event": "ready",
            "address": address.to_string(),
            "peer_address": peer_address,
            "metrics_address": metrics_address,
            "store": node.store,
            "node": name.as_str(),
            "incarnation": incarnation.get(),
        })
        .to_string()
    } else {
        let nodes = peer_address
            .map(|address| format!(" (and to other nodes on {address})"))
            .unwrap_or_default();
        format!(
            "lockservice is ready: listening on {address}{nodes}, store {}, node {name}, \
                incarnation {incarnation}",
            node.store
        )
    }
}

/// Starts within the time that the configuration allows, if it sets a limit.
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
        Err(Failure::new(
            exit::UNAVAILABLE,
            "start_timeout",
            format!("not ready within {most:?}: {why}"),
        ))
    })
}

/// Two futures: the first signal, which stops the server in order, and a later one, which stops it
/// at once.
fn stop_and_again(
    mut signals: StopSignals,
) -> (impl Future<Output = ()>, impl Future<Output = ()>) {
    let (pass, passed) = oneshot::channel::<(StopSignals, Stopping)>();
    let first = async move {
        signals.next().await;
        // The other side is dropped only when the server has ended.
        let _ = pass.send((signals, Stopping { since: SystemClock.now() }));
    };
    let second = async move {
        match passed.await {
            Ok((mut signals, stopping)) => loop {
                signals.next().await;
                if stopping.is_meant_again(SystemClock.now()) {
                    return;
                }
            },
            // The server ended by itself: there is no second signal.
            Err(_) => std::future::pending().await,
        }
    };
    (first, second)
}

/// An orderly stop that was requested.
struct Stopping {
    since: Time,
}

impl Stopping {
    /// True if a signal that comes `now` requests a stop at once.
    ///
    /// A signal that follows closely is the same request: `timeout` signals its child and then its
    /// group, and so do supervisors.
    fn is_meant_again(&self, now: Time) -> bool {
        now.since(self.since) >= AGAIN_AFTER
    }
}

/// The signals that a server stops for.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if the process was started to ignore it (`nohup`).
    hang_up: Option<Signal>,
    /// The server was started from a terminal. Then a hang-up means that the terminal has gone.
    of_terminal: bool,
    /// Notified of a hang-up that is to have files read again.
    reload: Arc<Notify>,
}

impl StopSignals {
    fn take() -> io::Result<Self> {
        let hup_ignored = Ignored::now().contains(nix::sys::signal::Signal::SIGHUP);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if hup_ignored { None } else { Some(signal(SignalKind::hangup())?) },
            of_terminal: std::fs::File::open("/dev/tty").is_ok(),
            reload: Arc::default(),
        })
    }

    /// The next signal that requests a stop.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                () = Self::hung_up(&mut self.hang_up) => {
                    if self.of_terminal {
                        return;
                    }
                    self.reload.notify_one();
                }
            }
        }
    }

    async fn hung_up(hang_up: &mut Option<Signal>) {
        match hang_up {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_signal_is_one_wish_and_a_later_one_is_another() {
        let at = |ms| Time::from_origin(Duration::from_millis(ms));
        let stopping = Stopping { since: at(5_000) };
        for (ms, again) in
            [(5_000, false), (5_001, false), (5_999, false), (6_000, true), (60_000, true)]
        {
            assert_eq!(stopping.is_meant_again(at(ms)), again, "{ms}");
        }
    }
}
