//! Stores by URL: which backends this build has, and how one is opened.

#[cfg(feature = "file")]
mod file;

use std::path::Path;
use std::sync::Arc;

use lockservice_core::store::{BindStore, Damage, Inspection, MemoryStore, STORE_FORMAT};
use lockservice_core::{Error, ErrorKind, Result};

#[cfg(feature = "file")]
pub use self::file::FileStore;
#[cfg(feature = "pg")]
pub use lockservice_pg::PgStore;
#[cfg(feature = "redis")]
pub use lockservice_redis::RedisStore;
#[cfg(feature = "rocks")]
pub use lockservice_rocks::RocksStore;

const REDIS: [&str; 6] =
    ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];

/// The schemes that this build can open.
pub fn schemes() -> Vec<&'static str> {
    let mut schemes = vec!["memory:"];
    if cfg!(feature = "file") {
        schemes.insert(0, "file:PATH");
    }
    if cfg!(feature = "rocks") {
        schemes.push("rocks:PATH");
    }
    if cfg!(feature = "pg") {
        schemes.push("postgres://USER:PASSWORD@HOST/DATABASE");
    }
    if cfg!(feature = "redis") {
        schemes.extend([
            "redis://HOST",
            "redis-sentinel://HOST,HOST/MASTER",
            "redis-cluster://HOST,HOST",
        ]);
    }
    schemes
}

/// Opens the store that a URL names: `memory:`, `file:PATH`, `rocks:PATH`, `postgres://…` or
/// `redis://…` (also `redis-sentinel://…` and `redis-cluster://…`).
///
/// Fails with `InvalidArgument` for a URL that no build knows, or that this one was not built for
/// (the error names the feature), and as the store's own `open` does.
pub async fn open(url: &str) -> Result<Arc<dyn BindStore>> {
    let (scheme, path) = url.split_once(':').unwrap_or((url, ""));
    match scheme {
        "memory" => Ok(Arc::new(MemoryStore::new(wall_clock_s()))),
        "file" | "rocks" if path.is_empty() => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "the store's URL lacks a path: write {scheme}:PATH, for example \
                    {scheme}:./lockservice.db"
            ),
        )),
        "file" => open_file(path).await,
        "rocks" => open_rocks(path).await,
        "postgres" | "postgresql" => open_pg(url).await,
        scheme if REDIS.contains(&scheme) => open_redis(url).await,
        _ => Err(Error::new(
            ErrorKind::InvalidArgument,
            // What was given is not repeated: it may hold a password.
            format!("the store's URL has an unknown scheme: use one of {}", schemes().join(", ")),
        )),
    }
}

/// Opens a store that is there: nothing is created or migrated. Of a `memory:` store there is never
/// one.
///
/// Fails with `InvalidArgument` for a URL that cannot be opened here, `StoreUnusable` if there is
/// no store, or only one of an older format, and as the store's own `open` does.
pub async fn open_existing(url: &str) -> Result<Arc<dyn BindStore>> {
    check_existing(url).await?;
    open(url).await
}

/// Reads a store that is there, damaged or not, as far as it can be read. Nothing is created,
/// migrated or changed.
///
/// Fails as [`open_existing`] does, but for damaged records: those are in the answer.
pub async fn inspect(url: &str) -> Result<Inspection> {
    check_existing(url).await?;
    let (scheme, _path) = url.split_once(':').unwrap_or((url, ""));
    match scheme {
        #[cfg(feature = "file")]
        "file" if !_path.is_empty() => FileStore::inspect(_path).await,
        #[cfg(feature = "rocks")]
        "rocks" if !_path.is_empty() => RocksStore::inspect(_path).await,
        #[cfg(feature = "pg")]
        "postgres" | "postgresql" => PgStore::inspect(url).await,
        #[cfg(feature = "redis")]
        scheme if REDIS.contains(&scheme) => RedisStore::inspect(url).await,
        // Of all others the open says what is wrong.
        _ => {
            let store = open(url).await?;
            let (state, head) = (store.load().await?, store.head().await?);
            Ok(Inspection { store: store.describe(), state, head, damage: Damage::refused() })
        }
    }
}

