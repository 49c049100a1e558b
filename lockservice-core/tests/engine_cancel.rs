//! Calls that are dropped: at every point of a scenario, and while other threads release.

#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use kit::by_id::LockEngine;
use kit::{
    TABLE, VERSION, bind, engine, engine_with, held_bytes, kind, lock, poll, range, row, txn,
    with_table,
};
use lockservice_core::allocator::TokenBlock;
use lockservice_core::clock::Time;
use lockservice_core::table::{EngineSettings, LockCall};
use lockservice_core::{Error, ErrorKind, FencingToken, Key, LockItem, LockMode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[test]
fn wherever_a_call_is_dropped_the_others_are_granted_and_nothing_stays_behind() {
    use LockMode::{Exclusive, Shared};
    let wants: [(Vec<LockItem>, LockMode); 6] = [
        (vec![row("b")], Exclusive),
        (vec![row("a"), row("b"), row("c")], Exclusive),
        (vec![range("a", "c")], Shared),
        (vec![row("b")], Shared),
        (vec![row("c"), range("a", "b")], Exclusive),
        (vec![range("b", "d"), row("a")], Shared),
    ];
    // The calls begin one after another; then those granted end one after another. Call `dropped`
    // goes after step `at`, polled or not.
    for dropped in 0..wants.len() {
        for at in dropped..40 {
            for polled in [false, true] {
                let engine = engine();
                let mut calls: Vec<Option<LockCall>> = Vec::new();
                let mut step = 0;
                let drop_it = |calls: &mut Vec<Option<LockCall>>, step: &mut usize| {
                    if *step == at
                        && let Some(mut call) = calls[dropped].take()
                    {
                        if polled && let Poll::Ready(outcome) = poll(&mut call) {
                            outcome.expect("nothing here fails");
                            engine.unlock_all(txn(dropped as u64), None);
                        }
                        drop(call);
                        assert_eq!(
                            engine.held(txn(dropped as u64)),
                            0,
                            "a dropped call leaves nothing"
                        );
                    }
                    *step += 1;
                };
                for (who, (items, mode)) in wants.iter().enumerate() {
                    calls.push(Some(lock(&engine, who as u64, items.clone(), *mode)));
                    drop_it(&mut calls, &mut step);
                }
                while let Some(who) = (0..calls.len()).find(|who| {
                    let call = if *who == dropped { None } else { calls[*who].as_mut() };
                    call.is_some_and(|call| poll(call).is_ready())
                }) {
                    calls[who] = None;
                    drop_it(&mut calls, &mut step);
                    engine.unlock_all(txn(who as u64), None);
                    drop_it(&mut calls, &mut step);
                    if calls[dropped].is_some() && engine.waits(None).is_empty() {
                        // Only the grant of the dropped call conflicts with the rest.
                        step = at;
                        drop_it(&mut calls, &mut step);
                    }
                }
                if let Some(call) = calls[dropped].take() {
                    drop(call);
                }
                let waiting: Vec<usize> =
                    (0..calls.len()).filter(|who| calls[*who].is_some()).collect();
                for who in waiting {
                    let call = calls[who].as_mut().expect("it waits");
                    assert!(
                        poll(call).is_ready(),
                        "{who} has no conflict; {dropped} was dropped at {at}"
                    );
                    calls[who] = None;
                    engine.unlock_all(txn(who as u64), None);
                }
                assert!(
                    engine.locks(None).is_empty() && engine.waits(None).is_empty(),
                    "nothing stays behind"
                );
            }
        }
    }
}

#[test]
fn a_grant_that_was_not_received_is_handed_on_when_its_call_is_dropped() {
    let engine = engine();
    let first = lock(&engine, 1, &[row("a")], LockMode::Exclusive);
    let second = lock(&engine, 2, &[row("a")], LockMode::Exclusive);
    let mut third = lock(&engine, 3, &[row("a")], LockMode::Exclusive);
    // Granted before it was ever polled: the drop rolls the grant back, and 2 is granted.
    drop(first);
    assert_eq!((engine.held(txn(1)), engine.held(txn(2))), (0, 1));
    // Granted while it waited: the same.
    drop(second);
    assert_eq!((engine.held(txn(2)), engine.held(txn(3))), (0, 1));
    assert!(matches!(poll(&mut third), Poll::Ready(Ok(_))));
    drop(third);
    assert_eq!(engine.held(txn(3)), 1, "what was received is the caller's");
}

#[test]
fn an_end_or_a_change_of_the_bind_invalidates_a_grant_that_was_not_received() {
    let engine = engine();
    drop(poll(&mut lock(&engine, 1, &[row("a")], LockMode::Exclusive)));
    let second = lock(&engine, 2, &[row("a")], LockMode::Exclusive);
    let third = lock(&engine, 3, &[row("a")], LockMode::Exclusive);
    engine.unlock_all(txn(1), None);
    engine.unlock_all(txn(2), None);
    assert_eq!(kind(second), ErrorKind::Cancelled);
    engine.remove(TABLE, VERSION);
    assert_eq!(kind(third), ErrorKind::BindChanged);
}

#[test]
fn a_sealed_engine_returns_nothing_but_its_error_and_still_unlocks() {
    let engine = engine();
    drop(poll(&mut lock(&engine, 1, &[row("a"), row("b")], LockMode::Exclusive)));
    let granted = lock(&engine, 2, &[row("a")], LockMode::Exclusive);
    let waiting = lock(&engine, 3, &[row("b"), row("c")], LockMode::Exclusive);
    engine.unlock(txn(1), TABLE, &[row("a")], None);
    engine.seal(|| Error::new(ErrorKind::LeaseLost, "sealed"));
    assert_eq!(kind(granted), ErrorKind::LeaseLost);
    assert_eq!(kind(waiting), ErrorKind::LeaseLost);
    assert_eq!(kind(lock(&engine, 4, &[row("z")], LockMode::Shared)), ErrorKind::LeaseLost);
    assert_eq!((engine.held(txn(2)), engine.held(txn(3)), engine.held(txn(1))), (0, 0, 1));
    engine.unlock_all(txn(1), None);
    assert!(engine.locks(None).is_empty());
}

#[test]
fn at_a_limit_a_request_fails_and_changes_nothing() {
    let settings = EngineSettings {
        items_per_request_max: 3,
        txn_lock_bytes_max: 4 * held_bytes(&row("a")),
        lock_bytes_max: 10_000,
        waiters_max: 1,
        ..EngineSettings::default()
    };
    let engine = engine_with(settings);
    let rows = |keys: &[&str]| keys.iter().map(row).collect::<Vec<_>>();
    assert_eq!(kind(lock(&engine, 1, Vec::new(), LockMode::Shared)), ErrorKind::InvalidArgument);
    assert_eq!(
        kind(lock(&engine, 1, rows(&["a", "b", "c", "d"]), LockMode::Shared)),
        ErrorKind::InvalidArgument
    );
    drop(poll(&mut lock(&engine, 1, rows(&["a", "b", "c"]), LockMode::Exclusive)));
    assert_eq!(
        kind(lock(&engine, 1, rows(&["d", "e"]), LockMode::Shared)),
        ErrorKind::ResourceExhausted
    );
    assert_eq!(engine.held(txn(1)), 3);
    let _waits = lock(&engine, 2, rows(&["a"]), LockMode::Shared);
    assert_eq!(
        kind(lock(&engine, 3, rows(&["0", "a"]), LockMode::Shared)),
        ErrorKind::ResourceExhausted
    );
    assert_eq!(engine.held(txn(3)), 0);
    let mut others = 10..;
    let refused = others.find(|who| {
        let key = format!("k{who}");
        matches!(
            poll(&mut lock(&engine, *who, &[row(&key)], LockMode::Shared)),
            Poll::Ready(Err(_))
        )
    });
    assert!(refused.is_some_and(|who| who < 60), "10,000 bytes hold fewer than 60 locks");
    // Memory comes back with the locks.
    (1..60).for_each(|who| {
        engine.unlock_all(txn(who), None);
    });
    drop(poll(&mut lock(&engine, 1, rows(&["a", "b", "c"]), LockMode::Exclusive)));
    assert_eq!(engine.held(txn(1)), 3);
}

#[test]
fn a_grant_says_since_when_the_history_is_known() {
    let engine = LockEngine::new(EngineSettings::default());
    let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(100) };
    let at = |seconds| Time::from_origin(Duration::from_secs(seconds));
    engine.install(bind(VERSION), Some(block), Some(at(10))).expect("the first version");
    let since = |who: u64, item: &str| match poll(&mut lock(
        &engine,
        who,
        &[row(item)],
        LockMode::Exclusive,
    )) {
        Poll::Ready(Ok(grant)) => {
            assert_eq!(
                grant.history_unknown,
                grant.history_since().is_some(),
                "to a snapshot of unknown age"
            );
            grant.history_since()
        }
        other => panic!("not granted: {other:?}"),
    };
    assert_eq!(since(1, "a"), Some(at(10)));
    engine.end_forced(txn(1), at(20));
    assert_eq!(
        since(2, "b"),
        Some(at(20)),
        "what the other may have committed is unknown in the whole table"
    );
    engine.unlock_all(txn(2), None);
    engine.end_forced(txn(3), at(30));
    assert_eq!(since(4, "c"), Some(at(20)), "one that held nothing committed nothing here");

    // Of two rows that were locked at once, one was inflated by a waiter since.
    let at_once = |who: u64, item: &str| {
        let key = Key::new(item).expect("a key");
        let locked = engine.lock_row(txn(who), TABLE, &key, LockMode::Exclusive);
        locked.map(|locked| locked.to_grant(&engine.table(TABLE).expect("it is served"), &key))
    };
    for item in ["d", "e"] {
        at_once(5, item).expect("it is free");
    }
    let mut waiting = lock(&engine, 6, &[row("e")], LockMode::Exclusive);
    assert!(poll(&mut waiting).is_pending());
    engine.end_forced(txn(5), at(40));
    assert_eq!(at_once(7, "d").expect("it was released").history_since(), Some(at(40)));
    match poll(&mut waiting) {
        Poll::Ready(Ok(grant)) => assert_eq!(grant.history_since(), Some(at(40))),
        other => panic!("not granted: {other:?}"),
    }
}

