//! [`Asked`]: the calls that bind tables for claims, as far as their outcome is not known.
//!
//! A stop that resigns names the tables that take claims (`left.rs`): all others may go to any node
//! at once. So it must not resign while the allocator may have bound a table for claims that the
//! service does not know of. Such a table belongs to it, and holders of the incarnation before
//! still count on it.
//!
//! A stop closes the service, then looks here. A call is counted here, then looks whether the
//! service is closed. Of both, one sees the other.

use crate::clock::Time;
use crate::sync::Mutex;

/// See the module. Locked alone.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    /// When all that was promised to holders of tables is over whose calls were cancelled, or
    /// failed.
    unknown_until: Time,
}

/// A call that binds a table for claims.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    asked: &'a Asked,
    until: Time,
    /// It was refused, or not made, or its table is among those that take claims.
    pub(super) is_known: bool,
}

impl Asked {
    /// Counts a call from before it is made. What the holders of its table were promised is over at
    /// `until`.
    pub(super) fn ask(&self, until: Time) -> Asking<'_> {
        self.0.lock().in_flight += 1;
        Asking { asked: self, until, is_known: false }
    }

    /// True if a table may be bound for claims that is not among those that take them.
    pub(super) fn any_unknown(&self, now: Time) -> bool {
        let state = self.0.lock();
        state.in_flight > 0 || now < state.unknown_until
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.asked.0.lock();
        state.in_flight -= 1;
        if !self.is_known {
            state.unknown_until = state.unknown_until.max(self.until);
        }
    }
}
