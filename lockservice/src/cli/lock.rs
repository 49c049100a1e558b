//! `lock`: runs a command while holding a lock.

use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::service::LockSpec;
use lockservice_core::table::WaitPolicy;
use lockservice_core::{Error, ErrorKind, LockMode};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::args::LockArgs;
use super::exit::{self, Failure};
use super::outer;
use super::patience::{self, Patience};
use super::signals::{self, Signals};
use super::sink;
use super::supervise::{Frame, Job, Supervised, kill_margin};
use super::waiting;
use crate::client::{Client, LockGuard, Session};

/// Longest default stop time.
const STOP_TIME_MAX: Duration = Duration::from_secs(1);

/// How long the release is waited for: the next holder comes in at once if it arrives, after the
/// session's TTL if it does not.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// How long to try to connect to a server.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// How long the session is given up for when nothing was locked.
const LAST_WORDS_MAX: Duration = Duration::from_millis(200);

/// How `lock` ends, if it does not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// With this exit status, the command's.
    Status(u8),
    /// By this signal, which this process was sent.
    Signal(Signal),
}

impl End {
    /// The exit status. If it is to be a signal that ends this process it does so here: only that
    /// tells a shell or make to stop too.
    pub(crate) fn finish(self) -> u8 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => {
                sink::flush();
                signals::die_of(signal);
                of_signal(signal as i32)
            }
        }
    }
}

/// The exit status that stands for a signal, as shells have it.
fn of_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// Takes the lock, runs the command, releases the lock. Answers how this process is to end.
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
    let outcome = tokio::select! {
        // Signals first: one that came before the lock did is not passed on to a command, it keeps
        // the command from being started.
        biased;
        // Dropping the call takes the request back.
        signal = signals.next_to_end() => Ok(End::Signal(signal)),
        held = take(args, &mut session, json) => match held {
            Ok((lock, session, stop_time)) => {
                let held = hold(args, &lock, stop_time, &mut signals, json).await;
                if held.still_running.is_empty() {
                    release(lock, &session).await;
                } else {
                    // P5: it lapses. The operator is told why, if the server can be.
                    let why = held.still_running.join(", ");
                    let _ = tokio::time::timeout(RELEASE_WAIT, session.leave(&why)).await;
                }
                return held.outcome;
            }
            Err(failure) => Err(failure),
        },
    };
    if let Some(session) = &session {
        // Nothing is held, and a server that did not answer until now is not waited for.
        let _ = tokio::time::timeout(LAST_WORDS_MAX, session.close()).await;
    }
    outcome
}

/// Connects, opens a session and takes the lock; again while the server is starting or away, as
/// long as the call may wait. What was opened and is not answered is left in `opened`.
async fn take(
    args: &LockArgs,
    opened: &mut Option<Session>,
    json: bool,
) -> Result<(LockGuard, Session, Duration), Failure> {
    // What is wrong with the keys is said before anything is connected.
    args.target()?;
    let clock = SystemClock;
    let mut patience = Patience::new(!args.no_wait, args.timeout, clock.now());
    loop {
        let failure = match try_to_take(args, &mut patience, opened, json).await {
            Ok((lock, stop_time)) => match opened.take() {
                Some(session) => return Ok((lock, session, stop_time)),
                // A lock hangs on the session that was opened for it.
                None => return Err(lost(&deadline_passed())),
            },
            Err(failure) => failure,
        };
        let Some(pause) = patience.after(&failure, clock.now()) else { return Err(failure) };
        tracing::debug!(why = %failure.sentence, "the server is starting, or away; trying again");
        // Its server is told in the background, if it can be.
        *opened = None;
        tokio::time::sleep(pause).await;
    }
}

/// One try. Answers the lock and the stop time.
async fn try_to_take(
    args: &LockArgs,
    patience: &mut Patience,
    opened: &mut Option<Session>,
    json: bool,
) -> Result<(LockGuard, Duration), Failure> {
    let left = patience.left(SystemClock.now());
    let opening = open(args, patience);
    let (client, session) = match left {
        None => opening.await?,
        Some(left) => tokio::time::timeout(left, opening)
            .await
            .unwrap_or_else(|_| Err(patience::no_answer()))?,
    };
    let session = opened.insert(session);
    let stop_time = stop_time(args, &client, session)?;
    let lock = acquire(args, patience, session, json).await?;
    Ok((lock, stop_time))
}

