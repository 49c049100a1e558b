//! Lock + unlock of a free row through the service, beside five readers that list 100,000 locks and
//! 10,000 waits without pause, and the same without readers, in turns.
//!
//! ```sh
//! cargo bench -p lockservice-core --bench lists
//! ```
//!
//! Each cycle begins a transaction, locks one row with a 16-byte key, and ends the transaction. Its
//! time is that of a clock on the wall, with the reading of the clock: a cycle that waits for a
//! reader counts in full. The rows and the waits are in the table in which the cycles lock.
//!
//! | line | ways of a lock |
//! |---|---|
//! | *at once* | `Txn::lock_row` |
//! | *general* | `Txn::lock`, polled |
//! | *contended* | `Txn::lock` of a row that another transaction has met: the engine's state decides |
//!
//! Of each the median, the 99th and the 99.9th percentile are compared; the goal is a ratio of at
//! most 1.5 of the 99th. With `--only WORD` it measures the lines whose name has that word.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]

#[path = "kit/mod.rs"]
mod kit;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use kit::served::{Served, name, serve};
use kit::{beside, is_wanted, key, ready};
use lockservice_core::clock::SystemClock;
use lockservice_core::service::{LockService, LockSpec, Txn, TxnOptions};
use lockservice_core::{LockItem, LockMode};

const READERS: usize = 5;
const LOCKS: u64 = 100_000;
/// Transactions that hold them, each with a label, so that lists say whose they are.
const HOLDERS: u64 = 100;
const WAITS: u64 = 10_000;
/// Rows that are waited for.
const AWAITED: u64 = 1_000;
/// Cycles of a turn.
const CYCLES: usize = 100_000;
const TURNS: usize = 15;

/// The first of the rows that the cycles lock.
const FREE: u64 = 1 << 40;

fn labelled(service: &LockService, label: String) -> Txn {
    service.begin(TxnOptions { label, ..TxnOptions::default() }).unwrap()
}

fn spec(number: u64) -> LockSpec {
    LockSpec::new(name(), vec![LockItem::Row(key(number))])
}

/// Threads that list while they are told to.
struct Readers {
    run: AtomicBool,
    end: AtomicBool,
    lists: AtomicU64,
}

impl Readers {
    fn read(&self, service: &LockService) {
        while !self.end.load(Ordering::Relaxed) {
            if !self.run.load(Ordering::Relaxed) {
                std::thread::park();
                continue;
            }
            let (mut locks, mut waits) = (service.lock_list(None), service.wait_list(None));
            while self.run.load(Ordering::Relaxed)
                && let Some(slice) = locks.next_slice(256)
            {
                black_box(slice);
            }
            while self.run.load(Ordering::Relaxed)
                && let Some(slice) = waits.next_slice(256)
            {
                black_box(slice);
            }
            self.lists.fetch_add(u64::from(self.run.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }
}

/// The times of cycles, in nanoseconds and in order.
fn times(mut cycle: impl FnMut(u64)) -> Vec<u64> {
    let one = |number| {
        let before = Instant::now();
        cycle(number);
        before.elapsed().as_nanos() as u64
    };
    let mut times: Vec<u64> = (0..CYCLES as u64).map(one).collect();
    times.sort_unstable();
    times
}

fn at_once(served: &Served, number: u64) {
    let txn = served.begin();
    let locked = txn.lock_row(&served.table, &key(FREE + number), LockMode::Exclusive);
    black_box(locked.map(|locked| locked.token));
    txn.end(None);
}

fn general(served: &Served, number: u64) {
    let txn = served.begin();
    black_box(ready(txn.lock(spec(FREE + number))).unwrap().grant.token);
    txn.end(None);
}

/// The row keeps its entry in the engine's state, for a sharer holds it all the time.
fn contended(served: &Served, number: u64) {
    let txn = served.begin();
    let spec = LockSpec { mode: LockMode::Shared, ..spec(2 * FREE + number % 64) };
    black_box(ready(txn.lock(spec)).unwrap().grant.token);
    txn.end(None);
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let served = runtime.block_on(serve(Arc::new(SystemClock)));
    let service = &served.service;
    let mut held = Vec::new();
    for holder in 0..HOLDERS {
        let txn = labelled(service, format!("holder {holder}"));
        (holder..LOCKS).step_by(HOLDERS as usize).for_each(|number| served.hold(&txn, number));
        held.push(txn);
    }
    for waiter in 0..WAITS {
        let txn = labelled(service, format!("waiter {waiter}"));
        runtime.spawn(async move { txn.lock(spec(waiter % AWAITED)).await });
    }
    let shared = labelled(service, "sharers".to_owned());
    let also = served.begin();
    for number in 0..64 {
        for txn in [&shared, &also] {
            let spec = LockSpec { mode: LockMode::Shared, ..spec(2 * FREE + number) };
            ready(txn.lock(spec)).unwrap();
        }
    }
    while service.gauges().waiting < WAITS as usize {
        std::thread::yield_now();
    }

    let (run, end, lists) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let readers = Readers { run, end, lists };
    std::thread::scope(|threads| {
        let all: Vec<_> = (0..READERS).map(|_| threads.spawn(|| readers.read(service))).collect();
        let with_readers = |measure: &dyn Fn() -> f64| {
            readers.run.store(true, Ordering::Relaxed);
            all.iter().for_each(|reader| reader.thread().unpark());
            let time = measure();
            readers.run.store(false, Ordering::Relaxed);
            time
        };
        type Cycle = fn(&Served, u64);
        for (way, cycle) in
            [("at once", at_once as Cycle), ("general", general), ("contended", contended)]
        {
            for (what, part) in [("median", 500), ("p99", 990), ("p99.9", 999)] {
                let measure = || times(|n| cycle(&served, n))[CYCLES * part / 1_000] as f64;
                let line = format!("{way}, {what} beside {READERS} readers, beside none");
                if is_wanted(&line) {
                    black_box(measure());
                    beside(&line, TURNS, || with_readers(&measure), measure);
                }
            }
        }
        readers.end.store(true, Ordering::Relaxed);
        all.iter().for_each(|reader| reader.thread().unpark());
    });
    println!("{} whole lists were made", readers.lists.load(Ordering::Relaxed));
}
