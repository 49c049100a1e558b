//! The lock engine alone, beside what it cannot beat.
//!
//! ```sh
//! cargo bench -p lockservice-core --bench engine
//! ```
//!
//! | line | one side | other side |
//! |---|---|---|
//! | *lock and unlock* | a row, of a transaction of its own | insert and remove in a map under a mutex |
//! | *hand-over* | from before the unlock until the waiter runs | the same of a oneshot channel of tokio |
//! | *hand-over, service* | the same of `Txn::lock` and `Txn::end` | the same |
//! | *deadlock* | the lock call that closes a cycle of 10,000 | a walk along a chain of 10,000 in a map |
//! | *queue at a row* | a wait of a transaction for which another one waits | |
//!
//! A hand-over is timed by a clock, for two tasks of one thread take part; all else is CPU time of
//! the calling thread. Both sides run in turns: medians, and the spread of the ratio.
//!
//! With `--count deadlock` it closes one cycle of 10,000 and does nothing else, and with `--count
//! hand-over` it makes 2,000 of them, for a tool that counts instructions:
//!
//! ```sh
//! valgrind --tool=callgrind --toggle-collect='*close_cycle*' BINARY --bench --count deadlock
//! ```
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]

#[path = "kit/mod.rs"]
mod kit;

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use kit::callers::{Engine, granted, poll, row, txn};
use kit::served::{Served, name, serve};
use kit::{beside, bytes, key, median, shown, time};
use lockservice_core::clock::SystemClock;
use lockservice_core::service::LockSpec;
use lockservice_core::table::{LockCall, TxnHandle};
use lockservice_core::{ErrorKind, LockItem, LockMode};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

const TURNS: usize = 15;
const CYCLES: u64 = 100_000;
const HAND_OVERS: usize = 20_000;
/// Transactions that wait.
const WAITERS: u64 = 10_000;

fn uncontended() {
    for resident in [0, 100_000] {
        let engine = Engine::new();
        let map = Mutex::new(HashMap::<[u8; 16], u64>::new());
        let held = txn(u64::from(u32::MAX));
        for number in 0..resident {
            let key = key(number);
            engine.engine.lock_row(&held, &engine.table, &key, LockMode::Exclusive).unwrap();
            map.lock().insert(bytes(number), number);
        }
        let cycle = |number| {
            let (txn, key) = (txn(number), key(number));
            let grant = engine.engine.lock_row(&txn, &engine.table, &key, LockMode::Exclusive);
            black_box(grant.unwrap().token);
            engine.engine.unlock_all(&txn, None);
        };
        let numbers = || resident..resident + CYCLES;
        let ours = || time(|| numbers().for_each(cycle)) / CYCLES as f64;
        let insert_and_remove = |number| {
            map.lock().insert(bytes(number), number);
            black_box(map.lock().remove(&bytes(number)));
        };
        let theirs = || time(|| numbers().for_each(insert_and_remove)) / CYCLES as f64;
        beside(&format!("lock and unlock a row, {resident} held"), TURNS, ours, theirs);
    }
}

/// Nanoseconds of a hand-over: the median of many, one after another on one thread. (A mean would
/// count the time that other processes take from this one.)
fn timed(runtime: &Runtime, hand_over: impl AsyncFn() -> Duration) -> f64 {
    median(runtime.block_on(async {
        let mut times = Vec::with_capacity(HAND_OVERS);
        for _ in 0..HAND_OVERS {
            times.push(hand_over().await.as_nanos() as f64);
        }
        times
    }))
}

async fn by_oneshot() -> Duration {
    let (sender, receiver) = tokio::sync::oneshot::channel::<u64>();
    let waiter = tokio::spawn(async move {
        black_box(receiver.await.unwrap());
        Instant::now()
    });
    // The waiter is polled once, and waits.
    tokio::task::yield_now().await;
    let before = Instant::now();
    sender.send(1).unwrap();
    waiter.await.unwrap() - before
}

async fn by_engine(engine: &Engine) -> Duration {
    let [holder, next] = [1, 2].map(txn);
    engine.holds(&holder, row(0));
    let call = engine.lock(&next, row(0));
    let waiter = tokio::spawn(async move {
        black_box(call.await.unwrap().token);
        Instant::now()
    });
    tokio::task::yield_now().await;
    let before = Instant::now();
    engine.engine.unlock_all(&holder, None);
    let took = waiter.await.unwrap() - before;
    engine.engine.unlock_all(&next, None);
    took
}

async fn by_service(served: &Served) -> Duration {
    let [holder, next] = [(); 2].map(|()| served.begin());
    holder.lock_row(&served.table, &key(1), LockMode::Exclusive).unwrap();
    let waiter = tokio::spawn(async move {
        let spec = LockSpec::new(name(), vec![LockItem::Row(key(1))]);
        black_box(next.lock(spec).await.unwrap().grant.token);
        (Instant::now(), next)
    });
    tokio::task::yield_now().await;
    let before = Instant::now();
    holder.end(None);
    let (at, next) = waiter.await.unwrap();
    next.end(None);
    at - before
}

