//! The end of sessions, and of the service, beside all that they hold and wait for.

use std::time::Duration;

use lockservice_core::ErrorKind;
use lockservice_core::LockMode::{Exclusive, Shared};
use lockservice_core::service::{KillEnd, LockSpec, OpResponse, Operation, Session};
use shuttle::future::block_on;
use shuttle::thread;

use super::kit::{ClientTxn, TTL, World, check, lock_embedded, spec};
use super::{client, embedder, together};

#[test]
fn a_session_that_is_closed_releases_what_it_holds_and_was_about_to_get() {
    check(|world| {
        let world = world.bound();
        let session = world.session();
        let [holder, waiter, late] = [(); 3].map(|()| ClientTxn::begin(&session));
        holder.locks("a", Exclusive);
        together([
            Box::new(move || block_on(session.close())) as Box<dyn FnOnce() + Send>,
            Box::new(move || {
                let outcome = block_on(waiter.lock("a", Exclusive));
                let lost = outcome.expect_err("the close ends the holder, and the waiter too");
                assert_eq!(lost.kind(), ErrorKind::SessionLost, "{lost:?}");
                let lost = block_on(late.lock("b", Exclusive)).expect_err("it was closed");
                assert_eq!(lost.kind(), ErrorKind::SessionLost, "{lost:?}");
            }),
            embedder(&world, &[("a", Exclusive), ("b", Shared)]),
        ]);
        world.ends_clean();
    });
}

#[test]
fn a_session_that_lapses_releases_all_and_a_renewed_one_keeps_all() {
    check(|world| {
        let world = world.bound();
        let session = world.session();
        ClientTxn::begin(&session).locks("a", Exclusive);
        let (renewing, waiting) = (session.clone(), world.clone());
        let renewal = thread::spawn(move || drop(renewing.renew()));
        let waiter = thread::spawn(move || {
            let txn = lock_embedded(&waiting, "a", Exclusive);
            waiting.work("a", Exclusive);
            assert!(session.renew().is_err(), "its lock went to another");
            txn.end(None);
        });
        // Longer than a session that is not renewed can last, by any clock.
        world.advance(TTL.mul_f64(1.2));
        renewal.join().expect("no panic");
        world.advance(TTL.mul_f64(1.2));
        waiter.join().expect("no panic");
        world.ends_clean();
    });
}

#[test]
fn unlocks_beside_the_end_of_their_session_release_each_lock_once() {
    check(|world| {
        let world = world.bound();
        let session = world.session();
        let txn = ClientTxn::begin(&session);
        ["a", "b"].into_iter().for_each(|item| txn.locks(item, Shared));
        together([
            Box::new(move || drop(txn.unlock("a"))) as Box<dyn FnOnce() + Send>,
            Box::new(move || block_on(session.close())),
            client(&world, &[("*", Exclusive)]),
            embedder(&world, &[("a", Exclusive)]),
        ]);
        world.ends_clean();
    });
}

/// An operator kills a transaction while its client ends it, its session is closed, or its time
/// passes; another waits for its lock.
fn a_kill_beside(world: World, end: fn(&World, ClientTxn, Session)) {
    let world = world.bound();
    let session = world.session();
    let txn = ClientTxn::begin(&session);
    txn.locks("a", Exclusive);
    let held = txn.id();
    let (killing, ending) = (world.clone(), world.clone());
    together([
        Box::new(move || {
            let Ok(kill) = killing.service.kill_txn(held, "model", false) else { return };
            // The kill has an end in each schedule.
            let killed = block_on(kill.done()).expect("it serves");
            assert!(killed.committing.is_empty());
        }) as Box<dyn FnOnce() + Send>,
        Box::new(move || end(&ending, txn, session)),
        embedder(&world, &[("a", Exclusive), ("b", Shared)]),
    ]);
    world.ends_clean();
}

#[test]
fn a_kill_beside_the_end_of_its_transaction_releases_it_once_and_renewals_go_on() {
    check(|world| {
        a_kill_beside(world, |_, txn, session| {
            assert_eq!(txn.end().expect("an end is always taken in"), 1);
            assert_eq!(session.renew().expect("it is open").valid_for, TTL);
            block_on(session.close());
        });
    });
}

