//! What a session keeps for replays is what the process uses, within a fifth, by a counting
//! allocator.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator};
use lockservice_core::service::{
    LockService, LockSpec, Operation, ServiceParts, ServiceSettings, TxnOp, TxnOptions,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::table::WaitPolicy;
use lockservice_core::testing::TokioClock;
use lockservice_core::{Key, LockItem, NodeName, Sequence, TableRef, TxnNumber};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// What an allocator takes for a block beside its content: its header, and what it rounds up.
const BLOCK_BYTES: usize = 16;

/// Transactions whose responses are kept.
const TXNS: u64 = 8;

/// The memory of this process that is in use, in bytes.
fn used() -> usize {
    let stats = INSTRUMENTED_SYSTEM.stats();
    let blocks = stats.allocations - stats.deallocations;
    stats.bytes_allocated - stats.bytes_deallocated + BLOCK_BYTES * blocks
}

async fn service() -> LockService {
    let node = NodeName::new("n").expect("a name");
    let (store, clock) = (Arc::new(MemoryStore::new(1)), TokioClock::new());
    let allocator =
        LocalAllocator::open(store, Arc::new(clock), AllocatorSettings::default(), node.clone())
            .await;
    let settings =
        ServiceSettings { kept_bytes_per_session_max: 1 << 30, ..ServiceSettings::default() };
    let parts = ServiceParts {
        settings,
        ..ServiceParts::new(allocator.expect("a fresh store"), Arc::new(clock), node)
    };
    LockService::start(parts).await.expect("the service starts")
}

fn op(txn: u64, sequence: u64) -> TxnOp {
    TxnOp {
        number: TxnNumber::new(txn),
        sequence: Sequence::new(sequence),
        acked: Sequence::default(),
        options: TxnOptions::default(),
    }
}

fn table() -> TableRef {
    TableRef::new("g", "t").expect("names")
}

fn row(txn: u64, n: u64, key_bytes: usize) -> LockItem {
    LockItem::Row(Key::new(format!("{txn:04}{n:0>width$}", width = key_bytes - 4)).expect("a key"))
}

/// A row of the first transaction.
fn row_held_by_another() -> LockItem {
    row(1, 0, 8)
}

/// Submits operations whose responses a session keeps, compares what that takes, and ends them.
async fn check(what: &str, ops: u64, operation: impl Fn(u64, u64) -> Operation) {
    let service = service().await;
    let session = service.open_session(None, "test").expect("a session");
    // What is made once is there before.
    let first = Operation::Lock(LockSpec::new(table(), vec![row(1, 0, 8)]));
    session.submit(op(1, 1), first).await.expect("free");
    let said = || service.kept_bytes() + service.lock_bytes();
    let (said_before, before) = (said(), used());
    let txns = 2..2 + TXNS;
    for txn in txns.clone() {
        for sequence in 1..=ops {
            // Some are refused; the refusal is kept.
            let _ = session.submit(op(txn, sequence), operation(txn, sequence)).await;
        }
    }
    let (full, said_now) = (used() - before, said() - said_before);
    let ratio = said_now as f64 / full as f64;
    let each = |bytes: usize| bytes as u64 / (TXNS * ops);
    println!("{what}, {ops} a transaction: {} bytes each, {ratio:.3}", each(full));
    assert!(
        (0.8..=1.2).contains(&ratio),
        "{what}, {ops} a transaction: {} bytes each, the service says {}",
        each(full),
        each(said_now)
    );
    for txn in txns {
        session.submit(op(txn, ops + 1), Operation::End { commit: None }).await.expect("it ends");
    }
    assert_eq!(said(), said_before, "nothing is counted that is not there");
    let left = used().saturating_sub(before) as f64 / full as f64;
    assert!(left < 0.1, "{what}: {:.1} % of the memory was not given back", 100.0 * left);
}

#[tokio::test(start_paused = true)]
async fn responses_are_counted_with_what_they_take() {
    let lock = |items| Operation::Lock(LockSpec::new(table(), items));
    for (key_bytes, ops) in [(12, 130), (12, 200), (12, 250), (200, 160), (4_096, 100)] {
        let row = |txn, n| row(txn, n, key_bytes);
        let what = |what| format!("{what}, keys of {key_bytes}");
        check(&what("locks"), ops, |txn, n| lock(vec![row(txn, n)])).await;
        check(&what("locks of ten"), ops, |txn, n| {
            lock((0..10).map(|at| row(txn, n * 10 + at)).collect())
        })
        .await;
        check(&what("locks of the same row"), ops, |txn, _| lock(vec![row(txn, 1)])).await;
        check(&what("locks and unlocks"), ops, |txn, n| match n % 2 {
            1 => lock(vec![row(txn, n)]),
            _ => {
                let items = vec![row(txn, n - 1)];
                Operation::Unlock { table: table(), items, commit: None }
            }
        })
        .await;
        check(&what("refusals"), ops, |_, _| {
            let items = vec![row_held_by_another()];
            let at_once = LockSpec { wait: WaitPolicy::NoWait, ..LockSpec::new(table(), items) };
            Operation::Lock(at_once)
        })
        .await;
        check(&what("unlocks"), ops, |txn, n| Operation::Unlock {
            table: table(),
            items: vec![row(txn, n)],
            commit: None,
        })
        .await;
    }
}
