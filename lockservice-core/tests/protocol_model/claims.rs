//! Claims after a restart: the processes of a node, one after the other, and the holders of a table
//! that come back to them (P6).
//!
//! # The world
//! One table of one node, with two holders. The node's process crashes, or stops for a restart, or
//! stops for good once no session is left at it; the next one starts at any moment, four in all.
//! Another node takes the table as soon as the allocator allows it. That is one flag: from then on
//! the table was *given away*.
//!
//! A process asks the allocator to bind the table for claims, and may never have the response. A
//! holder claims, closes, or stays away. Its lock is lost to others if the table was given away, or
//! if the process serves others and does not know the holder.
//!
//! # Time
//! There is none, as in [`commits`](crate::commits): the lease of a process is over at any moment
//! after its end, in the order of processes. From then on nobody works under it, and nobody waits
//! for it.
//!
//! # Left out
//! Waiters. Tokens and modes: of two claims that exclude each other one is a fault. Commits, which
//! a stop waits for.

use stateright::{Model, Property};

use crate::check::{holds, violates};

const TAKEN: &str = "no lock of a holder that works goes to another";
const FORGOTTEN: &str = "a holder that works may claim while the table waits for it";

/// The number of processes.
const PROCESSES: usize = 4;

/// The rules, each of which can be taken out.
#[derive(Clone, Copy)]
struct Rules {
    /// A table waits for the lease of its last process, unless that resigned without it. Else it is
    /// given away at once.
    b3: bool,
    /// A table that takes claims serves others when each holder that the last process named has
    /// come back. Else when one has.
    all: bool,
    /// A stop for a restart says of a table that takes claims that others may hold something in it.
    others: bool,
    /// A stop for good names the tables that take claims as held.
    stop_for_good: bool,
    /// A process that may be bound for claims, and does not know it, does not resign.
    unknown: bool,
    /// The store keeps the first version whose holders may not have claimed yet.
    first_version: bool,
}

const ALL: Rules = Rules {
    b3: true,
    all: true,
    others: true,
    stop_for_good: true,
    unknown: true,
    first_version: true,
};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    processes: Vec<Process>,
    holders: [Holder; 2],
    table: Table,
    given_away: bool,
}

/// What the allocator knows of the table.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Table {
    /// The process that it is, or was last, bound to.
    owner: usize,
    /// The first process whose holders may not have claimed yet.
    from: usize,
    /// The owner of the bind before, for whose lease the owner waits.
    waits_for: Option<usize>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Process {
    state: State,
    lease_is_over: bool,
    /// It may be bound for claims without knowing it.
    asked: bool,
    /// It takes claims.
    claims: Option<Claims>,
    /// It serves the table.
    serves: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum State {
    Running,
    Crashed,
    Resigned(Option<Left>),
}

/// The holders that a process left in the table, and whether there may be others.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Left {
    holders: [bool; 2],
    others: bool,
}

/// Claims in a table: the holders that are expected, if they are known.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Claims {
    expected: Option<[bool; 2]>,
    came: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Holder {
    /// It works, under a lock of this process.
    works: Option<usize>,
    /// The running process holds its lock.
    held: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Crash,
    StopForRestart,
    StopForGood,
    Start,
    LeaseIsOver(usize),
    AllocatorBinds,
    ProcessHears,
    Claim(usize),
    Close(usize),
    ServeOthers,
    GiveAway,
}

impl World {
    fn last(&self) -> usize {
        self.processes.len() - 1
    }

    fn running(&mut self) -> Option<&mut Process> {
        let last = self.processes.last_mut()?;
        (last.state == State::Running).then_some(last)
    }

    /// A process ends, and what it has in memory.
    fn end(&mut self, state: State) -> Option<()> {
        let process = self.running()?;
        process.state = state;
        (process.claims, process.serves, process.asked) = (None, false, false);
        for holder in &mut self.holders {
            holder.held = false;
        }
        Some(())
    }

