//! Commits: a transaction whose lock may be given away, and which may be denied its commit (C1 to
//! C4).
//!
//! # The world
//! One transaction, of one origin, with a lock in a table of another node, the owner. Its commit is
//! tried twice, side by side. A party that is told that the transaction never commits (its origin,
//! or the data) relies on that.
//!
//! - The party that commits sends `begin_commit` at any moment, and again while it is admitted; a
//!   late message of it arrives when all is done. The leader decides it in three sections, with
//!   anything in between.
//! - The lock is given to another once one of these has come to its end: the table was released, or
//!   its owner resigned; the origin resigned; one of both lost its lease; the transaction was
//!   denied its commit, and its origin released the lock.
//! - `cannot_commit` is asked at any moment. The write of its tombstone lands, or its outcome is
//!   unknown for a while.
//! - Leaders follow each other at any moment. What is not in the store is lost then.
//!
//! # Time
//! There is none. What [`leases`](crate::leases) shows is taken for granted: a promise is over for
//! its receiver before it is for those who wait for it. So a *window* for a commit closes at any
//! moment; it has closed when the leader counts the commit no more; and by C1 it has closed when a
//! lease that it rests on is over, or the leadership.
//!
//! # Left out
//! A second bind, or a second transaction: each is pinned, and registered, by itself. The floor of
//! an origin, which says the same as a tombstone for each transaction below it. The start with an
//! exclusive store, which waits instead of C1 (L1).

mod world;

use stateright::{Model, Property};

use self::world::{Attempt, Leader, Stage, Step, Store, Tombstone, World, Write};
use crate::check::{holds, violates};

const AFTER_GIVEN: &str = "no commit lands after its lock was given to another";
const AFTER_DENIED: &str = "no commit lands after its transaction was said never to commit";

/// The rules, each of which can be taken out.
#[derive(Clone, Copy)]
struct Rules {
    /// A window ends with the leases and the leadership that it rests on.
    c1: bool,
    /// A release, and a resignation of the owner, wait for pins.
    c2_pins: bool,
    /// A resignation of the origin waits for the commits of its transactions.
    c2_own: bool,
    /// A bind that is closed or invalid is refused.
    c3_bind: bool,
    /// The bind is pinned, then compared. Else the other way round.
    c3_pin_first: bool,
    /// A transaction with a tombstone is refused.
    c3_tombstone: bool,
    /// A fenced origin is refused.
    c3_fence: bool,
    /// Tombstone and fence are looked at in the section that registers. Else in the one before.
    c3_stripe: bool,
    /// The tombstone is set in memory before it is written. Else when the write has landed.
    c4_memory_first: bool,
    /// The response comes after the write. Else before.
    c4_write_first: bool,
    /// A transaction in flight is left alone.
    c4_committing: bool,
    /// A write of unknown outcome keeps the tombstone in memory. Else it is as if it had failed.
    c4_unknown: bool,
    /// An origin without room for a tombstone is fenced, and then its transaction looked at again.
    c4_full: bool,
    /// A tombstone stays although its origin says that the transaction is over.
    c4_stays: bool,
}

const ALL: Rules = Rules {
    c1: true,
    c2_pins: true,
    c2_own: true,
    c3_bind: true,
    c3_pin_first: true,
    c3_tombstone: true,
    c3_fence: true,
    c3_stripe: true,
    c4_memory_first: true,
    c4_write_first: true,
    c4_committing: true,
    c4_unknown: true,
    c4_full: true,
    c4_stays: true,
};

