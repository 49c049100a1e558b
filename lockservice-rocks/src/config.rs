//! [`RocksConfig`]: the path of a store, and the set-up of RocksDB.

use std::fmt;
use std::path::PathBuf;

use rocksdb::{LogLevel, Options};

/// The place of a store, and the setup of RocksDB.
#[derive(Clone)]
pub struct RocksConfig {
    /// The store's folder. It is created if it is not there; the folder around it is not.
    pub path: PathBuf,
    /// RocksDB's options. The options on which durability and exclusion rest are set over them: the
    /// way back after a crash, the checks of what is read, and when a database may be created.
    pub options: Options,
}

impl RocksConfig {
    /// A store in `path` with options for what a lock service keeps: little data, few writes.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let mut options = Options::default();
        options.set_write_buffer_size(8 << 20);
        options.set_max_total_wal_size(32 << 20);
        options.set_keep_log_file_num(2);
        options.set_log_level(LogLevel::Warn);
        Self { path: path.into(), options }
    }
}

impl fmt::Debug for RocksConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksConfig").field("path", &self.path).finish_non_exhaustive()
    }
}
