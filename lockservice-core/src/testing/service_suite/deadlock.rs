//! Cycles of waits.

use std::collections::BTreeSet;

use super::fixture::ServiceFixture;
use super::kit::{Call, Scene, client_of, eventually, exclusive, refused, shared, table};
use crate::error::{Error, ErrorKind};
use crate::key::LockMode;

impl Scene<'_> {
    /// The one of `calls` that is over, and its error. The others wait.
    async fn victim(&self, calls: Vec<Call>) -> (usize, Error, Vec<Option<Call>>) {
        let over = async || calls.iter().position(Call::is_over);
        let victim =
            eventually("one of them fails", over, Option::is_some).await.expect("just seen");
        assert_eq!(calls.iter().filter(|call| call.is_over()).count(), 1, "exactly one fails");
        let mut calls: Vec<_> = calls.into_iter().map(Some).collect();
        let call = calls[victim].take().expect("just seen");
        (victim, refused("a member of the cycle", call.outcome().await, ErrorKind::Deadlock), calls)
    }
}

pub(super) async fn a_deadlock_names_its_whole_cycle_and_only_a_member_fails(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let mut ring = Vec::new();
    for name in ["a", "b", "c"] {
        let actor = scene.actor(name).await;
        actor.gets(exclusive(name)).await;
        ring.push(actor);
    }
    // Holds the least, is the youngest, and waits for a member; one who has the queue behind it,
    // and one at its end.
    let (d, e) = (scene.actor("d").await, scene.actor("e").await);
    let of_d = scene.waits(&d, exclusive("a")).await;
    let mut calls = Vec::new();
    calls.push(scene.waits(&ring[0], exclusive("b")).await);
    calls.push(scene.waits(&ring[1], exclusive("[c,d]")).await);
    let of_e = scene.waits(&e, exclusive("b")).await;
    calls.push(ring[2].requests(shared("a")));
    let (victim, error, mut calls) = scene.victim(calls).await;

    let cycle = error.deadlock().expect("the cycle");
    let members: BTreeSet<_> = ring.iter().map(|actor| actor.id()).collect();
    assert_eq!(cycle.iter().map(|edge| edge.waiter).collect::<BTreeSet<_>>(), members);
    assert_eq!(cycle.len(), 3);
    for (n, edge) in cycle.iter().enumerate() {
        assert_eq!(edge.holder, cycle[(n + 1) % 3].waiter, "each waits for the next: {error}");
        let waiter = ring.iter().position(|actor| actor.id() == edge.waiter).expect("a member");
        assert_eq!(
            (&*edge.item.to_string(), &edge.table),
            (["b", "[c, d]", "a"][waiter], &table())
        );
        assert_eq!(edge.holder, ring[(waiter + 1) % 3].id());
        assert_eq!(edge.victim, waiter == victim, "the victim finds itself: {error}");
        assert_eq!(edge.mode, if waiter == 2 { LockMode::Shared } else { LockMode::Exclusive });
        let names = (ring[waiter].name.as_str(), client_of(&ring[waiter].name));
        assert_eq!((edge.label.as_str(), edge.client.clone()), names, "{error}");
    }

    let still = scene.waiting().await.into_iter().collect::<BTreeSet<_>>();
    let all = [&ring[0], &ring[1], &ring[2], &d, &e];
    let others =
        all.into_iter().map(|actor| actor.name.clone()).filter(|name| *name != ring[victim].name);
    assert_eq!(still, others.collect(), "everybody else goes on waiting");
    ring[victim].ends().await;
    for freed in [(victim + 2) % 3, (victim + 1) % 3] {
        calls[freed].take().expect("it did not fail").granted().await;
        ring[freed].ends().await;
    }
    of_d.granted().await;
    of_e.granted().await;
}

pub(super) async fn two_sharers_that_upgrade_are_a_deadlock_and_exactly_one_fails(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    for what in ["k", "[j,l]"] {
        let pair = [scene.actor("a").await, scene.actor("b").await];
        let mut last = Vec::new();
        for actor in &pair {
            last.push(actor.gets(shared(what)).await.token);
        }
        let first = scene.waits(&pair[0], exclusive(what)).await;
        let (victim, error, mut calls) =
            scene.victim(vec![first, pair[1].requests(exclusive(what))]).await;
        assert_eq!(error.deadlock().expect("the cycle").len(), 2);
        // It has not lost what it shared: only its end, or its unlock, lets the other go on.
        assert_eq!(scene.holding().await.len(), 2);
        assert_eq!(scene.waiting().await, [pair[1 - victim].name.clone()]);
        pair[victim].ends().await;
        let upgraded = calls[1 - victim].take().expect("the other").granted().await;
        assert!(upgraded.token > last[0].max(last[1]));
        pair[1 - victim].ends().await;
    }
}

pub(super) async fn a_cycle_that_another_order_of_the_queue_resolves_aborts_no_transaction(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b, r) = (scene.actor("a").await, scene.actor("b").await, scene.actor("r").await);
    a.gets(exclusive("c")).await;
    b.gets(exclusive("x")).await;
    let of_r = scene.waits(&r, exclusive("[a,e]")).await;
    // Free, but behind r.
    let of_b = scene.waits(&b, exclusive("d")).await;
    // Waits for b, which waits behind r, which waits for a.
    let of_a = a.requests(exclusive("x"));
    of_b.granted().await;
    // A waiter on such a cycle comes after those whose locks it waits for.
    scene.reaches(&["a holds c", "b holds d", "b holds x"], &["a", "r"]).await;
    b.ends().await;
    of_a.granted().await;
    a.ends().await;
    of_r.granted().await;
}

pub(super) async fn waits_that_meet_again_are_no_deadlock(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b, c) = (scene.actor("a").await, scene.actor("b").await, scene.actor("c").await);
    let (d, e) = (scene.actor("d").await, scene.actor("e").await);
    a.gets(exclusive("k")).await;
    e.gets(exclusive("n")).await;
    let mut waiting = Vec::new();
    for actor in [&b, &c] {
        actor.gets(shared("m")).await;
        waiting.push(scene.waits(actor, shared("k")).await);
    }
    // Waits for both, and both wait for a, which then waits itself.
    waiting.push(scene.waits(&d, exclusive("m")).await);
    let of_a = scene.waits(&a, exclusive("n")).await;
    scene.is(&["a holds k", "b shares m", "c shares m", "e holds n"], &["b", "c", "d", "a"]).await;
    e.ends().await;
    of_a.granted().await;
    a.ends().await;
    for (actor, call) in [b, c, d].iter().zip(waiting) {
        call.granted().await;
        if actor.name != "b" {
            actor.ends().await;
            continue;
        }
        // Both share k now.
        scene.reaches(&["b shares k", "b shares m", "c shares k", "c shares m"], &["d"]).await;
        actor.ends().await;
    }
}
