//! [`Backoff`]: the pauses between attempts to connect again.

use std::time::Duration;

use lockservice_core::clock::Time;

/// The first and the longest pause between two attempts to connect again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// For how long after the end of a stream a server is expected back at once, and the longest pause
/// until then. It is short: after a restart of a server the locks of its tables go to others when
/// all that were held are claimed (P6). A thousand clients make some 33,000 attempts in a second.
const SOON: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(40));

/// The pauses between attempts to connect again: none before the first, then longer and longer
/// ones. A stream that was welcomed and ends at once counts as a failed attempt too. Pure: time is
/// an argument.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pause: Duration,
    /// The time of the first attempt since a stream lived.
    since: Option<Time>,
}

impl Backoff {
    /// A stream lived for `lived`.
    pub(super) fn lived(&mut self, lived: Duration) {
        if lived >= BACKOFF.1 {
            *self = Self::default();
        }
    }

    /// The server said that it stops: there is a pause before the first attempt too.
    pub(super) fn restarting(&mut self) {
        self.pause = self.pause.max(BACKOFF.0);
    }

    /// The pause before the next attempt, which begins `now`. It is shortened by `random`, so that
    /// not all clients come at once.
    pub(super) fn next(&mut self, now: Time, random: u64) -> Duration {
        let since = *self.since.get_or_insert(now);
        let most = if now.since(since) < SOON.0 { SOON.1 } else { BACKOFF.1 };
        // Of the longer half, a random part.
        let part = (random >> 40) as f64 / (1_u64 << 24) as f64;
        let pause = self.pause.mul_f64(0.5 + part / 2.0);
        self.pause = (self.pause * 2).clamp(BACKOFF.0, most);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses from `now` on, over an absence of `away`, of attempts that fail at once.
    fn pauses(backoff: &mut Backoff, now: &mut Time, away: Duration) -> Vec<Duration> {
        let back = *now + away;
        let mut pauses = Vec::new();
        while *now < back {
            let pause = backoff.next(*now, rand::random());
            *now = *now + pause;
            pauses.push(pause);
        }
        pauses
    }

    #[test]
    fn a_server_that_is_soon_back_is_called_soon_and_one_that_is_not_ever_more_rarely() {
        let (mut backoff, mut now) = (Backoff::default(), Time::ZERO);
        let soon = pauses(&mut backoff, &mut now, SOON.0);
        assert_eq!(soon[0], Duration::ZERO, "a stream that lived is replaced at once");
        assert!(soon[1..].iter().all(|pause| (BACKOFF.0 / 2..=SOON.1).contains(pause)), "{soon:?}");
        assert!(soon.len() <= 2 + 2 * (SOON.0.as_millis() / SOON.1.as_millis()) as usize);
        let later = pauses(&mut backoff, &mut now, Duration::from_secs(60));
        assert!(later.iter().any(|pause| *pause > SOON.1 * 2), "{later:?}");
        assert!(later[4..].iter().all(|pause| *pause >= BACKOFF.1 / 2), "{later:?}");
        assert!(later.iter().all(|pause| *pause <= BACKOFF.1), "{later:?}");
    }

    #[test]
    fn streams_that_end_at_once_are_tried_again_more_and_more_slowly() {
        let (mut backoff, mut now) = (Backoff::default(), Time::ZERO);
        let mut last = Duration::ZERO;
        for _ in 0..200 {
            backoff.lived(Duration::from_millis(1));
            last = backoff.next(now, rand::random());
            now = now + last;
        }
        assert!(last >= BACKOFF.1 / 2, "{last:?}");
        backoff.lived(BACKOFF.1);
        assert_eq!(backoff.next(now, rand::random()), Duration::ZERO);
        assert!(backoff.next(now, rand::random()) <= BACKOFF.0, "it begins again");
        assert!(backoff.next(now, rand::random()) <= SOON.1);
    }

    #[test]
    fn a_server_that_said_that_it_stops_is_not_called_at_once() {
        let mut backoff = Backoff::default();
        backoff.restarting();
        assert!((BACKOFF.0 / 2..=BACKOFF.0).contains(&backoff.next(Time::ZERO, rand::random())));
    }
}
