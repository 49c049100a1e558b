//! The cost of the engine's work as things grow, in steps, not in time: a step is one entry, holder
//! or waiter that is visited.
//!
//! Every case is done with some number of transactions and with ten times as many. The work may
//! grow a little more than tenfold; where each is compared with each it grows a hundredfold.

mod kit;

use std::ops::Bound;
use std::task::Poll;

use LockMode::{Exclusive, Shared};
use kit::cost::{HOT, OTHER, TABLE, engine, everything, holds, lock, lock_in, row, waits};
use kit::{committed_at, granted, key, poll, txn};
use lockservice_core::table::{LockCall, engine_steps};
use lockservice_core::{CommitTimestamp, ErrorKind, KeyRange, LockItem, LockMode, TableId};

/// The cost of `act` with 150 and with 1,500, which must not be much more than ten times as much.
fn grows_with(act: impl Fn(u64)) {
    let cost = |n| {
        let before = engine_steps();
        act(n);
        engine_steps() - before
    };
    let (few, many) = (cost(150), cost(1_500));
    println!("150: {few} steps, 1,500: {many} steps");
    assert!(few >= 150, "the steps are counted");
    assert!(
        many <= 14 * few,
        "the work grew from {few} to {many} steps while everything grew tenfold"
    );
}

#[test]
fn sharers_that_wait_and_give_up_cost_the_same_each() {
    grows_with(|n| {
        let engine = engine(1, true);
        holds(&engine, OTHER, row(HOT), Exclusive);
        let calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, row(HOT), Shared)).collect();
        calls.into_iter().for_each(drop);
        assert!(engine.waits(None).is_empty());
    });
}

#[test]
fn transactions_that_others_wait_for_queue_at_a_hot_row_at_the_same_cost_each() {
    grows_with(|n| {
        let engine = engine(1, true);
        holds(&engine, OTHER, row(HOT), Exclusive);
        (0..n).for_each(|who| holds(&engine, who, row(who), Exclusive));
        let others: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, n + who, row(who), Exclusive)).collect();
        let calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, row(HOT), Exclusive)).collect();
        // Each then passes the hot row on.
        engine.unlock_all(txn(OTHER), committed_at(1));
        for (who, call) in (0..).zip(calls) {
            granted(call);
            engine.unlock_all(txn(who), committed_at(who));
        }
        others.into_iter().for_each(|call| drop(granted(call)));
    });
}

#[test]
fn transactions_that_others_wait_for_queue_behind_many_sharers_at_the_same_cost_each() {
    grows_with(|n| {
        let engine = engine(1, true);
        (0..n).for_each(|who| holds(&engine, OTHER + who, row(HOT), Shared));
        (0..n).for_each(|who| holds(&engine, who, row(who), Exclusive));
        let others: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, n + who, row(who), Exclusive)).collect();
        let calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, row(HOT), Exclusive)).collect();
        (0..n).for_each(|who| {
            engine.unlock_all(txn(OTHER + who), committed_at(who));
        });
        for (who, call) in (0..).zip(calls) {
            granted(call);
            engine.unlock_all(txn(who), committed_at(who));
        }
        others.into_iter().for_each(|call| drop(granted(call)));
    });
}

#[test]
fn one_for_whom_many_wait_can_wait_for_others_at_the_same_cost_each_time() {
    grows_with(|n| {
        let engine = engine(1, true);
        holds(&engine, OTHER, row(HOT), Exclusive);
        let calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, row(HOT), Exclusive)).collect();
        for other in 0..n {
            holds(&engine, n + other, row(other), Exclusive);
            let call = waits(&engine, OTHER, row(other), Exclusive);
            engine.unlock_all(txn(n + other), None);
            granted(call);
        }
        drop(calls);
    });
}

#[test]
fn one_for_whom_many_wait_can_go_ahead_of_them_at_the_same_cost_each_time() {
    for mode in [Shared, Exclusive] {
        grows_with(|n| {
            let engine = engine(1, true);
            holds(&engine, OTHER, row(HOT), Exclusive);
            let calls: Vec<LockCall> =
                (0..n).map(|who| waits(&engine, who, everything(), mode)).collect();
            (0..n).for_each(|number| holds(&engine, OTHER, row(number), Exclusive));
            drop(calls);
        });
    }
}

