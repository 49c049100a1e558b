//! A range that the rows of a transaction became, when the transaction has ended before its caller
//! learned of the grant.

mod kit;

use kit::by_id::LockEngine;
use kit::{TABLE, engine_with, granted, held_bytes, key, kind, lock, poll, request, row, txn};
use lockservice_core::clock::Time;
use lockservice_core::table::{EngineSettings, LockCall};
use lockservice_core::{ErrorKind, LockItem, LockMode};

/// An engine with room for three short rows of one transaction.
fn engine() -> LockEngine {
    let three = 3 * held_bytes(&row("a")) + held_bytes(&row("a")) / 2;
    engine_with(EngineSettings { txn_lock_bytes_max: three, ..EngineSettings::default() })
}

fn escalating(engine: &LockEngine, who: u64, items: Vec<LockItem>) -> LockCall {
    let request = request(who, items, LockMode::Exclusive);
    engine.lock(kit::by_id::LockRequest { escalate: true, ..request }, Time::ZERO)
}

fn rows(names: &str) -> Vec<LockItem> {
    names.chars().map(|name| row(name.to_string())).collect()
}

/// Nothing is held, and every row and the range can be locked by another transaction.
fn nothing_is_left(engine: &LockEngine) {
    assert_eq!(engine.locks(None), []);
    engine.check_marks();
    let everything = vec![kit::cost::everything()];
    granted(lock(engine, 9, everything, LockMode::Exclusive));
    engine.unlock_all(txn(9), None);
}

#[test]
fn a_transaction_that_ends_after_it_escalated_leaves_nothing_for_the_late_roll_back() {
    for earlier in ["", "a", "abc"] {
        let engine = engine();
        if !earlier.is_empty() {
            granted(lock(&engine, 1, rows(earlier), LockMode::Exclusive));
        }
        let grant = granted(escalating(&engine, 1, rows("defg")));
        assert!(grant.escalated.is_some(), "{earlier}");
        assert_eq!(engine.unlock_all(txn(1), None), 1, "one range");
        // The caller finds the transaction over when it has the grant. Another one holds a row of
        // the range by then.
        granted(lock(&engine, 2, rows("e"), LockMode::Exclusive));
        engine.roll_back(txn(1), TABLE, &grant);
        assert_eq!(engine.held(txn(2)), 1);
        engine.unlock_all(txn(2), None);
        nothing_is_left(&engine);
    }
}

#[test]
fn a_call_that_escalates_after_its_transaction_has_ended_is_rolled_back_whole() {
    let engine = engine();
    granted(lock(&engine, 1, rows("abc"), LockMode::Exclusive));
    engine.unlock_all(txn(1), None);
    let grant = granted(escalating(&engine, 1, rows("defg")));
    assert!(grant.escalated.is_some());
    engine.roll_back(txn(1), TABLE, &grant);
    nothing_is_left(&engine);
    // The same, dropped before it was received.
    let range = escalating(&engine, 1, rows("defg"));
    assert_eq!(engine.held(txn(1)), 1, "it was granted at once");
    drop(range);
    nothing_is_left(&engine);
}

#[test]
fn a_waiting_call_that_escalates_is_not_received_once_its_transaction_has_ended() {
    let engine = engine();
    granted(lock(&engine, 1, rows("ab"), LockMode::Exclusive));
    granted(lock(&engine, 2, rows("d"), LockMode::Exclusive));
    let mut call = escalating(&engine, 1, rows("cde"));
    assert!(poll(&mut call).is_pending(), "d is held");
    assert!(engine.lock_row(txn(3), TABLE, &key("d"), LockMode::Shared).is_none());
    engine.unlock_all(txn(2), None);
    let range: Vec<_> = engine.locks(None).into_iter().map(|lock| lock.item).collect();
    assert!(matches!(range.as_slice(), [LockItem::Range(_)]), "{range:?}");
    engine.unlock_all(txn(1), None);
    assert_eq!(kind(call), ErrorKind::Cancelled);
    nothing_is_left(&engine);
}
