//! A terminal with an interactive shell, as a person sits before it.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::pty::openpty;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::cli_support::{DEADLINE, Server, now};

/// The time that a key has to show an effect before it is pressed again.
const AGAIN: Duration = Duration::from_millis(500);

/// `bash -i` on a terminal of its own. `lock` in it stands for the `lock` of a server, and
/// `lockservice` for the command.
pub(crate) struct Terminal {
    keyboard: File,
    shell: Child,
    screen: Receiver<Vec<u8>>,
    /// All that was shown so far, and how much of it was looked at.
    shown: String,
    seen: usize,
}

impl Terminal {
    pub(crate) fn open(server: &Server) -> Self {
        let pty = openpty(None, None).expect("a terminal");
        let side = || Stdio::from(pty.slave.try_clone().expect("a file"));
        let mut shell = std::process::Command::new("setsid");
        shell
            .args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"])
            .env("LOCKSERVICE_SERVER", &server.address)
            .env("lock", format!("{} lock", env!("CARGO_BIN_EXE_lockservice")))
            .env("lockservice", env!("CARGO_BIN_EXE_lockservice"))
            .env("PS1", "ready> ")
            .env("TERM", "dumb")
            .env("HISTFILE", "");
        let shell = shell.stdin(side()).stdout(side()).stderr(side()).spawn().expect("a shell");
        drop(pty.slave);
        let mut screen = File::from(pty.master.try_clone().expect("a file"));
        let (to, lines) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // The terminal's end is an error.
            while let Ok(read @ 1..) = screen.read(&mut bytes) {
                if to.send(bytes[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut terminal = Self {
            keyboard: File::from(pty.master),
            shell,
            screen: lines,
            shown: String::new(),
            seen: 0,
        };
        terminal.expect("ready> ");
        terminal
    }

    /// Types something. A line is sent with a `\n` at its end; `\x03` is Ctrl-C, `\x1a` Ctrl-Z.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the terminal is there");
    }

    /// Changes the size of the terminal.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).expect("the terminal is there");
    }

    /// Waits until this is shown, and returns the number in the rest of its line.
    pub(crate) fn number_after(&mut self, text: &str) -> i32 {
        self.expect(text);
        let from = self.seen;
        self.expect("\r\n");
        self.shown[from..self.seen].trim().parse().expect("a number")
    }

    /// Waits until this is shown, after the text of the last wait.
    pub(crate) fn expect(&mut self, text: &str) {
        assert!(self.is_shown_within(text, DEADLINE), "{text:?} is not shown:\n{}", self.shown);
    }

    /// Types `key` again and again until this is shown: before the shell has started its job, a key
    /// for the job is lost.
    pub(crate) fn press_until(&mut self, key: &str, text: &str) {
        let give_up = now() + DEADLINE;
        loop {
            self.type_in(key);
            if self.is_shown_within(text, AGAIN) {
                return;
            }
            assert!(now() < give_up, "{text:?} is not shown:\n{}", self.shown);
        }
    }

    /// Types a line at a prompt that was just shown. On a busy machine the first key may be lost
    /// then, so a blank goes ahead of the line until it is shown.
    pub(crate) fn type_in_at_prompt(&mut self, line: &str) {
        self.press_until(" ", " ");
        self.type_in(line);
    }

    fn is_shown_within(&mut self, text: &str, time: Duration) -> bool {
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                self.seen += at + text.len();
                return true;
            }
            match self.screen.recv_timeout(time) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Runs a line to its end and returns the text that it showed.
    pub(crate) fn run(&mut self, line: &str) -> String {
        self.type_in(&format!("{line}\n"));
        // The echo of the line itself.
        self.expect("\n");
        let from = self.seen;
        self.expect("ready> ");
        self.shown[from..self.seen].to_owned()
    }

    /// Asks the shell for its jobs until it shows `state`.
    pub(crate) fn wait_for_job(&mut self, state: &str) {
        let give_up = now() + DEADLINE;
        loop {
            let jobs = self.run("jobs");
            if jobs.contains(state) {
                return;
            }
            assert!(now() < give_up, "no job is {state}: {jobs}\n{}", self.shown);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
