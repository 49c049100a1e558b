//! [`GuardedMap`]: a map that many threads share, and whose API excludes the races of a plain map.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the map and its shards |
//! | `read_mostly.rs` | a map that every commit reads and that hardly ever changes |
//! | `loom.rs` | the interleavings of small models of the map |
//!
//! # Implementation details
//! The map has a power of two of shards. Each is a hash table under its own reader-writer lock. A
//! key is hashed once: the upper bits choose the shard, and the whole hash the slot in its table.
//!
//! # Invariants
//! 1. **A read creates nothing.** [`read`](GuardedMap::read),
//!    [`for_each_in`](GuardedMap::for_each_in) and
//!    [`update_existing`](GuardedMap::update_existing) never add an entry. Entries come from
//!    [`upsert`](GuardedMap::upsert) and [`alter`](GuardedMap::alter) alone, under the shard's
//!    write lock. (A system of this kind died of lookups that created entries of a plain map under
//!    a read lock.)
//! 2. **No guard leaves.** Values are reached inside closures only. So nothing can be held over an
//!    await, and a caller blocks others only while its closure runs.
//! 3. **Readers do not exclude readers.** Two closures of [`read`](GuardedMap::read) run side by
//!    side, also in one shard and on one key.
//! 4. **One shard at a time.** No method takes the lock of a second shard while it holds one. A
//!    closure must not call the same map: it could wait for its own shard.

#[cfg(all(test, loom))]
mod loom;
mod read_mostly;

use std::fmt;
use std::hash::{BuildHasher, Hash};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::spare::shrunk;
use crate::sync::{Padded, RwLock};

pub(crate) use self::read_mostly::{ReadMostlyMap, View};

/// Shards of a [new](GuardedMap::new) map: so many that two of a few dozen threads rarely meet in
/// one.
#[cfg(not(any(loom, shuttle)))]
const SHARDS_DEFAULT: usize = 256;
#[cfg(any(loom, shuttle))]
const SHARDS_DEFAULT: usize = 2;

/// Entries for which a shard keeps its memory.
const ENTRIES_KEPT: usize = 16;

/// The hash of the crate's sharded tables, with random words that clients cannot predict.
#[cfg(not(any(loom, shuttle, feature = "simulation")))]
pub(crate) type KeyHasher = foldhash::quality::RandomState;
/// A model or a simulation is replayed, so every run must put a key into the same shard.
#[cfg(any(loom, shuttle, feature = "simulation"))]
pub(crate) type KeyHasher = foldhash::quality::FixedState;

/// A sharded map reached through closures: no guard can be held too long, and no lookup creates an
/// entry.
///
/// See the [module's invariants](self#invariants). A closure runs under the lock of its shard. Keep
/// it short, do not block in it, and do not call the same map from it.
///
/// # Panics
/// No method panics by itself. A panic of a closure leaves the map usable, with the changes that
/// the closure has made.
pub(crate) struct GuardedMap<K, V> {
    shards: Box<[Padded<Shard<K, V>>]>,
    hasher: KeyHasher,
}

type Shard<K, V> = RwLock<HashTable<(K, V)>>;

impl<K: Hash + Eq, V> GuardedMap<K, V> {
    /// An empty map with the default number of shards.
    pub(crate) fn new() -> Self {
        Self::with_shards(SHARDS_DEFAULT)
    }

    /// An empty map with `shards` shards, rounded up to a power of two: at least 1, at most 65,536.
    pub(crate) fn with_shards(shards: usize) -> Self {
        let shards = shards.clamp(1, 1 << 16).next_power_of_two();
        Self {
            shards: (0..shards).map(|_| Padded(RwLock::new(HashTable::new()))).collect(),
            hasher: KeyHasher::default(),
        }
    }

