//! Leases and binds: the promises of a table's owner to its client, and the next owner (B2 to B4,
//! P1, P2).
//!
//! # The world
//! One table, its owner, the allocator, a client of the owner. The next owner is one flag: the
//! table was *given away*, and from that moment on another client works on its locks. Whatever a
//! process does takes no time, and is as late as the checker likes: that is how a process hangs.
//!
//! - The owner renews its lease. Request and response are late or lost. It may crash.
//! - The allocator may fence the owner at any moment, as it does with one whose name another
//!   process takes (B1), or that has too many tombstones (C4). Its leader may change at any moment.
//! - The client asks for its lock, and for a renewal of it: for the model both are a request to
//!   the owner, and a response with a promise. Both may be late or lost.
//!
//! Each of the three clocks is slow or fast.
//!
//! # Left out
//! Sessions of another length than the lease (their promises are in P1's minimum either way).
//! Elections (L1): a leader is replaced at once, and no earlier leader responds. Reclaim (P6).

use stateright::{Model, Property};

use crate::check::{holds, violates};
use crate::clocks::{Age, FAST, Rate, SLOW, TTL, hi, lo};

const LATE_GRANT: &str = "an owner grants nothing in a table that was given to another";
const TWO_WORK: &str = "no client works on a lock that was given to another";

/// The rules, each of which can be taken out.
#[derive(Clone, Copy)]
struct Rules {
    /// An owner grants nothing once its lease is over by its own clock.
    b2: bool,
    /// The table of a fenced owner is given away only after its last promises. Else at once.
    b3: bool,
    /// A new leader takes the owner as renewed at the takeover. Else as never renewed.
    b4: bool,
    /// A promise to a client is no longer than what is left of the lease. Else a full session.
    p1: bool,
    /// The client counts from the send of its request. Else from the receipt of the response.
    p2: bool,
    /// The owner reads its clock in the section that grants ("Clocks", 3). Else it may stop in
    /// between.
    clock: bool,
    /// The owner and the client count lo of a promise. Else its raw length.
    lo: bool,
    /// The allocator counts hi of a promise. Else its raw length.
    hi: bool,
    /// How fast a clock may run.
    rates: [Rate; 2],
}

const ALL: Rules = Rules {
    b2: true,
    b3: true,
    b4: true,
    p1: true,
    p2: true,
    clock: true,
    lo: true,
    hi: true,
    rates: [SLOW, FAST],
};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    owner: Owner,
    client: Client,
    /// The clock of the allocator.
    rate: Rate,
    /// Since the last renewal that the leader knows.
    renewed: Age<7>,
    fenced: bool,
    given_away: bool,
    /// The owner has granted something after that.
    granted_late: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Owner {
    rate: Rate,
    crashed: bool,
    /// Since it sent the last renewal that was acknowledged.
    lease: Age<5>,
    renewal: Option<Renewal>,
    /// It has looked at its lease, and has not granted yet.
    looked: bool,
}

/// A renewal on its way to the allocator, or back.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Renewal {
    sent: Age<5>,
    acknowledged: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Client {
    rate: Rate,
    /// For how long it takes its lock as valid, by its clock.
    valid: u8,
    request: Option<Request>,
}

/// A request on its way to the owner, or the response with its promise.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Request {
    sent: Age<5>,
    promise: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Tick,
    OwnerSendsRenewal,
    LeaderRenews,
    OwnerIsRenewed,
    RenewalIsLost,
    OwnerCrashes,
    OwnerLooksAtItsLease,
    OwnerGrants,
    LeaderFences,
    LeaderChanges,
    LeaderGivesTableAway,
    ClientAsks,
    ClientHears,
    RequestIsLost,
}

const STEPS: [Step; 14] = [
    Step::Tick,
    Step::OwnerSendsRenewal,
    Step::LeaderRenews,
    Step::OwnerIsRenewed,
    Step::RenewalIsLost,
    Step::OwnerCrashes,
    Step::OwnerLooksAtItsLease,
    Step::OwnerGrants,
    Step::LeaderFences,
    Step::LeaderChanges,
    Step::LeaderGivesTableAway,
    Step::ClientAsks,
    Step::ClientHears,
    Step::RequestIsLost,
];

impl Rules {
    fn used(&self, promise: u8) -> u8 {
        if self.lo { lo(promise) } else { promise }
    }

    fn waited(&self, promise: u8) -> u8 {
        if self.hi { hi(promise) } else { promise }
    }
}

impl World {
    fn tick(&mut self) {
        self.owner.lease.tick();
        self.renewed.tick();
        if let Some(renewal) = &mut self.owner.renewal {
            renewal.sent.tick();
        }
        if let Some(request) = &mut self.client.request {
            request.sent.tick();
        }
        self.client.valid = self.client.valid.saturating_sub(self.client.rate);
    }

    fn lease_is_over(&self, rules: &Rules) -> bool {
        self.owner.lease.by(self.owner.rate) >= rules.used(TTL)
    }

    fn owner_serves(&self, rules: &Rules) -> bool {
        let sealed = rules.b2 && self.lease_is_over(rules);
        !self.owner.crashed && !sealed
    }

    fn promises_are_over(&self, rules: &Rules) -> bool {
        self.renewed.by(self.rate) >= rules.waited(TTL)
    }

