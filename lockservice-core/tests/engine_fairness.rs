//! Nobody starves: a call is granted in the order of arrival, however often the others lock again.
//!
//! The actors of a test lock, release and lock again for ever, in a random order that a seed gives.
//! After each step two things hold:
//!
//! - No call was granted ahead of one that conflicts with it and arrived before it. Upgrades come
//!   before all others.
//! - No call waits without a conflict.
//!
//! So a call waits for those that held its item as it came, and for those ahead of it, once each.

mod kit;

use kit::by_id::LockEngine;
use kit::cost::everything;
use kit::{engine, lock, poll, row, txn};
use lockservice_core::table::LockCall;
use lockservice_core::{LockItem, LockMode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::task::Poll;

use LockMode::{Exclusive, Shared, Update};

const SHARERS: usize = 64;
const STEPS: usize = 10_000;

/// The items and modes that an actor locks one after another. Then it releases all of them.
type Script = Vec<(LockItem, LockMode)>;

struct Actor {
    script: Script,
    held: usize,
    wait: Option<Wait>,
    /// The number of times that it got the last lock of its script.
    rounds: usize,
}

struct Wait {
    call: LockCall,
    /// Upgrades first, then by arrival.
    order: (bool, usize),
}

struct World {
    engine: LockEngine,
    actors: Vec<Actor>,
    arrivals: usize,
    /// The waits that ended with a grant.
    waited: usize,
}

fn conflict((a, of_a): &(LockItem, LockMode), (b, of_b): &(LockItem, LockMode)) -> bool {
    !of_a.is_compatible(*of_b) && a.overlaps(b)
}

impl Actor {
    fn next(&self) -> &(LockItem, LockMode) {
        &self.script[self.held]
    }

    fn is_upgrade(&self) -> bool {
        self.script[..self.held].iter().any(|(item, _)| *item == self.next().0)
    }
}

impl World {
    fn new(scripts: impl IntoIterator<Item = Script>) -> Self {
        let actor = |script| Actor { script, held: 0, wait: None, rounds: 0 };
        let actors = scripts.into_iter().map(actor).collect();
        Self { engine: engine(), actors, arrivals: 0, waited: 0 }
    }

    /// Random steps of the actors. An actor that waits does nothing.
    fn run(&mut self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..STEPS {
            let who = random.random_range(0..self.actors.len());
            if self.actors[who].wait.is_none() {
                self.step(who);
                self.receive();
                self.check_waits();
            }
        }
    }

    fn step(&mut self, who: usize) {
        let actor = &mut self.actors[who];
        if actor.held == actor.script.len() {
            actor.held = 0;
            self.engine.unlock_all(txn(who as u64), None);
            return;
        }
        let (item, mode) = actor.next().clone();
        let order = (!actor.is_upgrade(), self.arrivals);
        self.arrivals += 1;
        let call = lock(&self.engine, who as u64, [item], mode);
        actor.wait = Some(Wait { call, order });
    }

    /// Receives the grants, the first arrival first.
    fn receive(&mut self) {
        let waits = self.actors.iter().enumerate();
        let waits = waits.filter_map(|(who, actor)| Some((actor.wait.as_ref()?.order, who)));
        let mut waits: Vec<((bool, usize), usize)> = waits.collect();
        waits.sort_unstable();
        for (order, who) in waits {
            let actor = &mut self.actors[who];
            let wait = actor.wait.as_mut().expect("it waits");
            match poll(&mut wait.call) {
                Poll::Pending => continue,
                Poll::Ready(Err(error)) => panic!("{who} failed: {error}"),
                Poll::Ready(Ok(grant)) => self.waited += usize::from(grant.waited.is_some()),
            }
            actor.wait = None;
            let granted = actor.next().clone();
            actor.held += 1;
            actor.rounds += usize::from(actor.held == actor.script.len());
            for (other, actor) in self.actors.iter().enumerate() {
                let ahead = actor.wait.as_ref().is_some_and(|wait| wait.order < order);
                assert!(
                    !ahead || !conflict(actor.next(), &granted),
                    "{who} was granted {granted:?} ahead of {other}"
                );
            }
        }
    }

    fn check_waits(&self) {
        for (who, actor) in self.actors.iter().enumerate() {
            let Some(wait) = &actor.wait else { continue };
            let is_conflict = |(other, it): (usize, &Actor)| {
                let holds = it.script[..it.held].iter().any(|held| conflict(held, actor.next()));
                let is_ahead = it.wait.as_ref().is_some_and(|it| it.order < wait.order);
                other != who && (holds || is_ahead && conflict(it.next(), actor.next()))
            };
            assert!(
                self.actors.iter().enumerate().any(is_conflict),
                "{who} waits for nobody: {:?}",
                actor.next()
            );
        }
    }
}

/// Runs the actors with some seeds. The lone ones, which come last, get their locks many times.
fn all_get_their_turn(scripts: &[Script], lone: usize) {
    for seed in 0..4 {
        let mut world = World::new(scripts.to_vec());
        world.run(seed);
        let rounds: Vec<usize> = world.actors.iter().map(|actor| actor.rounds).collect();
        println!("seed {seed}: {} waits were granted, rounds {rounds:?}", world.waited);
        assert!(world.waited > STEPS / 50, "there was little contention");
        let (others, lone) = rounds.split_at(rounds.len() - lone);
        assert!(others.iter().all(|rounds| *rounds > 5), "seed {seed}: {rounds:?}");
        assert!(lone.iter().all(|rounds| *rounds > 5), "seed {seed}: {rounds:?}");
    }
}

#[test]
fn one_writer_gets_its_turn_among_sharers_that_lock_again_for_ever() {
    let mut scripts = vec![vec![(row("k"), Shared)]; SHARERS];
    scripts.push(vec![(row("k"), Exclusive)]);
    all_get_their_turn(&scripts, 1);
}

#[test]
fn a_lock_of_the_whole_table_gets_its_turn_among_lockers_of_rows() {
    for mode in [Shared, Exclusive] {
        let mut scripts: Vec<Script> =
            (0..SHARERS).map(|at| vec![(row([at as u8 / 4]), Exclusive)]).collect();
        scripts.push(vec![(everything(), mode)]);
        all_get_their_turn(&scripts, 1);
    }
}

#[test]
fn a_lock_of_a_row_gets_its_turn_among_lockers_of_the_whole_table() {
    for mode in [Shared, Update] {
        let mut scripts = vec![vec![(everything(), mode)]; SHARERS / 4];
        scripts.push(vec![(row("k"), Exclusive)]);
        all_get_their_turn(&scripts, 1);
    }
}

#[test]
fn an_upgrade_to_update_gets_its_turn_among_others_of_its_kind_and_new_ones() {
    let upgrade = || vec![(row("k"), Shared), (row("k"), Update)];
    let mut scripts = vec![vec![(row("k"), Update)]; 8];
    scripts.extend(vec![vec![(row("k"), Shared)]; 8]);
    scripts.push(upgrade());
    all_get_their_turn(&scripts, 1);
    // All of a kind: their upgrades are granted in the order of arrival too.
    all_get_their_turn(&vec![upgrade(); SHARERS / 4], 0);
}
