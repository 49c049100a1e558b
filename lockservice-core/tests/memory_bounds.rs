//! What the engine calls memory is what the process uses, within a fifth, by a counting allocator:
//! for much of one kind, at several sizes between a number and its double, with short and long
//! keys. The collections of the engine grow in steps, so that a size just before a step differs
//! from one just after it.
//!
//! The handles of transactions belong to the caller. The holds that they list are counted.
#![cfg(not(loom))]

mod kit;

use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lockservice_core::allocator::TokenBlock;
use lockservice_core::clock::Time;
use lockservice_core::table::{
    EngineSettings, LockCall, LockEngine, LockRequest, TableHandle, TxnHandle, WaitPolicy,
};
use lockservice_core::{ErrorKind, FencingToken, Key, KeyRange, LockItem, LockMode};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use LockMode::{Exclusive, Shared, Update};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// What an allocator takes for a block beside its content: its header, and what it rounds up.
const BLOCK_BYTES: usize = 16;

/// The memory of this process that is in use, in bytes.
fn used() -> usize {
    let stats = INSTRUMENTED_SYSTEM.stats();
    let blocks = stats.allocations - stats.deallocations;
    stats.bytes_allocated - stats.bytes_deallocated + BLOCK_BYTES * blocks
}

/// The allocator counts for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An engine that is loaded with much of one kind.
struct Load {
    engine: LockEngine,
    table: TableHandle,
    txns: Vec<TxnHandle>,
    calls: Vec<LockCall>,
    key_bytes: usize,
}

impl Load {
    /// An engine with nothing, and handles of twice as many transactions.
    fn new(count: usize, key_bytes: usize) -> Self {
        let engine = LockEngine::new(EngineSettings {
            lock_bytes_max: usize::MAX / 2,
            txn_lock_bytes_max: usize::MAX / 2,
            waiters_max: usize::MAX,
            ..EngineSettings::default()
        });
        let tokens = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 << 40) };
        let table = engine.install(kit::bind(kit::VERSION), Some(tokens), None);
        let txns = (0..2 * count as u64).map(|at| TxnHandle::new(kit::txn(at))).collect();
        let (table, calls) = (table.expect("the first version"), Vec::with_capacity(count));
        Self { engine, table, txns, calls, key_bytes }
    }

    /// A key, scattered as those of an application are.
    fn key(&self, number: usize) -> Key {
        let mut bytes = vec![b'k'; self.key_bytes];
        let at = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & !1;
        bytes[..8].copy_from_slice(&at.to_be_bytes());
        Key::new(bytes).expect("a key")
    }

    fn row(&self, number: usize) -> LockItem {
        LockItem::Row(self.key(number))
    }

    /// A range that overlaps no other one.
    fn range(&self, number: usize) -> LockItem {
        let (start, mut end) = (self.key(number), self.key(number).as_bytes().to_vec());
        *end.last_mut().expect("8 bytes") += 1;
        let end = Bound::Excluded(Key::new(end).expect("a key"));
        LockItem::Range(KeyRange::new(Bound::Included(start), end).expect("a range"))
    }

    /// Holds a row in its shard.
    fn holds_at_once(&self, txn: usize, number: usize) {
        let key = self.key(number);
        let grant = self.engine.lock_row(&self.txns[txn], &self.table, &key, Exclusive);
        grant.expect("it is free");
    }

    fn call(&self, txn: usize, item: LockItem, mode: LockMode) -> LockCall {
        let (table, version) = (self.table.bind().id, self.table.bind().version);
        let wait = if matches!(mode, Update) { WaitPolicy::NoWait } else { WaitPolicy::Wait };
        let items = vec![item];
        let request = LockRequest { table, version, items, mode, wait, escalate: false };
        self.engine.lock(&self.txns[txn], request, Time::ZERO)
    }

    /// Holds an item in the state.
    fn holds(&self, txn: usize, item: LockItem, mode: LockMode) {
        kit::granted(self.call(txn, item, mode));
    }

    fn waits(&mut self, txn: usize, item: LockItem) {
        let mut call = self.call(txn, item, Exclusive);
        assert!(kit::poll(&mut call).is_pending());
        self.calls.push(call);
    }

    fn whole_table() -> LockItem {
        LockItem::Range(KeyRange::whole_table())
    }

    fn end(&mut self) {
        self.calls.clear();
        for txn in &self.txns {
            self.engine.unlock_all(txn, None);
        }
    }
}

