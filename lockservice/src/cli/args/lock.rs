//! The arguments of `lock`.

use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use clap::Args;
use lockservice_core::{GroupName, Key, KeyRange, LockItem, LockMode, TableName, TableRef};

use super::{ClientArgs, duration};
use crate::cli::exit::{self, Failure};

const LOCK_EXAMPLES: &str = "\
Examples:
  lockservice lock jobs nightly -- ./backup.sh
  lockservice lock accounts alice bob --timeout 30s -- ./transfer alice bob
  lockservice lock accounts --range a m --shared -- ./report
  lockservice lock accounts --range '' '' -- ./migrate    # the whole table
  lockservice lock files --key=--force -- ./archive       # a key like an option

A key that begins with a dash is given as --key=KEY, such an end of a range as --from=KEY or \
--to=KEY.

`lockservice lock force-release TABLE KEY` takes a key away from others: see its --help.

The command finds the lock's fencing token in LOCKSERVICE_TOKEN, what is locked in \
LOCKSERVICE_GROUP, LOCKSERVICE_TABLE and LOCKSERVICE_KEYS (rows one a line, or FROM, a line break \
and TO). It runs on while its server cannot be reached or is restarted, for as long as the lock \
stays safe. It and all that it starts, also in the background or as a daemon, is ended when the \
lock is lost: with SIGTERM, and with SIGKILL before another can have the lock. What is left when \
the command has ended gets the stop time to end, and is then killed, before the lock is released. \
Signals that the caller ignores or blocks stay so in the command, but for SIGPIPE, which always \
ends \
it (a command that is to ignore it says so itself: trap '' PIPE).

By default a network, a laptop with a closed lid or the server may be away for 5s at any moment, \
and for 8s just after a renewal, before the command is ended: two thirds of --ttl, less the stop \
time and margins for the clocks; a --ttl above the lease of the server gives no more than that.

Exit status: that of the COMMAND (128 + n if signal n ended it; the same signal, if it was sent to \
lockservice), or
  64   wrong usage, or a lock that a command around this one holds: use that one
  69   no server responds
  70   the lock was lost and the command was ended; or as --lost-exit-code says
  71   something of the command could not be ended, or the system refused it
  73   a limit of the server was reached: request less, or raise the limit
  74   the server cannot write its store
  75   the lock was not to be had in time; or as --conflict-exit-code says
  126  the command cannot be run
  127  the command or its interpreter was not found
With --json an error is one object on stderr, whose `kind` distinguishes them for certain.";

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
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    #[arg(conflicts_with_all = ["keys", "more_keys"])]
    pub(crate) from: Option<OsString>,
    /// The last key of a range; open without it.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    #[arg(conflicts_with_all = ["keys", "more_keys"])]
    pub(crate) to: Option<OsString>,
    /// The group of the table.
    #[arg(long, default_value = "default")]
    pub(crate) group: GroupName,
    /// Let other sharers in; the default is to be alone.
    #[arg(long)]
    pub(crate) shared: bool,
    /// Let sharers in, and no other that may write later.
    #[arg(long, conflicts_with = "shared")]
    pub(crate) update: bool,
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
    /// Do not say whom the lock is waited for, nor that the connection is lost and back.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How long the server keeps the lock if this process falls silent, and the command runs on
    /// without its server, up to the server's lease [default: the server's, 10s].
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
    /// The table, and the items to lock in it.
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

    /// The mode of the lock.
    pub(crate) fn mode(&self) -> LockMode {
        match (self.shared, self.update) {
            (true, _) => LockMode::Shared,
            (false, true) => LockMode::Update,
            (false, false) => LockMode::Exclusive,
        }
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

    /// The locked keys, for the command: rows one a line, or both ends of the range.
    pub(crate) fn keys_for_command(&self) -> OsString {
        let parts: Vec<&OsStr> = match self.ends() {
            Ok(Some(ends)) => ends.to_vec(),
            _ => self.keys.iter().chain(&self.more_keys).map(OsString::as_os_str).collect(),
        };
        parts.join(OsStr::new("\n"))
    }

    /// The failure, with the exit status that the user chose instead of ours.
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

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
    fn the_commands_own_status_and_ours_can_be_distinguished() {
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
