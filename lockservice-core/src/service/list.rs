//! Lists of locks and waits with what operators know of the transactions, made slice by slice.

use std::sync::Arc;

use crate::id::{FencingToken, TableRef};
use crate::service::tables::line::{LinePosition, StandingFilter, StandingSlice};
use crate::service::{LockStatus, ServiceInner, TxnParty, WaitStatus};
use crate::table::{self, LockInfo, WaitInfo};

/// Locks, made in slices; see [`table::LockList`].
#[derive(Debug)]
pub struct LockList {
    inner: Arc<ServiceInner>,
    list: LockLines,
}

/// The lines of a list of locks.
#[derive(Debug)]
enum LockLines {
    /// Of a table, or of all.
    Tables(table::LockList),
    /// Of a row: at the engine, then those who wait for its table.
    Row(table::RowList, StandingList),
    Standing(StandingList),
    /// The list is at its end, or the requested table is not served here.
    Over,
}

/// Waits, made in slices; see [`table::WaitList`].
#[derive(Debug)]
pub struct WaitList {
    inner: Arc<ServiceInner>,
    /// The lines of the engine; `None` at their end, or if the requested table is not served here.
    list: Option<table::WaitList>,
    /// The lines after them.
    standing: StandingList,
}

/// Those who wait for a table to be bound here, made in slices.
#[derive(Debug)]
struct StandingList {
    filter: StandingFilter,
    /// The last one that was looked at.
    at: Option<(TableRef, LinePosition)>,
    over: bool,
}

impl StandingList {
    fn new(filter: StandingFilter) -> Self {
        Self { filter, at: None, over: false }
    }

    /// The next calls, perhaps none; `None` at the end.
    fn next_slice(&mut self, inner: &ServiceInner, most: usize) -> Option<StandingSlice> {
        if self.over {
            return None;
        }
        let slice = inner.tables.standing(&self.filter, self.at.as_ref(), most.max(1));
        match &slice.last {
            Some(last) => self.at = Some(last.clone()),
            None => self.over = true,
        }
        Some(slice)
    }
}

impl LockList {
    /// The locks of a table, or of all.
    pub(in crate::service) fn new(inner: Arc<ServiceInner>, list: Option<table::LockList>) -> Self {
        Self { inner, list: list.map_or(LockLines::Over, LockLines::Tables) }
    }

    /// The locks and the waiters of a row.
    pub(in crate::service) fn of_row(
        inner: Arc<ServiceInner>,
        list: Option<table::RowList>,
        filter: StandingFilter,
    ) -> Self {
        let standing = StandingList::new(filter);
        let list = match list {
            Some(list) => LockLines::Row(list, standing),
            None => LockLines::Standing(standing),
        };
        Self { inner, list }
    }

    /// The next locks, at most `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<LockStatus>> {
        let slice = match &mut self.list {
            LockLines::Tables(list) => list.next_slice(most),
            LockLines::Row(list, _) => list.next_slice(most),
            LockLines::Standing(list) => list.next_slice(&self.inner, most).map(|slice| {
                slice.calls.into_iter().map(|standing| in_line(standing.info)).collect()
            }),
            LockLines::Over => None,
        };
        let Some(slice) = slice else {
            return match std::mem::replace(&mut self.list, LockLines::Over) {
                LockLines::Row(_, standing) => {
                    self.list = LockLines::Standing(standing);
                    self.next_slice(most)
                }
                _ => None,
            };
        };
        Some(slice.into_iter().map(|info| self.status(info)).collect())
    }

    fn status(&self, info: LockInfo) -> LockStatus {
        let party = self.inner.party(info.txn);
        let now = || self.inner.parts.env.now();
        let waiting = info.waiting_since.map(|since| now().since(since));
        LockStatus { info, party, waiting }
    }
}

/// The line of a call that waits for its table.
fn in_line(wait: WaitInfo) -> LockInfo {
    LockInfo {
        table: wait.table,
        item: wait.item,
        mode: wait.mode,
        txn: wait.waiter,
        token: FencingToken::default(),
        pending: false,
        waiters: 0,
        waiting_since: Some(wait.since),
    }
}

impl WaitList {
    pub(in crate::service) fn new(
        inner: Arc<ServiceInner>,
        list: Option<table::WaitList>,
        table: Option<TableRef>,
    ) -> Self {
        let standing = StandingList::new(StandingFilter { table, item: None });
        Self { inner, list, standing }
    }

    /// The next waits, at most `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<WaitStatus>> {
        if let Some(slice) = self.list.as_mut().and_then(|list| list.next_slice(most)) {
            let named = slice.into_iter().map(|info| {
                let holder = self.inner.party(info.holder);
                self.status(info, holder)
            });
            return Some(named.collect());
        }
        self.list = None;
        let slice = self.standing.next_slice(&self.inner, most)?;
        let named = slice.calls.into_iter().map(|standing| {
            let (label, client) = match standing.node {
                Some(node) => ("the last owner of the table".to_owned(), node.to_string()),
                None => ("the allocator, which binds the table".to_owned(), String::new()),
            };
            self.status(standing.info, TxnParty { label, client, ..TxnParty::default() })
        });
        Some(named.collect())
    }

    fn status(&self, info: WaitInfo, holder: TxnParty) -> WaitStatus {
        let waiter = self.inner.party(info.waiter);
        let waiting = self.inner.parts.env.now().since(info.since);
        WaitStatus { info, waiting, waiter, holder }
    }
}
