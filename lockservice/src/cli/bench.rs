//! `bench`: lock + unlock through a server, beside an echo on a bare gRPC stream in the same run.
//!
//! Both sides run in turns on the same runtime, over loopback or wherever the server is: only their
//! ratio means something. An echo carries the same bytes as a lock request, on one stream that all
//! callers share, as all callers share one session.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::{LockSpec, TxnOptions};
use lockservice_core::{Error, ErrorKind, Key, LockItem, Result, TableRef};
use serde_json::{Value, json};

use super::args::BenchArgs;
use super::exit::Failure;
use super::output::Output;
use super::{echo, serve};
use crate::client::{Client, Session};

/// The speed of one side of a run.
struct Measured {
    cycles_per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Runs the benchmark.
pub(crate) fn run(args: &BenchArgs, json: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(super::no_runtime)?;
    runtime.block_on(bench(args, json))
}

async fn bench(args: &BenchArgs, json: bool) -> Result<(), Failure> {
    let (address, in_process) = match &args.server {
        Some(server) => (server.clone(), None),
        None => {
            let server = serve::in_memory().await?;
            (server.address.to_string(), Some(server))
        }
    };
    let client = Client::builder().name("bench").connect(&address).await?;
    let session = client.session(None).await?;
    let output = Output::new(json);
    for &callers in &args.callers {
        // Echo, locks, echo: what the machine does meanwhile hits both sides.
        let half = Duration::from_secs(args.seconds) / 2;
        let before = echoes(callers, half).await?;
        let locks = locks(&session, callers, Duration::from_secs(args.seconds)).await?;
        let after = echoes(callers, half).await?;
        let echo = Measured {
            cycles_per_s: f64::midpoint(before.cycles_per_s, after.cycles_per_s),
            p50_us: f64::midpoint(before.p50_us, after.p50_us),
            p99_us: f64::midpoint(before.p99_us, after.p99_us),
        };
        output.line(&describe(callers, &locks, &echo, json))?;
    }
    session.close().await?;
    if let Some(server) = in_process {
        server.stop().await?;
    }
    Ok(())
}

fn describe(callers: u32, locks: &Measured, echo: &Measured, json: bool) -> String {
    let side = |measured: &Measured| -> Value {
        json!({
            "cycles_per_s": measured.cycles_per_s,
            "p50_us": measured.p50_us,
            "p99_us": measured.p99_us,
        })
    };
    let (throughput, latency) =
        (locks.cycles_per_s / echo.cycles_per_s, locks.p50_us / echo.p50_us);
    if json {
        let p99 = locks.p99_us / echo.p99_us;
        let ratio = json!({ "cycles_per_s": throughput, "p50": latency, "p99": p99 });
        let (lock, echo) = (side(locks), side(echo));
        return json!({ "callers": callers, "lock": lock, "echo": echo, "ratio": ratio })
            .to_string();
    }
    let row = |name: &str, m: &Measured| {
        format!(
            "  {name:<13} {:>9.0} cycles/s   p50 {:>8.1} µs   p99 {:>8.1} µs\n",
            m.cycles_per_s, m.p50_us, m.p99_us
        )
    };
    format!(
        "{callers} caller{}\n{}{}  ratio         {throughput:>9.2}            \
         p50 {latency:>8.2}      p99 {:>8.2}",
        if callers == 1 { "" } else { "s" },
        row("lock + unlock", locks),
        row("echo", echo),
        locks.p99_us / echo.p99_us,
    )
}

async fn locks(session: &Session, callers: u32, time: Duration) -> Result<Measured, Failure> {
    let table = TableRef::new("default", "bench")?;
    measure(callers, time, |caller| {
        let (session, table) = (session.clone(), table.clone());
        async move {
            let key = LockItem::Row(Key::new(format!("{caller:016}"))?);
            Ok(move || {
                let spec = LockSpec::new(table.clone(), vec![key.clone()]);
                let txn = session.txn(TxnOptions::default());
                async move {
                    txn.lock(spec).await?;
                    // Sent, not waited for: the next lock of the same key comes after it on the
                    // stream.
                    drop(txn.end(None));
                    Ok(())
                }
            })
        }
    })
    .await
}

async fn echoes(callers: u32, time: Duration) -> Result<Measured, Failure> {
    let echo = Arc::new(echo::Echo::start(callers).await?);
    measure(callers, time, |caller| {
        let caller = echo.caller(caller);
        async move {
            let caller = Arc::new(tokio::sync::Mutex::new(caller?));
            Ok(move || {
                let caller = Arc::clone(&caller);
                async move { caller.lock().await.round_trip().await }
            })
        }
    })
    .await
}

/// Lets `callers` tasks repeat a cycle, each in a closed loop, for `time`.
async fn measure<P, C, F>(
    callers: u32,
    time: Duration,
    prepare: impl Fn(u32) -> P,
) -> Result<Measured, Failure>
where
    P: Future<Output = Result<C>>,
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let clock = SystemClock;
    let mut cycles = Vec::new();
    for caller in 0..callers {
        let mut cycle = prepare(caller).await?;
        // One ahead of the measurement: it binds the table and warms the connection.
        cycle().await?;
        cycles.push(cycle);
    }
    let start = clock.now();
    let tasks: Vec<_> = cycles
        .into_iter()
        .map(|mut cycle| {
            tokio::spawn(async move {
                let mut took = Vec::new();
                let mut last = clock.now();
                while last.since(start) < time {
                    cycle().await?;
                    let now = clock.now();
                    took.push(now.since(last));
                    last = now;
                }
                Ok::<_, Error>(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        let result = task.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "a caller failed").with_source(error)
        })?;
        took.extend(result?);
    }
    let elapsed = clock.now().since(start);
    took.sort_unstable();
    let at = |share: usize| {
        took.get(took.len().saturating_sub(1) * share / 100).map_or(0.0, |d| d.as_secs_f64() * 1e6)
    };
    Ok(Measured {
        cycles_per_s: took.len() as f64 / elapsed.as_secs_f64(),
        p50_us: at(50),
        p99_us: at(99),
    })
}