    /// What the running process leaves in the table when it stops.
    fn left(&mut self, rules: &Rules, names_claims: bool) -> Option<Left> {
        let mut left = Left { holders: self.holders.clone().map(|it| it.held), others: false };
        if let Some(claims) = self.running()?.claims.clone().filter(|_| names_claims) {
            match claims.expected {
                Some(expected) => {
                    (0..2).for_each(|at| left.holders[at] |= expected[at]);
                }
                None => left.others = rules.others,
            }
        }
        let is_held = left.others || left.holders.contains(&true);
        is_held.then_some(left)
    }

    /// True if the allocator may give away what the owner of the table had.
    fn is_free(&self, rules: &Rules) -> bool {
        let owner = &self.processes[self.table.owner];
        match &owner.state {
            State::Running => false,
            State::Resigned(None) => true,
            State::Crashed | State::Resigned(Some(_)) => owner.lease_is_over || !rules.b3,
        }
    }

    fn is_known_to(&self, holder: usize) -> bool {
        let last = self.processes.last();
        !self.given_away && !last.is_some_and(|it| it.serves && !self.holders[holder].held)
    }

    /// True if a holder that works would be refused, although the table takes claims.
    fn refuses(&self, holder: usize) -> bool {
        let claims = self.processes.last().is_some_and(|it| it.claims.is_some());
        let works = self.holders[holder].works;
        claims && !self.holders[holder].held && works.is_some_and(|at| at < self.table.from)
    }

    fn claim(&mut self, at: usize) -> Option<()> {
        let (last, from) = (self.last(), self.table.from);
        self.running()?.claims.as_ref()?;
        let holder = &mut self.holders[at];
        (holder.works? >= from && !holder.held).then_some(())?;
        (holder.works, holder.held) = (Some(last), true);
        self.came_back(at);
        Some(())
    }

    /// A holder has claimed, or was closed.
    fn came_back(&mut self, at: usize) {
        let Some(claims) = self.running().and_then(|it| it.claims.as_mut()) else { return };
        claims.came = true;
        if let Some(expected) = &mut claims.expected {
            expected[at] = false;
        }
    }

    fn bind_for_claims(&mut self, rules: &Rules) -> Option<()> {
        let (last, owner) = (self.last(), self.table.owner);
        let waits = owner < last && !self.given_away && !self.is_free(rules);
        waits.then_some(())?;
        self.running()?.asked = true;
        // A bind for claims whose holders had not all come back is one of theirs too.
        let took_claims = self.table.waits_for.is_some();
        self.table.from = if took_claims && rules.first_version { self.table.from } else { owner };
        (self.table.owner, self.table.waits_for) = (last, Some(owner));
        Some(())
    }

    fn hear(&mut self) -> Option<()> {
        let left = match &self.processes[self.table.waits_for?].state {
            State::Resigned(left) => left.clone().filter(|left| !left.others),
            State::Running | State::Crashed => None,
        };
        let process = self.running().filter(|it| it.asked)?;
        process.asked = false;
        process.claims = Some(Claims { expected: left.map(|left| left.holders), came: false });
        Some(())
    }

    fn serve_others(&mut self, rules: &Rules) -> Option<()> {
        let waits_for = self.table.waits_for?;
        let is_over = self.processes[waits_for].lease_is_over;
        let process = self.running()?;
        let claims = process.claims.as_ref()?;
        let all_came = match claims.expected {
            Some(expected) if rules.all => !expected.contains(&true),
            Some(_) => claims.came,
            None => false,
        };
        (is_over || all_came).then_some(())?;
        (process.claims, process.serves) = (None, true);
        // Nobody that did not claim can hold anything any more.
        self.table.waits_for = None;
        self.table.from = self.table.owner;
        Some(())
    }