#[test]
fn a_request_that_closes_many_cycles_fails_alone_at_a_cost_that_grows_with_them() {
    grows_with(|n| {
        let engine = engine(1, true);
        holds(&engine, OTHER, row(0), Exclusive);
        // It has the most locks: the victim of a single cycle would be another one.
        (1..=2).for_each(|number| holds(&engine, OTHER, row(number), Exclusive));
        (0..n).for_each(|who| holds(&engine, who, row(HOT), Shared));
        let mut calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, row(0), Exclusive)).collect();
        let mut requester = lock(&engine, OTHER, row(HOT), Exclusive);
        match poll(&mut requester) {
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Deadlock);
                assert_eq!(
                    error.deadlock().expect("a cycle").len(),
                    2,
                    "a shortest cycle is reported"
                );
            }
            other => panic!("the one on all cycles fails: {other:?}"),
        }
        assert!(calls.iter_mut().all(|call| poll(call).is_pending()), "no other fails");
    });
}

#[test]
fn of_cycles_with_another_common_member_the_cheapest_common_one_fails() {
    let engine = engine(1, true);
    // OTHER waits for two sharers, both of them for B, and B for OTHER. B has fewer locks than
    // OTHER.
    let b = OTHER - 1;
    (0..3).for_each(|number| holds(&engine, OTHER, row(number), Exclusive));
    (3..5).for_each(|number| holds(&engine, b, row(number), Exclusive));
    (0..2).for_each(|who| holds(&engine, who, row(HOT), Shared));
    let mut calls: Vec<LockCall> = (0..2).map(|who| waits(&engine, who, row(3), Shared)).collect();
    let mut of_b = waits(&engine, b, row(0), Exclusive);
    calls.push(waits(&engine, OTHER, row(HOT), Exclusive));
    match poll(&mut of_b) {
        Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::Deadlock),
        other => panic!("the cheapest one that is on both cycles fails: {other:?}"),
    }
    assert!(calls.iter_mut().all(|call| poll(call).is_pending()), "no other fails");
}

#[test]
fn rows_are_released_under_many_waiting_sharers_of_the_table_at_the_same_cost_each() {
    grows_with(|n| {
        let engine = engine(1, true);
        (0..n).for_each(|number| holds(&engine, OTHER, row(number), Exclusive));
        let mut calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, everything(), Shared)).collect();
        for number in 0..n / 2 {
            engine.unlock(txn(OTHER), TableId::new(TABLE), &[row(number)], None);
        }
        engine.unlock_all(txn(OTHER), committed_at(7));
        for call in &mut calls {
            match poll(call) {
                Poll::Ready(Ok(grant)) => {
                    assert_eq!(grant.prev_commit_ts, Some(CommitTimestamp::new(7)))
                }
                other => panic!("all sharers go in one step: {other:?}"),
            }
        }
    });
}

#[test]
fn waits_of_many_tables_are_listed_at_the_same_cost_each() {
    grows_with(|n| {
        let engine = engine(n, true);
        for table in 0..n {
            granted(lock_in(&engine, table, OTHER, vec![row(0)], Exclusive));
        }
        let calls: Vec<LockCall> =
            (0..n).map(|table| lock_in(&engine, table, table, vec![row(0)], Exclusive)).collect();
        assert_eq!(engine.waits(None).len() as u64, n);
        drop(calls);
    });
}

#[test]
fn locks_of_many_sharers_with_many_waiters_are_listed_at_the_same_cost_each() {
    grows_with(|n| {
        let engine = engine(1, true);
        (0..n).for_each(|who| holds(&engine, who, row(HOT), Shared));
        let calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, OTHER + who, row(HOT), Exclusive)).collect();
        let locks = engine.locks(None);
        assert!(locks.len() as u64 == n && locks.iter().all(|lock| lock.waiters as u64 == n));
        drop(calls);
    });
}

#[test]
fn a_table_wait_behind_many_locks_costs_what_it_costs_behind_one() {
    grows_with(|n| {
        let engine = engine(1, true);
        (0..n).for_each(|number| holds(&engine, OTHER, row(number), Exclusive));
        let calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, everything(), Exclusive)).collect();
        calls.into_iter().for_each(drop);
    });
}

#[test]
fn upgrades_among_many_sharers_cost_the_same_each() {
    grows_with(|n| {
        let engine = engine(1, true);
        (0..n).for_each(|who| holds(&engine, who, row(HOT), Shared));
        let mut calls: Vec<LockCall> =
            (0..n).map(|who| lock(&engine, who, row(HOT), Exclusive)).collect();
        let failed = calls.iter_mut().filter_map(|call| match poll(call) {
            Poll::Ready(Err(error)) => Some(error.kind()),
            _ => None,
        });
        assert!(
            failed.filter(|kind| *kind == ErrorKind::Deadlock).count() as u64 == n - 1,
            "two of them never fit"
        );
    });
}

