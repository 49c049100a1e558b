//! [`Place`]: the path of a store that one process opens alone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, Ordering};

/// A lock file that is removed again and again while it is being locked.
const TRIES_MAX: usize = 100;

/// The path of a store, reserved for this process while the value lives.
///
/// The lock of an open file goes with the file, not with its name: a file that was renamed or
/// replaced no longer keeps a second process away from the path. So a place consists of two things:
///
/// 1. a lock file beside the store, `PATH.lock`, which is locked. It is never removed, so that a
///    store which is replaced does not let a second process in.
/// 2. [`check`](Self::check), which compares the path with the files that this process has open.
///    It notices that the lock file was removed too, or the folder renamed.
///
/// Between the removal of the store *and* its lock file and the next check a second process can
/// come in. An [`ExclusiveStore`](super::ExclusiveStore) checks before each call, and its allocator
/// calls it several times within a lease. A file that is overwritten in place stays the same file:
/// that is not noticed here.
#[derive(Debug)]
pub struct Place {
    /// Absolute, as it was given otherwise: a link that points elsewhere later is another place.
    path: PathBuf,
    lock_path: PathBuf,
    lock: File,
    /// True once another process may have used the path. `check` stores and loads it.
    lost: AtomicBool,
}

impl Place {
    /// Reserves `path`, at which a store need not exist yet. Its folder must exist.
    ///
    /// # Errors
    /// - `StoreInUse` if another process has reserved the path.
    /// - `StoreUnusable` if the file system has no file locks.
    /// - The error that `io` makes of any other error of the file system.
    pub fn reserve(path: &Path, io: impl Fn(io::Error) -> Error) -> Result<Self> {
        let absolute = std::path::absolute(path).map_err(&io)?;
        let lock_path = lock_path(&absolute).map_err(&io)?;
        let about = |error: Error| error.with("lock_file", lock_path.display());
        let open = || {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path)
        };
        for _ in 0..TRIES_MAX {
            let lock = open().map_err(|error| about(io(error)))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(about(in_use(path))),
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Err(about(no_locks(path, error)));
                }
                Err(TryLockError::Error(error)) => return Err(about(io(error))),
            }
            // It may have been removed before it was locked.
            if is_at(&lock, &lock_path).map_err(|error| about(io(error)))? {
                return Ok(Self { path: absolute, lock_path, lock, lost: AtomicBool::new(false) });
            }
        }
        Err(about(in_use(path)))
    }

    /// Compares the path with `opened`, the open file of the store (for a folder, a file in it at
    /// `inside`), and with the lock file.
    ///
    /// # Errors
    /// - `Fenced` if one of them was removed, renamed or replaced, from then on for ever: another
    ///   process may have used the path since.
    /// - `Unavailable` if the file system does not report it.
    pub fn check(&self, opened: &File, inside: &Path) -> Result<()> {
        // An empty `inside` must not end the path with a slash.
        let path =
            if inside.as_os_str().is_empty() { self.path.clone() } else { self.path.join(inside) };
        for (file, path) in [(opened, &path), (&self.lock, &self.lock_path)] {
            // ORDERING: Relaxed. Partner: the store below. The flag carries no other memory with
            // it.
            if self.lost.load(Ordering::Relaxed) {
                return Err(self.is_lost(path));
            }
            match is_at(file, path) {
                Ok(true) => {}
                Ok(false) => {
                    // ORDERING: Relaxed. Partner: the load above.
                    self.lost.store(true, Ordering::Relaxed);
                    return Err(self.is_lost(path));
                }
                Err(error) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the store's path cannot be looked at, so that it is not known whether the \
                            store is still there",
                    )
                    .with("path", path.display())
                    .with("cause", &error)
                    .with_source(error));
                }
            }
        }
        Ok(())
    }

    fn is_lost(&self, file: &Path) -> Error {
        Error::new(
            ErrorKind::Fenced,
            "the store was removed, renamed or replaced while it was open, and another process \
             may use its path now: stop the \
             server before you touch its store, put the store back, and start the server again",
        )
        .with("path", self.path.display())
        .with("missing_or_replaced", file.display())
    }
}

/// The path of the lock file of the store at `path`. It stands beside the store itself, not beside
/// a link to it: two names of one store have one lock.
fn lock_path(path: &Path) -> io::Result<PathBuf> {
    let real = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
            fs::canonicalize(folder)?.join(path.file_name().ok_or(io::ErrorKind::InvalidFilename)?)
        }
        real => real?,
    };
    let mut name = real.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    name.push(".lock");
    Ok(real.with_file_name(name))
}

/// True if `path` names `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn in_use(path: &Path) -> Error {
    Error::new(
        ErrorKind::StoreInUse,
        "the store is open in another process: stop that process, or choose another store with \
            --store",
    )
    .with("path", path.display())
}

/// Without locks nothing keeps a second process out.
fn no_locks(path: &Path, error: io::Error) -> Error {
    Error::new(
        ErrorKind::StoreUnusable,
        "the store's file system has no file locks, so that two processes could use the store at \
            once: put it on a local disk",
    )
    .with("path", path.display())
    .with_source(error)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn io(error: io::Error) -> Error {
        Error::new(ErrorKind::Internal, "unexpected").with_source(error)
    }

    /// A store at `store` in a folder of its own, its place reserved.
    fn reserved() -> (tempfile::TempDir, PathBuf, File, Place) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        let place = Place::reserve(&path, io).expect("it is free");
        (folder, path.clone(), File::create(&path).expect("a file"), place)
    }

    #[test]
    fn a_place_is_lost_for_ever_once_its_file_or_lock_file_is_removed_renamed_or_replaced() {
        type Act = fn(&Path);
        let acts: [(&str, Act); 5] = [
            ("removed", |path| fs::remove_file(path).expect("removed")),
            ("renamed", |path| fs::rename(path, path.with_extension("old")).expect("renamed")),
            ("replaced", |path| {
                fs::copy(path, path.with_extension("new")).expect("copied");
                fs::rename(path.with_extension("new"), path).expect("replaced");
            }),
            ("unlocked", |path| fs::remove_file(path.with_extension("lock")).expect("removed")),
            ("with its folder", |path| {
                let folder = path.parent().expect("a folder");
                fs::rename(folder, folder.with_extension("old")).expect("renamed");
                fs::create_dir(folder).expect("a folder again");
            }),
        ];
        for (what, act) in acts {
            let (folder, path, file, place) = reserved();
            place.check(&file, Path::new("")).expect("in place");
            act(&path);
            let error = place.check(&file, Path::new("")).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Fenced, "{what}: {error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{what}: {error}");
            // Putting it back is too late: another may have been there.
            drop(fs::rename(path.with_extension("old"), &path));
            assert_eq!(
                place.check(&file, Path::new("")).expect_err(what).kind(),
                ErrorKind::Fenced,
                "{what}"
            );
            drop(fs::remove_dir_all(folder.path().with_extension("old")));
        }
    }

    #[test]
    fn a_path_is_reserved_once_whatever_happens_to_the_store_and_by_whatever_name() {
        let (folder, path, _, place) = reserved();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let refused = |path: &Path| {
            let error = Place::reserve(path, io).expect_err("it is reserved");
            assert_eq!(error.kind(), ErrorKind::StoreInUse, "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        };
        refused(&path);
        refused(&link);
        fs::remove_file(&path).expect("removed");
        refused(&path);
        drop(place);
        Place::reserve(&path, io).expect("free again");
    }
}