    fn step(&mut self, step: Step, rules: &Rules) -> Option<()> {
        let may = |condition: bool| condition.then_some(());
        match step {
            Step::Crash => self.end(State::Crashed)?,
            Step::StopForRestart => {
                may(!(rules.unknown && self.running()?.asked))?;
                let left = self.left(rules, true);
                self.end(State::Resigned(left))?;
            }
            Step::StopForGood => {
                may(!(rules.unknown && self.running()?.asked))?;
                may(self.holders.iter().all(|holder| !holder.held))?;
                let left = self.left(rules, rules.stop_for_good);
                self.end(State::Resigned(left))?;
            }
            Step::Start => {
                may(self.running().is_none() && self.processes.len() < PROCESSES)?;
                self.processes.push(Process {
                    state: State::Running,
                    lease_is_over: false,
                    asked: false,
                    claims: None,
                    serves: false,
                });
            }
            Step::LeaseIsOver(at) => {
                let before_are_over = self.processes.iter().take(at).all(|it| it.lease_is_over);
                let process = self.processes.get_mut(at)?;
                may(before_are_over && !process.lease_is_over)?;
                may(process.state != State::Running)?;
                process.lease_is_over = true;
                for holder in &mut self.holders {
                    holder.works = holder.works.filter(|under| *under != at);
                }
            }
            Step::AllocatorBinds => self.bind_for_claims(rules)?,
            Step::ProcessHears => self.hear()?,
            Step::Claim(at) => self.claim(at)?,
            Step::Close(at) => {
                may(self.holders[at].works.is_some())?;
                self.holders[at] = Holder { works: None, held: false };
                self.came_back(at);
            }
            Step::ServeOthers => self.serve_others(rules)?,
            Step::GiveAway => {
                may(!self.given_away && self.is_free(rules))?;
                self.given_away = true;
            }
        }
        Some(())
    }
}

impl Model for Rules {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let process = Process {
            state: State::Running,
            lease_is_over: false,
            asked: false,
            claims: None,
            serves: true,
        };
        let holder = Holder { works: Some(0), held: true };
        vec![World {
            processes: vec![process],
            holders: [holder.clone(), holder],
            table: Table { owner: 0, from: 0, waits_for: None },
            given_away: false,
        }]
    }

    fn actions(&self, _: &World, steps: &mut Vec<Step>) {
        steps.extend([
            Step::Crash,
            Step::StopForRestart,
            Step::StopForGood,
            Step::Start,
            Step::AllocatorBinds,
            Step::ProcessHears,
            Step::ServeOthers,
            Step::GiveAway,
        ]);
        steps.extend((0..PROCESSES).map(Step::LeaseIsOver));
        steps.extend((0..2).flat_map(|at| [Step::Claim(at), Step::Close(at)]));
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut next = last.clone();
        next.step(step, self).map(|()| next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TAKEN, |_, world: &World| {
                (0..2).all(|at| world.holders[at].works.is_none() || world.is_known_to(at))
            }),
            Property::always(FORGOTTEN, |_, world: &World| !(0..2).any(|at| world.refuses(at))),
            Property::sometimes("a holder works at the last process", |_, world: &World| {
                world.holders[0].works == Some(PROCESSES - 1)
            }),
            Property::sometimes("a table serves others while holders work", |_, world: &World| {
                world.last() > 0
                    && world.processes[world.last()].serves
                    && world.holders.iter().all(|holder| holder.held)
                    && !world.processes[0].lease_is_over
            }),
        ]
    }
}

#[test]
fn all_rules_of_claims_keep_the_locks_of_those_who_work() {
    holds(ALL, 40_000);
}

#[test]
fn without_b3_the_table_of_a_crashed_process_goes_to_another_node() {
    violates(Rules { b3: false, ..ALL }, TAKEN);
}

#[test]
fn without_p6_a_table_serves_others_before_all_have_come_back() {
    violates(Rules { all: false, ..ALL }, TAKEN);
}

#[test]
fn without_p6_a_stop_among_the_claims_forgets_holders_that_nobody_named() {
    violates(Rules { others: false, ..ALL }, TAKEN);
}

#[test]
fn without_p6_a_stop_for_good_among_the_claims_gives_the_table_away() {
    violates(Rules { stop_for_good: false, ..ALL }, TAKEN);
}

#[test]
fn without_p6_a_process_resigns_a_table_that_it_does_not_know_of() {
    violates(Rules { unknown: false, ..ALL }, TAKEN);
}

#[test]
fn without_p6_a_second_crash_among_the_claims_refuses_those_who_come_late() {
    violates(Rules { first_version: false, ..ALL }, FORGOTTEN);
}
