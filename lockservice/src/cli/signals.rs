//! The signals that the wrapper takes for its command.
//!
//! They stay blocked and are read from a file descriptor, so that no handler is ever installed: the
//! wrapper can still die of a signal, as its caller expects, and its children inherit exactly the
//! state that it was given itself.
//!
//! SIGPIPE is the exception. The standard library ignores it before `main`, and the caller's choice
//! is lost by then: `/proc` shows the choice of the library, and the choice of the parent process
//! means nothing (Python ignores the signal itself but not in its children). An earlier look takes
//! unsafe code, which this crate forbids, or an unstable feature. So the command always has the
//! default: it ends by SIGPIPE.

use std::io;
use std::os::fd::AsFd as _;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::unix::pipe::Receiver;

/// Taken by the wrapper and passed on to the command while it runs. All but the last two would end
/// this process, and leave the lock to its TTL.
///
/// Stop signals are not taken: the command is in this process's group, so that both stop together.
const TAKEN: [Signal; 14] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGXCPU,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// `si_code` of a signal that the kernel sent.
const FROM_KERNEL: i32 = 0x80;

/// Bytes that describe one signal, `struct signalfd_siginfo`.
const INFO_BYTES: usize = 128;

/// A signal that was sent to this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// The signal.
    pub(crate) signal: Signal,
    /// True if the terminal sent it to every process of this one's group, so that the command has
    /// it already.
    pub(crate) to_group: bool,
}

impl Taken {
    /// True if it requests the end of this process.
    pub(crate) fn ends(self) -> bool {
        !matches!(self.signal, Signal::SIGCONT | Signal::SIGWINCH)
    }
}

/// Signals sent to this process. A signal that was ignored (`nohup`) or blocked at its start stays
/// so, here and in the command.
#[derive(Debug)]
pub(crate) struct Signals {
    /// The descriptor is not a pipe, but is read as one.
    fd: Receiver,
    blocked_before: Vec<i32>,
}

/// Signals that are kept for this process, and are read once there is a runtime.
#[derive(Debug)]
pub(crate) struct Kept {
    fd: SignalFd,
    blocked_before: Vec<i32>,
}

impl Kept {
    /// Keeps the signals from now on. The caller must not have started another thread: each would
    /// have to block them too.
    ///
    /// # Errors
    /// No more files may be open.
    pub(crate) fn from_now() -> io::Result<Self> {
        let ignored = Ignored::now();
        let before = SigSet::thread_get_mask()?;
        let mut taken = SigSet::empty();
        for signal in TAKEN {
            if !ignored.contains(signal) && !before.contains(signal) {
                taken.add(signal);
            }
        }
        let fd = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        taken.thread_block()?;
        let blocked_before = before.iter().map(|signal| signal as i32).collect();
        Ok(Self { fd, blocked_before })
    }

    /// Reads them with the runtime in which this is called.
    ///
    /// # Errors
    /// No more files may be open.
    pub(crate) fn read(self) -> io::Result<Signals> {
        Ok(Signals {
            fd: Receiver::from_owned_fd_unchecked(self.fd.as_fd().try_clone_to_owned()?)?,
            blocked_before: self.blocked_before,
        })
    }
}

impl Signals {
    /// Takes the signals from now on. The caller must not have started another thread: each would
    /// have to block them too.
    ///
    /// # Errors
    /// No more files may be open.
    pub(crate) fn take() -> io::Result<Self> {
        Kept::from_now()?.read()
    }

    /// The signals that the caller had blocked; the command has them blocked, too.
    pub(crate) fn blocked_before(&self) -> &[i32] {
        &self.blocked_before
    }

    /// The next signal.
    ///
    /// # Cancel safety
    /// Cancel safe: a signal is taken only to be returned.
    pub(crate) async fn next(&mut self) -> Taken {
        let mut info = [0; INFO_BYTES];
        loop {
            // The first read does not check for a signal before, so that no signal before this call
            // is missed.
            let read = rustix::io::read(&self.fd, &mut info);
            if let Some(taken) = read.ok().and_then(|read| Taken::parse(&info[..read])) {
                return taken;
            }
            if self.fd.readable().await.is_err() {
                // The runtime is going away.
                return std::future::pending().await;
            }
            if let Ok(read) = self.fd.try_read(&mut info)
                && let Some(taken) = Taken::parse(&info[..read])
            {
                return taken;
            }
        }
    }

    /// The next signal that requests the end of this process.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn next_to_end(&mut self) -> Signal {
        loop {
            let taken = self.next().await;
            if taken.ends() {
                return taken.signal;
            }
        }
    }
}

impl Taken {
    /// Reads the kernel's description of a signal: its number and, behind an errno, its origin.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let field = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let signal = Signal::try_from(field(0)?).ok()?;
        Some(Self { signal, to_group: of_terminal(signal) && field(8)? == FROM_KERNEL })
    }
}

/// Dies of `signal`, so that the caller sees that: a shell ends its loop after Ctrl-C, make its
/// run.
///
/// Returns only if the signal does not end this process.
pub(crate) fn die_of(signal: Signal) {
    // SIGQUIT would write the memory of a process that has no fault.
    let limit = getrlimit(Resource::Core);
    let _ = setrlimit(Resource::Core, rustix::process::Rlimit { current: Some(0), ..limit });
    let mut mask = SigSet::empty();
    mask.add(signal);
    let _ = mask.thread_unblock();
    let _ = nix::sys::signal::raise(signal);
}

/// Every signal that has a name.
pub(crate) fn every() -> SigSet {
    Signal::iterator().collect()
}

/// Runs `start` with every signal blocked, which its children inherit. A signal could stop a child
/// before it has become its program, and a process that waits for that would hang.
pub(crate) fn undisturbed<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = every().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = start();
    before.thread_set_mask()?;
    started
}

/// The signals that this process ignores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ignored(u64);

impl Ignored {
    /// The signals that `/proc` shows as ignored; none if it shows nothing.
    pub(crate) fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default())
    }

    /// True if it ignores `signal`.
    pub(crate) fn contains(self, signal: Signal) -> bool {
        self.0 & (1 << (signal as u32 - 1)) != 0
    }
}

/// True for the signals that a terminal sends to its foreground group.
fn of_terminal(signal: Signal) -> bool {
    matches!(signal, Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGWINCH)
}
