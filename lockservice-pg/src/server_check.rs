//! The check that the server can keep the promises of the store.

use lockservice_core::{Error, ErrorKind, Result};
use sqlx::Row as _;

use crate::calls::Calls;
use crate::error::{Failure, Stage};

/// Refuses a server that could not keep the store's promises, and warns of one that is set up not
/// to.
pub(crate) async fn check_server(calls: &Calls) -> Result<()> {
    let facts = || {
        sqlx::query(
            "select current_setting('server_version_num')::int as version, pg_is_in_recovery() as \
             standby, \
             current_setting('server_encoding') as encoding, current_setting('fsync') as fsync",
        )
    };
    let row = calls.repeatable(Stage::Reading, facts).await?;
    let unusable = |message: String| {
        Err(Error::new(ErrorKind::StoreUnusable, message).with("store", &calls.describe))
    };
    let version: i32 = calls.unchanged(row.try_get("version").map_err(Failure::from))?;
    if version < 120_000 {
        return unusable(format!(
            "the store's server is PostgreSQL {}: use 12 or later",
            version / 10_000
        ));
    }
    if calls.unchanged(row.try_get("standby").map_err(Failure::from))? {
        return unusable(
            "the store's server is a standby that follows another: point the store's URL at the \
                primary"
                .to_owned(),
        );
    }
    let encoding: String = calls.unchanged(row.try_get("encoding").map_err(Failure::from))?;
    if encoding != "UTF8" {
        return unusable(format!("the database is encoded in {encoding}: use one in UTF8"));
    }
    let fsync: String = calls.unchanged(row.try_get("fsync").map_err(Failure::from))?;
    if fsync == "off" {
        tracing::warn!(store = %calls.describe, "the store's server has fsync off: what it \
            acknowledged is lost when its machine stops");
    }
    Ok(())
}
