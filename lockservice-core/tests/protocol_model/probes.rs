//! Deadlocks over nodes: probes, and what they prove (D1 to D4).
//!
//! # The world
//! Transactions and keys, each at a node of its own. Who waits for a key waits for its holder; who
//! comes later stands behind. A transaction calls for a key at any moment at which it does not
//! wait, gives its wait up, and unlocks what it holds, also while it waits. A wait and a grant have
//! an id that never comes again.
//!
//! A probe of a wait goes from holder to holder, with anything in between; it reads an edge at a
//! time. It is lost at any moment. So is its last message, which ends the wait of the victim.
//!
//! # Left out
//! Soft edges: a cycle with one of them has no victim (D4). Holders that share a key: each of their
//! edges would be read and confirmed by itself. Bounds of probes (D2).

use std::collections::BTreeSet;

use stateright::{Model, Property};

use crate::check::{holds, violates};

const FALSE_VICTIM: &str = "a victim waited in a deadlock";
const TWO_VICTIMS: &str = "all probes of a deadlock choose the same victim";
const NOT_FOUND: &str = "no deadlock stays when nothing is on its way";
const NOT_RESOLVED: &str = "a probe of any wait in a deadlock resolves it";

/// The number of transactions, and of keys.
const N: usize = 3;

/// The rules, each of which can be taken out, and the size of the world.
#[derive(Clone, Copy)]
struct Rules {
    /// A wait sends probes as long as it lasts. Else one as it begins.
    d1: bool,
    /// Each edge of a cycle is read again before there is a victim.
    d3: bool,
    /// An edge is the same if its wait and its grant have the same ids. Else if it joins the same
    /// transactions.
    d3_ids: bool,
    /// The end of a victim's wait names the wait. Else it ends the wait that it finds.
    d4_names: bool,
    /// What the choice of a victim needs is fixed when a wait begins. Else it is as the probe finds
    /// it.
    d4_fixed: bool,
    /// A transaction unlocks a key also while it waits for another.
    unlocks_in_wait: bool,
    /// The number of calls after those that gave each key to a transaction.
    calls: u8,
    /// Most probes on their way at one time.
    probes: usize,
    /// The transaction that holds each key at first.
    holders: [usize; N],
}

/// Two probes side by side, and as many calls as a cycle that was never whole needs.
const ALL: Rules = Rules {
    d1: true,
    d3: true,
    d3_ids: true,
    d4_names: true,
    d4_fixed: true,
    unlocks_in_wait: false,
    calls: 3,
    probes: 2,
    holders: [0, 1, 2],
};

/// Calls, and thereby waits and grants.
type Id = u8;

