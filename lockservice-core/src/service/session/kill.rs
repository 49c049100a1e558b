//! Sessions that an operator ends. A kill is a lapse that was decided by an operator: the client
//! learns that the session is lost, nothing more is renewed or granted, and the locks are released
//! once the client has confirmed that its work stopped, or its promise has run out (P5).

use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::id::SessionHandle;
use crate::service::LockService;
use crate::service::kill::{KillEnd, KillWaiter, Killed, check_reason, outcome};
use crate::service::session::Session;
use crate::service::session::state::Stage;

/// A kill that has begun. It goes on if this is dropped.
#[derive(Debug)]
#[must_use = "it says for how long the locks stay"]
pub struct KillUnderWay {
    /// The client of the session.
    pub client: String,
    /// The number of its transactions.
    pub txns: usize,
    /// For how long the locks are kept at most, unless a commit is in flight: until the promise of
    /// the session has run out. Zero if they are not kept.
    pub kept: Duration,
    told: oneshot::Receiver<Killed>,
}

impl KillUnderWay {
    /// Resolves when the locks were released, except those of transactions whose commit is in
    /// flight.
    ///
    /// # Errors
    /// `Unavailable` if the server went first: no other gets the locks before its lease has run
    /// out, or it has resigned.
    ///
    /// # Cancel safety
    /// The kill goes on.
    pub async fn done(self) -> Result<Killed> {
        outcome(self.told).await
    }
}

impl LockService {
    /// Ends a session for an operator, with a `reason` of at most
    /// [`REASON_BYTES_MAX`](crate::service::REASON_BYTES_MAX) bytes, without control characters,
    /// that its client gets to read.
    ///
    /// Its client learns that the session is lost. Its locks are released once the client has given
    /// the session up, or the promise has run out (P5). If `now`, they are released at once: work
    /// that they protect may still be running then. A kill of a session that is being killed joins
    /// the first, and may only hasten it.
    ///
    /// # Errors
    /// `SessionNotFound`: it has ended, or another incarnation opened it. `InvalidArgument` for a
    /// reason out of bounds. Nothing was done then.
    pub fn kill_session(
        &self,
        handle: SessionHandle,
        reason: &str,
        now: bool,
    ) -> Result<KillUnderWay> {
        check_reason(reason)?;
        let session = self.inner.session_of(handle);
        session.and_then(|session| session.kill(reason, now)).ok_or_else(|| {
            Error::new(
                ErrorKind::SessionNotFound,
                "this node has no session with this handle, or no longer: list its sessions",
            )
            .with("session", handle)
        })
    }
}

impl Session {
    /// `None` if the session is over.
    fn kill(&self, reason: &str, now: bool) -> Option<KillUnderWay> {
        let why = Error::new(
            ErrorKind::Killed,
            format!(
                "an operator ended the session ({reason}): stop the protected work, then close the \
                    session"
            ),
        );
        let (waiter, told) = KillWaiter::new();
        {
            let mut state = self.record.state.lock();
            if state.stage == Stage::Over {
                return None;
            }
            state.killers.retain(KillWaiter::is_waiting);
            state.killers.push(waiter);
        }
        self.stop(&why);
        let renewals = &self.record.renewals;
        let kept = match renewals.lapses(&**self.inner.parts.env.clock()) {
            Some((lapses, at)) if !now => lapses.remaining(at),
            _ => Duration::ZERO,
        };
        let txns = self.record.state.lock().stopped.len();
        if now {
            self.finish(why, KillEnd::Forced);
        }
        Some(KillUnderWay { client: renewals.client.to_string(), txns, kept, told })
    }
}
