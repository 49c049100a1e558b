//! Every interleaving of small models of commit admission (C2 to C4).

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use crate::allocator::state::commits::{CommitControl, Tombstoned};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::pins::{PinSet, Pins};
use crate::allocator::state::tokens::TokenSource;
use crate::allocator::state::{AllocatorState, BindEntry, Service, TableEntry};
use crate::allocator::{BeginCommit, CommitWindow, PresentedBind};
use crate::clock::Time;
use crate::id::{
    BindVersion, CommitAttempt, Epoch, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId,
    WriteNumber,
};
use crate::store::{ServiceRecord, ServiceState};

const TTL: Duration = Duration::from_secs(5);
const ORIGIN: ServiceId = ServiceId::new(1 << 32 | 1);
const OWNER: ServiceId = ServiceId::new(1 << 32 | 2);
const NOW: Time = Time::from_origin(Duration::from_secs(100));
const WINDOW: Duration = Duration::from_secs(3);

fn txn() -> TxnId {
    TxnId::new(ORIGIN, 1, true)
}

fn attempt(n: u64) -> CommitAttempt {
    CommitAttempt::new(n)
}

fn service(state: &AllocatorState, id: ServiceId) -> std::sync::Arc<Service> {
    let record = ServiceRecord {
        id,
        node: NodeName::new("n").expect("a name"),
        nonce: Nonce::new(1),
        address: String::new(),
        state: ServiceState::Live,
    };
    let service = std::sync::Arc::new(Service::new(record, TTL, NOW, LeaseState::Live, 10));
    state.services.insert(id, std::sync::Arc::clone(&service));
    service
}

/// An origin, and another incarnation that owns one table.
fn state() -> (Arc<AllocatorState>, std::sync::Arc<Service>, std::sync::Arc<Pins>, BeginCommit) {
    let (applied, tokens) = (WriteNumber::default(), TokenSource::Epoch { from: 0 });
    let state = AllocatorState::new(Epoch::new(1), 0, applied, tokens, 10);
    service(&state, ORIGIN);
    let service = service(&state, OWNER);
    let table = TableRef::new("g", "t").expect("names");
    let pins = std::sync::Arc::new(Pins::default());
    let bind = BindEntry {
        owner: std::sync::Arc::clone(&service),
        version: BindVersion::new(9),
        pins: std::sync::Arc::clone(&pins),
    };
    let entry = TableEntry {
        id: TableId::new(5),
        tokens_reserved_to: 0,
        binds: [bind].into_iter().collect(),
        pending: None,
        leaving: false,
    };
    state.tables.upsert(table.clone(), || entry, |_| ());
    let request = BeginCommit {
        txn: txn(),
        binds: vec![PresentedBind {
            table,
            partition: 0,
            owner: OWNER,
            version: BindVersion::new(9),
        }],
        attempt: attempt(1),
        window: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
    };
    (Arc::new(state), service, pins, request)
}

#[test]
fn once_an_origin_is_fenced_none_of_its_commits_is_admitted() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        let fencing = Arc::clone(&control);
        let fence = thread::spawn(move || {
            fencing.fence();
            // What is in flight now is all there will ever be.
            fencing.in_flight_until(NOW)
        });
        let admitted = control.admit(txn(), attempt(1), PinSet::new(), WINDOW, NOW).is_ok();
        let in_flight = fence.join().expect("no panic");
        assert_eq!(in_flight.is_some(), admitted, "a commit was admitted behind the fence");
        assert!(control.admit(txn(), attempt(2), PinSet::new(), WINDOW, NOW).is_err());
    });
}

