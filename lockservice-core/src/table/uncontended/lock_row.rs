//! The way of a row lock without the state: the hot path.

use super::handles::{HoldRef, HoldSeq, TableHandle, TxnHandle};
use super::shard::{RowOutcome, RowRequest};
use crate::bind::Bind;
use crate::clock::Time;
use crate::id::{CommitTimestamp, FencingToken};
use crate::key::{Key, LockItem, LockMode};
use crate::table::engine::LockEngine;
use crate::table::memory::{reserve_one, row_bytes};
use crate::table::types::{Grant, ItemGrant};

/// A row that was locked at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowGrant {
    /// The fencing token (F1). If nothing was newly locked, the one under which the row was already
    /// held.
    pub token: FencingToken,
    /// False if the row was already held at least as strongly.
    pub newly_locked: bool,
    /// As [`Grant::table_commit_ts`](crate::table::Grant::table_commit_ts).
    pub table_commit_ts: Option<CommitTimestamp>,
    /// As [`Grant::table_definition_ts`](crate::table::Grant::table_definition_ts).
    pub table_definition_ts: Option<CommitTimestamp>,
    /// Since when the owner knows the table's history, by the owner's clock; `None`: all of it.
    pub(crate) history_since: Option<Time>,
    /// The number of tokens that are left to the table, if this call drew some for its shard.
    pub(crate) tokens_left: Option<u64>,
}

impl RowGrant {
    /// The grant as [`LockEngine::lock`] returns it: with its bind, and with what a
    /// [roll-back](LockEngine::roll_back) needs.
    pub fn to_grant(self, table: &TableHandle, key: &Key) -> Grant {
        let mut grant = Grant::new(Bind::clone(table.bind()), self.token);
        grant.newly_locked = self.newly_locked;
        grant.table_commit_ts = self.table_commit_ts;
        grant.table_definition_ts = self.table_definition_ts;
        grant.history_unknown = self.history_since.is_some();
        grant.owner.history_since = self.history_since;
        grant.owner.tokens_left = self.tokens_left.unwrap_or(u64::MAX);
        if self.newly_locked {
            grant.owner.changes =
                vec![ItemGrant { item: LockItem::Row(key.clone()), before: None }];
        }
        grant
    }
}

impl LockEngine {
    /// Locks a row that is free, at once. Returns `None` if that cannot be decided at once; then
    /// [`lock`](Self::lock) decides, and says why.
    ///
    /// `None` means one of these:
    ///
    /// - Another transaction holds the row, or waits for it, or holds or waits for a range around
    ///   it.
    /// - The transaction holds the row more weakly.
    /// - The table is not served any more at the version of the handle, or the engine is sealed.
    /// - A limit of the settings is reached, or that of the transaction's allowance, or the table
    ///   has no token.
    /// - The handle is of another engine.
    /// - The transaction was [closed](TxnHandle::close).
    /// - A call of the transaction is in flight of which its [handle](TxnHandle::begin_call) knows
    ///   (T2).
    pub fn lock_row(
        &self,
        txn: &TxnHandle,
        table: &TableHandle,
        key: &Key,
        mode: LockMode,
    ) -> Option<RowGrant> {
        let mut holds = txn.holds.lock();
        let bytes = row_bytes(key);
        if !table.is_of(self.places())
            || holds.closed
            || holds.in_flight > 0
            || holds.next == HoldSeq::LAST
            || holds.state_bytes + holds.bytes + bytes > holds.bytes_max(self.txn_bytes_max())
        {
            return None;
        }
        let rows = self.places().get(table.place());
        let hash = rows.hash(key);
        let shard = rows.shard_of(hash);
        let (version, seq) = (table.bind().version, holds.next);
        let request = RowRequest { version, txn: txn.id(), seq, key, hash, mode, bytes };
        let mut tokens_left = None;
        loop {
            let outcome =
                rows.shard(shard).lock().lock(&request, rows.hasher(), || rows.is_in_range(key));
            let (token, newly_locked) = match outcome {
                RowOutcome::Granted { slot, token } => {
                    holds.next = seq.next();
                    holds.bytes += bytes;
                    reserve_one(&mut holds.list);
                    holds.list.push(HoldRef { place: table.place(), shard, slot, seq });
                    (token, true)
                }
                RowOutcome::Covered { token } => (token, false),
                RowOutcome::Exhausted if tokens_left.is_none() => {
                    tokens_left = Some(self.refill(table, shard, bytes)?);
                    continue;
                }
                RowOutcome::Exhausted | RowOutcome::Contended => return None,
            };
            return Some(RowGrant {
                token,
                newly_locked,
                table_commit_ts: rows.history.commit_ts(),
                table_definition_ts: rows.history.definition_ts(),
                history_since: rows.history.since(),
                tokens_left,
            });
        }
    }
}
