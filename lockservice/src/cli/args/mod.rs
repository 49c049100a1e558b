//! The arguments of the command line, parsed once into types that cannot be wrong.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the commands, and the arguments of the short ones |
//! | `serve`, `lock`, `store`, `certs`, `bench` | the arguments of these commands |
//! | `hot` | the arguments of `hot` and `top` |
//! | `kill` | the arguments of `session kill`, `txn kill` and `lock force-release` |
//! | `credentials` | what a client trusts and shows |
//! | `supervise` | the arguments of the hidden commands of `lock` |

mod bench;
mod certs;
mod credentials;
mod hot;
mod kill;
mod lock;
mod serve;
mod store;
mod supervise;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use lockservice_core::{GroupName, Key, NodeName, TableName, TableRef};

use super::exit::Failure;
use crate::client::Client;

pub(crate) use self::bench::{BenchArgs, BenchFloodArgs, BenchServerArgs, Serves};
pub(crate) use self::certs::CertsArgs;
pub(crate) use self::credentials::CredentialArgs;
pub(crate) use self::hot::{HotArgs, TopArgs};
pub(crate) use self::kill::{ForceReleaseArgs, KillArgs, SessionCommand, TxnCommand, with_words};
pub(crate) use self::lock::LockArgs;
pub(crate) use self::serve::ServeArgs;
pub(crate) use self::store::{RestoreArgs, StoreArgs, StoreCommand};
pub(crate) use self::supervise::{ExecArgs, SuperviseArgs, command_line};

// Running text stands in one line each, which clap wraps to the terminal; a line that is indented
// must fit into 80 columns, for it would be wrapped without its indent.

const AFTER_HELP: &str = "\
Examples:
  lockservice serve                            # in ./lockservice.db
  lockservice lock jobs nightly -- ./backup.sh # waits for its turn
  lockservice lock jobs nightly --no-wait -- ./backup.sh # or exits with 75
  lockservice waits                            # who waits for whom

Exit status: 64 wrong usage, 69 no server responds, 70 the lock was lost, 73 a limit of the server \
was reached, 75 the lock was not to be had in time; otherwise that of the COMMAND, or 0. The \
README \
lists them all.";

/// Row and range locks with fencing tokens, for jobs, services and databases.
#[derive(Debug, Parser)]
#[command(name = "lockservice", version, after_help = AFTER_HELP, max_term_width = 120)]
pub(crate) struct Cli {
    /// Print results and errors as JSON, one object a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a server.
    Serve(ServeArgs),
    /// Run a command while holding a lock.
    Lock(LockArgs),
    /// List the locks that are held, or who holds a key and who waits for it.
    Locks(LocksArgs),
    /// List who waits for whom.
    Waits(WaitsArgs),
    /// List which node every lock table is bound to.
    Binds(ClientArgs),
    /// List the sessions, and who has them.
    Sessions(ClusterArgs),
    /// List the transactions.
    Txns(ClusterArgs),
    /// End a session of a client.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Drop a lock table.
    #[command(subcommand)]
    Table(TableCommand),
    /// List the keys of a node for which lock calls waited longest.
    Hot(HotArgs),
    /// Watch a node: its use, rates, hottest keys, longest waits, sessions nearest to a loss.
    Top(TopArgs),
    /// Make a CA and certificates, to try TLS with.
    Certs(CertsArgs),
    /// Make a bearer token for a client or a node.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Check, migrate, dump or restore a store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Measure lock + unlock, in turns with something to compare it with.
    Bench(BenchArgs),
    /// End a transaction of a client, and not its session.
    #[command(subcommand)]
    Txn(TxnCommand),
    /// Take a key away: end the transactions that hold it.
    #[command(name = kill::FORCE_RELEASE)]
    ForceRelease(ForceReleaseArgs),
    #[command(name = "__bench_server", hide = true)]
    BenchServer(BenchServerArgs),
    #[command(name = "__bench_flood", hide = true)]
    BenchFlood(BenchFloodArgs),
    #[command(name = "__supervise", hide = true)]
    Supervise(SuperviseArgs),
    #[command(name = "__exec", hide = true)]
    Exec(ExecArgs),
}

