//! `lock`: runs a command while holding a lock.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the request and the release of the lock |
//! | `hold` | the command that runs meanwhile |
//! | `connection` | what is said while the connection to the server is lost |
//! | `end` | [`End`]: the end of this process |
//! | `promise` | [`ShorterPromise`]: the note that the server promises less than was asked for |

mod connection;
mod end;
mod hold;
mod promise;

use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::{LockSpec, TraceContext};
use lockservice_core::table::WaitPolicy;
use lockservice_core::{Error, ErrorKind};
use tokio::sync::watch;

use self::connection::{ConnectionNews, Meanwhile};
pub(crate) use self::end::End;
use self::hold::hold;
use self::promise::ShorterPromise;
use super::args::LockArgs;
use super::exit::{self, Failure};
use super::outer;
use super::patience::{self, Patience};
use super::signals::Signals;
use super::waiting;
use crate::client::{Client, LockGuard, Session};

/// The longest default stop time.
const STOP_TIME_MAX: Duration = Duration::from_secs(1);

/// The time to wait for the release. If the release arrives, the next holder is granted the lock at
/// once; if not, after the session's TTL.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// The time to try to connect to a server.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// The time to wait for the end of the session if nothing was locked.
const LAST_WORDS_MAX: Duration = Duration::from_millis(200);

/// Takes the lock, runs the command, and releases the lock. Returns the end of this process.
pub(crate) async fn run(args: &LockArgs, json: bool) -> Result<End, Failure> {
    if !std::path::Path::new("/proc/self/exe").exists() {
        let sentence = "/proc is not mounted here, and nothing can be supervised without it: \
            mount it; nothing was locked";
        return Err(Failure::new(exit::OS, "os", sentence));
    }
    let mut signals = Signals::take().map_err(|error| {
        Failure::new(exit::OS, "os", format!("cannot take signals: {error}; nothing was locked"))
    })?;
    let mut session = None;
    let news = ConnectionNews::new(args.quiet, json);
    let outcome = tokio::select! {
        // Signals come first: a signal that came before the lock prevents the start of the command,
        // and is not passed on to it.
        biased;
        // Dropping the call cancels the request.
        signal = signals.next_to_end() => Ok(End::Signal(signal)),
        held = take(args, &mut session, &news, json) => match held {
            Ok((lock, session, stop_time)) => {
                let held = hold(args, &lock, stop_time, &mut signals, (&news, json)).await;
                if held.still_running.is_empty() {
                    release(lock, &session).await;
                } else {
                    // P5: the session lapses. The operator sees the reason, if the server can be
                    // reached.
                    let why = held.still_running.join(", ");
                    let _ = tokio::time::timeout(RELEASE_WAIT, session.leave(&why)).await;
                }
                return held.outcome;
            }
            Err(failure) => Err(failure),
        },
    };
    if let Some(session) = &session {
        // Nothing is held, so a server that did not respond until now gets only a short time.
        let _ = tokio::time::timeout(LAST_WORDS_MAX, session.close()).await;
    }
    outcome
}

/// Connects, opens a session and takes the lock; tries again while the server is starting or away,
/// as long as the call may wait. A session that was opened but not returned is left in `opened`.
async fn take(
    args: &LockArgs,
    opened: &mut Option<Session>,
    news: &ConnectionNews,
    json: bool,
) -> Result<(LockGuard, Session, Duration), Failure> {
    // An error in the keys is reported before the first connection.
    args.target()?;
    let clock = SystemClock;
    let mut patience = Patience::new(!args.no_wait, args.timeout, clock.now());
    let mut promise = ShorterPromise::default();
    loop {
        let taken = try_to_take(args, &mut patience, &mut promise, opened, news, json);
        let failure = match taken.await {
            Ok((lock, stop_time)) => match opened.take() {
                Some(session) => return Ok((lock, session, stop_time)),
                // A lock depends on the session that was opened for it.
                None => return Err(lost(&deadline_passed())),
            },
            Err(failure) => failure,
        };
        let Some(pause) = patience.after(&failure, clock.now()) else { return Err(failure) };
        tracing::debug!(why = %failure.sentence, "the server is starting, or away; trying again");
        // Its server is informed in the background, if it can be reached.
        *opened = None;
        tokio::time::sleep(pause).await;
    }
}