/// Threads lock one row, one range around it, or rows around it, give up at random, and check that
/// no other is inside.
#[test]
fn under_many_threads_and_cancels_two_are_never_inside_and_no_call_is_left_waiting() {
    many_threads(engine(), 2_000);
}

/// The same with a hold of the mutex for each step: calls, ends and cancels of several rows meet in
/// the middle.
#[test]
fn under_many_threads_and_cancels_the_same_holds_when_the_mutex_is_let_go_after_each_step() {
    let engine = LockEngine::with_steps_per_hold(EngineSettings::default(), 1);
    many_threads(with_table(engine), 1_000);
}

fn many_threads(engine: LockEngine, rounds: u64) {
    const TASKS: u64 = 6;
    let inside = Arc::new(AtomicU64::new(0));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("a runtime");
    runtime.block_on(async {
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (engine, inside) = (engine.clone(), Arc::clone(&inside));
                tokio::spawn(async move {
                    let mut random = StdRng::seed_from_u64(task);
                    for round in 0..rounds {
                        let who = task * rounds + round;
                        let items = match random.random_range(0..3) {
                            0 => vec![row("b")],
                            1 => vec![range("a", "c")],
                            _ => ["a", "b", "c", "d", "e"].map(row).to_vec(),
                        };
                        let mut call = lock(&engine, who, items.clone(), LockMode::Exclusive);
                        if random.random_bool(0.4) {
                            // Gives up after a moment. It never learns of a grant by then.
                            tokio::select! {
                                biased;
                                outcome = &mut call => drop(outcome.expect("nothing here fails")),
                                () = tokio::task::yield_now() => {
                                    if random.random_bool(0.5) {
                                        let released = engine.unlock_all(txn(who), None);
                                        assert_eq!(released % items.len(), 0);
                                        let error = call.await.expect_err("it has ended");
                                        assert_eq!(error.kind(), ErrorKind::Cancelled);
                                    } else {
                                        drop(call);
                                    }
                                    assert_eq!(engine.held(txn(who)), 0, "one that gave up has \
                                        nothing");
                                    continue;
                                }
                            }
                        } else {
                            call.await.expect("nothing here fails");
                        }
                        assert_eq!(engine.held(txn(who)), items.len(), "all or nothing");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two are inside");
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        assert_eq!(engine.unlock_all(txn(who), None), items.len());
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no task fails");
        }
    });
    assert!(engine.locks(None).is_empty() && engine.waits(None).is_empty(), "nothing stays behind");
}
