//! The arguments of the commands with which an operator ends the work of others.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use clap::{Args, Subcommand};
use lockservice_core::{GroupName, Key, SessionHandle, TableName, TableRef, TxnId};

use super::ClientArgs;
use crate::cli::exit::Failure;

/// The name of the command `lock force-release`, as one word: see [`with_words`].
pub(super) const FORCE_RELEASE: &str = "lock force-release";

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// End a session, as if it had lapsed. Its client is told to stop its work. Its locks go to
    /// others once the client has confirmed that, or its time has run out, which the command waits
    /// for.
    Kill {
        /// The session, from the list of sessions.
        #[arg(value_name = "HANDLE")]
        session: SessionHandle,
        #[command(flatten)]
        how: KillArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TxnCommand {
    /// End a transaction; its session goes on. Its client is told to stop the work under its locks.
    /// They go to others once the client has confirmed that, or its time has run out, which the
    /// command waits for.
    Kill {
        /// The transaction, from the list of transactions or of locks.
        #[arg(value_name = "TXN")]
        txn: TxnId,
        #[command(flatten)]
        how: KillArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Why: the client and the server's log get to read it.
    #[arg(long)]
    pub(crate) reason: String,
    /// Release the locks at once. The client may still be working under them.
    #[arg(long)]
    pub(crate) now: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

const FORCE_RELEASE_NOTES: &str = "\
Every transaction that holds the key, or a range around it, is ended, with all that it holds: as \
by `lockservice txn kill`. If nothing holds the key, that is said, and the exit status is 0.

A table that is named force-release is locked as any other: \
lockservice lock force-release KEY -- COMMAND.";

#[derive(Debug, Args)]
#[command(after_help = FORCE_RELEASE_NOTES)]
pub(crate) struct ForceReleaseArgs {
    /// The lock table.
    pub(crate) table: TableName,
    /// The key.
    #[arg(required_unless_present = "other_key")]
    key: Option<OsString>,
    /// The key, which may begin with a hyphen: --key=--x.
    #[arg(long = "key", value_name = "KEY", require_equals = true, conflicts_with = "key")]
    other_key: Option<OsString>,
    /// The group of the table.
    #[arg(long, default_value = "default")]
    pub(crate) group: GroupName,
    #[command(flatten)]
    pub(crate) how: KillArgs,
}

impl ForceReleaseArgs {
    /// The table and the key.
    pub(crate) fn target(&self) -> Result<(TableRef, Key), Failure> {
        let key = self.key.as_ref().or(self.other_key.as_ref());
        let key = Key::new(key.map_or(&[][..], |key| key.as_bytes()))?;
        Ok((TableRef { group: self.group.clone(), name: self.table.clone() }, key))
    }
}

/// The arguments of the process, with `lock force-release` as the one word that names the command,
/// unless it is `lock` of a table with that name: then its own COMMAND follows `--`.
pub(crate) fn with_words(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let mut words = FORCE_RELEASE.split(' ').map(OsStr::new);
    let (lock, release) = (words.next(), words.next());
    // `--json` is the one option that may come before a command or within it.
    let is_word = |arg: &&OsString| *arg != OsStr::new("--json");
    let mut named = (1..).zip(args.iter().skip(1)).filter(|(_, arg)| is_word(arg));
    let (first, second) = (named.next(), named.next());
    let is_it = first.is_some_and(|(_, arg)| Some(&**arg) == lock)
        && second.is_some_and(|(_, arg)| Some(&**arg) == release)
        && !args.iter().any(|arg| *arg == OsStr::new("--"));
    if let (true, Some((first, _)), Some((second, _))) = (is_it, first, second) {
        args.remove(second);
        args[first] = FORCE_RELEASE.into();
    }
    args
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(with_words(line.split(' ').map(OsString::from)))
    }

    #[test]
    fn a_key_is_taken_away_and_a_table_of_the_same_name_can_be_locked() {
        for line in [
            "lockservice lock force-release t k --reason x",
            "lockservice --json lock force-release t k --reason x --now",
            "lockservice lock --json force-release t --key=k --reason x",
        ] {
            let Command::ForceRelease(args) = parse(line).unwrap().command else {
                panic!("{line}")
            };
            let (table, key) = args.target().unwrap();
            assert_eq!((table.name.as_str(), key.as_bytes()), ("t", &b"k"[..]), "{line}");
        }
        for line in [
            "lockservice lock force-release k -- true",
            "lockservice lock force-release k --timeout 5s -- lock force-release",
        ] {
            let Command::Lock(args) = parse(line).unwrap().command else { panic!("{line}") };
            assert_eq!(args.table.as_str(), "force-release", "{line}");
        }
        let Command::Lock(args) =
            parse("lockservice lock t force-release -- true").unwrap().command
        else {
            panic!("lock")
        };
        assert_eq!(args.keys, ["force-release"]);
        for bad in [
            "lockservice lock force-release t k",
            "lockservice lock force-release t --reason x",
            "lockservice lock force-release t k --key=l --reason x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let help = parse("lockservice lock force-release --help").unwrap_err().to_string();
        assert!(help.contains("lockservice lock force-release [OPTIONS] --reason"), "{help}");
    }
}
