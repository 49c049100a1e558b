//! Locks that are shared with some, skipped, made weaker, or given up in part.

use super::fixture::ServiceFixture;
use super::kit::{Scene, Variations as _, exclusive, shared, update};
use crate::error::ErrorKind;
use crate::id::CommitTimestamp;
use crate::key::LockMode;

pub(super) async fn an_update_lock_lets_sharers_in_and_keeps_others_that_may_write_out(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b, c) = (scene.actor("a").await, scene.actor("b").await, scene.actor("c").await);
    a.gets(shared("k")).await;
    let of_b = b.gets(update("k")).await;
    c.may_not(update("k")).await;
    c.may_not(exclusive("k")).await;
    c.gets(shared("k [j,l]")).await;
    // The upgrade waits for the sharers.
    let upgrade = scene.waits(&b, exclusive("k")).await;
    c.ends().await;
    scene.is(&["a shares k", "b updates k"], &["b"]).await;
    a.ends().await;
    assert!(upgrade.granted().await.token > of_b.token);
    scene.is(&["b holds k"], &[]).await;
}

pub(super) async fn a_downgrade_lets_in_who_is_compatible_then(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b, c) = (scene.actor("a").await, scene.actor("b").await, scene.actor("c").await);
    let granted = a.gets(exclusive("k [p,q]")).await;
    let of_b = scene.waits(&b, shared("k")).await;
    let of_c = scene.waits(&c, update("p")).await;
    a.downgrades("k z", LockMode::Update).await;
    of_b.granted().await;
    scene.is(&["a holds [p, q]", "a updates k", "b shares k"], &["c"]).await;
    a.downgrades("[p,q]", LockMode::Shared).await;
    of_c.granted().await;
    scene.is(&["a shares [p, q]", "a updates k", "b shares k", "c updates p"], &[]).await;
    assert!(scene.held_by(&a).await.iter().all(|(_, _, token)| *token == granted.token));
}

pub(super) async fn a_roll_back_to_a_savepoint_leaves_what_was_held_at_it(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    let empty = a.sets_a_savepoint().await;
    a.gets(exclusive("k")).await;
    a.gets(shared("s")).await;
    let first = a.sets_a_savepoint().await;
    a.gets(exclusive("l [p,q]")).await;
    a.gets(exclusive("s")).await;
    let second = a.sets_a_savepoint().await;
    a.gets(exclusive("m")).await;
    let of_b = scene.waits(&b, shared("l")).await;
    a.goes_back_to(second).await;
    scene.is(&["a holds [p, q]", "a holds k", "a holds l", "a holds s"], &["b"]).await;
    a.goes_back_to(first).await;
    of_b.granted().await;
    scene.is(&["a holds k", "a shares s", "b shares l"], &[]).await;
    // It can be used again.
    a.gets(exclusive("n")).await;
    a.goes_back_to(first).await;
    scene.is(&["a holds k", "a shares s", "b shares l"], &[]).await;
    a.goes_back_to(empty).await;
    scene.is(&["b shares l"], &[]).await;
}

pub(super) async fn rows_that_are_not_free_are_skipped_and_named(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b, c) = (scene.actor("a").await, scene.actor("b").await, scene.actor("c").await);
    a.gets(exclusive("j1 [j4,j5]")).await;
    let of_b = scene.waits(&b, exclusive("j1 j2")).await;
    let grant = c.locks(exclusive("j1 j2 j3 j4").skip_locked()).await;
    let skipped: Vec<String> = grant.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(skipped, ["j1", "j4"]);
    assert!(grant.newly_locked && grant.waited.is_none() && grant.conflict.is_some());
    scene.is(&["a holds [j4, j5]", "a holds j1", "c holds j2", "c holds j3"], &["b"]).await;
    let grant = c.locks(exclusive("j1").skip_locked()).await;
    assert!(!grant.newly_locked && grant.skipped.len() == 1, "{grant:?}");
    c.fails(exclusive("[j1,j2]").skip_locked(), ErrorKind::InvalidArgument).await;
    c.ends().await;
    a.ends().await;
    of_b.granted().await;
}

pub(super) async fn a_changed_definition_is_known_to_waiters_and_to_later_holders(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b, c) = (scene.actor("a").await, scene.actor("b").await, scene.actor("c").await);
    let ts = |ts| Some(CommitTimestamp::new(ts));
    a.gets(exclusive("k")).await;
    let of_b = scene.waits(&b, exclusive("k")).await;
    a.commits_a_definition_at(7).await;
    let granted = of_b.granted().await;
    assert!(granted.prev_definition_changed, "{granted:?}");
    assert_eq!((granted.prev_commit_ts, granted.table_definition_ts), (ts(7), ts(7)));
    let of_c = scene.waits(&c, exclusive("k")).await;
    b.commits_at(9).await;
    let granted = of_c.granted().await;
    assert!(!granted.prev_definition_changed, "{granted:?}");
    assert_eq!((granted.table_commit_ts, granted.table_definition_ts), (ts(9), ts(7)));
}
