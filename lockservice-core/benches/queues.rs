//! Long queues, in time. `tests/engine_queues.rs` counts the same in steps.
//!
//! ```sh
//! cargo bench -p lockservice-core --bench queues
//! ```
//!
//! | line | what is timed |
//! |---|---|
//! | *a queue of* | behind N waiters for one row: one more wait; the cancel of any wait; an unlock that hands the row over |
//! | *a whole-table lock* | its release, for each of N transactions that wait for a row of their own |
//!
//! Times are CPU times of the calling thread: of ten such calls together, the median of many, with
//! the lowest and the highest decile. Each line of the first kind shows how its times compare with
//! those of the shortest queue. A logarithm grows 2.5-fold from 10 to 1,000 and 5-fold to 100,000
//! waiters, counted from 2: one that does not fit the caches of the processor costs more by itself.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

#[path = "kit/mod.rs"]
mod kit;

use std::collections::VecDeque;

use kit::callers::{Engine, everything, granted, row, txn};
use kit::{median, shown, time};
use lockservice_core::table::{LockCall, TxnHandle};

/// Calls that are timed together: reading the clock takes as long as a call.
const TOGETHER: usize = 10;
const TURNS: usize = 300;

/// A holder of a row and those who wait for it, the first one first.
struct Queue {
    engine: Engine,
    holder: TxnHandle,
    waiting: VecDeque<(TxnHandle, LockCall)>,
    next: u64,
}

impl Queue {
    fn new(waiters: u64) -> Self {
        let (engine, holder) = (Engine::new(), txn(0));
        engine.holds(&holder, row(0));
        let mut queue = Self { engine, holder, waiting: VecDeque::new(), next: 1 };
        (0..waiters).for_each(|_| queue.add());
        queue
    }

    /// One more waiter.
    fn add(&mut self) {
        let who = txn(self.next);
        self.next += 1;
        let call = self.engine.waits(&who, row(0));
        self.waiting.push_back((who, call));
    }

    /// The time of each of some calls of one kind: to wait, to give up, to hand over.
    fn times(&mut self, at: &mut impl FnMut() -> usize) -> [f64; 3] {
        let mut late = Vec::with_capacity(TOGETHER);
        let more: Vec<TxnHandle> = (0..TOGETHER as u64).map(|n| txn(self.next + n)).collect();
        self.next += TOGETHER as u64;
        let enqueue = time(|| late.extend(more.iter().map(|who| self.engine.lock(who, row(0)))));
        self.waiting.extend(more.into_iter().zip(late));
        let cancelled: Vec<_> = (0..TOGETHER)
            .map(|_| self.waiting.swap_remove_back(at() % self.waiting.len()).unwrap())
            .collect();
        let cancel = time(|| drop(cancelled));
        // The order here is not that of the queue any more.
        self.waiting.make_contiguous().sort_by_key(|(who, _)| who.id());
        let next: Vec<_> = self.waiting.drain(..TOGETHER).collect();
        let hand_over = time(|| {
            for (who, call) in next {
                self.engine.engine.unlock_all(&self.holder, None);
                granted(call);
                self.holder = who;
            }
        });
        (0..TOGETHER).for_each(|_| self.add());
        [enqueue, cancel, hand_over].map(|of| of / TOGETHER as f64)
    }
}

/// Of each kind of call: the lowest decile, the median and the highest decile.
fn queue(waiters: u64) -> [[f64; 3]; 3] {
    let mut queue = Queue::new(waiters);
    let mut random = 1_u64;
    let mut at = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize
    };
    let times: Vec<[f64; 3]> = (0..TURNS).map(|_| queue.times(&mut at)).collect();
    [0, 1, 2].map(|kind| {
        let mut of: Vec<f64> = times.iter().map(|times| times[kind]).collect();
        of.sort_by(f64::total_cmp);
        [of[TURNS / 10], of[TURNS / 2], of[TURNS * 9 / 10]]
    })
}

/// The time of the release of a whole-table lock, for each waiter.
fn whole_table(waiters: u64) -> f64 {
    let (engine, holder) = (Engine::new(), txn(0));
    engine.holds(&holder, everything());
    let waiting: Vec<_> = (1..=waiters)
        .map(|number| {
            let who = txn(number);
            let call = engine.waits(&who, row(number));
            (who, call)
        })
        .collect();
    let release = time(|| {
        engine.engine.unlock_all(&holder, None);
    });
    waiting.into_iter().for_each(|(_, call)| drop(granted(call)));
    release / waiters as f64
}

fn main() {
    let mut shortest = None;
    for waiters in [10, 1_000, 100_000] {
        let times = queue(waiters);
        let first = *shortest.get_or_insert(times);
        let text = |kind: usize| {
            let [low, median, high] = times[kind];
            let growth = median / first[kind][1];
            format!("{} ({} to {}), {growth:.1} ×", shown(median), shown(low), shown(high))
        };
        println!(
            "a queue of {waiters}: {} to wait; {} to cancel; {} to hand over",
            text(0),
            text(1),
            text(2)
        );
    }
    for (waiters, turns) in [(1_000, 21), (10_000, 9), (100_000, 5)] {
        let times: Vec<f64> = (0..turns).map(|_| whole_table(waiters)).collect();
        let least = times.iter().copied().fold(f64::MAX, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        println!(
            "a whole-table lock released over {waiters} waiting rows: {} each ({} to {})",
            shown(median(times)),
            shown(least),
            shown(most)
        );
    }
}
