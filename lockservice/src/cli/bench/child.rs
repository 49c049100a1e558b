//! A server in a process of its own, so that its CPU time is measured apart from that of the
//! callers.
//!
//! It is this program, started once more as the hidden command `__bench_server`. It writes its
//! address to stdout, and serves until its stdin ends. So it ends with this process, however that
//! ends. It is in a process group of its own, where Ctrl-C does not reach it.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use clap::ValueEnum as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::{echo, tcp};
use crate::cli::args::{BenchServerArgs, Serves};
use crate::cli::exit::{self, Failure};
use crate::cli::{memory, serve, signals};

/// The longest time that a server may take to start.
const START_MAX: Duration = Duration::from_secs(10);
/// The longest time that it may take to stop.
const STOP_MAX: Duration = Duration::from_secs(5);

/// A server that runs. Killed if it is dropped.
#[derive(Debug)]
pub(super) struct ServerChild {
    child: Child,
    stdin: ChildStdin,
    /// Its process.
    pub(super) pid: u32,
    /// HOST:PORT.
    pub(super) address: String,
}

impl ServerChild {
    /// Starts one.
    pub(super) async fn start(serves: Serves) -> Result<Self, Failure> {
        Self::start_with(serves, None).await
    }

    /// Starts one with a variable in its environment.
    pub(super) async fn start_with(
        serves: Serves,
        variable: Option<(&str, &str)>,
    ) -> Result<Self, Failure> {
        let failed =
            |why: String| Failure::new(exit::OS, "os", format!("cannot start a server: {why}"));
        let name = serves.to_possible_value().expect("no variant is skipped");
        // `/proc/self/exe` is this very program, even if its file was replaced meanwhile.
        let mut child = Command::new("/proc/self/exe")
            .arg0("lockservice")
            .args(["__bench_server", name.get_name()])
            .envs(variable)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (Some(stdin), Some(stdout), Some(pid)) =
            (child.stdin.take(), child.stdout.take(), child.id())
        else {
            return Err(failed("it has no pipes".to_owned()));
        };
        let mut lines = BufReader::new(stdout).lines();
        match tokio::time::timeout(START_MAX, lines.next_line()).await {
            Ok(Ok(Some(address))) => Ok(Self { child, stdin, pid, address }),
            // The server has written the reason to stderr.
            Ok(Ok(None)) => Err(failed("it ended at once".to_owned())),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("it was not ready within {START_MAX:?}"))),
        }
    }

    /// Stops it in order.
    pub(super) async fn stop(mut self) {
        drop(self.stdin);
        // A server that does not end is killed when it is dropped.
        drop(tokio::time::timeout(STOP_MAX, self.child.wait()).await);
    }
}

/// The hidden command: serves until stdin ends.
pub(crate) fn serve(args: &BenchServerArgs) -> Result<(), Failure> {
    // The benchmark keeps signals blocked for itself, and its child inherits that.
    signals::every().thread_unblock().map_err(|error| crate::cli::no_runtime(error.into()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(crate::cli::no_runtime)?;
    let result = runtime.block_on(async {
        match args.serves {
            Serves::Locks => {
                memory::give_back();
                let server = serve::in_memory().await?;
                say_address(&server.address.to_string());
                end_of_stdin().await;
                server.stop().await
            }
            Serves::Echo => {
                let server = echo::EchoServer::start().await?;
                say_address(&server.address.to_string());
                end_of_stdin().await;
                Ok(())
            }
            Serves::TcpEcho => {
                let server = tcp::TcpEchoServer::start().await?;
                say_address(&server.address.to_string());
                end_of_stdin().await;
                Ok(())
            }
        }
    });
    // The thread that reads stdin may still read, if the server ended by itself.
    runtime.shutdown_background();
    result
}

fn say_address(address: &str) {
    // If stdout has no reader any more, stdin has ended too.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{address}").and_then(|()| out.flush());
}

pub(super) async fn end_of_stdin() {
    let read = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    // An error ends the server too.
    let _ = tokio::task::spawn_blocking(read).await;
}
