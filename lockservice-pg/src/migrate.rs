//! The schema and its versions.
//!
//! Any number of nodes may open the same schema at the same instant: one migrates, in one
//! transaction and under an advisory lock that the schema's name gives; the others wait, look
//! again, and find it done.

use std::sync::Arc;

use lockservice_core::{Error, ErrorKind, Result};
use sqlx::{AssertSqlSafe, Row};

use crate::calls::Calls;
use crate::config::{PgConfig, SchemaName, millis};
use crate::connections::{Connection, Connections};
use crate::error::{Failure, Stage};
use crate::servers::Servers;

/// Entry N − 1 makes format N of format N − 1.
const MIGRATIONS: &[&str] = &[include_str!("migrations/1.sql")];

/// The format of the schema that this version reads and writes.
pub const SCHEMA_FORMAT: u32 = MIGRATIONS.len() as u32;

/// `text` with the name of this schema.
pub(crate) fn in_schema(text: &str, schema: &SchemaName) -> String {
    text.replace("$schema", &format!("\"{schema}\""))
}

/// The format of the schema that a URL names, 0 if there is none. Changes nothing.
///
/// # Errors
/// Those of [`PgStore::connect`](crate::PgStore::connect).
///
/// # Cancel safety
/// Cancel safe.
pub async fn stored_format(url: &str) -> Result<u32> {
    let config = PgConfig::from_url(url)?;
    let servers = Arc::new(Servers::new(&config));
    let calls = Calls::new(Connections::own(&config, &servers), config.describe(), &config);
    let mut connection = calls.take().await?;
    found(&calls, &mut connection, &config.schema).await
}

/// Fails with `StoreUnusable` unless the schema is there and of [`SCHEMA_FORMAT`], and as
/// [`stored_format`] does. Changes nothing.
pub(crate) async fn check_format(calls: &Calls, schema: &SchemaName) -> Result<()> {
    let mut connection = calls.take().await?;
    let format = found(calls, &mut connection, schema).await?;
    connection.keep();
    if format == SCHEMA_FORMAT {
        return Ok(());
    }
    let message = match format {
        0 => "there is no store: correct its URL".to_owned(),
        format => {
            format!(
                "the store's schema is of format {format}, this version reads {SCHEMA_FORMAT}: \
                    migrate it first"
            )
        }
    };
    Err(Error::new(ErrorKind::StoreUnusable, message).with("store", &calls.describe))
}

/// Creates the schema, or brings it to [`SCHEMA_FORMAT`], or finds that nothing is to be done.
pub(crate) async fn migrate(calls: &Calls, schema: &SchemaName) -> Result<()> {
    let mut connection = calls.take().await?;
    let response = calls.response_timeout;
    // The common case takes no lock.
    if found(calls, &mut connection, schema).await? == SCHEMA_FORMAT {
        connection.keep();
        return Ok(());
    }
    let patience = calls.load_timeout;
    // With a ready pool the session's settings are the user's.
    let begin = format!(
        "begin isolation level read committed; set local lock_timeout = {}; set local \
            statement_timeout = {}",
        millis(patience),
        millis(patience + response),
    );
    calls.unchanged(connection.begin(&begin, response).await)?;
    let lock = sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("lockservice:{schema}"));
    calls.unchanged(connection.row(lock, patience + response).await)?;
    let format = found(calls, &mut connection, schema).await?;
    if format < SCHEMA_FORMAT {
        let there =
            sqlx::query("select exists (select from pg_namespace where nspname = $1) as there")
                .bind(schema.as_str());
        // Creating it needs a right in the database that is not needed where it was made ready.
        if !calls.unchanged(connection.row(there, response).await)?.get::<bool, _>("there") {
            calls.unchanged(
                connection.run(&in_schema("create schema $schema", schema), response).await,
            )?;
        }
        for version in format + 1..=SCHEMA_FORMAT {
            let step = in_schema(MIGRATIONS[version as usize - 1], schema);
            let done = in_schema(
                &format!("insert into $schema.format (version) values ({version})"),
                schema,
            );
            calls.unchanged(connection.run(&format!("{step};\n{done}"), patience).await)?;
        }
        tracing::info!(store = %calls.describe, from = format, to = SCHEMA_FORMAT, "the store's \
            schema was migrated");
    }
    // If this fails with an unknown outcome, the next open finds the schema as it was or as it
    // shall be.
    calls.unchanged(connection.commit(patience).await)?;
    connection.keep();
    Ok(())
}

/// The format of the schema, 0 if there is none. Fails for a newer one.
async fn found(calls: &Calls, connection: &mut Connection<'_>, schema: &SchemaName) -> Result<u32> {
    // Read from the catalog itself: a name is looked up in a cache, which after waiting for the
    // advisory lock may still say "none".
    let table = sqlx::query(
        "select exists (select from pg_class join pg_namespace on pg_namespace.oid = relnamespace \
         where nspname = $1 and relname = 'format') as there",
    )
    .bind(schema.as_str());
    if !calls
        .unchanged(connection.row(table, calls.response_timeout).await)?
        .get::<bool, _>("there")
    {
        return Ok(0);
    }
    let version = in_schema("select max(version) from $schema.format", schema);
    let row = calls.unchanged(
        connection.row(sqlx::query(AssertSqlSafe(version)), calls.response_timeout).await,
    )?;
    let version: Option<i32> =
        row.try_get(0).map_err(|e| Failure::from(e).explain(&calls.describe, Stage::Reading))?;
    match version.and_then(|version| u32::try_from(version).ok()) {
        Some(version) if version > SCHEMA_FORMAT => Err(Error::new(
            ErrorKind::StoreNewer,
            format!(
                "the store was written by a newer version of lockservice (schema format \
                 {version}, this one reads \
                 {SCHEMA_FORMAT}): use that version, or another schema"
            ),
        )
        .with("store", &calls.describe)),
        Some(version) if version > 0 => Ok(version),
        _ => Err(Error::new(
            ErrorKind::StoreCorrupt,
            "the store's schema does not say which format it has: restore the schema from a \
             backup, or choose another",
        )
        .with("store", &calls.describe)),
    }
}
