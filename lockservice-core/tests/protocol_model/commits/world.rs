//! The world of [`commits`](super), and what happens in it.

use super::Rules;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct World {
    pub(super) leader: Leader,
    pub(super) store: Store,
    pub(super) attempts: [Attempt; 2],
    /// The leases of origin and owner are not over.
    pub(super) lease_left: bool,
    /// The lock was given to another.
    pub(super) given: bool,
    /// A party was told that the transaction never commits.
    pub(super) denied: bool,
    pub(super) landed_after_given: bool,
    pub(super) landed_after_denied: bool,
}

/// What the leader knows. A part of it is in the store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Leader {
    /// The bind was closed by a release.
    pub(super) closed: bool,
    /// The owner gives its lease up.
    pub(super) owner_resigns: bool,
    /// The origin gives its lease up.
    pub(super) origin_resigns: bool,
    pub(super) fence: bool,
    pub(super) tombstone: Option<Tombstone>,
    /// A party was told "committing".
    pub(super) closing: bool,
    /// There was no room for the tombstone.
    pub(super) full: bool,
    pub(super) write: Write,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Tombstone {
    InMemory,
    Durable,
}

/// The write of the tombstone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Write {
    None,
    Sent,
    Unknown { landed: bool },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Store {
    pub(super) fence: bool,
    pub(super) tombstone: bool,
}

/// An attempt to commit, as the leader and the party that commits see it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Attempt {
    pub(super) stage: Stage,
    /// The window has not closed.
    pub(super) window: bool,
    /// The party that commits may use the window.
    pub(super) admitted: bool,
    /// It has written its data, or given up.
    pub(super) over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Stage {
    Idle,
    /// The first section is over: its bind is pinned.
    Begun,
    /// The second section is over: its bind was compared.
    Compared,
    InFlight,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Begin(usize),
    Compare(usize),
    Register(usize),
    Extend(usize),
    WindowCloses(usize),
    Land(usize),
    GiveUp(usize),
    Finish(usize),
    LeaderForgets(usize),
    CannotCommit,
    WriteLands,
    WriteIsUnknown { landed: bool },
    WriteIsResolved,
    NoRoomForTombstone,
    OriginIsFencedForRoom,
    OriginSaysItIsOver,
    OriginReleases,
    BindIsClosed,
    BindIsReleased,
    OwnerResigns,
    OwnerHasResigned,
    OriginResigns,
    OriginHasResigned,
    LeaseIsOver,
    LeaseIsOverForAll,
    LeaderChanges { landed: bool },
}

impl Attempt {
    fn close(&mut self) {
        (self.window, self.admitted) = (false, false);
    }
}

impl World {
    fn pinned(&self, rules: &Rules) -> bool {
        // Compared first, a bind is pinned in the second section.
        let from = if rules.c3_pin_first { Stage::Begun } else { Stage::Compared };
        rules.c2_pins && self.attempts.iter().any(|attempt| attempt.stage >= from)
    }

