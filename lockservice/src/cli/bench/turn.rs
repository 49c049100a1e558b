//! A turn: all callers of one side repeat their cycle for some time, each in a closed loop.

use std::time::Duration;

use lockservice_core::clock::{Clock as _, SystemClock};
use lockservice_core::{Error, ErrorKind, Result};
use tokio::task::JoinSet;

use super::cpu;
use super::side::{Caller, Side};
use super::stats::Figures;
use super::stop::Stop;
use super::workload::{Wants, Workload};

/// The time for which a turn waits for its last cycles. With thousands of callers of one row a
/// cycle waits for all the others.
const LAST_CYCLES_MAX: Duration = Duration::from_secs(30);
/// The same for a turn that was interrupted: a person waits.
const INTERRUPTED_MAX: Duration = Duration::from_secs(2);

/// A caller and its next request.
pub(super) struct Looping {
    caller: Box<dyn Caller>,
    wants: Wants,
}

/// Makes the callers of one run. Each makes one cycle, which binds the table and warms the
/// connection.
pub(super) async fn callers(
    side: &dyn Side,
    workload: Workload,
    count: u32,
) -> Result<Vec<Looping>> {
    let mut looping = Vec::new();
    for (number, caller) in (0..).zip(side.callers(workload, count).await?) {
        looping.push(Looping { caller, wants: Wants::new(workload, number) });
    }
    for Looping { caller, wants } in &mut looping {
        let want = wants.next();
        tokio::time::timeout(LAST_CYCLES_MAX, caller.cycle(&want))
            .await
            .map_err(|_| silent())??;
    }
    Ok(looping)
}

/// Says goodbye for the callers of a run that has ended.
pub(super) async fn say_goodbye(callers: Vec<Looping>) {
    for Looping { caller, .. } in callers {
        // Their side is closed in any case.
        drop(tokio::time::timeout(INTERRUPTED_MAX, caller.close()).await);
    }
}

/// One turn of `side`. `None` if the end was requested meanwhile. The callers have ended then, and
/// hold nothing.
///
/// Fails with the first error of a caller, and with `Unavailable` if a cycle does not end. The
/// callers are gone then, in the middle of a cycle.
pub(super) async fn turn(
    side: &dyn Side,
    callers: &mut Vec<Looping>,
    time: Duration,
    stop: &Stop,
) -> Result<Option<Figures>> {
    let clock = SystemClock;
    let cpu_before = (cpu::own(), side.server().cpu());
    let start = clock.now();
    let mut tasks = JoinSet::new();
    for looping in callers.drain(..) {
        let stop = stop.clone();
        tasks.spawn(async move {
            let Looping { mut caller, mut wants } = looping;
            let mut took = Vec::new();
            let mut last = clock.now();
            // Each caller makes at least one cycle, so that a caller that began late counts too.
            loop {
                caller.cycle(&wants.next()).await?;
                let now = clock.now();
                took.push(now.since(last));
                last = now;
                if last.since(start) >= time || stop.is_requested() {
                    return Ok::<_, Error>((Looping { caller, wants }, took));
                }
            }
        });
    }
    let mut took = Vec::new();
    let ended = async {
        while let Some(ended) = tasks.join_next().await {
            let (looping, cycles) = ended.map_err(|error| {
                Error::new(ErrorKind::Internal, "a caller failed: please report it")
                    .with_source(error)
            })??;
            callers.push(looping);
            took.extend(cycles);
        }
        Ok(())
    };
    let interrupted = async {
        stop.requested().await;
        tokio::time::sleep(INTERRUPTED_MAX).await;
    };
    tokio::select! {
        ended = tokio::time::timeout(time + LAST_CYCLES_MAX, ended) => {
            ended.map_err(|_| silent())??;
        }
        () = interrupted => return Err(silent()),
    }
    let elapsed = clock.now().since(start);
    let cpu_after = (cpu::own(), side.server().cpu());
    if stop.is_requested() {
        return Ok(None);
    }
    let client = cpu_after.0.saturating_sub(cpu_before.0);
    let server = cpu_after.1.zip(cpu_before.1).map(|(after, before)| after.saturating_sub(before));
    Ok(Some(Figures::new(took, elapsed, client, server)))
}

fn silent() -> Error {
    Error::new(ErrorKind::Unavailable, "a cycle did not end: is the server stopped or overloaded?")
}
