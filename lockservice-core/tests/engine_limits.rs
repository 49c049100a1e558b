//! Limits of the engine, and what clients choose: neither may cost others their turn, or the
//! process.

use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use lockservice_core::allocator::{Bind, TokenBlock};
use lockservice_core::clock::Time;
use lockservice_core::table::{
    EngineSettings, Grant, LockCall, LockEngine, LockRequest, WaitPolicy,
};
use lockservice_core::{
    BindVersion, ErrorKind, FencingToken, Key, KeyRange, LockItem, LockMode, Result, ServiceId,
    TableId, TableRef, TxnId,
};

const TABLE: TableId = TableId::new(1);
const VERSION: BindVersion = BindVersion::new(1);

/// What the engine counts a hold with, for short keys.
const HOLD_BYTES: usize = 240;

fn engine(settings: EngineSettings) -> LockEngine {
    let engine = LockEngine::new(settings);
    let table = TableRef::new("g", "t").expect("a name");
    let bind = Bind { table, id: TABLE, partition: 0, owner: ServiceId::new(1), version: VERSION };
    let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 << 52) };
    engine.install(bind, Some(block), None).expect("the first version");
    engine
}

fn txn(number: u64) -> TxnId {
    TxnId::new(ServiceId::new(1), number, false)
}

fn key(text: &[u8]) -> Key {
    Key::new(text).expect("a key")
}

fn row(text: &str) -> LockItem {
    LockItem::Row(key(text.as_bytes()))
}

fn range(from: &[u8], to: &[u8]) -> LockItem {
    LockItem::Range(
        KeyRange::new(Bound::Included(key(from)), Bound::Included(key(to))).expect("a range"),
    )
}

fn lock(engine: &LockEngine, who: u64, items: Vec<LockItem>, mode: LockMode) -> LockCall {
    let request = LockRequest {
        txn: txn(who),
        table: TABLE,
        version: VERSION,
        items,
        mode,
        wait: WaitPolicy::Wait,
    };
    engine.lock(request, Time::ZERO)
}

