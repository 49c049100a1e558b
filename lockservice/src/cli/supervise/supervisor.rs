//! `lockservice __supervise`: the process that counts the guard beside the wrapper and ends the command's group.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock, Time};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process_group, set_child_subreaper,
    set_parent_process_death_signal, wait,
};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::exec::unblocked;
use super::frame::{FRAME_BYTES, Frame};
use super::group;
use super::guard::{Action, Guard};
use crate::cli::args::{SuperviseArgs, command_line};
use crate::cli::exit;

/// How often the rest of the group is looked at after the command itself has ended; also how long a killed rest is waited for here. The
/// wrapper waits on.
const DRAIN_TICK: Duration = Duration::from_millis(20);

/// Runs the command and answers when its whole group has ended, or was ended.
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
    children: SignalFd,
    timer: OwnedFd,
    clock: SystemClock,
    guard: Guard,
    stop_time: Duration,
    group: Pid,
    asked_to_stop: bool,
    json: bool,
    /// Once the command itself has ended: its status, and when what is left of its group is killed.
    ended: Option<Ended>,
}

#[derive(Clone, Copy)]
struct Ended {
    status: u8,
    /// The command was told to end because the lock was lost, before it ended.
    stopped: bool,
    kill_rest_at: Time,
    rest_killed: bool,
}

/// Starts the command; `None` if there is no time left, or no wrapper.
fn start(args: &SuperviseArgs) -> io::Result<Option<Supervisor>> {
    // Signals of the terminal and of the job are the wrapper's business; it says what to pass on.
    unblocked().thread_block()?;
    // If the wrapper dies while this process is stopped, this process goes on, sees the closed socket and ends the command's group.
    set_parent_process_death_signal(Some(Signal::CONT))?;
    if getppid() != Pid::from_raw(args.parent) {
        return Ok(None);
    }
    // Orphans of the command's group become this process's children, so that their end is seen.
    set_child_subreaper(Some(getpid()))?;

    let mut control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let stdin = receive_stdin(&control)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;

    let mut mask = SigSet::empty();
    mask.add(NixSignal::SIGCHLD);
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // Not `poll`'s own timeout: that one stands still while the machine is suspended, the promise does not.
    let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;

    let stop_time = Duration::from_millis(args.stop_ms);
    let guard = Guard::new(Time::from_origin(Duration::from_nanos(args.guard_ns)), stop_time);
    let clock = SystemClock;
    if guard.over(clock.now()) {
        control.write_all(&Frame::Stopped.encode())?;
        return Ok(None);
    }
    let spawned = Command::new("/proc/self/exe")
        .arg0("lockservice")
        .args(command_line::exec(getpid(), args.terminal, args.json))
        .args(&args.command)
        .stdin(Stdio::from(stdin))
        .process_group(0)
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            control.write_all(&Frame::Failed(error.raw_os_error().unwrap_or_default()).encode())?;
            return Ok(None);
        }
    };
    let group = Pid::from_child(&child);
    control.write_all(&Frame::Started(group.as_raw_nonzero().get()).encode())?;
    Ok(Some(Supervisor {
        control,
        children,
        timer,
        clock,
        guard,
        stop_time,
        group,
        asked_to_stop: false,
        json: args.json,
        ended: None,
    }))
}

/// The wrapper's own stdin, which becomes the command's. It comes as a file descriptor over the socket: three are not enough to hand
/// down stdin, stdout, stderr and the socket.
fn receive_stdin(control: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut files) = message
            && let Some(file) = files.next()
        {
            return Ok(file);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the wrapper did not hand over its standard input"))
}

impl Supervisor {
    fn run(mut self) -> io::Result<()> {
        let result = self.watch();
        if result.is_err() {
            // Nothing that cannot be watched may run on.
            self.signal(Signal::KILL);
        }
        result
    }

