//! A commit that is held up at one place holds up no other (the outage that this project began
//! with; `tests/outage.rs` has the same for the whole allocator).

use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::pins::Pins;
use crate::allocator::state::tokens::TokenSource;
use crate::allocator::state::{AllocatorState, BindEntry, Service, TableEntry};
use crate::allocator::{BeginCommit, CommitWindow, PresentedBind};
use crate::clock::Time;
use crate::error::ErrorKind;
use crate::id::{
    BindVersion, CommitAttempt, Epoch, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId,
    WriteNumber,
};
use crate::store::{ServiceRecord, ServiceState};

/// The longest that a commit may take if nothing holds it up: only to fail rather than hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `commit` in a thread of its own; panics if it does not come back.
fn comes_back<T: Send>(
    commit: impl FnOnce() -> T + Send,
    meanwhile: &str,
    release: impl FnOnce(),
) -> T {
    let (done, response) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(done.send(commit())));
        let response = response.recv_timeout(PATIENCE);
        // Else the scope would wait for ever for what is held up.
        release();
        response.unwrap_or_else(|_| panic!("a commit is held up by {meanwhile}"))
    })
}

/// A commit that presents binds of a group that was never bound.
fn unseen(origin: ServiceId, n: u64) -> BeginCommit {
    BeginCommit {
        txn: TxnId::new(origin, n, true),
        binds: (0..4)
            .map(|i| PresentedBind {
                table: TableRef::new(format!("never-seen-{n}"), format!("t{i}")).expect("names"),
                partition: 0,
                owner: origin,
                version: BindVersion::new(n),
            })
            .collect(),
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
    }
}

const NOW: Time = Time::from_origin(Duration::from_secs(100));

/// The state of an allocator with two incarnations, of which the first owns table `t` of group `g`;
/// and the pins of its bind.
fn state() -> (AllocatorState, Arc<Pins>, impl Fn(u64) -> BeginCommit) {
    let (owner, origin) = (ServiceId::new(1 << 32 | 1), ServiceId::new(1 << 32 | 2));
    let (applied, tokens) = (WriteNumber::default(), TokenSource::Epoch { from: 0 });
    let state = AllocatorState::new(Epoch::new(1), 0, applied, tokens, 10);
    let service = |id| {
        let record = ServiceRecord {
            id,
            node: NodeName::new("n").expect("a name"),
            nonce: Nonce::new(1),
            address: String::new(),
            state: ServiceState::Live,
        };
        let service =
            Arc::new(Service::new(record, Duration::from_secs(5), NOW, LeaseState::Live, 1_000));
        state.services.insert(id, Arc::clone(&service));
        service
    };
    service(origin);
    let pins = Arc::new(Pins::default());
    let bind =
        BindEntry { owner: service(owner), version: BindVersion::new(9), pins: Arc::clone(&pins) };
    let table = TableRef::new("g", "t").expect("names");
    let entry = TableEntry {
        id: TableId::new(5),
        tokens_reserved_to: 0,
        binds: [bind].into_iter().collect(),
        pending: None,
        leaving: false,
    };
    state.tables.upsert(table.clone(), || entry, |_| ());
    let presented = PresentedBind { table, partition: 0, owner, version: BindVersion::new(9) };
    (state, pins, move |n| BeginCommit { binds: vec![presented.clone()], ..unseen(origin, n) })
}

#[test]
fn a_commit_needs_none_of_the_shards_it_looks_into_for_itself() {
    let (state, _, request) = state();
    let unseen = BeginCommit { binds: unseen(request(1).txn.origin, 1).binds, ..request(1) };
    // As another validation does while it compares binds: each of these shards is being read. One
    // that wanted a shard for itself would wait here until the reader has left.
    for (n, (commit, refused)) in (1..).zip([(request(1), false), (unseen, true)]) {
        let table = commit.binds[0].table.clone();
        let (left, leave) = mpsc::channel::<()>();
        let (inside, entered) = mpsc::channel();
        std::thread::scope(|scope| {
            let (state, origin) = (&state, commit.txn.origin);
            scope.spawn(move || {
                state.tables.read(&table, |_| {
                    state.services.read(&origin, |_| {
                        inside.send(()).expect("the test waits");
                        leave.recv().expect("the test releases");
                    })
                })
            });
            entered.recv().expect("the reader is inside");
            let response = comes_back(
                || state.begin_commit(&commit, NOW),
                "a reader of the same shards",
                || left.send(()).expect("the reader waits"),
            );
            assert_eq!(response.is_err(), refused, "commit {n}: {response:?}");
        });
    }
}

#[test]
fn a_commit_held_behind_its_pins_holds_up_no_other_of_the_same_table() {
    let (state, pins, request) = state();
    let (held, other) = (request(1), request(2));
    let (left, leave) = mpsc::channel::<()>();
    let (inside, entered) = mpsc::channel();
    std::thread::scope(|scope| {
        let state = &state;
        let origin = state.service(held.txn.origin).expect("registered");
        let txn = held.txn;
        // Another thread is busy with the first transaction, so that its admission waits after it
        // has pinned its bind.
        scope.spawn(move || {
            origin.commits.tombstone(txn, NOW, |_| {
                inside.send(()).expect("the test waits");
                leave.recv().expect("the test releases");
            })
        });
        entered.recv().expect("it is busy");
        let first = scope.spawn(move || state.begin_commit(&held, NOW));
        while !pins.held(NOW) {
            std::thread::yield_now();
        }
        let response = comes_back(
            || state.begin_commit(&other, NOW),
            "another that is being admitted",
            || left.send(()).expect("it is busy"),
        );
        response.expect("current");
        let first =
            first.join().expect("no panic").expect_err("it was made unable to commit meanwhile");
        assert_eq!(first.kind(), ErrorKind::CannotCommit);
    });
}
