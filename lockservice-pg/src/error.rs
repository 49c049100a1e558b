//! The one mapping from errors of PostgreSQL (SQLSTATE) and of the driver to kinds.

use std::time::Duration;

use lockservice_core::{Error, ErrorKind};
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use self::ErrorKind::{InvalidArgument, StoreCorrupt, StoreUnusable, Unavailable};

/// The progress of a call when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Nothing that changes anything had been sent.
    Reading,
    /// A change had been sent: only a response shows that it is not there.
    Changing,
}

/// The reason why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The error of the driver.
    Driver(sqlx::Error),
    /// No connection in time.
    NoConnection(Duration),
    /// No response in time.
    NoResponse(Duration),
    /// Of several servers none takes writes.
    NotWritable,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(error)
    }
}

/// A SQLSTATE, or the class that its first two characters name; its kind; its name in PostgreSQL's
/// manual; what to do.
type Row = (&'static str, ErrorKind, &'static str, &'static str);

const LOST: &str =
    "the store's server cannot be reached, or closed the connection: is it running and reachable?";
const STOPPED: &str =
    "the store's server is stopping or starting, or an administrator ended the session: try again";
const CLASH: &str = "another transaction got in the way: try again";
const LOGIN: &str = "the store's server refuses the login: check user, password and pg_hba.conf";
const NO_TLS: &str =
    "no encrypted connection to the store's server: check sslmode and the certificates";
const GONE: &str = "the store's schema is gone, or not what it should be: was it dropped or \
    restored while this program ran? restart it to set up the schema again, or restore a backup";
const FOREIGN: &str =
    "the schema holds other objects of the same names: choose another with ?schema=NAME";
const POOLER: &str = "a pooler between here and the server loses prepared statements, and was not \
    noticed: set pooler=true in the store's URL (or in PgConfig), or connect to the server itself";
const BROKEN: &str =
    "the store's server cannot read or write its files: see to its disk and its log";
const DAMAGED: &str = "the store's server reports damaged data: restore the database from a backup";
const LIMIT: &str = "the store's server is out of memory or of another resource: raise its \
    limits; nothing acknowledged is lost";

/// Every SQLSTATE that can occur, exact codes before their classes.
const TABLE: &[Row] = &[
    ("08", Unavailable, "connection_exception", LOST),
    (
        "0A000",
        Unavailable,
        "feature_not_supported",
        "the store's schema changed under a prepared statement: try again",
    ),
    (
        "22021",
        InvalidArgument,
        "character_not_in_repertoire",
        "a name or an address holds a character that the store cannot keep: choose another",
    ),
    (
        "22P05",
        InvalidArgument,
        "untranslatable_character",
        "a name or an address holds a character that the store cannot keep: choose another",
    ),
    (
        "25006",
        StoreUnusable,
        "read_only_sql_transaction",
        "the store's server is read-only: point the store's URL at the primary, or end \
            default_transaction_read_only; nothing acknowledged is lost, and writes succeed again \
            by themselves",
    ),
    ("25P03", Unavailable, "idle_in_transaction_session_timeout", CLASH),
    (
        "25P04",
        Unavailable,
        "transaction_timeout",
        "the store's server gave up on the call: it is overloaded, or its time-outs are too short",
    ),
    ("26000", StoreUnusable, "invalid_sql_statement_name", POOLER),
    ("28000", StoreUnusable, "invalid_authorization_specification", LOGIN),
    ("28P01", StoreUnusable, "invalid_password", LOGIN),
    (
        "3D000",
        StoreUnusable,
        "invalid_catalog_name",
        "the database does not exist: create it, or name another in the store's URL",
    ),
    ("3F000", StoreUnusable, "invalid_schema_name", GONE),
    ("40", Unavailable, "transaction_rollback", CLASH),
    ("40001", Unavailable, "serialization_failure", CLASH),
    ("40P01", Unavailable, "deadlock_detected", CLASH),
    (
        "42501",
        StoreUnusable,
        "insufficient_privilege",
        "the store's user lacks a right: let it create a schema in the database or own the \
            store's schema, and execute pg_control_system()",
    ),
    ("42P01", StoreUnusable, "undefined_table", GONE),
    ("42P02", StoreUnusable, "undefined_parameter", GONE),
    ("42703", StoreUnusable, "undefined_column", GONE),
    ("42804", StoreUnusable, "datatype_mismatch", GONE),
    ("42883", StoreUnusable, "undefined_function", GONE),
    ("42P05", StoreUnusable, "duplicate_prepared_statement", POOLER),
    ("42P06", StoreUnusable, "duplicate_schema", FOREIGN),
    ("42P07", StoreUnusable, "duplicate_table", FOREIGN),
    ("42710", StoreUnusable, "duplicate_object", FOREIGN),
    ("42723", StoreUnusable, "duplicate_function", FOREIGN),
    ("53", Unavailable, "insufficient_resources", LIMIT),
    (
        "53100",
        StoreUnusable,
        "disk_full",
        "the disk under the store's server is full: free space there; nothing acknowledged is \
            lost, and writes succeed again by themselves",
    ),
    ("53200", Unavailable, "out_of_memory", LIMIT),
    (
        "53300",
        Unavailable,
        "too_many_connections",
        "the store's server has no connection left: raise its max_connections, or the user's \
            limit, or lower connections_max here",
    ),
    (
        "54",
        StoreUnusable,
        "program_limit_exceeded",
        "a change is larger than the store's server takes: lower the size of batches",
    ),
    (
        "55000",
        StoreUnusable,
        "object_not_in_prerequisite_state",
        "the store's server is a standby that follows another: point the store's URL at the \
            primary",
    ),
    (
        "55P03",
        Unavailable,
        "lock_not_available",
        "another session holds a lock on the store's tables: end it (pg_locks and \
            pg_stat_activity show which), or try again",
    ),
    (
        "57014",
        Unavailable,
        "query_canceled",
        "the store's server gave up on the call: it is overloaded, or its statement_timeout is \
            too short",
    ),
    ("57P01", Unavailable, "admin_shutdown", STOPPED),
    ("57P02", Unavailable, "crash_shutdown", STOPPED),
    ("57P03", Unavailable, "cannot_connect_now", STOPPED),
    (
        "57P04",
        StoreUnusable,
        "database_dropped",
        "the database was dropped: restore it, or name another in the store's URL",
    ),
    ("57P05", Unavailable, "idle_session_timeout", LOST),
    ("58", StoreUnusable, "system_error", BROKEN),
    (
        "F0",
        StoreUnusable,
        "config_file_error",
        "the store's server has a broken configuration: see its log",
    ),
    ("XX000", StoreUnusable, "internal_error", "the store's server failed inside: see its log"),
    ("XX001", StoreCorrupt, "data_corrupted", DAMAGED),
    ("XX002", StoreCorrupt, "index_corrupted", DAMAGED),
];

const UNKNOWN_STATE: Row =
    ("", StoreUnusable, "unknown", "the store's server refuses the call: its message says why");

/// The exact code, else its class.
fn row(code: &str) -> &'static Row {
    let exact = TABLE.iter().find(|row| row.0 == code);
    exact
        .or_else(|| TABLE.iter().find(|row| Some(row.0) == code.get(..2)))
        .unwrap_or(&UNKNOWN_STATE)
}

