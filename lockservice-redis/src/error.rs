//! The one mapping from errors of Redis and of its driver to kinds.

use lockservice_core::{Error, ErrorKind};
use redis::RedisError;

/// The stage of a call when it failed: it decides what an error without a response means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Nothing was sent yet.
    Connect,
    /// The call changes nothing, or may be repeated.
    Repeatable,
    /// The call may have been done although no response came.
    Write,
}

/// Turns errors of one store into errors that name it and hold no secret.
#[derive(Clone)]
pub(crate) struct Errors {
    store: String,
    secrets: Vec<String>,
}

impl Errors {
    pub(crate) fn new(store: String, secrets: Vec<String>) -> Self {
        Self { store, secrets }
    }

    /// An error about this store.
    pub(crate) fn about(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, message).with("store", &self.store)
    }

    /// The error for a failure that the driver reports.
    pub(crate) fn redis(&self, error: &RedisError, stage: Stage) -> Error {
        let (kind, message) = match error.code() {
            Some(code) => by_code(code, error),
            None => silent(error, stage),
        };
        // The driver's error is not kept as a source: a response may repeat the request, with a
        // password.
        self.about(kind, message).with("cause", self.scrubbed(&error.to_string()))
    }

    /// The error for a response that did not come in time.
    pub(crate) fn timed_out(&self, stage: Stage) -> Error {
        match stage {
            Stage::Connect => self.about(
                ErrorKind::Unavailable,
                "no connection to Redis in time: is it running and reachable? Nothing was \
                    changed; try again",
            ),
            Stage::Repeatable => self.about(
                ErrorKind::Unavailable,
                "Redis did not respond in time: is it paused or \
                    overloaded? Try again",
            ),
            Stage::Write => self.about(
                ErrorKind::UnknownOutcome,
                "Redis did not respond to a write in time: read its number before the next write",
            ),
        }
    }

    /// The error for a response of a shape that this version never gets.
    pub(crate) fn strange(&self, what: &str) -> Error {
        self.about(
            ErrorKind::StoreUnusable,
            "the server sent a response that no Redis of version 7.0 or later sends: use one",
        )
        .with("response", what)
    }

    /// The error for a record that is not what it should be.
    pub(crate) fn damaged(&self, record: &str) -> Error {
        self.about(
            ErrorKind::StoreCorrupt,
            "a record in the store is damaged: restore the store from a backup",
        )
        .with("record", record)
    }

    fn scrubbed(&self, text: &str) -> String {
        self.secrets
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}

/// An error response of the server, by its code. The call was refused before anything was changed:
/// the scripts check everything before they write, and Redis checks memory, role and disk before it
/// starts them.
// Long: a table, one row a code.
fn by_code(code: &str, error: &RedisError) -> (ErrorKind, &'static str) {
    use ErrorKind::{StoreUnusable, Unavailable};
    match code {
        "OOM" => (
            StoreUnusable,
            "Redis is out of memory and refused the write; nothing was written: raise maxmemory, \
             or give the lock service \
             a Redis of its own",
        ),
        "READONLY" => (
            Unavailable,
            "this Redis is a replica and takes no writes: after a fail-over try again; else name \
             the master, its Sentinels \
             or the Cluster",
        ),
        "LOADING" => (Unavailable, "Redis is still loading its data: try again"),
        "NOSCRIPT" => (Unavailable, "Redis forgot the script and was not sent it again: try again"),
        "MASTERDOWN" => (
            Unavailable,
            "this Redis is a replica that has lost its master: try again after the fail-over",
        ),
        "CLUSTERDOWN" => (
            Unavailable,
            "the Redis Cluster is down, or the slot has no node: try again once it is repaired",
        ),
        "MOVED" => (
            Unavailable,
            "the key has moved to another node of the Redis Cluster: try again; with a redis:// \
                URL write redis-cluster://",
        ),
        "ASK" | "TRYAGAIN" => (
            Unavailable,
            "the key is being moved to another node of the Redis Cluster, which does not serve it \
             yet: try again, and finish \
             the move if it was interrupted",
        ),
        "NOAUTH" => {
            (StoreUnusable, "Redis wants a password: put it into the URL, redis://:PASSWORD@HOST")
        }
        "WRONGPASS" => {
            (StoreUnusable, "Redis refused the user name or password: correct them in the URL")
        }
        "NOPERM" => (
            StoreUnusable,
            "the Redis user lacks a permission: grant the key and channel {lockservice:NAME}* and \
             the commands \
             @read @write @scripting @pubsub @connection wait info time",
        ),
        "MISCONF" => (
            StoreUnusable,
            "Redis cannot save to its disk and refuses writes; nothing was written: free disk \
             space or repair its \
             configuration",
        ),
        "BUSY" | "UNKILLABLE" => {
            (Unavailable, "Redis is busy with a script: try again once it is done")
        }
        "NOREPLICAS" => (
            Unavailable,
            "Redis has fewer replicas than its min-replicas-to-write and refused the write; \
                nothing was written: try again",
        ),
        "WRONGTYPE" => (
            StoreUnusable,
            "the store's key is used by something else: choose another name (`?name=`), or remove \
                the key",
        ),
        _ if error.to_string().contains("max number of clients") => {
            (Unavailable, "Redis has as many clients as it may: raise its maxclients, or try again")
        }
        _ => (StoreUnusable, "Redis refused the request: see the cause; nothing was written"),
    }
}

/// A failure without a response of the server.
fn silent(error: &RedisError, stage: Stage) -> (ErrorKind, &'static str) {
    use ErrorKind::{StoreUnusable, Unavailable, UnknownOutcome};
    match error.kind() {
        _ if stage == Stage::Write => (
            UnknownOutcome,
            "the connection to Redis was lost while a write was under way: read its number before \
                the next write",
        ),
        redis::ErrorKind::AuthenticationFailed => {
            (StoreUnusable, "Redis refused the user name or password: correct them in the URL")
        }
        redis::ErrorKind::InvalidClientConfig => {
            (StoreUnusable, "the settings of the connection to Redis cannot be used: correct them")
        }
        redis::ErrorKind::Parse
        | redis::ErrorKind::UnexpectedReturnType
        | redis::ErrorKind::RESP3NotSupported => (
            Unavailable,
            "what responds does not speak the protocol of Redis: correct host and port, and use \
                rediss:// for TLS",
        ),
        _ if error.is_connection_refusal() => (
            Unavailable,
            "Redis refuses connections: start it, or correct host and port; nothing was changed",
        ),
        _ => (Unavailable, "the connection to Redis was lost, or could not be made: try again"),
    }
}
