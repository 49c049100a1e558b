//! Every interleaving of small models of commit admission (C2 to C4).

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use crate::allocator::state::commits::{CommitControl, Tombstoned, Window};
use crate::allocator::state::fixture::{
    Fixture, NOW, ORIGIN, OWNER, TTL, add_table, held, name, remove_table, request,
};
use crate::allocator::state::slots::{BindSlots, PinSet};
use crate::id::{CommitAttempt, TxnId, TxnNumber};

fn txn() -> TxnId {
    TxnId::new(ORIGIN, TxnNumber::new(1), true)
}

fn attempt(n: u64) -> CommitAttempt {
    CommitAttempt::new(n)
}

fn control() -> Arc<CommitControl> {
    Arc::new(CommitControl::new(10, &std::sync::Arc::new(BindSlots::new())))
}

/// Admits an attempt without binds; true if it is.
fn admit(control: &CommitControl, n: u64) -> bool {
    let window = Window::new(NOW, NOW + Duration::from_secs(3));
    control.admit(txn(), attempt(n), PinSet::new(&BindSlots::new()), window, NOW).is_ok()
}

#[test]
fn once_an_origin_is_fenced_none_of_its_commits_is_admitted() {
    loom::model(|| {
        let control = control();
        let fencing = Arc::clone(&control);
        let fence = thread::spawn(move || {
            fencing.fence();
            // The attempts in flight now are the last ones.
            fencing.in_flight_until(NOW)
        });
        let admitted = admit(&control, 1);
        let in_flight = fence.join().expect("no panic");
        assert_eq!(in_flight.is_some(), admitted, "a commit was admitted behind the fence");
        assert!(!admit(&control, 2));
    });
}

#[test]
fn a_transaction_is_tombstoned_or_committing_and_never_both() {
    loom::model(|| {
        let control = control();
        let other = Arc::clone(&control);
        let cannot = thread::spawn(move || {
            other.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit")
        });
        let admitted = admit(&control, 1);
        match cannot.join().expect("no panic") {
            Tombstoned::Committing => assert!(admitted),
            Tombstoned::ToWrite(_) => assert!(!admitted, "a tombstoned transaction commits"),
            other => panic!("neither: {other:?}"),
        }
    });
}

#[test]
fn finishing_one_attempt_leaves_the_other_in_flight() {
    loom::model(|| {
        let control = control();
        let other = Arc::clone(&control);
        let first = thread::spawn(move || {
            // It is refused once a caller got the response *committing* (C4).
            admit(&other, 1);
            other.finish(txn(), attempt(1));
        });
        assert!(admit(&control, 2));
        let outcome = control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit");
        assert_eq!(outcome, Tombstoned::Committing, "the second attempt is in flight");
        first.join().expect("no panic");
        assert_eq!(
            control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit"),
            Tombstoned::Committing
        );
        control.finish(txn(), attempt(2));
        let ended = control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit");
        assert!(matches!(ended, Tombstoned::ToWrite(_)), "{ended:?}");
    });
}

#[test]
fn once_committing_was_returned_nothing_more_is_admitted_and_the_end_is_a_tombstone() {
    loom::model(|| {
        let control = control();
        assert!(admit(&control, 1));
        let other = Arc::clone(&control);
        let closer = thread::spawn(move || {
            other.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit")
        });
        let second = admit(&control, 2);
        control.finish(txn(), attempt(1));
        control.finish(txn(), attempt(2));
        let life = closer.join().expect("no panic");
        match life {
            // Called after all of it: never in flight again.
            Tombstoned::ToWrite(_) => {}
            // Called while one was in flight; a later attempt can only have been admitted before
            // that.
            Tombstoned::Committing => {}
            other => panic!("neither: {other:?}"),
        }
        let late = admit(&control, 3);
        assert!(!late, "admitted after {life:?} was returned, second admitted: {second}");
        let again = control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit");
        assert!(matches!(again, Tombstoned::ToWrite(_)), "its last attempt has ended: {again:?}");
    });
}

#[test]
fn once_the_floor_was_raised_nothing_below_it_is_admitted() {
    loom::model(|| {
        let control = control();
        let raising = Arc::clone(&control);
        let origin = thread::spawn(move || {
            raising.raise_floor(txn().number().next());
            raising.in_flight_until(NOW).is_some()
        });
        let admitted = admit(&control, 1);
        let in_flight = origin.join().expect("no panic");
        assert_eq!(in_flight, admitted, "a commit was admitted behind the floor");
        assert!(!admit(&control, 2));
    });
}

#[test]
fn a_tombstone_below_the_floor_goes_only_once_the_floor_says_the_same() {
    loom::model(|| {
        let control = control();
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        let other = Arc::clone(&control);
        let cleaner = thread::spawn(move || {
            other.raise_floor(txn().number().next());
            let (floor, tombstones) = other.below_floor();
            other.floor_stored(floor);
            for (_, generation) in tombstones {
                other.remove(txn(), generation);
            }
            other.cleaned(floor);
        });
        // Called again meanwhile: by a mark or by the floor, it stays refused.
        let outcome = control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit");
        assert!(matches!(outcome, Tombstoned::ToWrite(_) | Tombstoned::Over), "{outcome:?}");
        assert!(!admit(&control, 1));
        cleaner.join().expect("no panic");
        assert!(!admit(&control, 1));
    });
}

