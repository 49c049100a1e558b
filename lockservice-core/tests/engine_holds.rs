//! The length of holds of the engine's mutex, in steps: none takes more than a slice, for any
//! number of rows that a call names or of waiters that it ends.

mod kit;

use std::task::Poll;

use LockMode::{Exclusive, Shared};
use kit::by_id::LockRequest;
use kit::cost::{HOT, OTHER, TABLE, engine, everything, holds, lock_in, row, waits};
use kit::{committed_at, granted, poll, txn};
use lockservice_core::allocator::TokenBlock;
use lockservice_core::clock::Time;
use lockservice_core::table::{LockCall, WaitPolicy, engine_longest_hold, engine_steps};
use lockservice_core::{
    BindVersion, CommitTimestamp, ErrorKind, FencingToken, LockItem, LockMode, TableId,
};

/// No hold of the engine's mutex takes more steps than this, however many rows a call names. A
/// slice has 256 steps of its own here; each may visit a few entries.
const HOLD_MAX: u64 = 1_500;

/// Does `act`, and asserts that it took `least` steps and that it let the mutex go between them.
fn in_short_holds<T>(least: u64, act: impl FnOnce() -> T) -> T {
    engine_longest_hold();
    let before = engine_steps();
    let result = act();
    let (steps, longest) = (engine_steps() - before, engine_longest_hold());
    println!("{steps} steps, at most {longest} under one hold");
    assert!(steps >= least, "{steps} steps: the work is counted");
    assert!(longest <= HOLD_MAX, "{longest} steps under one hold of the mutex");
    result
}

fn rows(numbers: std::ops::Range<u64>) -> Vec<LockItem> {
    numbers.map(row).collect()
}

#[test]
fn a_call_of_many_rows_lets_the_mutex_go_between_them() {
    let (n, engine) = (20_000, engine(1, true));
    let at_once = |who, wait| {
        let (table, version, items) = (TableId::new(TABLE), BindVersion::new(1), rows(0..n));
        engine.lock(
            LockRequest {
                txn: txn(who),
                table,
                version,
                items,
                mode: Exclusive,
                wait,
                escalate: false,
            },
            Time::ZERO,
        )
    };
    // Granted at once, and rolled back.
    let grant = in_short_holds(2 * n - 1, || granted(at_once(1, WaitPolicy::Wait)));
    assert_eq!((grant.changes().len() as u64, engine.held(txn(1)) as u64), (n, n));
    in_short_holds(n, || engine.roll_back(txn(1), TableId::new(TABLE), &grant));
    // Dropped when it was granted and not received.
    in_short_holds(3 * n - 1, || drop(at_once(1, WaitPolicy::Wait)));
    // Refused for its last row.
    holds(&engine, OTHER, row(n - 1), Exclusive);
    in_short_holds(2 * n - 2, || match poll(&mut at_once(1, WaitPolicy::NoWait)) {
        Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::Conflict),
        other => panic!("the last row is held: {other:?}"),
    });
    assert_eq!(engine.held(txn(1)), 0, "all or nothing");
    // Cancelled, by its transaction's end or by its owner, while it waits for its last row.
    let mut call = in_short_holds(n, || at_once(1, WaitPolicy::Wait));
    in_short_holds(n - 1, || engine.unlock_all(txn(1), None));
    assert!(
        matches!(poll(&mut call), Poll::Ready(Err(error)) if error.kind() == ErrorKind::Cancelled)
    );
    let call = at_once(1, WaitPolicy::Wait);
    in_short_holds(n - 1, || drop(call));
    assert_eq!(engine.held(txn(1)), 0, "all or nothing");
    // It waits for its first row, and its turn comes.
    holds(&engine, OTHER, row(0), Exclusive);
    let call = at_once(1, WaitPolicy::Wait);
    in_short_holds(2 * n, || engine.unlock_all(txn(OTHER), None));
    granted(call);
    assert_eq!(
        in_short_holds(n, || engine.unlock(
            txn(1),
            TableId::new(TABLE),
            &rows(0..n),
            committed_at(1)
        )),
        n as usize
    );
    assert!(engine.locks(None).is_empty() && engine.waits(None).is_empty());
}

#[test]
fn the_end_of_a_transaction_lets_the_mutex_go_between_its_rows_and_between_their_waiters() {
    let (n, engine) = (20_000, engine(1, true));
    granted(lock_in(&engine, TABLE, OTHER, rows(0..n), Exclusive));
    let calls: Vec<LockCall> = (0..n).map(|who| waits(&engine, who, row(who), Exclusive)).collect();
    assert_eq!(
        in_short_holds(4 * n, || engine.unlock_all(txn(OTHER), committed_at(7))),
        n as usize
    );
    for call in calls {
        assert_eq!(
            granted(call).prev_commit_ts,
            Some(CommitTimestamp::new(7)),
            "each learns of the commit"
        );
    }
}

#[test]
fn many_who_waited_for_one_lock_are_granted_theirs_with_the_mutex_let_go_between_them() {
    let n = 5_000;
    // One row and many sharers; the whole table and many rows; many sharers of the whole table.
    for (held, requested, mode) in [
        (row(HOT), Box::new(|_| row(HOT)) as Box<dyn Fn(u64) -> LockItem>, Shared),
        (everything(), Box::new(row), Exclusive),
        (row(HOT), Box::new(|_| everything()), Shared),
    ] {
        let engine = engine(1, true);
        holds(&engine, OTHER, held, Exclusive);
        let calls: Vec<LockCall> =
            (0..n).map(|who| waits(&engine, who, requested(who), mode)).collect();
        in_short_holds(2 * n, || engine.unlock_all(txn(OTHER), None));
        calls.into_iter().for_each(|call| drop(granted(call)));
    }
}

#[test]
fn sharers_that_wait_with_many_rows_each_are_granted_them_with_the_mutex_let_go_between_them() {
    let (sharers, each, engine) = (100, 200, engine(1, true));
    holds(&engine, OTHER, row(0), Exclusive);
    let calls: Vec<LockCall> =
        (0..sharers).map(|who| lock_in(&engine, TABLE, who, rows(0..each), Shared)).collect();
    in_short_holds(2 * sharers * each, || engine.unlock_all(txn(OTHER), None));
    calls.into_iter().for_each(|call| drop(granted(call)));
    // And rows with many holders each are released.
    for who in 0..sharers {
        assert_eq!(
            in_short_holds(each, || engine.unlock_all(txn(who), committed_at(who))),
            each as usize
        );
    }
}

#[test]
fn calls_with_many_rows_that_wait_for_tokens_get_them_with_the_mutex_let_go_between_them() {
    let (calls, each, engine) = (20, 1_000, engine(1, false));
    let waiting: Vec<LockCall> = (0..calls)
        .map(|who| lock_in(&engine, TABLE, who, rows(who * each..(who + 1) * each), Exclusive))
        .collect();
    let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 + calls) };
    in_short_holds(calls * each, || {
        engine.add_tokens(TableId::new(TABLE), BindVersion::new(1), block)
    });
    for (who, call) in (1..).zip(waiting) {
        assert_eq!(granted(call).token.get(), who, "first come, first served");
    }
}
