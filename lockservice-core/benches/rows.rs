//! Lock and unlock of a free row through the service, beside insert and remove in a bare map under
//! a mutex.
//!
//! Each cycle begins a transaction, locks one row with a 16-byte key, and ends the transaction.
//! Times are CPU times of the calling thread, the median of many slices, both sides in turns. So
//! only the ratio counts, for other work of the machine slows both sides.
//!
//! ```sh
//! cargo bench -p lockservice-core --bench rows
//! ```
//!
//! | line | one side | other side |
//! |---|---|---|
//! | *at once* | `Txn::lock_row` | `parking_lot::Mutex<HashMap<[u8; 16], u64>>` |
//! | *general* | `Txn::lock`, polled | the same |
//! | *lock-db* | `Txn::lock_row` | `LockManager` of lock-db, which has no waits and no tokens |
//! | *two threads* | on one table | on two services |
//! | *while 1000 ranges* | `Txn::lock_row` while 1,000 ranges are held | the same with none |
//! | *a range* | a range over 10 keys, beside 1,000,000 other rows that are held | the same with none |
//! | *memory* | resident bytes of a held row, in one transaction and in many | |
//!
//! With `--only WORD` it measures the lines whose name has that word.
//!
//! With `--count CASE` it runs nothing but 100,000 cycles of that case (1: at once, 2: the map, 3:
//! general, 4: a range), with 100,000 rows held, for a tool that counts instructions:
//!
//! ```sh
//! valgrind --tool=callgrind --toggle-collect='*rows::slice*' BINARY --bench --count 1
//! ```
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]

#[path = "kit/mod.rs"]
mod kit;

use std::collections::HashMap;
use std::hint::black_box;
use std::ops::Bound;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use kit::served::{Served, name, serve};
use kit::{ValgrindClock, beside, bytes, cpu, is_wanted, key, median, ready, resident};
use lockservice_core::clock::SystemClock;
use lockservice_core::service::{LockSpec, Txn};
use lockservice_core::{Key, KeyRange, LockItem, LockMode};
use parking_lot::Mutex;

/// Cycles of one slice.
const SLICE: u64 = 2_000;
const SLICES: u64 = 100;
const ROUNDS: usize = 7;

#[inline(never)]
fn slice_at_once(served: &Served, from: u64) {
    for number in from..from + SLICE {
        let txn = served.begin();
        let locked = txn.lock_row(&served.table, &key(number), LockMode::Exclusive).unwrap();
        black_box(locked.token);
        txn.end(None);
    }
}

#[inline(never)]
fn slice_general(served: &Served, from: u64) {
    for number in from..from + SLICE {
        let txn = served.begin();
        let spec = LockSpec::new(name(), vec![LockItem::Row(key(number))]);
        black_box(ready(txn.lock(spec)).unwrap().grant.token);
        txn.end(None);
    }
}

#[inline(never)]
fn slice_of_map(map: &Mutex<HashMap<[u8; 16], u64>>, from: u64) {
    for number in from..from + SLICE {
        map.lock().insert(bytes(number), number);
        black_box(map.lock().remove(&bytes(number)));
    }
}

/// A transaction of lock-db locks one resource, and releases all that it has.
#[inline(never)]
fn slice_of_lock_db(locks: &lock_db::LockManager, from: u64) {
    for number in from..from + SLICE {
        let txn = lock_db::TxnId::new(number);
        let resource = lock_db::ResourceId::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        locks.try_acquire(txn, resource, lock_db::LockMode::Exclusive).unwrap();
        black_box(locks.release_all(txn));
    }
}

/// Locks the range around ten keys beside the hashed ones, which are held.
#[inline(never)]
fn slice_of_ranges(served: &Served, cycles: u64) {
    for number in 0..cycles {
        let txn = served.begin();
        black_box(ready(txn.lock(range_of_ten(number))).unwrap().grant.token);
        txn.end(None);
    }
}

/// Ten keys of 16 bytes between those of the benchmark: at another place for each number.
fn range_of_ten(number: u64) -> LockSpec {
    let end = |last: u64| {
        let mut key = bytes(number);
        // No held key has such a number there.
        key[8..].copy_from_slice(&(u64::MAX - 9 + last).to_be_bytes());
        Bound::Included(Key::new(key).unwrap())
    };
    LockSpec::new(name(), vec![LockItem::Range(KeyRange::new(end(0), end(9)).unwrap())])
}

