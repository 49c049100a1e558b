//! The slots of a shard in the order of their keys, so arranged that a search rarely looks at a key
//! in the slab: each look there misses the caches.
//!
//! It is a B-tree of two levels, with the prefix truncation of Bayer and Unterauer. The slots are
//! in *runs*. Between two runs is a *fence*, a key as short as can be. The keys of a run lie
//! between its fences, so they begin with the bytes that these share. Beside each slot its run has
//! the *head* of the key: the four bytes after the shared ones. A search looks at a key in the slab
//! only if its head is the one that is searched.
//!
//! A slot here takes 8 bytes, and what its run has in reserve.

use std::ops::Bound;

use super::slab::Slab;
use crate::key::{Key, KeyRange};

/// The longest run.
const RUN: usize = 128;

/// Slots in runs. Two runs beside each other have more than half of the longest one in sum.
#[derive(Debug)]
pub(super) struct Order {
    /// One more than fences. A run has the keys from the fence before it on, up to, and without,
    /// the fence behind it.
    runs: Vec<Run>,
    fences: Fences,
}

/// Keys in order.
#[derive(Debug)]
struct Fences {
    /// The first bytes of each, close together: a search looks at little else.
    heads: Vec<u64>,
    keys: Vec<Key>,
}

/// Slots in order.
#[derive(Debug, Default)]
struct Run {
    entries: Vec<Entry>,
    /// The number of bytes that the fences around it share; 0 if one of them is missing.
    shared: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Of the slot's key.
    head: u32,
    slot: u32,
}

/// Before the entry of that number in the run of that number.
type Place = (usize, usize);

impl Order {
    /// Brings slots into order.
    pub(super) fn of(slots: impl Iterator<Item = u32>, rows: &Slab) -> Self {
        let mut entries: Vec<Entry> =
            slots.map(|slot| Entry { head: short_head(rows.key(slot), 0), slot }).collect();
        entries.sort_unstable_by(|a, b| {
            a.head.cmp(&b.head).then_with(|| rows.key(a.slot).cmp(rows.key(b.slot)))
        });
        let chunks = || entries.chunks(RUN / 2);
        let fences = chunks().zip(chunks().skip(1)).map(|(before, behind)| {
            let [last, first] = [before[before.len() - 1], behind[0]];
            fence(rows.key(last.slot), rows.key(first.slot))
        });
        let fences = Fences::of(fences.collect());
        let runs = chunks().map(|chunk| Run { entries: chunk.to_vec(), shared: 0 });
        let mut order = Self { runs: runs.collect(), fences };
        if order.runs.is_empty() {
            order.runs.push(Run::default());
        }
        (0..order.runs.len()).for_each(|run| order.share(run, rows));
        order
    }

    /// The number of the run in which a key is, or would be.
    fn run_of(&self, key: &Key) -> usize {
        self.fences.up_to(key)
    }

    /// Finds what the fences around a run share, and brings its heads into line.
    fn share(&mut self, run: usize, rows: &Slab) {
        let fences = run.checked_sub(1).and_then(|before| self.fences.keys.get(before..=run));
        let shared = fences.map_or(0, |fences| shared(&fences[0], &fences[1]));
        self.runs[run].share(shared, rows);
    }

    /// Adds the slot of a row.
    pub(super) fn insert(&mut self, slot: u32, rows: &Slab) {
        let key = rows.key(slot);
        let mut run = self.run_of(key);
        let (Ok(mut at) | Err(mut at)) = self.runs[run].find(key, rows);
        if self.runs[run].entries.len() == RUN {
            // Rising keys leave full runs behind.
            let half = if at == RUN && run + 1 == self.runs.len() { RUN } else { RUN / 2 };
            self.split(run, half, key, rows);
            if self.fences.keys[run] <= *key {
                (run, at) = (run + 1, at - half);
            }
        }
        let run = &mut self.runs[run];
        run.entries.insert(at, Entry { head: short_head(key, run.shared), slot });
    }

    /// Splits a run before the entry of a number. If there is none, `next` comes behind.
    fn split(&mut self, run: usize, half: usize, next: &Key, rows: &Slab) {
        let Run { entries, shared } = &mut self.runs[run];
        let last = rows.key(entries[half - 1].slot);
        let fence = fence(last, entries.get(half).map_or(next, |entry| rows.key(entry.slot)));
        let second = Run { entries: entries.split_off(half), shared: *shared };
        self.runs.insert(run + 1, second);
        self.fences.insert(run, fence);
        self.share(run, rows);
        self.share(run + 1, rows);
    }

