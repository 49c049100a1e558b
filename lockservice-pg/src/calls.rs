//! [`Calls`]: how a statement reaches the server, within which time, and what its failure means.

use std::time::Duration;

use lockservice_core::Result;
use sqlx::postgres::PgRow;
use tokio::time::timeout;

use crate::config::PgConfig;
use crate::error::{Failure, Stage};
use crate::link::{Connections, Link, Statement};

#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) connections: Connections,
    pub(crate) describe: String,
    pub(crate) load_timeout: Duration,
    pub(crate) answer_timeout: Duration,
    call_timeout: Duration,
}

impl Calls {
    pub(crate) fn new(connections: Connections, describe: String, config: &PgConfig) -> Self {
        let (load_timeout, answer_timeout) = (config.load_timeout, config.answer_timeout());
        Self {
            connections,
            describe,
            load_timeout,
            answer_timeout,
            call_timeout: config.call_timeout(),
        }
    }

    pub(crate) async fn take(&self) -> Result<Link<'_>> {
        self.asked(self.connections.take().await)
    }

    /// What a failure means if nothing that changes anything was sent.
    pub(crate) fn asked<T>(&self, outcome: Result<T, Failure>) -> Result<T> {
        outcome.map_err(|failure| failure.explain(&self.describe, Stage::Asking))
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
                let mut link =
                    self.connections.take().await.map_err(|failure| (failure, Stage::Asking))?;
                match link.row(statement(), self.answer_timeout).await {
                    Ok(row) => {
                        link.keep();
                        return Ok(row);
                    }
                    // A new connection is taken next, for which this cannot be: the loop ends.
                    Err(failure) if link.reused() && failure.is_lost() => {
                        self.connections.forget_idle()
                    }
                    Err(failure) => return Err((failure, stage)),
                }
            }
        });
        row.await
            .unwrap_or_else(|_| Err((Failure::NoAnswer(self.call_timeout), stage)))
            .map_err(|(failure, stage)| failure.explain(&self.describe, stage))
    }

    /// Sends a change that must not be sent twice.
    pub(crate) async fn once(&self, statement: Statement<'_>) -> Result<PgRow> {
        let mut link = self.take().await?;
        match link.row(statement, self.answer_timeout).await {
            Ok(row) => {
                link.keep();
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
