//! Calls with ancestors: a lock of an ancestor is refused at once, and cycles of waits over
//! ancestors are found.

mod kit;

use std::collections::{BTreeMap, BTreeSet};
use std::task::Poll;

use kit::by_id::{LockEngine, LockRequest};
use kit::{engine, kind, poll, range, request, row, txn};
use lockservice_core::clock::Time;
use lockservice_core::table::{LockCall, WaitPolicy, engine_steps};
use lockservice_core::{ErrorKind, LockItem, LockMode, TxnId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn lock_as(
    engine: &LockEngine,
    who: u64,
    ancestors: &[u64],
    item: LockItem,
    mode: LockMode,
) -> LockCall {
    let ancestors: Vec<TxnId> = ancestors.iter().map(|number| txn(*number)).collect();
    engine.lock_for(request(who, vec![item], mode), &ancestors, Time::ZERO)
}

fn lock(engine: &LockEngine, who: u64, ancestors: &[u64], item: LockItem) -> LockCall {
    lock_as(engine, who, ancestors, item, LockMode::Exclusive)
}

/// Holds an item from now on.
fn hold(engine: &LockEngine, who: u64, item: LockItem, mode: LockMode) {
    let mut call = lock_as(engine, who, &[], item, mode);
    assert!(matches!(poll(&mut call), Poll::Ready(Ok(_))), "free");
}

fn waits(call: &mut LockCall) -> bool {
    poll(call).is_pending()
}

/// The text of the deadlock with which the call failed.
fn refused(call: &mut LockCall) -> String {
    match poll(call) {
        Poll::Ready(Err(error)) if error.kind() == ErrorKind::Deadlock => error.to_string(),
        other => panic!("no deadlock: {other:?}"),
    }
}

/// Asserts that the call fails for a lock of an ancestor, and says what to do.
fn refused_as_held_by_ancestor(call: &mut LockCall) {
    match poll(call) {
        Poll::Ready(Err(error)) if error.kind() == ErrorKind::HeldByAncestor => {
            assert!(
                error.to_string().contains("use the lock that the outer call holds"),
                "{error}"
            );
        }
        other => panic!("no refusal: {other:?}"),
    }
}

#[test]
fn what_an_ancestor_holds_is_refused_at_once_and_says_so() {
    use LockMode::{Exclusive, Shared};
    for (held, mode, requested, as_what) in [
        (row("a"), Exclusive, row("a"), Exclusive),
        (row("a"), Exclusive, row("a"), Shared),
        (row("a"), Shared, row("a"), Exclusive),
        (range("a", "m"), Exclusive, row("b"), Exclusive),
        (row("b"), Exclusive, range("a", "m"), Shared),
    ] {
        let engine = engine();
        hold(&engine, 1, held, mode);
        let mut nested = lock_as(&engine, 3, &[1, 2], requested.clone(), as_what);
        refused_as_held_by_ancestor(&mut nested);
        // It is refused in the same way to a call that may not wait: trying again does not help.
        let request = LockRequest {
            wait: WaitPolicy::NoWait,
            ..request(5, vec![requested.clone()], as_what)
        };
        refused_as_held_by_ancestor(&mut engine.lock_for(request.clone(), &[txn(1)], Time::ZERO));
        let of_stranger = engine.lock_for(request, &[txn(2)], Time::ZERO);
        assert_eq!(kind(of_stranger), ErrorKind::Conflict);
        // A stranger, and a call of a stranger, wait for it.
        let mut stranger = lock_as(&engine, 4, &[2], requested, as_what);
        assert!(waits(&mut stranger));
        engine.unlock_all(txn(1), None);
        assert!(!waits(&mut stranger));
    }
    let engine = engine();
    hold(&engine, 1, row("a"), Shared);
    let mut nested = lock_as(&engine, 2, &[1], row("a"), Shared);
    assert!(!waits(&mut nested), "sharers of one tree");
    let mut free = lock(&engine, 2, &[1], row("b"));
    assert!(!waits(&mut free));
}

#[test]
fn a_lock_of_an_ancestor_behind_others_is_refused_when_its_turn_would_come() {
    let engine = engine();
    hold(&engine, 1, row("b"), LockMode::Exclusive);
    hold(&engine, 9, row("a"), LockMode::Exclusive);
    // Another transaction holds the first row, the ancestor the second.
    let request = request(2, vec![row("a"), row("b")], LockMode::Exclusive);
    let mut nested = engine.lock_for(request, &[txn(1)], Time::ZERO);
    assert!(waits(&mut nested));
    engine.unlock_all(txn(9), None);
    refused_as_held_by_ancestor(&mut nested);
    assert_eq!(engine.held(txn(2)), 0, "all or nothing");
}

#[test]
fn two_trees_that_want_what_the_other_holds_are_a_deadlock_and_one_goes_on() {
    let engine = engine();
    hold(&engine, 1, row("a"), LockMode::Exclusive);
    hold(&engine, 2, row("b"), LockMode::Exclusive);
    let mut first = lock(&engine, 3, &[1], row("b"));
    assert!(waits(&mut first));
    let mut second = lock(&engine, 4, &[2], row("a"));
    let ended = [poll(&mut first), poll(&mut second)];
    let errors: Vec<_> = ended.iter().filter(|ended| ended.is_ready()).collect();
    let [Poll::Ready(Err(error))] = errors[..] else { panic!("one of the two: {errors:?}") };
    let mut cycle: Vec<_> = error
        .deadlock()
        .expect("a cycle")
        .iter()
        .map(|edge| (edge.waiter, edge.item.to_string(), edge.holder))
        .collect();
    cycle.sort();
    assert_eq!(cycle, [(txn(3), "b".to_owned(), txn(2)), (txn(4), "a".to_owned(), txn(1))]);
    // The other call is granted when the tree of the victim has ended.
    let (other, tree) = if ended[0].is_ready() { (&mut second, 1) } else { (&mut first, 2) };
    engine.unlock_all(txn(tree), None);
    assert!(!waits(other));
}

#[test]
fn a_cycle_over_an_ancestor_that_locks_while_its_nested_call_waits_is_found() {
    let engine = engine();
    hold(&engine, 1, row("a"), LockMode::Exclusive);
    hold(&engine, 2, row("b"), LockMode::Exclusive);
    let mut nested = lock(&engine, 3, &[1], row("b"));
    assert!(waits(&mut nested));
    let mut other = lock(&engine, 2, &[], row("a"));
    let ended = [poll(&mut nested), poll(&mut other)];
    assert_eq!(ended.iter().filter(|ended| ended.is_ready()).count(), 1, "{ended:?}");
}

#[test]
fn a_nested_call_goes_ahead_of_those_who_wait_for_its_ancestor() {
    let engine = engine();
    hold(&engine, 1, row("a"), LockMode::Exclusive);
    // It waits for the outer transaction, and would keep all others from `b`.
    let mut whole = lock(&engine, 9, &[], range("a", "z"));
    assert!(waits(&mut whole));
    let mut nested = lock(&engine, 2, &[1], row("b"));
    assert!(!waits(&mut nested));
    engine.unlock_all(txn(2), None);
    engine.unlock_all(txn(1), None);
    assert!(!waits(&mut whole));
}

/// A stranger holds `h` and waits, or begins to wait, for what the claimed transaction holds.
/// Without the claim it is a wait like any other.
#[test]
fn a_false_claim_fails_only_the_transaction_that_makes_it() {
    for (claimants_first, claimants) in [(false, 1), (true, 1), (true, 10)] {
        let engine = engine();
        let (claimed, stranger) = (1, 2);
        hold(&engine, claimed, row("a"), LockMode::Exclusive);
        hold(&engine, stranger, row("h"), LockMode::Exclusive);
        let first = 10;
        for who in first..first + claimants {
            // More locks than the stranger: by the policy the stranger would fail.
            for key in ["x", "y", "z"] {
                hold(&engine, who, row(format!("{key}{who}")), LockMode::Exclusive);
            }
        }
        // An honest nested call, which waits for the same and claims nothing that closes a cycle.
        let mut honest = lock(&engine, 3, &[4], row("h"));
        let claim = |who| lock(&engine, who, &[claimed], row("h"));
        let mut early: Vec<_> =
            (first..first + claimants).filter(|_| claimants_first).map(claim).collect();
        assert!(early.iter_mut().all(waits));
        let mut waits_for_claimed = lock(&engine, stranger, &[], row("a"));
        let mut late: Vec<_> =
            (first..first + claimants).filter(|_| !claimants_first).map(claim).collect();
        for call in early.iter_mut().chain(&mut late) {
            refused(call);
        }
        assert!(waits(&mut waits_for_claimed) && waits(&mut honest));
        engine.unlock_all(txn(claimed), None);
        assert!(!waits(&mut waits_for_claimed));
        engine.unlock_all(txn(stranger), None);
        assert!(!waits(&mut honest));
    }
}

#[test]
fn of_a_cycle_without_claims_the_victim_is_the_same_with_them() {
    let victim = |claims: bool| {
        let engine = engine();
        for (who, key) in [(1, "a"), (2, "b"), (2, "c"), (7, "v")] {
            hold(&engine, who, row(key), LockMode::Exclusive);
        }
        let claim: &[u64] = if claims { &[7] } else { &[] };
        let mut one = lock(&engine, 1, claim, row("b"));
        assert!(waits(&mut one));
        let mut two = lock(&engine, 2, claim, row("a"));
        [waits(&mut one), waits(&mut two)]
    };
    assert_eq!(victim(true), victim(false));
    assert_eq!(victim(false), [false, true], "the one with fewer locks");
}

#[test]
fn many_who_claim_one_transaction_are_still_refused_what_it_holds() {
    let engine = engine();
    hold(&engine, 1, row("a"), LockMode::Exclusive);
    hold(&engine, 2, row("b"), LockMode::Exclusive);
    let mut many: Vec<_> = (100..200).map(|who| lock(&engine, who, &[1, 1, 5], row("b"))).collect();
    assert!(many.iter_mut().all(waits));
    for (who, item) in [(300, row("a")), (301, range("a", "m"))] {
        refused_as_held_by_ancestor(&mut lock(&engine, who, &[1], item));
    }
    // It goes on locking, with all of them behind it.
    for key in 0..100 {
        hold(&engine, 1, row(format!("k{key}")), LockMode::Exclusive);
    }
    drop(many);
    for who in 1..=2 {
        engine.unlock_all(txn(who), None);
    }
    assert!(engine.locks(None).is_empty() && engine.waits(None).is_empty());
}

#[test]
fn calls_that_claim_one_transaction_go_through_its_locks_together() {
    let steps = |claimants: u64| {
        let engine = engine();
        for key in 0..2_000 {
            hold(&engine, 1, row(format!("k{key}")), LockMode::Exclusive);
        }
        hold(&engine, 2, row("h"), LockMode::Exclusive);
        hold(&engine, 3, row("x"), LockMode::Exclusive);
        // A call waits in the table, so that locks are searched.
        let mut claims: Vec<_> =
            (100..100 + claimants).map(|who| lock(&engine, who, &[1], row("h"))).collect();
        let mut others: Vec<_> = (200..300).map(|who| lock(&engine, who, &[], row("x"))).collect();
        assert!(claims.iter_mut().chain(&mut others).all(waits));
        let before = engine_steps();
        // The claimants wait for this transaction.
        assert!(waits(&mut lock(&engine, 2, &[], row("x"))));
        engine_steps() - before
    };
    let (one, sixteen) = (steps(1), steps(16));
    assert!(one >= 2_000, "the locks are gone through: {one}");
    assert!(sixteen < 2 * one, "from {one} to {sixteen} steps");
}

/// A transaction as a holder, or its waiting call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Node {
    Holder(TxnId),
    Call(TxnId),
}