    /// Takes a step, if it can be taken.
    fn step(&mut self, step: Step, rules: &Rules) -> Option<()> {
        let may = |condition: bool| condition.then_some(());
        match step {
            Step::Tick => self.tick(),
            Step::OwnerSendsRenewal => {
                may(self.owner_serves(rules) && self.owner.renewal.is_none())?;
                self.owner.renewal = Some(Renewal { sent: Age::NEW, acknowledged: false });
            }
            Step::LeaderRenews => {
                may(!self.fenced && !self.promises_are_over(rules))?;
                let renewal = self.owner.renewal.as_mut().filter(|sent| !sent.acknowledged)?;
                renewal.acknowledged = true;
                self.renewed = Age::NEW;
            }
            Step::OwnerIsRenewed => {
                let renewal = self.owner.renewal.take().filter(|sent| sent.acknowledged)?;
                may(self.owner_serves(rules))?;
                self.owner.lease = renewal.sent;
            }
            Step::RenewalIsLost => {
                self.owner.renewal.take()?;
            }
            Step::OwnerCrashes => {
                may(!self.owner.crashed)?;
                self.owner.crashed = true;
            }
            Step::OwnerLooksAtItsLease => {
                may(!rules.clock && !self.owner.looked && self.owner_serves(rules))?;
                self.owner.looked = true;
            }
            Step::OwnerGrants => {
                let decided =
                    if rules.clock { self.owner_serves(rules) } else { self.owner.looked };
                may(decided && !self.owner.crashed)?;
                self.owner.looked = false;
                let left = TTL.saturating_sub(self.owner.lease.by(self.owner.rate));
                let request = self.client.request.as_mut().filter(|sent| sent.promise.is_none())?;
                request.promise = Some(if rules.p1 { left } else { TTL });
                self.granted_late |= self.given_away;
            }
            Step::LeaderFences => {
                may(!self.fenced)?;
                self.fenced = true;
            }
            Step::LeaderChanges => {
                may(!self.given_away)?;
                self.renewed = if rules.b4 { Age::NEW } else { Age::OLD };
            }
            Step::LeaderGivesTableAway => {
                may(self.fenced && !self.given_away)?;
                may(!rules.b3 || self.promises_are_over(rules))?;
                self.given_away = true;
            }
            Step::ClientAsks => {
                may(self.client.request.is_none())?;
                self.client.request = Some(Request { sent: Age::NEW, promise: None });
            }
            Step::ClientHears => {
                let Request { sent, promise } = self.client.request.take()?;
                let since = if rules.p2 { sent.by(self.client.rate) } else { 0 };
                let valid = rules.used(promise?).saturating_sub(since);
                self.client.valid = self.client.valid.max(valid);
            }
            Step::RequestIsLost => {
                self.client.request.take()?;
            }
        }
        Some(())
    }
}

impl Model for Rules {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut worlds = Vec::new();
        for owner in self.rates {
            for client in self.rates {
                worlds.extend(self.rates.map(|rate| World {
                    owner: Owner {
                        rate: owner,
                        crashed: false,
                        lease: Age::NEW,
                        renewal: None,
                        looked: false,
                    },
                    client: Client { rate: client, valid: 0, request: None },
                    rate,
                    renewed: Age::NEW,
                    fenced: false,
                    given_away: false,
                    granted_late: false,
                }));
            }
        }
        worlds
    }

    fn actions(&self, _: &World, steps: &mut Vec<Step>) {
        steps.extend(STEPS);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut next = last.clone();
        next.step(step, self).map(|()| next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LATE_GRANT, |_, world: &World| !world.granted_late),
            Property::always(TWO_WORK, |_, world: &World| {
                !(world.given_away && world.client.valid > 0)
            }),
            Property::sometimes("a table is given away", |_, world: &World| world.given_away),
            Property::sometimes(
                "a client works at an owner that was fenced",
                |_, world: &World| world.fenced && world.client.valid > 0,
            ),
            Property::sometimes(
                "an owner is renewed beyond its first lease",
                |rules: &Self, world: &World| {
                    !world.lease_is_over(rules) && world.client.valid == 0 && world.fenced
                },
            ),
        ]
    }
}

#[test]
fn all_rules_of_leases_keep_owners_and_clients_apart() {
    holds(ALL, 100_000);
}

#[test]
fn without_b2_an_owner_grants_in_a_table_of_another() {
    violates(Rules { b2: false, ..ALL }, LATE_GRANT);
}

#[test]
fn without_b3_a_client_works_on_a_table_of_another_owner() {
    violates(Rules { b3: false, ..ALL }, TWO_WORK);
    violates(Rules { b3: false, ..ALL }, LATE_GRANT);
}

#[test]
fn without_b4_a_new_leader_gives_a_table_away_too_early() {
    violates(Rules { b4: false, ..ALL }, TWO_WORK);
}

#[test]
fn without_p1_a_client_works_longer_than_the_lease_of_its_owner() {
    violates(Rules { p1: false, ..ALL }, TWO_WORK);
}

#[test]
fn without_p2_a_late_response_is_counted_from_its_receipt() {
    violates(Rules { p2: false, ..ALL }, TWO_WORK);
}

#[test]
fn a_clock_that_is_read_before_the_section_that_decides_lets_an_owner_grant_too_late() {
    violates(Rules { clock: false, ..ALL }, LATE_GRANT);
}

#[test]
fn clocks_that_run_apart_need_a_margin() {
    violates(Rules { lo: false, hi: false, ..ALL }, TWO_WORK);
    violates(Rules { lo: false, hi: false, ..ALL }, LATE_GRANT);
}

#[test]
fn hi_alone_is_enough_for_clocks_as_far_apart_as_is_allowed() {
    holds(Rules { lo: false, ..ALL }, 100_000);
}

/// The owner counts lo of the whole lease. Its client counts lo only of what was left when it was
/// told, which is nearly nothing at the end.
#[test]
fn lo_alone_is_not_enough_for_promises_that_nest() {
    violates(Rules { hi: false, ..ALL }, TWO_WORK);
}

#[test]
fn clocks_further_apart_than_both_margins_break_the_rules() {
    violates(Rules { rates: [4, 8], ..ALL }, TWO_WORK);
}
