//! Redis, locked as its users do.
//!
//! # Implementation details
//! One row is `SET key token NX PX`, and is unlocked by the script that compares the token and
//! deletes the key. Several rows, all or none, are a script that sets all keys if none is set.
//! Redis knows neither shared locks nor ranges, so a range is all of its rows, exclusively. All
//! callers share one multiplexed connection, as those of our side share one session.
//!
//! Where callers can meet, the unlock also publishes the rows, and one waiting caller of each tries
//! again (Redisson waits like this). That is much faster than a retry now and then, as in most
//! libraries. A lost message costs [`TRY_AGAIN`].
//!
//! Every key has a prefix of its own for each benchmark, and runs out by itself if the benchmark is
//! killed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use lockservice_core::{Error, ErrorKind, Result};
use lockservice_redis::redis::aio::MultiplexedConnection;
use lockservice_redis::redis::io::tcp::TcpSettings;
use lockservice_redis::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo as _,
    RedisError, Script, cmd,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::cpu::{ServerProcess, is_loopback};
use super::side::{Caller, Side};
use super::workload::{Want, Workload};
use crate::cli::exit::Failure;

/// The time for which a lock is kept if it is not unlocked.
const TTL: Duration = Duration::from_secs(30);
/// The time for which a caller waits for a message before it tries again.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The longest time to connect, and to get a response.
const CALL_MAX: Duration = Duration::from_secs(5);
/// The names of its program, and of its forks.
const PROGRAMS: [&str; 3] = ["redis-server", "valkey-server", "keydb-server"];
/// The largest number of keys that are deleted in one step.
const DELETED_AT_ONCE: u32 = 1_000;

/// Deletes the key if it has the token.
const UNLOCK: &str = "\
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0";

/// Deletes the keys that have the token, and publishes the rows.
const UNLOCK_AND_PUBLISH: &str = "\
local deleted = 0
for _, key in ipairs(KEYS) do
    if redis.call('GET', key) == ARGV[1] then deleted = deleted + redis.call('DEL', key) end
end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return deleted";

/// Sets all keys to the token, or none. Returns the place of the first key that is set, or 0.
const LOCK_ALL: &str = "\
for place, key in ipairs(KEYS) do
    if redis.call('EXISTS', key) == 1 then return place end
end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
return 0";

/// The address of one Redis, parsed once.
pub(crate) struct RedisUrl(Client);

impl RedisUrl {
    /// Parses `redis://…`. The error does not repeat the text, which may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, Failure> {
        let syntax = || {
            Failure::usage(
                "--beside takes one Redis, without TLS: \
                 redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]",
            )
        };
        let info = url.into_connection_info().map_err(|_| syntax())?;
        if !matches!(info.addr(), ConnectionAddr::Tcp(..)) {
            return Err(syntax());
        }
        // Otherwise small requests wait for the acknowledgements of earlier ones.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self(Client::open(info).map_err(|_| syntax())?))
    }
}

/// See the module.
pub(super) struct Redis {
    shared: Arc<Shared>,
    server: ServerProcess,
    /// Listens for unlocked rows.
    listener: JoinHandle<()>,
    /// All keys that were ever used are those of rows below. `Relaxed`: it is changed before
    /// callers are spawned, and read after they have ended.
    rows: AtomicU32,
}

/// The state that the callers share.
struct Shared {
    connection: MultiplexedConnection,
    errors: Errors,
    /// Before the number of a row; also the channel of the messages.
    prefix: String,
    unlock: Script,
    unlock_and_publish: Script,
    lock_all: Script,
    /// For each row one waiting caller is woken by a message. A permit that is left wakes the next.
    unlocked: Vec<Notify>,
}