fn outcome(call: &mut LockCall) -> Option<Result<Grant>> {
    match Pin::new(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn granted(mut call: LockCall) -> Grant {
    outcome(&mut call).expect("it need not wait").expect("it is granted")
}

fn refused(mut call: LockCall) -> ErrorKind {
    outcome(&mut call).expect("it is refused at once").expect_err("it is refused").kind()
}

#[test]
fn a_waiter_that_hits_a_limit_as_its_turn_comes_leaves_its_place_to_the_next() {
    use LockMode::Exclusive;
    let long = "b".repeat(2000);
    let engine = engine(EngineSettings { lock_bytes_max: 10_500, ..EngineSettings::default() });
    granted(lock(&engine, 1, vec![range(b"a", b"c")], Exclusive));
    let mut full = lock(&engine, 2, vec![row(&long)], Exclusive);
    assert!(outcome(&mut full).is_none(), "it fits when it begins to wait");
    let mut next = lock(&engine, 3, vec![row(&long)], Exclusive);
    assert!(outcome(&mut next).is_none(), "it waits for 1, and behind 2");
    let others = (0..12).map(|at| row(&format!("x{at}"))).collect();
    granted(lock(&engine, 4, others, Exclusive));
    engine.unlock_all(txn(1), None);
    let error = outcome(&mut full).expect("its turn has come").expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    // The memory of the other wait has become free.
    outcome(&mut next).expect("nothing is in the way any more").expect("it is free");
}

#[test]
fn a_wait_that_its_limits_can_never_satisfy_is_refused_when_it_begins() {
    use LockMode::Exclusive;
    let three = 3 * HOLD_BYTES + 100;
    let settings = EngineSettings { txn_lock_bytes_max: three, ..EngineSettings::default() };
    let engine = engine(settings);
    granted(lock(&engine, 1, vec![row("m")], Exclusive));
    granted(lock(&engine, 2, vec![row("a"), row("b")], Exclusive));
    assert_eq!(
        refused(lock(&engine, 2, vec![row("m"), row("n")], Exclusive)),
        ErrorKind::ResourceExhausted
    );
    assert_eq!(engine.held(txn(2)), 2, "a refused call leaves everything as it was");
    // What it holds, and what an earlier item covers, takes no room.
    let few = vec![row("a"), range(b"m", b"n"), row("m"), row("n"), range(b"m", b"mm")];
    let mut fits = lock(&engine, 2, few, Exclusive);
    assert!(outcome(&mut fits).is_none(), "it waits");
    engine.unlock_all(txn(1), None);
    outcome(&mut fits).expect("its turn has come").expect("it fits");

    let node = LockEngine::new(EngineSettings { lock_bytes_max: three, ..settings });
    drop(engine);
    let table = TableRef::new("g", "t").expect("a name");
    let bind = Bind { table, id: TABLE, partition: 0, owner: ServiceId::new(1), version: VERSION };
    let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(100) };
    node.install(bind, Some(block), None).expect("the first version");
    granted(lock(&node, 1, vec![row("m")], Exclusive));
    // The wait counts too: with it there is no room for a second lock, also when the first has
    // gone.
    let call = lock(&node, 2, vec![row("m"), row("n")], Exclusive);
    assert_eq!(refused(call), ErrorKind::ResourceExhausted);
}

#[test]
fn a_grant_and_its_upgrade_can_be_taken_back_in_either_order() {
    use LockMode::{Exclusive, Shared};
    for upgrade_first in [false, true] {
        let engine = engine(EngineSettings::default());
        let shared = granted(lock(&engine, 1, vec![row("k")], Shared));
        let exclusive = granted(lock(&engine, 1, vec![row("k")], Exclusive));
        let order = if upgrade_first { [&exclusive, &shared] } else { [&shared, &exclusive] };
        engine.roll_back(txn(1), TABLE, order[0]);
        let left: Vec<_> =
            engine.locks(None).into_iter().map(|lock| (lock.mode, lock.token)).collect();
        let expected =
            if upgrade_first { (Shared, shared.token) } else { (Exclusive, exclusive.token) };
        assert_eq!(left, [expected], "only what the one call added was taken back");
        engine.roll_back(txn(1), TABLE, order[1]);
        assert_eq!(engine.held(txn(1)), 0, "both were taken back");
        granted(lock(&engine, 2, vec![row("k")], Exclusive));
    }
}

#[test]
fn what_is_taken_back_or_released_beneath_an_upgrade_in_flight_does_not_come_back() {
    use LockMode::{Exclusive, Shared};
    for release in [false, true] {
        for fails in [false, true] {
            let engine = engine(EngineSettings::default());
            let shared = granted(lock(&engine, 1, vec![row("k")], Shared));
            granted(lock(&engine, 2, vec![row("m")], Exclusive));
            let mut upgrade = lock(&engine, 1, vec![row("k"), row("m")], Exclusive);
            assert!(outcome(&mut upgrade).is_none(), "k is upgraded, m is waited for");
            if release {
                engine.unlock(txn(1), TABLE, &[row("k")], None);
            } else {
                engine.roll_back(txn(1), TABLE, &shared);
            }
            if fails {
                drop(upgrade);
            } else {
                engine.unlock_all(txn(2), None);
                let grant = outcome(&mut upgrade).expect("m is free").expect("it is granted");
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
fn no_order_of_ranges_overflows_the_stack_of_whoever_locks_them() {
    const COUNT: usize = 5_000;
    let rising: Vec<u64> = (0..COUNT as u64).collect();
    for keys in [rising, order_against_a_constant_seed(COUNT)] {
        // Small, so that a call for each range would not fit.
        let worker = std::thread::Builder::new().stack_size(256 << 10);
        let worker = worker.spawn(move || {
            let engine = engine(EngineSettings::default());
            for at in &keys {
                let item = range(&at.to_be_bytes(), &at.to_be_bytes());
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
