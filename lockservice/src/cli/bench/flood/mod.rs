//! `bench --flood`: how much longer the cycles of callers take while another client floods the
//! server.
//!
//! The server is one that is started for this. In each round the callers have a turn beside a flood
//! and one without. The flood comes from a process of its own and from another address of loopback,
//! so that it is another client than the callers. It runs at a low priority: what counts is the
//! time of the server that it takes, and not that of the processor that it needs itself.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the turns with and without the flood |
//! | `flooder.rs` | the process that floods |

mod flooder;

use std::process::Stdio;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

pub(crate) use self::flooder::flood;
use super::locks::Locks;
use super::report::{Run, RunSide};
use super::side::Side as _;
use super::stop::Stop;
use super::turn::{self, Looping};
use crate::cli::args::BenchArgs;
use crate::cli::exit::{Failure, say_note};
use crate::cli::output::Output;

/// The priority of the flood: it gets a tenth of a processor that others want too.
const NICE: &str = "10";

/// The longest time that a flood may take to begin, or to end.
const PHASE_MAX: Duration = Duration::from_secs(20);

/// Measures every run, and prints it as it ends.
pub(super) async fn measure(args: &BenchArgs, stop: &Stop, json: bool) -> Result<(), Failure> {
    let output = Output::new(json);
    let locks = Locks::open(None, &args.credentials).await?;
    let mut result = Ok(());
    'runs: for &workload in &args.workloads {
        for &callers in &args.callers {
            let side = |name| RunSide { name, server: locks.server().clone(), turns: Vec::new() };
            let sides = vec![side("flooded"), side("quiet")];
            let mut run = Run { workload, callers, turn: args.turn(), sides };
            let ended = rounds(args.rounds, &locks, stop, &mut run, json).await;
            // Finished rounds are printed even if the run fails.
            if run.rounds() > 0 {
                output.line(&if json { run.json() } else { run.text() })?;
            }
            result = ended.map_err(Failure::from);
            if result.is_err() || stop.is_requested() {
                break 'runs;
            }
        }
    }
    let closed = Box::new(locks).close().await.map_err(Failure::from);
    result.and(closed)
}

async fn rounds(count: u32, locks: &Locks, stop: &Stop, run: &mut Run, json: bool) -> Result<()> {
    let mut callers = turn::callers(locks, run.workload, run.callers).await?;
    for _ in 0..count {
        let Some(figures) = flooded(locks, &mut callers, stop, run, json).await? else { break };
        let Some(quiet) = turn::turn(locks, &mut callers, run.turn, stop).await? else { break };
        for (side, turn) in run.sides.iter_mut().zip([figures, quiet]) {
            side.turns.push(turn);
        }
    }
    turn::say_goodbye(callers).await;
    Ok(())
}

/// One turn beside a flood. `None` if the end was requested meanwhile.
async fn flooded(
    locks: &Locks,
    callers: &mut Vec<Looping>,
    stop: &Stop,
    run: &Run,
    json: bool,
) -> Result<Option<super::stats::Figures>> {
    let Some(address) = locks.own_address() else {
        return Err(failed("there is no server of its own to flood"));
    };
    let flood = Flood::start(address).await?;
    let figures = turn::turn(locks, callers, run.turn, stop).await;
    let done = flood.stop().await?;
    say_note(json, &format!("the flood: {done}"));
    // What it has left behind is cleared away before the quiet turn.
    locks.await_alone(PHASE_MAX).await?;
    figures
}

/// A process that floods. Killed if it is dropped.
struct Flood {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Flood {
    /// Starts one, and waits until it floods.
    async fn start(address: &str) -> Result<Self> {
        let unstarted = |error| failed("cannot start a flood").with_source(error);
        let mut child = Command::new("/proc/self/exe")
            .arg0("lockservice")
            .args(["__bench_flood", address, "--nice", NICE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(unstarted)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("a flood has no pipes"));
        };
        let mut lines = BufReader::new(stdout).lines();
        next_line(&mut lines).await?;
        Ok(Self { child, stdin, lines })
    }

    /// Ends it. Returns what it says that it did.
    async fn stop(self) -> Result<String> {
        let Self { mut child, stdin, mut lines } = self;
        drop(stdin);
        let mut done = next_line(&mut lines).await?;
        if let Ok(Some(last)) = lines.next_line().await {
            // The first said that a limit was reached.
            done = last;
        }
        // One that does not end is killed when it is dropped.
        drop(tokio::time::timeout(PHASE_MAX, child.wait()).await);
        Ok(done)
    }
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    match tokio::time::timeout(PHASE_MAX, lines.next_line()).await {
        Ok(Ok(Some(line))) => Ok(line),
        _ => Err(failed("a flood ended, or says nothing")),
    }
}

fn failed(message: &str) -> Error {
    Error::new(ErrorKind::Internal, message)
}