/// Nanoseconds of a cycle: the median slice. Numbers from `from` on are locked.
fn measure(from: u64, slice: impl Fn(u64)) -> f64 {
    let time = |n| {
        let before = cpu();
        slice(from + n * SLICE);
        (cpu() - before) / SLICE as f64
    };
    (0..SLICES / 10).for_each(|n| slice(from + n * SLICE));
    median((0..SLICES).map(time).collect())
}

/// The threads work on rows of their own. Nanoseconds of a cycle on each.
fn two_threads(first: &Served, second: &Served) -> f64 {
    let start = Barrier::new(2);
    let on_one = |served, from| {
        start.wait();
        measure(from, |at| slice_at_once(served, at))
    };
    std::thread::scope(|scope| {
        let one = scope.spawn(|| on_one(first, 1 << 40));
        (on_one(second, 1 << 41) + one.join().unwrap()) / 2.0
    })
}

const ROWS: u64 = 1_000_000;

/// Resident bytes of a row, and what is left of them after the release.
fn memory(what: &str, hold: impl FnOnce() -> Vec<Txn>) {
    if !is_wanted("memory") {
        return;
    }
    let before = resident();
    let held = hold();
    let bytes = resident() - before;
    for txn in held {
        txn.end(None);
    }
    let left = resident().saturating_sub(before);
    println!(
        "memory of {ROWS} rows, {what}: {} bytes each; {} % of it is left after the release",
        bytes / ROWS as usize,
        100 * left / bytes
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // A transaction that is dropped is ended by a task.
    let _entered = runtime.enter();
    let arguments: Vec<String> = std::env::args().collect();
    let map = Mutex::new(HashMap::new());
    if let Some(at) = arguments.iter().position(|argument| argument == "--count") {
        let served = runtime.block_on(serve(Arc::new(ValgrindClock(Instant::now()))));
        let _held = served.holding(100_000);
        map.lock().extend((0..100_000).map(|number| (bytes(number), number)));
        for slice in 0..100_000 / SLICE {
            let from = (1 << 40) + slice * SLICE;
            match arguments[at + 1].as_str() {
                "1" => slice_at_once(&served, from),
                "2" => slice_of_map(&map, from),
                "3" => slice_general(&served, from),
                _ => slice_of_ranges(&served, SLICE),
            }
        }
        return;
    }
    let [served, other] = [(); 2].map(|()| runtime.block_on(serve(Arc::new(SystemClock))));
    for resident in [0, 100_000] {
        let held = served.holding(resident);
        map.lock().extend((0..resident).map(|number| (bytes(number), number)));
        let theirs = || measure(1 << 40, |from| slice_of_map(&map, from));
        let at_once = || measure(1 << 40, |from| slice_at_once(&served, from));
        beside(&format!("at once, {resident} held"), ROUNDS, at_once, theirs);
        let general = || measure(1 << 40, |from| slice_general(&served, from));
        beside(&format!("general, {resident} held"), ROUNDS, general, theirs);
        held.end(None);
    }
    let locks = lock_db::LockManager::new();
    let at_once = |served| measure(1 << 40, |from| slice_at_once(served, from));
    let of_lock_db = || measure(1 << 40, |from| slice_of_lock_db(&locks, from));
    beside("at once, beside lock-db", ROUNDS, || at_once(&served), of_lock_db);

    let both = || two_threads(&served, &served);
    let separate = || two_threads(&served, &other);
    beside("two threads on one table, beside two services", ROUNDS, both, separate);

    let ranges = other.begin();
    for number in 0..1_000_u16 {
        let end = |last| {
            let [high, low] = number.to_be_bytes();
            Bound::Included(Key::new([b'z', high, low, last]).unwrap())
        };
        let item = LockItem::Range(KeyRange::new(end(0), end(9)).unwrap());
        ready(ranges.lock(LockSpec::new(name(), vec![item]))).unwrap();
    }
    let (with, without) = (|| at_once(&other), || at_once(&served));
    beside("while 1000 ranges are held, beside none", ROUNDS, with, without);
    ranges.end(None);

    let held = other.holding(ROWS);
    let range = |served| measure(0, |_| slice_of_ranges(served, SLICE));
    let (full, empty) = (|| range(&other), || range(&served));
    beside(&format!("a range, {ROWS} other rows held, beside none"), ROUNDS, full, empty);
    held.end(None);

    memory("held by one transaction", || vec![other.holding(ROWS)]);
    memory("each by a transaction of its own", || {
        let hold = |number| {
            let txn = other.begin();
            other.hold(&txn, number);
            txn
        };
        (0..ROWS).map(hold).collect()
    });
}