    fn watch(&mut self) -> io::Result<()> {
        loop {
            let now = self.clock.now();
            // Before the guard is looked at: a command that ended in time was not ended by us.
            self.reap(now)?;
            match self.guard.due(now, self.asked_to_stop) {
                Some(Action::Terminate) => {
                    self.signal(Signal::TERM);
                    // A stopped process acts on nothing but this.
                    self.signal(Signal::CONT);
                }
                Some(Action::Kill) => self.signal(Signal::KILL),
                None => {}
            }
            if let Some(ended) = &mut self.ended {
                let gone = if ended.rest_killed { group::is_gone(self.group) } else { group::is_empty(self.group) };
                let given_up = ended.rest_killed && now >= ended.kill_rest_at + DRAIN_TICK;
                if gone || given_up {
                    let ended = *ended;
                    if !gone {
                        self.tell(Frame::Left)?;
                    }
                    let frame = if ended.stopped { Frame::Stopped } else { Frame::Ended(ended.status) };
                    return self.tell(frame);
                }
                if now >= ended.kill_rest_at && !ended.rest_killed {
                    ended.rest_killed = true;
                    self.signal(Signal::KILL);
                }
            }
            self.set_timer(now)?;
            if !self.wait_for_event()? {
                // The wrapper is gone, perhaps killed: nobody renews the session, nobody reads the status.
                self.signal(Signal::KILL);
                return Ok(());
            }
        }
    }

    /// Waits for a child, the wrapper or the timer. False if the wrapper is gone.
    fn wait_for_event(&mut self) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(&self.control, PollFlags::IN),
            PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let from_wrapper = !fds[0].revents().is_empty();
        if !fds[1].revents().is_empty() {
            while self.children.read_signal()?.is_some() {}
        }
        if !fds[2].revents().is_empty() {
            // How often it fired does not matter: the clock is read again.
            let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        }
        if from_wrapper {
            let mut bytes = [0; FRAME_BYTES];
            if self.control.read_exact(&mut bytes).is_err() {
                return Ok(false);
            }
            match Frame::decode(bytes) {
                Some(Frame::Guard(end)) => self.guard.renew(end),
                Some(Frame::Stop) => self.asked_to_stop = true,
                Some(Frame::Signal(number)) => {
                    if let Some(signal) = Signal::from_named_raw(number) {
                        self.signal(signal);
                    }
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn reap(&mut self, now: Time) -> io::Result<()> {
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) if pid == self.group => {
                    if status.stopped() {
                        self.stopped(status.stopping_signal());
                        continue;
                    }
                    let code = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code,
                        (None, Some(signal)) => 128 + signal,
                        (None, None) => continue,
                    };
                    self.ended = Some(Ended {
                        status: u8::try_from(code).unwrap_or(u8::MAX),
                        stopped: self.guard.stopping(),
                        kill_rest_at: now + self.stop_time,
                        rest_killed: false,
                    });
                }
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ctrl-Z: a suspended command would keep everybody else waiting, and nobody could see why.
    fn stopped(&self, by: Option<i32>) {
        if by == Some(NixSignal::SIGTSTP as i32) {
            exit::say_note(self.json, "the command cannot be suspended while it holds a lock: it goes on");
            self.signal(Signal::CONT);
        }
    }

    /// Signals the group. That it may be gone already is no error.
    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.group, signal);
    }

    fn tell(&mut self, frame: Frame) -> io::Result<()> {
        match self.control.write_all(&frame.encode()) {
            // The wrapper has gone: nobody wants to know.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn set_timer(&self, now: Time) -> io::Result<()> {
        let drain = self
            .ended
            .map(|ended| if ended.rest_killed { now + DRAIN_TICK } else { ended.kill_rest_at.min(now + DRAIN_TICK) });
        let at = [self.guard.wake_at(), drain].into_iter().flatten().min();
        // All zero disarms it; a time in the past fires at once.
        let at = at.map_or(Duration::ZERO, |at| at.since_origin().max(Duration::from_nanos(1)));
        let value = Timespec { tv_sec: at.as_secs().cast_signed(), tv_nsec: at.subsec_nanos().into() };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::time::timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval: zero, it_value: value },
        )?;
        Ok(())
    }
}
