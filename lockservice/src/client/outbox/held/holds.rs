//! [`Holds`]: items with their modes and tokens; the effect of each operation on them.

use std::collections::HashMap;

use lockservice_core::{
    BindVersion, Error, ErrorKind, FencingToken, Key, KeyRange, LockItem, LockMode, Result,
    Sequence, TableRef,
};
use prost::Message as _;

use super::order::in_order;
use super::{ChangeRef, LockGrant};
use crate::convert::{items_from_proto, mode_from_proto, table_from_proto};
use crate::{codec, proto};

/// What a transaction holds.
#[derive(Clone, Debug, Default)]
pub(in crate::client::outbox) struct Holds {
    tables: HashMap<TableRef, TableHolds>,
    /// An operation before could not be read.
    pub(super) is_broken: bool,
}

#[derive(Clone, Debug, Default)]
struct TableHolds {
    rows: HashMap<Key, Hold>,
    /// Few: all of them are looked at.
    ranges: Vec<(KeyRange, Hold)>,
}

/// The hold on one item. An upgrade lies on the hold before it.
#[derive(Clone, Debug)]
struct Hold {
    version: BindVersion,
    /// The largest token of the grants above that have ended while the item stayed locked.
    ended: FencingToken,
    /// By mode: the operation that was granted it, and its token.
    layers: [Option<(Sequence, FencingToken)>; LockMode::ALL.len()],
}

/// An item that is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::client::outbox) struct HeldItem {
    pub(in crate::client::outbox) table: TableRef,
    pub(in crate::client::outbox) item: LockItem,
    pub(in crate::client::outbox) mode: LockMode,
    pub(in crate::client::outbox) token: FencingToken,
    pub(in crate::client::outbox) version: BindVersion,
    /// The operation from which on it was held.
    since: Sequence,
    /// By mode, since when it is held in it.
    beneath: [Option<Sequence>; LockMode::ALL.len()],
}

impl HeldItem {
    /// The mode in which it was held after operation `sequence`; `None` if it was not.
    pub(in crate::client::outbox) fn mode_at(&self, sequence: Sequence) -> Option<LockMode> {
        let was_held =
            |mode: &LockMode| self.beneath[*mode as usize].is_some_and(|since| since <= sequence);
        LockMode::ALL.into_iter().rev().find(was_held)
    }
}

impl Hold {
    fn new(mode: LockMode, grant: &LockGrant, sequence: Sequence) -> Self {
        let mut layers = [None; LockMode::ALL.len()];
        layers[mode as usize] = Some((sequence, grant.token));
        Self { version: grant.version, ended: FencingToken::default(), layers }
    }

    /// The mode in which the item is held; `None` if nothing is left.
    fn mode(&self) -> Option<LockMode> {
        LockMode::ALL.into_iter().rev().find(|mode| self.layers[*mode as usize].is_some())
    }

    fn is_at_least(&self, mode: LockMode) -> bool {
        self.mode() >= Some(mode)
    }

    fn token(&self) -> FencingToken {
        let top = self.layers.iter().rev().find_map(|layer| *layer);
        self.ended.max(top.map_or(FencingToken::default(), |(_, token)| token))
    }

    fn since(&self) -> Sequence {
        let layers = self.layers.iter().flatten().map(|(since, _)| *since);
        layers.min().unwrap_or_default()
    }

    fn upgrade(&mut self, mode: LockMode, grant: &LockGrant, sequence: Sequence) {
        self.layers[mode as usize] = Some((sequence, grant.token));
        self.version = grant.version;
    }

    /// Ends the layers that are not weaker than `mode`, except one in `mode`. The token stays.
    fn downgrade(&mut self, mode: LockMode) {
        if self.mode() <= Some(mode) {
            return;
        }
        self.ended = self.token();
        let lowest = self.layers[mode as usize..].iter_mut().fold(None, |lowest, layer| {
            let layer = layer.take();
            lowest.or(layer)
        });
        self.layers[mode as usize] = lowest;
    }

