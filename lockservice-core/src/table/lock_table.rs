//! One lock table: its rows, its ranges, its tokens.

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::ControlFlow;

use super::call::CallId;
use super::entry::{Entry, Holder, Place};
use super::interval::IntervalMap;
use crate::allocator::{Bind, TokenBlock};
use crate::id::{FencingToken, TxnId};
use crate::key::{Key, KeyRange, LockItem, LockMode};

/// See the module.
#[derive(Debug)]
pub(super) struct LockTable {
    pub(super) bind: Bind,
    /// What was granted before this owner took over is unknown to every transaction that is not later than this one (C5).
    pub(super) known_after: Option<TxnId>,
    /// Blocks not used up yet, in rising order.
    tokens: VecDeque<TokenBlock>,
    /// The end of the last block.
    tokens_end: FencingToken,
    /// Calls that have all their items and wait for a token, first come first.
    pub(super) starved: VecDeque<CallId>,
    /// The largest commit timestamp that an unlock carried.
    pub(super) commit_ts: Option<u64>,
    /// How many calls wait in this table.
    pub(super) waiting: usize,
    rows: BTreeMap<Key, Entry>,
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
pub(super) struct Survey {
    /// The largest token under which it already has the item, at least as strongly.
    pub(super) covered: Option<FencingToken>,
    /// It has the item, but more weakly: to have it is an upgrade.
    pub(super) upgrade: bool,
    /// A lock of another transaction that is in the way.
    pub(super) held_by: Option<(TxnId, LockItem)>,
}

impl LockTable {
    pub(super) fn new(bind: Bind, tokens: Option<TokenBlock>, known_after: Option<TxnId>) -> Self {
        let mut table = Self {
            bind,
            known_after,
            tokens: VecDeque::new(),
            tokens_end: FencingToken::new(0),
            starved: VecDeque::new(),
            commit_ts: None,
            waiting: 0,
            rows: BTreeMap::new(),
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

    /// The hot path: puts a holder on a row that nobody holds or waits for, in one look-up. Only while there are no ranges, which might cover
    /// the row. With `token` the holder gets the next one, if there is one.
    pub(super) fn take_free_row(&mut self, key: &Key, mut holder: Holder, token: bool) -> Option<Option<FencingToken>> {
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
                let btree_map::Entry::Occupied(mut entry) = self.rows.entry(key.clone()) else { return None };
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
        let _ = match item {
            LockItem::Row(key) => match self.rows.get_key_value(key) {
                Some((key, entry)) => visit(ItemRef::Row(key), entry),
                None => ControlFlow::Continue(()),
            },
            LockItem::Range(range) => {
                // `BTreeMap` takes bounds that hold no key at all for a mistake; a `KeyRange` always holds one.
                let mut rows = self.rows.range((range.start().cloned(), range.end().cloned()));
                rows.try_for_each(|(key, entry)| visit(ItemRef::Row(key), entry))
            }
        }
        .is_continue()
            && !self.ranges.is_empty()
            && self
                .ranges
                .overlapping(item.start(), item.end(), &mut |range, entry| visit(ItemRef::Range(range), entry))
                .is_continue();
    }

    /// Visits every entry.
    pub(super) fn for_each<'a>(&'a self, mut visit: impl FnMut(ItemRef<'a>, &'a Entry)) {
        self.rows.iter().for_each(|(key, entry)| visit(ItemRef::Row(key), entry));
        self.ranges.for_each(&mut |range, entry| visit(ItemRef::Range(range), entry));
    }

    pub(super) fn survey(&self, item: &LockItem, txn: TxnId, mode: LockMode) -> Survey {
        let mut survey = Survey::default();
        self.overlapping(item, |at, entry| {
            if let Some(own) = entry.holder(txn)
                && at.covers(item)
            {
                if own.mode >= mode {
                    survey.covered = survey.covered.max(Some(own.token));
                } else {
                    survey.upgrade = true;
                }
            }
            if survey.held_by.is_none()
                && let Some(holder) = entry.in_the_way(txn, mode).next()
            {
                survey.held_by = Some((holder.txn, at.to_item()));
            }
            ControlFlow::Continue(())
        });
        survey
    }

    /// True if somebody waits for an item that overlaps this one, in a mode incompatible with `mode`.
    pub(super) fn is_wanted(&self, item: &LockItem, mode: LockMode) -> bool {
        let mut wanted = false;
        self.overlapping(item, |_, entry| {
            wanted = entry.wanted_by(mode).next().is_some();
            if wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        wanted
    }

    /// True if a lock of another transaction, or a waiter before `place`, is in the way.
    pub(super) fn is_blocked(&self, item: &LockItem, txn: TxnId, mode: LockMode, place: Place) -> bool {
        let mut blocked = false;
        self.overlapping(item, |_, entry| {
            blocked = entry.in_the_way(txn, mode).next().is_some() || entry.ahead(mode, place).next().is_some();
            if blocked { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        blocked
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

impl ItemRef<'_> {
    pub(super) fn to_item(self) -> LockItem {
        match self {
            Self::Row(key) => LockItem::Row(key.clone()),
            Self::Range(range) => LockItem::Range(range.clone()),
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