/// Loads an engine with so much of a kind, and compares.
fn check(count: usize, key_bytes: usize, fill: impl Fn(&mut Load, usize)) {
    let mut load = Load::new(count, key_bytes);
    assert_eq!(load.engine.bytes(), 0);
    let before = used();
    fill(&mut load, count);
    let (full, said) = (used() - before, load.engine.bytes());
    let ratio = said as f64 / full as f64;
    let of = |bytes: usize| bytes / count;
    println!("{count} with keys of {key_bytes}: {} bytes each, {ratio:.3}", of(full));
    assert!(
        (0.8..=1.2).contains(&ratio),
        "{count} with keys of {key_bytes}: {} bytes each, the engine says {}",
        of(full),
        of(said)
    );
    load.end();
    assert_eq!(load.engine.bytes(), 0, "nothing is counted that is not there");
    let left = used().saturating_sub(before) as f64 / full as f64;
    assert!(left < 0.1, "{:.1} % of the memory was not given back", 100.0 * left);
}

/// Compares at several sizes and with keys of several lengths.
fn check_all(fill: impl Fn(&mut Load, usize)) {
    let _alone = alone();
    for (most, key_bytes) in [(10_000, 8), (2_000, 200), (500, 4_096)] {
        for part in [10, 13, 16, 20] {
            check(most * part / 20, key_bytes, &fill);
        }
    }
}

#[test]
fn rows_of_one_transaction() {
    check_all(|load, count| (0..count).for_each(|at| load.holds_at_once(0, at)));
}

#[test]
fn rows_of_transactions_with_a_few_each() {
    for each in [1, 2, 3, 5, 10] {
        check_all(|load, count| (0..count).for_each(|at| load.holds_at_once(at / each, at)));
    }
}

#[test]
fn rows_of_a_table_that_had_a_range() {
    check_all(|load, count| {
        load.holds_at_once(0, 0);
        let refused = load.call(1, Load::whole_table(), Update);
        assert_eq!(kit::kind(refused), ErrorKind::Conflict);
        (1..count).for_each(|at| load.holds_at_once(0, at));
    });
}

#[test]
fn rows_in_the_state_of_one_transaction_or_many() {
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds(0, load.row(at), Exclusive));
    });
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds(at, load.row(at), Exclusive));
    });
}

#[test]
fn rows_that_another_transaction_met() {
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds_at_once(at % 10, at));
        let refused = load.call(10, Load::whole_table(), Update);
        assert_eq!(kit::kind(refused), ErrorKind::Conflict);
    });
}

#[test]
fn ranges_of_one_transaction_or_many() {
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds(0, load.range(at), Exclusive));
    });
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds(at, load.range(at), Exclusive));
    });
}

#[test]
fn sharers_of_one_row_or_of_a_few() {
    for sharers in [2, 4, 30, usize::MAX] {
        check_all(|load, count| {
            (0..count).for_each(|at| load.holds(at, load.row(at / sharers), Shared));
        });
    }
}

#[test]
fn waiters_for_one_row() {
    check_all(|load, count| {
        load.holds(count, load.row(0), Exclusive);
        (0..count).for_each(|at| load.waits(at, load.row(0)));
    });
}

#[test]
fn waiters_for_many_rows() {
    check_all(|load, count| {
        load.holds(count, Load::whole_table(), Exclusive);
        (0..count).for_each(|at| load.waits(at, load.row(at)));
    });
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds_at_once(count, at));
        (0..count).for_each(|at| load.waits(at, load.row(at)));
    });
}

#[test]
fn waiters_for_ranges() {
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds(count, load.range(at), Exclusive));
        (0..count).for_each(|at| load.waits(at, load.range(at)));
    });
}

#[test]
fn upgraded_holds() {
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds(0, load.row(at), Shared));
        (0..count).for_each(|at| load.holds(0, load.row(at), Update));
    });
    check_all(|load, count| {
        (0..count).for_each(|at| load.holds(at, load.row(at), Shared));
        (0..count).for_each(|at| load.holds(at, load.row(at), Exclusive));
    });
}

#[test]
fn a_mix_of_all() {
    check_all(|load, count| {
        for at in 0..count {
            // The transactions of different kinds are different ones, and so are the rows.
            match at % 8 {
                0..3 => load.holds_at_once(at / 100 * 8, at),
                3 => load.holds_at_once(at, at),
                4 => load.holds(at / 50 * 8 + 4, load.range(at), Exclusive),
                5 => load.holds(at, load.row(count + at / 64), Shared),
                6 => load.holds(at, load.row(at), Shared),
                _ => {
                    load.holds(count + at, load.row(at), Exclusive);
                    load.waits(at, load.row(at));
                }
            }
        }
    });
}