#[test]
fn a_kill_beside_the_close_of_its_session_is_told_of_its_end() {
    check(|world| a_kill_beside(world, |_, _, session| block_on(session.close())));
}

#[test]
fn a_kill_beside_another_that_does_not_wait_is_over_with_it() {
    check(|world| {
        a_kill_beside(world, |world, txn, session| {
            if let Ok(kill) = world.service.kill_txn(txn.id(), "at once", true) {
                assert_eq!(block_on(kill.done()).expect("it serves").end, KillEnd::Forced);
            }
            drop(txn.end());
            assert_eq!(session.renew().expect("it is open").valid_for, TTL);
            block_on(session.close());
        });
    });
}

/// The client says that it knows, perhaps too early, renews, and never acts.
#[test]
fn a_killed_transaction_whose_promise_has_run_out_is_released_though_its_session_lives() {
    check(|world| {
        a_kill_beside(world, |world, txn, session| {
            session.acknowledge_loss(txn.number());
            drop(session.renew());
            world.advance(TTL / 2);
            session.acknowledge_loss(txn.number());
            drop(session.renew());
            world.advance(TTL.mul_f64(0.7));
            drop(txn.end());
            block_on(session.close());
        });
    });
}

/// The grace never ends by the clock of the model: the stop is woken by the last end, or never.
#[test]
fn a_stop_returns_when_the_last_session_and_the_last_transaction_have_ended() {
    check(|world| {
        let world = world.bound();
        let session = world.session();
        ClientTxn::begin(&session).locks("a", Exclusive);
        let txn = lock_embedded(&world, "b", Exclusive);
        let stop = thread::spawn(move || world.stops());
        let close = thread::spawn(move || block_on(session.close()));
        txn.end(None);
        close.join().expect("no panic");
        stop.join().expect("no panic");
    });
}

/// A call that waits is over as soon as the service stops.
#[test]
fn a_stop_ends_every_wait() {
    check(|world| {
        let world = world.bound();
        let [holder, waiter] = [(); 2].map(|()| world.session());
        ClientTxn::begin(&holder).locks("a", Exclusive);
        let txn = ClientTxn::begin(&waiter);
        let stopping = world.clone();
        let stop = thread::spawn(move || stopping.stops());
        let outcome = block_on(txn.lock("a", Exclusive));
        let refused = outcome.expect_err("the row is held").kind();
        assert_eq!(refused, ErrorKind::ShuttingDown);
        assert!(world.service.begin(Default::default()).is_err());
        block_on(holder.close());
        block_on(waiter.close());
        stop.join().expect("no panic");
        world.advance(Duration::from_secs(1));
    });
}

/// The last row of a transaction makes a range of all its rows, beside the end of its session.
fn a_call_that_escalates(world: World, held: &[&str], requested: &[&str]) {
    let session = world.session();
    let txn = ClientTxn::begin(&session);
    held.iter().for_each(|row| txn.locks(row, Exclusive));
    let items = requested.iter().flat_map(|row| spec(row, Exclusive).items).collect();
    let spec = LockSpec { items, escalate: true, ..spec("a", Exclusive) };
    together([
        Box::new(move || block_on(session.close())) as Box<dyn FnOnce() + Send>,
        Box::new(move || match block_on(txn.submit(Operation::Lock(spec))) {
            Ok(OpResponse::Locked(granted)) => assert!(granted.grant.escalated.is_some()),
            other => assert_eq!(other.unwrap_err().kind(), ErrorKind::SessionLost),
        }),
        embedder(&world, &[("b", Exclusive)]),
    ]);
    world.ends_clean();
}

#[test]
fn a_range_that_stands_for_earlier_rows_ends_with_their_session() {
    // One row more would be locked at once: rows that nobody else wants take less room.
    check(|world| a_call_that_escalates(world.bound(), &["a", "b", "c"], &["d", "e"]));
}

/// The call may be made at the engine after its transaction has ended.
#[test]
fn a_call_that_escalates_for_the_line_of_its_table_leaves_nothing() {
    check(|world| a_call_that_escalates(world, &[], &["a", "b", "c", "d"]));
}
