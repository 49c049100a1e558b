//! The content of a grant.

use super::fixture::ServiceFixture;
use super::kit::{Scene, exclusive, item, shared};
use crate::id::{CommitTimestamp, FencingToken};
use crate::key::LockMode;

pub(super) async fn the_next_holder_has_a_larger_token_over_rows_and_ranges(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let mut last = FencingToken::new(0);
    // Each has the key b.
    let mut before = None;
    for (n, what) in
        ["b", "[a,c]", "b", "(,)", "a b", "[b,b]", "(a,b] d", "b"].into_iter().enumerate()
    {
        let next = scene.actor(&n.to_string()).await;
        let spec = || if n % 3 == 2 { shared(what) } else { exclusive(what) };
        let grant = match before.replace(next) {
            None => before.as_ref().expect("just put there").gets(spec()).await,
            Some(holder) => {
                let waiter = before.as_ref().expect("just put there");
                let waiting = scene.waits(waiter, spec()).await;
                holder.ends().await;
                waiting.granted().await
            }
        };
        assert!(grant.token > last, "{what}: {} is not above {last}", grant.token);
        last = grant.token;
    }
}

pub(super) async fn re_entry_returns_the_old_token_and_an_upgrade_a_new_one(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let a = scene.actor("a").await;
    let first = a.gets(shared("k")).await;
    assert!(first.newly_locked);
    let again = a.gets(shared("k")).await;
    assert_eq!((again.token, again.newly_locked), (first.token, false));
    let stronger = a.gets(exclusive("k")).await;
    assert!(stronger.token > first.token && stronger.newly_locked);
    for spec in [shared("k"), exclusive("k")] {
        let again = a.gets(spec).await;
        assert_eq!(
            (again.token, again.newly_locked),
            (stronger.token, false),
            "it holds as much already"
        );
    }
    // What lies in a range is held with it.
    let range = a.gets(exclusive("[m,p]")).await;
    for covered in ["n", "[n,o)", "m p"] {
        let again = a.gets(exclusive(covered)).await;
        assert_eq!((again.token, again.newly_locked), (range.token, false), "{covered}");
    }
    let wider = a.gets(exclusive("n q")).await;
    assert!(wider.token > range.token && wider.newly_locked);
    let held = [("k", stronger.token), ("[m, p]", range.token), ("q", wider.token)];
    let held = held.map(|(item, token)| (item.to_owned(), LockMode::Exclusive, token));
    assert_eq!(scene.held_by(&a).await, held.into());
}

pub(super) async fn a_grant_says_whether_it_waited_for_whom_and_what_was_committed(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b, c) = (scene.actor("a").await, scene.actor("b").await, scene.actor("c").await);
    let free = a.gets(exclusive("k")).await;
    assert_eq!((free.waited, free.conflict, free.prev_commit_ts), (None, None, None));
    let of_b = scene.waits(&b, exclusive("[j,l]")).await;
    let of_c = scene.waits(&c, shared("k")).await;
    a.commits_at(7).await;
    let next = of_b.granted().await;
    assert!(next.waited.is_some());
    assert_eq!(next.conflict, Some((a.id(), item("k"))));
    assert_eq!(
        (next.prev_commit_ts, next.table_commit_ts),
        (Some(CommitTimestamp::new(7)), Some(CommitTimestamp::new(7)))
    );
    // Of all that it waited for the largest counts (C5).
    b.commits_at(5).await;
    let last = of_c.granted().await;
    assert_eq!(
        (last.prev_commit_ts, last.table_commit_ts),
        (Some(CommitTimestamp::new(7)), Some(CommitTimestamp::new(7)))
    );
    c.ends().await;
    let after = scene.actor("d").await.gets(exclusive("k")).await;
    assert_eq!(
        (after.waited, after.prev_commit_ts, after.table_commit_ts),
        (None, None, Some(CommitTimestamp::new(7)))
    );
}