impl Failure {
    /// True if the connection is of no more use: another may do.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Driver(sqlx::Error::Database(error)) => {
                let error = error.downcast_ref::<PgDatabaseError>();
                // After a fail-over the server that was the primary may live on.
                ends_connection(error) || matches!(error.code(), "0A000" | "25006" | "55000")
            }
            Self::Driver(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
            Self::Driver(_) | Self::NoConnection(_) | Self::NoResponse(_) | Self::NotWritable => {
                false
            }
        }
    }

    /// The meaning for the caller; `store` describes the store.
    pub(crate) fn explain(self, store: &str, stage: Stage) -> Error {
        let (kind, message) = self.classify();
        // An error that the server reports and survives has rolled the change back. Anything else
        // may have come after the commit.
        let uncertain = stage == Stage::Changing && self.may_follow_a_commit();
        let (kind, message) = match uncertain {
            true => (
                ErrorKind::UnknownOutcome,
                format!(
                    "{message} (whether the change was made is not known: read before deciding)"
                ),
            ),
            false => (kind, message.to_owned()),
        };
        let error = Error::new(kind, message).with("store", store);
        match self {
            Self::Driver(sqlx::Error::Database(source)) => {
                let code = source.code().unwrap_or_default().into_owned();
                let state = format!("{code} {}", row(&code).2);
                error
                    .with("sqlstate", state)
                    .with("cause", source.message())
                    .with_source(sqlx::Error::Database(source))
            }
            Self::Driver(source) => error.with("cause", &source).with_source(source),
            Self::NoConnection(waited) | Self::NoResponse(waited) => {
                error.with("waited", format!("{waited:?}"))
            }
            Self::NotWritable => error,
        }
    }

    fn classify(&self) -> (ErrorKind, &'static str) {
        match self {
            Self::Driver(sqlx::Error::Database(error)) => {
                let row = row(&error.code().unwrap_or_default());
                (row.1, row.3)
            }
            Self::Driver(sqlx::Error::Tls(_)) => (StoreUnusable, NO_TLS),
            // A certificate that is refused comes as this.
            Self::Driver(sqlx::Error::Io(error))
                if error.kind() == std::io::ErrorKind::InvalidData =>
            {
                (StoreUnusable, NO_TLS)
            }
            Self::Driver(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => (Unavailable, LOST),
            Self::Driver(sqlx::Error::Configuration(_)) => (
                StoreUnusable,
                "the connection to the store's server cannot be set up: check the options of the \
                    store's URL",
            ),
            Self::Driver(sqlx::Error::PoolTimedOut) => (
                Unavailable,
                "the pool had no connection in time: is the server reachable, and the pool large \
                    enough?",
            ),
            Self::Driver(sqlx::Error::PoolClosed) => {
                (StoreUnusable, "the pool was closed: keep it open as long as the store")
            }
            Self::Driver(
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::Decode(_)
                | sqlx::Error::RowNotFound
                | sqlx::Error::TypeNotFound { .. },
            ) => (StoreUnusable, GONE),
            Self::Driver(_) => {
                (ErrorKind::Internal, "the driver was used wrongly: please report this")
            }
            Self::NoConnection(_) => (
                Unavailable,
                "the store's server accepts no connection in time: is it running, reachable and \
                    not overloaded?",
            ),
            Self::NotWritable => (
                Unavailable,
                "none of the store's servers that respond takes writes now: is one of them being \
                    promoted, and does the store's URL name the primary too?",
            ),
            Self::NoResponse(_) => (
                Unavailable,
                "the store's server does not respond in time: is it running, reachable and not \
                    overloaded?",
            ),
        }
    }

    fn may_follow_a_commit(&self) -> bool {
        match self {
            Self::Driver(sqlx::Error::Database(error)) => {
                let error = error.downcast_ref::<PgDatabaseError>();
                // 40003 is statement_completion_unknown.
                ends_connection(error) || error.code() == "40003"
            }
            Self::Driver(
                sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Encode(_),
            ) => false,
            Self::Driver(_) | Self::NoResponse(_) => true,
            Self::NoConnection(_) | Self::NotWritable => false,
        }
    }
}

