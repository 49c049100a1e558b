//! Commit admission with four binds among 100,000 tables: begin_commit + finish_commit.
//!
//! Each case is measured on one thread, then on two threads that share one allocator beside two
//! that have one each, in turn. So only the ratio counts, for other work of the machine slows both
//! sides. Times are CPU times of the calling thread: the median of many slices.
//!
//! - *numbers alone*: the origin has reported nothing about its transactions to the allocator, as
//!   an origin on another node that has just started.
//! - *origin here*: the transactions are alive in a service of this process.
//! - *trait*: as *origin here*, through `dyn LockTableAllocator` and its boxed futures.
//!
//! ```sh
//! cargo bench -p lockservice-core --bench allocator
//! ```
//!
//! With `--count CASE` it runs nothing but 100,000 cycles of that case (1 to 3), for a tool that
//! counts instructions:
//!
//! ```sh
//! valgrind --tool=callgrind --toggle-collect='*allocator::slice*' BINARY --bench --count 2
//! ```
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]

#[path = "kit/mod.rs"]
mod kit;

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kit::{ValgrindClock, cpu, median, ready};
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Registration,
};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::{LockService, ServiceParts, ServiceSettings, Txn, TxnOptions};
use lockservice_core::store::{ClusterConstants, MemoryStore};
use lockservice_core::{CommitAttempt, NodeName, Nonce, ServiceId, TableRef, TxnId, TxnNumber};

const TABLES: usize = 100_000;
const BINDS: usize = 4;
/// Transactions of one thread, used one after another, again and again.
const TXNS: usize = 10_000;
/// Cycles of one slice.
const SLICE: usize = 2_000;
const SLICES: usize = 50;
const ROUNDS: usize = 5;

/// The origin of the transactions, and the admission of their commits.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    NumbersAlone,
    OriginHere,
    Trait,
}

const CASES: [(Case, &str); 3] = [
    (Case::NumbersAlone, "numbers alone"),
    (Case::OriginHere, "origin here"),
    (Case::Trait, "trait"),
];

/// An allocator, with an origin that is a service of this process and one that is not.
struct Prepared {
    allocator: Arc<LocalAllocator>,
    service: LockService,
    elsewhere: ServiceId,
    binds: Vec<PresentedBind>,
}

async fn prepare(clock: Arc<dyn Clock>) -> Prepared {
    let settings = AllocatorSettings {
        constants: ClusterConstants { lease_ttl_ms: 3_600_000, ..ClusterConstants::default() },
        ..AllocatorSettings::default()
    };
    let [here, there] = ["here", "there"].map(|name| NodeName::new(name).unwrap());
    let store = Arc::new(MemoryStore::new(1));
    let allocator =
        LocalAllocator::open(store, Arc::clone(&clock), settings, here.clone()).await.unwrap();
    let shared: Arc<dyn LockTableAllocator> = Arc::<LocalAllocator>::clone(&allocator);
    let parts = ServiceParts {
        settings: ServiceSettings { txns_max: 8 * TXNS, ..ServiceSettings::default() },
        ..ServiceParts::new(shared, clock, here)
    };
    let service = LockService::start(parts).await.unwrap();
    let nonce = Nonce::new(1);
    let register = Registration { node: there, nonce, address: String::new(), replaces: None };
    let elsewhere = allocator.register(&register).await.unwrap().service;
    let (mut tasks, owner) = (tokio::task::JoinSet::new(), service.id());
    for n in 0..TABLES {
        let allocator = Arc::clone(&allocator);
        tasks.spawn(async move {
            let table = TableRef::new("bench", format!("table-{n}")).unwrap();
            PresentedBind::from(&allocator.bind(owner, &table).await.unwrap().bind)
        });
    }
    Prepared { allocator, service, elsewhere, binds: tasks.join_all().await }
}

/// The commits of one thread: thread `part` of `parts` has tables of its own.
struct Work {
    requests: Vec<BeginCommit>,
    /// Alive as long as their commits are requested.
    _txns: Vec<Txn>,
}

