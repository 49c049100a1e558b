//! The arguments of `store`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
or of a newer version, 69 the store does not respond, 74 it cannot be read or written, 75 it is in \
use, 78 the settings are wrong.";

const RESTORE_NOTES: &str = "\
Stop the cluster that was dumped, for good, before its dump is restored: two clusters of one dump \
both grant the same locks, and neither store can know of the other. Everything of the old cluster \
is \
invalid in the new one: sessions, leases, binds; tokens and versions only grow. A restore that was \
interrupted leaves a store that no server accepts, until the same restore was run again.";

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

/// The store.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// The store of the binds, as of serve [default: file:./lockservice.db].
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
    #[arg(long, value_name = "EPOCH", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u64).range(..lockservice_core::EPOCH_END))]
    pub(crate) above_epoch: u64,
}
