//! A call is all or nothing.

use std::time::Duration;

use super::fixture::ServiceFixture;
use super::kit::{Actor, Held, Scene, Variations as _, eventually, exclusive, shared};
use crate::error::ErrorKind;
use crate::service::LockSpec;

/// A transaction that holds locks, and requests more, and one of them more strongly, where the next
/// to the last is not free.
struct Attempt {
    who: Actor,
    /// Conflicts with the call.
    other: Actor,
    before: Held,
}

impl Attempt {
    async fn new(scene: &Scene<'_>) -> Self {
        let (who, other) = (scene.actor("who").await, scene.actor("other").await);
        who.gets(shared("b")).await;
        who.gets(exclusive("y [p,q]")).await;
        other.gets(exclusive("m m1 m2 m3 m4 m5 m6")).await;
        let before = scene.held_by(&who).await;
        assert_eq!(before.len(), 3);
        Self { who, other, before }
    }

    /// Items are taken in the order of their keys, in whatever order they are named.
    fn call() -> LockSpec {
        exclusive("z m [f,h] b a")
    }

    /// Its lock set is as it was, and nothing that it requested conflicts with others.
    async fn is_as_before(&self, scene: &Scene<'_>) {
        let what = format!("{:?}", self.before);
        eventually(&what, async || scene.held_by(&self.who).await, |held| *held == self.before)
            .await;
        let third = scene.actor("third").await;
        third.gets(exclusive("a [f,h] z")).await;
        third.gets(shared("b")).await;
        third.may_not(exclusive("y")).await;
        assert!(!scene.waiting().await.contains(&self.who.name));
        third.ends().await;
        self.who.gets(exclusive("a b")).await;
    }
}

pub(super) async fn a_call_that_meets_a_conflict_leaves_everything_as_it_was(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let attempt = Attempt::new(&scene).await;
    attempt.who.may_not(Attempt::call()).await;
    assert_eq!(
        scene.held_by(&attempt.who).await,
        attempt.before,
        "at once: no call need wait for it"
    );
    attempt.is_as_before(&scene).await;
}

pub(super) async fn a_call_whose_time_is_up_leaves_everything_as_it_was(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let attempt = Attempt::new(&scene).await;
    attempt.who.fails(Attempt::call().within(Duration::from_millis(50)), ErrorKind::Timeout).await;
    attempt.is_as_before(&scene).await;
}

pub(super) async fn a_call_that_is_cancelled_leaves_everything_as_it_was(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let attempt = Attempt::new(&scene).await;
    let call = scene.waits(&attempt.who, Attempt::call()).await;
    call.cancelled().await;
    attempt.is_as_before(&scene).await;
    // Also if it had been granted, and the response was dropped.
    attempt.who.unlocks("a b").await;
    attempt.who.gets(shared("b")).await;
    let attempt = Attempt { before: scene.held_by(&attempt.who).await, ..attempt };
    let call = scene.waits(&attempt.who, Attempt::call()).await;
    if let ((), None) = tokio::join!(attempt.other.unlocks("m"), call.cancelled_or_over()) {
        attempt.is_as_before(&scene).await;
    }
}

pub(super) async fn a_call_that_is_the_victim_of_a_deadlock_leaves_everything_as_it_was(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let attempt = Attempt::new(&scene).await;
    let call = scene.waits(&attempt.who, Attempt::call()).await;
    // Closes the cycle. It holds more locks, so the other is the victim.
    let of_other = attempt.other.requests(exclusive("y"));
    call.refused(ErrorKind::Deadlock).await;
    attempt.is_as_before(&scene).await;
    scene
        .reaches(&scene.holding().await.iter().map(String::as_str).collect::<Vec<_>>(), &["other"])
        .await;
    attempt.who.ends().await;
    of_other.granted().await;
}

pub(super) async fn a_call_takes_all_of_its_items_or_waits_for_all(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, w, c) = (scene.actor("a").await, scene.actor("w").await, scene.actor("c").await);
    a.gets(exclusive("b")).await;
    let of_w = scene.waits(&w, exclusive("[c,d] b a")).await;
    // What comes after the one it waits for is not taken yet.
    c.gets(exclusive("d")).await;
    c.may_not(exclusive("a")).await;
    a.ends().await;
    scene.is(&["c holds d", "w holds a", "w holds b"], &["w"]).await;
    c.ends().await;
    let grant = of_w.granted().await;
    let held = scene.held_by(&w).await;
    assert_eq!(held.len(), 3);
    assert!(
        held.iter().all(|(_, _, token)| *token == grant.token),
        "one call, one token (F1): {held:?}"
    );
}