    /// Calls `read` with the value of `key`, or with `None`, and returns its result. Other readers
    /// of the same shard run meanwhile. Creates nothing.
    pub(crate) fn read<R>(&self, key: &K, read: impl FnOnce(Option<&V>) -> R) -> R {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).read();
        read(shard.find(hash, |(k, _)| k == key).map(|(_, value)| value))
    }

    /// Calls `update` with the value of `key` and returns its result. Without an entry, returns
    /// `None` and does not call it.
    pub(crate) fn update_existing<R>(
        &self,
        key: &K,
        update: impl FnOnce(&mut V) -> R,
    ) -> Option<R> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).write();
        shard.find_mut(hash, |(k, _)| k == key).map(|(_, value)| update(value))
    }

    /// Calls `update` with the value of `key` and returns its result. Without an entry, `make`
    /// creates the value first.
    pub(crate) fn upsert<R>(
        &self,
        key: K,
        make: impl FnOnce() -> V,
        update: impl FnOnce(&mut V) -> R,
    ) -> R {
        let hash = self.hasher.hash_one(&key);
        let mut shard = self.shard(hash).write();
        let entry = shard.entry(hash, |(k, _)| *k == key, |(k, _)| self.hasher.hash_one(k));
        match entry {
            Entry::Occupied(mut entry) => update(&mut entry.get_mut().1),
            Entry::Vacant(entry) => update(&mut entry.insert((key, make())).into_mut().1),
        }
    }

    /// Creates, changes or removes the entry of `key` in one step, and returns the result of
    /// `decide`.
    ///
    /// `decide` is called with the value, or with `None`. The entry then has the value that
    /// `decide` leaves there; `None` removes it. If `decide` panics, the entry is removed.
    pub(crate) fn alter<R>(&self, key: &K, decide: impl FnOnce(&mut Option<V>) -> R) -> R
    where
        K: Clone,
    {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).write();
        match shard.find_entry(hash, |(k, _)| k == key) {
            Ok(entry) => {
                let ((old_key, old), vacant) = entry.remove();
                let mut value = Some(old);
                let result = decide(&mut value);
                match value {
                    Some(value) => drop(vacant.insert((old_key, value))),
                    None => self.removed_from(&mut shard),
                }
                result
            }
            Err(_) => {
                let mut value = None;
                let result = decide(&mut value);
                if let Some(value) = value {
                    shard.insert_unique(hash, (key.clone(), value), |(k, _)| {
                        self.hasher.hash_one(k)
                    });
                }
                result
            }
        }
    }

    /// Removes the entry of `key` if `condition` holds for its value, and returns the value.
    ///
    /// Check and removal are one step, so that an entry that was replaced meanwhile stays.
    pub(crate) fn remove_if(&self, key: &K, condition: impl FnOnce(&V) -> bool) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash).write();
        match shard.find_entry(hash, |(k, _)| k == key) {
            Ok(entry) if condition(&entry.get().1) => {
                let removed = entry.remove().0.1;
                self.removed_from(&mut shard);
                Some(removed)
            }
            _ => None,
        }
    }

    /// The number of shards, for a caller that visits them one after another with pauses.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Calls `visit` with every entry of one shard, in no particular order. Returns the number of
    /// its entries; 0 beyond the [last](Self::shards) shard.
    pub(crate) fn for_each_in(&self, shard: usize, mut visit: impl FnMut(&K, &V)) -> usize {
        let Some(Padded(shard)) = self.shards.get(shard) else { return 0 };
        let shard = shard.read();
        shard.iter().for_each(|(key, value)| visit(key, value));
        shard.len()
    }

    /// The number of entries, counted shard by shard: exact only while none is added or removed.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.read().len()).sum()
    }

    /// An entry was removed from a shard: gives memory back that is of no use any more.
    fn removed_from(&self, shard: &mut HashTable<(K, V)>) {
        if let Some(capacity) = shrunk(shard.len(), shard.capacity(), ENTRIES_KEPT) {
            shard.shrink_to(capacity, |(key, _)| self.hasher.hash_one(key));
        }
    }

    fn shard(&self, hash: u64) -> &Shard<K, V> {
        // The table inside uses the lowest and the highest seven bits; these are in between.
        let index = (hash >> 32) as usize & (self.shards.len() - 1);
        &self.shards[index].0
    }
}

