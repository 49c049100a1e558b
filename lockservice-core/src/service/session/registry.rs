//! Sessions and transactions by id.

use std::hash::Hash;

use crate::error::{Error, ErrorKind, Result};
use crate::guarded_map::GuardedMap;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// A bounded set of things by id. Nothing is ever created by looking for it.
#[derive(Debug)]
pub(crate) struct Registry<K, V> {
    what: &'static str,
    most: usize,
    /// The number of entries: counted before one is inserted, and until it was removed.
    ///
    /// ORDERING: `SeqCst`, with `Departures::is_awaited` as its partner. A waiter writes that and
    /// reads this; an end writes this and reads that. So one of the two sees the other.
    count: AtomicUsize,
    entries: GuardedMap<K, V>,
}

impl<K: Hash + Eq + Copy, V: Clone> Registry<K, V> {
    pub(crate) fn new(what: &'static str, most: usize) -> Self {
        Self { what, most, count: AtomicUsize::new(0), entries: GuardedMap::new() }
    }

    /// Fails with `ResourceExhausted` at the bound.
    pub(crate) fn insert(&self, key: K, value: V) -> Result<()> {
        if self.count.fetch_add(1, Ordering::SeqCst) >= self.most {
            self.count.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!("too many {} at once: end some, or raise the limit", self.what),
            )
            .with("limit", self.most));
        }
        // An id is inserted once.
        self.entries.upsert(key, || value, |_| ());
        Ok(())
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.entries.read(key, |value| value.cloned())
    }

    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        let removed = self.entries.remove_if(key, |_| true)?;
        self.count.fetch_sub(1, Ordering::SeqCst);
        Some(removed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }
}
