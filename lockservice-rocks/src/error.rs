//! The one mapping from errors of RocksDB and of the file system to kinds.

use std::io;
use std::path::Path;

use lockservice_core::{Error, ErrorKind};

const DAMAGED: (ErrorKind, &str) =
    (ErrorKind::StoreCorrupt, "the store is damaged: restore it from a backup");
const IN_USE: (ErrorKind, &str) = (
    ErrorKind::StoreInUse,
    "the store is open in another process: stop that process, or choose another store with --store",
);
const FULL: (ErrorKind, &str) = (
    ErrorKind::StoreUnusable,
    "the disk under the store is full: free space there; nothing acknowledged is lost, and writes \
        succeed again by themselves",
);
const DENIED: (ErrorKind, &str) = (
    ErrorKind::StoreUnusable,
    "no permission to open the store's folder: give this user the right to read and write it",
);
const READ_ONLY: (ErrorKind, &str) = (
    ErrorKind::StoreUnusable,
    "the store's file system is read-only: mount it writable, or choose another store",
);
const FAILING: (ErrorKind, &str) =
    (ErrorKind::StoreUnusable, "the store's folder cannot be read or written: see to the disk");

/// The meaning of an error of RocksDB for the store in `path`.
pub(crate) fn from_rocksdb(path: &Path, error: rocksdb::Error) -> Error {
    use rocksdb::ErrorKind as Rocks;
    let (kind, message) = match error.kind() {
        Rocks::Corruption => DAMAGED,
        // Only a store that was there is opened without leave to create one: its CURRENT is gone.
        Rocks::InvalidArgument | Rocks::NotFound => DAMAGED,
        Rocks::IOError => io_error(error.as_ref()),
        Rocks::NotSupported => (
            ErrorKind::StoreNewer,
            "the store was written by a newer RocksDB, or is damaged: use the version that wrote \
                it, or restore it from a backup",
        ),
        Rocks::Busy
        | Rocks::TimedOut
        | Rocks::TryAgain
        | Rocks::Incomplete
        | Rocks::MergeInProgress => (ErrorKind::Unavailable, "the store is busy: try again"),
        Rocks::Aborted | Rocks::ShutdownInProgress => {
            (ErrorKind::Unavailable, "the store is being closed: try again")
        }
        Rocks::Expired | Rocks::CompactionTooLarge | Rocks::ColumnFamilyDropped => {
            (ErrorKind::Internal, "the store was used wrongly: please report this")
        }
        Rocks::Unknown => FAILING,
    };
    Error::new(kind, message).with("path", path.display()).with("cause", &error).with_source(error)
}

/// RocksDB passes the words of `strerror` on, and no number.
fn io_error(text: &str) -> (ErrorKind, &'static str) {
    let has = |words: &str| text.contains(words);
    if has("No space left") || has("Disk quota exceeded") || has("File too large") {
        FULL
    } else if has("/LOCK: ") || has("lock hold by current process") {
        if has("Permission denied") {
            DENIED
        } else if has("Read-only file system") {
            READ_ONLY
        } else {
            IN_USE
        }
    } else if has("Permission denied") || has("Operation not permitted") {
        DENIED
    } else if has("Read-only file system") {
        READ_ONLY
    } else if has("No such file or directory") {
        // The folder was there a moment ago, so it is one of the store's own files.
        DAMAGED
    } else {
        FAILING
    }
}

/// The meaning of an error of the file system for the store in `path`.
pub(crate) fn from_io(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let (kind, message) = match error.kind() {
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => FULL,
        Io::PermissionDenied => DENIED,
        Io::ReadOnlyFilesystem => READ_ONLY,
        Io::NotFound => (
            ErrorKind::StoreUnusable,
            "the folder around the store does not exist: create it, or choose another path",
        ),
        Io::NotADirectory | Io::AlreadyExists => (
            ErrorKind::StoreUnusable,
            "the store's path, or a part of it, is a file: RocksDB needs a folder of its own, \
                choose another path",
        ),
        Io::InvalidFilename => {
            (ErrorKind::StoreUnusable, "the store's path is no valid name: choose another path")
        }
        _ => FAILING,
    };
    Error::new(kind, message).with("path", path.display()).with("cause", &error).with_source(error)
}

pub(crate) fn in_use(path: &Path) -> Error {
    Error::new(IN_USE.0, IN_USE.1).with("path", path.display())
}

pub(crate) fn damaged(path: &Path, file: &str) -> Error {
    Error::new(DAMAGED.0, DAMAGED.1).with("path", path.display()).with("file", file)
}

pub(crate) fn foreign(path: &Path) -> Error {
    Error::new(
        ErrorKind::StoreUnusable,
        "the folder holds other files and no store: choose a folder of the store's own",
    )
    .with("path", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_system_lead_to_what_to_do() {
        for (text, kind) in [
            (
                "IO error: No space left on device: While appending to file: /s/000004.log",
                ErrorKind::StoreUnusable,
            ),
            (
                "IO error: While lock file: /s/LOCK: Resource temporarily unavailable",
                ErrorKind::StoreInUse,
            ),
            (
                "IO error: While open a file for lock: /s/LOCK: Permission denied",
                ErrorKind::StoreUnusable,
            ),
            (
                "IO error: No such file or directory: While open a file: /s/000012.sst",
                ErrorKind::StoreCorrupt,
            ),
        ] {
            assert_eq!(io_error(text).0, kind, "{text}");
        }
    }
}
