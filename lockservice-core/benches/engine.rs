//! The lock engine beside what it cannot beat: a bare map under a mutex, and a bare hand-over
//! between two tasks.
//!
//! `cargo bench -p lockservice-core --bench engine`. Each pair runs side by side in turns, and the
//! ratio is printed: timings on a shared machine swing too much to compare across runs.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures with the machine's clock")]

#[path = "../tests/kit/by_id.rs"]
mod by_id;

use std::collections::HashMap;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use by_id::{LockEngine, LockRequest};
use criterion::{Criterion, criterion_group, criterion_main};
use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::table::{EngineSettings, Grant, LockCall, TxnHandle, WaitPolicy};
use lockservice_core::{
    BindVersion, ErrorKind, FencingToken, Key, LockItem, LockMode, Result, ServiceId, TableId,
    TableRef, TxnId, TxnNumber,
};
use parking_lot::Mutex;

const TABLE: TableId = TableId::new(1);
const VERSION: BindVersion = BindVersion::new(1);

fn engine() -> LockEngine {
    let engine = LockEngine::new(EngineSettings::default());
    let bind = Bind {
        table: TableRef::new("g", "t").expect("a name"),
        id: TABLE,
        partition: 0,
        owner: ServiceId::new(1),
        version: VERSION,
        slot: BindSlot::NONE,
    };
    let block = TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 << 52) };
    engine.install(bind, Some(block), None).expect("the first version");
    engine
}

