//! What the kills of a session and of a transaction share: their reason, their outcome, and those
//! who wait for it.

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::id::TxnId;

/// The target of the events about kills, for filters of the log: the audit log. They are at level
/// INFO.
pub const AUDIT_TARGET: &str = "lockservice::audit";

/// Longest reason for a kill.
pub const REASON_BYTES_MAX: usize = 255;

/// What ended a session or a transaction that was killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KillEnd {
    /// Its client gave it up: its work has stopped.
    Confirmed,
    /// Its promise has run out: a client that keeps to it has stopped its work.
    Lapsed,
    /// The operator did not wait. Work of the client may still be running.
    Forced,
    /// The service was sealed: it grants nothing any more.
    Sealed,
}

impl KillEnd {
    /// Its stable name, as it goes over the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Lapsed => "lapsed",
            Self::Forced => "forced",
            Self::Sealed => "sealed",
        }
    }

    /// The end with this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Confirmed, Self::Lapsed, Self::Forced, Self::Sealed]
            .into_iter()
            .find(|end| end.name() == name)
    }
}

/// What came of a kill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Killed {
    /// What ended it.
    pub end: KillEnd,
    /// The transactions of it whose commit is in flight. They are left alone (C4): their locks are
    /// released when the commit has ended. All others are released.
    pub committing: Vec<TxnId>,
}

/// Waits for the end of a kill.
#[derive(Debug)]
pub(super) struct KillWaiter(oneshot::Sender<Killed>);

impl KillWaiter {
    pub(super) fn new() -> (Self, oneshot::Receiver<Killed>) {
        let (tell, told) = oneshot::channel();
        (Self(tell), told)
    }

    /// False if nobody waits any more.
    pub(super) fn is_waiting(&self) -> bool {
        !self.0.is_closed()
    }

    pub(super) fn tell(self, end: KillEnd, committing: &[TxnId]) {
        // It may have gone: a kill goes on without it.
        let _ = self.0.send(Killed { end, committing: committing.to_vec() });
    }
}

/// The outcome of a kill. Fails with `Unavailable` if the server went first.
pub(super) async fn outcome(told: oneshot::Receiver<Killed>) -> Result<Killed> {
    told.await.map_err(|_| {
        Error::new(
            ErrorKind::Unavailable,
            "the server went before the kill was done: the locks go to others when its lease is \
                over",
        )
    })
}

/// Fails with `InvalidArgument` if `reason` is out of bounds.
pub(super) fn check_reason(reason: &str) -> Result<()> {
    if (1..=REASON_BYTES_MAX).contains(&reason.len()) && !reason.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        "give a reason, without control characters and not at such length",
    )
    .with("bytes", reason.len())
    .with("limit", REASON_BYTES_MAX))
}
