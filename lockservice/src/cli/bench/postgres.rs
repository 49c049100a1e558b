//! PostgreSQL, locked as its users do.
//!
//! # Implementation details
//! | workload | cycle |
//! |---|---|
//! | `rows`, `hot` | `pg_advisory_lock` and `pg_advisory_unlock`, the fastest that there is |
//! | `mixed`, `batch` | `SELECT … FOR UPDATE`, or `FOR SHARE` of a range, in a transaction |
//!
//! Advisory locks know no ranges, and 64 callers with 100 of them each are more than the lock table
//! of a server with its defaults holds. So these workloads lock rows of a table, which is created
//! for the benchmark and dropped at its end. Batches are locked in the order of their rows, so that
//! there is no deadlock.
//!
//! Each caller has a connection of its own: a lock belongs to a connection.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::{Error, ErrorKind, Result};
use lockservice_pg::PgConfig;
use lockservice_pg::sqlx::postgres::PgConnectOptions;
use lockservice_pg::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::Mutex;

use super::cpu::{self, ServerProcess, is_loopback};
use super::side::{Caller, Side};
use super::workload::{Want, Workload};
use crate::cli::exit::Failure;

/// The longest time to connect, and to set up or drop the table.
const CALL_MAX: Duration = Duration::from_secs(5);
/// The names of its program.
const PROGRAMS: [&str; 2] = ["postgres", "postmaster"];

/// The address of one PostgreSQL, parsed once.
pub(crate) struct PostgresUrl(PgConnectOptions);

impl PostgresUrl {
    /// Parses `postgres://…`. The error does not repeat the text, which may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, Failure> {
        let config = PgConfig::from_url(url).map_err(|error| {
            Failure::usage(format!("--beside takes postgres://USER@HOST/DATABASE: {error}"))
        })?;
        if !config.others.is_empty() {
            return Err(Failure::usage("--beside takes one PostgreSQL, not several"));
        }
        Ok(Self(config.connect))
    }
}

/// See the module.
pub(super) struct Postgres {
    options: PgConnectOptions,
    server: ServerProcess,
    /// Also the `application_name` of all connections.
    name: String,
    /// The first key of the advisory locks: no other program takes the same.
    class: i32,
    /// The table that was created, if there is one. Locked while the table is created.
    table: Mutex<Option<Arc<Statements>>>,
}

/// The statements that lock rows of the table.
struct Statements {
    row: String,
    shared_range: String,
    batch: String,
}

impl Postgres {
    /// Connects.
    pub(super) async fn open(url: &PostgresUrl) -> Result<Self> {
        let name = format!("lockservice_bench_{:08x}", rand::random::<u32>());
        let options = url.0.clone().application_name(&name);
        let mut connection = connect(&options).await?;
        let server = process(&options, &mut connection).await?;
        bounded(connection.close()).await?;
        Ok(Self { options, server, name, class: rand::random(), table: Mutex::default() })
    }

    /// The statements on the table, which is created if it is not there yet.
    async fn statements(&self) -> Result<Arc<Statements>> {
        let mut table = self.table.lock().await;
        if let Some(statements) = &*table {
            return Ok(Arc::clone(statements));
        }
        let name = &self.name;
        let statements = table.insert(Arc::new(Statements {
            row: format!("SELECT id FROM {name} WHERE id = $1 FOR UPDATE"),
            shared_range: format!(
                "SELECT id FROM {name} WHERE id >= $1 AND id < $2 ORDER BY id FOR SHARE"
            ),
            batch: format!(
                "SELECT id FROM {name} WHERE id >= $1 AND id < $2 ORDER BY id FOR UPDATE"
            ),
        }));
        // From here on `close` drops it.
        let create = format!(
            "CREATE TABLE {name} (id bigint PRIMARY KEY); \
             INSERT INTO {name} SELECT generate_series(0, {}); \
             ANALYZE {name}",
            Workload::SHARED_ROWS_MAX - 1
        );
        let mut connection = connect(&self.options).await?;
        bounded(sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection)).await?;
        bounded(connection.close()).await?;
        Ok(Arc::clone(statements))
    }
}

/// The processes of the server, if it is on this machine.
async fn process(
    options: &PgConnectOptions,
    connection: &mut PgConnection,
) -> Result<ServerProcess> {
    if options.get_socket().is_none() && !is_loopback(options.get_host()).await {
        return Ok(ServerProcess::Unknown("it is not on this machine's loopback".to_owned()));
    }
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()");
    let pid: i32 = bounded(pid.fetch_one(connection)).await?;
    let backend = pid.unsigned_abs();
    let process = ServerProcess::named(backend, &PROGRAMS);
    // PostgreSQL has one process for each connection, and some that work for all.
    Ok(match (&process, cpu::parent(backend)) {
        (ServerProcess::One(_), Some(parent)) => ServerProcess::WithChildren(parent),
        _ => process,
    })
}

