//! What the benchmarks share: times, both sides in turns, keys, a service and an engine.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | times and their ratios, memory, keys |
//! | `served.rs` | a service with one table |
//! | `callers.rs` | an engine with one table, and transactions that call it |
#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod callers;
pub(crate) mod served;

use std::task::{Context, Poll, Waker};
use std::time::Instant;

use lockservice_core::Key;
use lockservice_core::clock::{Clock, Time};

/// The memory of this process, in bytes.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A clock that valgrind can run: it lacks the kernel's page that `SystemClock` reads.
#[derive(Debug)]
pub(crate) struct ValgrindClock(pub(crate) Instant);

impl Clock for ValgrindClock {
    fn now(&self) -> Time {
        Time::from_origin(self.0.elapsed())
    }
}

/// 16 bytes; consecutive numbers are far apart.
pub(crate) fn bytes(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub(crate) fn key(number: u64) -> Key {
    Key::new(bytes(number)).unwrap()
}

/// The output of a future that waits for nothing.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it was to wait for nothing"),
    }
}

/// The CPU time of this thread, in nanoseconds.
pub(crate) fn cpu() -> f64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    at.tv_sec as f64 * 1e9 + at.tv_nsec as f64
}

/// The CPU time that `act` takes on this thread, in nanoseconds.
pub(crate) fn time(act: impl FnOnce()) -> f64 {
    let before = cpu();
    act();
    cpu() - before
}

pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// A time, in the unit that fits.
pub(crate) fn shown(nanos: f64) -> String {
    match nanos {
        0.0..1e4 => format!("{nanos:.0} ns"),
        1e4..1e7 => format!("{:.0} µs", nanos / 1e3),
        _ => format!("{:.0} ms", nanos / 1e6),
    }
}

/// True if a line is to be measured: all are, or those whose name has the word after `--only`.
pub(crate) fn is_wanted(what: &str) -> bool {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--only");
    arguments.nth(1).is_none_or(|word| what.contains(&word))
}

/// Times both sides in turns, each in nanoseconds. Prints the median of each, and the median, the
/// lowest and the highest of their ratio.
pub(crate) fn beside(
    what: &str,
    turns: usize,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) {
    if !is_wanted(what) {
        return;
    }
    let turns: Vec<(f64, f64)> = (0..turns).map(|_| (ours(), theirs())).collect();
    let ratios: Vec<f64> = turns.iter().map(|(a, b)| a / b).collect();
    let of = |side: fn(&(f64, f64)) -> f64| shown(median(turns.iter().map(side).collect()));
    let least = ratios.iter().copied().fold(f64::MAX, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    println!(
        "{what}: {} beside {}, ratio {:.2} ({least:.2} to {most:.2})",
        of(|turn| turn.0),
        of(|turn| turn.1),
        median(ratios),
    );
}
