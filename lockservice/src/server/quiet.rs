//! [`QuietOps`]: the quiet operations of one stream, which are acknowledged by their number.

use std::collections::BTreeSet;

/// The place of a quiet operation among those of its stream, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct QuietPlace(u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct QuietOps {
    arrived: u64,
    /// Those that wait: for the call of their transaction that is decided.
    waiting: BTreeSet<QuietPlace>,
}

impl QuietOps {
    /// One more has arrived. It counts as done, unless it [waits](Self::wait).
    pub(super) fn arrive(&mut self) -> QuietPlace {
        self.arrived += 1;
        QuietPlace(self.arrived)
    }

    /// It could not be decided at once.
    pub(super) fn wait(&mut self, place: QuietPlace) {
        self.waiting.insert(place);
    }

    /// It was decided after its wait.
    pub(super) fn decided(&mut self, place: QuietPlace) {
        self.waiting.remove(&place);
    }

    /// How many of the first ones are done.
    pub(super) fn done(&self) -> u64 {
        self.waiting.first().map_or(self.arrived, |first| first.0 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_waits_holds_up_the_acknowledgement_of_those_after_it() {
        let mut ops = QuietOps::default();
        assert_eq!(ops.done(), 0);
        let places: Vec<_> = (0..5).map(|_| ops.arrive()).collect();
        assert_eq!(ops.done(), 5);
        ops.wait(places[1]);
        ops.wait(places[3]);
        assert_eq!(ops.done(), 1);
        ops.decided(places[3]);
        assert_eq!(ops.done(), 1);
        ops.decided(places[1]);
        assert_eq!(ops.done(), 5);
    }
}
