//! First come, first served, and the two exceptions.

use super::fixture::ServiceFixture;
use super::kit::{Scene, exclusive, shared};

pub(super) async fn a_writer_gets_its_turn_behind_sharers(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, w, b) = (scene.actor("a").await, scene.actor("w").await, scene.actor("b").await);
    a.gets(shared("k")).await;
    let of_w = scene.waits(&w, exclusive("k")).await;
    // It could share with the holder, and would for ever keep the writer out.
    let of_b = scene.waits(&b, shared("k")).await;
    scene.is(&["a shares k"], &["w", "b"]).await;
    a.ends().await;
    of_w.granted().await;
    scene.is(&["w holds k"], &["b"]).await;
    w.ends().await;
    of_b.granted().await;
}

pub(super) async fn a_range_gets_its_turn_behind_rows_and_a_row_behind_ranges(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, r, b) = (scene.actor("a").await, scene.actor("r").await, scene.actor("b").await);
    a.gets(exclusive("c")).await;
    let of_r = scene.waits(&r, exclusive("[a,e]")).await;
    // It has no holder, and the range waits for it.
    let of_b = scene.waits(&b, exclusive("d")).await;
    scene.is(&["a holds c"], &["r", "b"]).await;
    a.ends().await;
    of_r.granted().await;
    scene.is(&["r holds [a, e]"], &["b"]).await;
    r.ends().await;
    of_b.granted().await;
    b.ends().await;

    let (p, w, q) = (scene.actor("p").await, scene.actor("w").await, scene.actor("q").await);
    p.gets(shared("[a,e]")).await;
    let of_w = scene.waits(&w, exclusive("c")).await;
    let of_q = scene.waits(&q, shared("[b,d]")).await;
    p.ends().await;
    of_w.granted().await;
    scene.is(&["w holds c"], &["q"]).await;
    w.ends().await;
    of_q.granted().await;
}

pub(super) async fn all_sharers_at_the_head_come_in_together(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let a = scene.actor("a").await;
    a.gets(exclusive("k")).await;
    let mut sharers = Vec::new();
    for name in ["s1", "s2", "s3"] {
        let actor = scene.actor(name).await;
        let what = if name == "s2" { "[j,l]" } else { "k" };
        let call = scene.waits(&actor, shared(what)).await;
        sharers.push((actor, call));
    }
    let (w, s4) = (scene.actor("w").await, scene.actor("s4").await);
    let of_w = scene.waits(&w, exclusive("k")).await;
    let of_s4 = scene.waits(&s4, shared("k")).await;
    a.ends().await;
    // In one step: the first list after the end has them all.
    scene.is(&["s1 shares k", "s2 shares [j, l]", "s3 shares k"], &["w", "s4"]).await;
    for (actor, call) in sharers {
        call.granted().await;
        actor.ends().await;
    }
    of_w.granted().await;
    scene.is(&["w holds k"], &["s4"]).await;
    w.ends().await;
    of_s4.granted().await;
}

pub(super) async fn a_transaction_that_others_wait_for_goes_ahead_of_them(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    let (v, w) = (scene.actor("v").await, scene.actor("w").await);
    a.gets(exclusive("c")).await;
    v.gets(exclusive("x")).await;
    let of_v = scene.waits(&v, exclusive("(,c]")).await;
    let of_w = scene.waits(&w, exclusive("[d,)")).await;
    // One waits for a, the other for one who does: both would wait for ever if a had to wait behind
    // them.
    a.gets(exclusive("b")).await;
    a.gets(exclusive("d [e,f]")).await;
    b.may_not(exclusive("g")).await;
    a.ends().await;
    of_v.granted().await;
    v.ends().await;
    of_w.granted().await;
}

pub(super) async fn an_upgrade_goes_ahead_of_those_who_wait(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b, w) = (scene.actor("a").await, scene.actor("b").await, scene.actor("w").await);
    a.gets(shared("k")).await;
    b.gets(shared("k")).await;
    let of_w = scene.waits(&w, exclusive("k")).await;
    let of_a = scene.waits(&a, exclusive("k")).await;
    scene.is(&["a shares k", "b shares k"], &["a", "w"]).await;
    b.ends().await;
    of_a.granted().await;
    scene.is(&["a holds k"], &["w"]).await;
    a.ends().await;
    of_w.granted().await;
}