type Graph = BTreeMap<Node, BTreeSet<Node>>;

/// The wait graph. A holder ends when its own call and its nested calls have ended; a waiter ahead
/// only has to leave the queue.
fn graph(engine: &LockEngine, pending: &BTreeMap<u64, (LockCall, Vec<u64>)>) -> Graph {
    let mut graph = Graph::new();
    for wait in engine.waits(None) {
        let what_for =
            if wait.granted { Node::Holder(wait.holder) } else { Node::Call(wait.holder) };
        graph.entry(Node::Call(wait.waiter)).or_default().insert(what_for);
    }
    for (who, (_, ancestors)) in pending {
        for holder in ancestors.iter().chain([who]) {
            graph.entry(Node::Holder(txn(*holder))).or_default().insert(Node::Call(txn(*who)));
        }
    }
    graph
}

fn has_cycle(graph: &Graph) -> bool {
    // A node that waits for no remaining node is removed, until there is none.
    let mut remaining = graph.clone();
    loop {
        let stuck: BTreeSet<Node> = remaining.keys().copied().collect();
        let before = remaining.len();
        remaining.retain(|_, holders| holders.iter().any(|holder| stuck.contains(holder)));
        if remaining.len() == before {
            return before > 0;
        }
    }
}

#[test]
fn whatever_trees_of_transactions_do_no_cycle_of_waits_is_left_and_nothing_stays_behind() {
    const TXNS: u64 = 9;
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let engine = engine();
        // A forest: the parent of each has a smaller number.
        let mut parents: BTreeMap<u64, u64> = BTreeMap::new();
        for child in 2..=TXNS {
            if rng.random_ratio(2, 3) {
                parents.insert(child, rng.random_range(1..child));
            }
        }
        let ancestors = |who: u64| {
            let mut chain = Vec::new();
            let mut at = who;
            while let Some(parent) = parents.get(&at) {
                chain.push(*parent);
                at = *parent;
            }
            chain
        };
        let mut pending: BTreeMap<u64, (LockCall, Vec<u64>)> = BTreeMap::new();
        for step in 0..60 {
            let who = rng.random_range(1..=TXNS);
            match rng.random_range(0..10) {
                0 => {
                    pending.remove(&who);
                }
                1 | 2 => {
                    pending.remove(&who);
                    engine.unlock_all(txn(who), None);
                }
                _ if !pending.contains_key(&who) => {
                    let key =
                        |rng: &mut StdRng| char::from(b'a' + rng.random_range(0..5)).to_string();
                    let (one, other) = (key(&mut rng), key(&mut rng));
                    let item = if rng.random_ratio(1, 4) {
                        range((&one).min(&other), (&one).max(&other))
                    } else {
                        row(&one)
                    };
                    let mode = if rng.random() { LockMode::Shared } else { LockMode::Exclusive };
                    let call = lock_as(&engine, who, &ancestors(who), item, mode);
                    pending.insert(who, (call, ancestors(who)));
                }
                _ => {}
            }
            pending.retain(|_, (call, _)| poll(call).is_pending());
            let graph = graph(&engine, &pending);
            assert!(!has_cycle(&graph), "seed {seed}, step {step}: {graph:?}");
        }
        pending.clear();
        for who in 1..=TXNS {
            engine.unlock_all(txn(who), None);
        }
        assert!(engine.locks(None).is_empty() && engine.waits(None).is_empty(), "seed {seed}");
    }
}
