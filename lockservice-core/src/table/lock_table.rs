//! One lock table: its rows, its ranges, its tokens.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};
use std::ops::{Bound, ControlFlow};

use super::call::CallId;
use super::entry::{Entry, Position};
use super::hash::IdMap;
use super::holders::Holder;
use super::idle::{Quiet, Usage};
use super::interval::{IntervalMap, compare};
use super::queue::Queue;
use super::search::address;
use super::steps::step;
use crate::allocator::{Bind, TokenBlock};
use crate::clock::Time;
use crate::error::Blocker;
use crate::id::{FencingToken, TxnId};
use crate::key::{Key, KeyRange, LockItem, LockMode};

/// See the module.
#[derive(Debug)]
pub(super) struct LockTable {
    pub(super) bind: Bind,
    /// Since when the history is known: what was committed before may be unknown (C5). `None`: all
    /// of it is.
    pub(super) history_since: Option<Time>,
    /// Blocks not used up yet, in rising order.
    tokens: VecDeque<TokenBlock>,
    /// The end of the last block.
    tokens_end: FencingToken,
    /// Calls that have all their items and wait for a token, first come first.
    pub(super) awaiting_token: BTreeMap<Position, CallId>,
    /// The largest commit timestamp that an unlock carried.
    pub(super) commit_ts: Option<u64>,
    /// The calls that wait in this table, in queue order.
    pub(super) waiting: BTreeMap<Position, CallId>,
    /// Every call of this table that waits for a lock or a token, or whose outcome was not received
    /// yet.
    pub(super) calls: IdMap<CallId, ()>,
    /// Since when nobody was seen to use it.
    pub(super) quiet: Option<Quiet>,
    rows: BTreeMap<Key, Entry>,
    /// The rows that somebody waits for.
    wanted_rows: BTreeSet<Key>,
    ranges: IntervalMap<Entry>,
}

/// What an entry is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum ItemRef<'a> {
    Row(&'a Key),
    Range(&'a KeyRange),
}

/// What stands between a transaction and an item.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    /// The largest token under which it already has the item, at least as strongly.
    pub(super) covered: Option<FencingToken>,
    /// It has the item, but more weakly: to have it is an upgrade.
    pub(super) upgrade: bool,
    /// A lock of another transaction that is in the way.
    pub(super) held_by: Option<Blocker>,
}

/// One who is in a waiter's way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Obstacle {
    /// Holds an incompatible lock.
    Holder(TxnId),
    /// Waits for one, ahead in the queue.
    Ahead,
}

impl LockTable {
    pub(super) fn new(bind: Bind, tokens: Option<TokenBlock>, history_since: Option<Time>) -> Self {
        let mut table = Self {
            bind,
            history_since,
            tokens: VecDeque::new(),
            tokens_end: FencingToken::new(0),
            awaiting_token: BTreeMap::new(),
            commit_ts: None,
            waiting: BTreeMap::new(),
            calls: IdMap::default(),
            quiet: None,
            rows: BTreeMap::new(),
            wanted_rows: BTreeSet::new(),
            ranges: IntervalMap::new(),
        };
        if let Some(block) = tokens {
            table.add_tokens(block);
        }
        table
    }

    /// Adds a block. What of it lies below an earlier block is left out: tokens only grow (F1).
    pub(super) fn add_tokens(&mut self, mut block: TokenBlock) {
        block.next = block.next.max(self.tokens_end);
        if block.next < block.end {
            self.tokens_end = block.end;
            self.tokens.push_back(block);
        }
    }

    pub(super) fn take_token(&mut self) -> Option<FencingToken> {
        take_token(&mut self.tokens)
    }

    /// The token that the next lock gets, if there is one.
    pub(super) fn next_token(&self) -> FencingToken {
        self.tokens.front().map_or(self.tokens_end, |block| block.next)
    }

    /// What is locked and waited for.
    pub(super) fn usage(&self) -> Usage {
        Usage { items: self.rows.len() + self.ranges.len(), calls: self.calls.len() }
    }

