//! [`Renewals`]: what a session promises, to whom, and until when (P1).

use std::sync::OnceLock;
use std::time::Duration;

use crate::clock::{Clock, Time, hi};
use crate::id::SessionHandle;
use crate::service::session::OpenedBy;
use crate::sync::Mutex;

/// A session's promise (P1): when it was last renewed, and whether it is over. Shared with its
/// transactions, whose grants rest on it.
///
/// A renewal, a lapse and a grant are each decided under its mutex, by a reading of the clock that
/// is made under it. So a renewal that is acknowledged counts for a task that looks for a lapse,
/// and nothing is renewed or granted once the lapse was decided.
///
/// Renewals are withheld while a client does not know that a transaction of the session was killed:
/// see [`kill`](crate::service::txn::kill).
#[derive(Debug)]
pub(crate) struct Renewals {
    pub(crate) ttl: Duration,
    /// The session, as operators name it.
    pub(crate) handle: SessionHandle,
    /// The name of the client, for operators.
    pub(crate) client: Box<str>,
    /// Who opened it, for operators.
    pub(crate) opened_by: OpenedBy,
    kept: Mutex<Kept>,
    /// The processes that its client left running when it went.
    pub(super) still_running: OnceLock<String>,
}

#[derive(Debug)]
struct Kept {
    renewed: Time,
    standing: Standing,
    /// The number of transactions on whose account nothing is renewed.
    withheld: usize,
}

/// The outcome of a renewal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Renewal {
    /// The promise, raw.
    pub(super) valid_for: Duration,
    /// What was left of the last one, raw; `None` if nothing was renewed.
    pub(super) left: Option<Duration>,
}

/// How far a promise has come. It never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Standing {
    Renewable,
    /// Nothing is renewed or granted any more. What was promised holds until it lapses.
    Stopped,
    /// It lapsed, or was given up.
    Over,
}

impl Renewals {
    pub(super) fn new(
        ttl: Duration,
        handle: SessionHandle,
        (client, opened_by): (&str, OpenedBy),
        now: Time,
    ) -> Self {
        Self {
            ttl,
            handle,
            client: client.into(),
            opened_by,
            kept: Mutex::new(Kept { renewed: now, standing: Standing::Renewable, withheld: 0 }),
            still_running: OnceLock::new(),
        }
    }

    /// The processes that its client left running when it went; empty unless it said so.
    pub(crate) fn still_running(&self) -> &str {
        self.still_running.get().map_or("", String::as_str)
    }

    /// Renews the promise, unless renewals are withheld: then the promise is what is left. `None`
    /// if it is stopped or over.
    pub(super) fn renew(&self, clock: &dyn Clock) -> Option<Renewal> {
        self.decide(clock, Standing::Renewable, |kept, now| {
            let left = (kept.renewed + self.ttl).remaining(now);
            if kept.withheld > 0 {
                return Renewal { valid_for: left, left: None };
            }
            kept.renewed = now;
            Renewal { valid_for: self.ttl, left: Some(left) }
        })
    }

    /// Withholds renewals, until they are [granted](Self::grant) again as often. Returns when what
    /// was promised until now has run out; `None` if the promise is stopped or over, and then
    /// nothing is withheld.
    pub(super) fn withhold(&self, clock: &dyn Clock) -> Option<Time> {
        self.decide(clock, Standing::Renewable, |kept, _| {
            kept.withheld += 1;
            kept.renewed + hi(self.ttl)
        })
    }

    /// Ends what [`withhold`](Self::withhold) began.
    pub(super) fn grant(&self) {
        self.kept.lock().withheld -= 1;
    }

    /// The rest of the promise for a grant, raw and not zero; `None` if it is stopped or over.
    pub(crate) fn remaining(&self, clock: &dyn Clock) -> Option<Duration> {
        let rest = |kept: &mut Kept, now| (kept.renewed + self.ttl).remaining(now);
        self.decide(clock, Standing::Renewable, rest).filter(|left| !left.is_zero())
    }

    /// When the promise lapses unless it is renewed, and the reading by which it has not yet;
    /// `None` if it is over.
    pub(crate) fn lapses(&self, clock: &dyn Clock) -> Option<(Time, Time)> {
        self.decide(clock, Standing::Stopped, |kept, now| (kept.renewed + hi(self.ttl), now))
    }

    /// What is left until the promise lapses, unless it is renewed; `None` if it is over.
    pub(crate) fn left(&self, clock: &dyn Clock) -> Option<Duration> {
        self.lapses(clock).map(|(lapses, now)| lapses.remaining(now))
    }

    /// Nothing is renewed or granted any more. What was promised is kept until it lapses (P5).
    pub(super) fn stop(&self) {
        self.advance_to(Standing::Stopped);
    }

    /// Nothing is promised any more.
    pub(super) fn end(&self) {
        self.advance_to(Standing::Over);
    }

    fn advance_to(&self, standing: Standing) {
        let mut kept = self.kept.lock();
        kept.standing = kept.standing.max(standing);
    }

    /// Acts on a promise that has come no further than `most`. One that has lapsed, hi(ttl) after
    /// its last renewal, is over from here on.
    fn decide<T>(
        &self,
        clock: &dyn Clock,
        most: Standing,
        act: impl FnOnce(&mut Kept, Time) -> T,
    ) -> Option<T> {
        let mut kept = self.kept.lock();
        let now = clock.now();
        if now >= kept.renewed + hi(self.ttl) {
            kept.standing = Standing::Over;
        }
        (kept.standing <= most).then(|| act(&mut kept, now))
    }
}
