//! [`Screen`]: the terminal while it is taken.

use std::io;

use ratatui::DefaultTerminal;

/// The terminal: its keys come one by one and unseen, and its other screen is shown. Dropped, it is
/// as it was before. A panic gives it back first, and is then reported where it can be read.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open() -> io::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    pub(super) fn terminal(&mut self) -> &mut DefaultTerminal {
        &mut self.terminal
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // A terminal that has gone needs nothing.
    let _ = ratatui::try_restore();
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use nix::pty::openpty;
    use nix::sys::termios::{Termios, tcgetattr};

    use super::*;

    /// Tells the test that it is the child, which panics while it has the terminal.
    const CHILD: &str = "TEST_PANICS_ON_A_TERMINAL";

    /// What a program changes when it takes keys one by one.
    fn modes(of: &Termios) -> impl PartialEq + std::fmt::Debug {
        (of.input_flags, of.output_flags, of.local_flags)
    }

    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_reported() {
        if std::env::var_os(CHILD).is_some() {
            let _screen = Screen::open().expect("a terminal");
            panic!("in the middle");
        }
        let pty = openpty(None, None).expect("a terminal");
        let before = tcgetattr(&pty.slave).expect("a terminal");
        let side = || Stdio::from(pty.slave.try_clone().expect("a file"));
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["a_panic_gives_the_terminal_back_before_it_is_reported", "--nocapture"])
            .env(CHILD, "1")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("it starts");
        assert!(!child.wait().expect("a child").success());
        let after = tcgetattr(&pty.slave).expect("a terminal");
        assert_eq!(modes(&after), modes(&before));
        drop(pty.slave);
        let mut shown = Vec::new();
        // The terminal's end is an error.
        let _ = File::from(pty.master).read_to_end(&mut shown);
        let shown = String::from_utf8_lossy(&shown).into_owned();
        let at = |text: &str| shown.find(text).unwrap_or_else(|| panic!("{text:?}: {shown:?}"));
        let (taken, given) = (at("\x1b[?1049h"), at("\x1b[?1049l"));
        assert!(taken < given && given < at("in the middle"), "{shown:?}");
    }
}
