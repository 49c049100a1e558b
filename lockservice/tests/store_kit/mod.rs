//! Stores in temporary folders, and the ways to spoil them.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | stores in temporary folders, and damage to them |
//! | `child.rs` | the test binary as a process that may be killed |
//! | `disk.rs` | a disk that is soon full |

pub(crate) mod child;
pub(crate) mod disk;

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::store::{
    Acquired, BindRecord, BindStore, Candidate, Leadership, Op, StoreState, TableRecord,
};
use lockservice_core::{
    BindVersion, Epoch, FencingToken, NodeName, Result, ServiceId, TableId, TableRef, WriteNumber,
};
use tempfile::TempDir;

pub(crate) use lockservice::store::open;

/// The store that a test runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    File,
    #[cfg(feature = "rocks")]
    Rocks,
}

impl Kind {
    pub(crate) fn url(self, path: &Path) -> String {
        match self {
            Self::File => format!("file:{}", path.display()),
            #[cfg(feature = "rocks")]
            Self::Rocks => format!("rocks:{}", path.display()),
        }
    }
}

/// A place for one store, removed with it.
pub(crate) struct Site {
    kind: Kind,
    folder: TempDir,
}

impl Site {
    pub(crate) fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Other users may come as far as the store itself.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("our own folder");
        Self { kind, folder }
    }

    /// A copy of the committed store of format 1.
    pub(crate) fn from_fixture(kind: Kind) -> Self {
        let site = Self::new(kind);
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        match kind {
            Kind::File => copy_all(&fixtures.join("format-1.db"), &site.path()),
            #[cfg(feature = "rocks")]
            Kind::Rocks => copy_all(&fixtures.join("format-1.rocks"), &site.path()),
        }
        site
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn url(&self) -> String {
        self.kind.url(&self.path())
    }

    pub(crate) async fn open(&self) -> Result<Arc<dyn BindStore>> {
        open(&self.url()).await
    }

    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new(self.kind);
        copy_all(&self.path(), &copy.path());
        copy
    }

    pub(crate) fn set_mode(&self, mode: u32) {
        fs::set_permissions(self.path(), Permissions::from_mode(mode)).expect("our own store");
    }

    /// Every file with what was stored, relative to the store, and about `count` places in each:
    /// the first 64 and others spread over it.
    pub(crate) fn offsets(&self, count: u64) -> Vec<(PathBuf, u64)> {
        let files = match self.kind {
            Kind::File => vec![PathBuf::new()],
            #[cfg(feature = "rocks")]
            Kind::Rocks => {
                let names = fs::read_dir(self.path())
                    .expect("a folder")
                    .map(|entry| entry.expect("an entry").file_name());
                // The logs for people of RocksDB and of ours are not read back.
                let read = |name: &PathBuf| {
                    let name = name.to_string_lossy();
                    !["LOG", "LOCK", "OPTIONS", "IDENTITY"]
                        .iter()
                        .any(|prefix| name.starts_with(prefix))
                };
                names.map(PathBuf::from).filter(read).collect()
            }
        };
        let places = |file: PathBuf| {
            let len = self.file(&file).metadata().expect("there").len();
            let step = (len / count).max(1);
            let spread = (0..len)
                .step_by(usize::try_from(step).expect("small"))
                .map(|at| at + at / step % step.min(97));
            let mut places: Vec<_> =
                (0..64.min(count)).chain(spread).filter(|at| *at < len).collect();
            places.sort_unstable();
            places.dedup();
            places.into_iter().map(|at| (file.clone(), at)).collect::<Vec<_>>()
        };
        files.into_iter().flat_map(places).collect()
    }

    fn file(&self, file: &Path) -> fs::File {
        // Joining an empty path would end the name with a slash.
        let path = if file.as_os_str().is_empty() { self.path() } else { self.path().join(file) };
        OpenOptions::new().read(true).write(true).open(path).expect("a file of the store")
    }

    pub(crate) fn flip(&self, file: &Path, offset: u64) {
        let file = self.file(file);
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("within the file");
        byte[0] ^= 1 << (offset % 8);
        file.write_all_at(&byte, offset).expect("within the file");
    }

    pub(crate) fn cut(&self, file: &Path, len: u64) {
        self.file(file).set_len(len).expect("shorter");
    }

    /// Writes one entry behind the store's back.
    pub(crate) fn raw_put(&self, key: &[u8], value: &[u8]) {
        match self.kind {
            Kind::File => {
                let database = redb::Database::create(self.path()).expect("a database");
                let write = database.begin_write().expect("a transaction");
                write.open_table(RECORDS).expect("the table").insert(key, value).expect("an entry");
                write.commit().expect("committed");
            }
            #[cfg(feature = "rocks")]
            Kind::Rocks => self.raw_rocks().put(key, value).expect("an entry"),
        }
    }

    pub(crate) fn raw_entries(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        match self.kind {
            Kind::File => {
                use redb::{ReadableDatabase, ReadableTable};
                let database = redb::Database::create(self.path()).expect("a database");
                let records = database
                    .begin_read()
                    .expect("a transaction")
                    .open_table(RECORDS)
                    .expect("the table");
                let entries =
                    records.iter().expect("readable").map(|entry| entry.expect("readable"));
                entries.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).collect()
            }
            #[cfg(feature = "rocks")]
            Kind::Rocks => {
                let entries = self.raw_rocks();
                let entries = entries.iterator(lockservice_rocks::rocksdb::IteratorMode::Start);
                entries
                    .map(|entry| entry.expect("readable"))
                    .map(|(key, value)| (key.to_vec(), value.to_vec()))
                    .collect()
            }
        }
    }

    #[cfg(feature = "rocks")]
    fn raw_rocks(&self) -> lockservice_rocks::rocksdb::DB {
        lockservice_rocks::rocksdb::DB::open_default(self.path()).expect("a database")
    }
}

