//! The end of a service.

use super::fixture::ServiceFixture;
use super::kit::{Scene, exclusive, refused};
use crate::error::ErrorKind;

pub(super) async fn a_stop_notifies_holders_and_waiters_and_admits_nothing(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, w, idle) = (scene.actor("a").await, scene.actor("w").await, scene.actor("idle").await);
    let sibling = a.sibling("sibling");
    a.gets(exclusive("k")).await;
    sibling.gets(exclusive("l")).await;
    idle.gets(exclusive("m")).await;
    idle.unlocks("m").await;
    let of_w = scene.waits(&w, exclusive("k")).await;
    let put_away = async {
        for actor in [&a, &w, &idle] {
            assert_eq!(
                actor.session.lost().await.kind(),
                ErrorKind::ShuttingDown,
                "{}",
                actor.name
            );
        }
        of_w.refused(ErrorKind::ShuttingDown).await;
        // Also what is free, and what is held already.
        idle.fails(exclusive("m"), ErrorKind::ShuttingDown).await;
        a.fails(exclusive("k"), ErrorKind::ShuttingDown).await;
        refused(
            "a new session",
            fixture.session("late", None).await.map(drop),
            ErrorKind::ShuttingDown,
        );
        // What is held stays held until its holder has put its work away.
        scene.is(&["a holds k", "sibling holds l"], &[]).await;
        a.unlocks("k").await;
        scene.is(&["sibling holds l"], &[]).await;
        sibling.ends().await;
        for actor in [&a, &w, &idle] {
            actor.closes().await;
        }
    };
    let (stopped, ()) = tokio::join!(fixture.stop(), put_away);
    assert!(stopped.confirmed && stopped.resigned, "everybody had closed: {stopped:?}");
}

pub(super) async fn after_a_stop_nothing_is_served(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let a = scene.actor("a").await;
    a.gets(exclusive("k")).await;
    let stopped = fixture.stop().await;
    assert!(!stopped.confirmed && !stopped.resigned, "its work may go on (P5): {stopped:?}");
    assert_eq!(a.session.lost().await.kind(), ErrorKind::ShuttingDown);
    a.fails(exclusive("x"), ErrorKind::ShuttingDown).await;
    match fixture.session("late", None).await.map(drop) {
        // A server that is gone says nothing any more.
        Err(e) if matches!(e.kind(), ErrorKind::ShuttingDown | ErrorKind::Unavailable) => {}
        other => panic!("no session is opened after a stop: {other:?}"),
    }
}
