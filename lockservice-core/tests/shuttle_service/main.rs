//! Random interleavings of threads that use the real service, by shuttle: sessions and embedders,
//! the allocator and all tasks included.
//!
//! ```sh
//! RUSTFLAGS='--cfg shuttle' cargo test -p lockservice-core --release --target-dir target/shuttle \
//!     --test shuttle_service
//! ```
//!
//! Each model runs under 2,000 schedules, or twice `SHUTTLE_ITERATIONS`. A failure prints its
//! schedule. `SHUTTLE_REPLAY=` that schedule, with the name of the test, runs it again.
//!
//! Shuttle finds a lost wake-up by itself: a schedule in which no thread can go on fails. The
//! clock stands still unless the model moves it, so that no timer covers one up.
//!
//! | file | noun |
//! |---|---|
//! | `main.rs` | locks: exclusion, order, cancels, deadlocks |
//! | `claims.rs` | claims after a restart |
//! | `sessions.rs` | the end of sessions, and of the service |
//! | `kit.rs` | the service of a model, and rows that notice a broken exclusion |
#![cfg(shuttle)]

mod claims;
mod kit;
mod sessions;

use std::sync::Arc;

use kit::{ClientTxn, World, check, lock_embedded, op, spec, unlock};
use lockservice_core::service::{OpResponse, Operation, TxnOptions};
use lockservice_core::{ErrorKind, LockMode, Sequence};
use shuttle::future::block_on;
use shuttle::sync::Barrier;
use shuttle::thread;

use LockMode::{Exclusive, Shared, Update};

/// Runs `threads` side by side, to the end of all.
fn together<T: Send + 'static>(
    threads: impl IntoIterator<Item = Box<dyn FnOnce() -> T + Send>>,
) -> Vec<T> {
    let threads: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}

/// The work of one client, item after item, each in a transaction of its own.
fn client(world: &World, work: &'static [(&'static str, LockMode)]) -> Box<dyn FnOnce() + Send> {
    let world = world.clone();
    Box::new(move || {
        let session = world.session();
        for (number, (item, mode)) in work.iter().enumerate() {
            let txn = ClientTxn::begin(&session);
            txn.locks(item, *mode);
            world.work(item, *mode);
            if number % 2 == 0 {
                assert_eq!(txn.unlock(item).expect("it is held"), 1);
            }
            txn.end().expect("it is known");
        }
        block_on(session.close());
    })
}

/// The same of an embedder.
fn embedder(world: &World, work: &'static [(&'static str, LockMode)]) -> Box<dyn FnOnce() + Send> {
    let world = world.clone();
    Box::new(move || {
        for (item, mode) in work {
            let txn = lock_embedded(&world, item, *mode);
            world.work(item, *mode);
            txn.end(None);
        }
    })
}

fn rows_and_ranges(world: World) {
    together([
        client(&world, &[("a", Exclusive), ("b", Shared), ("*", Shared)]),
        client(&world, &[("*", Exclusive), ("a", Update)]),
        embedder(&world, &[("a", Shared), ("a", Exclusive), ("b", Exclusive)]),
    ]);
    world.ends_clean();
}

#[test]
fn incompatible_locks_are_never_held_together_and_every_waiter_gets_its_lock() {
    check(|world| rows_and_ranges(world.bound()));
}

#[test]
fn calls_that_come_while_their_table_is_being_bound_exclude_each_other_too() {
    check(rows_and_ranges);
}

/// A call is cancelled by its client before it waits, while it waits, or after it was granted.
/// Returns how many locks an unlock found after that.
fn a_cancelled_call(world: World) -> usize {
    let [held, cancelled] = [(); 2].map(|()| world.session());
    let holder = ClientTxn::begin(&held);
    let outcome = cancelled.submit(op(1), Operation::Lock(spec("a", Exclusive)));
    let cancels = thread::spawn(move || {
        let cancel = Operation::Cancel { sequence: Sequence::FIRST };
        block_on(cancelled.submit(op(2), cancel)).expect("it is known");
        // Granted before or never, it holds nothing now.
        drop(block_on(outcome));
        let unlocked = block_on(cancelled.submit(op(3), unlock("a"))).expect("it is known");
        block_on(cancelled.close());
        let OpResponse::Done { released } = unlocked else { panic!("{unlocked:?}") };
        released
    });
    let next = thread::spawn(client(&world, &[("a", Exclusive)]));
    holder.locks("a", Exclusive);
    holder.end().expect("it is known");
    block_on(held.close());
    next.join().expect("no panic");
    let released = cancels.join().expect("no panic");
    world.ends_clean();
    released
}

#[test]
fn a_cancelled_call_leaves_nothing_and_the_next_waiter_gets_the_lock() {
    check(|world| assert_eq!(a_cancelled_call(world.bound()), 0));
}

/// A call that is being made for the line of its table is rolled back after that. An unlock may
/// find its lock and release it first.
#[test]
fn a_call_that_is_cancelled_while_its_table_is_being_bound_leaves_nothing_at_last() {
    check(|world| assert!(a_cancelled_call(world) <= 1));
}