/// Connects and opens a session.
async fn open(args: &LockArgs, patience: &mut Patience) -> Result<(Client, Session), Failure> {
    let builder = Client::builder()
        .name(client_name())
        .connect_timeout(patience.call.min(CONNECT_MAX))
        .call_timeout(patience.call)
        .start_timeout(if args.no_wait { Duration::ZERO } else { patience.call });
    let client = builder.connect(&args.client.server).await?;
    patience.met = true;
    let session = client.session(args.ttl).await?;
    Ok((client, session))
}

/// Releases the lock for whoever waits: sent, acknowledged, and the session given up, so that the
/// server knows that work has stopped (P5).
async fn release(lock: LockGuard, session: &Session) {
    if lock.lost_now().is_none() {
        let _ = tokio::time::timeout(RELEASE_WAIT, lock.unlock()).await;
    }
    give_up(session).await;
}

/// Closes the session. If the server cannot be told, its TTL ends it: nothing that this process
/// could do better.
async fn give_up(session: &Session) {
    let _ = tokio::time::timeout(RELEASE_WAIT, session.close()).await;
}

/// How long the command is given to stop when the lock is lost.
fn stop_time(args: &LockArgs, client: &Client, session: &Session) -> Result<Duration, Failure> {
    let valid_for = session.deadline().remaining(client.clock().now());
    match args.stop_time {
        None => Ok((valid_for / 10).min(STOP_TIME_MAX)),
        Some(time) if time <= valid_for / 3 => Ok(time),
        Some(time) => Err(Failure::usage(format!(
            "the stop time {time:?} is more than a third of the {valid_for:?} for which the lock is \
             safe without a renewal: \
             use a shorter --stop-time, or a longer --ttl here and lease at the server"
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
        mode: if args.shared { LockMode::Shared } else { LockMode::Exclusive },
        wait: if args.no_wait { WaitPolicy::NoWait } else { WaitPolicy::Wait },
        timeout: patience.left(SystemClock.now()),
        ancestors: outer::ancestors(std::env::var_os(outer::VARIABLE), &args.client.server),
        ..LockSpec::new(table, items)
    };
    let (table, (waits, observed)) = (spec.table.clone(), watch::channel(None));
    // Of a lock that is not to be had the error says who holds it.
    Ok(tokio::select! {
        outcome = session.lock_telling(spec, &waits) => outcome?,
        never = waiting::say_whom(observed, &table, json), if !args.quiet => match never {},
    })
}

/// Who this is, for operators: `lock@HOST:PID`.
fn client_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut name = format!("lock@{host}:{}", std::process::id());
    name.truncate(name.floor_char_boundary(255));
    name
}

/// How a command under a lock ended.
struct Held {
    outcome: Result<End, Failure>,
    /// What of the command may still run, as people look for it: unless there is nothing the lock
    /// may not be released (P5).
    still_running: Vec<String>,
}

/// Runs the command until it ends, or until the lock is lost.
async fn hold(
    args: &LockArgs,
    lock: &LockGuard,
    stop_time: Duration,
    signals: &mut Signals,
    json: bool,
) -> Held {
    let env = [
        ("LOCKSERVICE_TOKEN", lock.token().to_string().into()),
        ("LOCKSERVICE_GROUP", args.group.to_string().into()),
        ("LOCKSERVICE_TABLE", args.table.to_string().into()),
        ("LOCKSERVICE_KEYS", args.keys_for_command()),
        (
            "LOCKSERVICE_HELD",
            outer::with(std::env::var_os(outer::VARIABLE), lock.txn().id(), &args.client.server),
        ),
        // Also if it was a flag: a nested `lockservice` means the same server.
        ("LOCKSERVICE_SERVER", args.client.server.clone().into()),
    ];
    // Of the node where the lock is.
    let mut deadlines = lock.watch_deadline();
    let mut deadline = *deadlines.borrow_and_update();
    let job = Job {
        command: &args.command,
        env: &env,
        blocked: signals.blocked_before(),
        deadline,
        stop_time,
        json,
    };
    let mut supervised = match Supervised::start(&job) {
        Ok(supervised) => supervised,
        Err(error) => {
            let sentence = format!("cannot start the supervisor: {error}; the lock was released");
            let outcome = Err(Failure::new(exit::OS, "os", sentence));
            return Held { outcome, still_running: Vec::new() };
        }
    };
    let clock = SystemClock;
    let mut why_lost: Option<Error> = None;
    let mut left = false;
    let mut last = None;
    let mut broken = "it was killed".to_owned();
    let mut received = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = supervised.next() => match frame {
                Ok(frame) => frame,
                Err(error) => {
                    broken = error.to_string();
                    break;
                }
            },
            Ok(()) = deadlines.changed(), if why_lost.is_none() => {
                deadline = *deadlines.borrow_and_update();
                supervised.tell(Frame::Deadline(deadline));
                continue;
            }
            why = lock.lost(), if why_lost.is_none() => {
                why_lost = Some(why);
                supervised.tell(Frame::Stop);
                continue;
            }
            taken = signals.next() => {
                if !received.contains(&taken.signal) {
                    received.push(taken.signal);
                }
                if !taken.to_group {
                    supervised.tell(Frame::Signal(taken.signal as i32));
                }
                continue;
            }
            () = passed(&clock, deadline, kill_margin(stop_time) / 2) => {
                // The supervisor should have ended the command: it is stopped, or slow (P2).
                why_lost.get_or_insert_with(deadline_passed);
                break;
            }
        };
        match frame {
            Some(end @ (Frame::Exited(_) | Frame::Died(_) | Frame::Stopped | Frame::Failed(_))) => {
                last = Some(end);
                break;
            }
            Some(Frame::Left) => left = true,
            Some(Frame::Suspended(by)) => suspend(by),
            Some(_) => {}
            None => break,
        }
    }
    if last.is_some() {
        supervised.reap();
    }
    let still_running = if last.is_some() && !left {
        // It has seen the end of everything.
        Vec::new()
    } else {
        // Killed, perhaps: the kernel killed the command with it, and this whatever that started.
        let until = *deadlines.borrow_and_update();
        supervised.end_all(&clock, until).await
    };
    let outcome = match last {
        Some(Frame::Exited(status)) => Ok(End::Status(status)),
        Some(Frame::Died(number)) => Ok(died(number, &received)),
        Some(Frame::Stopped) => {
            Err(lost(&lock.lost_now().or(why_lost).unwrap_or_else(deadline_passed)))
        }
        Some(Frame::Failed(errno)) => {
            Err(supervisor_failed(&std::io::Error::from_raw_os_error(errno).to_string()))
        }
        _ => match why_lost {
            Some(why) => Err(lost(&why)),
            None => Err(supervisor_failed(&broken)),
        },
    };
    let outcome =
        if still_running.is_empty() { outcome } else { Err(not_over(outcome, &still_running)) };
    Held { outcome, still_running }
}

