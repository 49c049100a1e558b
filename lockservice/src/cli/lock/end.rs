//! The end of `lock`.

use nix::sys::signal::Signal;

use crate::cli::{signals, sink};

/// The way in which `lock` ends, if it does not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It ends with this exit status, that of the command.
    Status(u8),
    /// It dies of this signal, which this process received.
    Signal(Signal),
}

impl End {
    /// The exit status. If a signal is to end this process, it does so here: a shell or make stops
    /// only for that.
    pub(crate) fn finish(self) -> u8 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => {
                sink::flush();
                signals::die_of(signal);
                of_signal(signal as i32)
            }
        }
    }
}

/// The exit status of a shell for a signal.
pub(super) fn of_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}
