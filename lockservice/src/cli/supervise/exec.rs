//! `lockservice __exec`: the last step before the command. It ties itself to its parent, waits for
//! the permission to go on, and becomes the command with the signals that the caller had ignored
//! and blocked.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use nix::sys::signal::Signal;
use rustix::process::{Pid, getppid, set_parent_process_death_signal};

use super::stdin;
use crate::cli::args::ExecArgs;
use crate::cli::exit::{self, Failure};
use crate::cli::signals::every;

/// The kernel reads no more of a script's first line.
const FIRST_LINE_BYTES: u64 = 256;

/// Becomes the command. Returns only if that is impossible.
pub(crate) fn run(args: &ExecArgs) -> ExitCode {
    match become_command(args) {
        Ok(never) => match never {},
        Err(failure) => failure.report(args.json),
    }
}

// The steps between fork and exec in their order, which matters.
fn become_command(args: &ExecArgs) -> Result<Infallible, Failure> {
    let os = |what: &str, error: io::Error| {
        Failure::new(exit::OS, "os", format!("cannot {what}: {error}; the command was not started"))
    };
    // The kernel kills the command when the supervisor dies, whatever the reason.
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| os("tie the command to its supervisor", error.into()))?;
    // The supervisor may have died before that was set. Then nothing would ever end the command.
    if getppid() != Pid::from_raw(args.parent) {
        return Err(Failure::silent(exit::LOST));
    }
    // The supervisor sends the file when it has left this process's group, and signals to that
    // group cannot reach it any more. Nothing may run before.
    let stdin = stdin::receive(rustix::stdio::stdin())
        .map_err(|error| os("take over the standard input", error))?
        .ok_or_else(|| Failure::silent(exit::LOST))?;
    rustix::stdio::dup2_stdin(stdin)
        .map_err(|error| os("take over the standard input", error.into()))?;
    // Everything was blocked up to here, and a mask survives exec.
    let mut mask = every();
    for number in &args.blocked {
        if let Ok(signal) = Signal::try_from(*number) {
            mask.remove(signal);
        }
    }
    mask.thread_unblock().map_err(|error| os("reset the signal mask", error.into()))?;

    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::usage("no command was given: add `-- COMMAND`"));
    };
    // Ignored signals are inherited. SIGPIPE is not, see `signals`: this gives the command the
    // default.
    let error = Command::new(program).args(rest).exec();
    Err(cannot_run(program, &error))
}

/// The reason why the kernel did not run `program`, in words of its caller.
fn cannot_run(program: &OsStr, error: &io::Error) -> Failure {
    let name = program.to_string_lossy();
    match (error.kind(), found(program)) {
        (io::ErrorKind::NotFound, Some(file)) => {
            let what = match interpreter(&file) {
                Some(interpreter) => {
                    format!("its interpreter {interpreter:?} is missing: check its first line")
                }
                None => "its interpreter or its dynamic loader is missing".to_owned(),
            };
            Failure::new(
                exit::NOT_FOUND,
                "interpreter_not_found",
                format!("the command {name:?} cannot be run, for {what}; the lock was released"),
            )
        }
        (io::ErrorKind::NotFound, None) => Failure::new(
            exit::NOT_FOUND,
            "command_not_found",
            format!(
                "the command {name:?} was not found: check its name and PATH; the lock was released"
            ),
        ),
        _ => Failure::new(
            exit::NOT_EXECUTABLE,
            "command_not_executable",
            format!(
                "the command {name:?} cannot be run: {error}; check its permissions and format; \
                    the lock was released"
            ),
        ),
    }
}

/// The file that `program` names, by the search of `exec`.
fn found(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(|file| file.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The interpreter that the first line of a script names.
fn interpreter(file: &PathBuf) -> Option<String> {
    let mut line = Vec::new();
    BufReader::new(File::open(file).ok()?.take(FIRST_LINE_BYTES))
        .read_until(b'\n', &mut line)
        .ok()?;
    let line = String::from_utf8_lossy(line.strip_prefix(b"#!")?).into_owned();
    // A line end of another system belongs to the name, and is the mistake then.
    let line = line.strip_suffix('\n').unwrap_or(&line).trim_matches([' ', '\t']);
    Some(line.split([' ', '\t']).next()?.to_owned())
}