/// A call of an embedder is dropped at some moment. Returns whether its lock was received, and
/// whether the end of the transaction released one.
fn a_dropped_call(world: World) -> [bool; 2] {
    let holder = lock_embedded(&world, "a", Exclusive);
    let dropped = world.clone();
    let drops = thread::spawn(move || {
        let txn = dropped.service.begin(TxnOptions::default()).expect("it serves");
        let (give_up, given_up) = tokio::sync::oneshot::channel::<()>();
        let canceller = thread::spawn(move || drop(give_up));
        let received = block_on(async {
            tokio::select! {
                biased;
                granted = txn.lock(spec("a", Exclusive)) => granted.map(|_| true),
                _ = given_up => Ok(false),
            }
        });
        canceller.join().expect("no panic");
        let received = received.expect("the holder ends");
        if received {
            dropped.work("a", Exclusive);
        } else {
            // Others get the lock although the transaction goes on.
            lock_embedded(&dropped, "a", Exclusive).end(None);
        }
        [received, txn.end(None) == 1]
    });
    let next = thread::spawn(client(&world, &[("a", Exclusive)]));
    holder.end(None);
    next.join().expect("no panic");
    let ended = drops.join().expect("no panic");
    world.ends_clean();
    ended
}

#[test]
fn a_call_of_an_embedder_that_is_dropped_leaves_nothing() {
    check(|world| {
        let [received, released] = a_dropped_call(world.bound());
        assert_eq!(received, released);
    });
}

/// As above: the end of the transaction may find the lock.
#[test]
fn a_call_that_is_dropped_while_its_table_is_being_bound_leaves_nothing_at_last() {
    check(|world| {
        let [received, released] = a_dropped_call(world);
        assert!(released || !received);
    });
}

#[test]
fn each_cycle_of_three_is_broken_by_one_victim() {
    check(|world| {
        let world = world.bound();
        let session = world.session();
        let locked = Arc::new(Barrier::new(3));
        let victims = together([("a", "b"), ("b", "c"), ("c", "a")].map(|(first, second)| {
            let (txn, locked) = (ClientTxn::begin(&session), Arc::clone(&locked));
            let victim = move || {
                txn.locks(first, Exclusive);
                locked.wait();
                let outcome = block_on(txn.lock(second, Exclusive));
                txn.end().expect("it is known");
                match outcome {
                    Ok(_) => 0_usize,
                    Err(e) if e.kind() == ErrorKind::Deadlock => 1,
                    Err(e) => panic!("{e:?}"),
                }
            };
            Box::new(victim) as Box<dyn FnOnce() -> usize + Send>
        }));
        assert_eq!(victims.iter().sum::<usize>(), 1, "{victims:?}");
        block_on(session.close());
        world.ends_clean();
    });
}

/// Each may be granted both rows before the others begin. So there is a victim at most, and none of
/// a cycle that never was.
#[test]
fn transactions_that_may_close_a_cycle_of_upgrades_all_end() {
    check(|world| {
        let world = world.bound();
        let outcomes = together((0..3).map(|_| {
            let world = world.clone();
            let upgrade = move || {
                let txn = lock_embedded(&world, "a", Shared);
                let outcome = block_on(txn.lock(spec("a", Exclusive)));
                if outcome.is_ok() {
                    world.work("a", Exclusive);
                }
                txn.end(None);
                match outcome {
                    Ok(_) => true,
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::Deadlock, "{e:?}");
                        false
                    }
                }
            };
            Box::new(upgrade) as Box<dyn FnOnce() -> bool + Send>
        }));
        assert!(outcomes.contains(&true), "one of them gets its lock");
        world.ends_clean();
    });
}

/// As after a connection that broke, when the server still works on what came over it (T2).
#[test]
fn an_operation_that_comes_over_two_connections_takes_effect_once() {
    check(|world| {
        let world = world.bound();
        let session = world.session();
        let holder = lock_embedded(&world, "a", Exclusive);
        let connection = || {
            let session = session.clone();
            let operations = move || {
                let lock = Operation::Lock(spec("a", Exclusive));
                let locked = session.submit(op(1), lock.clone());
                let again = session.submit(op(2), lock);
                let unlocked = session.submit(op(3), unlock("a"));
                [block_on(locked), block_on(again), block_on(unlocked)].map(|response| {
                    match response.expect("the holder ends") {
                        OpResponse::Locked(granted) => granted.grant.token.get(),
                        OpResponse::Done { released } => released as u64,
                        other => panic!("{other:?}"),
                    }
                })
            };
            Box::new(operations) as Box<dyn FnOnce() -> [u64; 3] + Send>
        };
        let one = thread::spawn(connection());
        let other = thread::spawn(connection());
        holder.end(None);
        let [one, other] = [one, other].map(|thread| thread.join().expect("no panic"));
        assert_eq!(one, other, "both get the responses of the first time");
        assert_eq!((one[0], one[2]), (one[1], 1), "it was locked once and released once");
        block_on(session.close());
        world.ends_clean();
    });
}
