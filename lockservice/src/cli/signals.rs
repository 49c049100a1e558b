//! The signals that the wrapper takes for its command.

use std::io;
use std::task::{Context, Poll};

use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Passed on to the command while it runs; the first four end a wait.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Signals sent to this process. Those that it was started to ignore (`nohup`) stay ignored, here and in the command.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(Signal, Stream)>);

impl Signals {
    /// Takes the signals from now on.
    pub(crate) fn take() -> io::Result<Self> {
        let ignored = ignored();
        // A parent may have left SIGCHLD ignored, which would survive into the supervisor and hide the command's end from it.
        drop(signal(SignalKind::child())?);
        let streams = PASSED_ON
            .into_iter()
            .filter(|signal| ignored & (1 << (*signal as u32 - 1)) == 0)
            .map(|kind| Ok((kind, signal(SignalKind::from_raw(kind as i32))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self(streams))
    }

    /// The next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next signal that asks this process to end. Cancel safe.
    pub(crate) async fn next_to_end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT) {
                return signal;
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        for (kind, stream) in &mut self.0 {
            if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                return Poll::Ready(*kind);
            }
        }
        Poll::Pending
    }
}

/// The set of ignored signals as the kernel shows it; empty where it does not.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}