    pub(super) fn tokens_left(&self) -> u64 {
        self.tokens.iter().map(TokenBlock::left).sum()
    }

    pub(super) fn entry(&self, item: &LockItem) -> Option<&Entry> {
        match item {
            LockItem::Row(key) => self.rows.get(key),
            LockItem::Range(range) => self.ranges.get(range),
        }
    }

    pub(super) fn entry_mut(&mut self, item: &LockItem) -> Option<&mut Entry> {
        match item {
            LockItem::Row(key) => self.rows.get_mut(key),
            LockItem::Range(range) => self.ranges.get_mut(range),
        }
    }

    /// The entry of an item, made if it is not there; the caller puts a holder or a waiter into it.
    pub(super) fn entry_or_new(&mut self, item: &LockItem) -> &mut Entry {
        match item {
            LockItem::Row(key) => self.rows.entry(key.clone()).or_default(),
            LockItem::Range(range) => {
                if self.ranges.get(range).is_none() {
                    self.ranges.insert(range.clone(), Entry::default());
                }
                self.ranges.get_mut(range).expect("it was put in if it was not there")
            }
        }
    }

    /// The hot path: puts a holder on a row that nobody holds or waits for, in one look-up. Only
    /// while there are no ranges, which might cover the row. With `token` the holder gets the next
    /// one, if there is one.
    pub(super) fn take_free_row(
        &mut self,
        key: &Key,
        mut holder: Holder,
        token: bool,
    ) -> Option<Option<FencingToken>> {
        if !self.ranges.is_empty() {
            return None;
        }
        let btree_map::Entry::Vacant(free) = self.rows.entry(key.clone()) else { return None };
        let token = if token { take_token(&mut self.tokens) } else { None };
        if let Some(token) = token {
            holder.token = token;
            holder.pending = false;
        }
        free.insert(Entry::held_by(holder));
        Some(token)
    }

    /// Ends a hold, and its entry if that was all.
    pub(super) fn take_hold(&mut self, item: &LockItem, txn: TxnId) -> Option<Holder> {
        match item {
            LockItem::Row(key) => {
                let btree_map::Entry::Occupied(mut entry) = self.rows.entry(key.clone()) else {
                    return None;
                };
                let holder = entry.get_mut().take(txn);
                if entry.get().is_empty() {
                    entry.remove();
                }
                holder
            }
            LockItem::Range(range) => {
                let holder = self.ranges.get_mut(range)?.take(txn);
                self.drop_if_empty(item);
                holder
            }
        }
    }

    /// Removes an entry that has neither holders nor waiters.
    pub(super) fn drop_if_empty(&mut self, item: &LockItem) {
        if self.entry(item).is_some_and(Entry::is_empty) {
            match item {
                LockItem::Row(key) => drop(self.rows.remove(key)),
                LockItem::Range(range) => drop(self.ranges.remove(range)),
            }
        }
    }

