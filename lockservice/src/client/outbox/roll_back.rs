//! Roll-backs to savepoints, also to those from before a restart of the server.
//!
//! The next process of a server does not know the savepoints of the last one. The client knows what
//! was locked since, so it releases that itself.

use std::collections::BTreeMap;
use std::task::Waker;

use lockservice_core::{Error, ErrorKind, LockItem, LockMode, Result, TableRef};
use tokio::sync::oneshot;

use super::claims::item_bytes;
use super::pending::{Encoded, Pending, What};
use super::state::OutboxState;
use super::{
    CallId, NumberedTxn, OP_OVERHEAD_BYTES, Outbox, SavepointAt, TXN_OPS_MAX, TxnKey, wake,
};
use crate::convert::{items_to_proto, mode_to_proto};
use crate::proto;
use crate::proto::client_op::Op;

/// The most that an operation on a table costs beyond its items.
const TABLE_OP_BYTES: usize = 64 + 2 * lockservice_core::NAME_BYTES_MAX + OP_OVERHEAD_BYTES;

/// The most operations of one transaction that are under way with those of a roll-back here: as
/// many as a server queues by default, and it takes in as many releases again. There is one for
/// each table and mode, and more if their items are many.
const ROLL_BACK_OPS_MAX: usize = 4 * TXN_OPS_MAX as usize;

type Reply = oneshot::Sender<Result<()>>;

impl Outbox {
    /// Ends what a transaction was granted since a savepoint.
    pub(in crate::client) fn roll_back_to(
        &self,
        txn_number: &NumberedTxn,
        savepoint: SavepointAt,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        let (reply, response) = oneshot::channel();
        let mut reply = Some(reply);
        let mut key = txn_number.key.lock();
        let mut state = self.state.lock();
        let (waker, is_over) = match *key {
            // The server has nothing of it.
            Some(key) if state.why_not_claimed(key).is_some() => (None, true),
            Some(key) if state.is_from_before_a_claim(key, savepoint) => {
                let waker = state.roll_back_here(key, savepoint, &mut reply)?;
                (waker, reply.is_some())
            }
            _ => {
                let op = proto::RollBackToOp { txn: None, savepoint: savepoint.number.get() };
                let what = |CallId { txn, sequence }| What::Release {
                    txn,
                    sequence,
                    cancelled: None,
                    back_to: Some(savepoint.sequence),
                    ends: false,
                    reply: reply.take(),
                };
                let options = &txn_number.options;
                (state.add_op(&mut key, options, Op::RollBackTo(op), what)?, false)
            }
        };
        drop(state);
        wake(waker);
        if let Some(reply) = reply.filter(|_| is_over) {
            let _ = reply.send(Ok(()));
        }
        Ok(response)
    }
}

impl OutboxState {
    /// True if the server does not know the savepoint.
    fn is_from_before_a_claim(&mut self, key: TxnKey, savepoint: SavepointAt) -> bool {
        self.txns.get_mut(key.0).is_some_and(|slot| savepoint.restarts < slot.claimed)
    }

    /// Releases what was locked since a savepoint, and makes weaker what was upgraded since. The
    /// last operation has `reply`, which is left if there is none.
    fn roll_back_here(
        &mut self,
        key: TxnKey,
        savepoint: SavepointAt,
        reply: &mut Option<Reply>,
    ) -> Result<Option<Waker>> {
        let pending = self.under_way().remove(&key.0).unwrap_or_default();
        let (_, holds) = self.held_by(key, &pending)?;
        // By table and, for what stays, by its mode at the savepoint.
        let mut ends: BTreeMap<(TableRef, Option<LockMode>), Vec<LockItem>> = BTreeMap::new();
        for held in holds.items() {
            let mode = held.mode_at(savepoint.sequence);
            if mode != Some(held.mode) {
                ends.entry((held.table, mode)).or_default().push(held.item);
            }
        }
        let mut ops = Vec::new();
        for ((table, mode), items) in ends {
            let chunks = in_chunks(items, self.frame_bytes_max);
            ops.extend(chunks.into_iter().map(|items| end_of(&table, mode, &items)));
        }
        let under_way = self.txns.get_mut(key.0).map_or(0, |slot| slot.under_way) as usize;
        if under_way + ops.len() > ROLL_BACK_OPS_MAX {
            let message = if ops.len() > ROLL_BACK_OPS_MAX {
                "after a restart of the server, the roll-back takes too many operations: end the \
                    transaction, and begin again"
            } else {
                "too many calls of one transaction at once: wait for some of them"
            };
            return Err(Error::new(ErrorKind::ResourceExhausted, message)
                .with("operations", ops.len())
                .with("most", ROLL_BACK_OPS_MAX));
        }
        let mut waker = None;
        // What is not decided yet would be granted after the roll-back.
        for id in pending {
            let Some(op) = self.pending.get(id) else { continue };
            if let What::Lock { txn, sequence, .. } = op.what
                && sequence > savepoint.sequence
            {
                waker = waker.or(self.cancel(CallId { txn, sequence }));
            }
        }
        let count = ops.len();
        for (n, mut op) in ops.into_iter().enumerate() {
            let Some((sequence, reference)) = self.release_op(key) else { break };
            match &mut op {
                Op::Unlock(op) => op.txn = Some(reference),
                Op::Downgrade(op) => op.txn = Some(reference),
                _ => {}
            }
            let reply = if n + 1 == count { reply.take() } else { None };
            let what = What::release(CallId { txn: key, sequence }, reply);
            let bytes = op.encoded_len() + OP_OVERHEAD_BYTES;
            waker = waker.or(self.push(Pending::timeless(Encoded::of(&op), bytes, what)));
        }
        Ok(waker)
    }
}

/// Releases items, or holds them in a weaker mode.
fn end_of(table: &TableRef, mode: Option<LockMode>, items: &[LockItem]) -> Op {
    let (group, table) = (table.group.to_string(), table.name.to_string());
    let (rows, ranges) = items_to_proto(items);
    match mode {
        None => Op::Unlock(proto::UnlockOp { group, table, rows, ranges, ..Default::default() }),
        Some(mode) => {
            let mode = mode_to_proto(mode);
            Op::Downgrade(proto::DowngradeOp { txn: None, group, table, rows, ranges, mode })
        }
    }
}

/// Items in parts that one message can carry.
fn in_chunks(items: Vec<LockItem>, bytes_max: usize) -> Vec<Vec<LockItem>> {
    let (mut chunks, mut bytes) = (vec![Vec::new()], TABLE_OP_BYTES);
    for item in items {
        bytes += item_bytes(&item);
        if bytes > bytes_max && chunks.last().is_some_and(|chunk| !chunk.is_empty()) {
            bytes = TABLE_OP_BYTES + item_bytes(&item);
            chunks.push(Vec::new());
        }
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(item);
        }
    }
    chunks
}
