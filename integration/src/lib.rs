//! The kit of the tests in `tests/`: the real binary as processes, and the commands that run under
//! its locks.
//!
//! | file | noun |
//! |---|---|
//! | `binary` | the programs under test |
//! | `server` | `lockservice serve` as a process |
//! | `command`, `timeline` | commands under a lock; their events in order |
//! | `journal`, `load` | a journal that refuses by F1; many commands that write it under locks |
//! | `holders` | a client with many locks, over a restart |
//! | `store` | the stores that a test runs on |
//! | `allocators` | allocators of several nodes on one store, and a ledger of acknowledgements |
//! | `simulation` | whole nodes and clients on one thread, under faults of all kinds |
//! | `collector` | a collector of traces |
//! | `containers` | real PostgreSQL and Redis in containers |
//!
//! Everything waits for an event, with [`LIMIT`] as the bound that fails a test which would hang.

#[cfg(feature = "processes")]
pub mod allocators;
#[cfg(feature = "processes")]
pub mod binary;
#[cfg(feature = "otel")]
pub mod collector;
#[cfg(feature = "processes")]
pub mod command;
#[cfg(feature = "processes")]
pub mod containers;
#[cfg(feature = "processes")]
pub mod holders;
#[cfg(feature = "processes")]
pub mod journal;
#[cfg(feature = "processes")]
pub mod load;
#[cfg(feature = "processes")]
pub mod server;
pub mod simulation;
#[cfg(feature = "processes")]
pub mod store;
#[cfg(feature = "processes")]
pub mod timeline;

use std::fs::OpenOptions;
use std::io::Write as _;
#[cfg(feature = "processes")]
use std::process::Output;
use std::time::Duration;

#[cfg(feature = "processes")]
use nix::unistd::Pid;
#[cfg(feature = "processes")]
use serde_json::Value;
#[cfg(feature = "processes")]
use tokio::process::Child;

/// No wait of a test is longer. Generous, for machines that do a lot else; nothing ever takes that
/// long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The lease of the servers under test: as short as it may be without a busy machine losing it for
/// want of a processor.
pub const LEASE: Duration = Duration::from_secs(3);

/// Waits for `future`, at most [`LIMIT`].
///
/// # Panics
/// When it takes longer: `what` was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    within_limit(LIMIT, what, future).await
}

/// Waits for `future`, at most `limit`.
///
/// # Panics
/// When it takes longer: `what` was waited for.
pub async fn within_limit<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {limit:?} in vain: {what}"),
    }
}

/// The process of a child.
///
/// # Panics
/// If it has ended.
#[cfg(feature = "processes")]
pub fn pid_of(child: &Child) -> Pid {
    let pid = child.id().expect("the process still runs");
    Pid::from_raw(pid.try_into().expect("a process id"))
}

/// The output of a command with `--json`: one object a line.
///
/// # Panics
/// If it printed anything else.
#[cfg(feature = "processes")]
pub fn json_lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).expect("JSON is text");
    text.lines().map(|line| serde_json::from_str(line).expect("one object")).collect()
}

/// True on a machine whose tests count for all: a missing part is a failure there.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// Says loudly that a test is skipped, on stderr and to the test command, which repeats it at its
/// end; fails in CI, where nothing may be.
///
/// # Panics
/// In CI.
pub fn skip(why: &str) {
    assert!(!is_ci(), "not to be skipped in CI: {why}");
    eprintln!("\n*** SKIPPED: {why}\n");
    if let Some(path) = std::env::var_os("INTEGRATION_SKIPPED") {
        let mut skipped = OpenOptions::new()
            .append(true)
            .open(path)
            .expect("the test command's list of what is skipped");
        // One write, so that tests that run at once do not mix their lines.
        skipped.write_all(format!("{why}\n").as_bytes()).expect("a line can be added to it");
    }
}

/// Tests on a PostgreSQL and on a Redis: each name is that of a function in the module `check`,
/// which takes the URL of the store.
#[macro_export]
macro_rules! on_each_server {
    ($($name:ident;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                use $crate::containers::{Postgres, PostgresOptions};
                let options = PostgresOptions::default();
                let Some(postgres) = Postgres::start(options).await else { return };
                Box::pin(check::$name(postgres.url())).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_redis() {
                use $crate::containers::{Redis, RedisOptions};
                let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
                Box::pin(check::$name(redis.url())).await;
            }
        }
    )*};
}
