//! The locks of a session that is over.

use std::time::Duration;

use tokio::time::Instant;

use super::fixture::ServiceFixture;
use super::kit::{Scene, Variations as _, exclusive, refused, shared, table_named};
use crate::allocator::CommitWindow;
use crate::error::ErrorKind;

/// The shortest there is.
const TTL: Duration = Duration::from_secs(1);

pub(super) async fn a_session_that_is_closed_gives_everything_up(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let a = scene.actor("a").await;
    let sibling = a.sibling("sibling");
    let (b, c) = (scene.actor("b").await, scene.actor("c").await);
    a.gets(exclusive("k")).await;
    sibling.gets(shared("[m,p]")).await;
    let of_b = scene.waits(&b, exclusive("k")).await;
    let of_c = scene.waits(&c, exclusive("n")).await;
    // One of its calls waits, too.
    let of_sibling = scene.waits(&sibling, exclusive("k")).await;
    a.closes().await;
    of_sibling.refused(ErrorKind::SessionLost).await;
    of_b.granted().await;
    of_c.granted().await;
    scene.is(&["b holds k", "c holds n"], &[]).await;
    a.fails(exclusive("x"), ErrorKind::SessionLost).await;
}

pub(super) async fn a_silent_session_gives_everything_up_after_its_ttl(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.with_ttl("a", Some(TTL), false).await, scene.actor("b").await);
    let sibling = a.sibling("sibling");
    a.gets(exclusive("k")).await;
    sibling.gets(shared("[l,m)")).await;
    let before = Instant::now();
    let of_b = scene.waits(&b, exclusive("k")).await;
    a.session.fall_silent().await;
    let (lost, next) = tokio::join!(a.session.lost(), of_b.granted());
    // It was last renewed before it fell silent, a third of the TTL at most.
    assert!(before.elapsed() >= TTL / 2, "given away after {:?}", before.elapsed());
    assert_eq!(lost.kind(), ErrorKind::SessionLost);
    assert!(next.waited.is_some());
    scene.is(&["b holds k"], &[]).await;
    a.fails(exclusive("x"), ErrorKind::SessionLost).await;
}

pub(super) async fn a_lost_transaction_that_validates_cannot_commit_once_its_locks_are_given_away(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.with_ttl("a", Some(TTL), true).await, scene.actor("b").await);
    let before = a.gets(exclusive("k")).await;
    let request = a.commit(&[&before]);
    fixture.begin_commit(&request).await.expect("it may still");
    fixture.finish_commit(request.txn, request.attempt).await.expect("it was admitted");
    let of_b = scene.waits(&b, exclusive("k")).await;
    a.session.fall_silent().await;
    let next = of_b.granted().await;
    assert!(next.token > before.token);
    assert!(next.history_unknown, "it may have committed at an unknown time (C5)");
    // Its client was only asleep, knows of nothing, and goes on: now, and when the service has
    // forgotten the transaction.
    let c = scene.actor("c").await;
    b.ends().await;
    for _ in 0..10 {
        refused(
            "a commit after its locks went (C4)",
            fixture.begin_commit(&request).await,
            ErrorKind::CannotCommit,
        );
        c.gets(exclusive("k").of(&table_named("u"))).await;
        c.unlocks_of(&table_named("u"), "k").await;
    }
}

pub(super) async fn a_commit_in_flight_keeps_the_locks_of_a_lost_session(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (silent, closed) =
        (scene.with_ttl("silent", Some(TTL), true).await, scene.validating("closed").await);
    let (b, c) = (scene.actor("b").await, scene.actor("c").await);
    let grants = [silent.gets(exclusive("k")).await, closed.gets(exclusive("l")).await];
    let of_b = scene.waits(&b, exclusive("k")).await;
    let of_c = scene.waits(&c, exclusive("l")).await;
    let mut admitted = Vec::new();
    for (actor, grant, most) in [(&silent, &grants[0], 3 * TTL), (&closed, &grants[1], TTL)] {
        let mut request = actor.commit(&[grant]);
        request.window = CommitWindow { least: most / 2, most };
        let before = Instant::now();
        let commit_before = fixture.begin_commit(&request).await.expect("the session is alive");
        assert!(commit_before >= request.window.least && commit_before <= request.window.most);
        admitted.push((before, commit_before));
    }
    silent.session.fall_silent().await;
    closed.closes().await;
    for (call, (before, commit_before)) in [(of_c, admitted[1]), (of_b, admitted[0])] {
        call.granted().await;
        assert!(
            before.elapsed() >= commit_before,
            "given away while its write could land: {:?}",
            before.elapsed()
        );
    }
    let late = silent.commit(&[&grants[0]]);
    refused(
        "a commit after its locks went (C4)",
        fixture.begin_commit(&late).await,
        ErrorKind::CannotCommit,
    );
}

pub(super) async fn a_snapshot_older_than_a_lost_holder_learns_that_history_is_unknown(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.with_ttl("a", Some(TTL), false).await, scene.actor("b").await);
    a.gets(exclusive("k")).await;
    let of_b = scene.waits(&b, exclusive("k")).await;
    let before = Instant::now();
    a.session.fall_silent().await;
    assert!(of_b.granted().await.history_unknown, "it waited for the one that was lost");
    b.ends().await;
    // Everybody here begins long after that; what counts is when the snapshot was begun.
    let mut known = false;
    for round in 0..50 {
        let (old, new) =
            (scene.actor(&format!("old{round}")).await, scene.actor(&format!("new{round}")).await);
        let granted = old.gets(shared("k").with_snapshot(before.elapsed())).await;
        assert!(granted.history_unknown, "its snapshot was begun before the lost one's locks went");
        known = !new.gets(shared("k").with_snapshot(Duration::ZERO)).await.history_unknown;
        if known {
            break;
        }
        // The less time has passed since, the less may a request be delayed to be sure.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(known, "a snapshot that was begun later shows everything");
}

pub(super) async fn a_ttl_that_cannot_be_renewed_in_time_is_refused(fixture: &dyn ServiceFixture) {
    for ttl in [Duration::from_millis(5), Duration::from_millis(999), Duration::from_secs(3_601)] {
        let opened = fixture.session("x", Some(ttl)).await.map(drop);
        refused(&format!("a TTL of {ttl:?} (P1)"), opened, ErrorKind::InvalidArgument);
    }
}
