//! The one deadline of everything until the lock is held: to connect, to open a session, to follow
//! the table to its owner, and to wait. Also the time for which `lock` goes on while its server is
//! starting, or has gone during the wait.

use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::{Error, ErrorKind};

use super::exit::{self, Failure};

/// The first and the longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The time for which a command without a time-out goes on while no server accepts it.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// The longest time for a call that waits for no lock.
const CALL_MAX: Duration = Duration::from_secs(10);

/// The longest time that a command that may not wait may take to reach a server that responds.
const NO_WAIT_MAX: Duration = Duration::from_secs(3);

/// See the module. Pure: time is an argument, and it does not pause itself.
#[derive(Debug)]
pub(super) struct Patience {
    /// False for a command that does not wait.
    waits: bool,
    deadline: Option<Time>,
    /// The longest that a call which waits for no lock may take.
    pub(super) call: Duration,
    /// The time since which no server has accepted the command.
    away: Time,
    pause: Duration,
    /// True once the command has reached a server: if that one goes away, it is expected back. If
    /// none ever responds, the address is more likely to be wrong.
    pub(super) met: bool,
}

impl Patience {
    /// The time-out counts from `now`, over everything.
    pub(super) fn new(waits: bool, timeout: Option<Duration>, now: Time) -> Self {
        let most = if waits { CALL_MAX } else { NO_WAIT_MAX };
        let call = timeout.map_or(most, |timeout| timeout.min(most));
        let deadline = timeout.map(|timeout| now + timeout);
        Self { waits, deadline, call, away: now, pause: PAUSE.0, met: false }
    }

    /// The remaining time-out, if there is one.
    pub(super) fn left(&self, now: Time) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.remaining(now))
    }

    /// The pause before the next try; `None` if `failure` is the end.
    pub(super) fn after(&mut self, failure: &Failure, now: Time) -> Option<Duration> {
        // A wait that the next process of its server did not take over begins again.
        let is_away =
            failure.status == exit::UNAVAILABLE || failure.kind == ErrorKind::ClaimRefused.name();
        if !self.waits || !self.met || !is_away {
            return None;
        }
        // The command waited at a server until now, and holds nothing.
        let kinds = [ErrorKind::SessionLost, ErrorKind::LeaseLost, ErrorKind::ShuttingDown];
        if kinds.iter().any(|kind| kind.name() == failure.kind) {
            self.away = now;
            self.pause = PAUSE.0;
        }
        let left = self.deadline.unwrap_or(self.away + AWAY_MAX).remaining(now);
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        (pause < left).then_some(pause)
    }
}

/// The failure of a try that no server accepted before its time was up.
pub(super) fn no_response() -> Failure {
    Error::new(ErrorKind::Unavailable, "no server responded within the time-out of the lock").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(waits: bool, timeout: Option<Duration>) -> Patience {
        Patience { met: true, ..Patience::new(waits, timeout, Time::ZERO) }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn failed(kind: ErrorKind) -> Failure {
        Failure::new(exit::status_of(kind), kind.name(), "")
    }

    #[test]
    fn one_that_waits_goes_on_within_its_time_out_and_no_longer() {
        let mut patience = patience(true, Some(Duration::from_secs(20)));
        assert_eq!(patience.left(at(5)), Some(Duration::from_secs(15)));
        for second in 0..19 {
            assert!(
                patience.after(&failed(ErrorKind::Unavailable), at(second)).is_some(),
                "after {second} s"
            );
        }
        assert_eq!(patience.after(&failed(ErrorKind::Unavailable), at(20)), None);
    }

    #[test]
    fn without_a_time_out_an_outage_may_last_a_minute_however_long_it_waited_before() {
        let mut patience = patience(true, None);
        assert_eq!(patience.left(at(5)), None);
        assert!(patience.after(&failed(ErrorKind::SessionLost), at(3_000)).is_some());
        assert!(patience.after(&failed(ErrorKind::Unavailable), at(3_050)).is_some());
        assert_eq!(patience.after(&failed(ErrorKind::Unavailable), at(3_060)), None);
    }

    #[test]
    fn a_wait_that_a_restarted_server_did_not_take_over_begins_again() {
        let again = patience(true, None).after(&failed(ErrorKind::ClaimRefused), at(0));
        assert!(again.is_some());
    }

    #[test]
    fn a_call_that_may_not_wait_or_found_no_server_or_was_refused_fails_at_once() {
        assert_eq!(patience(false, None).after(&failed(ErrorKind::Unavailable), at(0)), None);
        let unmet = Patience { met: false, ..patience(true, None) }
            .after(&failed(ErrorKind::Unavailable), at(0));
        assert_eq!(unmet, None);
        for kind in [ErrorKind::Conflict, ErrorKind::Timeout, ErrorKind::InvalidArgument] {
            assert_eq!(patience(true, None).after(&failed(kind), at(0)), None, "{kind:?}");
        }
    }
}
