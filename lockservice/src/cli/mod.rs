//! The `lockservice` command.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the parsing of the arguments, and the command that they name |
//! | `args/` | the arguments of every command |
//! | `config/` | settings from the command line, the environment and a file |
//! | `serve.rs, node.rs` | `serve`: a server, and the start and stop of its node |
//! | `starting.rs`, `node_state.rs` | what a start waits for; what the next process needs to know |
//! | `lock/, outer.rs` | `lock`: a command that runs under a lock, also inside another one |
//! | `supervise/` | the processes that end the command with its lock |
//! | `signals.rs` | the signals that the wrapper takes for its command |
//! | `patience.rs, waiting.rs` | the deadline until the lock is held, and the messages of a waiter |
//! | `list.rs` | `locks`, `waits`, `binds`, `sessions`, `txns`: the lists for an operator |
//! | `kill.rs, table.rs` | `session`, `table`: the other commands of an operator |
//! | `store.rs` | `store check`, `migrate`, `dump`, `restore` |
//! | `certs.rs`, `token.rs` | `certs`: a CA and certificates to try TLS with; `token`: bearer tokens |
//! | `bench/` | `bench`, and the systems that it compares with |
//! | `output.rs, sink.rs, exit.rs` | results on stdout, lines on stderr, exit statuses |
//! | `settings.rs` | the text of `serve --help` about every setting |
//! | `monitoring.rs` | the listener for metrics and health |
//! | `traces.rs` | the export of traces |
//! | `limits.rs` | the number of files that the process may have open |

mod args;
mod bench;
mod certs;
mod config;
mod exit;
mod kill;
mod limits;
mod list;
mod lock;
mod log;
mod memory;
mod monitoring;
mod node;
mod node_state;
mod outer;
mod output;
mod patience;
mod serve;
mod settings;
mod signals;
mod sink;
mod starting;
mod store;
mod supervise;
mod table;
mod token;
#[cfg(feature = "otel")]
mod traces;
mod waiting;

use std::ffi::OsStr;
use std::future::Future;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::error::ErrorKind as ClapKind;
use clap::{CommandFactory as _, FromArgMatches as _};

use self::args::{Cli, Command};
#[cfg(feature = "fuzzing")]
pub(crate) use self::config::fuzz_settings;
use self::exit::Failure;

/// Runs the command that the process's arguments name, and returns its exit status.
///
/// The caller must be the main thread, before any other thread is started.
pub fn main() -> ExitCode {
    let status = run();
    // Lines are written by a thread, which ends with the process.
    sink::flush();
    status
}

fn run() -> ExitCode {
    let parsed = without_empty_variables(Cli::command())
        .try_get_matches()
        .and_then(|found| Cli::from_arg_matches(&found));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return refuse(&args::with_tip_for_keys(error)),
    };
    let json = cli.json;
    if json {
        sink::use_json();
    }
    let result = match &cli.command {
        // These two stay single-threaded and without a runtime: the first is the last process to
        // end, and the second becomes the command.
        Command::Supervise(args) => return supervise::supervise(args),
        Command::Exec(args) => return supervise::exec(args),
        Command::Serve(args) => serve::run(args, json),
        Command::Lock(args) => block_on(lock::run(args, json))
            .map(lock::End::finish)
            .map_err(|failure| args.with_own_status(failure)),
        Command::Locks(args) => block_on(list::locks(args, json)).map(|()| 0),
        Command::Waits(args) => block_on(list::waits(args, json)).map(|()| 0),
        Command::Binds(args) => block_on(list::binds(args, json)).map(|()| 0),
        Command::Sessions(args) => block_on(list::sessions(args, json)).map(|()| 0),
        Command::Txns(args) => block_on(list::txns(args, json)).map(|()| 0),
        Command::Session(command) => block_on(kill::session(command, json)).map(|()| 0),
        Command::Table(command) => block_on(table::run(command, json)).map(|()| 0),
        Command::Certs(args) => certs::run(args, json).map(|()| 0),
        Command::Token(command) => token::run(command, json).map(|()| 0),
        Command::Store(command) => block_on(store::run(command, json)),
        Command::Bench(args) => bench::run(args, json).map(lock::End::finish),
        Command::BenchServer(args) => bench::serve(args).map(|()| 0),
        Command::BenchFlood(args) => bench::flood(args).map(|()| 0),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.report(json),
    }
}

/// Runs a future on this very thread: the parent-death signal of a child is sent when the thread
/// that started it ends.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(no_runtime)?
        .block_on(future)
}

fn no_runtime(error: std::io::Error) -> Failure {
    Failure::new(
        exit::OS,
        "os",
        format!("cannot start: {error}; check the limits on open files and threads"),
    )
}

/// The same command line, for which an empty variable of the environment is one that is not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| {
            if arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg }
        })
        .mut_subcommands(without_empty_variables)
}

/// Wrong usage, or a request for help.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ClapKind::DisplayHelp | ClapKind::DisplayVersion => {
            // A closed pipe (`--help | head -1`) is no failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        // Arguments did not parse, so `--json` is looked for by hand, up to where the user's own
        // command begins.
        _ if std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json") => {
            sink::use_json();
            let text = error.render().to_string();
            let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let tips = rest.lines().filter_map(|line| line.trim_start().strip_prefix("tip: "));
            let sentence: Vec<&str> =
                std::iter::once(first.trim_start_matches("error: ")).chain(tips).collect();
            Failure::usage(sentence.join("; ")).report(true)
        }
        _ => {
            let _ = error.print();
            ExitCode::from(exit::USAGE)
        }
    }
}
