//! Rows that are locked at once, beside calls that need the engine's state.

mod kit;

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use kit::by_id::LockEngine;
use kit::{
    TABLE, VERSION, committed_at, engine, engine_with, granted, held_bytes, kind, lock, poll, row,
    txn,
};
use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::table::{EngineMemory, EngineSettings, LockCall, RowGrant, engine_steps};
use lockservice_core::{
    BindVersion, CommitTimestamp, ErrorKind, FencingToken, Key, KeyRange, LockItem, LockMode,
    ServiceId, TableId, TableRef,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn key(number: u64) -> Key {
    Key::new(number.to_be_bytes()).expect("a key")
}

fn item(number: u64) -> LockItem {
    LockItem::Row(key(number))
}

fn range(from: u64, to: u64) -> LockItem {
    use std::ops::Bound::Included;
    LockItem::Range(KeyRange::new(Included(key(from)), Included(key(to))).expect("a range"))
}

fn at_once(engine: &LockEngine, who: u64, number: u64) -> Option<RowGrant> {
    engine.lock_row(txn(who), TABLE, &key(number), LockMode::Exclusive)
}

fn holds(engine: &LockEngine, who: u64, rows: std::ops::Range<u64>) {
    rows.for_each(|number| assert!(at_once(engine, who, number).is_some()));
}

#[test]
fn a_row_is_locked_at_once_if_and_only_if_nothing_overlaps_it() {
    let engine = engine();
    let first = at_once(&engine, 1, 5).expect("it is free");
    assert!(first.newly_locked);
    let again = at_once(&engine, 1, 5).expect("it is its own");
    assert_eq!((again.token, again.newly_locked), (first.token, false));
    assert_eq!(at_once(&engine, 2, 5), None, "another one holds it");

    granted(lock(&engine, 3, [range(10, 20)], LockMode::Exclusive));
    assert_eq!(at_once(&engine, 1, 15), None, "a range around it is held");
    assert!(at_once(&engine, 1, 21).is_some());

    let mut waiting = lock(&engine, 4, [range(5, 8)], LockMode::Exclusive);
    assert!(poll(&mut waiting).is_pending());
    assert_eq!(at_once(&engine, 2, 7), None, "a range around it is waited for");
    drop(waiting);
    assert!(at_once(&engine, 2, 7).is_some());
    engine.check_marks();
}

#[test]
fn tokens_of_a_row_grow_whichever_way_they_are_granted() {
    let engine = engine();
    let mut random = StdRng::seed_from_u64(7);
    let (mut last, mut ways) = ([0; 4], [0; 3]);
    for who in 0..5_000 {
        let number = random.random_range(0..4);
        let way = random.random_range(0..3);
        let (token, keys) = match way {
            0 => match at_once(&engine, who, number) {
                Some(grant) => (grant.token, number..number + 1),
                None => panic!("it is free"),
            },
            1 => {
                let grant = granted(lock(&engine, who, [item(number)], LockMode::Exclusive));
                (grant.token, number..number + 1)
            }
            _ => (granted(lock(&engine, who, [range(0, 3)], LockMode::Exclusive)).token, 0..4),
        };
        ways[way] += 1;
        for number in keys {
            assert!(token.get() > last[number as usize], "F1");
            last[number as usize] = token.get();
        }
        engine.unlock_all(txn(who), None);
    }
    assert!(ways.iter().all(|count| *count > 1_000));
    engine.check_marks();
}

#[test]
fn a_list_has_every_lock_once_and_in_order_wherever_it_is_kept() {
    let engine = engine();
    let mut random = StdRng::seed_from_u64(3);
    let mut expected = BTreeSet::new();
    for who in 0..2_000 {
        let number = random.random_range(0..10_000);
        if expected.insert(number) {
            match random.random_bool(0.8) {
                true => drop(at_once(&engine, who, number).expect("it is free")),
                false => drop(granted(lock(&engine, who, [item(number)], LockMode::Exclusive))),
            }
        }
    }
    granted(lock(&engine, 9_999, [range(20_000, 20_001)], LockMode::Shared));
    for most in [1, 7, 1_000] {
        let mut list = engine.lock_list(None).with_snapshots_of(most);
        let locks: Vec<_> =
            std::iter::from_fn(|| list.next_slice(most)).flatten().map(|lock| lock.item).collect();
        let rows = expected.iter().map(|number| item(*number));
        assert!(locks.into_iter().eq(rows.chain([range(20_000, 20_001)])));
    }
}

#[test]
fn a_lock_that_becomes_contended_while_a_list_is_made_is_in_it_once() {
    let engine = engine();
    holds(&engine, 1, 0..100);
    let mut list = engine.lock_list(Some(TABLE)).with_snapshots_of(17);
    let mut seen = Vec::new();
    let mut waiting = Vec::new();
    while let Some(slice) = list.next_slice(10) {
        seen.extend(slice.into_iter().map(|lock| lock.item));
        // One before the list's position and one after it.
        for number in [0, 99 - waiting.len() as u64 / 2] {
            let mut call =
                lock(&engine, 1_000 + waiting.len() as u64, [item(number)], LockMode::Exclusive);
            assert!(poll(&mut call).is_pending());
            waiting.push(call);
        }
    }
    assert!(seen.into_iter().eq((0..100).map(item)));
}

#[test]
fn memory_that_shards_have_on_credit_is_used_before_a_call_fails_for_want_of_it() {
    let lock_bytes_max = EngineMemory::TXN + 1_000 * held_bytes(&item(0));
    let engine = engine_with(EngineSettings { lock_bytes_max, ..EngineSettings::default() });
    // Each shard draws ahead, and holds nothing after that.
    for number in 0..500 {
        assert!(at_once(&engine, 1, number).is_some());
    }
    engine.unlock_all(txn(1), None);
    let rows: Vec<LockItem> = (0..1_000).map(item).collect();
    granted(lock(&engine, 2, rows, LockMode::Exclusive));
    assert_eq!(at_once(&engine, 3, 2_000), None);
    let refused = lock(&engine, 3, [item(2_000)], LockMode::Exclusive);
    assert_eq!(kind(refused), ErrorKind::ResourceExhausted);
    engine.unlock_all(txn(2), None);
    // A row in a shard takes less.
    let fit = (lock_bytes_max / EngineMemory::row(&key(0))) as u64;
    for number in 0..fit {
        assert!(at_once(&engine, 1, number).is_some(), "row {number}");
    }
    assert_eq!(at_once(&engine, 3, fit), None);
}

#[test]
fn a_transaction_holds_no_more_than_its_limit_on_both_ways_together() {
    // The call makes the first six known to the state.
    let txn_lock_bytes_max = 6 * held_bytes(&item(0)) + 4 * EngineMemory::row(&key(0));
    let engine = engine_with(EngineSettings { txn_lock_bytes_max, ..EngineSettings::default() });
    holds(&engine, 1, 0..4);
    granted(lock(&engine, 1, [item(4), item(5)], LockMode::Exclusive));
    holds(&engine, 1, 6..10);
    assert_eq!(at_once(&engine, 1, 10), None);
    let refused = lock(&engine, 1, [item(10)], LockMode::Exclusive);
    assert_eq!(kind(refused), ErrorKind::ResourceExhausted);
    assert_eq!(engine.held(txn(1)), 10);
}

#[test]
fn a_hold_that_another_call_meets_is_kept_beyond_the_limits_and_calls_are_refused() {
    let settings = EngineSettings { lock_bytes_max: 100_000, ..EngineSettings::default() };
    let engine = engine_with(settings);
    let fit = (100_000 / EngineMemory::row(&key(0))) as u64;
    holds(&engine, 1, 0..fit);
    let used = || engine.by_handle().bytes();
    assert!(used() <= 100_000);
    // The holds in the range become known to the state, where they take more.
    let refused = lock(&engine, 2, [range(0, fit)], LockMode::Exclusive);
    assert_eq!(kind(refused), ErrorKind::ResourceExhausted);
    assert_eq!(engine.held(txn(1)) as u64, fit, "no hold was lost");
    assert_eq!(used(), EngineMemory::TXN + fit as usize * held_bytes(&item(0)));
    assert!(used() > 2 * 100_000);
    assert_eq!(at_once(&engine, 3, fit), None);
    let refused = lock(&engine, 1, [item(fit)], LockMode::Exclusive);
    assert_eq!(kind(refused), ErrorKind::ResourceExhausted);
    engine.unlock_all(txn(1), None);
    assert_eq!(used(), 0);
    holds(&engine, 3, 0..fit);
}

#[test]
fn a_commit_is_known_to_the_next_holder_whichever_way_it_locks() {
    let engine = engine();
    let commit = |ts| Some(CommitTimestamp::new(ts));
    holds(&engine, 1, 0..1);
    engine.unlock_all(txn(1), committed_at(7));
    assert_eq!(at_once(&engine, 2, 1).expect("free").table_commit_ts, commit(7));
    let grant = granted(lock(&engine, 3, [item(2)], LockMode::Exclusive));
    assert_eq!(grant.table_commit_ts, commit(7));
    assert_eq!(engine.unlock(txn(2), TABLE, &[item(1)], committed_at(9)), 1);
    assert_eq!(at_once(&engine, 4, 1).expect("free").table_commit_ts, commit(9));
    // A waiter for a row that was locked at once learns of its holder's commit.
    let mut waiting = lock(&engine, 5, [item(1)], LockMode::Exclusive);
    assert!(poll(&mut waiting).is_pending());
    engine.unlock_all(txn(4), committed_at(11));
    assert_eq!(granted(waiting).prev_commit_ts, commit(11));
}

#[test]
fn a_place_that_is_used_again_has_nothing_of_its_last_table() {
    let engine = engine();
    holds(&engine, 1, 0..50);
    granted(lock(&engine, 2, [range(100, 200)], LockMode::Exclusive));
    engine.remove(TABLE, VERSION);
    assert_eq!(at_once(&engine, 3, 60), None, "the handle is of a version that has gone");
    let bind = Bind {
        table: TableRef::new("g", "other").expect("a name"),
        id: TableId::new(2),
        partition: 0,
        owner: ServiceId::new(1),
        version: BindVersion::new(2),
        slot: BindSlot::NONE,
    };
    let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 << 40) };
    engine.install(bind, Some(block), None).expect("a new version");
    let other =
        |who, number| engine.lock_row(txn(who), TableId::new(2), &key(number), LockMode::Exclusive);
    assert!(other(4, 0).is_some() && other(4, 150).is_some(), "nothing is held there");
    assert_eq!(at_once(&engine, 4, 60), None);
    // The first one still lists where its holds were.
    assert_eq!((engine.held(txn(1)), engine.unlock_all(txn(1), None)), (0, 0));
    assert_eq!(engine.held(txn(4)), 2);
    engine.check_marks();
}