/// Class 08 comes from poolers, which report a lost server that way.
fn ends_connection(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
        || error.code().starts_with("08")
        || error.code().starts_with("57P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_code_goes_before_its_class_and_an_unknown_one_has_advice_too() {
        assert_eq!(row("53100").2, "disk_full");
        assert_eq!(row("53400").2, "insufficient_resources");
        assert_eq!(row("08006").2, "connection_exception");
        assert_eq!(row("ZZ999").1, StoreUnusable);
        assert_eq!(row("").1, StoreUnusable);
    }

    #[test]
    fn every_sentence_says_what_to_do() {
        for (code, _, _, message) in TABLE {
            assert!(message.contains(": ") || message.contains(';'), "{code}: {message}");
            assert_eq!(TABLE.iter().filter(|row| row.0 == *code).count(), 1, "{code}");
        }
    }

    #[test]
    fn only_a_change_that_was_sent_has_an_unknown_outcome() {
        let lost = || Failure::Driver(sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()));
        assert_eq!(lost().explain("s", Stage::Reading).kind(), Unavailable);
        assert_eq!(lost().explain("s", Stage::Changing).kind(), ErrorKind::UnknownOutcome);
        let waited = Duration::from_secs(1);
        assert_eq!(
            Failure::NoResponse(waited).explain("s", Stage::Changing).kind(),
            ErrorKind::UnknownOutcome
        );
        assert_eq!(Failure::NoConnection(waited).explain("s", Stage::Changing).kind(), Unavailable);
    }
}
