//! The transactions that may hold locks together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::fixture::ServiceFixture;
use super::kit::{Scene, Variations as _, exclusive, shared, table_named};
use crate::sync::Mutex;

pub(super) async fn an_exclusive_lock_keeps_all_others_out(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    a.gets(exclusive("k")).await;
    b.may_not(exclusive("k")).await;
    b.may_not(shared("k")).await;
    b.gets(exclusive("l")).await;
    // A waiter comes in as soon as it is free, and not before.
    let waiting = scene.waits(&b, exclusive("k")).await;
    scene.is(&["a holds k", "b holds l"], &["b"]).await;
    a.ends().await;
    waiting.granted().await;
    scene.is(&["b holds k", "b holds l"], &[]).await;
}

pub(super) async fn sharers_hold_together_and_keep_writers_out(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b, w) = (scene.actor("a").await, scene.actor("b").await, scene.actor("w").await);
    a.gets(shared("k")).await;
    b.gets(shared("k")).await;
    w.may_not(exclusive("k")).await;
    a.may_not(exclusive("k")).await;
    let waiting = scene.waits(&w, exclusive("k")).await;
    a.ends().await;
    scene.is(&["b shares k"], &["w"]).await;
    b.ends().await;
    waiting.granted().await;
    scene.is(&["w holds k"], &[]).await;
}

pub(super) async fn the_same_key_in_another_table_is_another_lock(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    let elsewhere = [table_named("u"), crate::TableRef::new("other", "t").expect("names")];
    let here = a.gets(exclusive("(,)")).await;
    for table in elsewhere {
        let there = b.gets(exclusive("(,) k").of(&table)).await;
        assert_eq!(there.bind.table, table);
        assert_ne!(there.bind.id, here.bind.id);
        a.may_not(exclusive("k").of(&table)).await;
    }
    b.may_not(exclusive("k")).await;
}

pub(super) async fn many_at_once_are_never_two_inside(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let inside = Arc::new(AtomicBool::new(false));
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let actor = scene.actor(&format!("a{n}")).await;
        let (inside, tokens) = (Arc::clone(&inside), Arc::clone(&tokens));
        tasks.spawn(async move {
            for round in 0..10 {
                // All of them have the key b in common.
                let what = ["b", "[a,c]", "(,b] x", "a b c", "[b,)"][(n + round) % 5];
                let grant = actor.locks(exclusive(what)).await;
                assert!(!inside.swap(true, SeqCst), "{} has come in beside somebody", actor.name);
                tokens.lock().push(grant.token);
                tokio::task::yield_now().await;
                inside.store(false, SeqCst);
                actor.unlocks(what).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no two met");
    }
    let tokens = tokens.lock();
    assert_eq!(tokens.len(), 80);
    assert!(
        tokens.is_sorted_by(|earlier, later| earlier < later),
        "tokens rise in the order of the grants (F1)"
    );
}