    /// Visits every entry that some key shares with `item`: rows first, each kind in key order.
    pub(super) fn overlapping<'a>(
        &'a self,
        item: &LockItem,
        mut visit: impl FnMut(ItemRef<'a>, &'a Entry) -> ControlFlow<()>,
    ) {
        if self.overlapping_rows(item, &mut visit).is_continue() {
            let _ = self.overlapping_ranges(item, &mut visit);
        }
    }

    fn overlapping_rows<'a>(
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
                // `BTreeMap` takes bounds that hold no key at all for a mistake; a `KeyRange`
                // always holds one.
                self.rows
                    .range((range.start().cloned(), range.end().cloned()))
                    .try_for_each(&mut visit)
            }
        }
    }

    fn overlapping_ranges<'a>(
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

    /// As [`overlapping`](Self::overlapping), only the entries that somebody waits for, each with
    /// its queue.
    pub(super) fn overlapping_queues<'a>(
        &'a self,
        item: &LockItem,
        mut visit: impl FnMut(ItemRef<'a>, &'a Queue) -> ControlFlow<()>,
    ) {
        if self.waiting.is_empty() {
            return;
        }
        let mut look = |at, entry: &'a Entry| {
            entry.queue().map_or(ControlFlow::Continue(()), |queue| visit(at, queue))
        };
        let rows = match item {
            LockItem::Row(_) => self.overlapping_rows(item, &mut look),
            LockItem::Range(range) => {
                let mut requested =
                    self.wanted_rows.range((range.start().cloned(), range.end().cloned()));
                requested.try_for_each(|key| {
                    step();
                    self.rows
                        .get(key)
                        .map_or(ControlFlow::Continue(()), |entry| look(ItemRef::Row(key), entry))
                })
            }
        };
        if rows.is_continue() {
            let _ = self.overlapping_ranges(item, &mut look);
        }
    }

    /// As [`overlapping_queues`](Self::overlapping_queues), only those of ranges.
    pub(super) fn overlapping_range_queues<'a>(
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
    pub(super) fn row_queues<'a>(
        &'a self,
        range: &KeyRange,
        most: usize,
        mut visit: impl FnMut(&'a Queue),
    ) -> Option<KeyRange> {
        let mut last = None;
        for key in self.wanted_rows.range((range.start().cloned(), range.end().cloned())).take(most)
        {
            step();
            self.rows.get(key).and_then(Entry::queue).into_iter().for_each(&mut visit);
            last = Some(key);
        }
        // Fails if no key is left between the last one and the end.
        KeyRange::new(Bound::Excluded(last?.clone()), range.end().cloned()).ok()
    }

    /// Puts a call into the queue of an item. It is told of the commits after the one with number
    /// `commits`.
    pub(super) fn enqueue(
        &mut self,
        item: &LockItem,
        position: Position,
        id: CallId,
        mode: LockMode,
        commits: u64,
    ) {
        self.waiting.insert(position, id);
        let entry = self.entry_or_new(item);
        let is_first = entry.queue().is_none();
        entry.enqueue(position, id, mode, commits);
        if let LockItem::Row(key) = item
            && is_first
        {
            self.wanted_rows.insert(key.clone());
        }
    }

    /// Takes a call out of the queue of an item. The largest timestamp of the commits that it is
    /// told of, if there are any.
    pub(super) fn dequeue(
        &mut self,
        item: &LockItem,
        position: Position,
        mode: LockMode,
    ) -> Option<u64> {
        self.waiting.remove(&position);
        let entry = self.entry_mut(item)?;
        let commit_ts = entry.dequeue(position, mode);
        if let LockItem::Row(key) = item
            && entry.queue().is_none()
        {
            self.wanted_rows.remove(key);
        }
        self.drop_if_empty(item);
        commit_ts
    }

    /// As [`overlapping`](Self::overlapping), only the entries after `after`.
    pub(super) fn overlapping_after<'a>(
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

    /// Visits the entries after `after`: rows first, each kind in key order.
    pub(super) fn entries_after<'a>(
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

    /// The entry of an item, with what it is for.
    pub(super) fn entry_at(&self, item: &LockItem) -> Option<(ItemRef<'_>, &Entry)> {
        match item {
            LockItem::Row(key) => {
                self.rows.get_key_value(key).map(|(key, entry)| (ItemRef::Row(key), entry))
            }
            LockItem::Range(range) => self
                .ranges
                .get_key_value(range)
                .map(|(range, entry)| (ItemRef::Range(range), entry)),
        }
    }

    /// Visits every entry.
    pub(super) fn for_each<'a>(&'a self, mut visit: impl FnMut(ItemRef<'a>, &'a Entry)) {
        self.rows.iter().for_each(|(key, entry)| visit(ItemRef::Row(key), entry));
        self.ranges.for_each(&mut |range, entry| visit(ItemRef::Range(range), entry));
    }

    pub(super) fn conflicts(&self, item: &LockItem, txn: TxnId, mode: LockMode) -> Conflicts {
        let mut conflicts = Conflicts::default();
        let mut look = |at: ItemRef<'_>, entry: &Entry| {
            if let Some(own) = entry.holder(txn)
                && at.covers(item)
            {
                if own.mode >= mode {
                    conflicts.covered = conflicts.covered.max(Some(own.token));
                } else {
                    conflicts.upgrade = true;
                }
            }
            if conflicts.held_by.is_none()
                && let Some(holder) = entry.conflicting(txn, mode, None).next()
            {
                conflicts.held_by = Some(holds(at, holder));
            }
            // What others hold excludes that it is covered; an upgrade can still show.
            if conflicts.held_by.is_some() && (conflicts.upgrade || matches!(at, ItemRef::Row(_))) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        // The rows are not looked at to the end once one is in the way: none of them covers a range
        // of several keys.
        let _ = self.overlapping_rows(item, &mut look);
        let _ = self.overlapping_ranges(item, &mut look);
        conflicts
    }

    /// Tells everybody in whose way one of the items stands, which `txn` holds, that it committed
    /// at `ts`; `number` is that of the commit.
    pub(super) fn note_commit(&mut self, txn: TxnId, items: &[LockItem], number: u64, ts: u64) {
        self.commit_ts = self.commit_ts.max(Some(ts));
        if self.waiting.is_empty() {
            return;
        }
        // A queue is told once, however many of the items its waiters want.
        let mut seen = IdMap::default();
        let mut told = Vec::new();
        for item in items {
            let Some(own) = self.entry(item).and_then(|entry| entry.holder(txn)) else { continue };
            self.overlapping_queues(item, |at, queue| {
                if seen
                    .insert((address(queue), u64::from(own.mode == LockMode::Exclusive)), ())
                    .is_none()
                {
                    told.push((at.to_item(), own.mode));
                }
                ControlFlow::Continue(())
            });
        }
        for (item, mode) in told {
            if let Some(queue) = self.entry_mut(&item).and_then(Entry::queue_mut) {
                queue.note_commit(mode, number, ts);
            }
        }
    }

    /// What is in the way of a waiter: a lock of another transaction, or a waiter before
    /// `position`.
    pub(super) fn obstacle(
        &self,
        item: &LockItem,
        txn: TxnId,
        mode: LockMode,
        position: Position,
    ) -> Option<Obstacle> {
        let mut obstacle = None;
        self.overlapping(item, |_, entry| {
            obstacle = match entry.conflicting(txn, mode, None).next() {
                Some(holder) => Some(Obstacle::Holder(holder.txn)),
                None => entry
                    .first_wanting(mode)
                    .filter(|(ahead, _)| *ahead < position)
                    .map(|_| Obstacle::Ahead),
            };
            if obstacle.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        obstacle
    }
}

fn take_token(tokens: &mut VecDeque<TokenBlock>) -> Option<FencingToken> {
    let block = tokens.front_mut()?;
    let token = block.take();
    if block.left() == 0 {
        tokens.pop_front();
    }
    token
}

/// What a holder of an entry is told as; its names are not known here.
pub(super) fn holds(at: ItemRef<'_>, holder: &Holder) -> Blocker {
    let (label, client) = (String::new(), String::new());
    Blocker { txn: holder.txn, item: at.to_item(), mode: holder.mode, granted: true, label, client }
}

impl ItemRef<'_> {
    pub(super) fn to_item(self) -> LockItem {
        match self {
            Self::Row(key) => LockItem::Row(key.clone()),
            Self::Range(range) => LockItem::Range(range.clone()),
        }
    }

    pub(super) fn overlaps(self, item: &LockItem) -> bool {
        match (self, item) {
            (Self::Row(a), LockItem::Row(b)) => a == b,
            (Self::Row(key), LockItem::Range(range)) => range.contains(key),
            (Self::Range(range), LockItem::Row(key)) => range.contains(key),
            (Self::Range(a), LockItem::Range(b)) => a.overlaps(b),
        }
    }

    fn covers(self, item: &LockItem) -> bool {
        match (self, item) {
            (Self::Row(a), LockItem::Row(b)) => a == b,
            (Self::Range(range), LockItem::Row(key)) => range.contains(key),
            (Self::Range(a), LockItem::Range(b)) => a.covers(b),
            (Self::Row(_), LockItem::Range(_)) => self.to_item().covers(item),
        }
    }
}
