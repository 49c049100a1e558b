//! How `lock` ends.

use nix::sys::signal::Signal;

use crate::cli::{signals, sink};

/// How `lock` ends, if it does not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// With this exit status, the command's.
    Status(u8),
    /// By this signal, which this process was sent.
    Signal(Signal),
}

impl End {
    /// The exit status. If it is to be a signal that ends this process it does so here: only that
    /// tells a shell or make to stop too.
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

/// The exit status that stands for a signal, as shells have it.
pub(super) fn of_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}
