//! [`Expected`]: the sessions that are expected back in a table. Pure: time is an argument.

use std::collections::HashSet;

use crate::clock::Time;
use crate::id::HolderMark;

/// The sessions that are expected back.
#[derive(Debug)]
pub(super) struct Expected {
    /// Those that have not claimed everything yet; `None` if it is not known who held something.
    pub(super) holders: Option<HashSet<HolderMark>>,
    /// Those that waited for something in the table, and have not called again.
    pub(super) waiters: HashSet<HolderMark>,
    /// When the last of the holders had claimed: a moment later the table is opened without the
    /// waiters.
    pub(super) claimed_at: Option<Time>,
}

impl Expected {
    pub(super) fn has_holders(&self) -> bool {
        self.holders.as_ref().is_none_or(|holders| !holders.is_empty())
    }

    /// A session has claimed everything or was closed. True if it was the last holder.
    pub(super) fn holder_done(&mut self, mark: HolderMark, now: Time) -> bool {
        let was_expected = self.holders.as_mut().is_some_and(|holders| holders.remove(&mark));
        self.note_claimed(now);
        was_expected && !self.has_holders()
    }

    /// Notes the time if no holder is left to wait for.
    pub(super) fn note_claimed(&mut self, now: Time) {
        if !self.has_holders() {
            self.claimed_at.get_or_insert(now);
        }
    }

    /// A session calls again, or never will. True if nothing is left to wait for.
    pub(super) fn waiter_back(&mut self, mark: HolderMark) -> bool {
        self.waiters.remove(&mark) && self.waiters.is_empty() && !self.has_holders()
    }
}
