//! What can be typed. Parsed once, here, into types that cannot be wrong.

use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use lockservice_core::{GroupName, Key, KeyRange, LockItem, TableName, TableRef};

use super::exit::{self, Failure};
use super::settings;

// Running text stands in one line each, which clap wraps to the terminal; a line that is indented
// must fit into 80 columns, for it would be wrapped without its indent.

const AFTER_HELP: &str = "\
Examples:
  lockservice serve                            # in ./lockservice.db
  lockservice lock jobs nightly -- ./backup.sh # waits for its turn
  lockservice lock jobs nightly --no-wait -- ./backup.sh # or exits with 75
  lockservice waits                            # who waits for whom

Exit status: 64 wrong usage, 69 no server answers, 70 the lock was lost, 73 a limit of the server \
was reached, 75 the lock was not to be had in time; otherwise that of the COMMAND, or 0. The \
README \
lists them all.";

const LOCK_EXAMPLES: &str = "\
Examples:
  lockservice lock jobs nightly -- ./backup.sh
  lockservice lock accounts alice bob --timeout 30s -- ./transfer alice bob
  lockservice lock accounts --range a m --shared -- ./report
  lockservice lock accounts --range '' '' -- ./migrate    # the whole table
  lockservice lock files --key=--force -- ./archive       # a key like an option

A key that begins with a dash is given as --key=KEY, such an end of a range as --from=KEY or \
--to=KEY.

The command finds the lock's fencing token in LOCKSERVICE_TOKEN, what is locked in \
LOCKSERVICE_GROUP, LOCKSERVICE_TABLE and LOCKSERVICE_KEYS (rows one a line, or FROM, a line break \
and TO). It and all that it starts, also in the background or as a daemon, is ended when the lock \
is lost: with SIGTERM, and with SIGKILL before anybody else can have the lock. What is left when \
the command has ended gets the stop time to end, and is then killed, before the lock is released. \
Signals that the caller ignores or blocks stay so in the command, but for SIGPIPE, which always \
ends \
it (a command that is to ignore it says so itself: trap '' PIPE).

Exit status: that of the COMMAND (128 + n if signal n ended it; the same signal, if it was sent to \
lockservice), or
  64   wrong usage, or a lock that a command around this one holds: use that one
  69   no server answers
  70   the lock was lost and the command was ended; or as --lost-exit-code says
  71   something of the command could not be ended, or the system refused it
  73   a limit of the server was reached: ask for less, or raise the limit
  74   the server cannot write its store
  75   the lock was not to be had in time; or as --conflict-exit-code says
  126  the command cannot be run
  127  the command or its interpreter was not found
With --json an error is one object on stderr, whose `kind` tells them apart for certain.";

const STORE_EXAMPLES: &str = "\
Examples:
  lockservice store check --store file:./lockservice.db
  lockservice store dump --store file:./lockservice.db >binds.dump
  lockservice store restore --store postgres://locks@db/app --input binds.dump
  lockservice store migrate --store postgres://locks@db/app

A file or RocksDB store is open to one process at a time: stop its server first. PostgreSQL and \
Redis are read while the cluster runs. A password in --store can be read by every user of the \
machine (ps): see `lockservice serve --help` for other places.

Exit status: 0 done, 1 the store has problems, 64 wrong usage, 65 the store or the dump is damaged \
or of a newer version, 69 the store does not answer, 74 it cannot be read or written, 75 it is in \
use, 78 the settings are wrong.";

const RESTORE_NOTES: &str = "\
Stop the cluster that was dumped, for good, before its dump is restored: two clusters of one dump \
both grant the same locks, and neither store can know of the other. Everything of the old cluster \
is \
void in the new one: sessions, leases, binds; tokens and versions only grow. A restore that was \
interrupted leaves a store that no server accepts, until the same restore was run again.";

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
    /// List the locks that are held at a node.
    Locks(ListArgs),
    /// List who waits for whom at a node.
    Waits(ListArgs),
    /// List which node every lock table is bound to.
    Binds(ClientArgs),
    /// Drop a lock table.
    #[command(subcommand)]
    Table(TableCommand),
    /// Check, migrate, dump or restore a store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Measure lock + unlock beside an echo on a bare gRPC stream.
    Bench(BenchArgs),
    #[command(name = "__supervise", hide = true)]
    Supervise(SuperviseArgs),
    #[command(name = "__exec", hide = true)]
    Exec(ExecArgs),
}

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// The server: HOST:PORT or URL; several nodes of one cluster separated by commas.
    #[arg(long, env = "LOCKSERVICE_SERVER", default_value = "127.0.0.1:7654", value_name = "ADDR")]
    pub(crate) server: String,
}

