//! Admission of commits on what was locked.

use std::time::Duration;

use super::fixture::ServiceFixture;
use super::kit::{Scene, Variations as _, exclusive, refused, table_named};
use crate::allocator::{BeginCommit, PresentedBind};
use crate::bind::BindSlot;
use crate::error::ErrorKind;
use crate::id::{BindVersion, CommitAttempt, ServiceId, TableId, TxnId, TxnNumber};

pub(super) async fn a_commit_is_admitted_on_current_binds_only(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let a = scene.validating("a").await;
    let grants = [a.gets(exclusive("k")).await, a.gets(exclusive("k").of(&table_named("u"))).await];
    let request = a.commit(&[&grants[0], &grants[1]]);
    for _ in 0..2 {
        let commit_before = fixture.begin_commit(&request).await.expect("nothing has changed");
        assert!(!commit_before.is_zero() && commit_before <= request.window.most);
    }
    for _ in 0..2 {
        fixture.finish_commit(request.txn, request.attempt).await.expect("idempotent");
    }
    // Each number counts, whether the bind is found by its slot or by its table (C3).
    let good = request.binds[1];
    let wrong = [
        ("version", PresentedBind { version: BindVersion::new(good.version.get() - 1), ..good }),
        ("table", PresentedBind { table: TableId::new(good.table.get() + 1_000_000), ..good }),
        ("table of another bind", PresentedBind { table: request.binds[0].table, ..good }),
        ("owner", PresentedBind { owner: ServiceId::new(good.owner.get() + 1), ..good }),
        ("partition", PresentedBind { partition: 1, ..good }),
    ];
    for (what, bind) in wrong {
        for slot in [bind.slot, request.binds[0].slot, BindSlot::NONE] {
            let binds = vec![request.binds[0], PresentedBind { slot, ..bind }];
            let stale = BeginCommit { binds, ..request.clone() };
            refused(what, fixture.begin_commit(&stale).await, ErrorKind::BindChanged);
        }
    }
    for slot in [request.binds[0].slot, BindSlot::NONE] {
        let binds = vec![request.binds[0], PresentedBind { slot, ..good }];
        let found = BeginCommit { binds, ..request.clone() };
        fixture.begin_commit(&found).await.expect("a slot only says where to look first");
    }
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

pub(super) async fn a_transaction_that_has_ended_or_never_was_is_not_admitted(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    // Older, and alive all the time: the floor of the origin stays below it.
    let old = scene.validating("old").await;
    let kept = old.gets(exclusive("o")).await;
    for committed in [true, false] {
        let a = scene.validating("a").await;
        let grant = a.gets(exclusive("k")).await;
        let request = a.commit(&[&grant]);
        if committed {
            fixture.begin_commit(&request).await.expect("alive");
            fixture.finish_commit(request.txn, request.attempt).await.expect("admitted");
        }
        a.ends().await;
        let mut late = request.clone();
        late.attempt = CommitAttempt::new(2);
        for request in [&request, &late] {
            refused(
                "it has ended (C4)",
                fixture.begin_commit(request).await,
                ErrorKind::CannotCommit,
            );
        }
        a.closes().await;
        refused(
            "so has its session (C4)",
            fixture.begin_commit(&request).await,
            ErrorKind::CannotCommit,
        );
    }
    let mut request = old.commit(&[&kept]);
    fixture.begin_commit(&request).await.expect("it is alive");
    for ahead in [1_000, 1 << 40] {
        request.txn =
            TxnId::new(old.id().origin, TxnNumber::new(old.id().number().get() + ahead), true);
        refused("it never was (C4)", fixture.begin_commit(&request).await, ErrorKind::CannotCommit);
        let response = fixture.cannot_commit(&[request.txn]).await.expect("a response");
        assert_eq!(
            (response.tombstoned, response.committing, response.failed.len()),
            (vec![], vec![], 1)
        );
    }
}

pub(super) async fn a_transaction_reported_as_never_committing_does_not_commit_after_a_goodbye(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    for older in [true, false] {
        let old = scene.validating("old").await;
        old.locks(exclusive("o")).await;
        if !older {
            old.closes().await;
        }
        let a = scene.validating("a").await;
        let grant = a.locks(exclusive("k")).await;
        let request = a.commit(&[&grant]);
        let response = fixture.cannot_commit(&[request.txn]).await.expect("a response");
        assert_eq!(response.tombstoned, [request.txn]);
        a.closes().await;
        let next = scene.actor("next").await;
        next.locks(exclusive("k")).await;
        refused(
            "the next has its row (C4)",
            fixture.begin_commit(&request).await,
            ErrorKind::CannotCommit,
        );
        for who in [next, old] {
            who.closes().await;
        }
    }
}

pub(super) async fn once_a_transaction_was_reported_as_committing_nothing_more_of_it_is_admitted(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let a = scene.validating("a").await;
    let grant = a.gets(exclusive("k")).await;
    let mut request = a.commit(&[&grant]);
    request.window.most = Duration::from_secs(4);
    let first = fixture.begin_commit(&request).await.expect("alive");
    let response = fixture.cannot_commit(&[request.txn]).await.expect("a response");
    assert_eq!(response.committing, [request.txn]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let again = fixture.begin_commit(&request).await.expect("what was admitted stands");
    assert!(
        again <= first - Duration::from_millis(40),
        "it was extended: {first:?}, then {again:?}"
    );
    let mut other = request.clone();
    other.attempt = CommitAttempt::new(2);
    refused("a new attempt (C4)", fixture.begin_commit(&other).await, ErrorKind::CannotCommit);
    fixture.finish_commit(request.txn, request.attempt).await.expect("admitted");
    refused("it is tombstoned (C4)", fixture.begin_commit(&request).await, ErrorKind::CannotCommit);
    let response = fixture.cannot_commit(&[request.txn]).await.expect("a response");
    assert_eq!(response.tombstoned, [request.txn]);
    scene.is(&["a holds k"], &[]).await;
}

pub(super) async fn a_client_that_fell_silent_cannot_keep_its_locks_by_extending_its_commit(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) =
        (scene.with_ttl("a", Some(Duration::from_secs(1)), true).await, scene.actor("b").await);
    let grant = a.gets(exclusive("k")).await;
    let mut request = a.commit(&[&grant]);
    request.window.most = Duration::from_secs(2);
    fixture.begin_commit(&request).await.expect("alive");
    let of_b = scene.waits(&b, exclusive("k")).await;
    a.session.fall_silent().await;
    // Long enough for a hundred times the window, if nothing ends it.
    let mut extended = 0;
    while !of_b.is_over() && extended < 4_000 {
        extended += usize::from(fixture.begin_commit(&request).await.is_ok());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(of_b.is_over(), "a silent client keeps its locks by extending its commit");
    of_b.granted().await;
    refused("its locks went (C4)", fixture.begin_commit(&request).await, ErrorKind::CannotCommit);
}
