//! [`Backoff`]: the pauses between attempts to connect again.

use std::time::Duration;

/// The first and the longest pause between two attempts to connect again.
///
/// The longest is short: after a restart of a server the locks of its tables go to others when all
/// that were held are claimed (P6).
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// The pauses between attempts to connect again: none before the first, then longer and longer
/// ones. A stream that was welcomed and ends at once counts as a failed attempt too.
#[derive(Debug, Default)]
pub(super) struct Backoff(Duration);

impl Backoff {
    /// A stream lived for `lived`.
    pub(super) fn lived(&mut self, lived: Duration) {
        if lived >= BACKOFF.1 {
            self.0 = Duration::ZERO;
        }
    }

    /// The server said that it stops: there is a pause before the first attempt too.
    pub(super) fn restarting(&mut self) {
        self.0 = self.0.max(BACKOFF.0);
    }

    /// The pause before the next attempt. It is shortened at random, so that not all clients come
    /// at once.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.0));
        self.0 = (self.0 * 2).clamp(BACKOFF.0, BACKOFF.1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_end_at_once_are_tried_again_more_and_more_slowly() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(), Duration::ZERO, "a stream that lived is replaced at once");
        let mut waited = Duration::ZERO;
        for _ in 0..20 {
            backoff.lived(Duration::from_millis(1));
            waited += backoff.next();
        }
        assert!(waited >= BACKOFF.1 * 6, "{waited:?}");
        backoff.lived(BACKOFF.1);
        assert_eq!(backoff.next(), Duration::ZERO);
    }

    #[test]
    fn a_server_that_said_that_it_stops_is_not_called_at_once() {
        let mut backoff = Backoff::default();
        backoff.restarting();
        assert!((BACKOFF.0 / 2..=BACKOFF.0).contains(&backoff.next()));
    }
}