/// A 16-byte key; consecutive numbers are far apart.
fn bytes(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn txn(number: u64) -> TxnId {
    TxnId::new(ServiceId::new(1), TxnNumber::new(number), false)
}

fn lock(engine: &LockEngine, who: u64, key: u64) -> LockCall {
    let request = LockRequest {
        txn: txn(who),
        table: TABLE,
        version: VERSION,
        items: vec![LockItem::Row(Key::new(bytes(key)).expect("a key"))],
        mode: LockMode::Exclusive,
        wait: WaitPolicy::Wait,
        escalate: false,
    };
    engine.lock(request, Time::ZERO)
}

fn poll(call: &mut LockCall) -> Poll<Result<Grant>> {
    Pin::new(call).poll(&mut Context::from_waker(Waker::noop()))
}

fn granted(mut call: LockCall) -> Grant {
    match poll(&mut call) {
        Poll::Ready(Ok(grant)) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

/// The time that `rounds` rounds of `act` take.
fn time(rounds: u64, mut act: impl FnMut(u64)) -> Duration {
    let clock = SystemClock;
    let before = clock.now();
    (0..rounds).for_each(&mut act);
    clock.now().since(before)
}

/// Runs two things in turns and prints how their times compare: the median of the ratios.
fn beside(
    what: &str,
    rounds: u64,
    mut ours: impl FnMut(u64) -> Duration,
    mut theirs: impl FnMut(u64) -> Duration,
) {
    let mut turns: Vec<(f64, Duration, Duration)> = (0..15)
        .map(|_| {
            let (a, b) = (ours(rounds), theirs(rounds));
            (a.as_secs_f64() / b.as_secs_f64(), a, b)
        })
        .collect();
    turns.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, a, b) = turns[turns.len() / 2];
    let each = |time: Duration| time.as_nanos() / u128::from(rounds);
    println!("{what}: {} ns beside {} ns, ratio {ratio:.2}", each(a), each(b));
}

fn uncontended(criterion: &mut Criterion) {
    for resident in [0, 100_000_u64] {
        let engine = engine();
        let map = Mutex::new(HashMap::<[u8; 16], u64>::new());
        for number in 0..resident {
            let key = Key::new(bytes(number)).expect("a key");
            assert!(engine.lock_row(txn(number), TABLE, &key, LockMode::Exclusive).is_some());
            map.lock().insert(bytes(number), number);
        }
        let mut next = resident;
        let table = engine.table(TABLE).expect("it is installed");
        let by_handle = engine.by_handle();
        let mut ours = || {
            next += 1;
            let (txn, key) = (TxnHandle::new(txn(next)), Key::new(bytes(next)).expect("a key"));
            let grant = by_handle.lock_row(&txn, &table, &key, LockMode::Exclusive);
            by_handle.unlock_all(&txn, None);
            black_box(grant.expect("it is free").token);
        };
        let mut other = resident;
        let mut theirs = || {
            other += 1;
            map.lock().insert(bytes(other), other);
            black_box(map.lock().remove(&bytes(other)));
        };
        let name = format!("lock and unlock a row, {resident} held");
        beside(
            &name,
            100_000,
            |rounds| time(rounds, |_| ours()),
            |rounds| time(rounds, |_| theirs()),
        );
        criterion.bench_function(&name, |bencher| bencher.iter(&mut ours));
        criterion.bench_function(&format!("insert and remove, {resident} there"), |bencher| {
            bencher.iter(&mut theirs)
        });
    }
}

/// From before the unlock, or the send, until the waiter runs.
fn hand_over(_: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let engine = engine();
    let mut who = 0;
    let ours = |rounds| {
        runtime.block_on(async {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                granted(lock(&engine, who, 0));
                let call = lock(&engine, who + 1, 0);
                let waiter = tokio::spawn(async move {
                    black_box(call.await.expect("it is granted").token);
                    SystemClock.now()
                });
                // The waiter is polled once, and waits.
                tokio::task::yield_now().await;
                let before = SystemClock.now();
                engine.unlock_all(txn(who), None);
                total += waiter.await.expect("it runs").since(before);
                engine.unlock_all(txn(who + 1), None);
                who += 2;
            }
            total
        })
    };
    let theirs = |rounds| {
        runtime.block_on(async {
            let mut total = Duration::ZERO;
            for round in 0..rounds {
                let (sender, receiver) = tokio::sync::oneshot::channel::<u64>();
                let waiter = tokio::spawn(async move {
                    black_box(receiver.await.expect("it is sent"));
                    SystemClock.now()
                });
                tokio::task::yield_now().await;
                let before = SystemClock.now();
                sender.send(round).expect("it waits");
                total += waiter.await.expect("it runs").since(before);
            }
            total
        })
    };
    beside("unlock to the next waiter running, beside a oneshot", 20_000, ours, theirs);
}

/// Ten thousand transactions wait, and one more wait closes a cycle.
fn deadlock(_: &mut Criterion) {
    const WAITERS: u64 = 10_000;
    let clock = SystemClock;
    let report = |what: &str,
                  cycle_length: usize,
                  prepare: &dyn Fn(&LockEngine) -> Vec<LockCall>,
                  close: (u64, u64)| {
        let mut times: Vec<Duration> = (0..9)
            .map(|_| {
                let engine = engine();
                let mut calls = prepare(&engine);
                let before = clock.now();
                let mut call = lock(&engine, close.0, close.1);
                let time = clock.now().since(before);
                let reported =
                    calls.iter_mut().chain([&mut call]).find_map(|call| match poll(call) {
                        Poll::Ready(Err(error)) if error.kind() == ErrorKind::Deadlock => {
                            error.deadlock().map(<[_]>::len)
                        }
                        _ => None,
                    });
                assert_eq!(reported, Some(cycle_length));
                time
            })
            .collect();
        times.sort();
        println!("a deadlock among {WAITERS} waiters, {what}: {:?}", times[times.len() / 2]);
    };
    // Transaction 0 holds row 0, for which all wait; the last of them holds row 1, for which 0
    // waits then.
    let hot = |engine: &LockEngine| {
        granted(lock(engine, 0, 0));
        granted(lock(engine, WAITERS, 1));
        (1..=WAITERS).map(|who| lock(engine, who, 0)).collect()
    };
    report("all in one queue", 2, &hot, (0, 1));
    // Each waits for the one before it: the longest cycle there can be.
    let chain = |engine: &LockEngine| {
        (0..=WAITERS).for_each(|who| drop(granted(lock(engine, who, who))));
        (1..=WAITERS).map(|who| lock(engine, who, who - 1)).collect()
    };
    report("all in one cycle", WAITERS as usize + 1, &chain, (0, WAITERS));
}

/// Ten thousand transactions, for each of which another one waits, queue at one row, one after
/// another.
fn hot_row(_: &mut Criterion) {
    const WAITERS: u64 = 10_000;
    let engine = engine();
    granted(lock(&engine, 3 * WAITERS, 0));
    (1..=WAITERS).for_each(|who| drop(granted(lock(&engine, who, who))));
    let mut calls: Vec<LockCall> =
        (1..=WAITERS).map(|who| lock(&engine, WAITERS + who, who)).collect();
    let total = time(WAITERS, |who| calls.push(lock(&engine, who + 1, 0)));
    println!(
        "{WAITERS} transactions, each waited for, queue at a row: {} ns each",
        total.as_nanos() / u128::from(WAITERS)
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500));
    targets = uncontended, hand_over, deadlock, hot_row
}
criterion_main!(benches);
