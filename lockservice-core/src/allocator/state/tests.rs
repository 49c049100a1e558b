//! A commit that is held up at one place holds up no other (the outage that this project began
//! with; `tests/outage.rs` has the same for the whole allocator). And what becomes of slots, and of
//! an origin without room for tombstones.

use std::sync::mpsc;
use std::time::Duration;

use crate::allocator::PresentedBind;
use crate::allocator::state::commits::Tombstoned;
use crate::allocator::state::fixture::{
    BINDS_MAX, Fixture, NOW, ORIGIN, add_table, held, name, remove_table, request,
};
use crate::bind::BindSlot;
use crate::clock::hi;
use crate::error::ErrorKind;
use crate::id::{CommitAttempt, TableId};

/// The longest that a commit may take if nothing holds it up: only to fail rather than hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// More threads than a map that is read all the time has copies, so that they read all of them.
const READERS: usize = 64;

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

/// Runs `commit` while `threads` threads are inside of `hold`, which calls what it is given there.
fn beside<T: Send>(
    threads: usize,
    hold: impl Fn(&dyn Fn()) + Sync,
    commit: impl FnOnce() -> T + Send,
    meanwhile: &str,
) -> T {
    let (inside, entered) = mpsc::channel();
    std::thread::scope(|scope| {
        let hold = &hold;
        let leave: Vec<mpsc::Sender<()>> = (0..threads)
            .map(|_| {
                let ((left, leave), inside) = (mpsc::channel::<()>(), inside.clone());
                scope.spawn(move || {
                    hold(&|| {
                        inside.send(()).expect("the test waits");
                        leave.recv().expect("the test releases");
                    })
                });
                left
            })
            .collect();
        (0..threads).for_each(|_| entered.recv().expect("it gets inside"));
        let release = || leave.iter().for_each(|left| left.send(()).expect("it is inside"));
        comes_back(commit, meanwhile, release)
    })
}

#[test]
fn a_commit_needs_nothing_that_it_reads_for_itself() {
    let Fixture { state, bind, .. } = Fixture::new();
    // Found by its slot, by its table, and not at all.
    let by_table = PresentedBind { slot: BindSlot::NONE, ..bind };
    let unseen = PresentedBind { table: TableId::new(99), ..by_table };
    for (n, (bind, refused)) in (1..).zip([(bind, false), (by_table, false), (unseen, true)]) {
        // As another validation does: one that wanted any of these for itself would wait here until
        // the readers have left.
        let read = |inside: &dyn Fn()| {
            state.services.read(&ORIGIN, |_| state.ids.read(&bind.table, |_| inside()))
        };
        let commit = || state.begin_commit(&request(n, vec![bind]), NOW);
        let response = beside(READERS, read, commit, "readers of all that it reads");
        assert_eq!(response.is_err(), refused, "commit {n}: {response:?}");
    }
}

#[test]
fn a_commit_that_presents_its_slot_waits_for_no_shard() {
    let fixture = Fixture::new();
    let (state, bind) = (&fixture.state, fixture.bind);
    // As a bind that is planned, and one that lands.
    let hold = |inside: &dyn Fn()| {
        state.tables.update_existing(&name(5), |_| {
            state.ids.update_existing(&bind.table, |_| inside());
        });
    };
    let commit = || state.begin_commit(&fixture.request(1), NOW);
    beside(1, hold, commit, "a change of its table").expect("current");
}

#[test]
fn a_commit_held_behind_its_pins_holds_up_no_other_of_the_same_table() {
    let fixture = Fixture::new();
    let (state, first, other) = (&fixture.state, fixture.request(1), fixture.request(2));
    let origin = state.service(ORIGIN).expect("registered");
    let txn = first.txn;
    std::thread::scope(|scope| {
        // Another thread is busy with the first transaction, so that its admission waits after it
        // has pinned its bind.
        let hold = |inside: &dyn Fn()| {
            origin.commits.tombstone(txn, NOW, |_| inside()).expect("far from the limit");
        };
        let (joined, join) = mpsc::channel();
        let response = beside(
            1,
            hold,
            || {
                let first = scope.spawn(move || state.begin_commit(&first, NOW));
                joined.send(first).expect("the test waits");
                while !held(state, &fixture.bind, NOW) {
                    std::thread::yield_now();
                }
                state.begin_commit(&other, NOW)
            },
            "another that is being admitted",
        );
        response.expect("current");
        let first = join.recv().expect("it began").join().expect("no panic");
        let refused = first.expect_err("it was made unable to commit meanwhile");
        assert_eq!(refused.kind(), ErrorKind::CannotCommit);
    });
}

#[test]
fn a_slot_is_used_again_once_it_has_no_pin_and_not_before() {
    let Fixture { state, owner, bind } = Fixture::new();
    state.begin_commit(&request(1, vec![bind]), NOW).expect("current");
    // Its window is over, but no sweep came by: its pin was not removed yet.
    let later = NOW + Duration::from_secs(2);
    assert!(held(&state, &bind, NOW) && !held(&state, &bind, later));
    remove_table(&state, 5);
    let other = add_table(&state, &owner, 7);
    state.begin_commit(&request(2, vec![other]), NOW).expect("current");
    state.finish_commit(request(1, vec![]).txn, CommitAttempt::new(1));
    assert!(held(&state, &other, NOW), "the late end removed the pin of another bind");
    state.finish_commit(request(2, vec![]).txn, CommitAttempt::new(1));
    assert!(!held(&state, &other, NOW));
    let third = add_table(&state, &owner, 9);
    assert_eq!(third.slot.get(), bind.slot.get(), "it is free now");
    // The bind that was there before is presented again.
    let stale = state.begin_commit(&request(3, vec![bind]), NOW).expect_err("forgotten");
    assert_eq!(stale.kind(), ErrorKind::BindChanged);
    assert!(!held(&state, &third, NOW), "a stale bind left its pin on another");
}

