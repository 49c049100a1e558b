//! Commit admission among 100,000 tables, on one thread, and on two beside two separate allocators:
//! one run, so that the ratio counts.
//!
//! `cargo bench -p lockservice-core --bench allocator`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Registration,
};
use lockservice_core::clock::SystemClock;
use lockservice_core::store::{ClusterConstants, MemoryStore};
use lockservice_core::{CommitAttempt, NodeName, Nonce, ServiceId, TableRef, TxnId};

const TABLES: usize = 100_000;
const CYCLES: u64 = 300_000;

struct Prepared {
    allocator: Arc<LocalAllocator>,
    origin: ServiceId,
    binds: Vec<PresentedBind>,
}

async fn prepare() -> Prepared {
    let settings = AllocatorSettings {
        constants: ClusterConstants { lease_ttl_ms: 3_600_000, ..ClusterConstants::default() },
        ..AllocatorSettings::default()
    };
    let node = NodeName::new("bench").unwrap();
    let store = Arc::new(MemoryStore::new(1));
    let allocator =
        LocalAllocator::open(store, Arc::new(SystemClock), settings, node.clone()).await.unwrap();
    let register =
        Registration { node, nonce: Nonce::new(1), address: String::new(), replaces: None };
    let origin = allocator.register(&register).await.unwrap().service;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..TABLES {
        let allocator = Arc::clone(&allocator);
        tasks.spawn(async move {
            let table = TableRef::new("bench", format!("table-{n}")).unwrap();
            PresentedBind::from(&allocator.bind(origin, &table).await.unwrap().bind)
        });
    }
    Prepared { allocator, origin, binds: tasks.join_all().await }
}

/// Nanoseconds per begin_commit + finish_commit with four binds; thread `part` of `parts` uses
/// tables of its own.
fn cycles(prepared: &Prepared, part: u64, parts: u64, start: &Barrier) -> f64 {
    let window = CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) };
    // Built before: the caller has them from its lock results.
    let requests: Vec<BeginCommit> = (0..10_000u64)
        .map(|n| BeginCommit {
            txn: TxnId::new(prepared.origin, n * parts + part, true),
            binds: (0..4)
                .map(|i| {
                    let at =
                        (n * 4 + i).wrapping_mul(0x9e37_79b9) as usize % (TABLES / parts as usize);
                    prepared.binds[at * parts as usize + part as usize].clone()
                })
                .collect(),
            attempt: CommitAttempt::new(n),
            window,
        })
        .collect();
    start.wait();
    let begun = Instant::now();
    for n in 0..CYCLES {
        let request = &requests[n as usize % requests.len()];
        prepared.allocator.begin_commit_now(request).unwrap();
        prepared.allocator.finish_commit_now(request.txn, request.attempt);
    }
    begun.elapsed().as_nanos() as f64 / CYCLES as f64
}

fn two(a: &Prepared, b: &Prepared) -> f64 {
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| cycles(a, 0, 2, &start));
        let second = scope.spawn(|| cycles(b, 1, 2, &start));
        (first.join().unwrap() + second.join().unwrap()) / 2.0
    })
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (a, b) = (runtime.block_on(prepare()), runtime.block_on(prepare()));
    for round in 0..3 {
        let one = cycles(&a, 0, 1, &Barrier::new(1));
        let (together, separate) = (two(&a, &a), two(&a, &b));
        println!(
            "round {round}: one thread {one:.0} ns, two threads on one allocator {together:.0} \
                ns, on two {separate:.0} ns, ratio {:.2}",
            separate / together
        );
    }
}
