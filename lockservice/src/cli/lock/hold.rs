//! The command runs while the lock is held.

use std::ffi::OsString;
use std::pin::pin;
use std::time::Duration;

use lockservice_core::Error;
use lockservice_core::clock::{Clock, SystemClock, Time};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::connection::{ConnectionNews, Meanwhile};
use super::end::{End, of_signal};
use super::{deadline_passed, lost};
use crate::cli::args::LockArgs;
use crate::cli::exit::{self, Failure};
use crate::cli::outer;
use crate::cli::signals::Signals;
use crate::cli::supervise::{Frame, Job, Supervised, kill_margin};
use crate::client::LockGuard;

/// The end of a command under a lock.
pub(super) struct Held {
    pub(super) outcome: Result<End, Failure>,
    /// The processes of the command that may still run, by number. If there are any, the lock
    /// may not be released (P5).
    pub(super) still_running: Vec<String>,
}

/// Runs the command until it ends, or until the lock is lost. `news` tells of the
/// connection meanwhile.
pub(super) async fn hold(
    args: &LockArgs,
    lock: &LockGuard,
    stop_time: Duration,
    signals: &mut Signals,
    (news, json): (&ConnectionNews, bool),
) -> Held {
    let env = environment(args, lock);
    // The deadlines of the node where the lock is.
    let mut deadlines = lock.watch_deadline();
    let deadline = *deadlines.borrow_and_update();
    let job = Job {
        command: &args.command,
        env: &env,
        blocked: signals.blocked_before(),
        deadline,
        stop_time,
        json,
    };
    let supervised = match Supervised::start(&job) {
        Ok(supervised) => supervised,
        Err(error) => {
            let sentence = format!("cannot start the supervisor: {error}; the lock was released");
            let outcome = Err(Failure::new(exit::OS, "os", sentence));
            return Held { outcome, still_running: Vec::new() };
        }
    };
    let mut run = Run {
        lock,
        supervised,
        deadlines,
        deadline,
        stop_time,
        why_lost: None,
        left: false,
        last: None,
        broken: "it was killed".to_owned(),
        received: Vec::new(),
    };
    run.until_over(signals, news).await;
    run.end().await
}

/// The variables that the command finds in its environment.
fn environment(args: &LockArgs, lock: &LockGuard) -> Vec<(&'static str, OsString)> {
    let held = std::env::var_os(outer::VARIABLE);
    let mut variables = vec![
        ("LOCKSERVICE_TOKEN", lock.token().to_string().into()),
        ("LOCKSERVICE_GROUP", args.group.to_string().into()),
        ("LOCKSERVICE_TABLE", args.table.to_string().into()),
        ("LOCKSERVICE_KEYS", args.keys_for_command()),
        ("LOCKSERVICE_HELD", outer::with(held, lock.txn().id(), &args.client.server)),
        // The variable is set even if a flag named the server: a nested `lockservice` means the
        // same server, and reaches it in the same way.
        ("LOCKSERVICE_SERVER", args.client.server.clone().into()),
    ];
    variables.extend(args.client.credentials.variables());
    variables
}

/// A command that runs under a lock.
struct Run<'a> {
    lock: &'a LockGuard,
    supervised: Supervised,
    deadlines: watch::Receiver<Time>,
    deadline: Time,
    stop_time: Duration,
    why_lost: Option<Error>,
    /// The supervisor could not end everything.
    left: bool,
    /// The last frame of the supervisor.
    last: Option<Frame>,
    /// The reason why the supervisor sent no last frame.
    broken: String,
    /// The signals that this process received.
    received: Vec<Signal>,
}

impl Run<'_> {
    /// Passes deadlines and signals on to the supervisor, until it has sent its last frame or must
    /// be considered stopped.
    async fn until_over(&mut self, signals: &mut Signals, news: &ConnectionNews) {
        let (clock, lock) = (SystemClock, self.lock);
        let mut news = pin!(news.say(lock.watch_connected(), Meanwhile::Holds(lock)));
        loop {
            let frame = tokio::select! {
                frame = self.supervised.next() => match frame {
                    Ok(frame) => frame,
                    Err(error) => {
                        self.broken = error.to_string();
                        return;
                    }
                },
                Ok(()) = self.deadlines.changed(), if self.why_lost.is_none() => {
                    self.deadline = *self.deadlines.borrow_and_update();
                    self.supervised.send(Frame::Deadline(self.deadline));
                    continue;
                }
                why = lock.lost(), if self.why_lost.is_none() => {
                    self.why_lost = Some(why);
                    self.supervised.send(Frame::Stop);
                    continue;
                }
                taken = signals.next() => {
                    if !self.received.contains(&taken.signal) {
                        self.received.push(taken.signal);
                    }
                    if !taken.to_group {
                        self.supervised.send(Frame::Signal(taken.signal as i32));
                    }
                    continue;
                }
                () = passed(&clock, self.deadline, kill_margin(self.stop_time) / 2) => {
                    // The supervisor should have ended the command: it is stopped, or slow (P2).
                    self.why_lost.get_or_insert_with(deadline_passed);
                    return;
                }
                never = &mut news => match never {},
            };
            match frame {
                Some(
                    end @ (Frame::Exited(_) | Frame::Died(_) | Frame::Stopped | Frame::Failed(_)),
                ) => {
                    self.last = Some(end);
                    return;
                }
                Some(Frame::Left) => self.left = true,
                Some(Frame::Suspended(by)) => suspend(by),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Ends all processes that still run.
    async fn end(mut self) -> Held {
        if self.last.is_some() {
            self.supervised.reap();
        }
        let still_running = if self.last.is_some() && !self.left {
            // The supervisor has seen the end of everything.
            Vec::new()
        } else {
            // The supervisor was perhaps killed. Then the kernel killed the command with it, and
            // this ends the rest.
            let until = self.lock.deadline();
            self.supervised.end_all(&SystemClock, until).await
        };
        let outcome = self.outcome();
        let outcome =
            if still_running.is_empty() { outcome } else { Err(not_over(outcome, &still_running)) };
        Held { outcome, still_running }
    }

    fn outcome(self) -> Result<End, Failure> {
        match self.last {
            Some(Frame::Exited(status)) => Ok(End::Status(status)),
            Some(Frame::Died(number)) => Ok(died(number, &self.received)),
            Some(Frame::Stopped) => {
                let why = self.lock.lost_now().or(self.why_lost);
                Err(lost(&why.unwrap_or_else(deadline_passed)))
            }
            Some(Frame::Failed(errno)) => {
                Err(supervisor_failed(&std::io::Error::from_raw_os_error(errno).to_string()))
            }
            _ => match self.why_lost {
                Some(why) => Err(lost(&why)),
                None => Err(supervisor_failed(&self.broken)),
            },
        }
    }
}

/// The end after the command died of a signal: the same signal, if it came through this process.
fn died(number: i32, received: &[Signal]) -> End {
    match Signal::try_from(number) {
        Ok(signal) if received.contains(&signal) => End::Signal(signal),
        _ => End::Status(of_signal(number)),
    }
}

/// Reports processes of the command that could not be ended, in addition to `outcome`.
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
        // This does not fail for a signal that stops.
        let _ = nix::sys::signal::raise(signal);
    }
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
