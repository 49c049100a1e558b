//! Bindings of lockservice in RocksDB: `rocks:PATH`.
//!
//! [`RocksStore`] is a [`BindStore`](lockservice_core::store::BindStore) in a folder of its own,
//! open to one process at a time. Each write is one atomic batch that has reached the disk (a
//! synced write-ahead log) before the call returns.
//!
//! ```
//! # tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
//! use lockservice_core::store::BindStore;
//!
//! let folder = tempfile::tempdir()?;
//! let store = lockservice_rocks::RocksStore::open(folder.path().join("store")).await?;
//! assert_eq!(store.load().await?.applied.get(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).expect("a new store");
//! ```
//!
//! # Code
//! | file | noun |
//! |---|---|
//! | `config` | [`RocksConfig`] |
//! | `store` | [`RocksStore`] |
//! | `log` | the check of RocksDB's own logs |
//! | `error` | errors of the driver as kinds |

mod config;
mod error;
mod log;
mod store;

/// The driver, for the options of [`RocksConfig`].
pub use rocksdb;

pub use crate::config::RocksConfig;
pub use crate::store::RocksStore;
