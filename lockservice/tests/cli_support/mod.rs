//! The real command as processes. Waits are for events (a line, an end of file, an exit), bounded
//! by a deadline.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | servers and commands as processes |
//! | `terminal.rs` | a terminal with an interactive shell |

#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write as _};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock, Time};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

/// Longer than anything here takes, also on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn now() -> Time {
    SystemClock.now()
}

/// The command, without this process's settings in its environment.
pub(crate) fn lockservice(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockservice"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOCKSERVICE_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the command to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    lockservice(args).output().expect("the command starts")
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("exited")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The output of the command with `--json`: one object a line.
pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("one object")).collect()
}

/// A server on a store: the process, and its address once it is ready.
pub(crate) fn serve(store: &str, flags: &[&str]) -> (Running, String) {
    let args = [&["serve", "--json", "--listen", "127.0.0.1:0", "--store", store], flags].concat();
    let mut running = Running::start(&mut lockservice(&args));
    let ready: Value = serde_json::from_str(&running.line()).expect("one object");
    let address = ready["address"].as_str().expect("the address").to_owned();
    (running, address)
}

/// A running command whose output is read line by line.
pub(crate) struct Running {
    pub(crate) child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut running = Self::start_with_stderr(command, Stdio::piped());
        running.err = lines(running.child.stderr.take().expect("piped"));
        running
    }

    /// Its stderr goes elsewhere.
    pub(crate) fn start_with_stderr(command: &mut Command, stderr: impl Into<Stdio>) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("the command starts");
        let out = lines(child.stdout.take().expect("piped"));
        Self { child, out, err: channel().1 }
    }

    /// The next line of stdout.
    pub(crate) fn line(&mut self) -> String {
        match self.out.recv_timeout(DEADLINE) {
            Ok(line) => line,
            Err(_) => panic!("no line came; stderr: {:?}", self.err.try_iter().collect::<Vec<_>>()),
        }
    }

    /// The next line of stderr.
    pub(crate) fn error_line(&self) -> String {
        self.err.recv_timeout(DEADLINE).expect("a line on stderr")
    }

    /// The text that it has written to stderr so far.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.err.try_iter().collect()
    }

    /// The next line of stdout: the number of a process.
    pub(crate) fn process(&mut self) -> Pid {
        Pid::from_raw(self.line().parse().expect("a process number")).expect("not zero")
    }

    /// Waits until no process has stdout open any more: the wrapper, the supervisor and the command
    /// are all gone.
    pub(crate) fn end_of_output(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        loop {
            match self.out.recv_timeout(DEADLINE) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("somebody still has stdout open"),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The supervisor of a `lock`: its only child, or the last if it had some before.
    pub(crate) fn supervisor(&self) -> Pid {
        let pid = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
        let last = children.split_ascii_whitespace().next_back().expect("a child");
        Pid::from_raw(last.parse().expect("a number")).expect("not zero")
    }

    /// Waits for the end; returns the status and all of stderr.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        wait_for_end_of(self.pid());
        let status = self.child.wait().expect("a child");
        let mut text = Vec::new();
        while let Ok(line) = self.err.recv_timeout(DEADLINE) {
            text.push(line);
        }
        (status, text.join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// A pipe that has no room left.
pub(crate) fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let flags = rustix::fs::fcntl_getfl(&writer).expect("open");
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("open");
    while writer.write(&[b'\n'; 1]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).expect("open");
    (reader, writer)
}

/// Waits until a process, a child or not, has ended.
pub(crate) fn wait_for_end_of(pid: Pid) {
    assert!(ends_within(pid, DEADLINE), "process {pid:?} still runs");
}

/// True if a process, a child or not, has ended or does so within this time.
pub(crate) fn ends_within(pid: Pid, time: Duration) -> bool {
    // It may be gone already.
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    poll(&mut fds, Some(&time)).expect("poll") == 1
}

/// A server of its own, in a folder of its own.
pub(crate) struct Server {
    pub(crate) running: Running,
    pub(crate) address: String,
    pub(crate) folder: tempfile::TempDir,
    flags: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(flags: &[&str]) -> Self {
        Self::open(tempfile::tempdir().expect("a folder"), flags)
    }

    fn open(folder: tempfile::TempDir, flags: &[&str]) -> Self {
        let store = format!("file:{}", folder.path().join("db").display());
        let (running, address) = serve(&store, flags);
        Self {
            running,
            address,
            folder,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        }
    }

    /// Kills the server with SIGKILL and starts it again on the same store, at another address.
    pub(crate) fn crash_and_restart(self) -> Self {
        let Self { running, folder, flags, .. } = self;
        running.signal(Signal::KILL);
        running.wait();
        Self::open(folder, &flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Stops the server in order and starts it again on the same store, at another address.
    pub(crate) fn stop_and_restart(self) -> Self {
        let flags = self.flags.clone();
        self.stop_and_restart_with(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same with other flags.
    pub(crate) fn stop_and_restart_with(self, flags: &[&str]) -> Self {
        let Self { running, folder, .. } = self;
        running.signal(Signal::TERM);
        assert!(running.wait().0.success(), "it stops in order");
        Self::open(folder, flags)
    }

    /// `lockservice ARGS` that talks to this server.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = lockservice(args);
        command.env("LOCKSERVICE_SERVER", &self.address);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the command starts")
    }

    /// `lock ARGS -- sh -c SCRIPT`, running.
    pub(crate) fn lock(&self, args: &[&str], script: &str) -> Running {
        let args = [&["lock"], args, &["--", "sh", "-c", script]].concat();
        Running::start(&mut self.command(&args))
    }

    /// A lock that is held until the wrapper is signalled: returns it and the command's process.
    pub(crate) fn hold(&self, args: &[&str]) -> (Running, Pid) {
        let mut holder = self.lock(args, "echo $$; exec sleep 1000");
        let command = holder.process();
        (holder, command)
    }

    /// Waits until this many calls wait, and responds them.
    pub(crate) fn waits(&self, count: usize) -> Vec<Value> {
        let give_up = now() + DEADLINE;
        loop {
            let waits = json_lines(&self.run(&["waits", "--json"]));
            if waits.len() == count {
                return waits;
            }
            assert!(now() < give_up, "{} calls wait, not {count}", waits.len());
        }
    }
}
