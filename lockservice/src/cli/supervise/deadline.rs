//! The times at which a command is signalled to end, and is killed. Pure: time is an argument.

use std::time::Duration;

use lockservice_core::clock::Time;

use super::kill_margin;

/// The next step against the command and all that it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Send SIGTERM.
    Terminate,
    /// Send SIGKILL.
    Kill,
}

/// The deadline of the lock, as the supervisor counts it (P2).
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkDeadline {
    end: Time,
    stop_time: Duration,
    kill_at: Option<Time>,
    killed: bool,
}

impl WorkDeadline {
    /// A deadline that ends at `end`; the command needs `stop_time` to end.
    pub(super) fn new(end: Time, stop_time: Duration) -> Self {
        Self { end, stop_time, kill_at: None, killed: false }
    }

    /// Takes an acknowledged renewal into account. It comes too late once the command was signalled
    /// to end, for a command does not resume work that it gave up.
    pub(super) fn renew(&mut self, end: Time) {
        if self.kill_at.is_none() {
            self.end = end;
        }
    }

    /// The time at which the lock may go to others.
    pub(super) fn end(&self) -> Time {
        self.end
    }

    /// True once the command was signalled to end.
    pub(super) fn stopping(&self) -> bool {
        self.kill_at.is_some()
    }

    /// True if nothing may be started any more.
    pub(super) fn over(&self, now: Time) -> bool {
        now >= self.terminate_at()
    }

    /// The action that is due now, if any. Each is returned once.
    pub(super) fn due(&mut self, now: Time, stop_requested: bool) -> Option<Action> {
        if self.killed {
            return None;
        }
        match self.kill_at {
            None if stop_requested || self.over(now) => {
                let margin = kill_margin(self.stop_time);
                self.kill_at = Some(before(self.end, margin).min(now + (self.stop_time - margin)));
                Some(Action::Terminate)
            }
            Some(at) if now >= at => {
                self.killed = true;
                Some(Action::Kill)
            }
            _ => None,
        }
    }

    /// The latest time at which [`due`](Self::due) must be called again.
    pub(super) fn wake_at(&self) -> Option<Time> {
        if self.killed { None } else { Some(self.kill_at.unwrap_or_else(|| self.terminate_at())) }
    }

    /// The time at which the command is signalled to end, if no renewal comes.
    pub(super) fn terminate_at(&self) -> Time {
        before(self.end, self.stop_time)
    }
}

fn before(end: Time, by: Duration) -> Time {
    Time::from_origin(end.since_origin().saturating_sub(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn the_command_is_signalled_to_end_and_killed_before_the_deadline() {
        let mut deadline = WorkDeadline::new(at(10_000), Duration::from_millis(1_000));
        assert_eq!(deadline.due(at(8_999), false), None);
        assert_eq!(deadline.wake_at(), Some(at(9_000)));
        assert_eq!(deadline.due(at(9_000), false), Some(Action::Terminate));
        assert_eq!(deadline.due(at(9_749), false), None);
        assert_eq!(deadline.wake_at(), Some(at(9_750)));
        assert_eq!(deadline.due(at(9_750), false), Some(Action::Kill));
        assert_eq!(deadline.due(at(20_000), false), None);
    }

    #[test]
    fn a_renewal_moves_the_end_but_not_once_the_command_was_signalled_to_end() {
        let mut deadline = WorkDeadline::new(at(10_000), Duration::from_millis(1_000));
        deadline.renew(at(20_000));
        assert_eq!(deadline.due(at(18_999), false), None);
        assert_eq!(deadline.due(at(19_000), false), Some(Action::Terminate));
        deadline.renew(at(30_000));
        assert_eq!(deadline.due(at(19_750), false), Some(Action::Kill));
    }

    #[test]
    fn a_command_that_is_stopped_has_the_stop_time_but_never_more_than_the_deadline() {
        let mut deadline = WorkDeadline::new(at(10_000), Duration::from_millis(1_000));
        assert_eq!(deadline.due(at(1_000), true), Some(Action::Terminate));
        assert_eq!(deadline.wake_at(), Some(at(1_750)));

        let mut late = WorkDeadline::new(at(10_000), Duration::from_millis(1_000));
        assert_eq!(late.due(at(9_900), true), Some(Action::Terminate));
        assert_eq!(late.due(at(9_900), true), Some(Action::Kill));
    }
}
