//! Stores by URL: the backends of this build, and the ways to open one.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`open`], [`open_existing`], [`inspect`] |
//! | `url.rs` | [`StoreUrl`]: a URL, parsed once |
//! | `file` | [`FileStore`]: the store in one file |
//!
//! The other stores are crates of their own: `lockservice-rocks`, `lockservice-pg`,
//! `lockservice-redis`.

#[cfg(feature = "file")]
mod file;
mod url;

use std::path::Path;
use std::sync::Arc;

use lockservice_core::Result;
use lockservice_core::store::{BindStore, Inspection};

#[cfg(feature = "file")]
pub use self::file::FileStore;
pub use self::url::StoreUrl;
#[cfg(feature = "pg")]
pub use lockservice_pg::PgStore;
#[cfg(feature = "redis")]
pub use lockservice_redis::RedisStore;
#[cfg(feature = "rocks")]
pub use lockservice_rocks::RocksStore;

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
/// `redis://…` (also `redis-sentinel://…` and `redis-cluster://…`). Creates it if it is missing.
///
/// # Errors
/// - `InvalidArgument`: the URL cannot be read, or this build lacks the feature that it needs (the
///   error names it). Correct the URL, or build with the feature.
/// - Those of the `open` or `connect` of the store.
///
/// # Cancel safety
/// A store is created or migrated as a whole or not at all.
pub async fn open(url: &str) -> Result<Arc<dyn BindStore>> {
    StoreUrl::parse(url)?.open().await
}

/// Opens a store that exists: nothing is created or migrated.
///
/// # Errors
/// - `InvalidArgument`: as for [`open`], and for `memory:`, which never exists before.
/// - `StoreUnusable`: there is no store, or only one of an older format. Correct the URL, or run
///   `lockservice store migrate`.
/// - Those of the `open` or `connect` of the store.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn open_existing(url: &str) -> Result<Arc<dyn BindStore>> {
    StoreUrl::parse(url)?.open_existing().await
}

/// Reads a store that exists, damaged or not, as far as it can be read. Nothing is created,
/// migrated or changed.
///
/// # Errors
/// Those of [`open_existing`], but for damaged records: those are in the result.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn inspect(url: &str) -> Result<Inspection> {
    StoreUrl::parse(url)?.inspect().await
}

#[cfg(feature = "file")]
async fn open_file(path: &Path) -> Result<Arc<dyn BindStore>> {
    Ok(Arc::new(FileStore::open(path).await?))
}

#[cfg(not(feature = "file"))]
async fn open_file(_path: &Path) -> Result<Arc<dyn BindStore>> {
    Err(not_built("file"))
}

#[cfg(feature = "rocks")]
async fn open_rocks(path: &Path) -> Result<Arc<dyn BindStore>> {
    Ok(Arc::new(RocksStore::open(path).await?))
}

#[cfg(not(feature = "rocks"))]
async fn open_rocks(_path: &Path) -> Result<Arc<dyn BindStore>> {
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
fn not_built(feature: &str) -> lockservice_core::Error {
    use lockservice_core::{Error, ErrorKind};

    Error::new(
        ErrorKind::InvalidArgument,
        format!(
            "this build lacks the feature {feature}, which this store needs: build it with \
                `--features {feature}`, or use one of {}",
            schemes().join(", ")
        ),
    )
}

/// The first token of a store in memory (B7). The one use of the wall clock; nothing is
/// compared with it.
#[allow(clippy::disallowed_methods)]
fn wall_clock_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use lockservice_core::ErrorKind;

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
