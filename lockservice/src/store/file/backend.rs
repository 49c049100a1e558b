//! The file under the database: grown by real space, and looked at before the database is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, fallocate};

/// The disk that redb reads and writes: one that outlives the database, so that it stays locked
/// while the database is closed and opened again.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    disk: Arc<dyn StorageBackend>,
    /// No write passes once this is set. Set by `freeze`, read by `check_writable`.
    frozen: Arc<AtomicBool>,
}

impl Backend {
    pub(super) fn new(disk: Arc<dyn StorageBackend>) -> Self {
        Self { disk, frozen: Arc::new(AtomicBool::new(false)) }
    }

    /// From now on nothing is written any more: a database that is given up must not touch the file
    /// when it is dropped.
    pub(super) fn freeze(&self) {
        // ORDERING: Relaxed. Partner: `Backend::check_writable`. The database is dropped by the
        // thread that froze its file.
        self.frozen.store(true, Ordering::Relaxed);
    }

    fn check_writable(&self) -> io::Result<()> {
        // ORDERING: Relaxed. Partner: `Backend::freeze`.
        if self.frozen.load(Ordering::Relaxed) {
            Err(io::Error::other("the database was given up"))
        } else {
            Ok(())
        }
    }
}

/// The locks of [`StorageBackend`] are for databases that several processes share; `close` would
/// release them. This one is locked by the process that opened the file.
impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check_writable()?;
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.disk.write(offset, data)
    }
}

/// A disk whose failed syncs are made good.
///
/// After a sync that failed, Linux takes the pages that did not reach the disk for clean: they are
/// read back as they were written, and a later sync passes over them. So whatever the file holds is
/// written once more before the next sync counts.
#[derive(Debug)]
pub(super) struct Resynced<D> {
    disk: D,
    /// The last sync failed. `sync_data` alone uses it.
    failed: AtomicBool,
}

/// How much is written again at once.
const REWRITE_BYTES: usize = 1 << 20;

impl<D: StorageBackend> Resynced<D> {
    pub(super) fn new(disk: D) -> Self {
        Self { disk, failed: AtomicBool::new(false) }
    }

    fn rewrite(&self) -> io::Result<()> {
        let (len, mut at) = (self.disk.len()?, 0);
        let mut bytes = vec![0; REWRITE_BYTES];
        while at < len {
            let part =
                usize::try_from(len - at).map_or(REWRITE_BYTES, |left| left.min(REWRITE_BYTES));
            self.disk.read(at, &mut bytes[..part])?;
            self.disk.write(at, &bytes[..part])?;
            at += part as u64;
        }
        Ok(())
    }
}

impl<D: StorageBackend> StorageBackend for Resynced<D> {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // ORDERING: Relaxed. Partner: itself. The engine syncs from one thread at a time.
        if self.failed.swap(true, Ordering::Relaxed) {
            self.rewrite()?;
        }
        self.disk.sync_data()?;
        self.failed.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(offset, data)
    }
}

/// A file as a disk.
#[derive(Debug)]
pub(super) struct FileDisk(pub(super) Arc<File>);

impl StorageBackend for FileDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old {
            // A file with holes would meet a full disk in the middle of a commit; here it fails
            // while nothing has changed.
            match fallocate(&self.0, FallocateFlags::empty(), old, len - old) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => {
                    self.0.set_len(old)?;
                    return Err(error.into());
                }
            }
        }
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// The kind of a file, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Header {
    /// The file is empty.
    Empty,
    /// It is not a redb database.
    Foreign,
    /// It is one, whole or damaged.
    Database,
}

/// Reads how a file begins. redb would take an empty file for a new database, and a foreign one for
/// a damaged one.
pub(super) fn check_header(disk: &dyn StorageBackend) -> io::Result<Header> {
    const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
    let mut magic = [0; MAGIC.len()];
    let known = usize::try_from(disk.len()?).map_or(MAGIC.len(), |len| len.min(MAGIC.len()));
    disk.read(0, &mut magic[..known])?;
    Ok(match known {
        0 => Header::Empty,
        _ if magic == MAGIC => Header::Database,
        _ => Header::Foreign,
    })
}
