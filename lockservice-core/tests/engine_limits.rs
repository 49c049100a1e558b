//! Limits of the engine, and choices of clients: neither may cost other calls their turn, or end
//! the process.

mod kit;

use kit::{TABLE, engine, engine_with, granted, held_bytes, kind, lock, poll, range, row, txn};
use lockservice_core::table::{EngineMemory, EngineSettings};
use lockservice_core::{ErrorKind, LockMode};

#[test]
fn a_waiter_that_hits_a_limit_as_its_turn_comes_leaves_its_turn_to_the_next() {
    use LockMode::Exclusive;
    let long = "b".repeat(2000);
    let (item, other) = (row(&long), range(b"a", b"c"));
    // Room for the first hold and for each of two waits as if it was the first one of its item.
    let of_call = EngineMemory::TXN + EngineMemory::call(std::slice::from_ref(&item));
    let of_item = EngineMemory::queue(&item) + EngineMemory::entry(&item);
    let lock_bytes_max = EngineMemory::TXN + held_bytes(&other) + 2 * (of_call + of_item);
    let engine = engine_with(EngineSettings { lock_bytes_max, ..EngineSettings::default() });
    granted(lock(&engine, 1, vec![range(b"a", b"c")], Exclusive));
    let mut full = lock(&engine, 2, vec![row(&long)], Exclusive);
    assert!(poll(&mut full).is_pending(), "it fits when it begins to wait");
    let mut next = lock(&engine, 3, vec![row(&long)], Exclusive);
    assert!(poll(&mut next).is_pending(), "it waits for 1, and behind 2");
    let others: Vec<_> = (0..12).map(|at| row(format!("x{at}"))).collect();
    granted(lock(&engine, 4, others, Exclusive));
    engine.unlock_all(txn(1), None);
    assert_eq!(kind(full), ErrorKind::ResourceExhausted, "its turn has come, and there is no room");
    // The memory of the other wait has become free.
    granted(next);
}

#[test]
fn a_wait_that_its_limits_can_never_satisfy_is_refused_when_it_begins() {
    use LockMode::Exclusive;
    let held = held_bytes(&row("a"));
    let three = 2 * held + held_bytes(&range(b"m", b"n"));
    let settings = EngineSettings { txn_lock_bytes_max: three, ..EngineSettings::default() };
    let engine = engine_with(settings);
    granted(lock(&engine, 1, vec![row("m")], Exclusive));
    granted(lock(&engine, 2, vec![row("a"), row("b")], Exclusive));
    assert_eq!(
        kind(lock(&engine, 2, vec![row("m"), row("n")], Exclusive)),
        ErrorKind::ResourceExhausted
    );
    assert_eq!(engine.held(txn(2)), 2, "a refused call leaves everything as it was");
    // Held items, and those that an earlier item covers, take no room.
    let few = vec![row("a"), range(b"m", b"n"), row("m"), row("n"), range(b"m", b"mm")];
    let mut fits = lock(&engine, 2, few, Exclusive);
    assert!(poll(&mut fits).is_pending(), "it waits");
    engine.unlock_all(txn(1), None);
    granted(fits);

    // The call and its transaction count too: beside them there is no room for all of its locks,
    // also when the first lock has gone.
    let rows: Vec<_> = (0..10).map(|at| row(format!("m{at}"))).collect();
    let needed = 10 * held + EngineMemory::call(&rows) + EngineMemory::TXN;
    for (lock_bytes_max, is_refused) in [(needed - 1, true), (needed, false)] {
        let node = engine_with(EngineSettings { lock_bytes_max, ..EngineSettings::default() });
        granted(lock(&node, 1, vec![row("m0")], Exclusive));
        let mut call = lock(&node, 2, rows.clone(), Exclusive);
        if is_refused {
            assert_eq!(kind(call), ErrorKind::ResourceExhausted);
        } else {
            assert!(poll(&mut call).is_pending(), "it waits");
        }
    }
}

#[test]
fn a_grant_and_its_upgrade_can_be_rolled_back_in_either_order() {
    use LockMode::{Exclusive, Shared};
    for upgrade_first in [false, true] {
        let engine = engine();
        let shared = granted(lock(&engine, 1, vec![row("k")], Shared));
        let exclusive = granted(lock(&engine, 1, vec![row("k")], Exclusive));
        let order = if upgrade_first { [&exclusive, &shared] } else { [&shared, &exclusive] };
        engine.roll_back(txn(1), TABLE, order[0]);
        let held: Vec<_> =
            engine.locks(None).into_iter().map(|lock| (lock.mode, lock.token)).collect();
        let expected =
            if upgrade_first { (Shared, shared.token) } else { (Exclusive, exclusive.token) };
        assert_eq!(held, [expected], "only the changes of the one call were rolled back");
        engine.roll_back(txn(1), TABLE, order[1]);
        assert_eq!(engine.held(txn(1)), 0, "both were rolled back");
        granted(lock(&engine, 2, vec![row("k")], Exclusive));
    }
}

#[test]
fn what_is_rolled_back_or_released_beneath_an_upgrade_in_flight_does_not_come_back() {
    use LockMode::{Exclusive, Shared};
    for release in [false, true] {
        for fails in [false, true] {
            let engine = engine();
            let shared = granted(lock(&engine, 1, vec![row("k")], Shared));
            granted(lock(&engine, 2, vec![row("m")], Exclusive));
            let mut upgrade = lock(&engine, 1, vec![row("k"), row("m")], Exclusive);
            assert!(poll(&mut upgrade).is_pending(), "k is upgraded, m is waited for");
            if release {
                engine.unlock(txn(1), TABLE, &[row("k")], None);
            } else {
                engine.roll_back(txn(1), TABLE, &shared);
            }
            if fails {
                drop(upgrade);
            } else {
                engine.unlock_all(txn(2), None);
                let grant = granted(upgrade);
                assert_eq!(engine.held(txn(1)), 2, "the upgrade stands by itself");
                engine.roll_back(txn(1), TABLE, &grant);
            }
            assert_eq!(engine.held(txn(1)), 0);
        }
    }
}

/// The keys of `count` insertions, each of which had a lower priority than all before it in key
/// order: in a treap whose generator of priorities began with this constant they were a list.
fn order_against_a_constant_seed(count: usize) -> Vec<u64> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut priorities = Vec::new();
    for number in 0..count {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        priorities.push((random, number));
    }
    priorities.sort_unstable_by(|a, b| b.cmp(a));
    let mut keys = vec![0; count];
    for (rank, (_, number)) in priorities.into_iter().enumerate() {
        keys[number] = rank as u64;
    }
    keys
}

#[test]
fn no_order_of_ranges_overflows_the_stack() {
    const COUNT: usize = 5_000;
    let rising: Vec<u64> = (0..COUNT as u64).collect();
    for keys in [rising, order_against_a_constant_seed(COUNT)] {
        // Small, so that a call for each range would not fit.
        let worker = std::thread::Builder::new().stack_size(256 << 10);
        let worker = worker.spawn(move || {
            let engine = engine();
            for at in &keys {
                let item = range(at.to_be_bytes(), at.to_be_bytes());
                granted(lock(&engine, *at, vec![item], LockMode::Exclusive));
            }
            for at in keys {
                engine.unlock_all(txn(at), None);
            }
            assert!(engine.locks(None).is_empty());
        });
        worker.expect("a thread").join().expect("it ends");
    }
}
