//! [`FileStore`]: bindings in one file of their own.
//!
//! # Implementation details
//! The file is a redb database: a copy-on-write B-tree whose commits are atomic and synced. One process opens it at a time (an
//! advisory lock on the file), and that open *is* the leadership (L1). All work is done on blocking threads.
//!
//! After a failed write redb refuses everything until it is opened anew. So the database is dropped after an I/O error and opened
//! again by the next call; the number of the last applied write then tells whether the failed one landed. Another process that
//! slips in between raises the epoch, and our next write is refused by it (L2).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::store::{
    Batch, BindStore, Candidate, Leadership, Lineage, Op, Renewal, StoreState, WriteAck, decode, encode,
};
use lockservice_core::{Epoch, Error, ErrorKind, Result, ServiceId, TableRef, TxnId};
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};

/// Version of the file's layout. A file of a later one is refused.
const FORMAT: u64 = 1;

/// `format`, `epoch`, `applied`, and `clean` (1 if the last leadership was resigned).
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
/// `constants`.
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");
/// Tables by group, a zero byte (which no name contains), and name.
const TABLES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tables");
const SERVICES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("services");
const TOMBSTONES: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("tombstones");

/// Bindings in one file (feature `file`): durable at once, nothing to install. A cheap handle.
#[derive(Debug, Clone)]
pub struct FileStore {
    file: Arc<File>,
}

struct File {
    path: PathBuf,
    /// `None` after an I/O error, until the next call opens it again.
    database: Mutex<Option<Database>>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FileStore {
    /// Opens the file, creating it if it is not there; its folder must exist.
    ///
    /// # Errors
    /// `StoreInUse`: another process has it open: stop that one, or choose another file. `StoreUnusable`: permission, a missing
    /// folder, a full disk. `StoreCorrupt`: it is no store, or a damaged one: choose another file or restore it. `StoreNewer`: use the
    /// version that wrote it. Nothing is changed in any of these cases.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = Arc::new(File { path: path.as_ref().to_owned(), database: Mutex::new(None) });
        let store = Self { file };
        store.run(|_, _| Ok(())).await?;
        Ok(store)
    }

    /// Does something with the open database on a blocking thread. A caller that is gone does not stop it.
    async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&File, &Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = Arc::clone(&self.file);
        let done = tokio::task::spawn_blocking(move || {
            let mut slot = file.database.lock();
            if slot.is_none() {
                *slot = Some(file.open()?);
            }
            let result = match &*slot {
                Some(database) => act(&file, database),
                None => Err(Error::new(ErrorKind::Internal, "the database was opened and is not there")),
            };
            // See the module's head: redb is of no use after an I/O error.
            if matches!(&result, Err(e) if matches!(e.kind(), ErrorKind::StoreUnusable | ErrorKind::UnknownOutcome)) {
                *slot = None;
            }
            result
        });
        // redb checks much of what it reads by assertion: a panic there means a damaged file.
        done.await.unwrap_or_else(|e| Err(damaged(&self.file.path, "reading it failed").with_source(e)))
    }
}

impl File {
    fn open(&self) -> Result<Database> {
        if self.path.is_dir() {
            return Err(unusable(&self.path, "it is a folder: name a file in it", None));
        }
        let database = Database::create(&self.path).map_err(|e| self.error(e.into()))?;
        let write = database.begin_write().map_err(|e| self.error(e.into()))?;
        let format = self.number(&write, "format")?;
        match format {
            Some(FORMAT) => return Ok(database),
            Some(newer) if newer > FORMAT => {
                return Err(Error::new(
                    ErrorKind::StoreNewer,
                    format!("the store was written by a newer version of lockservice (format {newer}, this one reads {FORMAT}): use that version"),
                )
                .with("path", self.path.display()));
            }
            Some(_) => return Err(damaged(&self.path, "its format number makes no sense")),
            None if write.list_tables().map_err(|e| self.error(e.into()))?.next().is_some() => {
                return Err(damaged(&self.path, "it is a database of something else"));
            }
            None => {}
        }
        // A fresh file. Each table is made now, so that reading never meets a missing one.
        let create = || -> Result<(), redb::Error> {
            write.open_table(NUMBERS)?.insert("format", FORMAT)?;
            write.open_table(SETTINGS)?;
            write.open_table(TABLES)?;
            write.open_table(SERVICES)?;
            write.open_table(TOMBSTONES)?;
            Ok(())
        };
        create().map_err(|e| self.error(e))?;
        write.commit().map_err(|e| self.error(e.into()))?;
        Ok(database)
    }