impl Model for Rules {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let attempt = Attempt { stage: Stage::Idle, window: false, admitted: false, over: false };
        vec![World {
            leader: Leader {
                closed: false,
                owner_resigns: false,
                origin_resigns: false,
                fence: false,
                tombstone: None,
                closing: false,
                full: false,
                write: Write::None,
            },
            store: Store { fence: false, tombstone: false },
            attempts: [attempt.clone(), attempt],
            lease_left: true,
            given: false,
            denied: false,
            landed_after_given: false,
            landed_after_denied: false,
        }]
    }

    fn actions(&self, _: &World, steps: &mut Vec<Step>) {
        for at in 0..2 {
            steps.extend([
                Step::Begin(at),
                Step::Compare(at),
                Step::Register(at),
                Step::Extend(at),
                Step::WindowCloses(at),
                Step::Land(at),
                Step::GiveUp(at),
                Step::Finish(at),
                Step::LeaderForgets(at),
            ]);
        }
        for landed in [false, true] {
            steps.extend([Step::WriteIsUnknown { landed }, Step::LeaderChanges { landed }]);
        }
        steps.extend([
            Step::CannotCommit,
            Step::WriteLands,
            Step::WriteIsResolved,
            Step::NoRoomForTombstone,
            Step::OriginIsFencedForRoom,
            Step::OriginSaysItIsOver,
            Step::OriginReleases,
            Step::BindIsClosed,
            Step::BindIsReleased,
            Step::OwnerResigns,
            Step::OwnerHasResigned,
            Step::OriginResigns,
            Step::OriginHasResigned,
            Step::LeaseIsOver,
            Step::LeaseIsOverForAll,
        ]);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut next = last.clone();
        next.step(step, self).map(|()| next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(AFTER_GIVEN, |_, world: &World| !world.landed_after_given),
            Property::always(AFTER_DENIED, |_, world: &World| !world.landed_after_denied),
            Property::sometimes("a transaction is denied its commit", |_, world: &World| {
                world.denied && !world.store.fence
            }),
            Property::sometimes("a transaction is said to be committing", |_, world: &World| {
                world.leader.closing && world.attempts[0].window && world.attempts[1].window
            }),
            Property::sometimes("a tombstone follows the last attempt", |_, world: &World| {
                world.leader.tombstone == Some(Tombstone::InMemory)
                    && world.leader.write == Write::None
            }),
        ]
    }
}

#[test]
fn all_rules_of_commits_keep_late_ones_out() {
    holds(ALL, 30_000);
}

#[test]
fn without_c1_a_commit_outlives_what_it_rests_on() {
    violates(Rules { c1: false, ..ALL }, AFTER_GIVEN);
    violates(Rules { c1: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c2_a_table_goes_to_another_under_a_commit() {
    violates(Rules { c2_pins: false, ..ALL }, AFTER_GIVEN);
}

/// The locks of a remote transaction are released at once when its origin has resigned (R5).
#[test]
fn without_c2_an_origin_resigns_under_a_commit_of_its_own() {
    violates(Rules { c2_own: false, ..ALL }, AFTER_GIVEN);
}

#[test]
fn without_c3_a_commit_is_admitted_on_an_earlier_bind() {
    violates(Rules { c3_bind: false, ..ALL }, AFTER_GIVEN);
}

#[test]
fn without_the_order_of_c3_an_owner_resigns_between_a_look_and_a_pin() {
    violates(Rules { c3_pin_first: false, ..ALL }, AFTER_GIVEN);
}

#[test]
fn without_c3_a_tombstone_keeps_nothing_out() {
    violates(Rules { c3_tombstone: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c3_a_fence_keeps_nothing_out() {
    violates(Rules { c3_fence: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_the_stripe_of_c3_a_tombstone_comes_between_a_look_and_an_admission() {
    violates(Rules { c3_stripe: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c4_a_commit_is_admitted_while_its_tombstone_is_written() {
    violates(Rules { c4_memory_first: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c4_a_new_leader_does_not_know_a_tombstone_that_was_responded() {
    violates(Rules { c4_write_first: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c4_a_transaction_in_flight_is_said_never_to_commit() {
    violates(Rules { c4_committing: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c4_a_tombstone_is_forgotten_whose_write_has_landed() {
    violates(Rules { c4_unknown: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c4_a_transaction_is_admitted_before_its_origin_is_fenced_for_room() {
    violates(Rules { c4_full: false, ..ALL }, AFTER_DENIED);
}

#[test]
fn without_c4_the_origin_takes_away_a_tombstone_that_another_relies_on() {
    violates(Rules { c4_stays: false, ..ALL }, AFTER_DENIED);
}
