//! A call between two slices of the engine's work, while other threads have the mutex: to a caller
//! it is like a call that waits.

mod kit;

use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use WaitPolicy::{NoWait, Wait};
use kit::by_id::{LockEngine, LockRequest};
use kit::{TABLE, VERSION, committed_at, key, poll, request, txn, with_table};
use lockservice_core::clock::Time;
use lockservice_core::table::{EngineSettings, LockCall, WaitPolicy};
use lockservice_core::{Error, ErrorKind, KeyRange, LockItem, LockMode};

/// The transaction whose call of many rows is between two slices, and how many those are.
const SLICED: u64 = 1;
const ROWS: u64 = 50;

/// One step under each hold of the mutex.
fn engine() -> LockEngine {
    with_table(LockEngine::with_steps_per_hold(EngineSettings::default(), 1))
}

fn row(number: u64) -> LockItem {
    kit::row(number.to_be_bytes())
}

fn lock(engine: &LockEngine, who: u64, items: Vec<LockItem>, wait: WaitPolicy) -> LockCall {
    engine.lock(LockRequest { wait, ..request(who, items, LockMode::Exclusive) }, Time::ZERO)
}

fn rows() -> Vec<LockItem> {
    (0..ROWS).map(row).collect()
}

fn kind(call: &mut LockCall) -> Option<ErrorKind> {
    match poll(call) {
        Poll::Ready(outcome) => outcome.err().map(|error| error.kind()),
        Poll::Pending => panic!("it is over"),
    }
}

type Act = Box<dyn FnOnce() + Send>;

/// Runs something when it is woken.
struct Runs(Mutex<Option<Act>>);

impl Wake for Runs {
    fn wake(self: Arc<Self>) {
        let act = self.0.lock().expect("no panic").take();
        if let Some(act) = act {
            act();
        }
    }
}

/// Does `act` in the middle of the engine's work: when the first of two who waited for 100 and 101
/// has been granted its row, and the second has not.
fn amid<T: Send + 'static>(
    engine: &LockEngine,
    act: impl FnOnce(&LockEngine) -> T + Send + 'static,
) -> T {
    drop(poll(&mut lock(engine, 100, vec![row(100), row(101)], Wait)));
    let result = Arc::new(Mutex::new(None));
    let (inner, kept) = (engine.clone(), Arc::clone(&result));
    let act: Act = Box::new(move || *kept.lock().expect("no panic") = Some(act(&inner)));
    let waker = Waker::from(Arc::new(Runs(Mutex::new(Some(act)))));
    let mut first = lock(engine, 101, vec![row(100)], Wait);
    assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&waker)).is_pending());
    let mut second = lock(engine, 102, vec![row(101)], Wait);
    assert!(poll(&mut second).is_pending());
    engine.unlock_all(txn(100), None);
    // `act` may have ended their calls; their locks go here.
    drop((first, second));
    engine.unlock_all(txn(101), None);
    engine.unlock_all(txn(102), None);
    result.lock().expect("no panic").take().expect("the first one was woken")
}

/// A call of many rows that is between two slices.
fn sliced(engine: &LockEngine, wait: WaitPolicy) -> LockCall {
    let call = lock(engine, SLICED, rows(), wait);
    let held = engine.held(txn(SLICED)) as u64;
    assert!((1..ROWS).contains(&held), "it has {held} rows");
    call
}

#[test]
fn a_call_between_two_slices_goes_on_until_it_is_granted() {
    let engine = engine();
    let mut call = amid(&engine, |engine| {
        let call = sliced(engine, Wait);
        // T2; and its items conflict with other calls.
        assert_eq!(
            kind(&mut lock(engine, SLICED, vec![row(0)], Wait)),
            Some(ErrorKind::InvalidArgument)
        );
        assert_eq!(kind(&mut lock(engine, 2, vec![row(0)], NoWait)), Some(ErrorKind::Conflict));
        assert!(
            engine
                .locks(None)
                .iter()
                .filter(|lock| lock.txn == txn(SLICED))
                .all(|lock| lock.pending)
        );
        call
    });
    let Poll::Ready(Ok(grant)) = poll(&mut call) else { panic!("granted") };
    assert_eq!((grant.changes().len() as u64, engine.held(txn(SLICED)) as u64), (ROWS, ROWS));
    let locks = engine.locks(None);
    assert!(
        locks.iter().all(|lock| lock.token == grant.token && !lock.pending),
        "one token for all of them"
    );
}

#[test]
fn a_poll_between_two_slices_returns_an_outcome_that_needs_no_wait() {
    let engine = engine();
    let (granted, refused, waits) = amid(&engine, |engine| {
        let granted = kind(&mut sliced(engine, Wait));
        engine.unlock_all(txn(SLICED), None);
        drop(poll(&mut lock(engine, 2, vec![row(ROWS - 1)], Wait)));
        let refused = kind(&mut sliced(engine, NoWait));
        let mut waiting = sliced(engine, Wait);
        (granted, refused, poll(&mut waiting).is_pending() && waiting.blocker().is_some())
    });
    assert_eq!((granted, refused, waits), (None, Some(ErrorKind::Conflict), true));
}

