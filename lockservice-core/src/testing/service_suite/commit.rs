//! Admission of commits on what was locked.

use super::fixture::ServiceFixture;
use super::kit::{Ask as _, Scene, exclusive, refused, table_named};
use crate::error::ErrorKind;
use crate::id::BindVersion;

pub(super) async fn a_commit_is_admitted_on_current_binds_only(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let a = scene.validating("a").await;
    let grants = [a.gets(exclusive("k")).await, a.gets(exclusive("k").of(&table_named("u"))).await];
    let request = a.commit(&[&grants[0], &grants[1]]);
    for _ in 0..2 {
        let commit_before = fixture.begin_commit(&request).await.expect("nothing has changed");
        assert!(!commit_before.is_zero() && commit_before <= request.asked.most);
    }
    for _ in 0..2 {
        fixture.finish_commit(request.txn, request.attempt).await.expect("idempotent");
    }
    let mut stale = request.clone();
    stale.binds[1].version = BindVersion::new(grants[1].bind.version.get() - 1);
    refused("an earlier version (C3)", fixture.begin_commit(&stale).await, ErrorKind::BindChanged);
    let mut unknown = request.clone();
    unknown.binds[0].table = table_named("never");
    refused("a table that was never bound (C3)", fixture.begin_commit(&unknown).await, ErrorKind::BindChanged);
    fixture.begin_commit(&request).await.expect("a refusal changes nothing");
}

pub(super) async fn a_transaction_that_said_it_would_not_validate_is_refused_at_its_commit(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let a = scene.actor("a").await;
    let grant = a.gets(exclusive("k")).await;
    refused("T1", fixture.begin_commit(&a.commit(&[&grant])).await, ErrorKind::CannotCommit);
    scene.is(&["a holds k"], &[]).await;
}