/// The address of the server, and how it is reached.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// The server: HOST:PORT or URL; several nodes of one cluster separated by commas.
    #[arg(long, env = "LOCKSERVICE_SERVER", default_value = "127.0.0.1:7654", value_name = "ADDR")]
    pub(crate) server: String,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

impl ClientArgs {
    /// Connects, with the defaults of a client.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        Ok(self.credentials.client().connect(&self.server).await?)
    }
}

/// The nodes at which a list is made.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Only at this node [default: at every node of the cluster].
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<NodeName>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this table.
    pub(crate) table: Option<TableName>,
    /// The group of the table.
    #[arg(long, default_value = "default", requires = "table")]
    pub(crate) group: GroupName,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LocksArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Only what overlaps this key: who holds it, or a range around it, and who waits for that, in
    /// their order.
    #[arg(value_name = "KEY")]
    key: Option<OsString>,
    /// The same for a key that begins with a hyphen: --key=--x.
    #[arg(long = "key", value_name = "KEY", require_equals = true, requires = "table")]
    #[arg(conflicts_with = "key")]
    hyphenated: Option<OsString>,
}

impl LocksArgs {
    /// The key, if one was named.
    pub(crate) fn key(&self) -> Result<Option<Key>, Failure> {
        let key = self.key.as_ref().or(self.hyphenated.as_ref());
        Ok(key.map(|key| Key::new(key.as_bytes())).transpose()?)
    }
}

#[derive(Debug, Args)]
pub(crate) struct WaitsArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Show who blocks whom: those who wait for nobody first, each followed by those who wait for
    /// it. With --json each line has its depth, and the transaction that it waits for.
    #[arg(long)]
    pub(crate) tree: bool,
}

impl ListArgs {
    /// The table, if one was named.
    pub(crate) fn table(&self) -> Option<TableRef> {
        self.table.as_ref().map(|name| TableRef { group: self.group.clone(), name: name.clone() })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print a new token, and on stderr the line for the identity of its owner: the server gets
    /// only its hash.
    New,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TableCommand {
    /// Forget a table in which nothing is locked, at the node that owns it. A table that is not
    /// used is forgotten by itself in time: see --table-idle of serve.
    Drop(DropArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DropArgs {
    /// The lock table.
    table: TableName,
    /// The group of the table.
    #[arg(long, default_value = "default")]
    group: GroupName,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl DropArgs {
    /// The table.
    pub(crate) fn table(&self) -> TableRef {
        TableRef { group: self.group.clone(), name: self.table.clone() }
    }
}

/// The error for arguments that do not parse, with a tip that helps where clap's own does not:
/// after `--` the command begins, so that no key can stand there.
pub(crate) fn with_tip_for_keys(mut error: clap::Error) -> clap::Error {
    let is_lock = error
        .get(ContextKind::Usage)
        .is_some_and(|usage| usage.to_string().contains("lockservice lock "));
    if let (true, ErrorKind::UnknownArgument, Some(_), Some(ContextValue::String(argument))) = (
        is_lock,
        error.kind(),
        error.get(ContextKind::Suggested),
        error.get(ContextKind::InvalidArg),
    ) {
        let tip = format!("to lock a key that begins with a hyphen, write '--key={argument}'");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// A duration: `500ms`, `30s`, `2m 30s`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write for example 500ms, 30s or 2m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn no_line_of_help_is_wrapped_twice() {
        fn check(command: &clap::Command) {
            for text in
                [command.get_after_help(), command.get_after_long_help()].into_iter().flatten()
            {
                let text = text.to_string();
                let mut before = "";
                for line in text.lines() {
                    if line.starts_with(' ') {
                        assert!(line.chars().count() <= 80, "wrapped at 80 columns: {line:?}");
                    } else {
                        // Running text is wrapped by clap, so a line break ends a paragraph or
                        // opens a list.
                        let goes_on =
                            !line.is_empty() && !before.is_empty() && !before.starts_with(' ');
                        assert!(!goes_on, "wrapped by hand: {before:?} {line:?}");
                    }
                    before = line;
                }
            }
            command.get_subcommands().for_each(check);
        }
        use clap::CommandFactory;
        check(&Cli::command());
    }
}
