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
//! | *ranges* | `Txn::lock_row` while 1,000 ranges are held | the same with none |
//! | *two threads* | on one table | on two services |
//! | *memory* | resident bytes of a held row in one transaction | |
//!
//! With `--count CASE` it runs nothing but 100,000 cycles of that case (1: at once, 2: the map, 3:
//! general), with 100,000 rows held, for a tool that counts instructions:
//!
//! ```sh
//! valgrind --tool=callgrind --toggle-collect='*rows::slice*' BINARY --bench --count 1
//! ```
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]

use std::collections::HashMap;
use std::hint::black_box;
use std::ops::Bound;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::service::{
    LockService, LockSpec, ServiceParts, ServiceSettings, Table, Txn, TxnOptions,
};
use lockservice_core::store::{ClusterConstants, MemoryStore};
use lockservice_core::{Key, KeyRange, LockItem, LockMode, NodeName, TableRef};
use parking_lot::Mutex;

/// Cycles of one slice.
const SLICE: u64 = 2_000;
const SLICES: u64 = 100;
const ROUNDS: usize = 7;

/// The memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A clock that valgrind can run: it lacks the kernel's page that `SystemClock` reads.
#[derive(Debug)]
struct ValgrindClock(Instant);

impl Clock for ValgrindClock {
    fn now(&self) -> Time {
        Time::from_origin(self.0.elapsed())
    }
}

/// A service with one table.
struct Served {
    service: LockService,
    table: Table,
}

fn name() -> TableRef {
    TableRef::new("bench", "rows").unwrap()
}

async fn serve(clock: Arc<dyn Clock>) -> Served {
    let settings = AllocatorSettings {
        constants: ClusterConstants { lease_ttl_ms: 3_600_000, ..ClusterConstants::default() },
        ..AllocatorSettings::default()
    };
    let node = NodeName::new("node").unwrap();
    let store = Arc::new(MemoryStore::new(1));
    let allocator =
        LocalAllocator::open(store, Arc::clone(&clock), settings, node.clone()).await.unwrap();
    let settings = ServiceSettings { txns_max: 1 << 20, ..ServiceSettings::default() };
    let parts = ServiceParts { settings, ..ServiceParts::new(allocator, clock, node) };
    let service = LockService::start(parts).await.unwrap();
    let first = service.begin(TxnOptions::default()).unwrap();
    first.lock(LockSpec::new(name(), vec![LockItem::Row(key(0))])).await.unwrap();
    first.end(None);
    let table = service.table(&name()).unwrap();
    Served { service, table }
}

/// 16 bytes; consecutive numbers are far apart.
fn bytes(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn key(number: u64) -> Key {
    Key::new(bytes(number)).unwrap()
}

/// A transaction that holds the rows `0..rows`.
fn holding(served: &Served, rows: u64) -> Txn {
    let txn = served.service.begin(TxnOptions::default()).unwrap();
    for number in 0..rows {
        txn.lock_row(&served.table, &key(number), LockMode::Exclusive).unwrap();
    }
    txn
}

#[inline(never)]
fn slice_at_once(served: &Served, from: u64) {
    for number in from..from + SLICE {
        let txn = served.service.begin(TxnOptions::default()).unwrap();
        let locked = txn.lock_row(&served.table, &key(number), LockMode::Exclusive).unwrap();
        black_box(locked.token);
        txn.end(None);
    }
}

#[inline(never)]
fn slice_general(served: &Served, from: u64) {
    for number in from..from + SLICE {
        let txn = served.service.begin(TxnOptions::default()).unwrap();
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

/// The output of a future that waits for nothing.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the row is free"),
    }
}

/// The CPU time of this thread, in nanoseconds.
fn cpu() -> f64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    at.tv_sec as f64 * 1e9 + at.tv_nsec as f64
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
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

/// Both sides in turns: the median of each, and of their ratio.
fn beside(what: &str, ours: impl Fn() -> f64, theirs: impl Fn() -> f64) {
    let turns: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (ours(), theirs())).collect();
    let ratios: Vec<f64> = turns.iter().map(|(a, b)| a / b).collect();
    let of = |side: fn(&(f64, f64)) -> f64| median(turns.iter().map(side).collect());
    let least = ratios.iter().copied().fold(f64::MAX, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    println!(
        "{what}: {:.0} ns beside {:.0} ns, ratio {:.2} ({least:.2} to {most:.2})",
        of(|turn| turn.0),
        of(|turn| turn.1),
        median(ratios),
    );
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

fn memory(served: &Served) {
    const ROWS: usize = 1_000_000;
    let before = resident();
    let txn = holding(served, ROWS as u64);
    let held = resident() - before;
    txn.end(None);
    let left = resident().saturating_sub(before);
    println!(
        "memory of {ROWS} rows held by one transaction: {} bytes each; {} % of it is left after \
            the release",
        held / ROWS,
        100 * left / held
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
        let _held = holding(&served, 100_000);
        map.lock().extend((0..100_000).map(|number| (bytes(number), number)));
        for slice in 0..100_000 / SLICE {
            let from = (1 << 40) + slice * SLICE;
            match arguments[at + 1].as_str() {
                "1" => slice_at_once(&served, from),
                "2" => slice_of_map(&map, from),
                _ => slice_general(&served, from),
            }
        }
        return;
    }
    let [served, other] = [(); 2].map(|()| runtime.block_on(serve(Arc::new(SystemClock))));
    for resident in [0, 100_000] {
        let held = holding(&served, resident);
        map.lock().extend((0..resident).map(|number| (bytes(number), number)));
        let theirs = || measure(1 << 40, |from| slice_of_map(&map, from));
        let at_once = || measure(1 << 40, |from| slice_at_once(&served, from));
        beside(&format!("at once, {resident} held"), at_once, theirs);
        let general = || measure(1 << 40, |from| slice_general(&served, from));
        beside(&format!("general, {resident} held"), general, theirs);
        held.end(None);
    }
    let both = || two_threads(&served, &served);
    beside("two threads on one table, beside two services", both, || two_threads(&served, &other));
    memory(&other);

    let ranges = other.service.begin(TxnOptions::default()).unwrap();
    for number in 0..1_000_u16 {
        let end = |last| {
            let [high, low] = number.to_be_bytes();
            Bound::Included(Key::new([b'z', high, low, last]).unwrap())
        };
        let item = LockItem::Range(KeyRange::new(end(0), end(9)).unwrap());
        ready(ranges.lock(LockSpec::new(name(), vec![item]))).unwrap();
    }
    let at_once = |served| measure(1 << 40, |from| slice_at_once(served, from));
    beside("while 1000 ranges are held, beside none", || at_once(&other), || at_once(&served));
    ranges.end(None);
}
