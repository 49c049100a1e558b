//! [`Histogram`]: values in buckets of fixed bounds.

use std::time::Duration;

use super::Counter;

/// Upper bounds of times, in microseconds: from 16 µs to 67 s, each twice the last.
const TIMES: [u64; 23] = {
    let mut bounds = [16; 23];
    let mut at = 1;
    while at < bounds.len() {
        bounds[at] = bounds[at - 1] * 2;
        at += 1;
    }
    bounds
};

/// Upper bounds of parts of a whole, in thousandths.
const PARTS: [u64; 9] = [50, 100, 200, 300, 400, 500, 600, 800, 1_000];

/// Upper bounds of the lengths of cycles.
const LENGTHS: [u64; 8] = [2, 3, 4, 5, 8, 16, 32, 64];

/// Values in buckets, counted by any number of threads.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// The value of a bound, or of the sum, that is 1 in a snapshot.
    one: f64,
    /// One for each bound, and one for what is larger.
    counts: Box<[Counter]>,
    sum: Counter,
}

impl Histogram {
    fn new(bounds: &'static [u64], one: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| Counter::default()).collect();
        Self { bounds, one, counts, sum: Counter::default() }
    }

    /// Of times; a snapshot shows seconds.
    pub fn of_times() -> Self {
        Self::new(&TIMES, 1e6)
    }

    /// Of parts of a whole; a snapshot shows numbers from 0 to 1.
    pub(crate) fn of_parts() -> Self {
        Self::new(&PARTS, 1e3)
    }

    /// Of the lengths of cycles.
    pub(crate) fn of_lengths() -> Self {
        Self::new(&LENGTHS, 1.0)
    }

    fn note(&self, value: u64) {
        self.counts[bucket(self.bounds, value)].add(1);
        self.sum.add(value);
    }

    /// Notes a time, to the microsecond.
    pub fn note_time(&self, time: Duration) {
        let nanos = time.as_nanos().saturating_add(500);
        self.note(u64::try_from(nanos / 1_000).unwrap_or(u64::MAX));
    }

    /// Notes which part of `whole` it is.
    pub(crate) fn note_part(&self, part: Duration, whole: Duration) {
        let thousandths = part.as_nanos().saturating_mul(1_000) / whole.as_nanos().max(1);
        self.note(u64::try_from(thousandths).unwrap_or(u64::MAX));
    }

    /// Adds lengths that were counted elsewhere.
    pub(crate) fn add_lengths(&self, lengths: &Lengths) {
        for (counter, more) in self.counts.iter().zip(lengths.counts) {
            counter.add(more);
        }
        self.sum.add(lengths.sum);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Distribution {
        let bounds = self.bounds.iter().map(|bound| *bound as f64 / self.one);
        let counts = self.counts.iter().map(Counter::get);
        Distribution {
            buckets: bounds.chain([f64::INFINITY]).zip(counts).collect(),
            sum: self.sum.get() as f64 / self.one,
        }
    }
}

fn bucket(bounds: &[u64], value: u64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

/// Lengths of cycles that pure state has counted since it was asked last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lengths {
    counts: [u64; LENGTHS.len() + 1],
    sum: u64,
}

impl Lengths {
    pub(crate) fn note(&mut self, length: usize) {
        self.counts[bucket(&LENGTHS, length as u64)] += 1;
        self.sum += length as u64;
    }
}

/// The values that a histogram has counted.
#[derive(Clone, PartialEq, Debug)]
pub struct Distribution {
    /// The upper bound of each bucket, in rising order, and the number of values in it that are not
    /// in an earlier one. The last bound is infinite. Times are in seconds.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all values.
    pub sum: f64,
}

impl Distribution {
    /// The number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The bounds of the buckets that have values.
    fn filled(histogram: &Histogram) -> Vec<(f64, u64)> {
        let all = histogram.snapshot().buckets;
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_is_not_below_it() {
        let times = Histogram::of_times();
        for micros in [0, 16, 17, 32, 67_108_864, 67_108_865] {
            times.note_time(Duration::from_micros(micros));
        }
        let expected = [(16e-6, 2), (32e-6, 2), (67.108_864, 1), (f64::INFINITY, 1)];
        assert_eq!(filled(&times), expected);
        assert_eq!(times.snapshot().count(), 6);
        assert!((times.snapshot().sum - 134.217_794).abs() < 1e-9, "{}", times.snapshot().sum);
    }

    #[test]
    fn parts_and_lengths_are_counted_in_their_own_units() {
        let parts = Histogram::of_parts();
        parts.note_part(Duration::from_millis(100), Duration::from_secs(1));
        parts.note_part(Duration::from_secs(2), Duration::from_secs(1));
        parts.note_part(Duration::ZERO, Duration::ZERO);
        assert_eq!(filled(&parts), [(0.05, 1), (0.1, 1), (f64::INFINITY, 1)]);
        let (lengths, mut more) = (Histogram::of_lengths(), Lengths::default());
        [2, 2, 9, 1_000].into_iter().for_each(|length| more.note(length));
        lengths.add_lengths(&more);
        assert_eq!(filled(&lengths), [(2.0, 2), (16.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(lengths.snapshot().sum, 1_013.0);
    }
}
