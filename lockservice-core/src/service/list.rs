//! Lists of locks and waits with the names that operators know the transactions by, made slice by slice.

use std::sync::Arc;

use crate::service::{Inner, LockStatus, WaitStatus};
use crate::table;

/// Locks, made in slices; see [`table::LockList`].
#[derive(Debug)]
pub struct LockList {
    pub(super) inner: Arc<Inner>,
    /// `None` if the table that was asked for is not served here.
    pub(super) list: Option<table::LockList>,
}

/// Waits, made in slices; see [`table::WaitList`].
#[derive(Debug)]
pub struct WaitList {
    pub(super) inner: Arc<Inner>,
    /// `None` if the table that was asked for is not served here.
    pub(super) list: Option<table::WaitList>,
}

impl LockList {
    /// The next locks, at most `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<LockStatus>> {
        let slice = self.list.as_mut()?.next_slice(most)?;
        let named = slice.into_iter().map(|info| {
            let (label, client) = self.inner.names(info.txn);
            LockStatus { info, label, client }
        });
        Some(named.collect())
    }
}

impl WaitList {
    /// The next waits, at most `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<WaitStatus>> {
        let slice = self.list.as_mut()?.next_slice(most)?;
        let now = self.inner.parts.clock.now();
        let named = slice.into_iter().map(|info| {
            let (waiter_label, waiter_client) = self.inner.names(info.waiter);
            let (holder_label, holder_client) = self.inner.names(info.holder);
            let waiting = now.since(info.since);
            WaitStatus { info, waiting, waiter_label, waiter_client, holder_label, holder_client }
        });
        Some(named.collect())
    }
}