#[test]
fn a_table_with_a_commit_in_flight_on_one_partition_stays_open_in_all() {
    let Fixture { state, owner, bind } = Fixture::new();
    let second = add_table(&state, &owner, 7);
    let moved = state.tables.remove_if(&name(7), |_| true).expect("bound");
    state.tables.update_existing(&name(5), |entry| entry.binds.extend(moved.binds));
    state.begin_commit(&request(1, vec![second]), NOW).expect("current");
    let close =
        || state.tables.read(&name(5), |entry| entry.expect("bound").close_unless_held(NOW));
    assert!(!close(), "one of the two is held");
    state.begin_commit(&request(2, vec![bind, second]), NOW).expect("both are open");
    for n in [1, 2] {
        state.finish_commit(request(n, vec![]).txn, CommitAttempt::new(1));
    }
    assert!(close());
    for bind in [bind, second] {
        let refused = state.begin_commit(&request(3, vec![bind]), NOW).expect_err("closed");
        assert_eq!(refused.kind(), ErrorKind::BindChanged);
    }
    state.tables.read(&name(5), |entry| entry.expect("bound").reopen());
    state.begin_commit(&request(4, vec![bind, second]), NOW).expect("it stays");
}

#[test]
fn a_pin_counts_until_the_latest_end_of_the_window_by_any_clock() {
    let Fixture { state, bind, .. } = Fixture::new();
    let admission = state.begin_commit(&request(1, vec![bind]), NOW).expect("current");
    let window = admission.commit_before;
    assert!(hi(window) > window + Duration::from_millis(2), "the two ends differ by some ticks");
    let end = NOW + hi(window);
    assert!(held(&state, &bind, NOW + window), "the caller's clock may be slow");
    assert!(held(&state, &bind, NOW + (hi(window) - Duration::from_millis(1))));
    assert!(!held(&state, &bind, end + Duration::from_millis(2)), "a tick later it is over");
}

#[test]
fn a_commit_presents_as_many_binds_as_are_allowed_and_no_more() {
    let Fixture { state, bind, .. } = Fixture::new();
    state.begin_commit(&request(1, vec![bind; BINDS_MAX]), NOW).expect("as many as are allowed");
    let refused = state
        .begin_commit(&request(2, vec![bind; BINDS_MAX + 1]), NOW)
        .expect_err("one more than is allowed");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    state.finish_commit(request(1, vec![]).txn, CommitAttempt::new(1));
    assert!(!held(&state, &bind, NOW), "each pin is removed, and the refused one left none");
}

#[test]
fn a_repeat_of_an_attempt_with_fewer_binds_keeps_the_pins_of_the_earlier_one() {
    let Fixture { state, owner, bind } = Fixture::new();
    let other = add_table(&state, &owner, 7);
    let begin = |binds| state.begin_commit(&request(1, binds), NOW).expect("current");
    begin(vec![bind, other]);
    // The first response may be the one that the caller uses.
    begin(vec![bind]);
    assert!(held(&state, &other, NOW), "a release of its bind waits for the window");
    begin(vec![]);
    begin(vec![other, other]);
    assert!(held(&state, &bind, NOW) && held(&state, &other, NOW));
    state.finish_commit(request(1, vec![]).txn, CommitAttempt::new(1));
    assert!(!held(&state, &bind, NOW) && !held(&state, &other, NOW), "its end removes all of them");
}

#[test]
fn a_refused_commit_leaves_no_pin() {
    let Fixture { state, owner, bind } = Fixture::new();
    let other = add_table(&state, &owner, 7);
    let stale = PresentedBind { version: bind.version, ..other };
    state.begin_commit(&request(1, vec![bind, stale]), NOW).expect_err("the second is stale");
    remove_table(&state, 7);
    state.begin_commit(&request(2, vec![bind, other]), NOW).expect_err("the second has gone");
    state.service(ORIGIN).expect("registered").commits.fence();
    state.begin_commit(&request(3, vec![bind]), NOW).expect_err("fenced");
    assert!(!held(&state, &bind, NOW));
}

/// The model in `tests/protocol_model/commits.rs` found it.
#[test]
fn a_commit_that_finds_room_before_its_origin_is_fenced_for_want_of_room_is_in_flight() {
    let fixture = Fixture::new();
    let origin = fixture.state.service(ORIGIN).expect("it is registered");
    // All are in one stripe.
    let commit = |n: u64| request(n * 64, Vec::new());
    let begin = |n| fixture.state.begin_commit(&commit(n), NOW).map(drop);
    let tombstone =
        |n| origin.commits.tombstone(commit(n).txn, NOW, |outcome| outcome).expect("a decision");
    for n in 1..=32 {
        begin(n).expect("room");
    }
    for n in 33..=64 {
        assert!(matches!(tombstone(n), Tombstoned::ToWrite(_)));
    }
    assert_eq!(tombstone(65), Tombstoned::Full);
    // Meanwhile:
    fixture.state.finish_commit(commit(1).txn, commit(1).attempt);
    begin(65).expect("room");
    let outcome = origin.fence_for(commit(65).txn, NOW).expect("a decision");
    assert_eq!(outcome, Tombstoned::Committing);
    begin(65).expect_err("it is fenced");
    fixture.state.finish_commit(commit(65).txn, commit(65).attempt);
    assert_eq!(tombstone(65), Tombstoned::Fenced);
}