#[test]
fn a_range_costs_as_much_as_it_overlaps() {
    let engine = engine();
    granted(lock(&engine, 9, [range(1 << 40, 1 << 40)], LockMode::Exclusive));
    let cost = |from: u64| {
        let before = engine_steps();
        granted(lock(&engine, 8, [range(from, from + 9)], LockMode::Exclusive));
        engine.unlock_all(txn(8), None);
        engine_steps() - before
    };
    let empty = cost(1 << 41);
    holds(&engine, 1, 0..50_000);
    assert_eq!(cost(1 << 41), empty, "rows that it does not overlap cost nothing");
    engine.check_marks();
}

#[test]
fn a_row_that_is_locked_and_unlocked_for_ever_leaves_nothing_behind() {
    let engine = engine();
    for round in 0..10_000 {
        let grant = at_once(&engine, 1, round % 3).expect("it is free");
        match round % 4 {
            0 => assert_eq!(engine.unlock(txn(1), TABLE, &[item(round % 3)], None), 1),
            1 => {
                // A call of another one moves the hold.
                let mut call = lock(&engine, 2, [item(round % 3)], LockMode::Exclusive);
                assert!(poll(&mut call).is_pending());
                drop(call);
                assert_eq!(engine.unlock(txn(1), TABLE, &[item(round % 3)], None), 1);
            }
            2 => {
                let table = engine.table(TABLE).expect("it is installed");
                engine.roll_back(txn(1), TABLE, &grant.to_grant(&table, &key(round % 3)));
            }
            _ => assert_eq!(engine.unlock_all(txn(1), None), 1),
        }
        assert_eq!(engine.held(txn(1)), 0, "round {round}");
    }
    assert!(engine.locks(None).is_empty());
    engine.check_marks();
}

