//! Sessions and transactions by id.

use std::hash::Hash;

use hashbrown::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;

/// A bounded set of things by id. Nothing is ever created by looking for it.
#[derive(Debug)]
pub(crate) struct Registry<K, V> {
    what: &'static str,
    most: usize,
    entries: Mutex<HashMap<K, V, foldhash::fast::RandomState>>,
}

impl<K: Hash + Eq + Copy, V: Clone> Registry<K, V> {
    pub(crate) fn new(what: &'static str, most: usize) -> Self {
        Self { what, most, entries: Mutex::new(HashMap::default()) }
    }

    /// Fails with `ResourceExhausted` at the bound.
    pub(crate) fn insert(&self, key: K, value: V) -> Result<()> {
        let mut entries = self.entries.lock();
        if entries.len() >= self.most {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!("too many {} at once: end some, or raise the limit", self.what),
            )
            .with("limit", self.most));
        }
        entries.insert(key, value);
        Ok(())
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.entries.lock().get(key).cloned()
    }

    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        self.entries.lock().remove(key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }
}
