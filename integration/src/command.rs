//! `lockservice lock … -- COMMAND` as a process, and the commands that run under it.

use std::path::Path;
use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::{binary, pid_of, within};

/// Holds a kernel lock on the timeline's companion file for its life, says so, and leaves a trace
/// fifty times a second until it is killed. Deaf to SIGTERM: only what ends it by force keeps it
/// from running beside the next holder.
const STUBBORN: &str = r#"
trap '' TERM
exec 9>>"$TIMELINE.flock"
flock -n 9 || echo "$0 overlaps $LOCKSERVICE_TOKEN" >>"$TIMELINE"
echo "$0 begins $LOCKSERVICE_TOKEN" >>"$TIMELINE"
echo "$LOCKSERVICE_TOKEN"
while :; do echo "$0 works $LOCKSERVICE_TOKEN" >>"$TIMELINE"; sleep 0.02; done
"#;

/// The same without the work: it ends at once.
const BRIEF: &str = r#"
exec 9>>"$TIMELINE.flock"
flock -n 9 || echo "$0 overlaps $LOCKSERVICE_TOKEN" >>"$TIMELINE"
echo "$0 begins $LOCKSERVICE_TOKEN" >>"$TIMELINE"
echo "$LOCKSERVICE_TOKEN"
echo "$0 ends $LOCKSERVICE_TOKEN" >>"$TIMELINE"
"#;

/// Runs commands under a lock of one server, and notes everything in one timeline.
#[derive(Debug)]
pub struct Commands<'a> {
    /// The server, HOST:PORT.
    pub address: &'a str,
    /// The file that the commands append to; see [`Timeline`](crate::timeline::Timeline).
    pub timeline: &'a Path,
}

/// A `lock` process whose command may be running.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Commands<'_> {
    fn lock(&self, name: &str, flags: &[&str], table: &str, key: &str, script: &str) -> Command {
        let mut command = Command::new(binary::lockservice());
        command
            .args(["lock", "--server", self.address])
            .args(flags)
            .args([table, key, "--", "sh", "-c", script, name])
            .env("TIMELINE", self.timeline)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts a command that works, deaf to SIGTERM, until it is killed.
    pub fn stubborn(&self, name: &str, table: &str, key: &str) -> Holder {
        let mut child =
            self.lock(name, &[], table, key, STUBBORN).spawn().expect("the binary can be started");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Holder { child, stdout }
    }

    /// Runs a command that ends at once, waiting for the lock as `flags` say.
    pub async fn brief(&self, name: &str, flags: &[&str], table: &str, key: &str) -> Ended {
        let mut command = self.lock(name, flags, table, key, BRIEF);
        let output = within("a brief command ends", command.output())
            .await
            .expect("the binary can be started");
        Ended::from(&output)
    }
}

impl Holder {
    /// Waits until the command runs, and returns the token that it runs under.
    ///
    /// # Panics
    /// If it never does.
    pub async fn start_token(&mut self) -> u64 {
        let line = within("a command begins", self.stdout.next_line())
            .await
            .expect("its output can be read");
        line.and_then(|line| line.parse().ok()).expect("the command says its token")
    }

    /// Sends a signal to the `lock` process alone, not to what watches over the command in its
    /// stead.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        kill(pid_of(&self.child), signal).expect("a child can be signalled");
    }

    /// Waits until the `lock` process ends by itself.
    pub async fn ended(self) -> Ended {
        let output = within("a holder ends", self.child.wait_with_output())
            .await
            .expect("a child can be waited for");
        Ended::from(&output)
    }
}

/// The end of a `lock` process.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// The token that its command ran under, if it ran and was brief.
    pub token: Option<u64>,
    /// Its text on stderr.
    pub said: String,
}

impl From<&Output> for Ended {
    fn from(output: &Output) -> Self {
        Self {
            status: output.status.code(),
            token: String::from_utf8_lossy(&output.stdout).trim().parse().ok(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
