//! [`Sketch`]: which keys have a counter. Pure: time and hashes are arguments.

use std::time::Duration;

use hashbrown::HashTable;

use super::panes::{LastMinute, LastTenMinutes, Pane};
use super::{EndedWait, HotCounts, HotKey, HotWindow};
use crate::clock::Time;
use crate::id::TableRef;
use crate::key::LockItem;

/// The time after which a wait weighs half as much.
pub(super) const HALF_LIFE: Duration = Duration::from_secs(600);

/// The half-lives after which the weights are scaled down, so that none becomes infinite.
const RESCALE_AFTER: f64 = 64.0;

/// A bounded number of counters: see the module above for the algorithm and its bounds.
///
/// # Implementation details
/// - Weights are those of the *landmark*, a time in the past: a wait adds its microseconds times 2
///   to the number of half-lives since then. So a wait changes one weight, and the decay none.
/// - The counters stand in a binary heap by weight, the smallest at the top. A weight only grows,
///   so a counter only moves down.
#[derive(Debug)]
pub(super) struct Sketch {
    counters_max: usize,
    landmark: Time,
    counters: Vec<Counter>,
    /// Counters as a heap: no parent weighs more than its children.
    heap: Vec<u32>,
    /// Counters by the hash of their key.
    index: HashTable<u32>,
}

#[derive(Debug)]
pub(super) struct Counter {
    hash: u64,
    table: TableRef,
    pub(super) item: LockItem,
    /// What its waits weigh, and the error. Both as of the landmark.
    weight: f64,
    error: f64,
    /// Every wait for the key since then is in the panes.
    since: Time,
    /// Its place in the heap.
    place: usize,
    minute: LastMinute,
    ten_minutes: LastTenMinutes,
    /// The end of its last wait.
    last: Time,
}

impl Sketch {
    /// At least one counter.
    pub(super) fn new(counters_max: usize) -> Self {
        Self {
            counters_max: counters_max.max(1),
            landmark: Time::ZERO,
            counters: Vec::new(),
            heap: Vec::new(),
            index: HashTable::new(),
        }
    }

    /// Counts a wait. `hash` is that of its key.
    pub(super) fn note(&mut self, hash: u64, wait: &EndedWait<'_>) {
        self.rescale(wait.at);
        // A wait of no time is one, too.
        let micros = u64::try_from(wait.waited.as_micros()).unwrap_or(u64::MAX).max(1);
        let weight = micros as f64 * scale(self.landmark, wait.at);
        let Self { counters, index, .. } = self;
        let found = index.find(hash, |at| counters[*at as usize].is_of(hash, wait)).copied();
        let at = match found {
            Some(at) => at as usize,
            None => self.admit(hash, wait),
        };
        let counter = &mut self.counters[at];
        counter.weight += weight;
        counter.last = counter.last.max(wait.at);
        counter.minute.note(micros, wait.at);
        counter.ten_minutes.note(micros, wait.at);
        let place = counter.place;
        self.sink(place);
    }

    /// Gives a key a counter: a new one, or that with the smallest weight.
    fn admit(&mut self, hash: u64, wait: &EndedWait<'_>) -> usize {
        let counter = |weight, since, place| Counter {
            hash,
            table: wait.table.clone(),
            item: wait.item.clone(),
            weight,
            error: weight,
            since,
            place,
            minute: LastMinute::default(),
            ten_minutes: LastTenMinutes::default(),
            last: wait.at,
        };
        let at = if self.counters.len() < self.counters_max {
            // No key has lost its counter so far, so this one never had one.
            self.counters.push(counter(0.0, Time::ZERO, self.heap.len()));
            self.heap.push(self.counters.len() as u32 - 1);
            self.rise(self.heap.len() - 1);
            self.counters.len() - 1
        } else {
            let at = self.heap[0] as usize;
            let least = &self.counters[at];
            if let Ok(entry) = self.index.find_entry(least.hash, |slot| *slot as usize == at) {
                entry.remove();
            }
            self.counters[at] = counter(least.weight, wait.at, 0);
            at
        };
        let counters = &self.counters;
        self.index.insert_unique(hash, at as u32, |slot| counters[*slot as usize].hash);
        at
    }

    /// Moves the landmark if weights have become large. Their order stays.
    fn rescale(&mut self, now: Time) {
        let half_lives = half_lives(self.landmark, now);
        if half_lives < RESCALE_AFTER {
            return;
        }
        // After a long time without a wait this is 0: nothing is left of the weights.
        let factor = (-half_lives).exp2();
        for counter in &mut self.counters {
            (counter.weight, counter.error) = (counter.weight * factor, counter.error * factor);
        }
        self.landmark = now;
    }

