//! The messages and frames of claims, none of which is large.

use std::ops::Bound;

use lockservice_core::{Key, LockItem};
use prost::Message as _;
use prost::bytes::{Bytes, BytesMut};

use super::super::held::{HeldItem, Holds};
use super::super::{OP_OVERHEAD_BYTES, OpId};
use super::rebound::{Named, Rebound};
use crate::convert::{mode_to_proto, push_item_to_proto};
use crate::proto::client_op::Op;
use crate::{frame, proto};

/// The most that a message costs beyond its texts, rows and ranges.
const MESSAGE_BYTES: usize = 64;

/// Divides what a transaction holds into claims of at most `bytes_max`, with the tables and
/// versions that each names. One that holds nothing has one claim, so that it can go on.
pub(super) fn split(
    claim: proto::ClaimOp,
    holds: Holds,
    (bytes_max, rebound): (usize, &mut Rebound),
    ops: &mut Vec<(proto::ClaimOp, Vec<Named>)>,
) {
    let of_claim = MESSAGE_BYTES + claim.id.len() + claim.label.len() + OP_OVERHEAD_BYTES;
    let (mut next, mut bytes) = ((claim.clone(), Vec::new()), of_claim);
    for mut held in holds.items() {
        held.version = rebound.present(&held.table, held.version);
        let of_item = item_bytes(&held.item);
        let of_table =
            MESSAGE_BYTES + held.table.group.as_str().len() + held.table.name.as_str().len();
        let same = next.0.locks.last().is_some_and(|locks| is_same(locks, &held));
        let more = of_item + if same { 0 } else { of_table };
        if bytes + more > bytes_max && !next.0.locks.is_empty() {
            ops.push(std::mem::replace(&mut next, (claim.clone(), Vec::new())));
            bytes = of_claim;
        }
        if !next.0.locks.last().is_some_and(|locks| is_same(locks, &held)) {
            bytes += of_table;
            next.0.locks.push(proto::HeldLocks {
                group: held.table.group.to_string(),
                table: held.table.name.to_string(),
                version: held.version.get(),
                token: held.token.get(),
                mode: mode_to_proto(held.mode),
                ..proto::HeldLocks::default()
            });
            next.1.push((held.table.clone(), held.version));
        }
        bytes += of_item;
        if let Some(locks) = next.0.locks.last_mut() {
            push_item_to_proto(&held.item, &mut locks.rows, &mut locks.ranges);
        }
    }
    ops.push(next);
}

fn is_same(locks: &proto::HeldLocks, held: &HeldItem) -> bool {
    locks.token == held.token.get()
        && locks.version == held.version.get()
        && locks.mode == mode_to_proto(held.mode)
        && locks.table == held.table.name.as_str()
        && locks.group == held.table.group.as_str()
}

/// The most that an item costs in a message.
pub(in crate::client::outbox) fn item_bytes(item: &LockItem) -> usize {
    let of_bound = |bound: Bound<&Key>| match bound {
        Bound::Included(key) | Bound::Excluded(key) => key.as_bytes().len(),
        Bound::Unbounded => 0,
    };
    match item {
        LockItem::Row(key) => 8 + key.as_bytes().len(),
        LockItem::Range(_) => 32 + of_bound(item.start()) + of_bound(item.end()),
    }
}

/// The frames of operations, in their order. Ids count down from that of the greeting.
pub(super) fn into_frames(ops: impl Iterator<Item = Op>, bytes_max: usize) -> Vec<Bytes> {
    let mut frames = Vec::new();
    let mut frame = BytesMut::new();
    for (op, id) in ops.zip((0..OpId::HELLO.get()).rev()) {
        let op = proto::ClientOp { id, op: Some(op) };
        if !frame.is_empty() && frame.len() + op.encoded_len() + OP_OVERHEAD_BYTES > bytes_max {
            frames.push(std::mem::take(&mut frame).freeze());
        }
        frame::push(&mut frame, &op);
    }
    frames.push(frame.freeze());
    frames
}
