//! Every interleaving of rows that are locked without the state and calls that need it, by loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p lockservice-core --release --test loom_rows`.
#![cfg(loom)]

mod kit;

use kit::by_id::LockEngine;
use kit::{TABLE, VERSION, engine, granted, poll, row, txn};
use lockservice_core::allocator::TokenBlock;
use lockservice_core::table::EngineSettings;
use lockservice_core::{FencingToken, Key, KeyRange, LockItem, LockMode};
use loom::thread;

fn key(name: &str) -> Key {
    Key::new(name).expect("a key")
}

/// Locks a row at once, or not at all. Returns its token.
fn at_once(engine: &LockEngine, who: u64, name: &str) -> Option<u64> {
    let grant = engine.lock_row(txn(who), TABLE, &key(name), LockMode::Exclusive)?;
    Some(grant.token.get())
}

fn everything() -> LockItem {
    LockItem::Range(KeyRange::whole_table())
}

/// An engine whose shards have tokens already, so that a model has fewer steps.
fn warm() -> LockEngine {
    let engine = engine();
    for name in ["a", "b"] {
        assert!(at_once(&engine, 9, name).is_some());
    }
    engine.unlock_all(txn(9), None);
    for name in ["a", "b"] {
        assert!(at_once(&engine, 9, name).is_some());
    }
    engine.unlock_all(txn(9), None);
    engine
}

#[test]
fn a_row_and_a_range_around_it_are_never_granted_together() {
    loom::model(|| {
        let engine = warm();
        let locker = engine.clone();
        let row = thread::spawn(move || at_once(&locker, 1, "a"));
        let mut call = kit::lock(&engine, 2, vec![everything()], LockMode::Exclusive);
        let range = poll(&mut call).is_ready();
        let row = row.join().expect("no panic");
        assert!(!(row.is_some() && range), "both hold the row");
        assert!(row.is_some() || range, "one of them came first");
        engine.check_marks();
        engine.unlock_all(txn(1), None);
        if !range {
            let token = granted(call).token.get();
            assert!(row.is_some_and(|row| row < token), "F1");
        }
    });
}

#[test]
fn of_two_calls_for_a_row_the_second_waits_until_the_first_ends() {
    loom::model(|| {
        let engine = warm();
        let first = at_once(&engine, 1, "a").expect("it is free");
        let ender = engine.clone();
        let end = thread::spawn(move || ender.unlock_all(txn(1), None));
        let call = kit::lock(&engine, 2, vec![row("a")], LockMode::Exclusive);
        let second = loom::future::block_on(call).expect("1 ends").token.get();
        assert!(second > first, "F1");
        assert_eq!(end.join().expect("no panic"), 1);
        engine.check_marks();
        engine.unlock_all(txn(2), None);
        let third = at_once(&engine, 3, "a").expect("it is free again");
        assert!(third > second, "F1");
        engine.check_marks();
    });
}

#[test]
fn an_unlock_finds_its_row_wherever_it_is() {
    loom::model(|| {
        let engine = warm();
        at_once(&engine, 1, "a").expect("it is free");
        let unlocker = engine.clone();
        let unlock = thread::spawn(move || unlocker.unlock(txn(1), TABLE, &[row("a")], None));
        let call = kit::lock(&engine, 2, vec![row("a")], LockMode::Exclusive);
        loom::future::block_on(call).expect("1 lets go");
        assert_eq!(unlock.join().expect("no panic"), 1);
        assert_eq!((engine.held(txn(1)), engine.held(txn(2))), (0, 1));
        engine.check_marks();
    });
}

#[test]
fn two_calls_of_which_one_waits_for_the_row_of_the_other_see_all_its_holds() {
    loom::model(|| {
        let engine = warm();
        at_once(&engine, 1, "a").expect("it is free");
        at_once(&engine, 2, "b").expect("it is free");
        let other = engine.clone();
        let waits =
            thread::spawn(move || kit::lock(&other, 1, vec![row("b")], LockMode::Exclusive));
        let mut second = kit::lock(&engine, 2, vec![row("a")], LockMode::Exclusive);
        let mut first = waits.join().expect("no panic");
        let failed = [&mut first, &mut second]
            .map(|call| matches!(poll(call), std::task::Poll::Ready(Err(_))));
        assert_ne!(failed[0], failed[1], "the deadlock has one victim");
        engine.check_marks();
    });
}

#[test]
fn no_row_is_granted_after_the_table_has_gone_or_the_engine_was_sealed() {
    loom::model(|| {
        let engine = warm();
        let remover = engine.clone();
        let remove = thread::spawn(move || remover.remove(TABLE, VERSION));
        let _ = at_once(&engine, 1, "a");
        remove.join().expect("no panic");
        assert_eq!((at_once(&engine, 1, "b"), engine.held(txn(1))), (None, 0));
    });
}

/// Each draws tokens for its shard: no token is given out twice.
#[test]
fn tokens_that_two_shards_draw_are_different() {
    loom::model(|| {
        let engine = kit::with_table(LockEngine::new(EngineSettings::default()));
        let block =
            TokenBlock { next: FencingToken::new(1 << 41), end: FencingToken::new(1 << 42) };
        engine.add_tokens(TABLE, VERSION, block);
        let other = engine.clone();
        let one = thread::spawn(move || at_once(&other, 1, "a"));
        let two = at_once(&engine, 2, "b").expect("it is free");
        assert_ne!(one.join().expect("no panic").expect("it is free"), two);
    });
}

/// A transaction goes back to its savepoint while another of its threads locks a row (T2): the row
/// was granted before and has gone, or it was granted after and stays.
fn goes_back_beside_a_row(engine: LockEngine) {
    let savepoint = engine.savepoint(txn(1));
    let other = engine.clone();
    let row = thread::spawn(move || at_once(&other, 1, "b").is_some());
    let released = engine.roll_back_to(txn(1), savepoint).expect("no call waits");
    let locked = row.join().expect("no panic");
    engine.check_marks();
    let before = engine.held(txn(1)) - usize::from(locked) + released;
    assert_eq!(engine.roll_back_to(txn(1), savepoint).ok(), Some(usize::from(locked) - released));
    assert_eq!(engine.held(txn(1)), before, "what it had at the savepoint");
    engine.unlock_all(txn(1), None);
    assert_eq!(engine.held(txn(1)), 0);
    for name in ["a", "b"] {
        assert!(at_once(&engine, 9, name).is_some(), "{name} is free");
    }
    engine.check_marks();
}

#[test]
fn going_back_to_a_savepoint_ends_a_row_that_was_locked_before_it_and_no_other() {
    loom::model(|| {
        let engine = warm();
        at_once(&engine, 1, "a").expect("it is free");
        goes_back_beside_a_row(engine);
    });
}

/// The same with holds that another transaction has met, so that the state has them: the roll-back
/// lets go of the transaction's mutex on its way.
#[test]
fn going_back_to_a_savepoint_in_the_state_ends_no_row_that_is_locked_after_it() {
    loom::model(|| {
        let engine = warm();
        granted(kit::lock(&engine, 1, vec![row("a")], LockMode::Exclusive));
        goes_back_beside_a_row(engine);
    });
}