    /// Moves a counter up in the heap, to its place.
    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.weight_at(place) < self.weight_at((place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
    }

    /// Moves a counter down in the heap, to its place.
    fn sink(&mut self, mut place: usize) {
        loop {
            let children = 2 * place + 1..self.heap.len().min(2 * place + 3);
            let lighter = children.min_by(|a, b| self.weight_at(*a).total_cmp(&self.weight_at(*b)));
            match lighter.filter(|child| self.weight_at(*child) < self.weight_at(place)) {
                Some(child) => {
                    self.swap(place, child);
                    place = child;
                }
                None => return,
            }
        }
    }

    fn weight_at(&self, place: usize) -> f64 {
        self.counters[self.heap[place] as usize].weight
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for place in [a, b] {
            self.counters[self.heap[place] as usize].place = place;
        }
    }

    /// The lines of the keys with waits in `window`, of one table if `table` is given: at most
    /// `most`, those for which calls waited longest.
    pub(super) fn list(
        &self,
        table: Option<&TableRef>,
        window: HotWindow,
        most: usize,
        now: Time,
    ) -> Vec<HotKey> {
        let wanted =
            self.counters.iter().filter(|counter| table.is_none_or(|of| *of == counter.table));
        let mut ranked: Vec<(Pane, &Counter)> =
            wanted.map(|counter| (counter.sum(window, now), counter)).collect();
        ranked.retain(|(sum, _)| sum.waits > 0);
        ranked.sort_unstable_by_key(|(sum, _)| std::cmp::Reverse((sum.waited, sum.waits)));
        ranked.truncate(most);
        ranked.into_iter().map(|(_, counter)| counter.line(self.landmark, now)).collect()
    }

    /// The counters, each with its weight and its error as of `now`, in microseconds.
    #[cfg(test)]
    pub(super) fn weights(&self, now: Time) -> impl Iterator<Item = (&Counter, f64, f64)> {
        let scale = scale(self.landmark, now);
        let weights = move |counter: &Counter| (counter.weight / scale, counter.error / scale);
        self.counters.iter().map(move |counter| (counter, weights(counter).0, weights(counter).1))
    }

    /// Panics unless the heap and the index are those of the counters.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.counters.len() <= self.counters_max);
        assert_eq!((self.heap.len(), self.index.len()), (self.counters.len(), self.counters.len()));
        for (at, counter) in (0..).zip(&self.counters) {
            assert_eq!(self.heap[counter.place], at);
            assert!(self.weight_at(counter.place.saturating_sub(1) / 2) <= counter.weight);
            assert!(self.index.find(counter.hash, |slot| *slot == at).is_some());
        }
    }
}

impl Counter {
    fn is_of(&self, hash: u64, wait: &EndedWait<'_>) -> bool {
        self.hash == hash && self.item == *wait.item && self.table == *wait.table
    }

    fn sum(&self, window: HotWindow, now: Time) -> Pane {
        match window {
            HotWindow::Minute => self.minute.sum(now),
            HotWindow::TenMinutes => self.ten_minutes.sum(now),
        }
    }

    fn line(&self, landmark: Time, now: Time) -> HotKey {
        let counts = |window, begin| {
            let Pane { waits, waited, longest } = self.sum(window, now);
            let missed = match self.since <= begin {
                true => Duration::ZERO,
                // A wait of the window is not older than the window, and has decayed no further
                // since: so much was missed if all of the error is that old.
                false => micros(self.error / scale(landmark, begin)),
            };
            HotCounts {
                waits,
                waited: Duration::from_micros(waited),
                longest: Duration::from_micros(longest),
                missed,
            }
        };
        HotKey {
            table: self.table.clone(),
            item: self.item.clone(),
            minute: counts(HotWindow::Minute, LastMinute::begin(now)),
            ten_minutes: counts(HotWindow::TenMinutes, LastTenMinutes::begin(now)),
            last: now.since(self.last),
            waiting: 0,
        }
    }
}

/// The number of half-lives from the landmark, which may be negative, to a time.
fn half_lives(landmark: Time, at: Time) -> f64 {
    let seconds = at.since(landmark).as_secs_f64() - landmark.since(at).as_secs_f64();
    seconds / HALF_LIFE.as_secs_f64()
}

/// How much more than at the landmark a wait weighs that ended at this time.
fn scale(landmark: Time, at: Time) -> f64 {
    half_lives(landmark, at).exp2()
}

/// So many microseconds, rounded up.
fn micros(of: f64) -> Duration {
    // The cast saturates.
    Duration::from_micros(of.ceil() as u64)
}
