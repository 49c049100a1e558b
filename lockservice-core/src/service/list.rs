//! Lists of locks and waits with the names that operators know the transactions by, made slice by
//! slice.

use std::sync::Arc;

use crate::id::TableRef;
use crate::service::tables::line::LinePosition;
use crate::service::{LockStatus, ServiceInner, WaitStatus};
use crate::table::{self, WaitInfo};

/// Locks, made in slices; see [`table::LockList`].
#[derive(Debug)]
pub struct LockList {
    pub(in crate::service) inner: Arc<ServiceInner>,
    /// `None` if the requested table is not served here.
    pub(in crate::service) list: Option<table::LockList>,
}

/// Waits, made in slices; see [`table::WaitList`].
#[derive(Debug)]
pub struct WaitList {
    inner: Arc<ServiceInner>,
    only: Option<TableRef>,
    /// The lines of the engine; `None` at their end, or if the requested table is not served here.
    list: Option<table::WaitList>,
    /// Then those who wait for a table to be bound here: the last one that was listed.
    at: Option<(TableRef, LinePosition)>,
    over: bool,
}

impl LockList {
    /// The next locks, at most `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<LockStatus>> {
        let slice = self.list.as_mut()?.next_slice(most)?;
        let named = slice.into_iter().map(|info| {
            let (label, client) = self.inner.names(info.txn);
            let still_running = self.inner.still_running(info.txn);
            LockStatus { info, label, client, still_running }
        });
        Some(named.collect())
    }
}

impl WaitList {
    pub(in crate::service) fn new(
        inner: Arc<ServiceInner>,
        list: Option<table::WaitList>,
        only: Option<TableRef>,
    ) -> Self {
        Self { inner, only, list, at: None, over: false }
    }

    /// The next waits, at most `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<WaitStatus>> {
        if let Some(slice) = self.list.as_mut().and_then(|list| list.next_slice(most)) {
            let named = slice.into_iter().map(|info| {
                let holder = self.inner.names(info.holder);
                self.status(info, holder)
            });
            return Some(named.collect());
        }
        self.list = None;
        if self.over {
            return None;
        }
        let slice = self.inner.tables.standing(self.only.as_ref(), self.at.as_ref(), most.max(1));
        match slice.last() {
            Some(last) => self.at = Some((last.info.table.clone(), last.position)),
            None => self.over = true,
        }
        let named = slice.into_iter().map(|standing| {
            let holder = match standing.node {
                Some(node) => ("the last owner of the table".to_owned(), node.to_string()),
                None => ("the allocator, which binds the table".to_owned(), String::new()),
            };
            self.status(standing.info, holder)
        });
        Some(named.collect())
    }

    fn status(
        &self,
        info: WaitInfo,
        (holder_label, holder_client): (String, String),
    ) -> WaitStatus {
        let (waiter_label, waiter_client) = self.inner.names(info.waiter);
        let waiting = self.inner.parts.env.now().since(info.since);
        WaitStatus { info, waiting, waiter_label, waiter_client, holder_label, holder_client }
    }
}
