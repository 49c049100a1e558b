//! A sketch against exact counts of every wait, and stripes against one another.

use proptest::prelude::*;

use super::panes::{LastMinute, LastTenMinutes};
use super::sketch::{Counter, HALF_LIFE};
use super::*;
use crate::key::{Key, KeyRange};

fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

fn row(number: u64) -> LockItem {
    LockItem::Row(Key::new(format!("key {number}")).expect("a key"))
}

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

/// Every wait there was: the key, its end and its time in microseconds.
#[derive(Debug, Default)]
struct Exact(Vec<(u64, Time, u64)>);

impl Exact {
    fn of(&self, key: u64) -> impl Iterator<Item = (Time, u64)> {
        self.0.iter().filter(move |wait| wait.0 == key).map(|(_, at, waited)| (*at, *waited))
    }

    /// The decayed wait time of the waits.
    fn decayed(waits: impl Iterator<Item = (Time, u64)>, now: Time) -> f64 {
        let age = |at| now.since(at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        waits.map(|(at, waited)| waited as f64 * (-age(at)).exp2()).sum()
    }

    /// The number of waits since `begin`, their sum and the longest.
    fn since(&self, key: u64, begin: Time) -> (u64, u64, u64) {
        let waits = self.of(key).filter(|(at, _)| *at >= begin).map(|(_, waited)| waited);
        waits
            .fold((0, 0, 0), |(n, sum, longest), waited| (n + 1, sum + waited, longest.max(waited)))
    }
}

/// Compares the counts of a window.
fn compare(counts: &HotCounts, exact: (u64, u64, u64)) -> Result<(), TestCaseError> {
    let micros = |time: Duration| time.as_micros() as u64;
    let (waits, waited, longest) = exact;
    let missed = micros(counts.missed);
    prop_assert!(counts.waits <= waits && micros(counts.longest) <= longest);
    let sum = micros(counts.waited);
    // The weights are rounded.
    prop_assert!(sum <= waited && waited <= sum + missed + 1, "{counts:?} of {exact:?}");
    if missed == 0 {
        prop_assert_eq!((counts.waits, sum, micros(counts.longest)), exact);
    }
    Ok(())
}

proptest! {
    /// The bounds of the module's head, and those of each line. Few keys take turns with many.
    #[test]
    fn a_sketch_is_within_its_bounds_of_the_exact_counts(
        counters in 1usize..12,
        waits in proptest::collection::vec(
            (prop_oneof![0u64..4, 0u64..40], 0u64..3_000_000, prop_oneof![0u64..900, 0u64..90_000]),
            1..400,
        ),
        idle_hours in prop_oneof![Just(0u64), 1u64..2_000],
    ) {
        let (mut sketch, mut exact, mut now) = (Sketch::new(counters), Exact::default(), at(0));
        let (t, half) = (table("t"), waits.len() / 2);
        for (number, (key, micros, pause)) in waits.into_iter().enumerate() {
            // The landmark moves once.
            let idle = if number == half { idle_hours * 3_600_000 } else { 0 };
            now = now + Duration::from_millis(pause + idle);
            let (item, waited) = (row(key), Duration::from_micros(micros));
            // Two keys share each hash.
            sketch.note(key / 2, &EndedWait { table: &t, item: &item, waited, at: now });
            exact.0.push((key, now, micros.max(1)));
        }
        sketch.check();
        let all = Exact::decayed(exact.0.iter().map(|(_, at, waited)| (*at, *waited)), now);
        let error_max = all / counters as f64;
        let near = |a: f64, b: f64| a <= b * (1.0 + 1e-9) + 1e-6;
        let mut with_counters = Vec::new();
        for (counter, weight, error) in sketch.weights(now) {
            let key = (0..40).find(|key| row(*key) == counter.item).expect("a key of the test");
            let true_weight = Exact::decayed(exact.of(key), now);
            prop_assert!(near(true_weight, weight), "{weight} is less than {true_weight}");
            prop_assert!(near(weight - error, true_weight), "{weight} - {error}: {true_weight}");
            prop_assert!(near(error, error_max), "{error} is more than {error_max}");
            with_counters.push(key);
        }
        for key in (0..40).filter(|key| !with_counters.contains(key)) {
            let weight = Exact::decayed(exact.of(key), now);
            prop_assert!(near(weight, error_max), "{key} has no counter: {weight} of {all}");
        }
        for window in [HotWindow::Minute, HotWindow::TenMinutes] {
            let lines = sketch.list(None, window, usize::MAX, now);
            prop_assert!(lines.is_sorted_by_key(|line| std::cmp::Reverse(line.rank(window))));
            for line in lines {
                let key = (0..40).find(|key| row(*key) == line.item).expect("a key of the test");
                compare(&line.minute, exact.since(key, LastMinute::begin(now)))?;
                compare(&line.ten_minutes, exact.since(key, LastTenMinutes::begin(now)))?;
                let last = exact.of(key).map(|(at, _)| at).max().expect("it waited");
                prop_assert_eq!(line.last, now.since(last));
            }
        }
    }
}

fn note(keys: &HotKeys, table: &TableRef, item: &LockItem, ms: u64, end: Time) {
    keys.note(&EndedWait { table, item, waited: Duration::from_millis(ms), at: end });
}

#[test]
fn the_hottest_keys_come_first_whatever_stripe_they_are_in_and_by_table_if_one_is_named() {
    let keys = HotKeys::new(1_024, 7);
    assert_eq!(keys.stripes.len(), STRIPES_MAX);
    let (t, u) = (table("t"), table("u"));
    for number in 0..200 {
        note(&keys, &t, &row(number), number + 1, at(1_000));
    }
    let range = LockItem::Range(KeyRange::whole_table());
    note(&keys, &u, &range, 150, at(1_000));
    // A wait that ended before the last minute is one of the last ten.
    note(&keys, &u, &row(3), 5_000, at(1_000));
    note(&keys, &u, &row(3), 1, at(200_000));
    let items = |table, window, most| -> Vec<(LockItem, u64)> {
        let lines = keys.list(table, window, most, at(200_000)).into_iter();
        lines.map(|line| (line.item.clone(), line.counts(window).waits)).collect()
    };
    assert_eq!(items(None, HotWindow::TenMinutes, 3), [(row(3), 2), (row(199), 1), (row(198), 1)]);
    assert_eq!(items(Some(&u), HotWindow::TenMinutes, 9), [(row(3), 2), (range, 1)]);
    assert_eq!(items(None, HotWindow::Minute, 9), [(row(3), 1)]);
    assert_eq!(keys.list(None, HotWindow::TenMinutes, 999, at(200_000)).len(), 202);
    assert!(keys.list(None, HotWindow::TenMinutes, 999, at(2_000_000)).is_empty());
}

#[test]
fn the_number_of_counters_is_bounded_by_the_setting_and_zero_counts_nothing() {
    for (keys_max, least, most) in [(0, 0, 0), (1, 1, 1), (33, 33, 33), (1_024, 1_024, 1_024)] {
        let keys = HotKeys::new(keys_max, 3);
        for number in 0..40_000 {
            note(&keys, &table("t"), &row(number), 1, at(number));
        }
        let count = keys.list(None, HotWindow::TenMinutes, usize::MAX, at(40_000)).len();
        assert!((least..=most).contains(&count), "{count} counters of {keys_max}");
    }
}

#[test]
fn a_key_that_is_much_waited_for_keeps_its_counter_among_very_many_others_and_is_exact() {
    let (keys, t, hot) = (HotKeys::new(64, 11), table("t"), row(u64::MAX));
    for number in 0..50_000 {
        note(&keys, &t, &row(number), 1, at(number));
        if number % 100 == 0 {
            note(&keys, &t, &hot, 200, at(number));
        }
    }
    let line = &keys.list(None, HotWindow::TenMinutes, 1, at(50_000))[0];
    assert_eq!((&line.item, line.ten_minutes.waits), (&hot, 500));
    assert_eq!(
        (line.ten_minutes.waited, line.ten_minutes.missed),
        (Duration::from_secs(100), Duration::ZERO)
    );
}

#[test]
fn a_counter_takes_as_much_memory_as_the_setting_says() {
    // With its places in the heap and in the index.
    let bytes = size_of::<Counter>() + 4 + 5;
    assert!((500..700).contains(&bytes), "{bytes}: correct `hot_keys_max`");
}
