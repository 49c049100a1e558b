//! `bench --memory`: the memory of a server for each call that waits and for each lock.
//!
//! The server is one that is started for this. Its resident memory is read before and after many
//! calls, which come from several sessions on connections of their own. All that has a response is
//! acknowledged before the second reading, and the allocator of the server has the time to give
//! back what it keeps for a while.

use std::fs;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use lockservice_core::{Error, ErrorKind, Result, TableRef};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::child::ServerChild;
use super::workload::Want;
use crate::cli::args::Serves;
use crate::cli::exit::{Failure, say_note};
use crate::cli::output::Output;
use crate::client::{Client, LockGuard, Session};

/// The largest number of calls of one session.
const PER_SESSION: u32 = 5_000;
/// The TTL of the sessions: short, for a renewal acknowledges what has arrived.
const TTL: Duration = Duration::from_secs(3);
/// Calls before the first reading, so that what is made once is not counted.
const WARM_UP: u32 = 500;
/// The server's jemalloc keeps memory that is not in use for a second, in place of ten: the result
/// is the same, and sooner.
const ALLOCATOR: (&str, &str) = ("_RJEM_MALLOC_CONF", "dirty_decay_ms:1000,muzzy_decay_ms:0");
/// The longest time in which the memory settles.
const SETTLE_MAX: Duration = Duration::from_secs(12);
/// The memory has settled when it is the same, to a hundredth, for this number of pauses: for
/// longer than the allocator keeps any.
const SAME_FOR: u32 = 4;
/// The pause between two looks at the memory.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// The number of lock calls that are under way at once.
const AT_ONCE: usize = 256;

/// Measures both with `count` calls, and prints the results. Each has a server of its own, for one
/// would use the memory again that another left.
pub(super) async fn measure(count: u32, json: bool) -> Result<(), Failure> {
    let output = Output::new(json);
    for what in [What::Waiters, What::Locks] {
        say_note(json, &format!("measuring {count} {}, for up to a minute", what.name()));
        let server = ServerChild::start_with(Serves::Locks, Some(ALLOCATOR)).await?;
        let bench = Bench::open(&server, count).await?;
        bench.run(what, WARM_UP).await?;
        let Used { each, left_percent } = bench.run(what, count).await?;
        for session in &bench.sessions {
            session.close().await?;
        }
        server.stop().await;
        let what = what.name();
        output.line(&if json {
            json!({ "memory": what, "count": count, "bytes": each, "left_percent": left_percent })
                .to_string()
        } else {
            format!("{count} {what}: {each} bytes each; {left_percent} % left when they ended")
        })?;
    }
    Ok(())
}

/// The object of a measurement.
#[derive(Clone, Copy)]
enum What {
    Waiters,
    Locks,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Waiters => "waiting calls",
            Self::Locks => "locks with a transaction each",
        }
    }
}

/// The memory that was in use, and the part that the process kept.
struct Used {
    each: u64,
    left_percent: u64,
}

struct Bench {
    sessions: Vec<Session>,
    table: TableRef,
    pid: u32,
}

impl Bench {
    async fn open(server: &ServerChild, count: u32) -> Result<Self> {
        let mut sessions = Vec::new();
        for _ in 0..count.div_ceil(PER_SESSION) {
            let client = Client::builder().name("bench").connect(&server.address).await?;
            sessions.push(client.session(Some(TTL)).await?);
        }
        Ok(Self { sessions, table: TableRef::new("default", "bench")?, pid: server.pid })
    }

    async fn run(&self, what: What, count: u32) -> Result<Used> {
        match what {
            What::Waiters => self.waiters(count).await,
            What::Locks => self.locks(count).await,
        }
    }

    fn session(&self, at: u32) -> &Session {
        &self.sessions[(at / PER_SESSION) as usize % self.sessions.len()]
    }

