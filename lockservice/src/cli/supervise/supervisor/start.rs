//! The start of the supervisor, and of the command.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock, Time};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{
    Pid, Signal, getpgrp, getpid, getppid, set_child_subreaper, set_parent_process_death_signal,
    setsid,
};
use rustix::time::{TimerfdClockId, TimerfdFlags};

use super::Supervisor;
use crate::cli::args::{SuperviseArgs, command_line};
use crate::cli::signals::{Ignored, every};
use crate::cli::supervise::deadline::WorkDeadline;
use crate::cli::supervise::frame::Frame;
use crate::cli::supervise::stdin;
use crate::cli::supervise::tree::Tree;

/// Starts the command; `None` if there is no time left, or no wrapper.
// Long: the steps of a start in their order, which matters.
pub(super) fn start(args: &SuperviseArgs) -> io::Result<Option<Supervisor>> {
    // The wrapper takes the signals of the terminal and of the job, and sends those to pass on.
    every().thread_block()?;
    // If the wrapper dies while this process is stopped, this process goes on, sees the closed
    // socket and ends the command.
    set_parent_process_death_signal(Some(Signal::CONT))?;
    let wrapper = getppid();
    if wrapper != Pid::from_raw(args.parent) {
        return Ok(None);
    }
    // Processes that the command leaves behind become children of this one.
    set_child_subreaper(Some(getpid()))?;
    let tree = Tree::from_now();

    let mut control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let Some(stdin) = stdin::receive(&control)? else { return Ok(None) };
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;

    let mut mask = SigSet::empty();
    mask.add(NixSignal::SIGCHLD);
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // A timeout of `poll` would stand still while the machine is suspended. The promise does not.
    let timer = rustix::time::timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;

    let stop_time = Duration::from_millis(args.stop_ms);
    let deadline =
        WorkDeadline::new(Time::from_origin(Duration::from_nanos(args.deadline_ns)), stop_time);
    let clock = SystemClock;
    if deadline.over(clock.now()) {
        control.write_all(&Frame::Stopped.encode())?;
        return Ok(None);
    }
    let (go, waits_for_it) = UnixStream::pair()?;
    let spawned = Command::new("/proc/self/exe")
        .arg0("lockservice")
        .args(command_line::exec(getpid(), &args.blocked, args.json))
        .args(&args.command)
        .stdin(Stdio::from(OwnedFd::from(waits_for_it)))
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            control.write_all(&Frame::Failed(error.raw_os_error().unwrap_or_default()).encode())?;
            return Ok(None);
        }
    };
    let group = getpgrp().as_raw_nonzero().get();
    // This comes after the start, so that the command stays in the wrapper's session, with its
    // terminal. It comes before the command may run, for from here on a signal to the wrapper's
    // group does not reach this process.
    setsid()?;
    see_children()?;
    let supervisor = Supervisor {
        control,
        attended: true,
        children,
        timer,
        clock,
        deadline,
        stop_time,
        tree,
        wrapper,
        command: Pid::from_child(&child),
        group,
        stop_requested: false,
        json: args.json,
        suspended: None,
        ended: None,
        killing_until: None,
    };
    stdin::hand_over(&go, stdin.as_fd())?;
    Ok(Some(supervisor))
}

/// Makes the end of a child visible if the caller ignores that. The command has already inherited
/// the caller's choice, and should.
fn see_children() -> io::Result<()> {
    if Ignored::now().contains(NixSignal::SIGCHLD) {
        // A handler replaces the caller's choice. It never runs, because the signal stays blocked.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let _entered = runtime.enter();
        drop(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?);
    }
    Ok(())
}