    /// Ends what was granted after `sequence`. The token stays. False if nothing is left.
    fn end_since(&mut self, sequence: Sequence) -> bool {
        let token = self.token();
        let mut ended = false;
        for layer in &mut self.layers {
            ended |= layer.take_if(|(since, _)| *since > sequence).is_some();
        }
        if ended {
            self.ended = token;
        }
        self.mode().is_some()
    }

    /// Rolls one grant back, on which no caller relies. False if nothing is left.
    fn cancel(&mut self, cancelled: Sequence) -> bool {
        for layer in &mut self.layers {
            layer.take_if(|(since, _)| *since == cancelled);
        }
        self.mode().is_some()
    }
}

impl TableHolds {
    fn get_mut(&mut self, item: &LockItem) -> Option<&mut Hold> {
        match item {
            LockItem::Row(key) => self.rows.get_mut(key),
            LockItem::Range(range) => {
                self.ranges.iter_mut().find(|(held, _)| held == range).map(|(_, hold)| hold)
            }
        }
    }

    fn insert(&mut self, item: LockItem, hold: Hold) {
        match item {
            LockItem::Row(key) => drop(self.rows.insert(key, hold)),
            LockItem::Range(range) => {
                self.ranges.retain(|(held, _)| *held != range);
                self.ranges.push((range, hold));
            }
        }
    }

    fn remove(&mut self, item: &LockItem) {
        match item {
            LockItem::Row(key) => drop(self.rows.remove(key)),
            LockItem::Range(range) => self.ranges.retain(|(held, _)| held != range),
        }
    }

    /// True if an item is held, by itself or in a range, at least in `mode`.
    fn is_covered(&self, item: &LockItem, mode: LockMode) -> bool {
        let row = match (item, item.start()) {
            (LockItem::Row(key), _) => Some(key),
            // A range of one row.
            (LockItem::Range(_), std::ops::Bound::Included(key)) if item.start() == item.end() => {
                Some(key)
            }
            (LockItem::Range(_), _) => None,
        };
        if row.and_then(|key| self.rows.get(key)).is_some_and(|hold| hold.is_at_least(mode)) {
            return true;
        }
        let covers = |range: &KeyRange| match item {
            LockItem::Row(key) => range.contains(key),
            LockItem::Range(other) => range.covers(other),
        };
        self.ranges.iter().any(|(range, hold)| hold.is_at_least(mode) && covers(range))
    }

    fn retain(&mut self, mut is_left: impl FnMut(&mut Hold) -> bool) {
        self.rows.retain(|_, hold| is_left(hold));
        self.ranges.retain_mut(|(_, hold)| is_left(hold));
    }
}

impl Holds {
    pub(super) fn check(&self) -> Result<()> {
        if self.is_broken { Err(unreadable()) } else { Ok(()) }
    }

    /// The effect of one operation.
    pub(super) fn apply(&mut self, sequence: Sequence, change: ChangeRef<'_>) -> Result<()> {
        match change {
            ChangeRef::Lock(message, grant) => self.lock(sequence, message, grant)?,
            ChangeRef::Unlock(message) => {
                let op = proto::UnlockOp::decode(message).map_err(codec::malformed)?;
                if op.rows.is_empty() && op.ranges.is_empty() {
                    // In the place of a call that was given up: it names not even a table.
                    return Ok(());
                }
                if let Some(table) = self.tables.get_mut(&table_from_proto(&op.group, &op.table)?) {
                    for item in items_from_proto(&op.rows, &op.ranges, usize::MAX)? {
                        table.remove(&item);
                    }
                }
            }
            ChangeRef::Downgrade(message) => {
                let op = proto::DowngradeOp::decode(message).map_err(codec::malformed)?;
                let mode = mode_from_proto(op.mode)?;
                if let Some(table) = self.tables.get_mut(&table_from_proto(&op.group, &op.table)?) {
                    for item in items_from_proto(&op.rows, &op.ranges, usize::MAX)? {
                        if let Some(hold) = table.get_mut(&item) {
                            hold.downgrade(mode);
                        }
                    }
                }
            }
            ChangeRef::RollBackTo(to) => self.retain(|hold| hold.end_since(to)),
            ChangeRef::Cancel(cancelled) => self.retain(|hold| hold.cancel(cancelled)),
        }
        Ok(())
    }

