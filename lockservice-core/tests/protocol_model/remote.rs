//! Remote tables: a transaction of one node, its origin, that holds a lock at another, the owner
//! (R1, R2, R4, R5, P4, T3).
//!
//! # The world
//! One transaction, its client, its origin, the owner of its lock, the allocator. The owner's lease
//! never ends; what that would change is shown by [`leases`](crate::leases). The lock counts as
//! given to another from the moment that the owner lets it go.
//!
//! - Between origin and owner each message is late, lost, repeated and overtaken, as on a link
//!   that breaks again and again.
//! - The origin may crash, or be cut off, or be fenced while it serves.
//! - The client is promised what the lease of the origin allows (P1). It ends its transaction, or
//!   falls silent, whether its lock was granted or not.
//!
//! The clocks of client, origin, allocator and owner are slow or fast. The lease is a long one
//! against the fixed part of the margins: see [`Rules::r5_told`].
//!
//! # Left out
//! Messages between client and origin, and renewals, take no time: by [`leases`](crate::leases) a
//! delay only shortens promises. A change of the leader makes the owner wait longer (B4).

use stateright::{Model, Property};

use crate::check::{holds, violates};
use crate::clocks::{Age, FAST, Rate, SLOW, hi, lo};

const TWO_WORK: &str = "no lock of a transaction that works is given to another";
const LEFT_HELD: &str = "nothing stays held when all is over";

/// The raw length of the origin's lease.
const TTL: u8 = 60;

/// The rules, each of which can be taken out.
#[derive(Clone, Copy)]
struct Rules {
    /// The owner refuses what comes from an origin that it knows to be fenced.
    r1: bool,
    /// The origin writes an owner down before it sends the first operation. Else when it has the
    /// response.
    r2: bool,
    /// The origin repeats an end until the owner has acknowledged it. Else it sends it once.
    r4: bool,
    /// The owner lets go only what belongs to a fenced origin (P4). Else what belongs to a silent
    /// one.
    r5_fence: bool,
    /// The owner waits until the promises of the fenced origin are over. Else it lets go at once.
    r5_wait: bool,
    /// The allocator says how long it would wait itself: the rest of hi(TTL). Else the rest of TTL,
    /// of which the owner counts hi: of nothing, at the end, nearly nothing.
    r5_told: bool,
    /// The owner refuses what comes late for a transaction that is over.
    t3: bool,
}

const ALL: Rules =
    Rules { r1: true, r2: true, r4: true, r5_fence: true, r5_wait: true, r5_told: true, t3: true };

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    rates: Rates,
    /// Since the last renewal of the origin's lease.
    renewed: Age<20>,
    fenced: bool,
    /// For how long the client takes its lock as valid, by its clock.
    valid: u8,
    origin: Origin,
    owner: Owner,
    link: Link,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Rates {
    client: Rate,
    origin: Rate,
    allocator: Rate,
    owner: Rate,
}

/// The transaction at its origin.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Origin {
    crashed: bool,
    /// The owner is written down as touched.
    touched: bool,
    granted: bool,
    ended: bool,
    end_sent: bool,
    end_acknowledged: bool,
}

/// The transaction at the owner.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Owner {
    held: bool,
    /// It was held and is not any more.
    given: bool,
    /// Its end is known.
    closed: bool,
    /// The origin is known to be fenced: how long its promises may last, by the owner's clock.
    waits: Option<u8>,
    /// It has let go whatever belonged to the origin.
    forced: bool,
}

/// Messages that may arrive, any number of times.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Link {
    lock: bool,
    grant: bool,
    end: bool,
    acknowledgement: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Tick,
    Renew,
    Fence,
    OriginCrashes,
    OriginSendsLock,
    OriginSendsEnd,
    ClientIsPromised,
    ClientEnds,
    LockArrives,
    GrantArrives,
    EndArrives,
    AcknowledgementArrives,
    LinkForgetsLock,
    LinkForgetsGrant,
    LinkForgetsEnd,
    LinkForgetsAcknowledgement,
    OwnerLearnsOfFence,
    OwnerLetsGo,
}

