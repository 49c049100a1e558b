//! [`MemoryStore`]: bindings that live as long as the process.

/// Placeholder until the store is written.
#[derive(Debug)]
pub struct MemoryStore;
