//! [`Reloaded`]: a value made of files, made again when they change.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "tls")]
use std::time::Duration;

#[cfg(feature = "tls")]
use lockservice_core::clock::{Clock as _, SystemClock, Time};
use lockservice_core::{Error, Result};
use parking_lot::Mutex;

/// The interval at which the files are checked.
#[cfg(feature = "tls")]
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Makes the value of the files.
type Load<T> = dyn Fn() -> Result<T> + Send + Sync;

/// A value made of files, as they were when they could last be used.
pub(crate) struct Reloaded<T> {
    files: Vec<PathBuf>,
    load: Box<Load<T>>,
    /// Locked for a copy. A leaf.
    current: Mutex<Arc<T>>,
    /// Locked while the files are read. Before `current`.
    checked: Mutex<Checked>,
}

#[derive(Debug)]
struct Checked {
    /// The state of each file when it was last used; `None` for one that could not be looked at.
    stamps: Vec<Option<Stamp>>,
    #[cfg(feature = "tls")]
    at: Time,
    /// The error that was reported last, so that it is reported once.
    reported: Option<String>,
}

/// Another stamp means another content. A file that is replaced by renaming has another inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// The outcome of a check.
#[cfg_attr(
    not(all(feature = "server", feature = "tls")),
    allow(dead_code, reason = "only a server with TLS reports it")
)]
#[derive(Debug)]
pub(crate) enum Reloading {
    /// The files are those that are used.
    Unchanged,
    /// The value was made again.
    Done,
    /// The files have changed and cannot be used: the last value stays.
    Failed(Error),
}

impl<T> Reloaded<T> {
    /// Makes the value. Fails as `load` does.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        // Before they are read: a change in between is found by the next check.
        let stamps = stamps(&files);
        let current = Mutex::new(Arc::new(load()?));
        let checked = Mutex::new(Checked {
            stamps,
            #[cfg(feature = "tls")]
            at: SystemClock.now(),
            reported: None,
        });
        Ok(Self { files, load: Box::new(load), current, checked })
    }

    /// The value, as of the last check.
    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.lock())
    }

    /// Makes the value again if the files have changed; without a look at that if `always`.
    ///
    /// Files are replaced one after the other. While they do not fit together the last value stays,
    /// and each check tries again. Reads files, so it blocks the thread.
    pub(crate) fn check(&self, always: bool) -> Reloading {
        let mut checked = self.checked.lock();
        #[cfg(feature = "tls")]
        {
            checked.at = SystemClock.now();
        }
        let stamps = stamps(&self.files);
        if !always && stamps == checked.stamps {
            return Reloading::Unchanged;
        }
        match (self.load)() {
            Ok(made) => {
                *self.current.lock() = Arc::new(made);
                (checked.stamps, checked.reported) = (stamps, None);
                Reloading::Done
            }
            Err(e) => {
                let text = e.to_string();
                let known = checked.reported.replace(text.clone()) == Some(text);
                if known && !always { Reloading::Unchanged } else { Reloading::Failed(e) }
            }
        }
    }

    #[cfg(feature = "tls")]
    fn is_due(&self) -> bool {
        // Another thread that holds it is checking.
        self.checked
            .try_lock()
            .is_some_and(|checked| SystemClock.now().since(checked.at) >= CHECK_INTERVAL)
    }
}

#[cfg(feature = "tls")]
impl<T: Send + Sync + 'static> Reloaded<T> {
    /// The value, after a check if the last one was some time ago.
    ///
    /// # Cancel safety
    /// A check that has begun is completed.
    pub(crate) async fn fresh(self: &Arc<Self>) -> Arc<T> {
        if self.is_due() {
            let this = Arc::clone(self);
            let checked = tokio::task::spawn_blocking(move || this.check(false)).await;
            if let Ok(Reloading::Failed(error)) = checked {
                tracing::warn!(%error, "a file has changed and cannot be used: its last content \
                    stays in use");
            }
        }
        self.current()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata::<&Path>(path.as_ref()).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    };
    files.iter().map(stamp).collect()
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("files", &self.files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use lockservice_core::ErrorKind;

    use super::*;

    #[test]
    fn a_value_follows_its_file_and_stays_while_the_file_cannot_be_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        // As a replacement is done: a reader sees the old file or the new one.
        let replace = |text: &str| {
            std::fs::write(folder.path().join("new"), text).expect("written");
            std::fs::rename(folder.path().join("new"), &path).expect("renamed");
        };
        replace("1");
        let load = {
            let path = path.clone();
            move || {
                let bad = |_| Error::new(ErrorKind::InvalidArgument, "no number");
                let text = std::fs::read_to_string(&path)
                    .map_err(|_| Error::new(ErrorKind::InvalidArgument, "no file"))?;
                text.parse::<u32>().map_err(bad)
            }
        };
        let number = Reloaded::new(vec![path.clone()], load).expect("a number");
        assert!(matches!(number.check(false), Reloading::Unchanged));
        replace("2");
        assert_eq!(*number.current(), 1, "nothing changes without a check");
        assert!(matches!(number.check(false), Reloading::Done));
        replace("x");
        assert!(matches!(number.check(false), Reloading::Failed(_)));
        assert!(matches!(number.check(false), Reloading::Unchanged), "reported once");
        assert!(matches!(number.check(true), Reloading::Failed(_)), "and when it is requested");
        std::fs::remove_file(&path).expect("it is there");
        assert!(matches!(number.check(false), Reloading::Failed(_)), "another reason");
        assert_eq!(*number.current(), 2);
        replace("3");
        assert!(matches!(number.check(false), Reloading::Done));
        assert_eq!(*number.current(), 3);
    }
}