const STEPS: [Step; 18] = [
    Step::Tick,
    Step::Renew,
    Step::Fence,
    Step::OriginCrashes,
    Step::OriginSendsLock,
    Step::OriginSendsEnd,
    Step::ClientIsPromised,
    Step::ClientEnds,
    Step::LockArrives,
    Step::GrantArrives,
    Step::EndArrives,
    Step::AcknowledgementArrives,
    Step::LinkForgetsLock,
    Step::LinkForgetsGrant,
    Step::LinkForgetsEnd,
    Step::LinkForgetsAcknowledgement,
    Step::OwnerLearnsOfFence,
    Step::OwnerLetsGo,
];

impl Owner {
    fn let_go(&mut self) {
        self.given |= self.held;
        self.held = false;
    }
}

impl World {
    fn tick(&mut self) {
        self.renewed.tick();
        self.valid = self.valid.saturating_sub(self.rates.client);
        if let Some(left) = &mut self.owner.waits {
            *left = left.saturating_sub(self.rates.owner);
        }
    }

    fn origin_serves(&self) -> bool {
        !self.origin.crashed && self.renewed.by(self.rates.origin) < lo(TTL)
    }

    /// The wait for the origin's promises, as the owner counts it from now.
    fn wait(&self, rules: &Rules) -> u8 {
        let whole = if rules.r5_told { hi(TTL) } else { TTL };
        let told = whole.saturating_sub(self.renewed.by(self.rates.allocator));
        if rules.r5_wait { hi(told) } else { 0 }
    }

    /// Nothing is on its way, and nobody has anything to do for the transaction.
    fn is_quiet(&self, rules: &Rules) -> bool {
        let Link { lock, grant, end, acknowledgement } = self.link;
        let origin_is_done = self.origin_serves()
            && self.origin.ended
            && (!self.origin.touched
                || self.origin.end_acknowledged
                || (!rules.r4 && self.origin.end_sent));
        !(lock || grant || end || acknowledgement) && (origin_is_done || self.owner.forced)
    }

