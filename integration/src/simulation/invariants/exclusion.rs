//! Never two holders that exclude each other, by what each may believe (P1, P2, P5, B2, B3).

use std::collections::BTreeMap;

use lockservice_core::{FencingToken, LockItem, LockMode, TableRef};

use super::Belief;

/// The number of a hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HoldId(u64);

/// What a client believes to hold.
#[derive(Debug)]
pub struct Hold {
    /// The client, and its transaction.
    pub who: String,
    /// The table.
    pub table: TableRef,
    /// The row or range.
    pub item: LockItem,
    /// In this mode.
    pub mode: LockMode,
    /// Under this token.
    pub token: FencingToken,
    /// Until when.
    pub belief: Belief,
}

#[derive(Debug, Default)]
pub(super) struct Holds {
    next: u64,
    holds: BTreeMap<HoldId, Hold>,
}

impl Holds {
    pub(super) fn granted(&mut self, hold: Hold) -> (HoldId, Result<(), String>) {
        // Those that nobody can believe in any more.
        self.holds.retain(|_, other| other.belief.holds());
        let other = self.holds.values().find(|other| {
            other.who != hold.who
                && other.table == hold.table
                && other.item.overlaps(&hold.item)
                && !other.mode.is_compatible(hold.mode)
        });
        let result = match other {
            // One that comes too late is given back by the product, and not believed in.
            Some(other) if hold.belief.holds() => Err(format!(
                "two holders: {} holds {}:{} {:?} under {}, and {} was granted {} {:?} under {}",
                other.who,
                other.table,
                other.item,
                other.mode,
                other.token,
                hold.who,
                hold.item,
                hold.mode,
                hold.token
            )),
            _ => Ok(()),
        };
        self.next += 1;
        let id = HoldId(self.next);
        self.holds.insert(id, hold);
        (id, result)
    }

    pub(super) fn released(&mut self, id: HoldId) {
        self.holds.remove(&id);
    }
}