impl Redis {
    /// Connects.
    pub(super) async fn open(url: &RedisUrl) -> Result<Self> {
        let errors = Errors::new(&url.0);
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CALL_MAX))
            .set_response_timeout(Some(CALL_MAX));
        let connecting = url.0.get_multiplexed_async_connection_with_config(&settings);
        let mut connection = connecting.await.map_err(|error| errors.of(&error))?;
        let server = process(&url.0, &mut connection).await;
        let prefix = format!("lockservice-bench:{:08x}:", rand::random::<u32>());
        let subscribe = async {
            let mut subscription = url.0.get_async_pubsub().await?;
            subscription.subscribe(&prefix).await?;
            Ok(subscription)
        };
        let subscription = tokio::time::timeout(CALL_MAX, subscribe)
            .await
            .map_err(|_| Error::new(ErrorKind::Unavailable, "Redis does not respond: is it up?"))?
            .map_err(|error: RedisError| errors.of(&error))?;
        let shared = Arc::new(Shared {
            connection,
            errors,
            prefix,
            unlock: Script::new(UNLOCK),
            unlock_and_publish: Script::new(UNLOCK_AND_PUBLISH),
            lock_all: Script::new(LOCK_ALL),
            unlocked: (0..Workload::SHARED_ROWS_MAX).map(|_| Notify::new()).collect(),
        });
        let wakes = Arc::clone(&shared);
        // Callers try again without it.
        let listener = tokio::spawn(async move {
            let mut messages = subscription.into_on_message();
            while let Some(message) = messages.next().await {
                let rows = message.get_payload().ok().and_then(|text: String| rows_of(&text));
                rows.into_iter().flatten().for_each(|row| wakes.wake(row));
            }
        });
        Ok(Self { shared, server, listener, rows: AtomicU32::new(0) })
    }
}

/// The process of the server, if it is on this machine.
async fn process(client: &Client, connection: &mut MultiplexedConnection) -> ServerProcess {
    let address = client.get_connection_info().addr();
    if !matches!(address, ConnectionAddr::Tcp(host, _) if is_loopback(host).await) {
        return ServerProcess::Unknown("it is not on this machine's loopback".to_owned());
    }
    let info: Result<String, _> = cmd("INFO").arg("server").query_async(connection).await;
    let pid = info.ok().and_then(|info| {
        info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok())
    });
    match pid {
        Some(pid) => ServerProcess::named(pid, &PROGRAMS),
        None => ServerProcess::Unknown("Redis does not say which process it is".to_owned()),
    }
}

#[async_trait]
impl Side for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn server(&self) -> &ServerProcess {
        &self.server
    }

    async fn callers(&self, workload: Workload, count: u32) -> Result<Vec<Box<dyn Caller>>> {
        self.rows.fetch_max(workload.rows(count), Ordering::Relaxed);
        let caller = |number| -> Box<dyn Caller> {
            Box::new(RedisCaller {
                connection: self.shared.connection.clone(),
                shared: Arc::clone(&self.shared),
                number,
                cycles: 0,
                alone: workload == Workload::Rows,
            })
        };
        Ok((0..count).map(caller).collect())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.listener.abort();
        // Only a caller that was dropped in the middle of a cycle has left something.
        let rows = self.rows.load(Ordering::Relaxed);
        for first in (0..rows).step_by(DELETED_AT_ONCE as usize) {
            let mut delete = cmd("UNLINK");
            for row in first..rows.min(first + DELETED_AT_ONCE) {
                delete.arg(self.shared.key(row));
            }
            let _: u32 = self.shared.query(&delete).await?;
        }
        Ok(())
    }
}

impl Shared {
    fn key(&self, row: u32) -> String {
        format!("{}{row}", self.prefix)
    }

    fn wake(&self, row: u32) {
        if let Some(unlocked) = self.unlocked.get(row as usize) {
            unlocked.notify_one();
        }
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(|error| self.errors.of(&error))
    }
}

struct RedisCaller {
    connection: MultiplexedConnection,
    shared: Arc<Shared>,
    number: u32,
    cycles: u64,
    /// No other caller ever wants the same rows.
    alone: bool,
}

#[async_trait]
impl Caller for RedisCaller {
    async fn cycle(&mut self, want: &Want) -> Result<()> {
        let rows = want.rows();
        self.cycles += 1;
        // No two locks have the same token: a lock that ran out cannot unlock the next.
        let token = format!("{}-{}", self.number, self.cycles);
        let mut woken_by = None;
        while let Some(taken) = self.try_lock(&rows, &token).await? {
            // The message was for a row that this caller can lock, but another row is locked. So
            // the next caller must learn of the first row.
            if let Some(row) = woken_by
                && row != taken
            {
                self.shared.wake(row);
            }
            let unlocked = &self.shared.unlocked[taken as usize];
            let message = tokio::time::timeout(TRY_AGAIN, unlocked.notified()).await;
            woken_by = message.is_ok().then_some(taken);
        }
        self.unlock(&rows, &token).await
    }
}

