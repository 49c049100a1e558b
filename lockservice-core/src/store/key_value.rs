//! [`KeyValue`]: the engine under an exclusive store.

use std::fmt;

use super::Change;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;

/// Is shown one entry, its key and its value.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// An ordered map of keys to values on a disk, open to this process alone. Every method may block.
///
/// # Contract
/// 1. [`apply`](Self::apply) is atomic and durable: changes for which it returned `Ok` are there
///    after any crash, all of them.
/// 2. While the engine exists, also while [`reopen`](Self::reopen) runs, no other process can open
///    the same store.
/// 3. Damage is found and reported as [`ErrorKind::StoreCorrupt`], at the latest when the damaged
///    entry is read.
/// 4. Where the store has a path, [`check_path`](Self::check_path) finds out that another process
///    may use that path: see [`Place`](super::Place).
pub trait KeyValue: fmt::Debug + Send + 'static {
    /// The value under `key`.
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Shows every entry to `visit`, in any order; ends with its first error.
    fn scan(&self, visit: &mut Visit<'_>) -> Result<()>;

    /// Makes all changes, or none of them.
    fn apply(&mut self, changes: &[Change]) -> Result<()>;

    /// Opens the store again after a failure, so that it shows what is on the disk. May be called
    /// again after it failed.
    fn reopen(&mut self) -> Result<()>;

    /// Fails with [`ErrorKind::Fenced`], from then on for ever, if the store's path no longer names
    /// what is open here. The default is for an engine without a path.
    fn check_path(&self) -> Result<()> {
        Ok(())
    }
}
