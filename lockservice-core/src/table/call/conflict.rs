//! The first conflict of a call, of which its grant or its error tells.

use crate::error::Blocker;
use crate::id::TxnId;
use crate::key::{LockItem, LockMode};

/// See the module.
#[derive(Debug)]
pub(in crate::table) struct Conflict {
    pub(super) txn: TxnId,
    mode: LockMode,
    granted: bool,
    /// The index of the call's item that was not free.
    at: usize,
    /// The conflicting item; `None` if it is the same one, as nearly always.
    item: Option<Box<LockItem>>,
}

impl Conflict {
    /// The conflict of `items[at]`.
    pub(super) fn of(blocker: Blocker, items: &[LockItem], at: usize) -> Self {
        let Blocker { txn, item, mode, granted, .. } = blocker;
        let item = (item != items[at]).then(|| Box::new(item));
        Self { txn, mode, granted, at, item }
    }

    /// The item of the other transaction. `items` are those of the call.
    pub(super) fn item(&self, items: &[LockItem]) -> LockItem {
        self.item.as_deref().unwrap_or(&items[self.at]).clone()
    }

    /// Keeps the item of the other transaction, for a call whose items are dropped.
    pub(super) fn keep_item(&mut self, items: &[LockItem]) {
        let item = || items.get(self.at).map(|own| Box::new(own.clone()));
        self.item = self.item.take().or_else(item);
    }

    /// The item that was [kept](Self::keep_item).
    pub(super) fn into_item(self) -> Option<Box<LockItem>> {
        self.item
    }

    /// The conflict as an error tells of it, without names.
    pub(super) fn to_blocker(&self, items: &[LockItem]) -> Blocker {
        let Self { txn, mode, granted, .. } = *self;
        let (label, client) = (String::new(), String::new());
        Blocker { txn, item: self.item(items), mode, granted, label, client }
    }
}
