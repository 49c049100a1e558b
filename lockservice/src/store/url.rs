//! [`StoreUrl`]: the store that a URL names, parsed once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockservice_core::store::{BindStore, Damage, Inspection, MemoryStore, STORE_FORMAT};
use lockservice_core::{Error, ErrorKind, Result};

#[cfg(feature = "file")]
use super::FileStore;
#[cfg(feature = "pg")]
use super::PgStore;
#[cfg(feature = "redis")]
use super::RedisStore;
#[cfg(feature = "rocks")]
use super::RocksStore;
use super::{open_file, open_pg, open_redis, open_rocks, schemes, wall_clock_s};

/// The store that a URL names. Its scheme is known to some build of this crate, not necessarily to
/// this one: [`open`](Self::open) fails then.
///
/// `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Memory,
    File(PathBuf),
    Rocks(PathBuf),
    /// The whole URL.
    Pg(String),
    /// The whole URL.
    Redis(String),
}

impl StoreUrl {
    /// Reads the scheme, and the path of a store on a disk. The other stores read the rest of their
    /// URL themselves, when they are opened.
    ///
    /// # Errors
    /// `InvalidArgument`: the scheme is unknown, or the path is missing. Correct the URL.
    pub fn parse(url: &str) -> Result<Self> {
        let (scheme, path) = url.split_once(':').unwrap_or((url, ""));
        Ok(Self(match scheme {
            "memory" => Kind::Memory,
            "file" | "rocks" if path.is_empty() => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "the store's URL lacks a path: write {scheme}:PATH, for example \
                         {scheme}:./lockservice.db"
                    ),
                ));
            }
            "file" => Kind::File(path.into()),
            "rocks" => Kind::Rocks(path.into()),
            "postgres" | "postgresql" => Kind::Pg(url.to_owned()),
            "redis" | "rediss" | "redis-sentinel" | "rediss-sentinel" | "redis-cluster"
            | "rediss-cluster" => Kind::Redis(url.to_owned()),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    // The URL is not repeated: it may hold a password.
                    format!(
                        "the store's URL has an unknown scheme: use one of {}",
                        schemes().join(", ")
                    ),
                ));
            }
        }))
    }

    /// True if the store forgets everything with the process (B7).
    pub fn is_volatile(&self) -> bool {
        matches!(self.0, Kind::Memory)
    }

    /// True if several nodes can share the store.
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Kind::Pg(_) | Kind::Redis(_))
    }

    /// Opens the store: see [`open`](super::open).
    ///
    /// # Errors
    /// Those of [`open`](super::open), but for a URL that cannot be read.
    ///
    /// # Cancel safety
    /// A store is created or migrated as a whole or not at all.
    pub async fn open(&self) -> Result<Arc<dyn BindStore>> {
        match &self.0 {
            Kind::Memory => Ok(Arc::new(MemoryStore::new(wall_clock_s()))),
            Kind::File(path) => open_file(path).await,
            Kind::Rocks(path) => open_rocks(path).await,
            Kind::Pg(url) => open_pg(url).await,
            Kind::Redis(url) => open_redis(url).await,
        }
    }

    /// Opens the store if it exists: see [`open_existing`](super::open_existing).
    ///
    /// # Errors
    /// Those of [`open_existing`](super::open_existing), but for a URL that cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn open_existing(&self) -> Result<Arc<dyn BindStore>> {
        self.check_existing().await?;
        self.open().await
    }

    /// Reads the store if it exists: see [`inspect`](super::inspect).
    ///
    /// # Errors
    /// Those of [`inspect`](super::inspect), but for a URL that cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn inspect(&self) -> Result<Inspection> {
        self.check_existing().await?;
        match &self.0 {
            #[cfg(feature = "file")]
            Kind::File(path) => FileStore::inspect(path).await,
            #[cfg(feature = "rocks")]
            Kind::Rocks(path) => RocksStore::inspect(path).await,
            #[cfg(feature = "pg")]
            Kind::Pg(url) => PgStore::inspect(url).await,
            #[cfg(feature = "redis")]
            Kind::Redis(url) => RedisStore::inspect(url).await,
            // `open` reports that this build lacks the others.
            #[allow(unreachable_patterns)]
            _ => {
                let store = self.open().await?;
                let (state, head) = (store.load().await?, store.head().await?);
                Ok(Inspection { store: store.describe(), state, head, damage: Damage::refused() })
            }
        }
    }

    /// The format of a store that has to be migrated before it is read, or 0 if there is no store;
    /// `None` if opening it reports that, and does no harm. Changes nothing.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and `StoreNewer` for the format of a later version.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn stored_format(&self) -> Result<Option<u32>> {
        let missing = match &self.0 {
            Kind::File(path) => is_missing(path),
            Kind::Rocks(path) => is_missing_or_empty(path),
            #[cfg(feature = "pg")]
            Kind::Pg(url) => return lockservice_pg::stored_format(url).await.map(Some),
            _ => false,
        };
        Ok(missing.then_some(0))
    }

    async fn check_existing(&self) -> Result<()> {
        if self.is_volatile() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a store in memory ends with its process, so there is none to be opened: name \
                 another with --store",
            ));
        }
        match self.stored_format().await? {
            Some(0) => Err(Error::new(
                ErrorKind::StoreUnusable,
                "there is no store: correct --store; `lockservice serve` would create one",
            )
            .with("store", self.describe_missing())),
            Some(format) if format < STORE_FORMAT => Err(Error::new(
                ErrorKind::StoreUnusable,
                format!(
                    "the store is in format {format}, this version reads {STORE_FORMAT}: run \
                     `lockservice store migrate`"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The URL of a store that does not exist, if no secret can be in it.
    fn describe_missing(&self) -> String {
        match &self.0 {
            Kind::File(path) => format!("file:{}", path.display()),
            Kind::Rocks(path) => format!("rocks:{}", path.display()),
            _ => "as --store says".to_owned(),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL of a server may hold a password.
        f.write_str(match self.0 {
            Kind::Memory => "memory:",
            Kind::File(_) => "file:…",
            Kind::Rocks(_) => "rocks:…",
            Kind::Pg(_) => "postgres:…",
            Kind::Redis(_) => "redis:…",
        })
    }
}

/// Only a certain absence is decided here. The store's own `open` reports everything else.
fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

fn is_missing_or_empty(folder: &Path) -> bool {
    is_missing(folder)
        || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
