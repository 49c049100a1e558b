//! [`Servers`]: new connections to the server that takes writes, directly or through a pooler.
//!
//! # Implementation details
//! **What a session needs** (time-outs, an isolation level) goes into the connection's startup
//! packet, not into a `SET`: behind a pooler that shares connections between transactions, a `SET`
//! would change the queries of the next user. A pooler refuses such a startup packet, or ignores
//! it, which the first query on a new connection shows. From then on nothing rests on the session:
//! each call is a transaction of its own that sets what it needs for itself, its statement has no
//! name, and no listener is opened.
//!
//! **Several servers.** The one that was connected last is tried first. If it refuses, or is silent
//! for a moment, all others are tried at once, so that a server that is gone costs no time. One
//! that follows another, or is read-only, is passed over.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgDatabaseError};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{PgConfig, millis};
use crate::error::Failure;

/// Of the time for a connection, how much the server that was connected last has for itself.
const HEAD_START: u32 = 4;

/// The statements that begin each new connection.
const PROBE: &str = "select (extract(epoch from current_setting('statement_timeout')::interval) * \
 1000)::bigint as statement_timeout, \
     pg_is_in_recovery() or current_setting('transaction_read_only')::bool as read_only";

/// The tried server, its connection, and whether a pooler is before it.
type Tries = JoinSet<(usize, Result<(PgConnection, bool), Failure>)>;

pub(crate) struct Servers {
    plain: Vec<PgConnectOptions>,
    session: Vec<(&'static str, String)>,
    statement_timeout_ms: i64,
    writable_only: bool,
    connect_timeout: Duration,
    /// The one that was connected last. Alone: it publishes nothing else.
    current: AtomicUsize,
    /// True once it is known that nothing may rest on the session. Alone, and never false again.
    pooler: AtomicBool,
}

impl Servers {
    pub(crate) fn new(config: &PgConfig) -> Self {
        let plain = std::iter::once(&config.connect).chain(&config.others);
        let statement_timeout = millis(config.statement_timeout);
        Self {
            // A pooler refuses this one too; nothing here is a floating-point number.
            plain: plain.map(|options| options.clone().extra_float_digits(None)).collect(),
            session: vec![
                ("statement_timeout", statement_timeout.to_string()),
                ("lock_timeout", millis(config.lock_timeout).to_string()),
                ("default_transaction_isolation", "read committed".to_owned()),
            ],
            statement_timeout_ms: i64::from(statement_timeout),
            writable_only: config.writable_only || !config.others.is_empty(),
            connect_timeout: config.connect_timeout,
            current: AtomicUsize::new(0),
            pooler: AtomicBool::new(config.pooler),
        }
    }

    /// True if nothing may rest on the session.
    pub(crate) fn pooler(&self) -> bool {
        self.pooler.load(Ordering::Relaxed)
    }

    /// The server that was connected last, or is the first to be tried.
    pub(crate) fn current(&self) -> PgConnectOptions {
        self.plain[self.current.load(Ordering::Relaxed)].clone()
    }

    /// The statements that begin a call which cannot rest on the session.
    pub(crate) fn begin(&self) -> String {
        let set = |(name, value): &(&str, String)| format!("; set local {name} = '{value}'");
        // The isolation is that of the transaction.
        let local =
            self.session.iter().filter(|(name, _)| *name != "default_transaction_isolation");
        format!("begin isolation level read committed{}", local.map(set).collect::<String>())
    }

    /// A new connection. Ends a little before the time for one is over, so that the findings by
    /// then are reported.
    pub(crate) async fn connect(&self) -> Result<PgConnection, Failure> {
        let bound = self.connect_timeout * 9 / 10;
        let end = Instant::now() + bound;
        let first = self.current.load(Ordering::Relaxed);
        let others = (0..self.plain.len()).filter(|at| *at != first).collect::<Vec<_>>();
        let mut tries = Tries::new();
        self.try_one(&mut tries, first);
        let mut waiting = !others.is_empty();
        let mut failed = None;
        loop {
            let outcome = tokio::select! {
                outcome = tries.join_next() => outcome,
                () = sleep(self.connect_timeout / HEAD_START), if waiting => {
                    waiting = false;
                    others.iter().for_each(|at| self.try_one(&mut tries, *at));
                    continue;
                }
                () = sleep_until(end) => return Err(failed.unwrap_or(Failure::NoConnection(bound))),
            };
            let failure = match outcome {
                Some(Ok((at, Ok((connection, pooler))))) => {
                    self.current.store(at, Ordering::Relaxed);
                    if pooler && !self.pooler.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "a pooler stands between here and the store's server: each call takes \
                             a transaction of its own, which costs \
                             some round trips, and a change of leadership is looked for, not \
                             listened for; connect to the server itself \
                             to spare both"
                        );
                    }
                    return Ok(connection);
                }
                Some(Ok((_, Err(failure)))) => failure,
                Some(Err(error)) => Failure::Driver(sqlx::Error::Io(std::io::Error::other(error))),
                None => return Err(failed.unwrap_or(Failure::NotWritable)),
            };
            // That one responds and takes no writes says more than that others do not respond.
            if !matches!(failed, Some(Failure::NotWritable)) {
                failed = Some(failure);
            }
            if std::mem::take(&mut waiting) {
                others.iter().for_each(|at| self.try_one(&mut tries, *at));
            }
        }
    }

    fn try_one(&self, tries: &mut Tries, at: usize) {
        let plain = self.plain[at].clone();
        let full =
            plain.clone().options(self.session.iter().map(|(name, value)| (*name, value.as_str())));
        let (pooler, expected, writable_only) =
            (self.pooler(), self.statement_timeout_ms, self.writable_only);
        let attempt = async move {
            let (mut connection, mut pooler) = match pooler {
                true => (PgConnection::connect_with(&plain).await?, true),
                false => match PgConnection::connect_with(&full).await {
                    Err(error) if refuses_startup(&error) => {
                        (PgConnection::connect_with(&plain).await?, true)
                    }
                    connection => (connection?, false),
                },
            };
            let probe = connection.fetch_one(sqlx::raw_sql(PROBE)).await?;
            pooler |= probe.try_get::<i64, _>("statement_timeout")? != expected;
            if writable_only && probe.try_get("read_only")? {
                return Err(Failure::NotWritable);
            }
            Ok((connection, pooler))
        };
        tries.spawn(async move { (at, attempt.await) });
    }
}

/// True for the response of a pooler to a startup packet with more than it passes on.
fn refuses_startup(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let error = error.downcast_ref::<PgDatabaseError>();
    error.code() == "08P01" && error.message().contains("startup parameter")
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options would show the password.
        f.debug_struct("Servers")
            .field("count", &self.plain.len())
            .field("pooler", &self.pooler())
            .finish_non_exhaustive()
    }
}