#[async_trait]
impl Side for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn server(&self) -> &ServerProcess {
        &self.server
    }

    async fn callers(&self, workload: Workload, count: u32) -> Result<Vec<Box<dyn Caller>>> {
        let statements = match workload {
            Workload::Rows | Workload::Hot => None,
            Workload::Mixed | Workload::Batch => Some(self.statements().await?),
        };
        let mut callers: Vec<Box<dyn Caller>> = Vec::new();
        for _ in 0..count {
            let connection = connect(&self.options).await?;
            callers.push(match &statements {
                None => Box::new(AdvisoryCaller { connection, class: self.class }),
                Some(statements) => {
                    Box::new(RowCaller { connection, statements: Arc::clone(statements) })
                }
            });
        }
        Ok(callers)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let mut connection = connect(&self.options).await?;
        // A caller that was dropped in the middle of a cycle may still hold or wait.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name = $1 AND pid <> pg_backend_pid()";
        bounded(sqlx::query(end).bind(&self.name).execute(&mut connection)).await?;
        if self.table.lock().await.is_some() {
            let drop = format!("DROP TABLE IF EXISTS {}", self.name);
            bounded(sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection)).await?;
        }
        bounded(connection.close()).await
    }
}

/// A caller of advisory locks.
struct AdvisoryCaller {
    connection: PgConnection,
    class: i32,
}

#[async_trait]
impl Caller for AdvisoryCaller {
    async fn cycle(&mut self, want: &Want) -> Result<()> {
        let row = want.rows().start.cast_signed();
        for call in ["SELECT pg_advisory_lock($1, $2)", "SELECT pg_advisory_unlock($1, $2)"] {
            let query = sqlx::query(call).bind(self.class).bind(row);
            query.execute(&mut self.connection).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        bounded(self.connection.close()).await
    }
}

/// A caller of locks on rows of a table.
struct RowCaller {
    connection: PgConnection,
    statements: Arc<Statements>,
}

#[async_trait]
impl Caller for RowCaller {
    async fn cycle(&mut self, want: &Want) -> Result<()> {
        let statement = match want {
            Want::Row(_) => &self.statements.row,
            Want::SharedRange(_) => &self.statements.shared_range,
            Want::Batch(_) => &self.statements.batch,
        };
        let rows = want.rows();
        let mut query = sqlx::query(AssertSqlSafe(statement.as_str())).bind(i64::from(rows.start));
        if !matches!(want, Want::Row(_)) {
            query = query.bind(i64::from(rows.end));
        }
        let mut transaction = self.connection.begin().await.map_err(failed)?;
        let locked = query.fetch_all(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        if locked.len() < rows.len() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "PostgreSQL does not have the rows of the benchmark any more: who deleted them?",
            ));
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        bounded(self.connection.close()).await
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    bounded(PgConnection::connect_with(options)).await
}

/// A call that waits for no lock of a caller.
async fn bounded<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T> {
    match tokio::time::timeout(CALL_MAX, call).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            "PostgreSQL does not respond: is it running and reachable?",
        )),
    }
}

/// The error for an error of the driver. Its text never holds the password.
fn failed(error: sqlx::Error) -> Error {
    let state = error.as_database_error().and_then(|error| error.code());
    let (kind, message) = match state.as_deref() {
        Some("53300") => (
            ErrorKind::ResourceExhausted,
            "PostgreSQL has no connection left: measure fewer --callers, or raise max_connections",
        ),
        Some("42501") => (
            ErrorKind::NotPermitted,
            "PostgreSQL refuses to create the table of the benchmark: let the user create one, or \
             measure --workload rows,hot",
        ),
        Some("3D000") => {
            (ErrorKind::InvalidArgument, "the database does not exist: create it, or name another")
        }
        Some(state) if state.starts_with("28") => {
            (ErrorKind::NotPermitted, "PostgreSQL refuses the login: correct user and password")
        }
        Some(state) if state.starts_with("53") => {
            (ErrorKind::ResourceExhausted, "PostgreSQL is out of memory or another resource")
        }
        Some(_) => (ErrorKind::Unavailable, "PostgreSQL refuses a statement"),
        None => {
            (ErrorKind::Unavailable, "PostgreSQL cannot be reached, or the connection was lost")
        }
    };
    Error::new(kind, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_postgresql_is_taken_and_its_password_is_not_repeated() {
        for url in ["postgres://me:hidden@a,b/d", "postgres://me:hidden@h/d?nonsense=hidden"] {
            let refused = PostgresUrl::parse(url).err().expect(url);
            assert!(!refused.sentence.contains("hidden"), "{}", refused.sentence);
        }
        assert!(PostgresUrl::parse("postgres://me:secret@h/d").is_ok());
    }
}
