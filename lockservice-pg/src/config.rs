//! [`PgConfig`]: the servers, the schema, and the time limits of calls.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// The time for which the client waits for a response beyond the time after which the server gives
/// up by itself.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

/// The largest number of servers in a URL.
const HOSTS_MAX: usize = 16;

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

/// The servers, the schema, and the time limits of calls.
///
/// The time-outs must stay well below the leadership's TTL: a leader whose renewal hangs for that
/// long stops leading. The defaults bound a call to three seconds, for a TTL of five.
/// [`Debug`](fmt::Debug) shows no password.
#[derive(Clone)]
pub struct PgConfig {
    /// Host, database, user, password, TLS. Not used by
    /// [`PgStore::with_pool`](crate::PgStore::with_pool), whose pool knows them.
    pub connect: PgConnectOptions,
    /// Further servers. Of all of them the one that takes writes is used, whichever that is at the
    /// moment. Not used by [`PgStore::with_pool`](crate::PgStore::with_pool). Default none.
    pub others: Vec<PgConnectOptions>,
    /// True if even a single server is skipped while it does not take writes, like a server in
    /// `others`. Default false: the error then names the problem of that server.
    pub writable_only: bool,
    /// True if the connections go through a pooler that shares them between transactions. Default
    /// false: a pooler is detected, except with a ready pool.
    pub pooler: bool,
    /// The schema that holds everything of one cluster. Default `lockservice`.
    pub schema: SchemaName,
    /// The largest number of open connections for calls, besides the one that listens. At least 1,
    /// default 4.
    pub connections_max: usize,
    /// Longest wait for a connection: a free one, or a new one. Default 1 s.
    pub connect_timeout: Duration,
    /// The longest time that the server works on one call (its `statement_timeout`). Default 1.5 s;
    /// the caller waits 0.5 s longer, because a response that says "given up" is worth more than
    /// silence. With a ready pool the server's own setting applies.
    pub statement_timeout: Duration,
    /// Longest wait on the server for a lock that another holds on our rows (its `lock_timeout`).
    /// Default 1 s.
    pub lock_timeout: Duration,
    /// Longest time to read everything, or to wait until another node has migrated the schema.
    /// Default 30 s.
    pub load_timeout: Duration,
    /// True if a candidate keeps one more connection open that notices at once (`LISTEN`) when the
    /// leadership changes. Default true. Set false if that is not wanted, or does not work as
    /// behind a pooler, candidates look from time to time.
    pub listen: bool,
}

impl PgConfig {
    /// Default time-outs and the default schema for this server.
    pub fn new(connect: PgConnectOptions) -> Self {
        Self {
            connect: connect.disable_statement_logging(),
            others: Vec::new(),
            writable_only: false,
            pooler: false,
            schema: SchemaName::default(),
            connections_max: 4,
            connect_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_millis(1_500),
            lock_timeout: Duration::from_secs(1),
            load_timeout: Duration::from_secs(30),
            listen: true,
        }
    }

    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?schema=NAME&sslmode=…`, and what libpq's
    /// environment variables say as defaults (`PGPASSWORD`, `PGSSLROOTCERT`, …, and `~/.pgpass`).
    /// Several servers are separated by commas, `HOST:PORT,HOST:PORT`.
    ///
    /// Options: `schema` (default `lockservice`), `listen` (`true` or `false`), `pooler` (`true` or
    /// `false`), `target_session_attrs` (`read-write` or `primary`, which several servers imply),
    /// `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `host` (a folder for a Unix socket),
    /// `hostaddr`, `port`, `dbname`, `user`, `password`, `application_name`,
    /// `statement-cache-capacity`.
    ///
    /// # Errors
    /// `InvalidArgument`, whose message repeats nothing of the URL: any part of a misread one may
    /// be the password.
    pub fn from_url(url: &str) -> Result<Self> {
        let (place, options) = url.split_once('?').unwrap_or((url, ""));
        let rest = place.split_once("://").map_or("", |(_, rest)| rest);
        let path = rest.find('/').map_or("", |slash| &rest[slash..]);
        if url.contains('#') || options.contains('@') || path.contains('@') {
            return Err(invalid(
                "the store's URL cannot be read: write the characters / ? # @ in a user name or \
                    password as %2F %3F %23 %40",
            ));
        }
        let (mut schema, mut listen, mut pooler, mut writable_only) =
            (SchemaName::default(), true, false, false);
        let mut passed_on = Vec::new();
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match name {
                "schema" => schema = SchemaName::new(value)?,
                "listen" => listen = flag("listen", value)?,
                "pooler" => pooler = flag("pooler", value)?,
                "target_session_attrs" if matches!(value, "read-write" | "primary") => {
                    writable_only = true
                }
                "target_session_attrs" => {
                    return Err(invalid(
                        "the store needs a server that takes writes: leave target_session_attrs \
                            out of its URL, or write read-write",
                    ));
                }
                "host" | "hostaddr" | "port" if value.contains(',') => {
                    return Err(invalid(
                        "the store's URL names several servers in an option: write \
                            postgres://USER@HOST:PORT,HOST:PORT/DATABASE",
                    ));
                }
                name if DRIVER_OPTIONS.contains(&name) => passed_on.push(option),
                _ => {
                    let known = DRIVER_OPTIONS.join(", ");
                    return Err(invalid(format!(
                        "the store's URL has an option that is not known: use schema, listen, \
                            pooler, target_session_attrs, {known}"
                    )));
                }
            }
        }
        let authority = &rest[..rest.len() - path.len()];
        let scheme = &place[..place.len() - rest.len()];
        let options = passed_on.join("&");
        let mut servers =
            servers_of(scheme, authority, &format!("{path}?{options}")).ok_or_else(unreadable)?;
        let others = servers.split_off(1);
        let connect = servers.pop().ok_or_else(unreadable)?;
        Ok(Self { others, writable_only, pooler, schema, listen, ..Self::new(connect) })
    }

    /// The place of the store, for people: never a user name or a password.
    pub(crate) fn describe(&self) -> String {
        let host = |connect: &PgConnectOptions| {
            let host = match connect.get_socket() {
                Some(socket) => socket.display().to_string(),
                None => connect.get_host().to_owned(),
            };
            format!("{host}:{}", connect.get_port())
        };
        let hosts: Vec<String> =
            std::iter::once(&self.connect).chain(&self.others).map(host).collect();
        let database = self.connect.get_database().unwrap_or_default();
        format!("postgres://{}/{database}?schema={}", hosts.join(","), self.schema)
    }

    /// Longest time that one call takes, everything counted, except reading everything and
    /// migrating.
    pub fn call_timeout(&self) -> Duration {
        self.connect_timeout + self.response_timeout()
    }

    /// The longest wait for the response to one statement.
    pub(crate) fn response_timeout(&self) -> Duration {
        self.statement_timeout + RESPONSE_MARGIN
    }
}

