//! The file under the database: locked, grown by real space, and checked before the database looks at it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, fallocate};

/// A file for redb. Its lock belongs to whoever opened the file, so that it is held while the database is closed and opened again.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    file: Arc<File>,
    frozen: Arc<AtomicBool>,
}

impl Backend {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self { file, frozen: Arc::new(AtomicBool::new(false)) }
    }

    /// From now on nothing is written any more: a database that is given up must not touch the file when it is dropped.
    pub(super) fn freeze(&self) {
        // ORDERING: Relaxed. Partner: `Backend::check_writable`. The database is dropped by the thread that froze its file.
        self.frozen.store(true, Ordering::Relaxed);
    }

    fn check_writable(&self) -> io::Result<()> {
        // ORDERING: Relaxed. Partner: `Backend::freeze`.
        if self.frozen.load(Ordering::Relaxed) { Err(io::Error::other("the database was given up")) } else { Ok(()) }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let old = self.file.metadata()?.len();
        if len > old {
            // A file with holes would meet a full disk in the middle of a commit; here it fails while nothing has changed.
            match fallocate(&self.file, FallocateFlags::empty(), old, len - old) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => {
                    self.file.set_len(old)?;
                    return Err(error.into());
                }
            }
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check_writable()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.file.write_all_at(data, offset)
    }
}

/// What the first bytes of a file say about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Header {
    /// The file is empty.
    Empty,
    /// It is not a redb database.
    Foreign,
    /// It is one whose header cannot be right, or that was cut off.
    Damaged,
    /// It may be opened.
    Plausible,
}

/// Reads the header of a redb file, as far as redb itself would panic over it (its format 3, documented in its `docs/design.md`).
pub(super) fn check_header(file: &File) -> io::Result<Header> {
    const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
    const HEADER_BYTES: usize = 320;
    const PAGE_BYTES: u64 = 4096;
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(Header::Empty);
    }
    let mut header = [0; HEADER_BYTES];
    let known = HEADER_BYTES.min(usize::try_from(len).unwrap_or(HEADER_BYTES));
    file.read_exact_at(&mut header[..known], 0)?;
    if header[..MAGIC.len()] != MAGIC {
        return Ok(Header::Foreign);
    }
    let number =
        |at: usize| u64::from(u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    let (page, header_pages, region_pages, regions, rest_pages) =
        (number(12), number(16), number(20), number(24), number(28));
    // redb takes a longer file for one that was cut short while it grew, and repairs it; a shorter one has lost data.
    let rest = if rest_pages == 0 { 0 } else { header_pages + rest_pages };
    let pages = regions.checked_mul(header_pages + region_pages).and_then(|full| full.checked_add(rest + 1));
    let bytes = pages.and_then(|pages| pages.checked_mul(PAGE_BYTES));
    let plausible =
        page == PAGE_BYTES && region_pages > 0 && regions + rest_pages > 0 && bytes.is_some_and(|bytes| bytes <= len);
    Ok(if plausible { Header::Plausible } else { Header::Damaged })
}