#[test]
fn the_queue_is_brought_into_another_order_at_a_cost_that_grows_with_it() {
    grows_with(|n| {
        let engine = engine(1, true);
        // The range waits for A, and all others behind the range. A requests a row that another one
        // holds, is behind them all, and yet goes first.
        let (a, b) = (OTHER, OTHER + 1);
        holds(&engine, a, row(0), Exclusive);
        holds(&engine, b, row(1), Exclusive);
        let mut calls = vec![waits(&engine, OTHER + 2, everything(), Exclusive)];
        calls.extend(
            (0..n).map(|who| {
                waits(&engine, who, row(1), if who % 2 == 0 { Shared } else { Exclusive })
            }),
        );
        let of_a = waits(&engine, a, row(1), Exclusive);
        engine.unlock_all(txn(b), None);
        granted(of_a);
        assert!(calls.iter_mut().all(|call| poll(call).is_pending()));
        engine.unlock_all(txn(a), None);
        granted(calls.remove(0));
    });
}

/// The most steps that a slice of 64 lines took.
fn dearest_slice<T>(mut next: impl FnMut() -> Option<Vec<T>>) -> u64 {
    let (mut most, mut lines) = (0, 0);
    loop {
        let before = engine_steps();
        let Some(slice) = next() else { break };
        most = most.max(engine_steps() - before);
        assert!(slice.len() <= 64);
        lines += slice.len();
    }
    println!("{lines} lines, at most {most} steps in a slice");
    most
}

#[test]
fn a_slice_of_a_list_costs_the_same_however_much_there_is() {
    let slices = |n: u64| {
        let engine = engine(n, true);
        let mut calls = Vec::new();
        // Many tables, many holders and many waiters of one row, many rows that conflict
        // with one waiter, many waiters of a range.
        (0..n).for_each(|who| holds(&engine, who, row(HOT), Shared));
        calls.extend((0..n).map(|who| waits(&engine, n + who, row(HOT), Exclusive)));
        for (who, table) in (2 * n..).zip(1..n / 2) {
            granted(lock_in(&engine, table, who, vec![row(0)], Exclusive));
            calls.push(lock_in(&engine, table, n + who, vec![row(0)], Exclusive));
        }
        let last = n - 1;
        granted(lock_in(&engine, last, OTHER, (0..n).map(row).collect(), Exclusive));
        calls.extend(
            (0..n).map(|who| lock_in(&engine, last, 4 * n + who, vec![everything()], Shared)),
        );
        let (mut locks, mut waiting) = (engine.lock_list(None), engine.wait_list(None));
        (dearest_slice(|| locks.next_slice(64)), dearest_slice(|| waiting.next_slice(64)))
    };
    let (few, many) = (slices(30), slices(300));
    assert!(many.0 <= 2 * few.0.max(64), "locks: {} and {} steps", few.0, many.0);
    assert!(many.1 <= 2 * few.1.max(64), "waits: {} and {} steps", few.1, many.1);
}

#[test]
fn a_list_made_in_slices_has_what_was_there_all_the_time_once() {
    let engine = engine(3, true);
    // Even rows stay; odd ones come and go between the slices.
    for table in 0..3 {
        granted(lock_in(&engine, table, OTHER, (0..100).map(|n| row(2 * n)).collect(), Exclusive));
        for who in 0..20 {
            granted(lock_in(&engine, table, who, vec![everything_after(who)], Shared));
            granted(lock_in(&engine, table, who, vec![row(HOT)], Shared));
        }
    }
    let mut list = engine.lock_list(None);
    let mut seen = std::collections::BTreeMap::new();
    let mut turn = 0;
    while let Some(slice) = list.next_slice(7) {
        for lock in slice {
            *seen.entry((lock.table.to_string(), lock.item.to_string(), lock.txn)).or_insert(0) +=
                1;
        }
        turn += 1;
        let item = row(2 * (turn * 37 % 100) + 1);
        if turn % 2 == 0 {
            engine.unlock_all(txn(OTHER + turn - 1), None);
        }
        granted(lock_in(&engine, turn % 3, OTHER + turn, vec![item], Exclusive));
    }
    let stayed: Vec<_> = seen.iter().filter(|((_, _, who), _)| *who <= txn(OTHER)).collect();
    assert_eq!(stayed.len(), 3 * (100 + 20 + 20), "everything that stayed is listed");
    assert!(stayed.iter().all(|(_, times)| **times == 1), "and once");
}

/// Ranges that overlap no row that the tests lock, each different.
fn everything_after(number: u64) -> LockItem {
    let start = key([&[0xff; 9][..], &number.to_be_bytes()].concat());
    let range = KeyRange::new(Bound::Included(start), Bound::Unbounded);
    LockItem::Range(range.expect("a range"))
}