#[test]
fn the_cleaner_removes_only_the_tombstone_that_it_saw() {
    loom::model(|| {
        let control = control();
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        control.raise_floor(txn().number().next());
        let (_, tombstones) = control.below_floor();
        let seen = tombstones[0].1;
        let other = Arc::clone(&control);
        let cleaner = thread::spawn(move || other.remove(txn(), seen));
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        cleaner.join().expect("no panic");
        assert!(control.len() <= 1);
        let again = control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit");
        // Had the cleaner removed a mark that is newer than its look, its write would stay behind
        // in the store.
        assert!(matches!(again, Tombstoned::ToWrite(_)), "{again:?}");
    });
}

#[test]
fn a_wait_for_pins_sees_every_commit_that_was_admitted() {
    loom::model(|| {
        let Fixture { state, owner, bind } = Fixture::new();
        let state = Arc::new(state);
        let admitting = Arc::clone(&state);
        let commit =
            thread::spawn(move || admitting.begin_commit(&request(1, vec![bind]), NOW).is_ok());
        // A resignation (C2): the owner stops being live, then its binds are looked at.
        assert!(owner.lease.begin_resign(TTL.into(), || NOW));
        let mut binds = Vec::new();
        for shard in 0..state.tables.shards() {
            state.binds_in(shard, OWNER, &mut binds);
        }
        assert_eq!(binds.len(), 1);
        let waited_for = held(&state, &bind, NOW);
        let admitted = commit.join().expect("no panic");
        assert!(
            waited_for || !admitted,
            "a commit was admitted on a bind that is not waited for any more"
        );
        assert_eq!(held(&state, &bind, NOW), admitted, "a refused commit left its pin");
    });
}

#[test]
fn a_table_is_forgotten_or_a_commit_is_in_flight_on_it_and_never_both() {
    loom::model(|| {
        let Fixture { state, bind, .. } = Fixture::new();
        let state = Arc::new(state);
        let admitting = Arc::clone(&state);
        let commit =
            thread::spawn(move || admitting.begin_commit(&request(1, vec![bind]), NOW).is_ok());
        let close = |entry: Option<&_>| {
            let entry: &crate::allocator::state::TableEntry = entry.expect("bound");
            entry.close_unless_held(NOW)
        };
        let closed = state.tables.read(&name(5), close);
        let admitted = commit.join().expect("no panic");
        assert_ne!(closed, admitted);
        assert_eq!(held(&state, &bind, NOW), admitted);
    });
}

#[test]
fn a_resignation_is_safe_from_a_forgetting_that_fails() {
    loom::model(|| {
        let Fixture { state, owner, bind } = Fixture::new();
        let state = Arc::new(state);
        let (admitting, forgetting) = (Arc::clone(&state), Arc::clone(&state));
        let commit =
            thread::spawn(move || admitting.begin_commit(&request(1, vec![bind]), NOW).is_ok());
        // The table was about to be forgotten, and stays: its bind is open again.
        let forget = thread::spawn(move || {
            forgetting.tables.read(&name(5), |entry| {
                let entry = entry.expect("bound");
                if entry.close_unless_held(NOW) {
                    entry.reopen();
                }
            });
        });
        assert!(owner.lease.begin_resign(TTL.into(), || NOW));
        let waited_for = held(&state, &bind, NOW);
        forget.join().expect("no panic");
        let admitted = commit.join().expect("no panic");
        assert!(waited_for || !admitted, "a commit was admitted behind the resignation");
    });
}

#[test]
fn a_commit_on_a_bind_that_has_gone_leaves_nothing_on_the_next_bind_of_its_slot() {
    loom::model(|| {
        let Fixture { state, owner, bind } = Fixture::new();
        let state = Arc::new(state);
        let admitting = Arc::clone(&state);
        let commit =
            thread::spawn(move || admitting.begin_commit(&request(1, vec![bind]), NOW).is_ok());
        remove_table(&state, 5);
        let next = add_table(&state, &owner, 7);
        let admitted = commit.join().expect("no panic");
        assert!(!held(&state, &next, NOW), "a pin on a bind that was not presented");
        if admitted {
            assert_ne!(next.slot.get(), bind.slot.get(), "the slot of a pinned bind was reused");
            state.finish_commit(txn(), attempt(1));
        }
        let again = add_table(&state, &owner, 9);
        assert!(again.slot.get() == bind.slot.get() || next.slot.get() == bind.slot.get());
    });
}

#[test]
fn the_pins_of_two_commits_are_counted_apart() {
    loom::model(|| {
        let Fixture { state, bind, .. } = Fixture::new();
        let state = Arc::new(state);
        let other = Arc::clone(&state);
        let commit = thread::spawn(move || {
            other.begin_commit(&request(1, vec![bind]), NOW).expect("current");
            other.finish_commit(txn(), attempt(1));
        });
        state.begin_commit(&request(2, vec![bind]), NOW).expect("current");
        assert!(held(&state, &bind, NOW));
        commit.join().expect("no panic");
        assert!(held(&state, &bind, NOW), "the other removed its own");
        state.finish_commit(TxnId::new(ORIGIN, TxnNumber::new(2), true), attempt(1));
        assert!(!held(&state, &bind, NOW));
    });
}