    /// Takes a step, if it can be taken.
    fn step(&mut self, step: Step, rules: &Rules) -> Option<()> {
        let may = |condition: bool| condition.then_some(());
        match step {
            Step::Tick => self.tick(),
            Step::Renew => {
                may(self.origin_serves() && !self.fenced)?;
                may(self.renewed.by(self.rates.allocator) < hi(TTL))?;
                self.renewed = Age::NEW;
            }
            Step::Fence => {
                may(!self.fenced)?;
                self.fenced = true;
            }
            Step::OriginCrashes => {
                may(!self.origin.crashed)?;
                self.origin.crashed = true;
            }
            Step::OriginSendsLock => {
                may(self.origin_serves() && !self.origin.ended && !self.link.lock)?;
                self.link.lock = true;
                self.origin.touched |= rules.r2;
            }
            Step::OriginSendsEnd => {
                let Origin { touched, ended, end_sent, end_acknowledged, .. } = self.origin;
                may(self.origin_serves() && ended && touched && !self.link.end)?;
                may(!end_acknowledged && (rules.r4 || !end_sent))?;
                self.link.end = true;
                self.origin.end_sent = true;
            }
            Step::ClientIsPromised => {
                may(self.origin_serves() && self.origin.granted && !self.origin.ended)?;
                let left = TTL.saturating_sub(self.renewed.by(self.rates.origin));
                self.valid = self.valid.max(lo(left));
            }
            Step::ClientEnds => {
                may(self.origin_serves() && !self.origin.ended)?;
                self.valid = 0;
                self.origin.ended = true;
            }
            Step::LockArrives => {
                may(self.link.lock)?;
                may(!(rules.r1 && self.owner.waits.is_some()))?;
                may(!(rules.t3 && self.owner.closed))?;
                self.owner.held = true;
                self.link.grant = true;
            }
            Step::GrantArrives => {
                may(self.link.grant && !self.origin.ended)?;
                self.origin.granted = true;
                self.origin.touched = true;
            }
            Step::EndArrives => {
                may(self.link.end)?;
                self.owner.let_go();
                self.owner.closed = true;
                self.link.acknowledgement = true;
            }
            Step::AcknowledgementArrives => {
                may(self.link.acknowledgement)?;
                self.origin.end_acknowledged = true;
            }
            Step::LinkForgetsLock => self.link.lock = false,
            Step::LinkForgetsGrant => self.link.grant = false,
            Step::LinkForgetsEnd => self.link.end = false,
            Step::LinkForgetsAcknowledgement => self.link.acknowledgement = false,
            Step::OwnerLearnsOfFence => {
                may(self.fenced && self.owner.waits.is_none())?;
                self.owner.waits = Some(self.wait(rules));
            }
            Step::OwnerLetsGo => {
                may(!self.owner.forced && (!rules.r5_fence || self.owner.waits == Some(0)))?;
                // It looks for what belongs to the origin once.
                self.owner.forced = true;
                self.owner.closed |= self.owner.held;
                self.owner.let_go();
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
        for fast in 0..16_u8 {
            let rate = |at: u8| if fast >> at & 1 == 1 { FAST } else { SLOW };
            worlds.push(World {
                rates: Rates {
                    client: rate(0),
                    origin: rate(1),
                    allocator: rate(2),
                    owner: rate(3),
                },
                renewed: Age::NEW,
                fenced: false,
                valid: 0,
                origin: Origin {
                    crashed: false,
                    touched: false,
                    granted: false,
                    ended: false,
                    end_sent: false,
                    end_acknowledged: false,
                },
                owner: Owner {
                    held: false,
                    given: false,
                    closed: false,
                    waits: None,
                    forced: false,
                },
                link: Link { lock: false, grant: false, end: false, acknowledgement: false },
            });
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
            Property::always(TWO_WORK, |_, world: &World| !(world.owner.given && world.valid > 0)),
            Property::always(LEFT_HELD, |rules: &Self, world: &World| {
                !(world.is_quiet(rules) && world.owner.held)
            }),
            Property::sometimes("an origin ends a transaction", |_, world: &World| {
                world.origin.end_acknowledged && world.owner.given
            }),
            Property::sometimes("an owner lets go what a dead origin held", |_, world: &World| {
                world.owner.given && !world.owner.held && !world.origin.ended
            }),
        ]
    }
}

#[test]
fn all_rules_of_remote_tables_let_go_in_time_and_not_too_early() {
    holds(ALL, 900_000);
}

#[test]
fn without_r1_a_late_message_of_a_dead_origin_leaves_a_lock() {
    violates(Rules { r1: false, ..ALL }, LEFT_HELD);
}

#[test]
fn without_r2_an_owner_is_not_told_of_an_end() {
    violates(Rules { r2: false, ..ALL }, LEFT_HELD);
}

#[test]
fn without_r4_a_lost_end_leaves_a_lock() {
    violates(Rules { r4: false, ..ALL }, LEFT_HELD);
}

#[test]
fn without_p4_a_lock_is_taken_from_a_client_whose_origin_is_silent() {
    violates(Rules { r5_fence: false, ..ALL }, TWO_WORK);
}

#[test]
fn without_r5_a_lock_is_taken_from_a_client_whose_origin_was_fenced() {
    violates(Rules { r5_wait: false, ..ALL }, TWO_WORK);
}

#[test]
fn an_owner_that_is_told_the_rest_of_the_lease_waits_too_short() {
    violates(Rules { r5_told: false, ..ALL }, TWO_WORK);
}

#[test]
fn without_t3_a_late_message_leaves_a_lock() {
    violates(Rules { t3: false, ..ALL }, LEFT_HELD);
}
