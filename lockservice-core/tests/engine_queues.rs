//! The cost of long queues, in steps: a queue of any length costs a call that comes, a call that
//! gives up, and a hand-over no more than a logarithm of it.
//!
//! `benches/queues.rs` prints the curve in time.

mod kit;

use LockMode::{Exclusive, Shared, Update};
use kit::by_id::LockEngine;
use kit::cost::everything;
use kit::{engine_with, granted, lock, poll, row, txn};
use lockservice_core::table::{EngineSettings, LockCall, engine_steps};
use lockservice_core::{LockItem, LockMode};

/// The first holder, which is none of the waiters.
const HOLDER: u64 = 1 << 40;
/// Comes to a queue that is there already.
const LATE: u64 = 1 << 41;

fn engine() -> LockEngine {
    engine_with(EngineSettings { waiters_max: 1 << 20, ..EngineSettings::default() })
}

/// A queue of `waiters` behind a holder of an item.
fn queue(waiters: u64, held: LockItem, wanted: impl Fn(u64) -> (LockItem, LockMode)) -> Queue {
    let engine = engine();
    drop(granted(lock(&engine, HOLDER, [held], Exclusive)));
    let wait = |who| {
        let (item, mode) = wanted(who);
        let mut call = lock(&engine, who, [item], mode);
        assert!(poll(&mut call).is_pending(), "{who} waits");
        Some(call)
    };
    let calls = (0..waiters).map(wait).collect();
    Queue { engine, calls }
}

struct Queue {
    engine: LockEngine,
    calls: Vec<Option<LockCall>>,
}

/// The steps that `act` takes.
fn steps(act: impl FnOnce()) -> u64 {
    let before = engine_steps();
    act();
    engine_steps() - before
}

impl Queue {
    /// The steps of one more wait, of the end of a wait at some places of the queue, and of
    /// hand-overs to the next ones: the largest of each.
    fn costs(mut self) -> [u64; 3] {
        let waiters = self.calls.len();
        let mut call = None;
        let enqueue = steps(|| call = Some(lock(&self.engine, LATE, [row("k")], Exclusive)));
        self.calls.push(call);
        // The first two stay for the hand-over.
        let places = [2, 3, waiters / 3, waiters / 2, waiters - 2, waiters - 1, waiters];
        let cancel = |at: &usize| steps(|| drop(self.calls[*at].take()));
        let cancel = places.iter().map(cancel).max().expect("some places");
        let mut holder = HOLDER;
        let mut hand_over = 0;
        for next in 0..2 {
            let releases = steps(|| {
                self.engine.unlock_all(txn(holder), None);
            });
            hand_over = hand_over.max(releases);
            let call = self.calls[next].take().expect("it waits");
            granted(call);
            holder = next as u64;
        }
        [enqueue, cancel, hand_over]
    }
}

#[test]
fn a_queue_costs_each_call_no_more_than_a_logarithm_of_its_length() {
    for mode in [Exclusive, Update] {
        let costs = [10, 1_000, 100_000_u64].map(|waiters| {
            let costs = queue(waiters, row("k"), |_| (row("k"), mode)).costs();
            let [enqueue, cancel, hand_over] = costs;
            println!(
                "{mode}, {waiters}: {enqueue} to wait, {cancel} to cancel, {hand_over} to hand over"
            );
            costs
        });
        for (first, other) in [(0, 1), (0, 2), (1, 2)] {
            // From 10 to 1,000 and from there to 100,000 the logarithm grows by the same.
            let most = [1, 3, 5];
            for at in 0..3 {
                let (few, many) = (costs[first][at].max(4), costs[other][at]);
                assert!(many * most[first] <= few * most[other], "{mode}: {costs:?}");
            }
        }
    }
}

#[test]
fn a_lock_of_the_whole_table_wakes_the_waiters_for_rows_in_work_that_grows_as_their_number() {
    let costs = [1_000, 10_000, 100_000_u64].map(|waiters| {
        let wanted = |who: u64| {
            (row(who.to_be_bytes()), if who.is_multiple_of(2) { Shared } else { Exclusive })
        };
        let mut queue = queue(waiters, everything(), wanted);
        let cost = steps(|| {
            queue.engine.unlock_all(txn(HOLDER), None);
        });
        for call in queue.calls.drain(..).flatten() {
            granted(call);
        }
        println!("{waiters} waiters: {cost} steps");
        cost
    });
    assert!(costs[0] >= 1_000, "the steps are counted");
    for (few, many) in [(costs[0], costs[1]), (costs[1], costs[2])] {
        assert!(many <= 11 * few, "ten times the waiters: from {few} to {many} steps");
    }
}
