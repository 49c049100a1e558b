//! [`ReadMostlyMap`]: a map that every commit reads and that hardly ever changes.
//!
//! # Implementation details
//! The map is kept in several equal copies, each under a reader-writer lock of its own. A thread
//! reads the copy that its number chooses. So two threads that read the same key share no cache
//! line. One lock, or one counter of references, would be a line that moves from processor to
//! processor with each read. A change locks all copies, in their order, and changes each.
//!
//! # Invariants
//! 1. **A read creates nothing**, and **no guard leaves**, as in a
//!    [`GuardedMap`](super::GuardedMap).
//! 2. **A change is one step.** All copies are locked while it is made: once a reader has seen it,
//!    no reader sees the map without it.
//! 3. **Changes are rare.** Each costs one insertion or removal per copy, and waits for the
//!    closures of all readers.

use std::fmt;
use std::hash::Hash;

use hashbrown::HashMap;

use crate::sync::{Padded, RwLock, thread_number};

/// Copies of a map: threads beyond that share some.
#[cfg(not(any(loom, shuttle)))]
const COPIES: usize = 16;
#[cfg(any(loom, shuttle))]
const COPIES: usize = 2;

/// A fixed hash: keys are numbers that a leader gave out.
type Entries<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// A map with one copy for every few threads. See the [module's invariants](self#invariants).
///
/// A closure runs under the lock of one copy. Keep it short, and do not call the same map from it.
pub(crate) struct ReadMostlyMap<K, V> {
    copies: [Padded<RwLock<Entries<K, V>>>; COPIES],
}

/// The entries of a map, as long as the closure runs that got it.
pub(crate) struct View<'a, K, V>(&'a Entries<K, V>);

impl<'a, K: Hash + Eq, V> View<'a, K, V> {
    /// The value of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&'a V> {
        self.0.get(key)
    }
}

impl<K: Copy + Hash + Eq, V: Clone> ReadMostlyMap<K, V> {
    /// An empty map.
    pub(crate) fn new() -> Self {
        Self { copies: std::array::from_fn(|_| Padded(RwLock::new(Entries::default()))) }
    }

    /// Calls `read` with the entries, for a caller that looks several keys up.
    pub(crate) fn view<R>(&self, read: impl FnOnce(View<'_, K, V>) -> R) -> R {
        read(View(&self.copies[thread_number() % COPIES].0.read()))
    }

    /// Calls `read` with the value of `key`, or with `None`, and returns its result.
    pub(crate) fn read<R>(&self, key: &K, read: impl FnOnce(Option<&V>) -> R) -> R {
        self.view(|entries| read(entries.get(key)))
    }

    /// Calls `visit` with every entry, in no particular order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&K, &V)) {
        self.view(|View(entries)| entries.iter().for_each(|(key, value)| visit(key, value)));
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.view(|View(entries)| entries.len())
    }

    /// Adds an entry, or replaces its value.
    pub(crate) fn insert(&self, key: K, value: V) {
        self.change(|entries| drop(entries.insert(key, value.clone())));
    }

    /// Removes the entry of `key` if `condition` holds for its value: one step.
    pub(crate) fn remove_if(&self, key: &K, mut condition: impl FnMut(&V) -> bool) {
        self.change(|entries| {
            if entries.get(key).is_some_and(&mut condition) {
                entries.remove(key);
            }
        });
    }

    /// Removes the entries for which `condition` does not hold.
    pub(crate) fn retain(&self, mut condition: impl FnMut(&K, &V) -> bool) {
        self.change(|entries| entries.retain(|key, value| condition(key, value)));
    }

    /// Makes a change in each copy, while all are locked.
    fn change(&self, mut change: impl FnMut(&mut Entries<K, V>)) {
        let mut locked = self.copies.each_ref().map(|copy| copy.0.write());
        locked.iter_mut().for_each(|entries| change(entries));
    }
}

impl<K: Copy + Hash + Eq, V: Clone> Default for ReadMostlyMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for ReadMostlyMap<K, V> {
    /// Takes no lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadMostlyMap").field("copies", &self.copies.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn every_copy_has_every_change() {
        let map = ReadMostlyMap::new();
        (0..10).for_each(|n| map.insert(n, n));
        map.insert(3, 33);
        map.remove_if(&4, |value| *value == 5);
        map.remove_if(&5, |value| *value == 5);
        map.retain(|key, _| *key != 6);
        let start = Barrier::new(2 * COPIES);
        std::thread::scope(|scope| {
            for _ in 0..2 * COPIES {
                scope.spawn(|| {
                    // All at one time, so that no two have the same number.
                    start.wait();
                    let mut seen = Vec::new();
                    map.for_each(|key, value| seen.push((*key, *value)));
                    seen.sort_unstable();
                    let left = [(0, 0), (1, 1), (2, 2), (3, 33), (4, 4), (7, 7), (8, 8), (9, 9)];
                    assert_eq!(seen, left);
                    assert_eq!((map.len(), map.read(&5, |value| value.copied())), (8, None));
                });
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom {
    use ::loom::sync::Arc;
    use ::loom::thread;

    use super::*;

    #[test]
    fn once_a_change_was_seen_no_reader_sees_the_map_without_it() {
        ::loom::model(|| {
            let map: Arc<ReadMostlyMap<u8, u8>> = Arc::new(ReadMostlyMap::new());
            let readers = Arc::clone(&map);
            let read = |map: &ReadMostlyMap<u8, u8>| {
                (thread_number() % COPIES, map.read(&1, |value| value.copied()))
            };
            let reads = thread::spawn(move || {
                let (copy, first) = read(&readers);
                // Threads that are spawned one after the other have different copies.
                let later = thread::spawn(move || read(&readers));
                let (other, later) = later.join().expect("no panic");
                assert_ne!(copy, other, "the two read one copy, which shows nothing");
                assert!(first.is_none() || later == Some(7), "{first:?}, then {later:?}");
            });
            map.insert(1, 7);
            reads.join().expect("no panic");
            assert_eq!(read(&map).1, Some(7));
        });
    }
}
