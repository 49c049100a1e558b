//! A release, and the waiters that it wakes.

use super::fixture::ServiceFixture;
use super::kit::{Scene, Variations as _, exclusive, shared, table_named};
use crate::id::CommitTimestamp;

pub(super) async fn an_unlock_of_chosen_keys_wakes_exactly_those_who_became_compatible(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    a.gets(exclusive("x y [p,q]")).await;
    a.gets(shared("s")).await;
    b.gets(shared("s")).await;
    let (mut waiters, mut calls) = (Vec::new(), Vec::new());
    for (name, what) in [("wx", "x"), ("wy", "[y,yy]"), ("wr", "p1"), ("ws", "s")] {
        let actor = scene.actor(name).await;
        calls.push(scene.waits(&actor, exclusive(what)).await);
        waiters.push(actor);
    }
    let holds = ["a holds [p, q]", "a holds x", "a holds y", "a shares s", "b shares s"];
    scene.is(&holds, &["wx", "wy", "wr", "ws"]).await;
    // Inside the range, but not what was locked.
    a.unlocks("p1 [p,q) y1").await;
    scene.is(&holds, &["wx", "wy", "wr", "ws"]).await;
    // One of two sharers.
    a.unlocks("x s").await;
    let holds = ["a holds [p, q]", "a holds y", "b shares s", "wx holds x"];
    scene.is(&holds, &["wy", "wr", "ws"]).await;
    a.unlocks("[p,q]").await;
    scene.is(&["a holds y", "b shares s", "wr holds p1", "wx holds x"], &["wy", "ws"]).await;
    b.unlocks("s").await;
    a.unlocks("y").await;
    for call in calls {
        call.granted().await;
    }
    scene.is(&["wr holds p1", "ws holds s", "wx holds x", "wy holds [y, yy]"], &[]).await;
    // The transaction goes on.
    b.gets(exclusive("b")).await;
    // Earlier it would have them give up what they hold.
    drop(waiters);
}

pub(super) async fn an_unlock_of_chosen_keys_gives_its_commit_to_the_table_and_those_behind_them(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b, c, d) = (
        scene.actor("a").await,
        scene.actor("b").await,
        scene.actor("c").await,
        scene.actor("d").await,
    );
    a.gets(exclusive("x y")).await;
    let of_b = scene.waits(&b, exclusive("x")).await;
    let of_c = scene.waits(&c, exclusive("y")).await;
    a.unlocks_at("x", 7).await;
    let granted = of_b.granted().await;
    assert_eq!(
        (granted.prev_commit_ts, granted.table_commit_ts),
        (Some(CommitTimestamp::new(7)), Some(CommitTimestamp::new(7)))
    );
    // An item that is not held has no effect.
    a.unlocks_at("x z", 9).await;
    a.unlocks("y").await;
    let granted = of_c.granted().await;
    assert_eq!(
        (granted.prev_commit_ts, granted.table_commit_ts),
        (None, Some(CommitTimestamp::new(7)))
    );
    assert_eq!(d.gets(exclusive("z")).await.table_commit_ts, Some(CommitTimestamp::new(7)));
}

pub(super) async fn a_release_is_idempotent(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    a.gets(exclusive("k l")).await;
    b.gets(exclusive("m")).await;
    for _ in 0..2 {
        a.unlocks("k m n [a,z]").await;
        a.unlocks_of(&table_named("never"), "k").await;
        scene.is(&["a holds l", "b holds m"], &[]).await;
    }
    b.gets(exclusive("k")).await;
    a.unlocks("k").await;
    for _ in 0..2 {
        a.ends().await;
        scene.is(&["b holds k", "b holds m"], &[]).await;
    }
    for _ in 0..2 {
        b.closes().await;
        scene.is(&[], &[]).await;
    }
}

pub(super) async fn the_end_of_a_transaction_releases_everything(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let a = scene.actor("a").await;
    let other = a.sibling("other");
    let elsewhere = table_named("u");
    a.gets(exclusive("k [m,p]")).await;
    a.gets(shared("z")).await;
    a.gets(exclusive("k").of(&elsewhere)).await;
    other.gets(exclusive("q")).await;
    let mut calls = Vec::new();
    for (name, spec) in [
        ("w1", exclusive("k")),
        ("w2", shared("[n,nn]")),
        ("w3", exclusive("z")),
        ("w4", exclusive("(,)").of(&elsewhere)),
        ("w5", exclusive("q")),
    ] {
        let actor = scene.actor(name).await;
        calls.push((scene.waits(&actor, spec).await, actor));
    }
    a.ends().await;
    let holds =
        ["other holds q", "w1 holds k", "w2 shares [n, nn]", "w3 holds z", "w4 holds (-∞, +∞)"];
    scene.is(&holds, &["w5"]).await;
    other.ends().await;
    for (call, _) in calls {
        call.granted().await;
    }
}
