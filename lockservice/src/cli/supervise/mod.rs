//! Running a command so that it ends with its lock (P2), whatever happens to the processes that
//! watch it.
//!
//! | file | what |
//! |---|---|
//! | `handle.rs, outbox.rs` | the end of the wrapper: starts the supervisor, sends it the deadline |
//! | `frame.rs` | the messages between wrapper and supervisor |
//! | `supervisor/` | the process that ends the work |
//! | `deadline.rs` | when the command is signalled, and when it is killed: pure |
//! | `tree.rs` | the processes of the work: found, ended, reaped |
//! | `exec.rs, stdin.rs` | the last step before the command, and its standard input |
//!
//! # Implementation details
//! Three processes of this one binary, so that no unsafe code is needed between fork and exec:
//! ```text
//! wrapper  `lockservice lock`                talks to the server, passes on each deadline
//!   └ supervisor  `lockservice __supervise`  ends the work by the deadline; in its own session
//!       └ command  `lockservice __exec`      waits to be let go, then becomes the command
//! ```
//! The command runs in the wrapper's process group and session, as it would without the wrapper:
//! the terminal reaches both with Ctrl-C and Ctrl-Z, the shell stops and continues both, and
//! nothing has to be passed back and forth. The supervisor leaves that session before the command
//! may run, so that what ends a whole group does not end it.
//!
//! The command's *work* is everything below it, in whatever group or session. Wrapper and
//! supervisor are subreapers, so that nothing leaves their tree by losing its parent (see `tree`).
//!
//! | what happens | who ends the work |
//! |---|---|
//! | the lock is lost | the wrapper tells the supervisor, which sends SIGTERM, and SIGKILL before the deadline |
//! | the wrapper is stopped, hangs or is cut off | the supervisor, by its own count of the deadline |
//! | the wrapper is killed (SIGKILL), or its whole group | the supervisor, at once: its socket closes |
//! | the supervisor is killed | the kernel the command (parent-death signal), the wrapper the rest |
//! | the supervisor is stopped | the wrapper, by its own count; if the wrapper dies too, its death continues the supervisor |
//!
//! The lock is released when nothing of the work can run any more, and not before (P5). What cannot
//! be ended (it hangs in the kernel, or belongs to another user) keeps the lock from being
//! released: the session lapses by its TTL instead, and the wrapper names it, on stderr and to the
//! server, whose operator sees it with the locks.
//!
//! Two cases remain: neither watcher can act (one killed, and the other gone or stopped: then the
//! kernel ends the command alone; both stopped: then the command runs on); and work that the
//! command asks another daemon for (`systemd-run`, `at`, a container), which is not below it.

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

/// How long before the deadline SIGKILL is sent, so that the last process is gone by then.
pub(crate) fn kill_margin(stop_time: Duration) -> Duration {
    stop_time / 4
}