    fn in_flight(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.stage == Stage::InFlight)
    }

    fn check_not_closed(&self, rules: &Rules) -> bool {
        !rules.c3_bind || !self.leader.closed
    }

    fn check_owner(&self, rules: &Rules) -> bool {
        !rules.c3_bind || (!self.leader.owner_resigns && self.lease_left)
    }

    fn check_txn(&self, rules: &Rules) -> bool {
        let tombstoned = rules.c3_tombstone && self.leader.tombstone.is_some();
        let fenced = rules.c3_fence && self.leader.fence;
        !tombstoned && !fenced
    }

    /// An attempt ends at the leader.
    fn end(&mut self, at: usize) {
        self.attempts[at].stage = Stage::Idle;
        if self.leader.closing && !self.in_flight() {
            self.leader.closing = false;
            self.leader.tombstone = Some(Tombstone::InMemory);
        }
    }

    /// The write of the tombstone has landed, and who waited for it is told so.
    fn written(&mut self) {
        self.store.tombstone = true;
        self.leader.tombstone = Some(Tombstone::Durable);
        self.leader.write = Write::None;
        self.denied = true;
    }

    fn close_windows(&mut self, rules: &Rules) {
        if rules.c1 {
            self.attempts.iter_mut().for_each(Attempt::close);
        }
    }

    fn cannot_commit(&mut self, rules: &Rules) -> Option<()> {
        if rules.c4_committing && self.in_flight() {
            self.leader.closing = true;
        } else if self.store.fence || self.leader.tombstone == Some(Tombstone::Durable) {
            self.denied = true;
        } else {
            // Who asks meanwhile waits for the write under way.
            (self.leader.write == Write::None).then_some(())?;
            self.leader.write = Write::Sent;
            if rules.c4_memory_first {
                self.leader.tombstone = Some(Tombstone::InMemory);
            }
            self.denied |= !rules.c4_write_first;
        }
        Some(())
    }

    fn change_leader(&mut self, landed: bool, rules: &Rules) -> Option<()> {
        // The last write of the leader before lands now or never (L2).
        (!landed || self.leader.write == Write::Sent).then_some(())?;
        self.store.tombstone |= landed;
        self.close_windows(rules);
        for attempt in &mut self.attempts {
            attempt.stage = Stage::Idle;
        }
        self.leader = Leader {
            closed: self.given,
            owner_resigns: false,
            origin_resigns: false,
            fence: self.store.fence,
            tombstone: self.store.tombstone.then_some(Tombstone::Durable),
            closing: false,
            full: false,
            write: Write::None,
        };
        Some(())
    }

    /// A step of an attempt, if it can be taken.
    fn attempt(&mut self, step: Step, rules: &Rules) -> Option<()> {
        let may = |condition: bool| condition.then_some(());
        let lease_left = self.lease_left || !rules.c1;
        match step {
            Step::Begin(at) => {
                may(self.attempts[at].stage == Stage::Idle && lease_left)?;
                may(match rules.c3_pin_first {
                    true => self.check_not_closed(rules),
                    false => self.check_owner(rules),
                })?;
                let attempt = &mut self.attempts[at];
                (attempt.stage, attempt.window) = (Stage::Begun, true);
            }
            Step::Compare(at) => {
                may(self.attempts[at].stage == Stage::Begun)?;
                let passes = match rules.c3_pin_first {
                    true => self.check_owner(rules),
                    false => self.check_not_closed(rules),
                };
                let passes = passes && (rules.c3_stripe || self.check_txn(rules));
                self.attempts[at].stage = if passes { Stage::Compared } else { Stage::Idle };
            }
            Step::Register(at) => {
                may(self.attempts[at].stage == Stage::Compared)?;
                let passes = !self.leader.closing && (!rules.c3_stripe || self.check_txn(rules));
                let attempt = &mut self.attempts[at];
                attempt.stage = if passes { Stage::InFlight } else { Stage::Idle };
                attempt.admitted = passes && attempt.window && !attempt.over;
            }
            Step::Extend(at) => {
                may(self.attempts[at].stage == Stage::InFlight && !self.attempts[at].window)?;
                may(!self.leader.closing && lease_left)?;
                may(self.check_not_closed(rules) && self.check_owner(rules))?;
                may(self.check_txn(rules))?;
                let attempt = &mut self.attempts[at];
                (attempt.window, attempt.admitted) = (true, !attempt.over);
            }
            Step::WindowCloses(at) => {
                may(self.attempts[at].window)?;
                self.attempts[at].close();
            }
            Step::Land(at) => {
                let attempt = &mut self.attempts[at];
                may(attempt.admitted && attempt.window)?;
                (attempt.admitted, attempt.over) = (false, true);
                self.landed_after_given |= self.given;
                self.landed_after_denied |= self.denied;
            }
            Step::GiveUp(at) => {
                let attempt = &mut self.attempts[at];
                may(!attempt.over)?;
                (attempt.admitted, attempt.over) = (false, true);
            }
            Step::Finish(at) => {
                may(self.attempts[at].over && self.attempts[at].stage == Stage::InFlight)?;
                self.end(at);
            }
            Step::LeaderForgets(at) => {
                may(self.attempts[at].stage == Stage::InFlight && !self.attempts[at].window)?;
                self.end(at);
            }
            _ => unreachable!("{step:?} is none of an attempt"),
        }
        Some(())
    }

    /// A step of the end of a bind or of an incarnation, if it can be taken.
    fn ending(&mut self, step: Step, rules: &Rules) -> Option<()> {
        let may = |condition: bool| condition.then_some(());
        match step {
            Step::NoRoomForTombstone => {
                may(!self.leader.full && !self.leader.fence)?;
                may(!self.in_flight() && self.leader.tombstone.is_none())?;
                self.leader.full = true;
            }
            Step::OriginIsFencedForRoom => {
                may(self.leader.full)?;
                (self.leader.fence, self.store.fence) = (true, true);
                self.leader.full = false;
                if rules.c4_full && self.in_flight() {
                    self.leader.closing = true;
                } else {
                    self.denied = true;
                }
            }
            Step::OriginSaysItIsOver => {
                may(!rules.c4_stays && self.leader.tombstone == Some(Tombstone::Durable))?;
                self.leader.tombstone = None;
                self.store.tombstone = false;
            }
            Step::OriginReleases => {
                may(self.denied)?;
                self.given = true;
            }
            Step::BindIsClosed => {
                may(!self.leader.closed && !self.pinned(rules))?;
                self.leader.closed = true;
            }
            Step::BindIsReleased => {
                may(self.leader.closed)?;
                self.given = true;
            }
            Step::OwnerResigns => {
                may(!self.leader.owner_resigns)?;
                self.leader.owner_resigns = true;
            }
            Step::OwnerHasResigned => {
                may(self.leader.owner_resigns && !self.pinned(rules))?;
                self.given = true;
            }
            Step::OriginResigns => {
                may(!self.leader.origin_resigns)?;
                (self.leader.origin_resigns, self.leader.fence) = (true, true);
            }
            Step::OriginHasResigned => {
                may(self.leader.origin_resigns && !(rules.c2_own && self.in_flight()))?;
                self.store.fence = true;
                self.given = true;
            }
            Step::LeaseIsOver => {
                may(self.lease_left)?;
                self.lease_left = false;
                self.close_windows(rules);
            }
            Step::LeaseIsOverForAll => {
                may(!self.lease_left)?;
                self.given = true;
            }
            _ => unreachable!("{step:?} is no end"),
        }
        Some(())
    }

    /// Takes a step, if it can be taken.
    pub(super) fn step(&mut self, step: Step, rules: &Rules) -> Option<()> {
        match step {
            Step::CannotCommit => self.cannot_commit(rules),
            Step::WriteLands => (self.leader.write == Write::Sent).then(|| self.written()),
            Step::WriteIsUnknown { landed } => {
                (self.leader.write == Write::Sent).then_some(())?;
                self.leader.write = Write::Unknown { landed };
                self.store.tombstone |= landed;
                if !rules.c4_unknown {
                    self.leader.tombstone = None;
                }
                Some(())
            }
            Step::WriteIsResolved => {
                match self.leader.write {
                    Write::Unknown { landed: true } => self.written(),
                    // It is made again.
                    Write::Unknown { landed: false } => self.leader.write = Write::Sent,
                    Write::None | Write::Sent => return None,
                }
                Some(())
            }
            Step::LeaderChanges { landed } => self.change_leader(landed, rules),
            Step::Begin(_)
            | Step::Compare(_)
            | Step::Register(_)
            | Step::Extend(_)
            | Step::WindowCloses(_)
            | Step::Land(_)
            | Step::GiveUp(_)
            | Step::Finish(_)
            | Step::LeaderForgets(_) => self.attempt(step, rules),
            _ => self.ending(step, rules),
        }
    }
}
