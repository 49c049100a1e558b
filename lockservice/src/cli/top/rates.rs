//! [`Rates`]: how fast the counts of a node grow.

use std::time::Duration;

use lockservice_core::service::Totals;

/// Counts for each second between two readings.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rates {
    pub(super) granted: f64,
    pub(super) refused: f64,
    pub(super) waits: f64,
    /// The wait time that ended, in seconds for each second.
    pub(super) waited: f64,
    pub(super) deadlocks: f64,
}

impl Rates {
    /// The rates between two readings; `None` if no time has passed, or if a count has become
    /// smaller: then it is of another process.
    pub(super) fn between(before: &Totals, after: &Totals, time: Duration) -> Option<Self> {
        let seconds = time.as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let rate = |of: fn(&Totals) -> u64| {
            of(after).checked_sub(of(before)).map(|more| more as f64 / seconds)
        };
        Some(Self {
            granted: rate(|totals| totals.granted)?,
            refused: rate(|totals| totals.refused)?,
            waits: rate(|totals| totals.waits)?,
            waited: after.waited.checked_sub(before.waited)?.as_secs_f64() / seconds,
            deadlocks: rate(|totals| totals.deadlocks)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_for_a_second_and_none_spans_a_restart() {
        let totals = |n: u64| Totals {
            granted: 100 * n,
            refused: 2 * n,
            waits: 10 * n,
            waited: Duration::from_millis(500 * n),
            deadlocks: n,
            ..Totals::default()
        };
        let rates = Rates::between(&totals(1), &totals(5), Duration::from_secs(2));
        let expected =
            Rates { granted: 200.0, refused: 4.0, waits: 20.0, waited: 1.0, deadlocks: 2.0 };
        assert_eq!(rates, Some(expected));
        let smaller = Totals { deadlocks: 0, ..totals(5) };
        assert_eq!(Rates::between(&totals(1), &smaller, Duration::from_secs(2)), None);
        assert_eq!(Rates::between(&totals(1), &totals(5), Duration::ZERO), None);
    }
}
