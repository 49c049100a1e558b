//! A redb database as the engine of a store.
//!
//! Commits are two-phase: with redb's one-phase commits a damaged last commit looks like one that a
//! crash interrupted, and would be taken back silently, although it was acknowledged. A second
//! `fsync` is the price.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockservice_core::store::{Change, KeyValue, Place, Visit};
use lockservice_core::{Error, ErrorKind, Result};
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError,
};

use super::backend::{Backend, FileDisk, Header, Resynced, check_header};
use super::error::{empty, foreign, from_io, from_redb, in_use};

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

/// The whole of a large store (100,000 tables) is some 30 MB; it is read once, at the start.
const CACHE_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct FileEngine {
    path: PathBuf,
    /// Closed before the file is unlocked: fields are dropped in this order.
    open: Option<Open>,
    disk: Arc<dyn StorageBackend>,
    held: Option<Held>,
}

/// The lock that keeps other processes out until it is closed: the file itself, for those that come
/// by another name, and its place.
#[derive(Debug)]
struct Held {
    file: Arc<File>,
    place: Place,
}

struct Open {
    database: Database,
    backend: Backend,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl FileEngine {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |error| from_io(path, error);
        let mut opened = existing(path).map_err(io)?;
        if let Some(file) = &opened {
            // Before a lock file is made beside a file that is not ours.
            check_content(path, &FileDisk(Arc::clone(file)))?;
        }
        let place = Place::reserve(path, io)?;
        if opened.is_none() {
            // Another process may have made it meanwhile.
            opened = existing(path).map_err(io)?;
        }
        let file = match opened {
            Some(file) => file,
            None => {
                create(path)?;
                existing(path).map_err(io)?.ok_or_else(|| io(io::ErrorKind::NotFound.into()))?
            }
        };
        lock(path, &file)?;
        // It may have been replaced before the place was reserved.
        place.check(&file, Path::new(""))?;
        let disk = FileDisk(Arc::clone(&file));
        Self::on(path, disk, Some(Held { file, place }))
    }

    /// The engine of a database that is there, on `disk`.
    fn on(path: &Path, disk: impl StorageBackend, held: Option<Held>) -> Result<Self> {
        let disk = Arc::new(Resynced::new(disk));
        let mut engine = Self { path: path.to_owned(), open: None, disk, held };
        engine.reopen()?;
        Ok(engine)
    }

    fn database(&self) -> Result<&Database> {
        match &self.open {
            Some(open) => Ok(&open.database),
            None => Err(Error::new(
                ErrorKind::Unavailable,
                "the store failed and was not opened again yet: try again",
            )
            .with("path", self.path.display())),
        }
    }

    fn error(&self) -> impl Fn(redb::Error) -> Error {
        |error| from_redb(&self.path, error)
    }

    fn try_apply(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let Ok(database) = self.database() else { return Err(redb::Error::PreviousIo) };
        // redb's default durability is `Immediate`: the commit returns after `fsync`.
        let mut txn = database.begin_write()?;
        txn.set_two_phase_commit(true);
        {
            let mut records = txn.open_table(RECORDS)?;
            for change in changes {
                match change {
                    Change::Put { key, value } => {
                        drop(records.insert(key.as_slice(), value.as_slice())?)
                    }
                    Change::Delete { key } => drop(records.remove(key.as_slice())?),
                }
            }
        }
        txn.commit()?;
        Ok(())
    }
}

impl KeyValue for FileEngine {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let read = || -> Result<_, redb::Error> {
            let Ok(database) = self.database() else { return Err(redb::Error::PreviousIo) };
            match database.begin_read()?.open_table(RECORDS) {
                Ok(records) => Ok(records.get(key)?.map(|value| value.value().to_vec())),
                // A new file: the first write makes the table.
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        read().map_err(self.error())
    }

    fn scan(&self, visit: &mut Visit<'_>) -> Result<()> {
        let error = |error| from_redb(&self.path, error);
        let txn = self.database()?.begin_read().map_err(|e| error(redb::Error::from(e)))?;
        let records = match txn.open_table(RECORDS) {
            Ok(records) => records,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(e) => return Err(error(e.into())),
        };
        for entry in records.iter().map_err(|e| error(e.into()))? {
            let (key, value) = entry.map_err(|e| error(e.into()))?;
            visit(key.value(), value.value())?;
        }
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<()> {
        self.try_apply(changes).map_err(self.error())
    }

    fn reopen(&mut self) -> Result<()> {
        if let Some(old) = self.open.take() {
            old.backend.freeze();
        }
        check_content(&self.path, &*self.disk)?;
        self.open = Some(open_database(&self.path, &self.disk)?);
        Ok(())
    }

    fn check_path(&self) -> Result<()> {
        match &self.held {
            Some(held) => held.place.check(&held.file, Path::new("")),
            None => Ok(()),
        }
    }
}

/// Fails unless there is a database, which may be damaged.
fn check_content(path: &Path, disk: &dyn StorageBackend) -> Result<()> {
    match check_header(disk).map_err(|error| from_io(path, error))? {
        Header::Database => Ok(()),
        Header::Foreign => Err(foreign(path)),
        // A new store appears whole: an empty file has lost what was in it, or never was one.
        Header::Empty => Err(empty(path)),
    }
}

/// Opens the database, or makes one on an empty disk, and checks every page of it: redb by itself
/// looks at checksums only after a crash.
///
/// With two-phase commits the check never goes back to an earlier commit: it fails.
fn open_database(path: &Path, disk: &Arc<dyn StorageBackend>) -> Result<Open> {
    let backend = Backend::new(Arc::clone(disk));
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(backend.clone())
        .map_err(|error| from_redb(path, error))?;
    Ok(Open { database, backend })
}

/// The file, if there is one.
fn existing(path: &Path) -> io::Result<Option<Arc<File>>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) if file.metadata()?.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(file) => Ok(Some(Arc::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the exclusive use of the file, until it is closed. Ends with the process, however that
/// ends.
fn lock(path: &Path, file: &File) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(in_use(path)),
        Err(TryLockError::Error(error)) => Err(from_io(path, error)),
    }
}

/// Makes an empty database appear at `path`, whole or not at all, and never in place of another
/// file.
fn create(path: &Path) -> Result<()> {
    let io = |error| from_io(path, error);
    let mut name =
        path.file_name().ok_or_else(|| io(io::ErrorKind::InvalidFilename.into()))?.to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let draft = path.with_file_name(name);
    // Only a dead process of the same number can have left one.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let made = create_draft(&draft, path).and_then(|()| match fs::hard_link(&draft, path) {
        // Another process put a file there and ignored the lock file.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(io),
    });
    let removed = fs::remove_file(&draft).map_err(io);
    made.and(removed)?;
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// Errors name `path`: the reader knows that one.
fn create_draft(draft: &Path, path: &Path) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(draft)
        .map_err(|error| from_io(path, error))?;
    let file = Arc::new(file);
    let disk: Arc<dyn StorageBackend> = Arc::new(FileDisk(Arc::clone(&file)));
    let Open { database, .. } = open_database(path, &disk)?;
    database.close().map_err(|error| from_redb(path, error))?;
    file.sync_all().map_err(|error| from_io(path, error))
}

#[cfg(test)]
mod crashes;