impl Work {
    fn new(prepared: &Prepared, case: Case, part: usize, parts: usize) -> Self {
        let validating = || TxnOptions { validates: true, ..TxnOptions::default() };
        let txns: Vec<Txn> = match case {
            Case::NumbersAlone => Vec::new(),
            _ => (0..TXNS).map(|_| prepared.service.begin(validating()).unwrap()).collect(),
        };
        let id = |n: usize| match txns.get(n) {
            Some(txn) => txn.id(),
            None => TxnId::new(prepared.elsewhere, TxnNumber::new((n * parts + part) as u64), true),
        };
        let bind = |n: usize| {
            let at = n.wrapping_mul(0x9e37_79b9) % (TABLES / parts);
            prepared.binds[at * parts + part]
        };
        let request = |n: usize| BeginCommit {
            txn: id(n),
            binds: (0..BINDS).map(|i| bind(n * BINDS + i)).collect(),
            attempt: CommitAttempt::new(n as u64),
            window: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
        };
        Self { requests: (0..TXNS).map(request).collect(), _txns: txns }
    }

    /// The `n`th slice of cycles.
    fn slice(&self, allocator: &LocalAllocator, case: Case, n: usize) {
        let from = n * SLICE % self.requests.len();
        if case == Case::Trait {
            slice_through_trait(allocator, &self.requests[from..from + SLICE]);
        } else {
            slice(allocator, &self.requests[from..from + SLICE]);
        }
    }
}

#[inline(never)]
fn slice(allocator: &LocalAllocator, requests: &[BeginCommit]) {
    for request in requests {
        allocator.begin_commit_now(request).unwrap();
        allocator.finish_commit_now(request.txn, request.attempt);
    }
}

#[inline(never)]
fn slice_through_trait(allocator: &dyn LockTableAllocator, requests: &[BeginCommit]) {
    for request in requests {
        ready(allocator.begin_commit(request)).unwrap();
        ready(allocator.finish_commit(request.txn, request.attempt)).unwrap();
    }
}

/// One thread of a measurement.
type Thread<'a> = (&'a LocalAllocator, &'a Work);

/// Nanoseconds of a cycle on each of the threads: the median slice.
fn measure(case: Case, threads: &[Thread<'_>]) -> f64 {
    let start = Barrier::new(threads.len());
    let on_one = |(allocator, work): Thread<'_>| {
        // Warm: every transaction once.
        (0..TXNS / SLICE).for_each(|n| work.slice(allocator, case, n));
        start.wait();
        let time = |n| {
            let before = cpu();
            work.slice(allocator, case, n);
            (cpu() - before) / SLICE as f64
        };
        median((0..SLICES).map(time).collect())
    };
    std::thread::scope(|scope| {
        let on_one = &on_one;
        let running: Vec<_> =
            threads.iter().map(|&thread| scope.spawn(move || on_one(thread))).collect();
        let times = running.into_iter().map(|thread| thread.join().unwrap());
        times.sum::<f64>() / threads.len() as f64
    })
}

/// Runs 100,000 cycles of one case, for a tool that counts instructions.
fn count(case: Case, prepared: &Prepared) {
    let work = Work::new(prepared, case, 0, 1);
    (0..100_000 / SLICE).for_each(|n| work.slice(&prepared.allocator, case, n));
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // A transaction that is dropped is ended by a task.
    let _entered = runtime.enter();
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--count") {
        let (case, _) = CASES[arguments[at + 1].parse::<usize>().unwrap() - 1];
        let clock = Arc::new(ValgrindClock(Instant::now()));
        return count(case, &runtime.block_on(prepare(clock)));
    }
    let prepare = || runtime.block_on(prepare(Arc::new(SystemClock)));
    let (a, b) = (prepare(), prepare());
    println!("begin_commit + finish_commit, {BINDS} binds among {TABLES} tables:");
    for (case, name) in CASES {
        let whole = Work::new(&a, case, 0, 1);
        let [first, second] = [0, 1].map(|part| Work::new(&a, case, part, 2));
        let second_of_b = Work::new(&b, case, 1, 2);
        let (mut one, mut together, mut separate) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            one.push(measure(case, &[(&a.allocator, &whole)]));
            together.push(measure(case, &[(&a.allocator, &first), (&a.allocator, &second)]));
            separate.push(measure(case, &[(&a.allocator, &first), (&b.allocator, &second_of_b)]));
        }
        let (one, together, separate) = (median(one), median(together), median(separate));
        println!(
            "{name:<13}: one thread {one:.0} ns; two threads on one allocator {together:.0} ns, \
                on two {separate:.0} ns, ratio {:.2}",
            separate / together
        );
    }
}
