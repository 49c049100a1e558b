//! Every interleaving of small models of a [`GuardedMap`].

use ::loom::sync::Arc;
use ::loom::sync::atomic::{AtomicUsize, Ordering};
use ::loom::thread;

use super::GuardedMap;

#[test]
fn lookups_of_what_was_never_seen_and_inserts_leave_exactly_what_was_inserted() {
    ::loom::model(|| {
        let map: Arc<GuardedMap<(u8, u8), u8>> = Arc::new(GuardedMap::new());
        let writer = Arc::clone(&map);
        let writer = thread::spawn(move || {
            writer.upsert((1, 1), || 7, |_| ());
            writer.upsert((1, 2), || 8, |_| ());
        });
        // The outage: validations of tables of one group, never seen before, beside inserts into
        // that group.
        let seen = map.read(&(1, 2), |value| value.copied());
        assert!(seen.is_none_or(|value| value == 8), "a value is seen whole or not at all");
        assert_eq!(map.read(&(2, 1), |value| value.copied()), None);
        assert_eq!(map.update_existing(&(2, 2), |value| *value += 1), None);
        writer.join().expect("no panic");
        assert_eq!(map.len(), 2, "a lookup created an entry");
        assert_eq!(map.read(&(1, 1), |value| value.copied()), Some(7));
    });
}

#[test]
fn of_two_who_insert_one_key_one_creates_it_and_no_update_is_lost() {
    ::loom::model(|| {
        let map: Arc<GuardedMap<u8, u8>> = Arc::new(GuardedMap::new());
        let made = Arc::new(AtomicUsize::new(0));
        let insert = |map: &GuardedMap<u8, u8>, made: &AtomicUsize| {
            map.upsert(
                1,
                || {
                    made.fetch_add(1, Ordering::Relaxed);
                    0
                },
                |value| *value += 1,
            )
        };
        let other = (Arc::clone(&map), Arc::clone(&made));
        let other = thread::spawn(move || insert(&other.0, &other.1));
        insert(&map, &made);
        other.join().expect("no panic");
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert_eq!(map.read(&1, |value| value.copied()), Some(2));
    });
}

#[test]
fn what_was_replaced_meanwhile_is_not_removed() {
    ::loom::model(|| {
        let map: Arc<GuardedMap<u8, u8>> = Arc::new(GuardedMap::new());
        map.upsert(1, || 0, |_| ());
        let other = Arc::clone(&map);
        let cleaner = thread::spawn(move || other.remove_if(&1, |value| *value == 0).is_some());
        let refilled = map.update_existing(&1, |value| *value = 5).is_some();
        let removed = cleaner.join().expect("no panic");
        assert_ne!(refilled, removed, "either it was empty and went, or it was refilled and stays");
        assert_eq!(map.read(&1, |value| value.is_some()), refilled);
    });
}