fn hand_over() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine = Engine::new();
    let served = runtime.block_on(serve(Arc::new(SystemClock)));
    let theirs = || timed(&runtime, by_oneshot);
    let ours = || timed(&runtime, async || by_engine(&engine).await);
    beside("hand-over, beside a oneshot", TURNS, ours, theirs);
    let ours = || timed(&runtime, async || by_service(&served).await);
    beside("hand-over, service, beside a oneshot", TURNS, ours, theirs);
}

/// Transactions that wait, of whom one is about to close a cycle.
struct Waiting {
    engine: Engine,
    txns: Vec<TxnHandle>,
    calls: Vec<LockCall>,
}

impl Waiting {
    /// Each waits for the one before it: the longest cycle there can be.
    fn in_a_chain() -> Self {
        let engine = Engine::new();
        let txns: Vec<TxnHandle> = (0..=WAITERS).map(txn).collect();
        (0..).zip(&txns).for_each(|(number, txn)| engine.holds(txn, row(number)));
        let calls = (0..).zip(&txns[1..]).map(|(before, txn)| engine.waits(txn, row(before)));
        let calls = calls.collect();
        Self { engine, txns, calls }
    }

    /// All wait for row 0. The last one holds row 1.
    fn in_one_queue() -> Self {
        let engine = Engine::new();
        let txns: Vec<TxnHandle> = (0..=WAITERS).map(txn).collect();
        engine.holds(&txns[0], row(0));
        engine.holds(&txns[txns.len() - 1], row(1));
        let calls = txns[1..].iter().map(|txn| engine.waits(txn, row(0))).collect();
        Self { engine, txns, calls }
    }

    /// The first one closes a cycle of so many members by a wait for a row. Returns the time.
    fn close(mut self, number: u64, members: usize) -> f64 {
        let mut call = None;
        let took = time(|| call = Some(close_cycle(&self.engine, &self.txns[0], number)));
        self.calls.extend(call);
        let found = self.calls.iter_mut().find_map(|call| match poll(call) {
            Poll::Ready(Err(error)) if error.kind() == ErrorKind::Deadlock => {
                error.deadlock().map(<[_]>::len)
            }
            _ => None,
        });
        assert_eq!(found, Some(members));
        took
    }
}

#[inline(never)]
fn close_cycle(engine: &Engine, who: &TxnHandle, number: u64) -> LockCall {
    engine.lock(who, row(number))
}

fn deadlock() {
    let mut next: HashMap<u64, u64> = (0..WAITERS).map(|at| (at, at + 1)).collect();
    next.insert(WAITERS, 0);
    let walk = || {
        time(|| {
            let (mut at, mut steps) = (black_box(0), 0);
            loop {
                (at, steps) = (next[&at], steps + 1);
                if at == 0 {
                    break;
                }
            }
            black_box(steps);
        })
    };
    let chain = || Waiting::in_a_chain().close(WAITERS, WAITERS as usize + 1);
    beside("a deadlock, all 10000 in one cycle, beside a walk", TURNS, chain, walk);
    let queue = || Waiting::in_one_queue().close(1, 2);
    beside("a deadlock, all 10000 in one queue, beside a walk", TURNS, queue, walk);
}

/// Ten thousand transactions, for each of which another one waits, queue at one row, one after
/// another.
fn hot_row() {
    let engine = Engine::new();
    let holder = txn(3 * WAITERS);
    engine.holds(&holder, row(0));
    let waited_for: Vec<TxnHandle> = (1..=WAITERS).map(txn).collect();
    let others: Vec<TxnHandle> = (1..=WAITERS).map(|who| txn(WAITERS + who)).collect();
    (1..).zip(&waited_for).for_each(|(number, txn)| engine.holds(txn, row(number)));
    let mut calls: Vec<LockCall> =
        (1..).zip(&others).map(|(number, txn)| engine.waits(txn, row(number))).collect();
    let total = time(|| calls.extend(waited_for.iter().map(|txn| engine.lock(txn, row(0)))));
    println!("{WAITERS}, each waited for, queue at a row: {} each", shown(total / WAITERS as f64));
}

/// Does one thing, and reads no clock that a tool cannot run.
fn count(what: &str) {
    if what == "deadlock" {
        let waiting = Waiting::in_a_chain();
        drop(close_cycle(&waiting.engine, &waiting.txns[0], WAITERS));
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let engine = Engine::new();
    for _ in 0..HAND_OVERS / 10 {
        runtime.block_on(by_engine(&engine));
    }
}

fn main() {
    if let Some(what) = std::env::args().skip_while(|argument| argument != "--count").nth(1) {
        return count(&what);
    }
    // A grant of a free row, so that the first turn measures no first use.
    let engine = Engine::new();
    drop(granted(engine.lock(&txn(1), row(1))));
    uncontended();
    hand_over();
    deadlock();
    hot_row();
}
