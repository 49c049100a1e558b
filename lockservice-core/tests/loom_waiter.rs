//! Every interleaving of grant, cancel and poll of a waiting call, by loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p lockservice-core --release --test loom_waiter`.
#![cfg(loom)]

mod kit;

use std::task::Poll;

use kit::by_id::LockEngine;
use kit::{TABLE, VERSION, engine, poll, row, txn};
use lockservice_core::table::LockCall;
use lockservice_core::{ErrorKind, LockMode};
use loom::future::block_on;
use loom::thread;

fn lock(engine: &LockEngine, who: u64) -> LockCall {
    kit::lock(engine, who, vec![row("a")], LockMode::Exclusive)
}

/// The engine with its row held by 1.
fn held() -> LockEngine {
    let engine = engine();
    assert!(matches!(poll(&mut lock(&engine, 1)), Poll::Ready(Ok(_))));
    engine
}

#[test]
fn a_waiter_is_granted_whenever_it_polls() {
    loom::model(|| {
        let engine = held();
        let call = lock(&engine, 2);
        let releaser = engine.clone();
        let release = thread::spawn(move || releaser.unlock_all(txn(1), None));
        block_on(call).expect("1 leaves");
        release.join().expect("no panic");
        assert_eq!(engine.held(txn(2)), 1);
    });
}

#[test]
fn whether_the_cancel_or_the_grant_comes_first_the_next_in_line_is_granted() {
    loom::model(|| {
        let engine = held();
        let cancelled = lock(&engine, 2);
        let last = lock(&engine, 3);
        let releaser = engine.clone();
        let release = thread::spawn(move || releaser.unlock_all(txn(1), None));
        let cancel = thread::spawn(move || drop(cancelled));
        block_on(last).expect("1 leaves and 2 gives up");
        release.join().expect("no panic");
        cancel.join().expect("no panic");
        assert_eq!((engine.held(txn(2)), engine.held(txn(3))), (0, 1));
    });
}

#[test]
fn a_call_polled_once_and_dropped_has_received_its_lock_or_holds_nothing() {
    loom::model(|| {
        let engine = held();
        let releaser = engine.clone();
        let release = thread::spawn(move || releaser.unlock_all(txn(1), None));
        let mut call = lock(&engine, 2);
        let received = poll(&mut call).is_ready();
        drop(call);
        release.join().expect("no panic");
        assert_eq!(engine.held(txn(2)), usize::from(received));
        assert_eq!(poll(&mut lock(&engine, 3)).is_ready(), !received);
    });
}

#[test]
fn a_wait_that_is_cancelled_by_name_was_granted_before_or_holds_nothing() {
    loom::model(|| {
        let engine = held();
        let call = lock(&engine, 2);
        let releaser = engine.clone();
        let release = thread::spawn(move || releaser.unlock_all(txn(1), None));
        let canceller = engine.clone();
        let cancel = thread::spawn(move || canceller.cancel_wait(txn(2)));
        let outcome = block_on(call).map_err(|error| error.kind());
        release.join().expect("no panic");
        cancel.join().expect("no panic");
        let held = engine.held(txn(2));
        match outcome {
            Ok(_) => assert_eq!(held, 1),
            Err(kind) => assert_eq!((kind, held), (ErrorKind::Cancelled, 0)),
        }
        assert_eq!(poll(&mut lock(&engine, 3)).is_ready(), held == 0, "it is free again");
    });
}

#[test]
fn a_table_that_goes_ends_every_wait() {
    loom::model(|| {
        let engine = held();
        let call = lock(&engine, 2);
        let remover = engine.clone();
        let remove = thread::spawn(move || remover.remove(TABLE, VERSION));
        let releaser = engine.clone();
        let release = thread::spawn(move || releaser.unlock_all(txn(1), None));
        if let Err(error) = block_on(call) {
            assert_eq!(error.kind(), ErrorKind::BindChanged);
        }
        remove.join().expect("no panic");
        release.join().expect("no panic");
        assert_eq!(engine.held(txn(2)), 0);
    });
}
