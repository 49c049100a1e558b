//! [`Connections`]: the few connections of a store.
//!
//! # Implementation details
//! A store that knows the server's address opens connections itself, so that what the server says
//! is not hidden behind "the pool timed out", and a call with its response costs one round trip and
//! no more. With a ready pool, that pool's rules apply.
//!
//! A connection goes back only after a whole response. One whose call failed or was dropped
//! half-way is closed at once: it never takes a place, even if the server has gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Postgres};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::config::PgConfig;
use crate::error::Failure;
use crate::servers::Servers;

/// A statement with its arguments.
pub(crate) type Statement<'q> = Query<'q, Postgres, PgArguments>;

#[derive(Debug)]
pub(crate) struct Connections {
    source: Source,
    servers: Arc<Servers>,
    permits: Semaphore,
    connect_timeout: Duration,
}

enum Source {
    Own { idle: Mutex<Vec<PgConnection>> },
    Pool(PgPool),
}

/// A connection for one call, and one of the places.
pub(crate) struct Connection<'a> {
    connections: &'a Connections,
    raw: Option<Raw>,
    reused: bool,
    /// True while a transaction of several statements is open.
    began: bool,
    _permit: SemaphorePermit<'a>,
}

enum Raw {
    Own(Box<PgConnection>),
    Pool(PoolConnection<Postgres>),
}

impl Connections {
    pub(crate) fn own(config: &PgConfig, servers: &Arc<Servers>) -> Self {
        Self {
            source: Source::Own { idle: Mutex::default() },
            servers: Arc::clone(servers),
            permits: Semaphore::new(config.connections_max.clamp(1, Semaphore::MAX_PERMITS)),
            connect_timeout: config.connect_timeout,
        }
    }

    pub(crate) fn pool(pool: PgPool, config: &PgConfig, servers: &Arc<Servers>) -> Self {
        // More would only wait inside the pool, where the wait looks like a server that does not
        // respond.
        let most = config.connections_max.min(pool.options().get_max_connections() as usize);
        Self {
            source: Source::Pool(pool),
            servers: Arc::clone(servers),
            permits: Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)),
            connect_timeout: config.connect_timeout,
        }
    }

    /// A free connection, or a new one. Nothing has been sent if this fails.
    pub(crate) async fn take(&self) -> Result<Connection<'_>, Failure> {
        let taken = timeout(self.connect_timeout, async {
            let permit = self.permits.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let (raw, reused) = match &self.source {
                Source::Pool(pool) => (Raw::Pool(pool.acquire().await?), false),
                Source::Own { idle } => {
                    let found = lock(idle).pop();
                    let reused = found.is_some();
                    let connection = match found {
                        Some(connection) => connection,
                        None => self.servers.connect().await?,
                    };
                    (Raw::Own(Box::new(connection)), reused)
                }
            };
            Ok::<_, Failure>(Connection {
                connections: self,
                raw: Some(raw),
                reused,
                began: false,
                _permit: permit,
            })
        });
        taken.await.map_err(|_| Failure::NoConnection(self.connect_timeout))?
    }

    /// Closes what is idle: the server seems to have gone, and with it all of them.
    pub(crate) fn forget_idle(&self) {
        if let Source::Own { idle } = &self.source {
            let gone = std::mem::take(&mut *lock(idle));
            drop(gone);
        }
    }
}

impl Connection<'_> {
    /// True if the connection was made for an earlier call, since when the server may have closed
    /// it.
    pub(crate) fn reused(&self) -> bool {
        self.reused
    }

    /// The one row that `statement` returns, after its transaction has ended.
    pub(crate) async fn row(
        &mut self,
        statement: Statement<'_>,
        limit: Duration,
    ) -> Result<PgRow, Failure> {
        let pooler = self.connections.servers.pooler();
        let call = async {
            self.enter(pooler).await?;
            let row = statement.persistent(!pooler).fetch_one(self.raw()).await?;
            self.leave(pooler).await?;
            Ok(row)
        };
        timeout(limit, call).await.map_err(|_| Failure::NoResponse(limit))?
    }

    pub(crate) async fn rows(
        &mut self,
        statement: Statement<'_>,
        limit: Duration,
    ) -> Result<Vec<PgRow>, Failure> {
        let pooler = self.connections.servers.pooler();
        let call = async {
            self.enter(pooler).await?;
            let rows = statement.persistent(!pooler).fetch_all(self.raw()).await?;
            self.leave(pooler).await?;
            Ok(rows)
        };
        timeout(limit, call).await.map_err(|_| Failure::NoResponse(limit))?
    }

    /// Behind a pooler a single statement needs a transaction too: the driver prepares and executes
    /// it in two steps, which must reach the same server, and its time-outs are set for it alone.
    async fn enter(&mut self, pooler: bool) -> Result<(), sqlx::Error> {
        if pooler && !self.began {
            let begin = self.connections.servers.begin();
            self.raw().execute(sqlx::raw_sql(AssertSqlSafe(begin))).await?;
        }
        Ok(())
    }

    async fn leave(&mut self, pooler: bool) -> Result<(), sqlx::Error> {
        if pooler && !self.began {
            self.raw().execute(sqlx::raw_sql("commit")).await?;
        }
        Ok(())
    }

    /// Begins a transaction of several statements, as `sql` says.
    pub(crate) async fn begin(&mut self, sql: &str, limit: Duration) -> Result<(), Failure> {
        self.began = true;
        self.run(sql, limit).await
    }

    /// Ends it.
    pub(crate) async fn commit(&mut self, limit: Duration) -> Result<(), Failure> {
        self.run("commit", limit).await?;
        self.began = false;
        Ok(())
    }

    /// Runs statements that take no arguments and return nothing.
    pub(crate) async fn run(&mut self, sql: &str, limit: Duration) -> Result<(), Failure> {
        let done = timeout(limit, self.raw().execute(sqlx::raw_sql(AssertSqlSafe(sql)))).await;
        done.map_err(|_| Failure::NoResponse(limit))?.map(drop).map_err(Failure::from)
    }

    /// Gives the connection back: all responses have arrived, and no transaction is open.
    pub(crate) fn keep(mut self) {
        match (self.raw.take(), &self.connections.source) {
            (Some(Raw::Own(connection)), Source::Own { idle }) => lock(idle).push(*connection),
            (raw, _) => drop(raw),
        }
    }

    fn raw(&mut self) -> &mut PgConnection {
        match self
            .raw
            .as_mut()
            .expect("only keep and drop take it, and both consume the connection")
        {
            Raw::Own(connection) => connection,
            Raw::Pool(connection) => connection,
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        // Given back, the pool would wait for the rest of the response, for as long as the server
        // keeps silent.
        if let Some(Raw::Pool(connection)) = self.raw.take() {
            drop(connection.detach());
        }
    }
}

/// A panic while it was held cannot have left the list half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options and the pool would show the password.
        f.write_str(match self {
            Self::Own { .. } => "Own",
            Self::Pool(_) => "Pool",
        })
    }
}
