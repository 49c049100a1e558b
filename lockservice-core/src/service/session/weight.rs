//! The estimated memory of an operation of a session, or of its response. The constant covers the
//! heap blocks of names, which are shared, and the slack of collections.

use std::ops::Bound;

use crate::error::Error;
use crate::key::{Key, LockItem};
use crate::service::{LockSpec, OpResponse, Operation};
use crate::table::{Grant, ItemGrant};

/// The memory of every operation of any kind: its places in the queue's maps, its waiting callers,
/// its response without items.
pub(in crate::service) const OPERATION: usize = 512;

/// Keys up to this length lie in their items.
const KEY_INLINE_MAX: usize = 22;

/// The most memory that `operation`, and later its response, will take.
pub(in crate::service) fn of_operation(operation: &Operation) -> usize {
    let items: &[LockItem] = match operation {
        Operation::Lock(spec) => return of_lock(spec),
        Operation::Unlock { items, .. } | Operation::Downgrade { items, .. } => items,
        Operation::End { .. }
        | Operation::Cancel { .. }
        | Operation::Savepoint
        | Operation::RollBackTo(_) => &[],
        Operation::Refuse(why) => return OPERATION + of_error(why),
    };
    OPERATION + items.iter().map(of_requested).sum::<usize>()
}

/// The most memory that a lock request, and later its grant, will take.
pub(in crate::service) fn of_lock(spec: &LockSpec) -> usize {
    let items = spec.items.iter().map(of_requested).sum::<usize>();
    OPERATION + size_of_val(&*spec.ancestors) + items
}

/// The memory of an item as it was requested, and as it was granted.
fn of_requested(item: &LockItem) -> usize {
    size_of::<LockItem>() + size_of::<ItemGrant>() + 2 * keys(item)
}

/// The memory of the response.
pub(in crate::service) fn of_response(response: &Result<OpResponse, Error>) -> usize {
    OPERATION
        + match response {
            Ok(OpResponse::Locked(granted)) => of_grant(&granted.grant),
            Ok(OpResponse::Done { .. } | OpResponse::Savepoint(_)) => 0,
            Err(why) => of_error(why),
        }
}

/// The keys of a grant.
fn of_grant(grant: &Grant) -> usize {
    let changes = &grant.owner.changes;
    let changes = changes.iter().map(|change| size_of::<ItemGrant>() + keys(&change.item));
    let skipped = grant.skipped.iter().map(|key| size_of::<Key>() + of_key(key));
    let range = grant
        .escalated
        .as_ref()
        .map_or(0, |range| size_of_val(&**range) + of_bound(range.start()) + of_bound(range.end()));
    changes.chain(skipped).sum::<usize>() + range
}

/// The memory of items that are kept once more.
pub(in crate::service) fn of_items(items: &[LockItem]) -> usize {
    items.iter().map(|item| size_of::<LockItem>() + keys(item)).sum()
}

/// The cycle of a deadlock can be long, and so can the key that is not free.
fn of_error(error: &Error) -> usize {
    let cycle = error.deadlock().unwrap_or_default();
    let edges = cycle
        .iter()
        .map(|edge| size_of_val(edge) + edge.item.len() + edge.label.len() + edge.client.len());
    edges.sum::<usize>()
        + error
            .blocker()
            .map_or(0, |at| size_of_val(at) + keys(&at.item) + at.label.len() + at.client.len())
}

fn keys(item: &LockItem) -> usize {
    match item {
        LockItem::Row(key) => of_key(key),
        LockItem::Range(range) => [range.start(), range.end()].into_iter().map(of_bound).sum(),
    }
}

fn of_bound(bound: Bound<&Key>) -> usize {
    match bound {
        Bound::Included(key) | Bound::Excluded(key) => of_key(key),
        Bound::Unbounded => 0,
    }
}

fn of_key(key: &Key) -> usize {
    let bytes = key.as_bytes().len();
    if bytes <= KEY_INLINE_MAX { 0 } else { bytes }
}
