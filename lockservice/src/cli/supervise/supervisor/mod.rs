//! `lockservice __supervise`: the process that counts the deadline beside the wrapper, and ends the
//! command.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the loop: frames, signals, the deadline, the end of the work |
//! | `start.rs` | the start of the supervisor, and of the command below it |

mod start;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock, Time};
use nix::sys::signal::Signal as NixSignal;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitStatus};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec};

use self::start::start;
use super::deadline::{Action, WorkDeadline};
use super::frame::{FRAME_BYTES, Frame};
use super::kill_margin;
use super::tree::{Process, Tree};
use crate::cli::args::SuperviseArgs;
use crate::cli::exit;

/// The interval at which the rest is killed again until it has gone. A process may have started
/// another one meanwhile, which was not killed yet.
const KILL_TICK: Duration = Duration::from_millis(10);

/// The time after which a stopped command is checked. By then a signal that stops the wrapper too
/// has arrived there.
const SUSPENDED_TICK: Duration = Duration::from_millis(50);

/// Runs the command and returns when it and everything it started has ended, or was ended.
pub(crate) fn run(args: &SuperviseArgs) -> ExitCode {
    match start(args).and_then(|supervisor| supervisor.map_or(Ok(()), Supervisor::run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exit::say_error(
                args.json,
                "os",
                &format!("cannot supervise the command: {error}; it was not run or was ended"),
            );
            ExitCode::from(exit::OS)
        }
    }
}

struct Supervisor {
    control: UnixStream,
    /// False once the wrapper has gone.
    attended: bool,
    children: SignalFd,
    timer: OwnedFd,
    clock: SystemClock,
    deadline: WorkDeadline,
    stop_time: Duration,
    tree: Tree,
    wrapper: Option<Pid>,
    command: Pid,
    /// The command's process group, as last seen.
    group: i32,
    stop_requested: bool,
    json: bool,
    /// The time at which a stopped command is checked, and the signal that stopped it.
    suspended: Option<(Time, i32)>,
    /// Set once the command itself has ended.
    ended: Option<Ended>,
    /// Set once everything is being killed: the time at which that is given up.
    killing_until: Option<Time>,
}

/// The end of the command itself, and the state of the rest.
#[derive(Clone, Copy)]
struct Ended {
    how: Frame,
    /// True if the command was signalled to end, because the lock was lost, before it ended.
    stopped: bool,
    /// The time at which the rest is signalled to end.
    terminate_at: Option<Time>,
    kill_at: Time,
}

impl Supervisor {
    fn run(mut self) -> io::Result<()> {
        let result = self.watch();
        if result.is_err() {
            // Nothing may run on that cannot be watched. The wrapper makes sure that it has gone.
            self.tree.kill();
        }
        result
    }

    fn watch(&mut self) -> io::Result<()> {
        loop {
            let now = self.clock.now();
            // This comes before the check of the deadline: a command that ended in time was not
            // ended by the supervisor.
            if self.reap(now) {
                let Some(ended) = self.ended else {
                    return Err(io::Error::other("the command's status was lost"));
                };
                return self.send(if ended.stopped { Frame::Stopped } else { ended.how });
            }
            match self.deadline.due(now, self.stop_requested) {
                Some(Action::Terminate) => self.terminate(),
                Some(Action::Kill) => self.kill_until(self.deadline.end()),
                None => {}
            }
            self.end_rest(now);
            self.check_suspended(now);
            if let Some(until) = self.killing_until {
                self.tree.kill();
                if now >= until && !self.reap(now) {
                    self.send(Frame::Left)?;
                    return match self.ended {
                        Some(Ended { how, stopped: false, .. }) => self.send(how),
                        _ => self.send(Frame::Stopped),
                    };
                }
            }
            self.set_timer(now)?;
            self.wait_for_event()?;
        }
    }

    /// Signals everything to end. A stopped process acts on that only once it is continued.
    fn terminate(&self) {
        self.tree.signal(Signal::TERM, |_| true);
        self.tree.signal(Signal::CONT, |_| true);
    }

    fn kill_until(&mut self, time: Time) {
        self.killing_until.get_or_insert(time);
    }

    /// Ends the processes that the command left behind, if they do not end by themselves.
    fn end_rest(&mut self, now: Time) {
        let Some(ended) = &mut self.ended else { return };
        let kill = now >= ended.kill_at;
        let terminate = ended.terminate_at.take_if(|at| now >= *at).is_some();
        if kill {
            self.kill_until(now + kill_margin(self.stop_time) + KILL_TICK);
        } else if terminate {
            self.terminate();
        }
    }

