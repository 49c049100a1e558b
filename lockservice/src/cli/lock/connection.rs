//! What `lock` says while the connection to its server is lost.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use lockservice_core::clock::{Clock, SystemClock};
use serde_json::json;
use tokio::sync::watch;

use crate::cli::exit::say_event;
use crate::client::LockGuard;

/// The time for which a lost connection is not worth a word.
const SILENT: Duration = Duration::from_secs(1);

/// What goes on while the connection is lost.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meanwhile<'a> {
    /// The lock is waited for.
    Waits,
    /// The command runs under the lock.
    Holds(&'a LockGuard),
}

/// The messages about the connection: one when it has been lost for a second, one when it is back.
#[derive(Debug)]
pub(super) struct ConnectionNews {
    quiet: bool,
    json: bool,
    /// It was said that it is lost, and not yet that it is back.
    is_lost: Cell<bool>,
}

impl ConnectionNews {
    pub(super) const fn new(quiet: bool, json: bool) -> Self {
        Self { quiet, json, is_lost: Cell::new(false) }
    }

    /// Says what happens to a connection. Never returns.
    ///
    /// # Cancel safety
    /// The caller drops the future when the connection does not matter any more.
    pub(super) async fn say(
        &self,
        mut connected: watch::Receiver<bool>,
        meanwhile: Meanwhile<'_>,
    ) -> Infallible {
        loop {
            if connected.wait_for(|connected| !connected).await.is_err() {
                // There is no session any more.
                return std::future::pending().await;
            }
            tokio::select! {
                biased;
                _ = connected.wait_for(|connected| *connected) => continue,
                () = tokio::time::sleep(SILENT) => self.say_lost(meanwhile),
            }
            if connected.wait_for(|connected| *connected).await.is_err() {
                return std::future::pending().await;
            }
            self.say_back(meanwhile);
        }
    }

    fn say_lost(&self, meanwhile: Meanwhile<'_>) {
        let mut object = json!({ "event": "connection_lost" });
        let goes_on = match meanwhile {
            Meanwhile::Waits => "the wait goes on".to_owned(),
            // The command is being ended: that has a message of its own.
            Meanwhile::Holds(lock) if lock.lost_now().is_some() => return,
            Meanwhile::Holds(lock) => {
                let left = lock.deadline().remaining(SystemClock.now());
                if let (Some(fields), Ok(left)) =
                    (object.as_object_mut(), u64::try_from(left.as_millis()))
                {
                    fields.insert("valid_for_ms".into(), left.into());
                }
                format!("the command goes on for at most {} s", left.as_secs())
            }
        };
        self.is_lost.set(true);
        if !self.quiet {
            let sentence = format!("the connection to the server is lost: trying again; {goes_on}");
            say_event("", &sentence, self.json.then_some(object));
        }
    }

    /// Says that a server accepts the command again, if it was said that none does.
    pub(super) fn say_back(&self, meanwhile: Meanwhile<'_>) {
        if matches!(meanwhile, Meanwhile::Holds(lock) if lock.lost_now().is_some())
            || !self.is_lost.replace(false)
            || self.quiet
        {
            return;
        }
        let goes_on = match meanwhile {
            Meanwhile::Waits => "the wait goes on",
            Meanwhile::Holds(_) => "the lock is held as before",
        };
        let object = json!({ "event": "connection_back" });
        say_event("", &format!("the server is back; {goes_on}"), self.json.then_some(object));
    }
}