    fn retain(&mut self, mut is_left: impl FnMut(&mut Hold) -> bool) {
        self.tables.values_mut().for_each(|table| table.retain(&mut is_left));
    }

    fn lock(&mut self, sequence: Sequence, message: &[u8], grant: &LockGrant) -> Result<()> {
        let op = proto::LockOp::decode(message).map_err(codec::malformed)?;
        let mode = mode_from_proto(op.mode)?;
        let table = self.tables.entry(table_from_proto(&op.group, &op.table)?).or_default();
        let items = in_order(items_from_proto(&op.rows, &op.ranges, usize::MAX)?);
        let rare = grant.rare.as_deref();
        if let Some(range) = rare.and_then(|rare| rare.escalated.as_ref()) {
            table.escalate(range, (mode, sequence), &items, grant);
            return Ok(());
        }
        let skipped = rare.map_or(&[][..], |rare| &rare.skipped);
        for item in items {
            // They came in the order of the rows.
            let is_skipped = item.as_row().is_some_and(|key| skipped.binary_search(key).is_ok());
            if is_skipped || table.is_covered(&item, mode) {
                continue;
            }
            match table.get_mut(&item) {
                Some(hold) => hold.upgrade(mode, grant, sequence),
                None => table.insert(item, Hold::new(mode, grant, sequence)),
            }
        }
        Ok(())
    }

    /// The estimated memory.
    pub(super) fn bytes(&self) -> usize {
        let of_table = |table: &TableHolds| {
            let rows = table.rows.len() * size_of::<(Key, Hold)>();
            rows + table.ranges.len() * size_of::<(KeyRange, Hold)>()
        };
        self.tables.values().map(of_table).sum()
    }

    /// Every item, in the order in which they were locked.
    pub(in crate::client::outbox) fn items(self) -> Vec<HeldItem> {
        let mut items = Vec::new();
        for (table, holds) in self.tables {
            let rows = holds.rows.into_iter().map(|(key, hold)| (LockItem::Row(key), hold));
            let ranges =
                holds.ranges.into_iter().map(|(range, hold)| (LockItem::Range(range), hold));
            for (item, hold) in rows.chain(ranges) {
                let Some(mode) = hold.mode() else { continue };
                let (token, since) = (hold.token(), hold.since());
                let beneath = hold.layers.map(|layer| layer.map(|(since, _)| since));
                let (table, version) = (table.clone(), hold.version);
                items.push(HeldItem { table, item, mode, token, version, since, beneath });
            }
        }
        // What one call was granted stands together, and each replay has the same order.
        items.sort_by(|a, b| {
            let rank = |held: &HeldItem| (held.since, held.token, held.mode);
            rank(a).cmp(&rank(b)).then_with(|| a.table.cmp(&b.table)).then_with(|| {
                match (&a.item, &b.item) {
                    (LockItem::Row(a), LockItem::Row(b)) => a.cmp(b),
                    (a, b) => {
                        let is_range = |item: &LockItem| item.as_row().is_none();
                        (is_range(a), a.to_string()).cmp(&(is_range(b), b.to_string()))
                    }
                }
            })
        });
        items
    }
}

impl TableHolds {
    /// The rows of the table, and what the call was to add, became one range: as strong as each of
    /// the holds that it replaces, and held for as long.
    fn escalate(
        &mut self,
        range: &KeyRange,
        (mut mode, mut since): (LockMode, Sequence),
        items: &[LockItem],
        grant: &LockGrant,
    ) {
        let mut replaced = |hold: &Hold| {
            mode = mode.max(hold.mode().unwrap_or(mode));
            since = since.min(hold.since());
        };
        self.rows.retain(|key, hold| {
            let is_replaced = range.contains(key);
            if is_replaced {
                replaced(hold);
            }
            !is_replaced
        });
        // Those that the call found covered stay, and say nothing that the range does not.
        self.ranges.retain(|(held, hold)| {
            let is_replaced = items.iter().any(|item| *item == LockItem::Range(held.clone()));
            if is_replaced {
                replaced(hold);
            }
            !is_replaced
        });
        self.insert(LockItem::Range(range.clone()), Hold::new(mode, grant, since));
    }
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Internal, "what the transaction holds is not known: please report this")
}
