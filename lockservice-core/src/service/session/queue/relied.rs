//! [`Relied`]: what a grant says is held although an earlier call of its transaction added it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::id::TableId;
use crate::key::{Key, LockItem};
use crate::service::Granted;
use crate::table::{Grant, Savepoint};

/// Comparing more pairs than this for one `Cancel` is not worth the time: then the rest is kept.
pub(in crate::service) const RELIED_PAIRS_MAX: usize = 1 << 20;

/// The items of a call that was granted, and their table.
#[derive(Debug, Clone)]
pub(in crate::service) struct Relied {
    table: TableId,
    pub(super) items: Arc<[LockItem]>,
    /// A savepoint is gone back to before the call, if it is below this.
    pub(super) end: Savepoint,
}

impl Relied {
    /// The items that `granted` covers without having added them, if there are any. `items` are the
    /// requested ones. Upgraded items are not among the result: an upgrade stands without the hold
    /// beneath it.
    pub(in crate::service) fn of(
        granted: &Granted,
        items: &[LockItem],
        end: Savepoint,
    ) -> Option<Self> {
        let (table, changes) = (granted.grant.bind.id, &granted.grant.owner.changes);
        if changes.len() >= items.len() {
            return None;
        }
        let changed: HashSet<&LockItem> = changes.iter().map(|change| &change.item).collect();
        let skipped: HashSet<&Key> = granted.grant.skipped.iter().collect();
        let is_relied_on = |item: &&LockItem| {
            !changed.contains(item) && !item.as_row().is_some_and(|row| skipped.contains(row))
        };
        let items: Arc<[LockItem]> = items.iter().filter(is_relied_on).cloned().collect();
        (!items.is_empty()).then_some(Self { table, items, end })
    }
}

/// Leaves out of a roll-back the items on which the response of a later call of the transaction
/// relies. They go when that call is rolled back, or with the transaction's end. This may take a
/// while: no caller may hold a lock. `pairs` is the number of comparisons that are left to the
/// operation, over all of its grants.
pub(in crate::service) fn keep_relied_on(grant: &mut Grant, later: &[Relied], pairs: &mut usize) {
    for relied in later.iter().filter(|relied| relied.table == grant.bind.id) {
        let cost = grant.owner.changes.len().saturating_mul(relied.items.len());
        let too_many = cost > *pairs;
        *pairs = pairs.saturating_sub(cost);
        grant.owner.changes.retain(|change| {
            !too_many && !relied.items.iter().any(|item| item.overlaps(&change.item))
        });
    }
}
