//! [`RocksStore`].

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lockservice_core::store::{
    Change, Exclusive, ExclusiveStore, Inspection, KeyValue, Place, Visit,
};
use lockservice_core::{Error, ErrorKind, Result};
use rocksdb::{DB, DBRecoveryMode, IteratorMode, Options, WriteBatch, WriteOptions};

use crate::config::RocksConfig;
use crate::error::{damaged, foreign, from_io, from_rocksdb, in_use};
use crate::log::damaged_log;

/// A file of ours beside those of RocksDB. Its lock keeps other processes out also while the
/// database is closed and opened again; once something stands in it, a database was there and must
/// not be created again.
///
/// Behind the text stands the *seal*: how far the database had come when it was last opened or
/// closed. RocksDB takes damage at the end of its manifest or log for what a crash cut off, and
/// opens without it: a database that is behind its seal has lost something.
const MARKER: &str = "LOCKSERVICE";
const MARKER_TEXT: &str = "A store of lockservice. The files beside this one belong together: \
    move or remove them only all at once.\n";
/// `sealed ` and 20 digits.
const SEAL_BYTES: usize = 27;

/// A [`BindStore`](lockservice_core::store::BindStore) in RocksDB, in a folder of its own, open to
/// one process at a time.
///
/// Each write is one atomic batch, synced to the disk before the call returns. When the disk is
/// full, writes fail with [`StoreUnusable`](lockservice_core::ErrorKind::StoreUnusable) and succeed
/// again once there is space; nothing acknowledged is lost. Clones are handles to one store; it is
/// closed with the last of them.
///
/// While it is open, the file `PATH.lock` beside the folder is locked. A store that is removed,
/// renamed or replaced meanwhile fails with [`Fenced`](lockservice_core::ErrorKind::Fenced) in
/// every call, for ever: another process may use the path then.
#[derive(Clone, Debug)]
pub struct RocksStore(ExclusiveStore);

impl RocksStore {
    /// Opens the store in the folder `path`, which is created if it is not there (the folder around
    /// it is not).
    ///
    /// Reads the whole store once to check it.
    ///
    /// # Errors
    /// Each names the path and what to do.
    /// - `StoreInUse`: another process has it open.
    /// - `StoreUnusable`: the folder cannot be opened, created or written.
    /// - `StoreCorrupt`: it is no store of lockservice, or is damaged.
    /// - `StoreNewer`: a newer version wrote it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(RocksConfig::new(path)).await
    }

    /// Opens a store as [`open`](Self::open) does, with RocksDB set up by the caller.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn open_with(config: RocksConfig) -> Result<Self> {
        ExclusiveStore::open(url(&config), move || RocksEngine::open(config)).await.map(Self)
    }

    /// Reads the store in the folder `path`, damaged or not, as far as it can be read.
    ///
    /// Like [`open`](Self::open) it creates a folder that is not there.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), but for damaged records: those are in the result.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn inspect(path: impl Into<PathBuf>) -> Result<Inspection> {
        let config = RocksConfig::new(path);
        ExclusiveStore::inspect(url(&config), move || RocksEngine::open(config)).await
    }
}

fn url(config: &RocksConfig) -> String {
    format!("rocks:{}", config.path.display())
}

impl Exclusive for RocksStore {
    fn exclusive(&self) -> &ExclusiveStore {
        &self.0
    }
}

struct RocksEngine {
    path: PathBuf,
    options: Options,
    /// Closed before the marker: fields are dropped in this order.
    database: Option<DB>,
    /// Locked until it is closed.
    marker: File,
    /// Released last.
    place: Place,
}

