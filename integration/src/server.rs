//! `lockservice serve` as a process that can be killed, stopped and started again.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use lockservice::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::store::StoreKind;
use crate::{LEASE, binary, json_lines, pid_of, within};

/// The folder and the address of a server, over all its lives.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
    /// The store's URL.
    pub store: String,
    /// HOST:PORT.
    pub address: String,
    node: String,
    lease: Duration,
}

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Kept open: a server whose output cannot be written is another test.
    _stdout: Lines<BufReader<ChildStdout>>,
    stderr: PathBuf,
    /// The number of its first incarnation.
    pub incarnation: u64,
    /// Where other nodes reach it; `None` with a store that it has to itself.
    pub peer_address: Option<String>,
    /// Where it serves metrics, if it does.
    pub metrics_address: Option<String>,
}

impl Place {
    /// A new place with an empty store.
    pub fn new(store: StoreKind) -> Self {
        let directory = TempDir::new().expect("there is room for temporary files");
        Self {
            store: store.url(directory.path()),
            address: free_address(),
            directory,
            node: "n".to_owned(),
            lease: LEASE,
        }
    }

    /// A place of one of several nodes with one store.
    pub fn joining(store: &str, node: &str) -> Self {
        let directory = TempDir::new().expect("there is room for temporary files");
        let (store, address, node) = (store.to_owned(), free_address(), node.to_owned());
        Self { store, address, directory, node, lease: LEASE }
    }

    /// The same with a longer lease, for a test that acts while a lease lasts.
    pub fn with_lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// A directory for other files of the test.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `lockservice serve` here, not yet started.
    pub fn serve(&self) -> Command {
        let mut command = Command::new(binary::lockservice());
        command
            .args([
                "--json",
                "serve",
                "--node",
                &self.node,
                "--listen",
                &self.address,
                "--store",
                &self.store,
            ])
            // With a store that nodes share: any port, for the leader's stands in the store.
            .args(["--peer-listen", "127.0.0.1:0"])
            .arg(format!("--lease-ttl={}ms", self.lease.as_millis()))
            // What one process of the node leaves for the next one.
            .env("XDG_STATE_HOME", self.directory())
            // A leader is replaced before the leases run out that it can no longer renew.
            .env("LOCKSERVICE_ALLOCATOR__CONSTANTS__LEADERSHIP_TTL_MS", "1000")
            .env("RUST_LOG", "warn,lockservice=info,lockservice_core=info")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Starts the server and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become so.
    pub async fn start(&self) -> Server {
        self.start_with(self.serve()).await
    }

    /// Starts the server with `command` and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become so.
    pub async fn start_with(&self, mut command: Command) -> Server {
        static LIVES: AtomicU32 = AtomicU32::new(0);
        let stderr =
            self.directory.path().join(format!("serve-{}.log", LIVES.fetch_add(1, Relaxed)));
        let log = File::create(&stderr).expect("the test's directory can be written");
        let mut child =
            command.stdout(Stdio::piped()).stderr(log).spawn().expect("the server can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let line = within("a server becomes ready", stdout.next_line())
            .await
            .expect("its output can be read");
        let Some(line) = line else {
            panic!("the server did not become ready: {}", text_of(&stderr))
        };
        let ready: Value = serde_json::from_str(&line).expect("serve --json says JSON");
        assert_eq!(ready["event"], "ready", "{line}");
        let incarnation =
            ready["incarnation"].as_u64().expect("the ready line names the incarnation");
        let address = |key: &str| ready[key].as_str().map(str::to_owned);
        let (peer_address, metrics_address) = (address("peer_address"), address("metrics_address"));
        Server { child, _stdout: stdout, stderr, incarnation, peer_address, metrics_address }
    }

    /// Runs a command that is expected to fail at once, and returns how it ended.
    pub async fn run(&self, command: &mut Command) -> Output {
        within("the command ends", command.output()).await.expect("it can be started")
    }

    /// What the last `count` processes have logged, after a moment in which the last one may have
    /// said more: for a failure.
    pub async fn last_logs(&self, count: usize) -> String {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let directory = std::fs::read_dir(self.directory()).expect("the test's directory");
        let mut logs: Vec<(u32, PathBuf)> = directory
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?;
                let life = name.strip_prefix("serve-")?.strip_suffix(".log")?.parse().ok()?;
                Some((life, path))
            })
            .collect();
        logs.sort();
        let last = logs.iter().rev().take(count).rev();
        last.map(|(life, path)| format!("process {life}:\n{}\n", text_of(path))).collect()
    }

    /// A client of the server here.
    ///
    /// # Panics
    /// If there is none.
    pub async fn client(&self) -> Client {
        Client::builder().name("test").connect(&self.address).await.expect("the server runs")
    }

    /// The binds that `lockservice binds` shows, by table.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn binds(&self) -> BTreeMap<String, BindRow> {
        let mut command = Command::new(binary::lockservice());
        command.args(["--json", "binds", "--server", &self.address]);
        let output = self.run(&mut command).await;
        assert!(output.status.success(), "{output:?}");
        json_lines(&output)
            .into_iter()
            .map(|row| {
                let bind = BindRow {
                    version: row["version"].as_u64().expect("a bind has a version"),
                    owner: row["owner"].as_u64().expect("a bind has an owner"),
                    state: row["state"].as_str().expect("a bind has a state").to_owned(),
                };
                (row["table"].as_str().expect("a bind has a table").to_owned(), bind)
            })
            .collect()
    }
}

/// One row of `lockservice binds`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BindRow {
    /// The bind's version.
    pub version: u64,
    /// The incarnation that owns it.
    pub owner: u64,
    /// `bound`, or `waiting` to be reassigned.
    pub state: String,
}

impl Server {
    /// The process.
    ///
    /// # Panics
    /// If it has ended.
    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a child can be signalled");
    }

    /// Kills it, and waits until it has ended.
    ///
    /// # Panics
    /// If it had ended before: then something else is wrong.
    pub async fn kill(mut self) {
        let ended = self.child.try_wait().expect("a child can be waited for");
        assert!(
            ended.is_none(),
            "the server had ended by itself, with {ended:?}: {}",
            text_of(&self.stderr)
        );
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Stops it in order, and waits until it has ended.
    pub async fn stop(mut self) -> ExitStatus {
        self.stop_in_order().await
    }

    /// As [`stop`](Self::stop), for those who want to read its log afterwards.
    pub async fn stop_in_order(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Waits until it has ended, which it does by itself.
    pub async fn ends_by_itself(&mut self) -> ExitStatus {
        self.ended().await
    }

    async fn ended(&mut self) -> ExitStatus {
        within("the server ends", self.child.wait()).await.expect("a child can be waited for")
    }

    /// Everything that it wrote to stderr so far.
    pub fn log(&self) -> String {
        text_of(&self.stderr)
    }
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A free port on loopback, below those that the kernel gives to clients: a client that connects
/// while the server is down could be given the server's own port otherwise, and talk to itself.
pub fn free_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number =
            std::process::id().wrapping_mul(7_919).wrapping_add(NEXT.fetch_add(1, Relaxed));
        let address = format!("127.0.0.1:{}", 12_000 + number % 18_000);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}
