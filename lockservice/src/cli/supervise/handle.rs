//! The wrapper's end: starts the supervisor, tells it the guard, hears how the command ended.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockservice_core::clock::{Clock, Time};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{
    Pid, Signal, WaitOptions, getpgrp, getpid, kill_process, kill_process_group, set_child_subreaper, waitpgid,
};
use tokio::net::UnixStream;

use super::frame::{FRAME_BYTES, Frame};
use super::group;
use crate::cli::args::command_line;

/// How often a killed group is looked at.
const TICK: Duration = Duration::from_millis(5);

/// What to run, and how.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The command and its arguments.
    pub(crate) command: &'a [OsString],
    /// Added to its environment.
    pub(crate) env: &'a [(&'static str, String)],
    /// When the guard ends.
    pub(crate) guard_end: Time,
    /// How long the command has between SIGTERM and the guard's end.
    pub(crate) stop_time: Duration,
    /// Whether the command gets the terminal.
    pub(crate) terminal: bool,
    /// Whether errors are printed as JSON.
    pub(crate) json: bool,
}

/// A supervisor and, below it, a command.
#[derive(Debug)]
pub(crate) struct Supervised {
    control: UnixStream,
    child: Child,
    group: Option<Pid>,
    partial: [u8; FRAME_BYTES],
    filled: usize,
}

impl Supervised {
    /// Starts the supervisor, which starts the command.
    ///
    /// To be called on the main thread of the process: the parent-death signal of a child is sent when the *thread* ends that started it.
    pub(crate) fn start(job: &Job<'_>) -> io::Result<Self> {
        // What the supervisor watches is inherited from it, to be reaped here, should it be killed.
        set_child_subreaper(Some(getpid()))?;
        let (ours, theirs) = StdStream::pair()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let stdin = [rustix::stdio::stdin()];
        ancillary.push(SendAncillaryMessage::ScmRights(&stdin));
        sendmsg(&ours, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;

        // `/proc/self/exe` is this very program, even if its file was replaced meanwhile.
        let child = Command::new("/proc/self/exe")
            .arg0("lockservice")
            .args(command_line::supervise(getpid(), job))
            .args(job.command)
            .envs(job.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        ours.set_nonblocking(true)?;
        Ok(Self { control: UnixStream::from_std(ours)?, child, group: None, partial: [0; FRAME_BYTES], filled: 0 })
    }

    /// The next thing the supervisor says; `None` when it has ended.
    ///
    /// # Cancel safety
    /// Cancel safe: a frame that was read in part is kept.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            self.control.readable().await?;
            match self.control.try_read(&mut self.partial[self.filled..]) {
                Ok(0) => return Ok(None),
                Ok(n) => self.filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
            if self.filled == FRAME_BYTES {
                self.filled = 0;
                let frame = Frame::decode(self.partial).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "an unknown message of the supervisor")
                })?;
                if let Frame::Started(pid) = frame {
                    self.group = Pid::from_raw(pid);
                }
                return Ok(Some(frame));
            }
        }
    }

    /// Tells the supervisor. That it may be gone is learnt from [`next`](Self::next).
    pub(crate) fn tell(&self, frame: Frame) {
        // Nine bytes fit unless the supervisor has been stopped for a long time; then the wrapper's own count ends the command.
        let _ = self.control.try_write(&frame.encode());
    }

    /// Makes the command's group the foreground of the terminal.
    pub(crate) fn give_terminal(&self) {
        if let Some(group) = self.group {
            // If that fails the command is stopped when it reads, and the next `fg` tries again.
            let _ = crate::cli::terminal::give_to(group);
        }
    }

    /// Makes this process's group the foreground of the terminal again, if the command's group is.
    pub(crate) fn take_back_terminal(&self) {
        if self.group.is_some_and(crate::cli::terminal::has_foreground) {
            // Whoever started this process takes it back too, when it has ended.
            let _ = crate::cli::terminal::give_to(getpgrp());
        }
    }

    /// Kills the command's group past the supervisor, which may be stopped, and lets the supervisor see it.
    pub(crate) fn kill_group(&self) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::CONT);
    }

    /// Waits for the supervisor to be gone, after [`next`](Self::next) answered a final frame: it does nothing more then.
    pub(crate) fn reap(&mut self) -> io::Result<()> {
        self.child.wait().map(drop)
    }

    /// Ends the supervisor and everything in the command's group. True if nothing of it can run any more, false if that was not so by
    /// `until`: then whatever the lock protects may still be touched.
    ///
    /// # Cancel safety
    /// Cancel safe: the next call goes on.
    pub(crate) async fn end_group(&mut self, clock: &dyn Clock, until: Time) -> bool {
        loop {
            // Not before it is reaped has the kernel handed on, or killed, what it had started.
            let unwatched = match self.child.try_wait() {
                Ok(None) => {
                    let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
                    false
                }
                Ok(Some(_)) | Err(_) => true,
            };
            if unwatched && self.group.is_none() {
                // It was killed before it could say what it had started.
                self.group = group::of_child(getpid(), getpgrp());
            }
            if let Some(group) = self.group {
                let _ = kill_process_group(group, Signal::KILL);
                while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
            }
            if unwatched && self.group.is_none_or(group::is_gone) {
                return true;
            }
            if clock.now() >= until {
                return false;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// The command's group, for people: empty if there is none.
    pub(crate) fn group(&self) -> String {
        self.group.map(|group| group.as_raw_nonzero().to_string()).unwrap_or_default()
    }
}
