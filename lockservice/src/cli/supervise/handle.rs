//! The wrapper's end: starts the supervisor, sends it the deadline, and receives the end of the
//! command.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockservice_core::clock::{Clock, Time};
use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::frame::{FRAME_BYTES, Frame};
use super::outbox::Outbox;
use super::stdin;
use super::tree::Tree;
use crate::cli::args::command_line;
use crate::cli::signals::undisturbed;

/// The interval at which killed processes are checked.
const TICK: Duration = Duration::from_millis(5);

/// The command to run, and its surroundings.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The command and its arguments.
    pub(crate) command: &'a [OsString],
    /// The variables that are added to its environment.
    pub(crate) env: &'a [(&'static str, OsString)],
    /// The signals that are to be blocked in it.
    pub(crate) blocked: &'a [i32],
    /// The deadline of the lock.
    pub(crate) deadline: Time,
    /// The time that the command has between SIGTERM and the deadline.
    pub(crate) stop_time: Duration,
    /// True if errors are printed as JSON.
    pub(crate) json: bool,
}

/// A supervisor and, below it, a command.
#[derive(Debug)]
pub(crate) struct Supervised {
    control: UnixStream,
    child: Child,
    reaped: bool,
    tree: Tree,
    outbox: Outbox,
    partial: [u8; FRAME_BYTES],
    filled: usize,
}

impl Supervised {
    /// Starts the supervisor, which starts the command.
    ///
    /// The caller must be the main thread of the process: the parent-death signal of a child is
    /// sent when the *thread* that started it ends.
    ///
    /// # Errors
    /// The supervisor could not be started. Nothing runs then.
    pub(crate) fn start(job: &Job<'_>) -> io::Result<Self> {
        // If the supervisor is killed, this process inherits its processes and ends them.
        set_child_subreaper(Some(getpid()))?;
        let tree = Tree::from_now();
        let (ours, theirs) = StdStream::pair()?;
        stdin::hand_over(&ours, rustix::stdio::stdin())?;
        ours.set_nonblocking(true)?;
        let control = UnixStream::from_std(ours)?;

        // `/proc/self/exe` is this very program, even if its file was replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("lockservice")
            .args(command_line::supervise(getpid(), job))
            .args(job.command)
            .envs(job.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = undisturbed(|| command.spawn())?;
        Ok(Self {
            control,
            child,
            reaped: false,
            tree,
            outbox: Outbox::default(),
            partial: [0; FRAME_BYTES],
            filled: 0,
        })
    }

    /// The next frame of the supervisor; `None` when it has ended. Meanwhile the frames of
    /// [`send`](Self::send) are sent.
    ///
    /// # Errors
    /// The socket is broken, or another program is at its other end.
    ///
    /// # Cancel safety
    /// Cancel safe: a frame that was read or written in part is kept.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let interest = if self.outbox.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = self.control.ready(interest).await?;
            if ready.is_writable() {
                let control = &self.control;
                match self.outbox.flush(|bytes| control.try_write(bytes)) {
                    // The end of the supervisor is learnt from reading, after its last frame.
                    Err(error) if is_gone(&error) => self.outbox = Outbox::default(),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
            if !ready.is_readable() {
                continue;
            }
            match self.control.try_read(&mut self.partial[self.filled..]) {
                Ok(0) => return Ok(None),
                Ok(n) => self.filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            if self.filled == FRAME_BYTES {
                self.filled = 0;
                let frame = Frame::decode(self.partial).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        "an unknown message of the supervisor",
                    )
                })?;
                return Ok(Some(frame));
            }
        }
    }

    /// Sends a frame to the supervisor while [`next`](Self::next) is awaited. The end of the
    /// supervisor is learnt from `next` too.
    pub(crate) fn send(&mut self, frame: Frame) {
        self.outbox.push(frame);
    }

    /// Waits for the end of the supervisor, after [`next`](Self::next) returned a final frame: it
    /// does nothing more then.
    pub(crate) fn reap(&mut self) {
        // If the caller ignores the end of children, there is nothing to reap.
        let _ = self.child.wait();
        self.reaped = true;
    }

    /// Ends the supervisor and everything that the command started. Returns the processes that were
    /// not gone by `until`. They may still touch the data that the lock protects.
    ///
    /// # Cancel safety
    /// Cancel safe: the next call goes on.
    pub(crate) async fn end_all(&mut self, clock: &dyn Clock, until: Time) -> Vec<String> {
        let supervisor = Pid::from_child(&self.child);
        loop {
            if !self.reaped {
                // This comes first: the children of the supervisor become those of this process.
                let _ = kill_process(supervisor, Signal::KILL);
            }
            self.tree.kill();
            let reaped = &mut self.reaped;
            if self.tree.reap(|pid, status| *reaped |= pid == supervisor && !status.stopped()) {
                return Vec::new();
            }
            if clock.now() >= until {
                let left: Vec<String> =
                    self.tree.living().iter().map(ToString::to_string).collect();
                return if left.is_empty() {
                    vec!["one that /proc does not show".to_owned()]
                } else {
                    left
                };
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
