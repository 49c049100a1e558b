//! Sessions by id and by number, and how many sessions and transactions there are.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::ops::Bound;

use crate::error::{Error, ErrorKind, Result};
use crate::guarded_map::GuardedMap;
use crate::id::{SessionId, SessionNumber};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, Padded};

/// A bounded number of things that are alive.
#[derive(Debug)]
pub(crate) struct Count {
    what: &'static str,
    most: usize,
    /// ORDERING: `SeqCst`, with `Departures::is_awaited` as its partner. A waiter writes that and
    /// reads this; an end writes this and reads that. So one of the two sees the other.
    ///
    /// Every thread that begins or ends one writes it, so that it has a cache line of its own.
    alive: Padded<AtomicUsize>,
}

impl Count {
    pub(crate) const fn new(what: &'static str, most: usize) -> Self {
        Self { what, most, alive: Padded(AtomicUsize::new(0)) }
    }

    /// Counts one more. Fails with `ResourceExhausted` at the bound.
    pub(crate) fn enter(&self) -> Result<()> {
        if self.alive.0.fetch_add(1, Ordering::SeqCst) >= self.most {
            self.leave();
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!("too many {} at once: end some, or raise the limit", self.what),
            )
            .with("limit", self.most));
        }
        Ok(())
    }

    /// Counts one less: one that [entered](Self::enter).
    pub(crate) fn leave(&self) {
        self.alive.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// The number of those that are alive.
    pub(crate) fn alive(&self) -> usize {
        self.alive.0.load(Ordering::SeqCst)
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.alive() == 0
    }
}

/// A bounded set of things by id. Nothing is ever created by looking for it.
#[derive(Debug)]
pub(crate) struct Registry<K, V> {
    /// The number of entries: counted before one is inserted, and until it was removed.
    count: Count,
    entries: GuardedMap<K, V>,
}

impl<K: Hash + Eq + Copy, V: Clone> Registry<K, V> {
    pub(crate) fn new(what: &'static str, most: usize) -> Self {
        Self { count: Count::new(what, most), entries: GuardedMap::new() }
    }

    /// Returns false, and changes nothing, if there is an entry for the key. Fails with
    /// `ResourceExhausted` at the bound.
    pub(crate) fn insert(&self, key: K, value: V) -> Result<bool> {
        self.count.enter()?;
        let mut is_new = false;
        let first = || {
            is_new = true;
            value
        };
        self.entries.upsert(key, first, |_| ());
        if !is_new {
            self.count.leave();
        }
        Ok(is_new)
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.entries.read(key, |value| value.cloned())
    }

    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        let removed = self.entries.remove_if(key, |_| true)?;
        self.count.leave();
        Some(removed)
    }

    pub(crate) fn len(&self) -> usize {
        self.count.alive()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.is_zero()
    }
}

/// The ids of sessions by the numbers that operators know them by, in the order in which they were
/// opened.
#[derive(Debug, Default)]
pub(crate) struct SessionNumbers(Mutex<Numbered>);

#[derive(Debug, Default)]
struct Numbered {
    last: u64,
    ids: BTreeMap<SessionNumber, SessionId>,
}

impl SessionNumbers {
    /// A number that no session had before.
    pub(crate) fn next(&self) -> SessionNumber {
        let mut numbered = self.0.lock();
        numbered.last += 1;
        SessionNumber::new(numbered.last)
    }

    pub(crate) fn insert(&self, number: SessionNumber, id: SessionId) {
        self.0.lock().ids.insert(number, id);
    }

    pub(crate) fn remove(&self, number: SessionNumber) {
        self.0.lock().ids.remove(&number);
    }

    pub(crate) fn get(&self, number: SessionNumber) -> Option<SessionId> {
        self.0.lock().ids.get(&number).copied()
    }

    /// The first `most` sessions after `last`.
    pub(crate) fn after(
        &self,
        last: SessionNumber,
        most: usize,
    ) -> Vec<(SessionNumber, SessionId)> {
        let numbered = self.0.lock();
        let rest = numbered.ids.range((Bound::Excluded(last), Bound::Unbounded));
        rest.take(most).map(|(number, id)| (*number, *id)).collect()
    }
}
