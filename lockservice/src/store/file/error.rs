//! The one mapping from errors of the file system and of redb to kinds.

use std::io;
use std::path::Path;

use lockservice_core::{Error, ErrorKind};

/// The meaning of an error of the file system for the store in `path`.
pub(super) fn from_io(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let (kind, message) = match error.kind() {
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => (
            ErrorKind::StoreUnusable,
            "the disk under the store is full: free space there; nothing acknowledged is lost, \
                and writes succeed again by themselves",
        ),
        Io::PermissionDenied => (
            ErrorKind::StoreUnusable,
            "no permission to open the store's file: give this user the right to read and write it",
        ),
        Io::ReadOnlyFilesystem => (
            ErrorKind::StoreUnusable,
            "the store's file system is read-only: mount it writable, or choose another store",
        ),
        Io::NotFound => (
            ErrorKind::StoreUnusable,
            "the store's folder does not exist: create it, or choose another path",
        ),
        Io::NotADirectory => (
            ErrorKind::StoreUnusable,
            "a part of the store's path is not a folder: choose another path",
        ),
        Io::IsADirectory => (
            ErrorKind::StoreUnusable,
            "the store's path is a folder: name a file in it, for example lockservice.db",
        ),
        Io::InvalidFilename => (
            ErrorKind::StoreUnusable,
            "the store's path is no valid file name: choose another path",
        ),
        Io::InvalidData | Io::UnexpectedEof => {
            (ErrorKind::StoreCorrupt, "the store's file is damaged: restore it from a backup")
        }
        _ => (
            ErrorKind::StoreUnusable,
            "the store's file cannot be read or written: see to the disk",
        ),
    };
    Error::new(kind, message).with("path", path.display()).with("cause", &error).with_source(error)
}

/// The meaning of an error of redb for the store in `path`.
pub(super) fn from_redb(path: &Path, error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let (kind, message) = match &error {
        redb::Error::Io(_) => {
            let redb::Error::Io(error) = error else { unreachable!("just matched") };
            return from_io(path, error);
        }
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            return in_use(path);
        }
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableDoesNotExist(_) => {
            (ErrorKind::StoreCorrupt, "the store's file is damaged: restore it from a backup")
        }
        redb::Error::ValueTooLarge(_) => (
            ErrorKind::ResourceExhausted,
            "a record is too large for the store: bind fewer partitions",
        ),
        redb::Error::PreviousIo | redb::Error::DatabaseClosed | redb::Error::LockPoisoned(_) => (
            ErrorKind::Unavailable,
            "the store failed before and was not opened again yet: try again",
        ),
        redb::Error::TransactionPoisoned => (
            ErrorKind::Unavailable,
            "the store failed in the middle of a write and was not opened again yet: try again",
        ),
        redb::Error::RepairAborted
        | redb::Error::TableAlreadyOpen(..)
        | redb::Error::TableExists(_)
        | redb::Error::InvalidSavepoint
        | redb::Error::PersistentSavepointModified
        | redb::Error::PersistentSavepointExists
        | redb::Error::EphemeralSavepointExists
        | redb::Error::TransactionInProgress
        | redb::Error::ReadTransactionStillInUse(_) => {
            (ErrorKind::Internal, "the store was used wrongly: please report this")
        }
        // The enum may grow: whatever is new is not known to leave the store in order.
        _ => (ErrorKind::StoreUnusable, "the store's file cannot be used: see the cause"),
    };
    Error::new(kind, message).with("path", path.display()).with("cause", &error).with_source(error)
}

pub(super) fn in_use(path: &Path) -> Error {
    Error::new(
        ErrorKind::StoreInUse,
        "the store is open in another process: stop that process, or choose another store with \
            --store",
    )
    .with("path", path.display())
}

pub(super) fn foreign(path: &Path) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        "the file is not a store of lockservice: choose another path, or restore the store from a \
            backup",
    )
    .with("path", path.display())
}

pub(super) fn empty(path: &Path) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        "the file is empty, which a store never is: restore it from a backup, or remove the file \
            to begin a new store",
    )
    .with("path", path.display())
}