#[test]
fn a_transaction_has_its_room_again_when_it_releases_what_others_have_met() {
    let txn_lock_bytes_max = 40 * EngineMemory::row(&key(0));
    let engine = engine_with(EngineSettings { txn_lock_bytes_max, ..EngineSettings::default() });
    for round in 0..1_000 {
        let grant = at_once(&engine, 1, round % 3).expect("it holds nothing, and has room");
        // A call of another one moves the hold.
        let mut call = lock(&engine, 2, [item(round % 3)], LockMode::Exclusive);
        assert!(poll(&mut call).is_pending());
        drop(call);
        if round % 2 == 0 {
            assert_eq!(engine.unlock(txn(1), TABLE, &[item(round % 3)], None), 1);
        } else {
            let table = engine.table(TABLE).expect("it is installed");
            engine.roll_back(txn(1), TABLE, &grant.to_grant(&table, &key(round % 3)));
        }
        assert_eq!(engine.held(txn(1)), 0, "round {round}");
    }
}

/// Threads lock rows at once, rows that they wait for, and ranges. Each row has a word that its
/// exclusive holder alone may write.
#[test]
fn threads_never_hold_a_row_together() {
    const THREADS: u64 = 4;
    const ROWS: u64 = 6;
    let engine = engine();
    let words: Vec<AtomicU64> = (0..ROWS).map(|_| AtomicU64::new(0)).collect();
    let start = Barrier::new(THREADS as usize);
    let at_once_count = AtomicU64::new(0);
    let work = &|thread: u64| {
        let mut random = StdRng::seed_from_u64(thread);
        start.wait();
        for round in 0..3_000 {
            let who = 1 + thread * 1_000_000 + round;
            let (first, last) = match random.random_range(0..10) {
                0 => (0, ROWS - 1),
                _ => {
                    let number = random.random_range(0..ROWS);
                    (number, number)
                }
            };
            if first == last && at_once(&engine, who, first).is_some() {
                at_once_count.fetch_add(1, Ordering::Relaxed);
            } else {
                let wanted = if first == last { item(first) } else { range(first, last) };
                let call = lock(&engine, who, [wanted], LockMode::Exclusive);
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime.expect("a runtime").block_on(call).expect("all others end");
            }
            for number in first..=last {
                let before = words[number as usize].swap(who, Ordering::Relaxed);
                assert_eq!(before, 0, "{who} and {before} hold row {number}");
            }
            (first..=last).for_each(|number| words[number as usize].store(0, Ordering::Relaxed));
            engine.unlock_all(txn(who), None);
        }
    };
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|thread| drop(scope.spawn(move || work(thread))));
    });
    assert!(at_once_count.into_inner() > 0);
    assert!(engine.locks(None).is_empty());
    engine.check_marks();
}

