//! `lockservice __exec`: the last step before the command. It ties itself to its parent and becomes the command.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, getpgrp, getppid, set_parent_process_death_signal};

use crate::cli::args::ExecArgs;
use crate::cli::exit::{self, Failure};
use crate::cli::terminal;

/// Becomes the command; comes back only if that is impossible.
///
/// The process group was made by whoever started this process, so that it exists before anybody can want to end it.
pub(crate) fn run(args: &ExecArgs) -> ExitCode {
    match become_command(args) {
        Ok(never) => match never {},
        Err(failure) => failure.report(args.json),
    }
}

fn become_command(args: &ExecArgs) -> Result<Infallible, Failure> {
    let os = |what: &str, error: io::Error| {
        Failure::new(exit::OS, "os", format!("cannot {what}: {error}; the command was not started"))
    };
    // The kernel kills the command when the supervisor dies, whatever the reason.
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| os("tie the command to its supervisor", error.into()))?;
    // It may have died before that was set: then nobody would ever end the command.
    if getppid() != Pid::from_raw(args.parent) {
        return Err(Failure::silent(exit::LOST));
    }
    if args.terminal {
        // No failure is worth not running the command: without the terminal it can still write.
        let _ = terminal::give_to(getpgrp());
    }
    // The supervisor blocked these for itself, and a mask survives exec.
    unblocked().thread_unblock().map_err(|error| os("reset the signal mask", error.into()))?;

    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::usage("no command was given: add `-- COMMAND`"));
    };
    let error = Command::new(program).args(rest).exec();
    let name = program.to_string_lossy();
    Err(match error.kind() {
        io::ErrorKind::NotFound => Failure::new(
            exit::NOT_FOUND,
            "command_not_found",
            format!("the command {name:?} was not found: check its name and PATH; the lock was released"),
        ),
        _ => Failure::new(
            exit::NOT_EXECUTABLE,
            "command_not_executable",
            format!(
                "the command {name:?} cannot be run: {error}; check its permissions and format; the lock was released"
            ),
        ),
    })
}

/// What the supervisor blocks for itself, and the command gets back.
pub(super) fn unblocked() -> SigSet {
    [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGCHLD,
    ]
    .into_iter()
    .collect()
}