    fn number(&self, write: &WriteTransaction, name: &str) -> Result<Option<u64>> {
        let exists = write
            .list_tables()
            .map_err(|e| self.error(e.into()))?
            .any(|table| redb::TableHandle::name(&table) == redb::TableHandle::name(&NUMBERS));
        if !exists {
            return Ok(None);
        }
        let numbers = write.open_table(NUMBERS).map_err(|e| self.error(e.into()))?;
        let number = numbers.get(name).map_err(|e| self.error(e.into()))?;
        Ok(number.map(|number| number.value()))
    }

    /// L2: fails unless `epoch` is the current leadership's.
    fn check_epoch(&self, write: &WriteTransaction, epoch: Epoch) -> Result<()> {
        let current = self.number(write, "epoch")?.unwrap_or_default();
        let resigned = self.number(write, "clean")?.unwrap_or_default() == 1;
        if current == epoch.get() && !resigned {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Fenced, "another leader has taken over the store: stop leading")
            .with("path", self.path.display())
            .with("epoch", epoch)
            .with("current", current))
    }

    fn put_numbers(&self, write: &WriteTransaction, numbers: &[(&str, u64)]) -> Result<()> {
        let put = || -> Result<(), redb::Error> {
            let mut table = write.open_table(NUMBERS)?;
            for (name, number) in numbers {
                table.insert(*name, *number)?;
            }
            Ok(())
        };
        put().map_err(|e| self.error(e))
    }

    /// The one mapping from redb's errors.
    fn error(&self, error: redb::Error) -> Error {
        use std::io::ErrorKind as Io;
        let path = &self.path;
        match &error {
            redb::Error::DatabaseAlreadyOpen => Error::new(
                ErrorKind::StoreInUse,
                "the store is open in another process: stop that process, or choose another store with --store",
            )
            .with("path", path.display()),
            redb::Error::UpgradeRequired(_) => {
                damaged(path, "it has a layout that no released version wrote").with_source(error)
            }
            redb::Error::Corrupted(_)
            | redb::Error::RepairAborted
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. } => {
                damaged(path, "its content makes no sense").with_source(error)
            }
            redb::Error::Io(io) => {
                let why = match io.kind() {
                    Io::InvalidData | Io::UnexpectedEof => {
                        return damaged(path, "its content makes no sense").with_source(error);
                    }
                    Io::PermissionDenied => {
                        "permission is denied: give this user the right to read and write the file and its folder"
                    }
                    Io::NotFound => "its folder does not exist: create it, or choose another path",
                    Io::StorageFull | Io::QuotaExceeded => {
                        "the disk is full: free some space; nothing that was acknowledged is lost"
                    }
                    Io::ReadOnlyFilesystem => "the file system is read-only: choose another path",
                    _ => "the disk reports an error",
                };
                unusable(path, why, Some(error))
            }
            redb::Error::PreviousIo => unusable(path, "an earlier write failed: try again", Some(error)),
            _ => unusable(path, "the database reports an error", Some(error)),
        }
    }

    /// Commits, and finds out what became of it if that fails.
    fn commit(&self, write: WriteTransaction) -> Result<()> {
        write.commit().map_err(|e| self.error(e.into()))
    }
}

fn unusable(path: &Path, why: &str, source: Option<redb::Error>) -> Error {
    let error =
        Error::new(ErrorKind::StoreUnusable, format!("the store cannot be used: {why}")).with("path", path.display());
    match source {
        Some(source) => error.with_source(source),
        None => error,
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!("the file is not a lockservice store, or a damaged one ({why}): choose another path, or restore it from a backup"),
    )
    .with("path", path.display())
}

fn table_key(table: &TableRef) -> String {
    format!("{}\0{}", table.group, table.name)
}

fn apply(write: &WriteTransaction, op: &Op) -> Result<(), redb::Error> {
    match op {
        Op::PutConstants(constants) => {
            write.open_table(SETTINGS)?.insert("constants", encode(constants).as_slice())?;
        }
        Op::PutTable(table) => {
            write.open_table(TABLES)?.insert(table_key(&table.table).as_str(), encode(table).as_slice())?;
        }
        Op::PutService(service) => {
            write.open_table(SERVICES)?.insert(service.id.get(), encode(service).as_slice())?;
        }
        Op::RemoveService(id) => {
            write.open_table(SERVICES)?.remove(id.get())?;
        }
        Op::PutTombstone(txn) => {
            write.open_table(TOMBSTONES)?.insert((txn.origin.get(), txn.counter), ())?;
        }
        Op::RemoveTombstone(txn) => {
            write.open_table(TOMBSTONES)?.remove((txn.origin.get(), txn.counter))?;
        }
    }
    Ok(())
}

/// What a read transaction finds, before it is decoded.
#[derive(Default)]
struct Raw {
    epoch: u64,
    applied: u64,
    constants: Option<Vec<u8>>,
    tables: Vec<(String, Vec<u8>)>,
    services: Vec<(u64, Vec<u8>)>,
    tombstones: Vec<(u64, u64)>,
}