#[test]
fn a_transaction_is_tombstoned_or_committing_and_never_both() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        let other = Arc::clone(&control);
        let cannot = thread::spawn(move || {
            other.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit")
        });
        let admitted = control.admit(txn(), attempt(1), PinSet::new(), WINDOW, NOW).is_ok();
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
        let control = Arc::new(CommitControl::new(10));
        let other = Arc::clone(&control);
        let first = thread::spawn(move || {
            // Refused once a caller was told that the transaction is committing (C4).
            drop(other.admit(txn(), attempt(1), PinSet::new(), WINDOW, NOW));
            other.finish(txn(), attempt(1));
        });
        control.admit(txn(), attempt(2), PinSet::new(), WINDOW, NOW).expect("free");
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
        let control = Arc::new(CommitControl::new(10));
        control.admit(txn(), attempt(1), PinSet::new(), WINDOW, NOW).expect("free");
        let other = Arc::clone(&control);
        let asker = thread::spawn(move || {
            other.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit")
        });
        let second = control.admit(txn(), attempt(2), PinSet::new(), WINDOW, NOW).is_ok();
        control.finish(txn(), attempt(1));
        control.finish(txn(), attempt(2));
        let life = asker.join().expect("no panic");
        match life {
            // Asked after all of it: never in flight again.
            Tombstoned::ToWrite(_) => {}
            // Asked while one was in flight; a later attempt can only have been admitted before
            // that.
            Tombstoned::Committing => {}
            other => panic!("neither: {other:?}"),
        }
        let late = control.admit(txn(), attempt(3), PinSet::new(), WINDOW, NOW);
        assert!(late.is_err(), "admitted after {life:?} was answered, second admitted: {second}");
        let again = control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit");
        assert!(matches!(again, Tombstoned::ToWrite(_)), "its last attempt has ended: {again:?}");
    });
}

#[test]
fn once_the_floor_was_raised_nothing_below_it_is_admitted() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        let raising = Arc::clone(&control);
        let origin = thread::spawn(move || {
            raising.raise_floor(txn().number() + 1);
            raising.in_flight_until(NOW).is_some()
        });
        let admitted = control.admit(txn(), attempt(1), PinSet::new(), WINDOW, NOW).is_ok();
        let in_flight = origin.join().expect("no panic");
        assert_eq!(in_flight, admitted, "a commit was admitted behind the floor");
        assert!(control.admit(txn(), attempt(2), PinSet::new(), WINDOW, NOW).is_err());
    });
}

#[test]
fn a_tombstone_below_the_floor_goes_only_once_the_floor_says_the_same() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        let other = Arc::clone(&control);
        let cleaner = thread::spawn(move || {
            other.raise_floor(txn().number() + 1);
            let (floor, tombstones) = other.below_floor();
            other.floor_stored(floor);
            for (_, generation) in tombstones {
                other.remove(txn(), generation);
            }
            other.cleaned(floor);
        });
        // Asked again meanwhile: by a mark or by the floor, it stays refused.
        let outcome = control.tombstone(txn(), NOW, |outcome| outcome).expect("far from the limit");
        assert!(matches!(outcome, Tombstoned::ToWrite(_) | Tombstoned::Over), "{outcome:?}");
        assert!(control.admit(txn(), attempt(1), PinSet::new(), WINDOW, NOW).is_err());
        cleaner.join().expect("no panic");
        assert!(control.admit(txn(), attempt(1), PinSet::new(), WINDOW, NOW).is_err());
    });
}

#[test]
fn the_cleaner_removes_only_the_tombstone_that_it_saw() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        control.raise_floor(txn().number() + 1);
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
        let (state, service, pins, request) = state();
        let admitting = Arc::clone(&state);
        let commit = thread::spawn(move || admitting.begin_commit(&request, NOW).is_ok());
        // A resignation (C2): the owner stops being live, then its binds are visited shard by
        // shard.
        assert!(service.lease.begin_resign(TTL, || NOW));
        let mut pins = Vec::new();
        for shard in 0..state.tables.shards() {
            state.pins_in(shard, OWNER, &mut pins);
        }
        assert_eq!(pins.len(), 1);
        let held = pins[0].held(NOW);
        let admitted = commit.join().expect("no panic");
        assert!(
            held || !admitted,
            "a commit was admitted on a bind that is not waited for any more"
        );
        if !admitted {
            assert!(!pins[0].held(NOW), "a refused commit left its pin");
        }
    });
}
