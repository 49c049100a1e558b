//! `bench`: lock + unlock at a server, in turns with another system to compare it with.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the runs in their order, from the first connection to the last |
//! | `beside` | another system to measure beside |
//! | `side`, `locks` | a side; our side |
//! | `echo`, `tcp`, `etcd`, `redis`, `postgres` | the other sides |
//! | `workload` | the rows and ranges that the callers lock |
//! | `turn`, `stop` | one turn of a side's callers; the request to end early |
//! | `stats`, `report` | figures; their printed form |
//! | `cpu` | CPU time of processes |
//! | `child` | a server in a process of its own |
//! | `memory` | the memory of a server for each call and each lock |
//! | `flood/` | the cycles of callers beside a client that floods the server |
//!
//! # Implementation details
//! A run is a workload with a number of callers. Its time is cut into rounds, and in each round
//! every side has one turn. Only the ratio within one round is meaningful: other work of the
//! machine slows both sides. Callers and connections live for the whole run.
//!
//! The sides are closed however the benchmark ends: by itself, by an error, by a signal, or because
//! the reader of stdout has gone. The rounds that every side has ended are printed before.

mod beside;
mod child;
mod cpu;
mod echo;
mod etcd;
mod flood;
mod locks;
mod memory;
#[cfg(feature = "pg")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod report;
mod side;
mod stats;
mod stop;
mod tcp;
mod turn;
mod workload;

use std::pin::pin;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};

pub(crate) use self::beside::Beside;
pub(crate) use self::child::serve;
pub(crate) use self::flood::flood;
use self::locks::Locks;
use self::report::{Run, RunSide};
use self::side::Side;
use self::stop::Stop;
pub(crate) use self::workload::Workload;
use super::args::BenchArgs;
use super::exit::{Failure, say_note, say_warning};
use super::lock::End;
use super::output::Output;
use super::signals::Kept;

/// The longest time that a side may take to be closed.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Runs the benchmark.
pub(crate) fn run(args: &BenchArgs, json: bool) -> Result<End, Failure> {
    let beside = args.beside()?;
    // Before the runtime starts its threads.
    let signals = Kept::from_now().map_err(super::no_runtime)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(super::no_runtime)?;
    runtime.block_on(until_signal(args, &beside, signals, json))
}

/// Runs the benchmark until its end. A signal ends it early and in order; a second one ends it at
/// once.
async fn until_signal(
    args: &BenchArgs,
    beside: &[Beside],
    signals: Kept,
    json: bool,
) -> Result<End, Failure> {
    let mut signals = signals.read().map_err(super::no_runtime)?;
    let stop = Stop::default();
    let mut benchmark = pin!(benchmark(args, beside, &stop, json));
    let signal = tokio::select! {
        result = &mut benchmark => return result.map(|()| End::Status(0)),
        signal = signals.next_to_end() => signal,
    };
    stop.request();
    say_note(json, "interrupted: the last cycles end");
    tokio::select! {
        result = &mut benchmark => if let Err(failure) = result {
            say_warning(json, failure.kind, &failure.sentence);
        },
        _ = signals.next_to_end() => {}
    }
    Ok(End::Signal(signal))
}

/// Opens the sides, measures, and closes them however that ended.
async fn benchmark(
    args: &BenchArgs,
    beside: &[Beside],
    stop: &Stop,
    json: bool,
) -> Result<(), Failure> {
    if let Some(count) = args.memory {
        return tokio::select! {
            measured = memory::measure(count, json) => measured,
            () = stop.requested() => Ok(()),
        };
    }
    if args.flood {
        return flood::measure(args, stop, json).await;
    }
    let mut sides: Vec<Box<dyn Side>> = Vec::new();
    let opened = tokio::select! {
        opened = open(args, beside, &mut sides) => opened.map(|()| true),
        () = stop.requested() => Ok(false),
    };
    let measured = match opened {
        Ok(true) => measure(args, &sides, stop, json).await,
        other => other.map(drop),
    };
    let closed = close(sides).await;
    measured.and(closed)
}

async fn open(
    args: &BenchArgs,
    beside: &[Beside],
    sides: &mut Vec<Box<dyn Side>>,
) -> Result<(), Failure> {
    sides.push(Box::new(Locks::open(args.server.as_deref(), &args.credentials).await?));
    for other in beside {
        sides.push(other.open().await?);
    }
    Ok(())
}

/// Every run, printed as it ends.
async fn measure(
    args: &BenchArgs,
    sides: &[Box<dyn Side>],
    stop: &Stop,
    json: bool,
) -> Result<(), Failure> {
    let output = Output::new(json);
    for &workload in &args.workloads {
        for &callers in &args.callers {
            let run_side = |side: &dyn Side| RunSide {
                name: side.name(),
                server: side.server().clone(),
                turns: Vec::new(),
            };
            let run_sides = sides.iter().map(|side| run_side(&**side)).collect();
            let mut run = Run { workload, callers, turn: args.turn(), sides: run_sides };
            let ended = rounds(args.rounds, sides, stop, &mut run).await;
            // Finished rounds are printed even if the run fails.
            if run.rounds() > 0 {
                output.line(&if json { run.json() } else { run.text() })?;
            }
            ended?;
            if stop.is_requested() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The rounds of one run, until the end is requested.
async fn rounds(count: u32, sides: &[Box<dyn Side>], stop: &Stop, run: &mut Run) -> Result<()> {
    let mut callers = Vec::new();
    for side in sides {
        let making = turn::callers(&**side, run.workload, run.callers);
        callers.push(tokio::select! {
            made = making => made.map_err(|error| error.with("side", side.name()))?,
            () = stop.requested() => return Ok(()),
        });
    }
    for _ in 0..count {
        let mut round = Vec::new();
        for (side, callers) in sides.iter().zip(&mut callers) {
            let turn = turn::turn(&**side, callers, run.turn, stop).await;
            round.extend(turn.map_err(|error| error.with("side", side.name()))?);
        }
        // A round that was cut short has no ratio.
        if stop.is_requested() {
            break;
        }
        run.sides.iter_mut().zip(round).for_each(|(side, turn)| side.turns.push(turn));
    }
    for callers in callers {
        turn::say_goodbye(callers).await;
    }
    Ok(())
}

/// Closes every side. Fails with the first error.
async fn close(sides: Vec<Box<dyn Side>>) -> Result<(), Failure> {
    let mut result = Ok(());
    for side in sides {
        let name = side.name();
        let closed = tokio::time::timeout(CLOSE_MAX, side.close()).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "the server does not respond: what is still locked there is released by its TTL",
            ))
        });
        result = result.and(closed.map_err(|error| error.with("side", name).into()));
    }
    result
}
