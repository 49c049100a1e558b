//! [`Planted`]: faults that a test plants into the product, to see that the simulation finds them.
//!
//! A fault is planted for one thread, so a run on one thread has it alone. Without the feature
//! `testing` none can be planted, and the places where they are cost nothing.

use std::cell::Cell;

/// A fault of the product that can be planted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Planted {
    /// An owner does not look at its lease before it grants, responds or promises (B2, P1).
    GrantWithoutLease,
    /// A commit is admitted whatever binds it presents, and whatever became of its origin (C3).
    BindNotChecked,
    /// The locks of a validating transaction go to others before it is made unable to commit, and
    /// nothing else remembers that it is over (P5, C4).
    OrphanReleasedEarly,
    /// The response of an earlier leader counts, and an earlier leader does not stop (L1, L3).
    OldEpochAccepted,
    /// The end of a range wakes nobody.
    LostWakeUp,
    /// A lock that arrives after the end of its transaction brings that back (T3).
    ReplayTakenTwice,
    /// The calls of a session that has ended go on waiting, and are granted.
    WaiterNotFenced,
    /// A table is bound to another while the lease of its owner runs (B3).
    TwoOwners,
    /// A deadlock ends the call of a bystander.
    VictimOutsideCycle,
    /// A block of tokens is drawn twice (F1).
    TokenUsedTwice,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::GrantWithoutLease,
        Self::BindNotChecked,
        Self::OrphanReleasedEarly,
        Self::OldEpochAccepted,
        Self::LostWakeUp,
        Self::ReplayTakenTwice,
        Self::WaiterNotFenced,
        Self::TwoOwners,
        Self::VictimOutsideCycle,
        Self::TokenUsedTwice,
    ];

    /// Plants it for this thread, in place of the one before; `None` ends that.
    pub fn plant(fault: Option<Self>) {
        PLANTED.set(fault);
    }

    pub(crate) fn is_planted(self) -> bool {
        PLANTED.get() == Some(self)
    }
}

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}
