//! A disk that is soon full.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A small file system in memory, unmounted on drop.
pub(crate) struct SmallDisk(TempDir);

/// Mounts a file system of `bytes`. `None`, with a loud word, where this user may not mount.
pub(crate) fn small_disk(bytes: u64) -> Option<SmallDisk> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "lockservice-test"])
        .arg(folder.path());
    match mount.output() {
        Ok(done) if done.status.success() => Some(SmallDisk(folder)),
        other => {
            eprintln!(
                "SKIPPED: this test mounts a small disk, for which it must be run as root: \
                    {other:?}"
            );
            None
        }
    }
}

impl SmallDisk {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the space there is.
    pub(crate) fn fill(&self) {
        let mut file =
            OpenOptions::new().create(true).append(true).open(self.ballast()).expect("a file");
        for chunk in [1 << 16, 1 << 12, 1] {
            loop {
                match file.write(&vec![0; chunk]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("no way to fill a disk: {error}"),
                }
            }
        }
    }

    /// Gives it back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("space again");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have the store open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
