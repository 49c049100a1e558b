//! This test binary, started again as a process that may be killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::Site;

const ROLE: &str = "LOCKSERVICE_TEST_ROLE";
const STORE: &str = "LOCKSERVICE_TEST_STORE";
const MARK: &str = "child: ";
const PATIENCE: Duration = Duration::from_secs(60);

/// In the child: its role and the store's URL.
pub(crate) fn role() -> Option<(String, String)> {
    Some((std::env::var(ROLE).ok()?, std::env::var(STORE).ok()?))
}

/// In the child: sends a word to the parent.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").and_then(|()| out.flush()).expect("the parent listens");
}

/// A child and what it says. Killed on drop.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    last: String,
}

pub(crate) fn spawn(role: &str, url: &str) -> Process {
    start(Command::new(std::env::current_exe().expect("this binary")), role, url)
}

fn start(mut command: Command, role: &str, url: &str) -> Process {
    command.args(["child_process", "--exact", "--nocapture"]).env(ROLE, role).env(STORE, url);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("this binary starts");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            // The test harness writes into the same lines.
            if let Some(at) = line.find(MARK) {
                let _ = send.send(line[at + MARK.len()..].to_owned());
            }
        }
    });
    Process { child, lines, last: String::new() }
}

impl Process {
    /// Waits until the child has said `line`.
    pub(crate) fn wait_for(&mut self, line: &str) {
        while self.last != line {
            let next = self.lines.recv_timeout(PATIENCE);
            self.last = next.unwrap_or_else(|error| {
                panic!("waiting for {line:?}, last was {:?}: {error}", self.last)
            });
        }
    }

    /// Kills the child with SIGKILL and returns its last word.
    pub(crate) fn kill(&mut self) -> String {
        self.child.kill().expect("still there");
        self.child.wait().expect("reaped");
        self.last_line()
    }

    /// The last thing the child said before it ended.
    fn last_line(&mut self) -> String {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.last = line;
        }
        self.last.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The error for a user without rights on the store. `None`, with a loud word, if there is no way
/// to be one.
pub(crate) fn open_without_rights(site: &Site) -> Option<String> {
    let exe = std::env::current_exe().expect("this binary");
    let mut process = if rustix::process::geteuid().is_root() {
        // Permission bits do not bind root.
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&exe);
        start(command, "hold", &site.url())
    } else {
        start(Command::new(&exe), "hold", &site.url())
    };
    let said = process.last_line();
    if said.is_empty() {
        eprintln!(
            "SKIPPED: setpriv, or the right of user 65534 to run {}, is missing",
            exe.display()
        );
        return None;
    }
    Some(said)
}
