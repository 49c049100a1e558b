//! The end of a wait without a grant, which leaves nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::fixture::ServiceFixture;
use super::kit::{Scene, Variations as _, exclusive, shared};
use crate::error::ErrorKind;

/// Long enough for others to queue up behind a wait that lasts so long, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(2);

pub(super) async fn no_wait_takes_an_earlier_waiter_for_a_lock(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, w, b) = (scene.actor("a").await, scene.actor("w").await, scene.actor("b").await);
    a.gets(shared("k")).await;
    let of_w = scene.waits(&w, exclusive("[j,l]")).await;
    for spec in [shared("k"), exclusive("j"), shared("[l,m]")] {
        b.may_not(spec).await;
    }
    b.gets(exclusive("m")).await;
    of_w.cancelled().await;
    scene.reaches(&["a shares k", "b holds m"], &[]).await;
    b.gets(shared("k")).await;
}

pub(super) async fn a_wait_ends_at_its_deadline_and_leaves_no_claim(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, w) = (scene.actor("a").await, scene.actor("w").await);
    let (b, c) = (scene.actor("b").await, scene.actor("c").await);
    a.gets(exclusive("j")).await;
    a.gets(shared("k")).await;
    let began = Instant::now();
    let of_w = scene.waits(&w, exclusive("j k").within(DEADLINE)).await;
    // It waits first for one and then for the other, and has one deadline for both.
    tokio::time::sleep_until(began + DEADLINE / 2).await;
    a.unlocks("j").await;
    let next = Instant::now();
    let of_b = scene.waits(&b, shared("k l")).await;
    let of_c = scene.waits(&c, shared("j")).await;
    of_w.refused(ErrorKind::Timeout).await;
    assert!(began.elapsed() >= DEADLINE, "it gave up after {:?}", began.elapsed());
    assert!(next.elapsed() < DEADLINE, "its time began again when it waited for the next");
    // No call stalls behind one that has gone.
    of_b.granted().await;
    of_c.granted().await;
    scene.is(&["a shares k", "b shares k", "b shares l", "c shares j"], &[]).await;
    w.gets(shared("k")).await;
}

pub(super) async fn a_cancelled_wait_leaves_no_claim_and_no_other_stalls(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, w, r) = (scene.actor("a").await, scene.actor("w").await, scene.actor("r").await);
    let (b, c) = (scene.actor("b").await, scene.actor("c").await);
    a.gets(shared("k")).await;
    let of_w = scene.waits(&w, exclusive("k")).await;
    let of_b = scene.waits(&b, shared("[a,l]")).await;
    let of_r = scene.waits(&r, exclusive("[c,z]")).await;
    let of_c = scene.waits(&c, shared("m")).await;
    // From the middle of the queue, then its head.
    of_r.cancelled().await;
    of_c.granted().await;
    scene.is(&["a shares k", "c shares m"], &["w", "b"]).await;
    of_w.cancelled().await;
    of_b.granted().await;
    scene.is(&["a shares k", "b shares [a, l]", "c shares m"], &[]).await;
    // Both go on.
    for actor in [a, b, c] {
        actor.ends().await;
    }
    w.gets(exclusive("k")).await;
    r.gets(exclusive("l")).await;
}

pub(super) async fn a_cancellation_that_meets_the_grant_loses_neither(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, w, b) = (scene.actor("a").await, scene.actor("w").await, scene.actor("b").await);
    for _ in 0..20 {
        a.locks(exclusive("k")).await;
        let of_w = scene.waits(&w, exclusive("[j,l]")).await;
        let of_b = scene.waits(&b, exclusive("k")).await;
        if let ((), Some(outcome)) = tokio::join!(a.unlocks("k"), of_w.cancelled_or_over()) {
            outcome.expect("no other conflicted with it");
            w.unlocks("[j,l]").await;
        }
        of_b.granted().await;
        b.unlocks("k").await;
    }
    scene.reaches(&[], &[]).await;
    w.gets(exclusive("k")).await;
}
