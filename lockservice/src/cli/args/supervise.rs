//! The arguments of the hidden commands by which `lock` supervises its command.

use std::ffi::OsString;

use clap::Args;

/// The supervisor's arguments: see `supervise`.
#[derive(Debug, Args)]
pub(crate) struct SuperviseArgs {
    #[arg(long)]
    pub(crate) parent: i32,
    #[arg(long)]
    pub(crate) deadline_ns: u64,
    #[arg(long)]
    pub(crate) stop_ms: u64,
    #[arg(long, value_delimiter = ',')]
    pub(crate) blocked: Vec<i32>,
    #[arg(long)]
    pub(crate) json: bool,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// The arguments of the last step before the command: see `supervise`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[arg(long)]
    pub(crate) parent: i32,
    #[arg(long, value_delimiter = ',')]
    pub(crate) blocked: Vec<i32>,
    #[arg(long)]
    pub(crate) json: bool,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// The command lines of the hidden commands, up to and with the `--` before the command.
pub(crate) mod command_line {
    use rustix::process::Pid;

    use crate::cli::supervise::Job;

    pub(crate) fn supervise(parent: Pid, job: &Job<'_>) -> Vec<String> {
        let mut args = vec![
            "__supervise".to_owned(),
            format!("--deadline-ns={}", job.deadline.since_origin().as_nanos()),
            format!("--stop-ms={}", job.stop_time.as_millis()),
        ];
        args.extend(common(parent, job.blocked, job.json));
        args
    }

    pub(crate) fn exec(parent: Pid, blocked: &[i32], json: bool) -> Vec<String> {
        std::iter::once("__exec".to_owned()).chain(common(parent, blocked, json)).collect()
    }

    fn common(parent: Pid, blocked: &[i32], json: bool) -> Vec<String> {
        let mut args = vec![format!("--parent={}", parent.as_raw_nonzero())];
        args.extend(blocked.iter().map(|signal| format!("--blocked={signal}")));
        args.extend(json.then(|| "--json".to_owned()));
        args.push("--".to_owned());
        args
    }
}
