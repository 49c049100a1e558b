//! The slots of a shard in the order of their keys.
//!
//! The keys are in the slab alone. A slot here takes 4 bytes and what its run has in reserve.

use std::ops::Bound;

use super::slab::Slab;
use crate::key::{Key, KeyRange};

/// The longest run.
const RUN: usize = 128;

/// Slots in runs: none is empty, each is in order, and they follow one another.
#[derive(Debug, Default)]
pub(super) struct Order {
    runs: Vec<Vec<u32>>,
}

impl Order {
    /// Brings slots into order.
    pub(super) fn of(mut slots: Vec<u32>, rows: &Slab) -> Self {
        slots.sort_unstable_by(|a, b| rows.key(*a).cmp(rows.key(*b)));
        Self { runs: slots.chunks(RUN / 2).map(<[u32]>::to_vec).collect() }
    }

    /// The run in which a key is, or would be, and its place there.
    fn find(&self, key: &Key, rows: &Slab) -> (usize, Result<usize, usize>) {
        let starts_up_to = |run: &Vec<u32>| run.first().is_some_and(|slot| rows.key(*slot) <= key);
        let run = self.runs.partition_point(starts_up_to).saturating_sub(1);
        let slots = self.runs.get(run).map_or(&[][..], Vec::as_slice);
        (run, slots.binary_search_by(|slot| rows.key(*slot).cmp(key)))
    }

    /// Adds the slot of a row.
    pub(super) fn insert(&mut self, slot: u32, rows: &Slab) {
        let (mut run, Ok(mut at) | Err(mut at)) = self.find(rows.key(slot), rows);
        if self.runs.is_empty() {
            self.runs.push(Vec::new());
        }
        if self.runs[run].len() == RUN {
            // Rising keys leave full runs behind.
            let is_end = at == RUN && run + 1 == self.runs.len();
            let half = if is_end { RUN } else { RUN / 2 };
            let second = self.runs[run].split_off(half);
            self.runs.insert(run + 1, second);
            if at > half || is_end {
                (run, at) = (run + 1, at - half);
            }
        }
        self.runs[run].insert(at, slot);
    }

    /// Removes the slot of a row, if it is there.
    pub(super) fn remove(&mut self, slot: u32, rows: &Slab) {
        let (run, Ok(at)) = self.find(rows.key(slot), rows) else { return };
        self.runs[run].remove(at);
        if let Some(next) = self.runs.get(run + 1)
            && self.runs[run].len() + next.len() <= RUN / 2
        {
            let mut next = self.runs.remove(run + 1);
            self.runs[run].append(&mut next);
        }
        let left = &mut self.runs[run];
        if left.is_empty() {
            self.runs.remove(run);
        } else if left.len() < left.capacity() / 4 {
            left.shrink_to(2 * left.len());
        }
    }

    /// The slots in a range, in order.
    pub(super) fn within(&self, range: &KeyRange, rows: &Slab) -> Vec<u32> {
        let first = match range.start() {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) | Bound::Excluded(key) => {
                let (run, Ok(at) | Err(at)) = self.find(key, rows);
                (run, at)
            }
        };
        let ends_before = |key: &Key| match range.end() {
            Bound::Unbounded => false,
            Bound::Included(end) => key > end,
            Bound::Excluded(end) => key >= end,
        };
        let runs = self.runs.iter().enumerate().skip(first.0);
        runs.flat_map(|(run, slots)| &slots[if run == first.0 { first.1 } else { 0 }..])
            .copied()
            .skip_while(|slot| !range.contains(rows.key(*slot)) && !ends_before(rows.key(*slot)))
            .take_while(|slot| !ends_before(rows.key(*slot)))
            .collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::slab::Row;
    use super::*;

    fn key(number: u32) -> Key {
        Key::new(number.to_be_bytes()).expect("a key")
    }

    fn bound(random: &mut StdRng) -> Bound<Key> {
        let key = key(random.random_range(0..3_000));
        match random.random_range(0..5) {
            0 => Bound::Unbounded,
            1 | 2 => Bound::Excluded(key),
            _ => Bound::Included(key),
        }
    }

    #[test]
    fn the_slots_in_a_range_are_those_of_a_sorted_map() {
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut rows, mut expected) = (Slab::default(), BTreeMap::new());
            for number in (0..500).map(|at| at * 5) {
                expected.insert(key(number), rows.insert(Row::contended(key(number))));
            }
            let mut order = Order::of(expected.values().rev().copied().collect(), &rows);
            for step in 0..6_000_u32 {
                // Long times in which it grows, and as long ones in which it shrinks; some of them
                // with rising keys.
                let grows = random.random_bool(if step / 1_500 % 2 == 0 { 0.9 } else { 0.1 });
                let number = if seed % 2 == 0 { step } else { random.random_range(0..3_000) };
                match expected.get(&key(number)).copied() {
                    None if grows => {
                        let slot = rows.insert(Row::contended(key(number)));
                        order.insert(slot, &rows);
                        expected.insert(key(number), slot);
                    }
                    Some(slot) if !grows => {
                        order.remove(slot, &rows);
                        order.remove(slot, &rows);
                        rows.remove(slot);
                        expected.remove(&key(number));
                    }
                    _ => {}
                }
                assert!(order.runs.iter().all(|run| (1..=RUN).contains(&run.len())));
                if step % 16 == 0
                    && let Ok(range) = KeyRange::new(bound(&mut random), bound(&mut random))
                {
                    let within = expected.iter().filter(|(key, _)| range.contains(key));
                    let within: Vec<u32> = within.map(|(_, slot)| *slot).collect();
                    assert_eq!(order.within(&range, &rows), within, "seed {seed}, step {step}");
                }
            }
            let reserved: usize = order.runs.iter().map(Vec::capacity).sum();
            assert!(reserved <= 4 * expected.len() + RUN, "{reserved} for {}", expected.len());
        }
    }
}