fn read(database: &Database) -> Result<Raw, redb::Error> {
    let read = database.begin_read()?;
    let numbers = read.open_table(NUMBERS)?;
    let number = |name| -> Result<u64, redb::Error> { Ok(numbers.get(name)?.map_or(0, |number| number.value())) };
    let mut raw = Raw { epoch: number("epoch")?, applied: number("applied")?, ..Raw::default() };
    raw.constants = read.open_table(SETTINGS)?.get("constants")?.map(|constants| constants.value().to_vec());
    for entry in read.open_table(TABLES)?.iter()? {
        let (key, value) = entry?;
        raw.tables.push((key.value().replace('\0', "/"), value.value().to_vec()));
    }
    for entry in read.open_table(SERVICES)?.iter()? {
        let (key, value) = entry?;
        raw.services.push((key.value(), value.value().to_vec()));
    }
    for entry in read.open_table(TOMBSTONES)?.iter()? {
        raw.tombstones.push(entry?.0.value());
    }
    Ok(raw)
}

#[async_trait]
impl BindStore for FileStore {
    fn describe(&self) -> String {
        format!("file:{}", self.file.path.display())
    }

    async fn load(&self) -> Result<StoreState> {
        self.run(|file, database| {
            let raw = read(database).map_err(|e| file.error(e))?;
            let here = |e: Error| e.with("path", file.path.display());
            Ok(StoreState {
                epoch: Epoch::new(raw.epoch),
                applied: raw.applied,
                constants: raw.constants.map(|bytes| decode("constants", &bytes).map_err(here)).transpose()?,
                tables: raw
                    .tables
                    .iter()
                    .map(|(key, bytes)| decode(key, bytes).map_err(here))
                    .collect::<Result<_>>()?,
                services: raw
                    .services
                    .iter()
                    .map(|(id, bytes)| decode(&format!("service {id}"), bytes).map_err(here))
                    .collect::<Result<_>>()?,
                tombstones: raw
                    .tombstones
                    .into_iter()
                    .map(|(origin, counter)| TxnId { origin: ServiceId::new(origin), counter })
                    .collect(),
                ..StoreState::default()
            })
        })
        .await
    }

    async fn acquire_leadership(&self, candidate: &Candidate, _ttl: Duration) -> Result<Leadership> {
        let floor = candidate.floor;
        self.run(move |file, database| {
            let write = database.begin_write().map_err(|e| file.error(e.into()))?;
            let stored = Epoch::new(file.number(&write, "epoch")?.unwrap_or_default());
            let applied = file.number(&write, "applied")?.unwrap_or_default();
            let clean = stored == Epoch::default() || file.number(&write, "clean")?.unwrap_or_default() == 1;
            let epoch = stored.max(floor).next()?;
            file.put_numbers(&write, &[("epoch", epoch.get()), ("clean", 0)])?;
            file.commit(write)?;
            Ok(Leadership::Acquired { epoch, applied, exclusive: true, clean, lineage: Lineage::default() })
        })
        .await
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.run(move |file, database| {
            let write = database.begin_write().map_err(|e| file.error(e.into()))?;
            file.check_epoch(&write, epoch)?;
            Ok(Renewal::default())
        })
        .await
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.run(move |file, database| {
            let write = database.begin_write().map_err(|e| file.error(e.into()))?;
            file.check_epoch(&write, epoch)?;
            file.put_numbers(&write, &[("clean", 1)])?;
            file.commit(write)
        })
        .await
    }

    async fn write(&self, epoch: Epoch, number: u64, batch: &Batch) -> Result<WriteAck> {
        let batch = batch.clone();
        self.run(move |file, database| {
            let write = database.begin_write().map_err(|e| file.error(e.into()))?;
            file.check_epoch(&write, epoch)?;
            let applied = file.number(&write, "applied")?.unwrap_or_default();
            if applied.checked_add(1) != Some(number) {
                return Err(Error::new(
                    ErrorKind::Fenced,
                    "the write's number does not follow the last applied one: read it before the next write",
                )
                .with("number", number)
                .with("applied", applied));
            }
            for op in &batch {
                apply(&write, op).map_err(|e| file.error(e))?;
            }
            file.put_numbers(&write, &[("applied", number)])?;
            write.commit().map_err(|e| {
                // The commit may have reached the disk: the caller reads the number (L2), from the file opened anew.
                let cause = file.error(e.into());
                Error::new(ErrorKind::UnknownOutcome, cause.message().to_owned())
                    .with("path", file.path.display())
                    .with_source(cause)
            })?;
            Ok(WriteAck::default())
        })
        .await
    }

    async fn applied(&self) -> Result<u64> {
        self.run(|file, database| Ok(read(database).map_err(|e| file.error(e))?.applied)).await
    }
}