impl<K, V> fmt::Debug for GuardedMap<K, V> {
    /// Shows only the number of shards: printing entries would take every lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedMap").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::mpsc;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_lookup_of_an_absent_key_creates_nothing() {
        let map: GuardedMap<u32, u32> = GuardedMap::with_shards(4);
        for key in 0..1_000 {
            assert!(map.read(&key, |value| value.is_none()));
            assert_eq!(map.update_existing(&key, |value| *value += 1), None);
            assert_eq!(map.remove_if(&key, |_| true), None);
            map.alter(&key, |value| assert_eq!(*value, None));
        }
        assert_eq!(map.len(), 0);
    }

    #[test]
    fn a_reader_does_not_hold_up_another_reader_of_the_same_key() {
        let map = GuardedMap::with_shards(1);
        map.upsert(1, || "one", |_| ());
        let (entered, in_first) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let map = &map;
            scope.spawn(move || {
                map.read(&1, |_| {
                    entered.send(()).expect("the test waits");
                    wait.recv().expect("the test releases");
                });
            });
            in_first.recv().expect("the first reader is inside");
            // Would never return if the first reader excluded this one.
            assert_eq!(map.read(&1, |value| value.copied()), Some("one"));
            release.send(()).expect("the first reader waits");
        });
    }

    #[test]
    fn the_memory_of_removed_entries_is_given_back() {
        let map: GuardedMap<u32, u32> = GuardedMap::with_shards(4);
        let capacity = || map.shards.iter().map(|shard| shard.0.read().capacity()).sum::<usize>();
        for alters in [false, true] {
            (0..10_000).for_each(|key| map.upsert(key, || key, |_| ()));
            assert!(capacity() >= 10_000);
            for key in 0..10_000 {
                let removed = match alters {
                    true => map.alter(&key, Option::take),
                    false => map.remove_if(&key, |_| true),
                };
                assert_eq!(removed, Some(key));
            }
            assert!(capacity() <= 4 * ENTRIES_KEPT, "{} are kept", capacity());
        }
    }

    #[test]
    fn the_number_of_shards_is_a_power_of_two_within_bounds() {
        for (requested, made) in [(0, 1), (1, 1), (3, 4), (256, 256), (usize::MAX, 1 << 16)] {
            assert_eq!(GuardedMap::<u8, u8>::with_shards(requested).shards.len(), made);
        }
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_map_does(
            steps in prop::collection::vec((0u8..5, 0u8..20, any::<u16>()), 0..400),
        ) {
            let map = GuardedMap::with_shards(4);
            let mut plain = BTreeMap::new();
            for (what, key, value) in steps {
                match what {
                    0 => {
                        map.upsert(key, || value, |v| *v = v.wrapping_add(1));
                        let slot = plain.entry(key).or_insert(value);
                        *slot = slot.wrapping_add(1);
                    }
                    1 => {
                        let changed = map.update_existing(&key, |v| *v = value).is_some();
                        prop_assert_eq!(changed, plain.get_mut(&key).map(|v| *v = value).is_some());
                    }
                    2 => {
                        let removed = map.remove_if(&key, |v| *v % 2 == 0);
                        prop_assert_eq!(removed, plain.get(&key).copied().filter(|v| v % 2 == 0));
                        if removed.is_some() {
                            plain.remove(&key);
                        }
                    }
                    3 => {
                        map.alter(&key, |slot| {
                            *slot = if slot.is_some() { None } else { Some(value) };
                        });
                        if plain.remove(&key).is_none() {
                            plain.insert(key, value);
                        }
                    }
                    _ => prop_assert_eq!(map.read(&key, |v| v.copied()), plain.get(&key).copied()),
                }
                prop_assert_eq!(map.len(), plain.len());
            }
            let mut seen = BTreeMap::new();
            for shard in 0..map.shards() {
                map.for_each_in(shard, |k, v| assert!(seen.insert(*k, *v).is_none()));
            }
            prop_assert_eq!(seen, plain);
        }
    }
}