async fn check_existing(url: &str) -> Result<()> {
    if is_volatile(url) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "a store in memory ends with its process, so there is none to be opened: name another \
                with --store",
        ));
    }
    match stored_format(url).await? {
        Some(0) => Err(Error::new(
            ErrorKind::StoreUnusable,
            "there is no store: correct --store; `lockservice serve` would create one",
        )
        .with("store", describe_missing(url))),
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

/// The format of a store that has to be migrated before it is read, or 0 if there is no store;
/// `None` if opening it tells, and does no harm. Changes nothing.
///
/// Fails as [`open`] does, and with `StoreNewer` for the format of a later version.
pub async fn stored_format(url: &str) -> Result<Option<u32>> {
    let (scheme, path) = url.split_once(':').unwrap_or((url, ""));
    let missing = match scheme {
        "file" => !path.is_empty() && is_missing(Path::new(path)),
        "rocks" => !path.is_empty() && is_missing_or_empty(Path::new(path)),
        #[cfg(feature = "pg")]
        "postgres" | "postgresql" => return lockservice_pg::stored_format(url).await.map(Some),
        _ => false,
    };
    Ok(missing.then_some(0))
}

/// Anything but a certain no is left to the store's own `open`, which says what is wrong.
fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

fn is_missing_or_empty(folder: &Path) -> bool {
    is_missing(folder)
        || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// The URL of a store that is not there, if no secret can be in it.
fn describe_missing(url: &str) -> &str {
    if url.starts_with("file:") || url.starts_with("rocks:") { url } else { "as --store says" }
}

/// True if what this URL names forgets everything with the process (B7).
pub fn is_volatile(url: &str) -> bool {
    url.split(':').next() == Some("memory")
}

/// True if several nodes can share what this URL names.
pub fn is_shared(url: &str) -> bool {
    let scheme = url.split(':').next().unwrap_or_default();
    matches!(scheme, "postgres" | "postgresql") || scheme.starts_with("redis")
}

#[cfg(feature = "file")]
async fn open_file(path: &str) -> Result<Arc<dyn BindStore>> {
    Ok(Arc::new(FileStore::open(path).await?))
}

#[cfg(not(feature = "file"))]
async fn open_file(_path: &str) -> Result<Arc<dyn BindStore>> {
    Err(not_built("file"))
}

#[cfg(feature = "rocks")]
async fn open_rocks(path: &str) -> Result<Arc<dyn BindStore>> {
    Ok(Arc::new(RocksStore::open(path).await?))
}

#[cfg(not(feature = "rocks"))]
async fn open_rocks(_path: &str) -> Result<Arc<dyn BindStore>> {
    Err(not_built("rocks"))
}

#[cfg(feature = "pg")]
async fn open_pg(url: &str) -> Result<Arc<dyn BindStore>> {
    Ok(Arc::new(PgStore::connect(url).await?))
}

#[cfg(not(feature = "pg"))]
async fn open_pg(_url: &str) -> Result<Arc<dyn BindStore>> {
    Err(not_built("pg"))
}

#[cfg(feature = "redis")]
async fn open_redis(url: &str) -> Result<Arc<dyn BindStore>> {
    Ok(Arc::new(RedisStore::connect(url).await?))
}

#[cfg(not(feature = "redis"))]
async fn open_redis(_url: &str) -> Result<Arc<dyn BindStore>> {
    Err(not_built("redis"))
}

#[cfg(not(all(feature = "file", feature = "rocks", feature = "pg", feature = "redis")))]
fn not_built(feature: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!(
            "this build lacks the feature {feature}, which this store needs: build it with \
                `--features {feature}`, or use one of {}",
            schemes().join(", ")
        ),
    )
}

/// Where the tokens of a store in memory begin (B7). The one use of the wall clock; nothing is
/// compared with it.
#[allow(clippy::disallowed_methods)]
fn wall_clock_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_cannot_be_opened_says_what_to_write_instead() {
        for url in ["", "file", "file:", "ftp://x", "/tmp/x"] {
            let refused = open(url).await.expect_err(url);
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{url}");
            assert!(refused.to_string().contains("file:"), "{refused}");
        }
        open("memory:").await.expect("always there");
        let built = [
            ("postgres", "pg", cfg!(feature = "pg")),
            ("redis-sentinel", "redis", cfg!(feature = "redis")),
        ];
        for (scheme, feature, built) in built {
            let refused =
                open(&format!("{scheme}://me:hidden@x/m?y=1")).await.expect_err("no such option");
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
            let said = if built { "option".to_owned() } else { format!("--features {feature}") };
            assert!(
                refused.to_string().contains(&said) && !refused.to_string().contains("hidden"),
                "{refused}"
            );
        }
    }
}