/// Puts three records behind the store's back that cannot be read: table `group/table-3`,
/// incarnation 7, and a tombstone of it.
pub(crate) fn spoil(site: &Site) {
    let service = 7u64.to_be_bytes();
    site.raw_put(b"table/group\0table-3", b"\x01{\"partitions\":1}");
    site.raw_put(&[b"service/", service.as_slice()].concat(), b"\x02of a later version");
    site.raw_put(&[b"tombstone/", service.as_slice(), &1u64.to_be_bytes()].concat(), b"");
}

const RECORDS: redb::TableDefinition<'static, &[u8], &[u8]> = redb::TableDefinition::new("records");

fn copy_all(from: &Path, to: &Path) {
    if from.is_file() {
        fs::copy(from, to).expect("copied");
        return;
    }
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        copy_all(&entry.path(), &to.join(entry.file_name()));
    }
}

pub(crate) fn candidate() -> Candidate {
    Candidate::new(NodeName::new("node-1").expect("a name"), "127.0.0.1:1")
}

/// Becomes the leader; returns the epoch, and whether the last leader resigned.
pub(crate) async fn acquire(store: &dyn BindStore) -> (Epoch, bool) {
    match store
        .acquire_leadership(&candidate(), Duration::from_secs(5))
        .await
        .expect("an exclusive store")
    {
        Leadership::Acquired(Acquired { epoch, clean, exclusive: true, .. }) => (epoch, clean),
        other => panic!("an exclusive store answers no {other:?}"),
    }
}

pub(crate) fn table(number: u64) -> TableRecord {
    TableRecord {
        table: TableRef::new("group", format!("table-{number}")).expect("names"),
        id: TableId::new(number),
        partitions: 1,
        tokens_reserved_to: FencingToken::new(number << 32),
        binds: vec![BindRecord {
            owner: ServiceId::new(number),
            version: BindVersion::new(number),
        }],
        claimable_from: Default::default(),
    }
}

/// Write `number`: the tables 2 × `number` and 2 × `number` + 1.
pub(crate) async fn write_tables(store: &dyn BindStore, epoch: Epoch, number: u64) -> Result<()> {
    let batch = vec![Op::PutTable(table(2 * number)), Op::PutTable(table(2 * number + 1))];
    store.write(epoch, WriteNumber::new(number), &batch).await.map(drop)
}

/// Everything in the store, in order of the numbers.
pub(crate) async fn state_of(store: &dyn BindStore) -> StoreState {
    let mut state = store.load().await.expect("readable");
    state.tables.sort_by_key(|table| table.id);
    state
}