impl fmt::Debug for RocksEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksEngine").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RocksEngine {
    fn open(config: RocksConfig) -> Result<Self> {
        let RocksConfig { path, mut options } = config;
        // The part that a crash cut off at the end of the log was never acknowledged; damage
        // anywhere else is an error, not the end of the log.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_paranoid_checks(true);
        options.set_recycle_log_file_num(0);
        options.set_track_and_verify_wals_in_manifest(true);
        let io = |error| from_io(&path, error);
        // Before a lock file is made beside a folder that is not ours.
        if is_foreign(&path).map_err(io)? {
            return Err(foreign(&path));
        }
        let place = Place::reserve(&path, io)?;
        let marker = open_marker(&path)?;
        match marker.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(&path)),
            Err(TryLockError::Error(error)) => return Err(from_io(&path, error)),
        }
        let mut engine = Self { path, options, database: None, marker, place };
        engine.reopen()?;
        Ok(engine)
    }

    fn database(&self) -> Result<&DB> {
        self.database.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the store failed and was not opened again yet: try again",
            )
            .with("path", self.path.display())
        })
    }

    /// The seal; `None` if there is none yet.
    fn sealed(&self) -> Option<u64> {
        let mut seal = [0; SEAL_BYTES];
        self.marker.read_exact_at(&mut seal, MARKER_TEXT.len() as u64).ok()?;
        std::str::from_utf8(&seal).ok()?.strip_prefix("sealed ")?.parse().ok()
    }

    fn seal(&self, database: &DB) -> io::Result<()> {
        let seal = format!("sealed {:020}\n", database.latest_sequence_number());
        self.marker.write_all_at([MARKER_TEXT, &seal].concat().as_bytes(), 0)?;
        self.marker.sync_all()
    }

    fn is_established(&self) -> Result<bool> {
        Ok(self.marker.metadata().map_err(|error| from_io(&self.path, error))?.len() > 0)
    }
}

impl KeyValue for RocksEngine {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.database()?.get(key).map_err(|error| from_rocksdb(&self.path, error))
    }

    fn scan(&self, visit: &mut Visit<'_>) -> Result<()> {
        for entry in self.database()?.iterator(IteratorMode::Start) {
            let (key, value) = entry.map_err(|error| from_rocksdb(&self.path, error))?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for change in changes {
            match change {
                Change::Put { key, value } => batch.put(key, value),
                Change::Delete { key } => batch.delete(key),
            }
        }
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        self.database()?.write_opt(batch, &synced).map_err(|error| from_rocksdb(&self.path, error))
    }

    fn reopen(&mut self) -> Result<()> {
        // RocksDB's own lock is free only when the old database is closed. The part that it did not
        // acknowledge it may have logged: opening it again decides that for good.
        self.database = None;
        if let Some(file) = damaged_log(&self.path).map_err(|error| from_io(&self.path, error))? {
            return Err(damaged(&self.path, &file));
        }
        let established = self.is_established()?;
        self.options.create_if_missing(!established);
        let database =
            DB::open(&self.options, &self.path).map_err(|error| from_rocksdb(&self.path, error))?;
        if self.sealed().is_some_and(|sealed| database.latest_sequence_number() < sealed) {
            return Err(damaged(&self.path, "the end of the manifest or the log"));
        }
        self.seal(&database).map_err(|error| from_io(&self.path, error))?;
        self.database = Some(database);
        Ok(())
    }

    fn check_path(&self) -> Result<()> {
        self.place.check(&self.marker, Path::new(MARKER))
    }
}

impl Drop for RocksEngine {
    /// Leaves an empty log and a fresh seal behind. If that fails, everything is still in the log.
    fn drop(&mut self) {
        if let Some(database) = &self.database {
            let _ = database.flush();
            let _ = self.seal(database);
        }
    }
}

/// Opens the marker; creates it and the folder only where no other files are.
fn open_marker(path: &Path) -> Result<File> {
    let io = |error| from_io(path, error);
    match fs::create_dir(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(path)).map_err(io)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io(error)),
    }
    let marker = path.join(MARKER);
    let open = |create| {
        OpenOptions::new().read(true).write(true).create(create).truncate(false).open(&marker)
    };
    match open(false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if is_foreign(path).map_err(io)? {
                return Err(foreign(path));
            }
            let file = open(true).map_err(io)?;
            sync_folder(path).map_err(io)?;
            Ok(file)
        }
        opened => opened.map_err(io),
    }
}

/// True of a folder that holds files and no store.
fn is_foreign(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(!path.join(MARKER).try_exists()? && entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}
