//! The order in which a call takes its items: a covering item comes first, so that the items that
//! it covers add nothing. It is the order of the lock engine.

use std::cmp::Reverse;
use std::ops::Bound;

use lockservice_core::LockItem;

/// The items in their order, each once.
pub(super) fn in_order(mut items: Vec<LockItem>) -> Vec<LockItem> {
    items.sort_by(|a, b| rank(a).cmp(&rank(b)));
    items.dedup();
    items
}

/// A row comes before a range of that row alone.
fn rank(item: &LockItem) -> impl Ord {
    let start = match item.start() {
        Bound::Unbounded => (None, false),
        Bound::Included(key) => (Some(key), false),
        Bound::Excluded(key) => (Some(key), true),
    };
    let end = match item.end() {
        Bound::Unbounded => (true, None, false),
        Bound::Included(key) => (false, Some(key), true),
        Bound::Excluded(key) => (false, Some(key), false),
    };
    (start, Reverse(end), matches!(item, LockItem::Range(_)))
}

#[cfg(test)]
mod tests {
    use lockservice_core::{Key, KeyRange};

    use super::*;

    #[test]
    fn an_item_that_covers_another_comes_before_it() {
        let key = |text: &str| Key::new(text).expect("a key");
        let bounds = |text| [Bound::Included(key(text)), Bound::Excluded(key(text))];
        let mut items: Vec<_> = ["a", "b", "c"].map(|row| LockItem::Row(key(row))).into();
        let ends: Vec<_> = [Bound::Unbounded]
            .into_iter()
            .chain(["a", "b", "c"].into_iter().flat_map(bounds))
            .collect();
        for start in &ends {
            for end in &ends {
                items.extend(KeyRange::new(start.clone(), end.clone()).map(LockItem::Range));
            }
        }
        let count = items.len();
        items.extend(items.clone());
        let items = in_order(items);
        assert_eq!(items.len(), count, "each once");
        for (n, item) in items.iter().enumerate() {
            for later in &items[n + 1..] {
                assert!(!later.covers(item) || item.covers(later), "{later} before {item}");
            }
        }
        let of_row = LockItem::Range(
            KeyRange::new(Bound::Included(key("b")), Bound::Included(key("b"))).expect("a range"),
        );
        let at = |item: &LockItem| items.iter().position(|other| other == item);
        assert!(at(&LockItem::Row(key("b"))) < at(&of_row));
    }
}