/// For a setting of the server, where 0 would mean "for ever".
pub(crate) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

fn unreadable() -> Error {
    invalid(
        "the store's URL cannot be read: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with \
            several servers HOST:PORT,HOST:PORT, and special characters as %XX",
    )
}

fn flag(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(invalid(format!("the option {name} of the store's URL is true or false"))),
    }
}

impl fmt::Debug for PgConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgConfig")
            .field("store", &self.describe())
            .field("encrypted", &!matches!(self.connect.get_ssl_mode(), PgSslMode::Disable))
            .field("connections_max", &self.connections_max)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("load_timeout", &self.load_timeout)
            .field("listen", &self.listen)
            .field("pooler", &self.pooler)
            .finish_non_exhaustive()
    }
}

/// The name of a schema: 1 to 48 of `a-z`, `0-9` and `_`, beginning with a letter, and not with
/// `pg_`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SchemaName(String);

impl SchemaName {
    /// Checks a name.
    ///
    /// # Errors
    /// `InvalidArgument`: choose another.
    pub fn new(name: &str) -> Result<Self> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        let good = name.len() <= 48
            && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
            && name.bytes().all(plain)
            && !name.starts_with("pg_");
        if good {
            return Ok(Self(name.to_owned()));
        }
        Err(invalid(
            "the schema's name must be 1 to 48 of a-z, 0-9 and _, beginning with a letter, and \
                not with pg_",
        ))
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

/// The options of every server that an authority names, `USER@HOST:PORT,HOST:PORT`; `None` if they
/// cannot be read.
fn servers_of(scheme: &str, authority: &str, rest: &str) -> Option<Vec<PgConnectOptions>> {
    let (user, hosts) = authority
        .rsplit_once('@')
        .map_or(("", authority), |(_, hosts)| (&authority[..authority.len() - hosts.len()], hosts));
    let hosts: Vec<&str> = hosts.split(',').collect();
    if hosts.len() > HOSTS_MAX || hosts.len() > 1 && hosts.contains(&"") {
        return None;
    }
    let server = |host: &str| {
        let mut connect =
            PgConnectOptions::from_str(&format!("{scheme}{user}{host}{rest}")).ok()?;
        if connect.get_application_name().is_none() {
            connect = connect.application_name("lockservice");
        }
        Some(connect.disable_statement_logging())
    };
    hosts.into_iter().map(server).collect()
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
            PgConfig::from_url("postgres://me:s%40cret@db:6432/d?schema=locks_2&sslmode=require")
                .expect("a URL");
        assert_eq!(config.schema.as_str(), "locks_2");
        assert_eq!(config.describe(), "postgres://db:6432/d?schema=locks_2");
        assert!(matches!(config.connect.get_ssl_mode(), PgSslMode::Require));
        assert_eq!(config.connect.get_application_name(), Some("lockservice"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("cret") && shown.contains("db:6432"), "{shown}");
    }

    #[test]
    fn several_servers_are_read_and_described_and_listening_can_be_switched_off() {
        let config = PgConfig::from_url(
            "postgres://me:s@h1,h2:6432,[::1]:7/d?target_session_attrs=read-write&listen=false",
        )
        .expect("a URL");
        assert_eq!(config.describe(), "postgres://h1:5432,h2:6432,[::1]:7/d?schema=lockservice");
        assert!(config.writable_only && !config.listen && !config.pooler);
        assert!(config.others.iter().all(|other| other.get_username() == "me"));
        for url in [
            "postgres://h1,,h2/d",
            "postgres://h1/d?target_session_attrs=any",
            "postgres://h1/d?listen=maybe",
            "postgres:///d?host=h1,h2",
        ] {
            assert_eq!(
                PgConfig::from_url(url).expect_err(url).kind(),
                ErrorKind::InvalidArgument,
                "{url}"
            );
        }
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
