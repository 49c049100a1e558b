//! Every interleaving of small models of commit admission (spec J2, J6, J8; C2 to C4).
#![cfg(loom)]

use std::time::Duration;

use lockservice_core::allocator::commit::{CommitControl, Marked, PinSet, Pins};
use lockservice_core::allocator::lease::LeaseState;
use lockservice_core::allocator::state::{AllocatorState, BindEntry, Service, TableEntry};
use lockservice_core::allocator::tokens::TokenSource;
use lockservice_core::allocator::{BeginCommit, CommitWindow, PresentedBind};
use lockservice_core::clock::Time;
use lockservice_core::store::{ServiceRecord, ServiceState};
use lockservice_core::{BindVersion, CommitAttempt, Epoch, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId};
use loom::sync::Arc;
use loom::thread;

const TTL: Duration = Duration::from_secs(5);
const ORIGIN: ServiceId = ServiceId::new(1 << 32 | 1);
const OWNER: ServiceId = ServiceId::new(1 << 32 | 2);
const NOW: Time = Time::from_origin(Duration::from_secs(100));
const LATER: Time = Time::from_origin(Duration::from_secs(103));

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
    state.services.upsert(id, || std::sync::Arc::clone(&service), |_| ());
    service
}

/// An origin, and another incarnation that owns one table.
fn state() -> (Arc<AllocatorState>, std::sync::Arc<Service>, std::sync::Arc<Pins>, BeginCommit) {
    let state = AllocatorState::new(Epoch::new(1), 0, 0, TokenSource::Epoch { from: 0 }, 10);
    service(&state, ORIGIN);
    let service = service(&state, OWNER);
    let table = TableRef::new("g", "t").expect("names");
    let pins = std::sync::Arc::new(Pins::default());
    let bind = BindEntry {
        owner: std::sync::Arc::clone(&service),
        version: BindVersion::new(9),
        pins: std::sync::Arc::clone(&pins),
    };
    let entry =
        TableEntry { id: TableId::new(5), tokens_reserved_to: 0, binds: [bind].into_iter().collect(), pending: None };
    state.tables.upsert(table.clone(), || entry, |_| ());
    let request = BeginCommit {
        txn: txn(),
        binds: vec![PresentedBind { table, partition: 0, owner: OWNER, version: BindVersion::new(9) }],
        attempt: attempt(1),
        asked: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
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
            // What is in flight now is all there will ever be (J6).
            fencing.in_flight_until(NOW)
        });
        let admitted = control.admit(txn(), attempt(1), PinSet::new(), LATER, NOW).is_ok();
        let in_flight = fence.join().expect("no panic");
        assert_eq!(in_flight.is_some(), admitted, "a commit was admitted behind the fence");
        assert!(control.admit(txn(), attempt(2), PinSet::new(), LATER, NOW).is_err());
    });
}

#[test]
fn a_transaction_is_tombstoned_or_committing_and_never_both() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        let other = Arc::clone(&control);
        let cannot = thread::spawn(move || other.tombstone(txn(), NOW, |marked| marked).expect("far from the limit"));
        let admitted = control.admit(txn(), attempt(1), PinSet::new(), LATER, NOW).is_ok();
        match cannot.join().expect("no panic") {
            Marked::Committing => assert!(admitted),
            Marked::ToWrite(_) => assert!(!admitted, "a tombstoned transaction commits (C4)"),
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
            other.admit(txn(), attempt(1), PinSet::new(), LATER, NOW).expect("free");
            other.finish(txn(), attempt(1));
        });
        control.admit(txn(), attempt(2), PinSet::new(), LATER, NOW).expect("free");
        let marked = control.tombstone(txn(), NOW, |marked| marked).expect("far from the limit");
        assert_eq!(marked, Marked::Committing, "the second attempt is in flight (J8)");
        first.join().expect("no panic");
        assert_eq!(control.tombstone(txn(), NOW, |marked| marked).expect("far from the limit"), Marked::Committing);
        control.finish(txn(), attempt(2));
        assert!(control.is_empty());
    });
}

#[test]
fn a_tombstone_made_after_the_cleaner_looked_survives_it() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        let other = Arc::clone(&control);
        let cleaner = thread::spawn(move || {
            // Looks, writes the removal, takes the mark off.
            let seen = other.ended(txn(), |generation| generation);
            if let Some(seen) = seen {
                other.remove(txn(), seen);
            }
        });
        let marked = control.tombstone(txn(), NOW, |marked| marked).expect("far from the limit");
        assert!(matches!(marked, Marked::ToWrite(_)), "its removal may be under way: it must be written: {marked:?}");
        // Before the cleaner's look it went with it, else it stays (J2, J3): a mark that stays is never one the cleaner saw.
        cleaner.join().expect("no panic");
        let again = control.tombstone(txn(), NOW, |marked| marked).expect("far from the limit");
        assert!(matches!(again, Marked::ToWrite(_)));
        assert!(control.admit(txn(), attempt(1), PinSet::new(), LATER, NOW).is_err());
    });
}

#[test]
fn the_cleaner_takes_off_only_the_mark_that_it_saw() {
    loom::model(|| {
        let control = Arc::new(CommitControl::new(10));
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        let seen = control.ended(txn(), |generation| generation).expect("marked");
        let other = Arc::clone(&control);
        let cleaner = thread::spawn(move || other.remove(txn(), seen));
        control.tombstone(txn(), NOW, |_| ()).expect("far from the limit");
        cleaner.join().expect("no panic");
        let refused = control.admit(txn(), attempt(1), PinSet::new(), LATER, NOW);
        assert!(refused.is_err(), "the cleaner removed a tombstone that is newer than its look (J2)");
    });
}

#[test]
fn whoever_waits_for_pins_sees_every_commit_that_was_admitted() {
    loom::model(|| {
        let (state, service, pins, request) = state();
        let admitting = Arc::clone(&state);
        let commit = thread::spawn(move || admitting.begin_commit(&request, NOW).is_ok());
        // A resignation (C2): the owner stops being live, then its binds are visited shard by shard.
        assert!(service.lease.begin_resign(TTL, || NOW));
        assert_eq!(state.pins_of(OWNER).len(), 1);
        let held = pins.held(NOW);
        let admitted = commit.join().expect("no panic");
        assert!(held || !admitted, "a commit was admitted on a bind that nobody waits for any more");
        if !admitted {
            assert!(!pins.held(NOW), "a refused commit left its pin");
        }
    });
}