#[test]
fn a_call_that_names_a_row_twice_or_is_refused_leaves_no_mark() {
    let engine = engine();
    holds(&engine, 1, 0..1);
    let mut request = kit::request(2, vec![item(1), item(0), item(2)], LockMode::Exclusive);
    request.wait = lockservice_core::table::WaitPolicy::NoWait;
    let refused = engine.lock(request, lockservice_core::clock::Time::ZERO);
    assert_eq!(kind(refused), ErrorKind::Conflict);
    engine.check_marks();
    assert!(at_once(&engine, 3, 1).is_some() && at_once(&engine, 3, 2).is_some());
    granted(lock(&engine, 4, [row("x"), row("x")], LockMode::Shared));
    engine.check_marks();
}

#[test]
fn a_savepoint_holds_over_many_upgrades_that_have_ended() {
    let engine = engine();
    let (a, b) = (item(1), item(2));
    let upgrade = |of: &LockItem| granted(lock(&engine, 1, [of.clone()], LockMode::Exclusive));
    let upgrade_and_downgrade = || {
        for _ in 0..50 {
            upgrade(&a);
            engine.downgrade(txn(1), TABLE, std::slice::from_ref(&a), LockMode::Shared);
        }
    };
    granted(lock(&engine, 1, [a.clone()], LockMode::Shared));
    let base = granted(lock(&engine, 1, [b.clone()], LockMode::Shared));
    let savepoint = engine.savepoint(txn(1));
    upgrade(&b);
    // The upgrade is all that is left of the hold.
    engine.roll_back(txn(1), TABLE, &base);
    upgrade_and_downgrade();
    upgrade(&a);
    assert_eq!(engine.roll_back_to(txn(1), savepoint).expect("no call is in flight"), 1);
    let locks = engine.locks(None);
    let held: Vec<_> = locks.iter().map(|lock| (lock.item.clone(), lock.mode)).collect();
    assert_eq!(held, [(a, LockMode::Shared)]);
}

#[test]
fn a_savepoint_releases_rows_in_shards_and_in_the_state_and_no_earlier_ones() {
    let engine = engine();
    holds(&engine, 1, 0..4);
    let savepoint = engine.savepoint(txn(1));
    holds(&engine, 1, 4..40);
    // Others meet some of them, in another order than they were locked, and some are released.
    let waiting: Vec<LockCall> = [30, 2, 11, 5, 38, 0]
        .map(|number| {
            let mut call = lock(&engine, 2 + number, [item(number)], LockMode::Exclusive);
            assert!(poll(&mut call).is_pending());
            call
        })
        .into();
    assert_eq!(engine.unlock(txn(1), TABLE, &[item(6), item(1), item(11)], None), 3);
    holds(&engine, 1, 40..44);
    // 36 and 4 rows since the savepoint, of which two are released.
    assert_eq!(engine.roll_back_to(txn(1), savepoint).expect("no call is in flight"), 38);
    let of_1 = engine.locks(None).into_iter().filter(|lock| lock.txn == txn(1));
    let held: Vec<LockItem> = of_1.map(|lock| lock.item).collect();
    assert_eq!(held, [item(0), item(2), item(3)]);
    assert_eq!(engine.held(txn(1)), 3);
    drop(waiting);
    assert_eq!(engine.unlock_all(txn(1), None), 3);
    assert!(engine.locks(None).is_empty());
}
