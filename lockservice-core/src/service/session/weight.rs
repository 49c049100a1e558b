//! The estimated memory of an operation of a session, or of its response.
//!
//! The response is what the process uses, within a fifth, in transactions that keep many of them:
//! `tests/service_bounds.rs` measures that with a counting allocator. An operation that is queued
//! or waits is counted with the most that its response can take: that has its room when it comes.

use std::ops::Bound;

use crate::error::Error;
use crate::key::{Key, LockItem};
use crate::service::{Granted, LockSpec, OpResponse, Operation};
use crate::table::{Grant, ItemGrant};

/// Overhead of the heap allocator for one block, in bytes.
const BLOCK: usize = 16;

/// The memory of an operation that is queued or waits: its place in the queue, its callers, its
/// timer.
const QUEUED: usize = 512;

/// The place of a response in the queue's map of those.
const RESPONSE: usize = 38;

/// The most memory that an operation that is no lock takes while it runs, and that its response
/// will take.
pub(in crate::service) const OPERATION: usize = QUEUED + RESPONSE;

/// Items that are kept once more for the calls that rely on them: their place in the queue's map.
const RELIED: usize = 100;

/// Keys up to this length lie in their items.
const KEY_INLINE_MAX: usize = 22;

/// The most memory that `operation` takes, and that its response will take.
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
    OPERATION + items.iter().map(of_item).sum::<usize>()
}

/// The most memory that a lock request takes, and that its grant will take.
pub(in crate::service) fn of_lock(spec: &LockSpec) -> usize {
    let granted = |item: &LockItem| of_item(item) + size_of::<ItemGrant>() + keys(item);
    let items = spec.items.iter().map(granted).sum::<usize>();
    let trace = spec.trace.as_ref().map_or(0, |trace| trace.bytes());
    OPERATION + GRANTED + size_of_val(&*spec.ancestors) + trace + items
}

fn of_item(item: &LockItem) -> usize {
    size_of::<LockItem>() + keys(item)
}

/// The memory of the response.
pub(in crate::service) fn of_response(response: &Result<OpResponse, Error>) -> usize {
    RESPONSE
        + match response {
            Ok(OpResponse::Locked(granted)) => GRANTED + of_grant(&granted.grant),
            Ok(OpResponse::Done { .. } | OpResponse::Savepoint(_)) => 0,
            Err(why) => of_error(why),
        }
}

/// A grant without its items, in a block with two counts, and the block of the items.
const GRANTED: usize = size_of::<Granted>() + 2 * size_of::<usize>() + 2 * BLOCK;

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
    RELIED + items.iter().map(of_item).sum::<usize>()
}

/// The cycle of a deadlock can be long, and so can the key that is not free.
fn of_error(error: &Error) -> usize {
    let cycle = error.deadlock().unwrap_or_default();
    let edges = cycle
        .iter()
        .map(|edge| size_of_val(edge) + keys(&edge.item) + edge.label.len() + edge.client.len());
    let detail = edges.sum::<usize>()
        + error
            .blocker()
            .map_or(0, |at| keys(&at.item) + at.label.len() + at.client.len() + 2 * BLOCK);
    error.bytes() + detail
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
    if bytes <= KEY_INLINE_MAX { 0 } else { bytes + BLOCK }
}