#[test]
fn a_call_that_is_dropped_between_two_slices_leaves_nothing_and_its_transaction_can_go_on() {
    let engine = engine();
    let mut next = amid(&engine, |engine| {
        let call = sliced(engine, Wait);
        let mut other = lock(engine, 2, vec![row(0)], Wait);
        assert!(poll(&mut other).is_pending());
        drop(call);
        assert_eq!(engine.held(txn(SLICED)), 0, "at once, before the pending work is done");
        let next = lock(engine, SLICED, vec![row(ROWS)], Wait);
        drop(other);
        next
    });
    assert_eq!(kind(&mut next), None);
}

#[test]
fn the_end_of_a_transaction_ends_its_call_between_two_slices() {
    let engine = engine();
    let mut call = amid(&engine, |engine| {
        let call = sliced(engine, Wait);
        assert_eq!(engine.unlock_all(txn(SLICED), committed_at(1)), 0, "nothing was granted");
        assert_eq!(engine.held(txn(SLICED)), 0);
        call
    });
    assert_eq!(kind(&mut call), Some(ErrorKind::Cancelled));
    assert!(engine.locks(None).is_empty());
}

#[test]
fn a_call_is_cancelled_or_sealed_or_loses_its_table_between_two_slices() {
    type Way = fn(&LockEngine);
    let ways: [(Way, ErrorKind); 3] = [
        (|engine| engine.cancel_wait(txn(SLICED)), ErrorKind::Cancelled),
        (|engine| engine.seal(|| Error::new(ErrorKind::LeaseLost, "sealed")), ErrorKind::LeaseLost),
        (|engine| engine.remove(TABLE, VERSION), ErrorKind::BindChanged),
    ];
    for (way, expected) in ways {
        let engine = engine();
        let failed = amid(&engine, move |engine| {
            let mut call = sliced(engine, Wait);
            way(engine);
            kind(&mut call)
        });
        assert_eq!(failed, Some(expected));
        assert_eq!(engine.held(txn(SLICED)), 0, "all or nothing");
        assert!(engine.locks(None).is_empty() && engine.waits(None).is_empty());
    }
}

#[test]
fn a_call_that_may_not_wait_is_refused_in_a_later_slice_and_leaves_nothing() {
    let engine = engine();
    drop(poll(&mut lock(&engine, 2, vec![row(ROWS - 1)], Wait)));
    let mut call = amid(&engine, |engine| sliced(engine, NoWait));
    assert_eq!(kind(&mut call), Some(ErrorKind::Conflict));
    assert_eq!(engine.held(txn(SLICED)), 0);
}

#[test]
fn a_cycle_that_a_later_slice_closes_is_found() {
    let engine = engine();
    drop(poll(&mut lock(&engine, 2, vec![row(ROWS - 1)], Wait)));
    let (mut call, mut other) = amid(&engine, |engine| {
        let call = sliced(engine, Wait);
        let other = lock(engine, 2, vec![row(0)], Wait);
        (call, other)
    });
    assert_eq!(kind(&mut other), Some(ErrorKind::Deadlock), "it has fewer locks");
    assert!(poll(&mut call).is_pending());
    engine.unlock_all(txn(2), None);
    assert_eq!(kind(&mut call), None);
}

#[test]
fn one_whose_turn_has_come_is_not_passed_before_it_is_granted() {
    let engine = engine();
    let mut late = amid(&engine, |engine| {
        match poll(&mut lock(engine, 2, vec![row(101)], NoWait)) {
            Poll::Ready(Err(error)) => {
                let blocker = error.blocker().expect("a blocker");
                assert_eq!((blocker.txn, blocker.granted), (txn(102), false), "it is held no more");
            }
            other => panic!("102 was there before: {other:?}"),
        }
        lock(engine, 3, vec![row(101)], Wait)
    });
    assert_eq!(kind(&mut late), None, "after 102 has ended");
}

#[test]
fn a_range_that_many_wait_in_is_handed_on_to_all_of_them() {
    let engine = engine();
    let range = KeyRange::new(Bound::Included(key("k")), Bound::Unbounded).expect("a range");
    drop(poll(&mut lock(&engine, 1, vec![LockItem::Range(range)], Wait)));
    let row = |number: u64| kit::row(format!("k{number}"));
    let mut calls: Vec<LockCall> =
        (10..30).map(|who| lock(&engine, who, vec![row(who)], Wait)).collect();
    engine.unlock_all(txn(1), None);
    assert!(calls.iter_mut().all(|call| kind(call).is_none()));
}
