//! Running a command so that it ends with its lock (P2), even if the processes that watch it fail.
//!
//! | file | noun |
//! |---|---|
//! | `handle.rs, outbox.rs` | the end of the wrapper: starts the supervisor, sends it the deadline |
//! | `frame.rs` | the messages between wrapper and supervisor |
//! | `supervisor/` | the process that ends the work |
//! | `deadline.rs` | when the command is signalled, and when it is killed: pure |
//! | `tree.rs` | the processes of the work: found, ended, reaped |
//! | `exec.rs, stdin.rs` | the last step before the command, and its standard input |
//!
//! # Implementation details
//! There are three processes of this one binary, so that no unsafe code is needed between fork and
//! exec:
//! ```text
//! wrapper  `lockservice lock`                talks to the server, passes on each deadline
//!   └ supervisor  `lockservice __supervise`  ends the work by the deadline; in its own session
//!       └ command  `lockservice __exec`      waits to be let go, then becomes the command
//! ```
//! The command runs in the wrapper's process group and session, as it would without the wrapper:
//! the terminal reaches both with Ctrl-C and Ctrl-Z, the shell stops and continues both, and
//! nothing has to be passed back and forth. The supervisor leaves that session before the command
//! may run, so that a signal to the whole group does not end it.
//!
//! The command's *work* is everything below it, in any group or session. Wrapper and supervisor are
//! subreapers, so that nothing leaves their tree by losing its parent (see `tree`).
//!
//! | event | the work is ended by |
//! |---|---|
//! | the lock is lost | the supervisor, at the wrapper's word: with SIGTERM, and SIGKILL before the deadline |
//! | the wrapper is stopped, hangs or is cut off | the supervisor, by its own count of the deadline |
//! | the wrapper is killed (SIGKILL), or its whole group | the supervisor, at once: its socket closes |
//! | the supervisor is killed | the kernel the command (parent-death signal), the wrapper the rest |
//! | the supervisor is stopped | the wrapper, by its own count; if the wrapper dies too, its death continues the supervisor |
//!
//! The lock is released when nothing of the work can run any more, and not before (P5). A process
//! that cannot be ended (it hangs in the kernel, or belongs to another user) keeps the lock from
//! being released. The session lapses by its TTL instead. The wrapper names the process on stderr
//! and to the server, whose operator sees it with the locks.
//!
//! Two cases remain. In the first, neither watcher can act. If one was killed and the other has
//! gone or is stopped, the kernel ends only the command. If both are stopped, the command runs on.
//! In the second, the command has another daemon do work (`systemd-run`, `at`, a container), which
//! is not below it.

mod deadline;
mod exec;
mod frame;
mod handle;
mod outbox;
mod stdin;
mod supervisor;
mod tree;

use std::time::Duration;

pub(crate) use self::exec::run as exec;
pub(crate) use self::frame::Frame;
pub(crate) use self::handle::{Job, Supervised};
pub(crate) use self::supervisor::run as supervise;

/// The time before the deadline at which SIGKILL is sent, so that the last process is gone by then.
pub(crate) fn kill_margin(stop_time: Duration) -> Duration {
    stop_time / 4
}
