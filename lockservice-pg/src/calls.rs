//! [`Calls`]: the way of a statement to the server, its time limit, and the meaning of its failure.

use std::time::Duration;

use lockservice_core::Result;
use sqlx::postgres::PgRow;
use tokio::time::timeout;

use crate::config::PgConfig;
use crate::connections::{Connection, Connections, Statement};
use crate::error::{Failure, Stage};

#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) connections: Connections,
    pub(crate) describe: String,
    pub(crate) load_timeout: Duration,
    pub(crate) response_timeout: Duration,
    call_timeout: Duration,
}

impl Calls {
    pub(crate) fn new(connections: Connections, describe: String, config: &PgConfig) -> Self {
        let (load_timeout, response_timeout) = (config.load_timeout, config.response_timeout());
        Self {
            connections,
            describe,
            load_timeout,
            response_timeout,
            call_timeout: config.call_timeout(),
        }
    }

    pub(crate) async fn take(&self) -> Result<Connection<'_>> {
        self.unchanged(self.connections.take().await)
    }

    /// The meaning of a failure if no change was sent.
    pub(crate) fn unchanged<T>(&self, outcome: Result<T, Failure>) -> Result<T> {
        outcome.map_err(|failure| failure.explain(&self.describe, Stage::Reading))
    }

    /// Sends a statement that does no harm if it is done twice. A connection that the server closed
    /// since the last call is replaced.
    pub(crate) async fn repeatable<'q>(
        &self,
        stage: Stage,
        statement: impl Fn() -> Statement<'q> + Send + Sync,
    ) -> Result<PgRow> {
        let row = timeout(self.call_timeout, async {
            loop {
                let mut connection =
                    self.connections.take().await.map_err(|failure| (failure, Stage::Reading))?;
                match connection.row(statement(), self.response_timeout).await {
                    Ok(row) => {
                        connection.keep();
                        return Ok(row);
                    }
                    // A new connection is taken next, for which this cannot be: the loop ends.
                    Err(failure) if connection.reused() && failure.is_lost() => {
                        self.connections.forget_idle()
                    }
                    Err(failure) => return Err((failure, stage)),
                }
            }
        });
        row.await
            .unwrap_or_else(|_| Err((Failure::NoResponse(self.call_timeout), stage)))
            .map_err(|(failure, stage)| failure.explain(&self.describe, stage))
    }

    /// Sends a change that must not be sent twice.
    pub(crate) async fn once(&self, statement: Statement<'_>) -> Result<PgRow> {
        let mut connection = self.take().await?;
        match connection.row(statement, self.response_timeout).await {
            Ok(row) => {
                connection.keep();
                Ok(row)
            }
            Err(failure) => {
                if failure.is_lost() {
                    self.connections.forget_idle();
                }
                Err(failure.explain(&self.describe, Stage::Changing))
            }
        }
    }
}