/// A set of calls.
type Ids = u8;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    keys: [Key; N],
    /// The wait of each transaction.
    waits: [Option<Wait>; N],
    probes: Vec<Probe>,
    next: Id,
    /// The waits of each deadlock that ever was.
    deadlocks: Vec<Ids>,
    /// The waits that ended as victims.
    victims: Ids,
    /// The deadlocks that were confirmed, each with the wait that was chosen.
    chosen: Vec<(Ids, Id)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    holder: Option<Holder>,
    queue: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Holder {
    txn: usize,
    grant: Id,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Wait {
    key: usize,
    id: Id,
    /// The number of keys that the transaction held as it began.
    held: usize,
    probed: bool,
}

/// A transaction that waits, as its key's node tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Edge {
    txn: usize,
    wait: Id,
    held: usize,
    holder: Holder,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Probe {
    path: Vec<Edge>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    /// On its way to the holder of the last edge.
    Look,
    /// On its way to an edge that it has seen before.
    Confirm(usize),
    /// On its way to the victim.
    Abort { txn: usize, wait: Id },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Call { txn: usize, key: usize },
    Cancel { txn: usize },
    Unlock { key: usize },
    SendProbe { txn: usize },
    ProbeArrives { at: usize },
    ProbeIsLost { at: usize },
}

impl World {
    fn held(&self, txn: usize) -> usize {
        self.keys.iter().filter(|key| key.holder.is_some_and(|holder| holder.txn == txn)).count()
    }

    fn edge(&self, txn: usize, rules: &Rules) -> Option<Edge> {
        let Wait { key, id, held, .. } = self.waits[txn]?;
        let held = if rules.d4_fixed { held } else { self.held(txn) };
        Some(Edge { txn, wait: id, held, holder: self.keys[key].holder? })
    }

    /// The waits of the deadlock that the transaction is in.
    fn deadlock(&self, txn: usize, rules: &Rules) -> Option<Ids> {
        let (mut waits, mut at) = (0, txn);
        for _ in 0..N {
            let edge = self.edge(at, rules)?;
            (waits, at) = (waits | 1 << edge.wait, edge.holder.txn);
            if at == txn {
                return Some(waits);
            }
        }
        None
    }

    fn note_deadlocks(&mut self, rules: &Rules) {
        for txn in 0..N {
            if let Some(waits) = self.deadlock(txn, rules)
                && !self.deadlocks.contains(&waits)
            {
                self.deadlocks.push(waits);
                self.deadlocks.sort_unstable();
            }
        }
    }

    fn end_wait(&mut self, txn: usize) -> Option<()> {
        let wait = self.waits[txn].take()?;
        self.keys[wait.key].queue.retain(|other| *other != txn);
        Some(())
    }

    fn call(&mut self, txn: usize, key: usize) -> Option<()> {
        (self.keys[key].holder?.txn != txn).then_some(())?;
        let (id, held) = (self.next, self.held(txn));
        self.next += 1;
        self.keys[key].queue.push(txn);
        self.waits[txn] = Some(Wait { key, id, held, probed: false });
        Some(())
    }

    fn unlock(&mut self, key: usize, rules: &Rules) -> Option<()> {
        let unlocked = &mut self.keys[key];
        let holder = unlocked.holder.take()?;
        (rules.unlocks_in_wait || self.waits[holder.txn].is_none()).then_some(())?;
        if !unlocked.queue.is_empty() {
            let txn = unlocked.queue.remove(0);
            let wait = self.waits[txn].take()?;
            unlocked.holder = Some(Holder { txn, grant: wait.id });
        }
        Some(())
    }

    fn send_probe(&mut self, txn: usize, rules: &Rules) -> Option<()> {
        (self.probes.len() < rules.probes).then_some(())?;
        let edge = self.edge(txn, rules)?;
        // One of a wait at a time.
        let sent = |probe: &Probe| probe.path[0].wait == edge.wait;
        (!self.probes.iter().any(sent)).then_some(())?;
        let wait = self.waits[txn].as_mut()?;
        if !rules.d1 {
            (!wait.probed).then_some(())?;
            wait.probed = true;
        }
        self.probes.push(Probe { path: vec![edge], stage: Stage::Look });
        Some(())
    }

    /// Sends a probe to the transaction of its path that holds the fewest keys; of several to the
    /// one that began last.
    fn choose(&mut self, path: &[Edge]) -> Stage {
        let last = path.iter().max_by_key(|edge| (N - edge.held, edge.txn));
        let Edge { txn, wait, .. } = *last.expect("a path has an edge");
        let choice = (path.iter().fold(0, |waits, edge| waits | 1 << edge.wait), wait);
        if !self.chosen.contains(&choice) {
            self.chosen.push(choice);
            self.chosen.sort_unstable();
        }
        Stage::Abort { txn, wait }
    }

    /// A probe arrives where it was sent to, and goes on from there if it can.
    fn arrive(&mut self, at: usize, rules: &Rules) -> Option<()> {
        (at < self.probes.len()).then_some(())?;
        let mut probe = self.probes.remove(at);
        let Probe { path, stage } = &mut probe;
        let next = match *stage {
            Stage::Look => {
                let txn = path.last()?.holder.txn;
                self.edge(txn, rules).and_then(|found| {
                    match path.iter().position(|seen| seen.txn == txn) {
                        None => {
                            path.push(found);
                            Some(Stage::Look)
                        }
                        // It has come back to its first wait.
                        Some(0) if found.wait == path[0].wait => Some(match rules.d3 {
                            true => Stage::Confirm(0),
                            false => self.choose(path),
                        }),
                        Some(_) => None,
                    }
                })
            }
            Stage::Confirm(index) => {
                let seen = path[index];
                let same = |found: Edge| match rules.d3_ids {
                    true => (found.wait, found.holder) == (seen.wait, seen.holder),
                    false => found.holder.txn == seen.holder.txn,
                };
                self.edge(seen.txn, rules).filter(|found| same(*found)).map(|_| {
                    match index + 1 < path.len() {
                        true => Stage::Confirm(index + 1),
                        false => self.choose(path),
                    }
                })
            }
            Stage::Abort { txn, wait } => {
                if let Some(found) = self.waits[txn]
                    && (found.id == wait || !rules.d4_names)
                {
                    self.victims |= 1 << found.id;
                    self.end_wait(txn)?;
                }
                None
            }
        };
        if let Some(next) = next {
            *stage = next;
            self.probes.insert(at, probe);
        }
        Some(())
    }

    /// True if a probe of each wait in a deadlock, which nothing disturbs, ends one of its waits.
    fn is_resolved_by_a_probe(&self, rules: &Rules) -> bool {
        (0..N).all(|txn| {
            let Some(waits) = self.deadlock(txn, rules) else { return true };
            let mut world = self.clone();
            world.probes.clear();
            let rules = Rules { d1: true, ..*rules };
            let sent = world.send_probe(txn, &rules);
            while !world.probes.is_empty() && world.arrive(0, &rules).is_some() {}
            sent.is_some() && world.victims & waits != self.victims & waits
        })
    }
}

impl Model for Rules {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut grant = 0;
        let keys = self.holders.map(|txn| {
            grant += 1;
            Key { holder: Some(Holder { txn, grant: grant - 1 }), queue: Vec::new() }
        });
        vec![World {
            keys,
            waits: [None; N],
            probes: Vec::new(),
            next: N as Id,
            deadlocks: Vec::new(),
            victims: 0,
            chosen: Vec::new(),
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for txn in 0..N {
            if world.waits[txn].is_some() {
                steps.extend([Step::Cancel { txn }, Step::SendProbe { txn }]);
            } else if world.next < N as Id + self.calls {
                steps.extend((0..N).map(|key| Step::Call { txn, key }));
            }
        }
        steps.extend((0..N).map(|key| Step::Unlock { key }));
        for at in 0..world.probes.len() {
            steps.extend([Step::ProbeArrives { at }, Step::ProbeIsLost { at }]);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut next = last.clone();
        match step {
            Step::Call { txn, key } => next.call(txn, key),
            Step::Cancel { txn } => next.end_wait(txn),
            Step::Unlock { key } => next.unlock(key, self),
            Step::SendProbe { txn } => next.send_probe(txn, self),
            Step::ProbeArrives { at } => next.arrive(at, self),
            Step::ProbeIsLost { at } => {
                next.probes.remove(at);
                Some(())
            }
        }?;
        next.note_deadlocks(self);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(FALSE_VICTIM, |_, world: &World| {
                let all = world.deadlocks.iter().fold(0, |all, waits| all | waits);
                world.victims & !all == 0
            }),
            Property::always(TWO_VICTIMS, |_, world: &World| {
                world.chosen.windows(2).all(|pair| pair[0].0 != pair[1].0)
            }),
            Property::always(NOT_FOUND, |rules: &Self, world: &World| {
                let may_be_sent = |txn| {
                    let wait: Option<Wait> = world.waits[txn];
                    wait.is_some_and(|wait| rules.d1 || !wait.probed)
                };
                !world.probes.is_empty()
                    || (0..N)
                        .all(|txn| world.deadlock(txn, rules).is_none() || (0..N).any(may_be_sent))
            }),
            Property::always(NOT_RESOLVED, |rules: &Self, world: &World| {
                world.is_resolved_by_a_probe(rules)
            }),
            Property::sometimes("a deadlock of all has a victim", |rules: &Self, world: &World| {
                let all = BTreeSet::from(rules.holders).len();
                let of_all = |waits: &&Ids| waits.count_ones() as usize == all;
                let deadlock = world.deadlocks.iter().find(of_all);
                deadlock.is_some_and(|waits| waits & world.victims != 0)
            }),
        ]
    }
}

#[test]
fn all_rules_of_probes_find_each_deadlock_and_no_other() {
    holds(ALL, 10_000);
}

#[test]
fn without_d1_a_deadlock_stays_whose_probe_was_lost() {
    violates(Rules { d1: false, ..ALL }, NOT_FOUND);
}

#[test]
fn without_d3_a_transaction_is_a_victim_without_a_deadlock() {
    violates(Rules { d3: false, ..ALL }, FALSE_VICTIM);
}

/// A wait ends, and another for the same holder begins, while the rest is confirmed.
#[test]
fn without_the_ids_of_d3_a_transaction_is_a_victim_without_a_deadlock() {
    violates(Rules { d3_ids: false, calls: 4, probes: 1, ..ALL }, FALSE_VICTIM);
}

#[test]
fn without_the_name_of_d4_a_later_wait_is_the_victim() {
    violates(Rules { d4_names: false, ..ALL }, FALSE_VICTIM);
}

/// The larger of two transactions holds two keys at first, and unlocks one while it waits.
#[test]
fn without_a_fixed_choice_two_probes_choose_two_victims() {
    let rules = Rules { unlocks_in_wait: true, holders: [0, 1, 1], ..ALL };
    violates(Rules { d4_fixed: false, ..rules }, TWO_VICTIMS);
    holds(Rules { calls: 2, ..rules }, 1_000);
}