/// One try. Returns the lock and the stop time.
async fn try_to_take(
    args: &LockArgs,
    patience: &mut Patience,
    promise: &mut ShorterPromise,
    opened: &mut Option<Session>,
    news: &ConnectionNews,
    json: bool,
) -> Result<(LockGuard, Duration), Failure> {
    let left = patience.left(SystemClock.now());
    let opening = open(args, patience);
    let (client, session) = match left {
        None => opening.await?,
        Some(left) => tokio::time::timeout(left, opening)
            .await
            .unwrap_or_else(|_| Err(patience::no_response()))?,
    };
    let session = opened.insert(session);
    let stop_time = stop_time(args, &client, session)?;
    promise.say(args.ttl, session.longest_promise(), json);
    news.say_back(Meanwhile::Waits);
    let lock = tokio::select! {
        lock = acquire(args, patience, session, json) => lock?,
        never = news.say(session.watch_connected(), Meanwhile::Waits) => match never {},
    };
    Ok((lock, stop_time))
}

/// Connects and opens a session.
async fn open(args: &LockArgs, patience: &mut Patience) -> Result<(Client, Session), Failure> {
    let builder = args
        .client
        .credentials
        .client()
        .name(client_name())
        .connect_timeout(patience.call.min(CONNECT_MAX))
        .call_timeout(patience.call)
        .start_timeout(if args.no_wait { Duration::ZERO } else { patience.call });
    let client = builder.connect(&args.client.server).await?;
    patience.met = true;
    let session = client.session(args.ttl).await?;
    Ok((client, session))
}

/// Releases the lock for the next waiter: sent, acknowledged, and the session given up, so that the
/// server knows that work has stopped (P5).
async fn release(lock: LockGuard, session: &Session) {
    if lock.lost_now().is_none() {
        let _ = tokio::time::timeout(RELEASE_WAIT, lock.unlock()).await;
    }
    give_up(session).await;
}

/// Closes the session. If the server cannot be reached, its TTL ends the session. This process can
/// do no better.
async fn give_up(session: &Session) {
    let _ = tokio::time::timeout(RELEASE_WAIT, session.close()).await;
}

/// The time that the command has to stop when the lock is lost.
fn stop_time(args: &LockArgs, client: &Client, session: &Session) -> Result<Duration, Failure> {
    let valid_for = session.deadline().remaining(client.clock().now());
    match args.stop_time {
        None => Ok((valid_for / 10).min(STOP_TIME_MAX)),
        Some(time) if time <= valid_for / 3 => Ok(time),
        Some(time) => Err(Failure::usage(format!(
            "the stop time {time:?} is more than a third of the {valid_for:?} for which the lock \
             is safe without a renewal: use a shorter --stop-time, or a longer --ttl here \
             and lease at the server"
        ))),
    }
}

async fn acquire(
    args: &LockArgs,
    patience: &Patience,
    session: &Session,
    json: bool,
) -> Result<LockGuard, Failure> {
    let (table, items) = args.target()?;
    let spec = LockSpec {
        mode: args.mode(),
        wait: if args.no_wait { WaitPolicy::NoWait } else { WaitPolicy::Wait },
        timeout: patience.left(SystemClock.now()),
        ancestors: outer::ancestors(std::env::var_os(outer::VARIABLE), &args.client.server),
        trace: trace_of_environment(),
        ..LockSpec::new(table, items)
    };
    let (table, (waits, observed)) = (spec.table.clone(), watch::channel(None));
    // The error of a lock that is not free names its holder.
    Ok(tokio::select! {
        outcome = session.lock_reporting(spec, &waits) => outcome?,
        never = waiting::say_whom(observed, &table, json), if !args.quiet => match never {},
    })
}

/// The trace of which this process is a part, by the variables that carry it by convention.
fn trace_of_environment() -> Option<Box<TraceContext>> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    TraceContext::new(&variable("TRACEPARENT"), &variable("TRACESTATE")).map(Box::new)
}

/// The name of this process, for operators: `lock@HOST:PID`.
fn client_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut name = format!("lock@{host}:{}", std::process::id());
    name.truncate(name.floor_char_boundary(255));
    name
}

fn deadline_passed() -> Error {
    Error::new(ErrorKind::SessionLost, "the session was not renewed in time")
}

fn lost(why: &Error) -> Failure {
    let what = match why.kind() {
        ErrorKind::ShuttingDown => {
            "the server is shutting down, so the lock was given up and the command was ended"
        }
        ErrorKind::Killed => "an operator took the lock away and the command was ended",
        ErrorKind::ClaimRefused => {
            "the lock could not be kept over a restart of the server and the command was ended"
        }
        ErrorKind::TxnKilled => "the lock was taken away and the command was ended",
        _ => "the lock was lost and the command was ended",
    };
    let reason = match std::error::Error::source(why) {
        Some(cause) => format!("{}: {cause}", why.message()),
        None => why.message().to_owned(),
    };
    Failure::new(
        exit::LOST,
        why.kind().name(),
        format!("{what}: start it again to wait for the lock ({reason})"),
    )
}