const SERVE_NOTES: &str = "\
Every setting can stand in the TOML file of --config (listen, store, node, …), or in the \
environment \
(LOCKSERVICE_LISTEN, …, LOCKSERVICE_ALLOCATOR__TABLES_MAX for a key of a section). Flags go before \
the environment, and that before the file. A variable that is empty is not set.

A password in --store can be read by every user of the machine (ps). Give the URL as \
LOCKSERVICE_STORE instead, or as `store` in a --config file that only this user may read. For \
PostgreSQL the URL can do without it: PGPASSWORD, or the password file of PGPASSFILE (~/.pgpass).

The first SIGINT or SIGTERM stops the server in order: its locks are given up, and the next start \
need not wait. Another one, a second later or more, stops it at once. SIGHUP means that the \
terminal \
has gone if the server was started from one; else it changes nothing. RUST_LOG says what is logged \
to stderr (warn); lines that nobody reads are dropped and counted.

Exit status: 0 stopped in order, 64 wrong usage, 65 the store is damaged or of a newer version, 69 \
the store does not answer, or stopped at once, 70 the service failed, 71 the operating system \
refused something, 74 the store cannot be read or written, 75 it is in use, 78 the settings are \
wrong.

Examples:
  lockservice serve
  lockservice serve --store rocks:/var/lib/lockservice --node a
  lockservice serve --store memory:    # for one process; forgets everything

`lockservice serve --help` lists every setting; -h only these lines.";

#[derive(Debug, Default, Args)]
#[command(after_help = SERVE_NOTES, after_long_help = format!("{SERVE_NOTES}\n\n{}", settings::help()))]
pub(crate) struct ServeArgs {
    /// Address to listen on [default: 127.0.0.1:7654].
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where clients reach this node, HOST:PORT [default: the address it listens on].
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Address to listen on for other nodes, which own the cluster [default: 127.0.0.1, the port
    /// after that of --listen].
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer_listen: Option<String>,
    /// Where other nodes reach this one, HOST:PORT [default: the address it listens on for them].
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer_advertise: Option<String>,
    /// Where bindings are kept: file:PATH, rocks:PATH, postgres://…, redis://… or memory:
    /// [default: file:./lockservice.db]. For one with a password see below.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Name of this node, the same over its restarts [default: the machine's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// A TOML file with settings.
    #[arg(long, env = "LOCKSERVICE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Serve addresses other than loopback although there is neither encryption nor a password.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// How long a node that fell silent keeps its tables, for example 5s [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) lease_ttl: Option<Duration>,
    /// How long to wait at the start for the store and for a leader, for example 60s
    /// [default: without an end].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) start_timeout: Option<Duration>,
    /// How long a client that fell silent keeps its locks if it asks for nothing else
    /// [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) session_ttl: Option<Duration>,
    /// How long a table is kept in which nothing is locked, for example 12h; 0 for ever [default:
    /// 1d].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) table_idle: Option<Duration>,
}

impl ServeArgs {
    /// The flags that were given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        [
            ("--listen", self.listen.is_some()),
            ("--advertise", self.advertise.is_some()),
            ("--peer-listen", self.peer_listen.is_some()),
            ("--peer-advertise", self.peer_advertise.is_some()),
            ("--store", self.store.is_some()),
            ("--node", self.node.is_some()),
            ("--config", self.config.is_some()),
            ("--insecure", self.insecure),
            ("--lease-ttl", self.lease_ttl.is_some()),
            ("--start-timeout", self.start_timeout.is_some()),
            ("--session-ttl", self.session_ttl.is_some()),
            ("--table-idle", self.table_idle.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some(flag))
        .collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = LOCK_EXAMPLES, override_usage = "lockservice lock [OPTIONS] TABLE (KEY… | \
    --range FROM TO) -- COMMAND…")]
pub(crate) struct LockArgs {
    /// The lock table.
    pub(crate) table: TableName,
    /// The keys, all or none of which are locked.
    #[arg(value_name = "KEY", required_unless_present_any = ["more_keys", "range", "from", "to"])]
    pub(crate) keys: Vec<OsString>,
    /// One more key, which may begin with a hyphen: --key=--x.
    #[arg(long = "key", value_name = "KEY", require_equals = true)]
    pub(crate) more_keys: Vec<OsString>,
    /// A range of keys, FROM and TO inside; an empty one is open.
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"], allow_hyphen_values = true)]
    #[arg(conflicts_with_all = ["keys", "more_keys", "from", "to"])]
    pub(crate) range: Option<Vec<OsString>>,
    /// The first key of a range; open without it.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true, conflicts_with_all = ["keys", "more_keys"])]
    pub(crate) from: Option<OsString>,
    /// The last key of a range; open without it.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true, conflicts_with_all = ["keys", "more_keys"])]
    pub(crate) to: Option<OsString>,
    /// The group of the table.
    #[arg(long, default_value = "default")]
    pub(crate) group: GroupName,
    /// Let other sharers in; the default is to be alone.
    #[arg(long)]
    pub(crate) shared: bool,
    /// How long to wait for the lock, for example 30s [default: as long as the server allows].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Do not wait: exit with 75 if the lock is not free.
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) no_wait: bool,
    /// Exit with this status, instead of 75, if the lock was not to be had in time.
    #[arg(short = 'E', long, value_name = "N")]
    pub(crate) conflict_exit_code: Option<u8>,
    /// Exit with this status, instead of 70, if the lock was lost.
    #[arg(long, value_name = "N")]
    pub(crate) lost_exit_code: Option<u8>,
    /// Do not say whom the lock is waited for.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How long the server keeps the lock if this process falls silent
    /// [default: the server's, 10s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) ttl: Option<Duration>,
    /// How long the command may take to end when the lock is lost
    /// [default: a tenth of the time that the lock is valid for, at most 1s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) stop_time: Option<Duration>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