    /// Removes the slot of a row, if it is there.
    pub(super) fn remove(&mut self, slot: u32, rows: &Slab) {
        let key = rows.key(slot);
        let run = self.run_of(key);
        let Ok(at) = self.runs[run].find(key, rows) else { return };
        let entries = &mut self.runs[run].entries;
        entries.remove(at);
        if entries.len() < entries.capacity() / 4 {
            entries.shrink_to(2 * entries.len());
        }
        self.merge(run, rows);
        if let Some(before) = run.checked_sub(1) {
            self.merge(before, rows);
        }
    }

    /// Merges a run with the one behind it, if both are short.
    fn merge(&mut self, run: usize, rows: &Slab) {
        let Some([first, second]) = self.runs.get_mut(run..).and_then(<[_]>::first_chunk_mut)
        else {
            return;
        };
        if first.entries.len() + second.entries.len() > RUN / 2 {
            return;
        }
        // The outer fences share what both pairs of fences share.
        let shared = first.shared.min(second.shared);
        first.share(shared, rows);
        second.share(shared, rows);
        first.entries.append(&mut second.entries);
        self.runs.remove(run + 1);
        self.fences.remove(run);
    }

    /// The slots in a range, in order.
    pub(super) fn within(&self, range: &KeyRange, rows: &Slab) -> Vec<u32> {
        let start = match range.start() {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) => self.place(self.run_of(key), key, false, rows),
            Bound::Excluded(key) => self.place(self.run_of(key), key, true, rows),
        };
        let run_of_end = |key: &Key| {
            let is_near = self.fences.keys.get(start.0).is_none_or(|fence| key < fence);
            if is_near { start.0 } else { self.run_of(key) }
        };
        let end = match range.end() {
            Bound::Unbounded => (self.runs.len() - 1, usize::MAX),
            Bound::Included(key) => self.place(run_of_end(key), key, true, rows),
            Bound::Excluded(key) => self.place(run_of_end(key), key, false, rows),
        };
        let entries = (start.0..=end.0).flat_map(|run| {
            let entries = &self.runs[run].entries;
            let from = if run == start.0 { start.1 } else { 0 };
            let to = if run == end.0 { end.1.min(entries.len()) } else { entries.len() };
            &entries[from..to]
        });
        entries.map(|entry| entry.slot).collect()
    }

    /// The place of a key in its run, or the one behind it.
    fn place(&self, run: usize, key: &Key, is_behind: bool, rows: &Slab) -> Place {
        match self.runs[run].find(key, rows) {
            Ok(at) => (run, at + usize::from(is_behind)),
            Err(at) => (run, at),
        }
    }
}

impl Run {
    /// The place at which a key is, or would be, which lies between the fences of the run.
    fn find(&self, key: &Key, rows: &Slab) -> Result<usize, usize> {
        let head = short_head(key, self.shared);
        let from = self.entries.partition_point(|entry| entry.head < head);
        let same = &self.entries[from..];
        if same.first().is_none_or(|entry| entry.head != head) {
            return Err(from);
        }
        let same = &same[..same.partition_point(|entry| entry.head == head)];
        let found = same.binary_search_by(|entry| rows.key(entry.slot).cmp(key));
        found.map(|at| from + at).map_err(|at| from + at)
    }

    /// Has heads that begin after so many bytes of their keys.
    fn share(&mut self, shared: usize, rows: &Slab) {
        if self.shared != shared {
            self.shared = shared;
            for entry in &mut self.entries {
                entry.head = short_head(rows.key(entry.slot), shared);
            }
        }
    }
}

impl Fences {
    fn of(keys: Vec<Key>) -> Self {
        Self { heads: keys.iter().map(|key| head(key, 0)).collect(), keys }
    }

    /// The number of those that are not above a key.
    fn up_to(&self, key: &Key) -> usize {
        let head = head(key, 0);
        let from = self.heads.partition_point(|other| *other < head);
        let same = &self.heads[from..];
        if same.first() != Some(&head) {
            return from;
        }
        let same = same.partition_point(|other| *other == head);
        from + self.keys[from..from + same].partition_point(|fence| fence <= key)
    }

    fn insert(&mut self, at: usize, key: Key) {
        self.heads.insert(at, head(&key, 0));
        self.keys.insert(at, key);
    }

    fn remove(&mut self, at: usize) {
        self.heads.remove(at);
        self.keys.remove(at);
    }
}

/// Eight bytes of a key, or what it has of them, as a number in the order of the bytes.
fn head(key: &Key, from: usize) -> u64 {
    let rest = key.as_bytes().get(from..).unwrap_or_default();
    if let Some(head) = rest.first_chunk() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; 8];
    head[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(head)
}

/// The first half of it.
fn short_head(key: &Key, from: usize) -> u32 {
    (head(key, from) >> 32) as u32
}

/// The number of bytes with which both keys begin.
fn shared(a: &Key, b: &Key) -> usize {
    a.as_bytes().iter().zip(b.as_bytes()).take_while(|(a, b)| a == b).count()
}