    /// Makes a stop of the command visible, so that it does not wait for ever to be continued.
    fn check_suspended(&mut self, now: Time) {
        let Some((_, by)) = self.suspended.take_if(|(at, _)| now >= *at) else { return };
        if self.killing_until.is_some() {
            // It was stopped to be killed.
            return;
        }
        let (Some(command), Some(wrapper)) =
            (Process::of(self.command), self.wrapper.and_then(Process::of))
        else {
            return;
        };
        if !command.is_stopped() {
            return;
        }
        if wrapper.is_stopped() {
            let left = self.deadline.terminate_at().remaining(now).as_secs();
            exit::say_note(
                self.json,
                &format!(
                    "the command is stopped: it loses the lock, and is ended, unless it goes on \
                        within {left} s"
                ),
            );
            return;
        }
        // Only it was stopped. Its shell sees the wrapper, and nothing of the command. One that was
        // stopped by hand (SIGSTOP) is left alone, unless a terminal waits for it.
        let by_hand = by == NixSignal::SIGSTOP as i32;
        if !by_hand || [wrapper.group, command.group].contains(&wrapper.foreground) {
            // The end of the wrapper is noticed elsewhere.
            let _ = self.send(Frame::Suspended(by));
        }
    }

    /// Waits for a child, the wrapper or the timer.
    fn wait_for_event(&mut self) -> io::Result<()> {
        let wrapper = if self.attended { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&self.control, wrapper),
        ];
        // A closed socket is reported even without interest in any event.
        let count = if self.attended { 3 } else { 2 };
        match poll(&mut fds[..count], None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let [children, timer, wrapper] = fds.map(|fd| !fd.revents().is_empty());
        if children {
            while self.children.read_signal()?.is_some() {}
        }
        if timer {
            // The number of times that it fired does not matter: the clock is read again.
            let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        }
        if wrapper {
            self.read_frame();
        }
        Ok(())
    }

    /// Reads a frame of the wrapper.
    fn read_frame(&mut self) {
        let mut bytes = [0; FRAME_BYTES];
        if self.control.read_exact(&mut bytes).is_err() {
            // The wrapper has gone and was perhaps killed: the session is not renewed, and the
            // status is not read.
            self.attended = false;
            let now = self.clock.now();
            self.kill_until(self.deadline.end().max(now + self.stop_time));
            return;
        }
        match Frame::decode(bytes) {
            Some(Frame::Deadline(end)) => self.deadline.renew(end),
            Some(Frame::Stop) => self.stop_requested = true,
            Some(Frame::Signal(number)) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    self.pass_on(signal);
                }
            }
            _ => {}
        }
    }

    /// Passes a signal on to the command and to the others of its process group.
    fn pass_on(&mut self, signal: Signal) {
        if let Some(command) = Process::of(self.command).filter(|_| self.ended.is_none()) {
            self.group = command.group;
        }
        let group = self.group;
        let refused = self.tree.signal(signal, |process| process.group == group);
        if let Some(process) = refused.first() {
            let name = NixSignal::try_from(signal.as_raw()).map_or("the signal", NixSignal::as_str);
            exit::say_warning(
                self.json,
                "signal_not_passed_on",
                &format!(
                    "{name} cannot be passed on to process {process}: it runs as another user"
                ),
            );
        }
    }

    /// Reaps the processes that have ended. True if none is left.
    fn reap(&mut self, now: Time) -> bool {
        let mut changes = Vec::new();
        let gone = self.tree.reap(|pid, status| changes.push((pid, status)));
        for (pid, status) in changes {
            if pid == self.command {
                self.command_changed(status, now);
            }
        }
        gone
    }

    fn command_changed(&mut self, status: WaitStatus, now: Time) {
        if status.stopped() {
            self.suspended = status.stopping_signal().map(|by| (now + SUSPENDED_TICK, by));
            return;
        }
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Frame::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
            (None, Some(signal)) => Frame::Died(signal),
            (None, None) => return,
        };
        self.suspended = None;
        self.ended = Some(Ended {
            how,
            stopped: self.deadline.stopping(),
            terminate_at: Some(now + self.stop_time / 2),
            kill_at: now + self.stop_time,
        });
    }

    fn send(&mut self, frame: Frame) -> io::Result<()> {
        match self.control.write_all(&frame.encode()) {
            // The wrapper has gone: the frame is not needed.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn set_timer(&self, now: Time) -> io::Result<()> {
        let rest = self.ended.map(|ended| ended.terminate_at.unwrap_or(ended.kill_at));
        let suspended = self.suspended.map(|(at, _)| at);
        let at = match self.killing_until {
            Some(_) => Some(now + KILL_TICK),
            None => [self.deadline.wake_at(), rest, suspended].into_iter().flatten().min(),
        };
        // All zero disarms it; a time in the past fires at once.
        let at = at.map_or(Duration::ZERO, |at| at.since_origin().max(Duration::from_nanos(1)));
        let value =
            Timespec { tv_sec: at.as_secs().cast_signed(), tv_nsec: at.subsec_nanos().into() };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::time::timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval: zero, it_value: value },
        )?;
        Ok(())
    }
}
