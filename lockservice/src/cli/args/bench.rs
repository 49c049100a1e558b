//! The arguments of `bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::CredentialArgs;
use crate::cli::bench::{Beside, Workload};
use crate::cli::exit::Failure;

const BENCH_NOTES: &str = "\
One cycle is lock and unlock. All callers are in this process; each begins its next cycle when the \
last one has ended. The sides take turns (A B A B …), so that what the machine does meanwhile hits \
all of them, and each round gives one ratio of ours to the other side. Printed are the median of \
the rounds, the lowest and the highest.

Workloads:
  rows   each caller locks a row of its own
  hot    all callers lock one and the same row
  mixed  one row of 1,000; every tenth cycle ten neighbours as a shared range
  batch  100 neighbours of 10,000 rows, all or none

Sides:
  lockservice  our client, one session for all callers; an unlock is sent and
               not waited for
  echo         the request goes to a bare gRPC stream and comes back: one stream
               for all callers
  tcp          the same messages as of echo, as frames over plain TCP
  etcd         Lock and Unlock of etcd's own lock service, with a lease for
               each caller, over one HTTP/2 connection; each waits for its
               response. It has neither shared locks, ranges nor several locks
               at once: a range or a batch is all of its rows, exclusively, one
               after the other
  redis        SET NX PX and a script that compares and deletes, over one
               multiplexed connection; where callers meet, an unlock is
               published and wakes a waiter. Redis has neither shared locks nor
               ranges: a range is all of its rows, exclusively
  postgres     rows and hot: advisory locks; mixed and batch: SELECT … FOR
               UPDATE or FOR SHARE in a transaction. A connection for each
               caller. A table is created for mixed and batch, and dropped

CPU is user and system time for each cycle, of this process and of the server's. That of a server \
is read from /proc, if the server is on this machine and not in a container.

A password in --beside can be read by every user of the machine (ps). Give the URL as \
LOCKSERVICE_BESIDE instead. For PostgreSQL the URL can do without it: PGPASSWORD, or the password \
file of PGPASSFILE (~/.pgpass).

Ctrl-C ends the cycles that have begun, prints what was measured so far, and leaves nothing locked.

Examples:
  lockservice bench
  lockservice bench --workload rows,hot,mixed,batch --callers 16
  lockservice bench --beside echo --beside redis://127.0.0.1
  lockservice bench --beside etcd://127.0.0.1:2379
  lockservice bench --beside postgres://me@127.0.0.1/app --callers 16
  lockservice bench --server 127.0.0.1:7654 --rounds 10 --json
  lockservice bench --memory
  lockservice bench --flood --callers 16";

#[derive(Debug, Args)]
#[command(after_help = BENCH_NOTES)]
pub(crate) struct BenchArgs {
    /// Another system to measure beside: echo, tcp, etcd://HOST, redis://HOST
    /// or postgres://USER@HOST/DATABASE. May be given several times.
    #[arg(long, value_name = "SIDE", default_value = "echo")]
    #[arg(env = "LOCKSERVICE_BESIDE", hide_env_values = true)]
    beside: Vec<String>,
    /// The rows and ranges that the callers lock; one run for each workload.
    #[arg(long = "workload", value_name = "WORKLOAD", value_delimiter = ',')]
    #[arg(default_value = "rows")]
    pub(crate) workloads: Vec<Workload>,
    /// The number of callers; one run for each number.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) callers: Vec<u32>,
    /// The seconds that each side takes in each run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// The number of turns into which these seconds are cut.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Measure memory instead: the bytes of a server for each of COUNT calls that wait, and for
    /// each of COUNT locks with a transaction of its own, and what is left when they ended.
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "20000")]
    #[arg(conflicts_with_all = ["workloads", "callers", "seconds", "rounds"])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=40_000))]
    pub(crate) memory: Option<u32>,
    /// Measure beside a flood instead: the callers beside another client that takes what it can
    /// get, and without it, in turns. The ratio says how much longer their cycles take.
    #[arg(long, conflicts_with = "memory")]
    pub(crate) flood: bool,
    /// The server: HOST:PORT or URL. Without it one is started for the benchmark, in memory.
    #[arg(long, env = "LOCKSERVICE_SERVER", value_name = "ADDR")]
    pub(crate) server: Option<String>,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

impl BenchArgs {
    /// The other sides, in the order of their turns.
    pub(crate) fn beside(&self) -> Result<Vec<Beside>, Failure> {
        self.beside.iter().map(|text| Beside::parse(text)).collect()
    }

    /// The duration of one turn of one side.
    pub(crate) fn turn(&self) -> Duration {
        Duration::from_secs(self.seconds) / self.rounds
    }
}

/// The arguments of the hidden command that is the server of one side.
#[derive(Debug, Args)]
pub(crate) struct BenchServerArgs {
    /// The side of the server.
    #[arg(value_enum)]
    pub(crate) serves: Serves,
}

/// The arguments of the hidden command that floods a server.
#[derive(Debug, Args)]
pub(crate) struct BenchFloodArgs {
    /// The server.
    pub(crate) address: SocketAddr,
    /// The file of the token that it presents.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// How much less of the processor it is to get than others: 0 to 19.
    #[arg(long, default_value_t = 0)]
    pub(crate) nice: i32,
}

/// The work of a benchmark's server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Serves {
    /// Locks, in memory.
    Locks,
    /// Returns each message.
    Echo,
    /// Returns each message, over TCP alone.
    TcpEcho,
}