impl LockArgs {
    /// The table and what is to be locked in it.
    pub(crate) fn target(&self) -> Result<(TableRef, Vec<LockItem>), Failure> {
        let table = TableRef { group: self.group.clone(), name: self.table.clone() };
        let items = match self.ends()? {
            Some([from, to]) => vec![LockItem::Range(KeyRange::new(bound(from)?, bound(to)?)?)],
            None => {
                let row = |key: &OsString| -> Result<LockItem, Failure> {
                    Ok(LockItem::Row(Key::new(bytes(key))?))
                };
                self.keys.iter().chain(&self.more_keys).map(row).collect::<Result<_, _>>()?
            }
        };
        Ok((table, items))
    }

    /// Both ends of the range, as they were typed, if it is a range.
    fn ends(&self) -> Result<Option<[&OsStr; 2]>, Failure> {
        let Some([from, to]) = self.range.as_deref() else {
            let is_range = self.from.is_some() || self.to.is_some();
            return Ok(is_range
                .then(|| [&self.from, &self.to].map(|end| end.as_deref().unwrap_or_default())));
        };
        if let Some(end) =
            [from, to].into_iter().find(|end| end.as_encoded_bytes().starts_with(b"--"))
        {
            let end = end.to_string_lossy();
            return Err(Failure::usage(format!(
                "--range takes {end:?} as an end of the range: give both ends, '' for an open \
                 one; an end that really begins \
                 so is given as --from={end} or --to={end}"
            )));
        }
        Ok(Some([from, to]))
    }

    /// What is locked, for the command: rows one a line, or both ends of the range.
    pub(crate) fn keys_for_command(&self) -> OsString {
        let parts: Vec<&OsStr> = match self.ends() {
            Ok(Some(ends)) => ends.to_vec(),
            _ => self.keys.iter().chain(&self.more_keys).map(OsString::as_os_str).collect(),
        };
        parts.join(OsStr::new("\n"))
    }

    /// The failure with the exit status that was asked for instead of ours.
    pub(crate) fn with_own_status(&self, failure: Failure) -> Failure {
        let status = match failure.status {
            exit::NOT_NOW => self.conflict_exit_code,
            exit::LOST => self.lost_exit_code,
            _ => None,
        };
        Failure { status: status.unwrap_or(failure.status), ..failure }
    }
}