/// How to end after the command died of a signal: of the same if it came through this process.
fn died(number: i32, received: &[Signal]) -> End {
    match Signal::try_from(number) {
        Ok(signal) if received.contains(&signal) => End::Signal(signal),
        _ => End::Status(of_signal(number)),
    }
}

/// Says that something of the command could not be ended, whatever else has happened.
fn not_over(outcome: Result<End, Failure>, still_running: &[String]) -> Failure {
    let left = format!(
        "what it started could not all be ended, so the lock was not released and goes to others \
         when the session has run out: \
         end it (process {})",
        still_running.join(", ")
    );
    match outcome {
        Ok(end) => {
            let how = match end {
                End::Status(status) => format!("with status {status}"),
                End::Signal(signal) => format!("by {signal}"),
            };
            Failure::new(
                exit::OS,
                "command_left_running",
                format!("the command ended {how}, but {left}"),
            )
        }
        Err(failure) => {
            let why = match failure.status {
                exit::LOST => "the lock was lost",
                _ => "the command's supervisor failed",
            };
            Failure::new(
                failure.status,
                "command_left_running",
                format!("{why} and the command was killed, but {left}"),
            )
        }
    }
}

/// Stops this process as its command was stopped, so that the shell sees it and can continue both.
fn suspend(by: i32) {
    if let Ok(signal) = Signal::try_from(by) {
        // Fails for no signal that stops.
        let _ = nix::sys::signal::raise(signal);
    }
}

fn deadline_passed() -> Error {
    Error::new(ErrorKind::SessionLost, "the session was not renewed in time")
}

fn lost(why: &Error) -> Failure {
    let what = match why.kind() {
        ErrorKind::ShuttingDown => {
            "the server is shutting down, so the lock was given up and the command was ended"
        }
        _ => "the lock was lost and the command was ended",
    };
    Failure::new(
        exit::LOST,
        why.kind().name(),
        format!("{what}: start it again to wait for the lock ({})", why.message()),
    )
}

fn supervisor_failed(why: &str) -> Failure {
    Failure::new(
        exit::OS,
        "os",
        format!(
            "the command's supervisor failed ({why}): the command was ended and the lock \
                released; start it again"
        ),
    )
}

/// Resolves when `end` is less than `margin` away. The timer only wakes; the clock, which counts
/// through suspend, decides.
async fn passed(clock: &SystemClock, end: Time, margin: Duration) {
    loop {
        let left = end.remaining(clock.now());
        if left <= margin {
            return;
        }
        tokio::time::sleep((left - margin).min(Duration::from_secs(3_600))).await;
    }
}