impl RedisCaller {
    /// Locks all rows, or returns one that is locked.
    async fn try_lock(&mut self, rows: &Range<u32>, token: &str) -> Result<Option<u32>> {
        let failed = |error: RedisError| self.shared.errors.of(&error);
        let ttl_ms = TTL.as_millis() as u64;
        if rows.len() == 1 {
            let mut set = cmd("SET");
            set.arg(self.shared.key(rows.start)).arg(token).arg("NX").arg("PX").arg(ttl_ms);
            let set: Option<String> =
                set.query_async(&mut self.connection).await.map_err(failed)?;
            return Ok(set.is_none().then_some(rows.start));
        }
        let mut call = self.shared.lock_all.prepare_invoke();
        for row in rows.clone() {
            call.key(self.shared.key(row));
        }
        call.arg(token).arg(ttl_ms);
        let place: u32 = call.invoke_async(&mut self.connection).await.map_err(failed)?;
        Ok(place.checked_sub(1).map(|at| rows.start + at))
    }

    async fn unlock(&mut self, rows: &Range<u32>, token: &str) -> Result<()> {
        let shared = &*self.shared;
        let script = if self.alone { &shared.unlock } else { &shared.unlock_and_publish };
        let mut call = script.prepare_invoke();
        for row in rows.clone() {
            call.key(shared.key(row));
        }
        call.arg(token);
        if !self.alone {
            call.arg(&shared.prefix).arg(format!("{} {}", rows.start, rows.end));
        }
        let deleted: usize = call
            .invoke_async(&mut self.connection)
            .await
            .map_err(|error| shared.errors.of(&error))?;
        if deleted < rows.len() {
            return Err(Error::new(
                ErrorKind::Timeout,
                "a lock ran out before it was unlocked: is Redis overloaded, or does it evict \
                 keys?",
            ));
        }
        Ok(())
    }
}

/// The rows that a message names.
fn rows_of(text: &str) -> Option<Range<u32>> {
    let (start, end) = text.split_once(' ')?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

/// Turns errors of the driver into ours, without the password.
struct Errors {
    password: Option<String>,
}

impl Errors {
    fn new(client: &Client) -> Self {
        let password = client.get_connection_info().redis_settings().password();
        Self { password: password.filter(|text| !text.is_empty()).map(str::to_owned) }
    }

    fn of(&self, error: &RedisError) -> Error {
        let (kind, message) = match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => (
                ErrorKind::NotPermitted,
                "Redis refuses the login or a command: correct user and password, or let the user \
                 run GET, SET, EXISTS, DEL, UNLINK, PUBLISH, SUBSCRIBE and scripts",
            ),
            Some("OOM") => {
                (ErrorKind::ResourceExhausted, "Redis is out of memory: raise maxmemory")
            }
            Some(_) => (ErrorKind::Unavailable, "Redis refuses a command"),
            None if error.kind() == lockservice_redis::redis::ErrorKind::AuthenticationFailed => {
                (ErrorKind::NotPermitted, "Redis refuses the login: correct user and password")
            }
            None => (ErrorKind::Unavailable, "Redis cannot be reached, or the connection was lost"),
        };
        let mut cause = error.to_string();
        if let Some(password) = &self.password {
            cause = cause.replace(password, "***");
        }
        Error::new(kind, message).with("cause", cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_rows_and_one_that_cannot_be_read_none() {
        assert_eq!(rows_of("3 7"), Some(3..7));
        for text in ["", "3", "3 x", "-1 2"] {
            assert_eq!(rows_of(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_one_plain_redis_is_taken_and_its_password_is_not_repeated() {
        for url in ["redis://", "rediss://h", "redis://:hidden@h:99999", "redis://h/hidden"] {
            let refused = RedisUrl::parse(url).err().expect(url);
            assert!(!refused.sentence.contains("hidden"), "{}", refused.sentence);
        }
        assert!(RedisUrl::parse("redis://me:secret@h:1/2").is_ok());
    }
}