fn bytes(text: &OsStr) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn bound(text: &OsStr) -> Result<Bound<Key>, Failure> {
    Ok(if text.is_empty() { Bound::Unbounded } else { Bound::Included(Key::new(bytes(text))?) })
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this table.
    pub(crate) table: Option<TableName>,
    /// The group of the table.
    #[arg(long, default_value = "default", requires = "table")]
    pub(crate) group: GroupName,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl ListArgs {
    /// The table, if one was named.
    pub(crate) fn table(&self) -> Option<TableRef> {
        self.table.as_ref().map(|name| TableRef { group: self.group.clone(), name: name.clone() })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TableCommand {
    /// Forget a table in which nothing is locked, at the node that owns it. A table that nobody
    /// uses is forgotten by itself in time: see --table-idle of serve.
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

#[derive(Debug, Subcommand)]
#[command(after_help = STORE_EXAMPLES)]
pub(crate) enum StoreCommand {
    /// Read everything and say what is wrong. Changes nothing; exits with 1 if there are problems.
    Check(StoreArgs),
    /// Bring the store to the format of this version.
    Migrate(StoreArgs),
    /// Write everything to standard output, as JSON lines.
    Dump(StoreArgs),
    /// Write a dump into an empty store, of any kind.
    Restore(RestoreArgs),
}

/// Which store.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Where bindings are kept, as of serve [default: file:./lockservice.db].
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// A TOML file with settings, as of serve.
    #[arg(long, env = "LOCKSERVICE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = RESTORE_NOTES)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// The dump [default: standard input].
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// An epoch that the old cluster reached after the dump was made, if it may have led more than
    /// 1,024 times since.
    #[arg(long, value_name = "EPOCH", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..lockservice_core::EPOCH_END))]
    pub(crate) above_epoch: u64,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// How many callers, all in one process and on one session; one run for each number.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) callers: Vec<u32>,
    /// How many seconds each run lasts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
    /// The server: HOST:PORT or URL. Without it one is started in this process, in memory.
    #[arg(long, env = "LOCKSERVICE_SERVER", value_name = "ADDR")]
    pub(crate) server: Option<String>,
}

/// The supervisor's arguments: see `supervise`.
#[derive(Debug, Args)]
pub(crate) struct SuperviseArgs {
    #[arg(long)]
    pub(crate) parent: i32,
    #[arg(long)]
    pub(crate) deadline_ns: u64,
    #[arg(long)]
    pub(crate) stop_ms: u64,
    #[arg(long, value_delimiter = ',')]
    pub(crate) blocked: Vec<i32>,
    #[arg(long)]
    pub(crate) json: bool,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// The arguments of the last step before the command: see `supervise`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[arg(long)]
    pub(crate) parent: i32,
    #[arg(long, value_delimiter = ',')]
    pub(crate) blocked: Vec<i32>,
    #[arg(long)]
    pub(crate) json: bool,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// The command lines of the hidden commands, up to and with the `--` before the command.
pub(crate) mod command_line {
    use rustix::process::Pid;

    use crate::cli::supervise::Job;

    pub(crate) fn supervise(parent: Pid, job: &Job<'_>) -> Vec<String> {
        let mut args = vec![
            "__supervise".to_owned(),
            format!("--deadline-ns={}", job.deadline.since_origin().as_nanos()),
            format!("--stop-ms={}", job.stop_time.as_millis()),
        ];
        args.extend(common(parent, job.blocked, job.json));
        args
    }

    pub(crate) fn exec(parent: Pid, blocked: &[i32], json: bool) -> Vec<String> {
        std::iter::once("__exec".to_owned()).chain(common(parent, blocked, json)).collect()
    }

    fn common(parent: Pid, blocked: &[i32], json: bool) -> Vec<String> {
        let mut args = vec![format!("--parent={}", parent.as_raw_nonzero())];
        args.extend(blocked.iter().map(|signal| format!("--blocked={signal}")));
        args.extend(json.then(|| "--json".to_owned()));
        args.push("--".to_owned());
        args
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

/// A duration as people write it: `500ms`, `30s`, `2m 30s`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
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

    fn target(args: &[&str]) -> Result<String, Failure> {
        let line = [&["lockservice", "lock", "t"], args, &["--", "true"]].concat();
        let cli = Cli::try_parse_from(line).map_err(|error| Failure::usage(error.to_string()))?;
        let Command::Lock(args) = cli.command else { panic!("lock") };
        let (_, items) = args.target()?;
        Ok(items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn an_end_of_a_range_that_is_empty_is_open() {
        assert_eq!(target(&["--range", "", "m"]).unwrap(), "(-∞, m]");
        assert_eq!(target(&["--from", "a"]).unwrap(), "[a, +∞)");
        assert_eq!(target(&["--from=a", "--to="]).unwrap(), "[a, +∞)");
    }

    #[test]
    fn an_option_is_not_taken_for_an_end_and_a_key_like_an_option_can_be_given() {
        let refused = target(&["--range", "", "--no-wait"]).unwrap_err();
        assert!(
            refused.status == exit::USAGE && refused.sentence.contains("--to=--no-wait"),
            "{}",
            refused.sentence
        );
        assert!(target(&["--range", "--shared", "a"]).is_err());
        assert_eq!(target(&["--range", "-a", "-b"]).unwrap(), "[-a, -b]");
        assert_eq!(target(&["--from=--a", "--to=--b"]).unwrap(), "[--a, --b]");
        assert_eq!(target(&["a", "--key=--x", "--key=-y"]).unwrap(), "a --x -y");
        for both in [
            &["a", "--from", "b"][..],
            &["--key=a", "--range", "a", "b"],
            &["--range", "a", "b", "--to", "c"],
        ] {
            assert!(target(both).is_err(), "{both:?}");
        }
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

    #[test]
    fn the_commands_own_status_and_ours_can_be_told_apart() {
        let cli = Cli::try_parse_from([
            "lockservice",
            "lock",
            "t",
            "k",
            "-E",
            "1",
            "--lost-exit-code=2",
            "--",
            "true",
        ]);
        let Command::Lock(args) = cli.unwrap().command else { panic!("lock") };
        let with = |status| args.with_own_status(Failure::new(status, "kind", "why")).status;
        assert_eq!([exit::NOT_NOW, exit::LOST, exit::USAGE].map(with), [1, 2, exit::USAGE]);
    }
}
