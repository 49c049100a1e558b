//! Lists for operators: of one row, beside grants and releases, and in slices of bounded work.

mod kit;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use LockMode::{Exclusive, Shared};
use kit::by_id::LockEngine;
use kit::cost::{self, HOT, OTHER};
use kit::{TABLE, engine, granted, key, lock, poll, range, row, txn};
use lockservice_core::table::{LockCall, LockInfo, engine_steps};
use lockservice_core::{Key, LockItem, LockMode, TableId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn waits(engine: &LockEngine, who: u64, item: LockItem, mode: LockMode) -> LockCall {
    let mut call = lock(engine, who, [item], mode);
    assert!(poll(&mut call).is_pending(), "{who} waits");
    call
}

/// The list of a row of the table, in slices of so many lines.
fn list(engine: &LockEngine, row: &str, most: usize) -> Vec<LockInfo> {
    let mut list = engine.by_handle().row_list(TABLE, key(row));
    std::iter::from_fn(|| list.next_slice(most)).flatten().collect()
}

/// The transaction, whether it waits, and its item.
fn shown(lines: Vec<LockInfo>) -> Vec<(u64, bool, String)> {
    let line = |line: LockInfo| {
        (line.txn.number().get(), line.waiting_since.is_some(), line.item.to_string())
    };
    lines.into_iter().map(line).collect()
}

#[test]
fn the_list_of_a_row_has_what_overlaps_it_and_then_those_who_wait_in_their_order() {
    let engine = engine();
    // Held without contention, until another wants it.
    assert!(engine.lock_row(txn(1), TABLE, &key("k"), Shared).is_some());
    assert!(engine.lock_row(txn(1), TABLE, &key("other"), Exclusive).is_some());
    assert_eq!(shown(list(&engine, "k", 1)), [(1, false, "k".to_owned())]);
    assert!(list(&engine, "none", 1).is_empty());

    granted(lock(&engine, 2, [row("k")], Shared));
    granted(lock(&engine, 3, [range("a", "l")], Shared));
    granted(lock(&engine, 3, [range("m", "n")], Exclusive));
    let waiting = [
        waits(&engine, 4, row("k"), Exclusive),
        waits(&engine, 5, range("j", "z"), Exclusive),
        waits(&engine, 6, row("other"), Exclusive),
        waits(&engine, 7, row("k"), Shared),
        waits(&engine, 8, range("b", "y"), Shared),
    ];
    let expected = [
        (1, false, "k"),
        (2, false, "k"),
        (3, false, "[a, l]"),
        (4, true, "k"),
        (5, true, "[j, z]"),
        (7, true, "k"),
        (8, true, "[b, y]"),
    ];
    let expected = expected.map(|(who, waits, item)| (who, waits, item.to_owned()));
    for most in [1, 2, 3, 100] {
        assert_eq!(shown(list(&engine, "k", most)), expected, "{most} lines in a slice");
    }
    assert_eq!(list(&engine, "k", 100)[0].waiters, 2, "who waits for a lock is counted");
    assert_eq!(list(&engine, "b", 100).len(), 2, "a range, and a wait for a range");
    drop(waiting);
    let mut none = engine.by_handle().row_list(TableId::new(7), key("k"));
    assert_eq!(std::iter::from_fn(|| none.next_slice(9)).flatten().count(), 0, "no such table");
}

#[test]
fn the_list_of_a_row_costs_what_overlaps_it_and_not_what_is_in_the_table() {
    let steps = |n: u64| {
        let engine = cost::engine(1, true);
        (0..n).for_each(|who| cost::holds(&engine, who, cost::row(who), Exclusive));
        let mut calls: Vec<LockCall> =
            (0..n).map(|who| cost::waits(&engine, n + who, cost::row(who), Exclusive)).collect();
        cost::holds(&engine, OTHER, cost::row(HOT), Exclusive);
        calls.extend((1..6).map(|who| cost::waits(&engine, OTHER + who, cost::row(HOT), Shared)));
        let before = engine_steps();
        let key = Key::new(HOT.to_be_bytes()).expect("a key");
        let mut list = engine.by_handle().row_list(TableId::new(cost::TABLE), key);
        assert_eq!(std::iter::from_fn(|| list.next_slice(2)).flatten().count(), 6);
        engine_steps() - before
    };
    assert_eq!(steps(10), steps(1_000));
}

#[test]
fn a_slice_has_few_lines_however_many_are_wanted() {
    let engine = engine();
    (0..500).for_each(|n: u64| {
        assert!(engine.lock_row(txn(1), TABLE, &key(n.to_be_bytes()), Exclusive).is_some());
    });
    let calls: Vec<LockCall> =
        (2..500).map(|who: u64| waits(&engine, who, row(0_u64.to_be_bytes()), Exclusive)).collect();
    let mut lists = (
        engine.lock_list(None),
        engine.wait_list(None),
        engine.by_handle().row_list(TABLE, key(0_u64.to_be_bytes())),
    );
    assert!(std::iter::from_fn(|| lists.0.next_slice(1 << 20)).all(|slice| slice.len() <= 32));
    assert!(std::iter::from_fn(|| lists.1.next_slice(1 << 20)).all(|slice| slice.len() <= 32));
    assert!(std::iter::from_fn(|| lists.2.next_slice(1 << 20)).all(|slice| slice.len() <= 32));
    drop(calls);
}

/// Rows that stay, several holds of each shard, and as many between them that come and go.
const STAY: u64 = 2_000;

fn number(number: u64) -> Key {
    key(number.to_be_bytes())
}

/// Locks and unlocks what does not stay, in every way, until it is told to stop.
fn come_and_go(engine: &LockEngine, stop: &AtomicBool, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut who = seed << 32;
    while !stop.load(Ordering::Relaxed) {
        who += 1;
        let at = random.random_range(0..STAY);
        match random.random_range(0..4) {
            // At once, or not at all.
            0 | 1 => drop(engine.lock_row(txn(who), TABLE, &number(2 * at + 1), Exclusive)),
            // A row that comes and goes, or a wait for one that stays: then its holder moves.
            2 => {
                let item = LockItem::Row(number(2 * at + random.random_range(0..2)));
                drop(poll(&mut lock(engine, who, [item], Exclusive)));
            }
            // A range over rows that stay: it waits, and its rows are held under contention then.
            _ => {
                let item = range((2 * at).to_be_bytes(), (2 * at + 20).to_be_bytes());
                drop(poll(&mut lock(engine, who, [item], Shared)));
            }
        }
        engine.unlock_all(txn(who), None);
    }
}

#[test]
fn a_list_that_is_made_beside_grants_and_releases_has_each_lock_that_stayed_once() {
    let engine = engine();
    for n in 0..STAY {
        let (who, mode) = (1 + n % 7, if n % 5 == 0 { Shared } else { Exclusive });
        assert!(engine.lock_row(txn(who), TABLE, &number(2 * n), mode).is_some());
    }
    let stop = AtomicBool::new(false);
    let (mut lists, mut seen_beside) = (0, 0);
    std::thread::scope(|threads| {
        for seed in 1..4 {
            let (engine, stop) = (&engine, &stop);
            threads.spawn(move || come_and_go(engine, stop, seed));
        }
        let mut random = StdRng::seed_from_u64(9);
        // So many, and then until some were made beside others' locks.
        while lists < 40 || seen_beside == 0 {
            let mut list = engine.lock_list(Some(TABLE));
            if lists % 2 == 0 {
                list = list.with_snapshots_of(random.random_range(50..500));
            }
            let most = random.random_range(1..40);
            let mut seen = HashMap::<_, usize>::new();
            while let Some(slice) = list.next_slice(most) {
                for line in slice {
                    *seen.entry((line.item, line.txn)).or_default() += 1;
                }
            }
            for n in 0..STAY {
                let lock = (LockItem::Row(number(2 * n)), txn(1 + n % 7));
                let times = seen.remove(&lock);
                if times != Some(1) {
                    stop.store(true, Ordering::Relaxed);
                }
                assert_eq!(times, Some(1), "{lock:?} in list {lists}");
            }
            seen_beside += seen.len();
            lists += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(engine.locks(Some(TABLE)).len() as u64, STAY, "nothing else is left");
    assert!(
        engine.locks(None).iter().all(|line| line.token.get() > 0 && line.waiting_since.is_none())
    );
}
