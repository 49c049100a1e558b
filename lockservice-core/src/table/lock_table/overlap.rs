//! Visits of the entries that overlap an item: they share a key with it.

use std::ops::{Bound, ControlFlow};

use super::LockTable;
use crate::key::{Key, KeyRange, LockItem};
use crate::table::entry::Entry;
use crate::table::interval::compare;
use crate::table::queue::Queue;
use crate::table::steps::step;

/// The item of an entry.
#[derive(Clone, Copy, Debug)]
pub(in crate::table) enum ItemRef<'a> {
    Row(&'a Key),
    Range(&'a KeyRange),
}

impl LockTable {
    /// Visits the entries that overlap `item`: rows first, each kind in key order.
    pub(in crate::table) fn overlapping<'a>(
        &'a self,
        item: &LockItem,
        mut visit: impl FnMut(ItemRef<'a>, &'a Entry) -> ControlFlow<()>,
    ) {
        if self.overlapping_rows(item, &mut visit).is_continue() {
            let _ = self.overlapping_ranges(item, &mut visit);
        }
    }

    /// Like [`overlapping`](Self::overlapping), for a caller that has the entry of exactly `item`:
    /// another look-up of a row would take as long as all the rest.
    pub(in crate::table) fn overlapping_from<'a>(
        &'a self,
        item: &'a LockItem,
        own: Option<&'a Entry>,
        mut visit: impl FnMut(ItemRef<'a>, &'a Entry) -> ControlFlow<()>,
    ) {
        let LockItem::Row(key) = item else { return self.overlapping(item, visit) };
        step();
        if own.is_none_or(|entry| visit(ItemRef::Row(key), entry).is_continue()) {
            let _ = self.overlapping_ranges(item, &mut visit);
        }
    }

    /// Like [`overlapping`](Self::overlapping), but only the entries after `after`.
    pub(in crate::table) fn overlapping_after<'a>(
        &'a self,
        item: &LockItem,
        after: Option<&LockItem>,
        mut visit: impl FnMut(ItemRef<'a>, &'a Entry) -> ControlFlow<()>,
    ) {
        let rows = match (item, after) {
            (_, None) => self.overlapping_rows(item, &mut visit),
            (LockItem::Range(range), Some(LockItem::Row(key))) if range.contains(key) => {
                let rest = (Bound::Excluded(key.clone()), range.end().cloned());
                self.rows.range(rest).try_for_each(|(key, entry)| {
                    step();
                    visit(ItemRef::Row(key), entry)
                })
            }
            _ => ControlFlow::Continue(()),
        };
        if rows.is_continue() {
            let _ = self.overlapping_ranges(item, &mut |at, entry| match (at, after) {
                (ItemRef::Range(range), Some(LockItem::Range(after)))
                    if compare(range, after).is_le() =>
                {
                    ControlFlow::Continue(())
                }
                _ => visit(at, entry),
            });
        }
    }

    pub(super) fn overlapping_rows<'a>(
        &'a self,
        item: &LockItem,
        visit: &mut impl FnMut(ItemRef<'a>, &'a Entry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut visit = |(key, entry)| {
            step();
            visit(ItemRef::Row(key), entry)
        };
        match item {
            LockItem::Row(key) => {
                self.rows.get_key_value(key).map_or(ControlFlow::Continue(()), visit)
            }
            LockItem::Range(range) => {
                // `BTreeMap` panics for bounds without a key between them. A `KeyRange` always has
                // one.
                self.rows
                    .range((range.start().cloned(), range.end().cloned()))
                    .try_for_each(&mut visit)
            }
        }
    }

    pub(super) fn overlapping_ranges<'a>(
        &'a self,
        item: &LockItem,
        visit: &mut impl FnMut(ItemRef<'a>, &'a Entry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.ranges.is_empty() {
            return ControlFlow::Continue(());
        }
        self.ranges.overlapping(item.start(), item.end(), &mut |range, entry| {
            step();
            visit(ItemRef::Range(range), entry)
        })
    }

    /// Like [`overlapping`](Self::overlapping), but only the entries with a queue. `visit` gets the
    /// queue.
    pub(in crate::table) fn overlapping_queues<'a>(
        &'a self,
        item: &LockItem,
        mut visit: impl FnMut(ItemRef<'a>, &'a Queue) -> ControlFlow<()>,
    ) {
        if self.waiting.is_empty() {
            return;
        }
        let mut visit_queue = |at, entry: &'a Entry| {
            entry.queue().map_or(ControlFlow::Continue(()), |queue| visit(at, queue))
        };
        let rows = match item {
            LockItem::Row(_) => self.overlapping_rows(item, &mut visit_queue),
            LockItem::Range(range) => {
                let mut requested =
                    self.awaited_rows.range((range.start().cloned(), range.end().cloned()));
                requested.try_for_each(|key| {
                    step();
                    self.rows.get(key).map_or(ControlFlow::Continue(()), |entry| {
                        visit_queue(ItemRef::Row(key), entry)
                    })
                })
            }
        };
        if rows.is_continue() {
            let _ = self.overlapping_ranges(item, &mut visit_queue);
        }
    }

    /// Like [`overlapping_queues`](Self::overlapping_queues), but only those of ranges.
    pub(in crate::table) fn overlapping_range_queues<'a>(
        &'a self,
        item: &LockItem,
        mut visit: impl FnMut(&'a Queue),
    ) {
        let _ = self.overlapping_ranges(item, &mut |_, entry| {
            entry.queue().into_iter().for_each(&mut visit);
            ControlFlow::Continue(())
        });
    }

    /// Visits the queues of at most `most` rows of a range, the first ones. Returns the rest of the
    /// range if there may be more of them.
    pub(in crate::table) fn row_queues<'a>(
        &'a self,
        range: &KeyRange,
        most: usize,
        mut visit: impl FnMut(&'a Queue),
    ) -> Option<KeyRange> {
        let mut last = None;
        for key in
            self.awaited_rows.range((range.start().cloned(), range.end().cloned())).take(most)
        {
            step();
            self.rows.get(key).and_then(Entry::queue).into_iter().for_each(&mut visit);
            last = Some(key);
        }
        // This fails if there is no key between the last one and the end.
        KeyRange::new(Bound::Excluded(last?.clone()), range.end().cloned()).ok()
    }

    /// Visits the entries after `after`: rows first, each kind in key order.
    pub(in crate::table) fn entries_after<'a>(
        &'a self,
        after: Option<&LockItem>,
        mut visit: impl FnMut(ItemRef<'a>, &'a Entry) -> ControlFlow<()>,
    ) {
        let (row, range) = match after {
            None => (Some(Bound::Unbounded), None),
            Some(LockItem::Row(key)) => (Some(Bound::Excluded(key)), None),
            Some(LockItem::Range(range)) => (None, Some(range)),
        };
        let rows =
            row.into_iter().flat_map(|row| self.rows.range::<Key, _>((row, Bound::Unbounded)));
        for (key, entry) in rows {
            step();
            if visit(ItemRef::Row(key), entry).is_break() {
                return;
            }
        }
        let _ = self.ranges.after(range, &mut |range, entry| {
            step();
            visit(ItemRef::Range(range), entry)
        });
    }

    /// Visits every entry.
    pub(in crate::table) fn for_each<'a>(&'a self, mut visit: impl FnMut(ItemRef<'a>, &'a Entry)) {
        self.rows.iter().for_each(|(key, entry)| visit(ItemRef::Row(key), entry));
        self.ranges.for_each(&mut |range, entry| visit(ItemRef::Range(range), entry));
    }
}

impl ItemRef<'_> {
    pub(in crate::table) fn to_item(self) -> LockItem {
        match self {
            Self::Row(key) => LockItem::Row(key.clone()),
            Self::Range(range) => LockItem::Range(range.clone()),
        }
    }

    pub(in crate::table) fn overlaps(self, item: &LockItem) -> bool {
        match (self, item) {
            (Self::Row(a), LockItem::Row(b)) => a == b,
            (Self::Row(key), LockItem::Range(range)) => range.contains(key),
            (Self::Range(range), LockItem::Row(key)) => range.contains(key),
            (Self::Range(a), LockItem::Range(b)) => a.overlaps(b),
        }
    }

    pub(super) fn covers(self, item: &LockItem) -> bool {
        match (self, item) {
            (Self::Row(a), LockItem::Row(b)) => a == b,
            (Self::Range(range), LockItem::Row(key)) => range.contains(key),
            (Self::Range(a), LockItem::Range(b)) => a.covers(b),
            (Self::Row(_), LockItem::Range(_)) => self.to_item().covers(item),
        }
    }
}