/// The shortest key that is above the first and not above the second.
fn fence(before: &Key, behind: &Key) -> Key {
    let bytes = &behind.as_bytes()[..=shared(before, behind)];
    Key::new(bytes).expect("a part of a key, and not empty")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::slab::Row;
    use super::*;

    /// Keys of one kind: those of a small number with what lies beside them in a real table.
    #[derive(Clone, Copy)]
    enum Keys {
        Numbers,
        /// With one long prefix, and of many lengths.
        Decimal,
        /// Of a few tenants, each with keys that are parts of one another.
        Tenants,
    }

    impl Keys {
        fn key(self, number: u32) -> Key {
            let key = match self {
                Self::Numbers => Key::new(number.to_be_bytes()),
                Self::Decimal => Key::new(format!("a table of some application/{number}")),
                Self::Tenants => {
                    let tenant = ["a", "tenant 1", "tenant 2"][number as usize % 3];
                    Key::new([tenant.as_bytes(), &vec![0; number as usize / 3]].concat())
                }
            };
            key.expect("a key")
        }

        fn bound(self, random: &mut StdRng) -> Bound<Key> {
            let key = self.key(random.random_range(0..3_000));
            match random.random_range(0..5) {
                0 => Bound::Unbounded,
                1 | 2 => Bound::Excluded(key),
                _ => Bound::Included(key),
            }
        }
    }

    impl Order {
        fn check(&self, rows: &Slab) {
            assert_eq!(self.runs.len(), self.fences.keys.len() + 1);
            let heads = self.fences.keys.iter().map(|fence| head(fence, 0));
            assert!(heads.eq(self.fences.heads.iter().copied()));
            for (number, run) in self.runs.iter().enumerate() {
                assert!(run.entries.len() <= RUN);
                let next = self.runs.get(number + 1).map(|next| next.entries.len());
                assert!(next.is_none_or(|next| run.entries.len() + next > RUN / 2));
                let around = number.checked_sub(1).and_then(|at| self.fences.keys.get(at..=number));
                assert_eq!(run.shared, around.map_or(0, |around| shared(&around[0], &around[1])));
                for entry in &run.entries {
                    let key = rows.key(entry.slot);
                    assert_eq!(entry.head, short_head(key, run.shared));
                    assert_eq!(self.run_of(key), number);
                }
            }
        }
    }

    #[test]
    fn the_slots_in_a_range_are_those_of_a_sorted_map() {
        let kinds = [Keys::Numbers, Keys::Decimal, Keys::Tenants];
        for (seed, keys) in (0..21).zip(kinds.into_iter().cycle()) {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut rows, mut expected) = (Slab::default(), BTreeMap::new());
            for number in (0..500).map(|at| at * 5) {
                let key = keys.key(number);
                expected.insert(key.clone(), rows.insert(Row::contended(key)));
            }
            let mut order = Order::of(expected.values().rev().copied(), &rows);
            for step in 0..6_000_u32 {
                // Long times in which it grows, and as long ones in which it shrinks; some of them
                // with rising keys.
                let grows = random.random_bool(if step / 1_500 % 2 == 0 { 0.9 } else { 0.1 });
                let number =
                    if seed % 2 == 0 { step % 3_000 } else { random.random_range(0..3_000) };
                let key = keys.key(number);
                match expected.get(&key).copied() {
                    None if grows => {
                        let slot = rows.insert(Row::contended(key.clone()));
                        order.insert(slot, &rows);
                        expected.insert(key, slot);
                    }
                    Some(slot) if !grows => {
                        order.remove(slot, &rows);
                        order.remove(slot, &rows);
                        rows.remove(slot);
                        expected.remove(&key);
                    }
                    _ => {}
                }
                if step % 64 == 0 {
                    order.check(&rows);
                }
                if step % 16 == 0
                    && let Ok(range) =
                        KeyRange::new(keys.bound(&mut random), keys.bound(&mut random))
                {
                    let within = expected.iter().filter(|(key, _)| range.contains(key));
                    let within: Vec<u32> = within.map(|(_, slot)| *slot).collect();
                    assert_eq!(order.within(&range, &rows), within, "seed {seed}, step {step}");
                }
            }
            let reserved: usize = order.runs.iter().map(|run| run.entries.capacity()).sum();
            assert!(reserved <= 4 * expected.len() + RUN, "{reserved} for {}", expected.len());
            // All runs become one, whatever their fences share.
            while !expected.is_empty() {
                let at = random.random_range(0..expected.len());
                let key = expected.keys().nth(at).expect("below the length").clone();
                let slot = expected.remove(&key).expect("its key was just read");
                order.remove(slot, &rows);
                rows.remove(slot);
                if expected.len() % 4 == 0 {
                    order.check(&rows);
                }
            }
            assert_eq!(order.runs.len(), 1);
        }
    }
}
