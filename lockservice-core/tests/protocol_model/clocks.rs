//! Time as the models see it.
//!
//! Real time goes in ticks, which no process can see. A clock advances by the same number of units
//! each tick: a slow one by 4, a fast one by 5. So two clocks run up to a quarter apart, where
//! `protocol.md` says 1 %, and [`hi`] and [`lo`] have a quarter where it has a hundredth. One unit
//! stands for the 100 ms. The proportions are the same, and a lease is over in ten ticks.
//!
//! States hold ages and remainders, never instants: so there are finitely many of them, and a check
//! covers histories of any length.

/// The units by which a clock advances in a tick.
pub(crate) type Rate = u8;

pub(crate) const SLOW: Rate = 4;
pub(crate) const FAST: Rate = 5;

/// The raw length of a lease, in units.
pub(crate) const TTL: u8 = 20;

/// The longest that a promise of raw length `d` can seem to last on another clock.
pub(crate) const fn hi(d: u8) -> u8 {
    d + d.div_ceil(4) + 1
}

/// The part of a promise of raw length `d` that its receiver may use.
pub(crate) const fn lo(d: u8) -> u8 {
    d.saturating_sub(d.div_ceil(4) + 1)
}

/// The number of ticks since an event, up to a number after which nothing changes any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Age<const MAX: u8>(u8);

impl<const MAX: u8> Age<MAX> {
    pub(crate) const NEW: Self = Self(0);
    pub(crate) const OLD: Self = Self(MAX);

    pub(crate) fn tick(&mut self) {
        self.0 = MAX.min(self.0 + 1);
    }

    /// The same on a clock.
    pub(crate) const fn by(self, rate: Rate) -> u8 {
        self.0 * rate
    }
}
