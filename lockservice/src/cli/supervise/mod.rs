//! Running a command so that it ends with its lock (P2), whatever happens to the processes that watch it.
//!
//! # Implementation details
//! Three processes of this one binary, so that no unsafe code is needed between fork and exec:
//! ```text
//! wrapper      `lockservice lock`        talks to the server, tells the supervisor the end of the guard at every renewal
//!   └ supervisor  `lockservice __supervise`  one thread, no runtime: counts the guard, ends the command's process group
//!       └ command  `lockservice __exec`      sets its parent-death signal, checks its parent, then becomes the command
//! ```
//! | what happens | who ends the command |
//! |---|---|
//! | the lock is lost | the wrapper tells the supervisor, which sends SIGTERM, and SIGKILL before the guard's end |
//! | the wrapper is stopped, hangs or is cut off | the supervisor, by its own count of the guard |
//! | the wrapper is killed, even with SIGKILL | the supervisor, at once: its socket closes |
//! | the supervisor is killed | the kernel (parent-death signal); the wrapper ends the rest of the group, and waits for that before it releases |
//! | the supervisor is stopped | the wrapper, by its own count; if the wrapper dies too, its death continues the supervisor |
//!
//! The lock is released when nothing of the group can run any more, and not before (P5). What cannot be ended (it hangs in the kernel, or
//! belongs to another user) keeps the lock from being released: the session lapses by its TTL instead.
//!
//! Only both watchers killed within the same instant leave the command's own children behind, and a command that leaves its process
//! group (a daemon) escapes: nothing short of a control group would hold it.

mod exec;
mod frame;
mod group;
mod guard;
mod handle;
mod supervisor;

use std::time::Duration;

pub(crate) use self::exec::run as exec;
pub(crate) use self::frame::Frame;
pub(crate) use self::handle::{Job, Supervised};
pub(crate) use self::supervisor::run as supervise;

/// How long before the guard's end SIGKILL is sent, so that the last process is gone by then.
pub(crate) fn kill_margin(stop_time: Duration) -> Duration {
    stop_time / 4
}
