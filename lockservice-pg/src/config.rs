//! [`PgConfig`]: which server, which schema, and how long each call may take.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// How long the client waits for an answer beyond the time after which the server gives up by itself.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);

/// Options of a connection URL that go to the driver.
const DRIVER_OPTIONS: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "statement-cache-capacity",
];

/// Which server, which schema, and how long each call may take.
///
/// The time-outs must stay well below the leadership's TTL: a leader whose renewal hangs for that long stops leading. The defaults
/// bound a call to three seconds, for a TTL of five. [`Debug`](fmt::Debug) shows no password.
#[derive(Clone)]
pub struct PgConfig {
    /// Host, database, user, password, TLS. Not used by [`PgStore::with_pool`](crate::PgStore::with_pool), whose pool knows them.
    pub connect: PgConnectOptions,
    /// The schema that holds everything of one cluster. Default `lockservice`.
    pub schema: SchemaName,
    /// Most connections open at once for calls, besides the one that listens. At least 1, default 4.
    pub connections_max: usize,
    /// Longest wait for a connection: a free one, or a new one. Default 1 s.
    pub connect_timeout: Duration,
    /// Longest time the server works on one call (its `statement_timeout`). Default 1.5 s; the caller waits 0.5 s longer, because an
    /// answer that says "given up" is worth more than silence. With a ready pool the server's own setting applies.
    pub statement_timeout: Duration,
    /// Longest wait on the server for a lock that another holds on our rows (its `lock_timeout`). Default 1 s.
    pub lock_timeout: Duration,
    /// Longest time to read everything, or to wait until another node has migrated the schema. Default 30 s.
    pub load_timeout: Duration,
    /// Whether a candidate keeps one more connection open that hears at once (`LISTEN`) when the leadership changes. Default true. Where
    /// that does not work, as behind a pooler that shares connections between transactions, candidates look from time to time.
    pub listen: bool,
}

impl PgConfig {
    /// Default time-outs and the default schema for this server.
    pub fn new(connect: PgConnectOptions) -> Self {
        Self {
            connect: connect.disable_statement_logging(),
            schema: SchemaName::default(),
            connections_max: 4,
            connect_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_millis(1_500),
            lock_timeout: Duration::from_secs(1),
            load_timeout: Duration::from_secs(30),
            listen: true,
        }
    }

    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?schema=NAME&sslmode=…`, with what libpq's environment variables say as
    /// defaults (`PGPASSWORD`, `PGSSLROOTCERT`, …, and `~/.pgpass`).
    ///
    /// Options: `schema` (default `lockservice`), `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `host` (a folder for a Unix socket),
    /// `hostaddr`, `port`, `dbname`, `user`, `password`, `application_name`, `statement-cache-capacity` (0 for a pooler that cannot keep
    /// prepared statements).
    ///
    /// Fails with `InvalidArgument`, whose message repeats nothing of the URL: any part of a misread one may be the password.
    pub fn from_url(url: &str) -> Result<Self> {
        let (place, options) = url.split_once('?').unwrap_or((url, ""));
        let rest = place.split_once("://").map_or("", |(_, rest)| rest);
        let path = rest.find('/').map_or("", |slash| &rest[slash..]);
        if url.contains('#') || options.contains('@') || path.contains('@') {
            return Err(invalid(
                "the store's URL cannot be read: write the characters / ? # @ in a user name or password as %2F %3F %23 %40",
            ));
        }
        let mut schema = SchemaName::default();
        let mut passed_on = Vec::new();
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if name == "schema" {
                schema = SchemaName::new(value)?;
            } else if DRIVER_OPTIONS.contains(&name) {
                passed_on.push(option);
            } else {
                let known = DRIVER_OPTIONS.join(", ");
                return Err(invalid(format!("the store's URL has an option that is not known: use schema, {known}")));
            }
        }
        let mut connect = PgConnectOptions::from_str(&format!("{place}?{}", passed_on.join("&")))
            .map_err(|_| invalid("the store's URL cannot be read: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, and special characters as %XX; one host only"))?;
        if connect.get_application_name().is_none() {
            connect = connect.application_name("lockservice");
        }
        Ok(Self { schema, ..Self::new(connect) })
    }

    /// Longest time that one call takes, everything counted, except reading everything and migrating.
    pub fn call_timeout(&self) -> Duration {
        self.connect_timeout + self.answer_timeout()
    }

    /// Longest wait for the answer to one statement.
    pub(crate) fn answer_timeout(&self) -> Duration {
        self.statement_timeout + ANSWER_MARGIN
    }

    /// What a server must be told about a new connection of our own.
    pub(crate) fn session(&self) -> String {
        format!(
            "set statement_timeout = {}; set lock_timeout = {}; set default_transaction_isolation = 'read committed'",
            millis(self.statement_timeout),
            millis(self.lock_timeout),
        )
    }
}