    /// `count` calls wait for one row.
    async fn waiters(&self, count: u32) -> Result<Used> {
        let held = self.sessions[0].lock(Want::Row(0).spec(&self.table)?).await?;
        self.quiet().await?;
        let before = resident(self.pid)?;
        let (waits, mut waiting) = mpsc::channel(count as usize);
        let mut callers = JoinSet::new();
        for at in 0..count {
            let (session, spec) = (self.session(at).clone(), Want::Row(0).spec(&self.table)?);
            let waits = waits.clone();
            callers.spawn(async move {
                let (reported, mut observed) = watch::channel(None);
                let mut call = std::pin::pin!(session.lock_reporting(spec, &reported));
                tokio::select! {
                    lock = &mut call => drop(lock?),
                    Ok(()) = observed.changed() => {
                        // The receiver waits for all of them.
                        let _ = waits.send(()).await;
                        drop(call.await?);
                    }
                }
                Ok::<_, Error>(())
            });
        }
        for _ in 0..count {
            tokio::select! {
                Some(()) = waiting.recv() => {}
                Some(ended) = callers.join_next() => return Err(too_early(ended)),
            }
        }
        self.quiet().await?;
        let during = settled(self.pid).await?;
        held.release().await?;
        while let Some(ended) = callers.join_next().await {
            ended.map_err(|error| failed("a caller failed").with_source(error))??;
        }
        self.quiet().await?;
        Ok(used(before, during, settled(self.pid).await?, count))
    }

    /// `count` rows are locked, each by a transaction of its own.
    async fn locks(&self, count: u32) -> Result<Used> {
        self.quiet().await?;
        let before = resident(self.pid)?;
        let mut calls = FuturesUnordered::new();
        let mut held: Vec<LockGuard> = Vec::with_capacity(count as usize);
        for at in 0..count {
            calls.push(self.session(at).lock(Want::Row(at).spec(&self.table)?));
            if calls.len() >= AT_ONCE
                && let Some(lock) = calls.next().await
            {
                held.push(lock?);
            }
        }
        while let Some(lock) = calls.next().await {
            held.push(lock?);
        }
        self.quiet().await?;
        let during = settled(self.pid).await?;
        drop(held);
        self.quiet().await?;
        Ok(used(before, during, settled(self.pid).await?, count))
    }

    /// Resolves when each session was renewed twice: then all that it has put in has arrived and is
    /// acknowledged.
    async fn quiet(&self) -> Result<()> {
        for session in &self.sessions {
            let mut deadline = session.watch_deadline();
            for _ in 0..2 {
                tokio::select! {
                    moved = deadline.changed() => {
                        moved.map_err(|_| failed("the session ended"))?;
                    }
                    why = session.lost() => return Err(why),
                }
            }
        }
        Ok(())
    }
}

fn used(before: u64, during: u64, after: u64, count: u32) -> Used {
    let total = during.saturating_sub(before);
    let left = after.saturating_sub(before);
    Used { each: total / u64::from(count), left_percent: left * 100 / total.max(1) }
}

/// The resident memory of a process, in bytes, once it stays the same, or after
/// [`SETTLE_MAX`].
async fn settled(pid: u32) -> Result<u64> {
    let (mut last, mut same) = (resident(pid)?, 0);
    let give_up = tokio::time::Instant::now() + SETTLE_MAX;
    while same < SAME_FOR && tokio::time::Instant::now() < give_up {
        tokio::time::sleep(LOOK_PAUSE).await;
        let now = resident(pid)?;
        same = if now.abs_diff(last) > last / 100 { 0 } else { same + 1 };
        last = now;
    }
    Ok(last)
}

/// The resident memory of a process, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|error| failed("the server cannot be measured").with_source(error))?;
    resident_of(&status).ok_or_else(|| failed("the kernel does not say how large the server is"))
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

fn too_early(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => failed("a call that was to wait did not"),
        Err(error) => failed("a caller failed").with_source(error),
    }
}

fn failed(message: &str) -> Error {
    Error::new(ErrorKind::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmPeak:\t  99 kB\nVmRSS:\t    1234 kB\nThreads:\t1\n";
        assert_eq!(resident_of(status), Some(1234 << 10));
        assert_eq!(resident_of("Name:\tx\n"), None);
    }

    #[test]
    fn what_is_left_is_a_part_of_what_was_used() {
        let used = used(1_000, 21_000, 3_000, 10);
        assert_eq!((used.each, used.left_percent), (2_000, 10));
    }
}
