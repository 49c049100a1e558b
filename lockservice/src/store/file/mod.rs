//! [`FileStore`]: the bindings in one file, `file:PATH`.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the store: opening, inspection |
//! | `engine.rs, engine/` | its transactions on the database, and tests of crashes |
//! | `backend.rs` | the file below the database: disk full, write errors |
//! | `error.rs` | errors of the database as kinds |

mod backend;
mod engine;
mod error;

use std::path::{Path, PathBuf};

use lockservice_core::Result;
use lockservice_core::store::{Exclusive, ExclusiveStore, Inspection};

use self::engine::FileEngine;

/// A [`BindStore`](lockservice_core::store::BindStore) in one file, a [redb](::redb) database, open
/// to one process at a time.
///
/// Each write is one transaction, which has reached the disk (`fsync`) before the call returns.
/// When the disk is full, writes fail with
/// [`StoreUnusable`](lockservice_core::ErrorKind::StoreUnusable) and succeed again once there is
/// space; nothing acknowledged is lost. Clones are handles to one store; the file is closed with
/// the last of them.
///
/// While it is open, the file `PATH.lock` beside it is locked. A store that is removed, renamed or
/// replaced meanwhile fails with [`Fenced`](lockservice_core::ErrorKind::Fenced) in every call, for
/// ever: another process may use the path then.
#[derive(Clone, Debug)]
pub struct FileStore(ExclusiveStore);

impl FileStore {
    /// Opens the store in the file `path`, which is created if it is not there (its folder is not).
    ///
    /// Reads the whole file once to check it.
    ///
    /// # Errors
    /// Each names the path and what to do.
    /// - `StoreInUse`: another process has it open.
    /// - `StoreUnusable`: the file cannot be opened, created or written.
    /// - `StoreCorrupt`: it is no store of lockservice, or is damaged.
    /// - `StoreNewer`: a newer version wrote it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        ExclusiveStore::open(url(&path), move || FileEngine::open(&path)).await.map(Self)
    }

    /// Reads the store in the file `path`, damaged or not, as far as it can be read.
    ///
    /// Like [`open`](Self::open) it creates a file that is not there.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), but for damaged records: those are in the result.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn inspect(path: impl Into<PathBuf>) -> Result<Inspection> {
        let path = path.into();
        ExclusiveStore::inspect(url(&path), move || FileEngine::open(&path)).await
    }
}

fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

impl Exclusive for FileStore {
    fn exclusive(&self) -> &ExclusiveStore {
        &self.0
    }
}