/// For a setting of the server, where 0 would mean "for ever".
pub(crate) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Where a store is, for people: never a user name or a password.
pub(crate) fn describe(connect: &PgConnectOptions, schema: &SchemaName) -> String {
    let host = match connect.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => connect.get_host().to_owned(),
    };
    let database = connect.get_database().unwrap_or_default();
    format!("postgres://{host}:{}/{database}?schema={schema}", connect.get_port())
}

impl fmt::Debug for PgConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgConfig")
            .field("store", &describe(&self.connect, &self.schema))
            .field("encrypted", &!matches!(self.connect.get_ssl_mode(), PgSslMode::Disable))
            .field("connections_max", &self.connections_max)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("load_timeout", &self.load_timeout)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// The name of a schema: 1 to 48 of `a-z`, `0-9` and `_`, beginning with a letter, and not with `pg_`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SchemaName(String);

impl SchemaName {
    /// Checks a name. Fails with `InvalidArgument`: choose another.
    pub fn new(name: &str) -> Result<Self> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        let good = name.len() <= 48
            && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
            && name.bytes().all(plain)
            && !name.starts_with("pg_");
        if good {
            return Ok(Self(name.to_owned()));
        }
        Err(invalid("the schema's name must be 1 to 48 of a-z, 0-9 and _, beginning with a letter, and not with pg_"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SchemaName {
    /// `lockservice`.
    fn default() -> Self {
        Self("lockservice".to_owned())
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_its_schema_is_our_own() {
        let config =
            PgConfig::from_url("postgres://me:s%40cret@db:6432/d?schema=locks_2&sslmode=require").expect("a URL");
        assert_eq!(config.schema.as_str(), "locks_2");
        assert_eq!(describe(&config.connect, &config.schema), "postgres://db:6432/d?schema=locks_2");
        assert!(matches!(config.connect.get_ssl_mode(), PgSslMode::Require));
        assert_eq!(config.connect.get_application_name(), Some("lockservice"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("cret") && shown.contains("db:6432"), "{shown}");
    }

    #[test]
    fn what_may_be_a_part_of_a_password_is_never_repeated() {
        for url in [
            "postgres://me:hid?den@db/d",
            "postgres://me:hid#den@db/d",
            "postgres://me:12/hidden@db/d",
            "postgres://me:hid/den@db/d",
            "postgres://me:x@db/d?hidden=1",
            "postgres://me:hid den@db:x/d",
            "postgres://me:x@db/d?schema=Hidden",
            "postgres://me:x@db/d?sslmode=hidden",
        ] {
            let refused = PgConfig::from_url(url).expect_err(url);
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{url}");
            let shown = format!("{refused:?}").to_lowercase();
            assert!(!shown.contains("hid") && !shown.contains("den@"), "{shown}");
        }
    }

    #[test]
    fn a_schema_has_a_plain_name() {
        for bad in ["", "1a", "a-b", "a\"b", "A", "pg_x", "ä", &"x".repeat(49)] {
            assert_eq!(SchemaName::new(bad).expect_err(bad).kind(), ErrorKind::InvalidArgument);
        }
        assert_eq!(SchemaName::new("a_1").expect("plain").to_string(), "a_1");
    }
}
