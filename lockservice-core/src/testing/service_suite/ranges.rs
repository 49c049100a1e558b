//! Conflicts of ranges with rows, and with each other.

use super::fixture::ServiceFixture;
use super::kit::{Scene, exclusive, shared};

pub(super) async fn a_range_and_a_row_exclude_each_other_exactly_where_the_bounds_say(
    fixture: &dyn ServiceFixture,
) {
    // In key order. "b\0" is the first key after "b".
    const KEYS: [&str; 7] = ["a", "b", "b\0", "c", "d", "d\0", "e"];
    // A bound, and the first or the last of the keys inside.
    let starts = [("[b", 1), ("(b", 2), ("(", 0)];
    let ends = [("d]", 4), ("d)", 3), (")", 6)];
    for (start, first) in starts {
        for (end, last) in ends {
            let scene = Scene::new(fixture);
            let range = format!("{start},{end}");
            let (of_range, of_row) = (scene.actor(&range).await, scene.actor("row").await);
            for (n, key) in KEYS.into_iter().enumerate() {
                let inside = (first..=last).contains(&n);
                of_range.gets(exclusive(&range)).await;
                if inside {
                    of_row.may_not(exclusive(key)).await;
                } else {
                    of_row.gets(exclusive(key)).await;
                    of_row.unlocks(key).await;
                }
                of_range.unlocks(&range).await;
                of_row.gets(exclusive(key)).await;
                if inside {
                    of_range.may_not(exclusive(&range)).await;
                } else {
                    of_range.gets(exclusive(&range)).await;
                    of_range.unlocks(&range).await;
                }
                of_row.unlocks(key).await;
            }
            of_range.closes().await;
            of_row.closes().await;
        }
    }
}

pub(super) async fn ranges_exclude_each_other_where_they_share_a_key(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    for (one, other, meet) in [
        ("[a,b]", "[b,c]", true),
        ("[a,b)", "[b,c]", false),
        ("[a,b]", "(b,c]", false),
        ("(a,c)", "(b,d)", true),
        ("(a,b)", "[b,c)", false),
        ("(,b]", "[b,)", true),
        ("(,b)", "[b,)", false),
        ("(,)", "(x,y)", true),
        ("[a,d]", "[b,c]", true),
        // Between "b" and "b\0" there is no key.
        ("[a,b\0)", "(b,c]", false),
        ("[a,b\0]", "(b,c]", true),
    ] {
        for (held, requested) in [(one, other), (other, one)] {
            a.gets(exclusive(held)).await;
            if meet {
                b.may_not(exclusive(requested)).await;
            } else {
                b.gets(exclusive(requested)).await;
                b.unlocks(requested).await;
            }
            a.unlocks(held).await;
        }
    }
}

pub(super) async fn ranges_can_be_shared(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b, c) = (scene.actor("a").await, scene.actor("b").await, scene.actor("c").await);
    a.gets(shared("[a,c]")).await;
    b.gets(shared("[b,d]")).await;
    c.gets(shared("bb")).await;
    // Of the transaction's own locks only those of others are in its way.
    for taken in ["a", "bb", "d", "[c,cc]", "(,)"] {
        c.may_not(exclusive(taken)).await;
    }
    c.gets(exclusive("e (d,f)")).await;
    a.ends().await;
    c.gets(exclusive("a")).await;
    c.may_not(exclusive("bb")).await;
    b.ends().await;
    c.gets(exclusive("bb")).await;
}
