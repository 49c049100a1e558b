//! The way of a row lock and of its release, without the state: the hot path.

use super::handles::{HoldRef, HoldSeq, RowHolds, Savepoint, TableHandle, TxnHandle};
use super::rows::TableRows;
use super::shard::{RowOutcome, RowRequest};
use crate::bind::Bind;
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitTimestamp, FencingToken};
use crate::key::{Key, LockItem, LockMode};
use crate::table::call::{hold_bytes, row_hold_bytes};
use crate::table::engine::LockEngine;
use crate::table::types::{Commit, Grant, ItemGrant};

/// Holds of a transaction that are inflated under one hold of the state's mutex.
const INFLATE: usize = 256;

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
    /// - A limit of the settings is reached, or the table has no token.
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
        let bytes = row_hold_bytes(key);
        if !table.is_of(self.places())
            || holds.closed
            || holds.in_flight > 0
            || holds.next == HoldSeq::LAST
            || holds.state_bytes + holds.bytes + bytes > self.txn_bytes_max()
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

    /// Releases chosen items, each exactly as it was locked: a row inside a locked range stays
    /// locked. Items that are not held are ignored. Returns the number of released items.
    ///
    /// With a commit, the table and the waiters that conflict with a released item learn of it
    /// (C5).
    pub fn unlock(
        &self,
        txn: &TxnHandle,
        table: &TableHandle,
        items: &[LockItem],
        commit: Option<Commit>,
    ) -> usize {
        if !table.is_of(self.places()) {
            return 0;
        }
        let mut holds = txn.holds.lock();
        let rows = self.places().get(table.place());
        let (mut released, mut bytes) = (0, 0);
        let mut others = Vec::new();
        for item in items {
            let LockItem::Row(key) = item else {
                others.push(item.clone());
                continue;
            };
            match self.unlock_row(txn, table, rows, key, commit) {
                Some(of_row) => {
                    released += 1;
                    bytes += of_row;
                }
                None => others.push(item.clone()),
            }
        }
        holds.released += released;
        holds.bytes = holds.bytes.saturating_sub(bytes);
        holds.tidy(txn.id(), self.places());
        drop(holds);
        if !others.is_empty() {
            let of_state = self.unlock_in_state(txn.id(), table.bind().id, &others, commit);
            if of_state > 0 {
                // Some of them may be in the list: they were granted there, and inflated since.
                txn.note_released(self.places(), of_state);
                released += of_state;
            }
        }
        released
    }

    /// Releases a row that is held without contention. Returns its memory.
    fn unlock_row(
        &self,
        txn: &TxnHandle,
        table: &TableHandle,
        rows: &TableRows,
        key: &Key,
        commit: Option<Commit>,
    ) -> Option<usize> {
        let hash = rows.hash(key);
        let mut shard = rows.shard(rows.shard_of(hash)).lock();
        if shard.version != Some(table.bind().version) || !shard.is_held_by(hash, key, txn.id()) {
            return None;
        }
        commit.into_iter().for_each(|commit| rows.history.note_commit(commit));
        let bytes = shard.release_key(hash, key, txn.id(), rows.hasher());
        self.places().note_credit();
        self.give_back(shard.take_surplus());
        bytes
    }

    /// Releases all holds of a transaction on this node. Its call in flight fails with
    /// [`Cancelled`](crate::ErrorKind::Cancelled). Returns the number of released items.
    ///
    /// With a commit, the tables and the waiters that conflict with a released item learn of it
    /// (C5).
    pub fn unlock_all(&self, txn: &TxnHandle, commit: Option<Commit>) -> usize {
        let mut holds = txn.holds.lock();
        let list = std::mem::take(&mut holds.list);
        let known = std::mem::take(&mut holds.released);
        holds.released_in_state = 0;
        (holds.bytes, holds.state_bytes) = (0, 0);
        let mut released = 0;
        for hold in &list {
            let rows = self.places().get(hold.place);
            let mut shard = rows.shard(hold.shard).lock();
            if shard.has(hold.slot, txn.id(), hold.seq) {
                commit.into_iter().for_each(|commit| rows.history.note_commit(commit));
                shard.release(hold.slot, txn.id(), hold.seq, rows.hasher());
                self.places().note_credit();
                self.give_back(shard.take_surplus());
                released += 1;
            }
        }
        // Others that are missing were inflated.
        let in_state = holds.in_state || list.len() - released > known;
        drop(holds);
        if in_state {
            released += self.unlock_all_in_state(txn.id(), commit);
        }
        released
    }

    /// As [`unlock_all`](Self::unlock_all), for a transaction whose client is gone. It may have
    /// committed at a timestamp that no unlock carries. So in the tables where it held locks the
    /// history is known only since `now` (C5).
    pub fn unlock_all_forced(&self, txn: &TxnHandle, now: Time) {
        self.inflate_own(txn, &[]);
        self.unlock_all_forced_in_state(txn.id(), now);
    }

    /// The number of rows and ranges that a transaction holds on this node.
    pub fn held(&self, txn: &TxnHandle) -> usize {
        let holds = txn.holds.lock();
        let here = holds.list.iter().filter(|hold| hold.is_held(txn.id(), self.places())).count();
        drop(holds);
        here + self.held_in_state(txn.id())
    }

    /// A point in the sequence of the transaction's calls: [`roll_back_to`](Self::roll_back_to)
    /// ends what later calls are granted. A savepoint costs nothing, and needs no release.
    ///
    /// # Errors
    /// [`ResourceExhausted`](ErrorKind::ResourceExhausted) after 2^32 calls of the transaction. The
    /// caller ends the transaction and begins another one.
    pub fn savepoint(&self, txn: &TxnHandle) -> Result<Savepoint> {
        txn.savepoint()
    }

    /// Ends what the calls of a transaction were granted since a savepoint. Returns the number of
    /// rows and ranges that were released.
    ///
    /// | since the savepoint a call | after the roll-back |
    /// |---|---|
    /// | locked an item newly | the item is not held |
    /// | upgraded it | it is held in the mode of the savepoint, under its present token |
    ///
    /// Items that were released or made weaker since stay so. The savepoint can be used again.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) while a call of the transaction is in
    /// flight: the caller waits for it, or drops it.
    pub fn roll_back_to(&self, txn: &TxnHandle, savepoint: Savepoint) -> Result<usize> {
        let mut holds = txn.holds.lock();
        if holds.in_flight > 0 || self.has_call(txn.id()) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a lock call of this transaction is still in flight: wait for it, or cancel it",
            )
            .with("txn", txn.id()));
        }
        let (mut released, mut missing, mut bytes) = (0, 0, 0);
        while let Some(hold) = holds.list.last().filter(|hold| hold.seq >= savepoint.0) {
            let rows = self.places().get(hold.place);
            let mut shard = rows.shard(hold.shard).lock();
            match shard.release(hold.slot, txn.id(), hold.seq, rows.hasher()) {
                Some(of_row) => {
                    (released, bytes) = (released + 1, bytes + of_row);
                    self.places().note_credit();
                    self.give_back(shard.take_surplus());
                }
                None => missing += 1,
            }
            drop(shard);
            holds.list.pop();
        }
        holds.bytes = holds.bytes.saturating_sub(bytes);
        // They were released before, or inflated.
        holds.released = holds.released.saturating_sub(missing);
        holds.in_state |= missing > 0;
        if holds.in_state {
            // Under the transaction's mutex: no row is granted to it meanwhile.
            released += self.roll_back_to_in_state(txn.id(), savepoint.0);
        }
        Ok(released)
    }

    /// Makes chosen items weaker that a transaction holds: `mode` from now on. Waiters that are
    /// compatible with it go on. Items that are not held, or that are held no more strongly, are
    /// ignored, and so are those that a call in flight upgrades. Returns the number of the others.
    ///
    /// The token stays, for data may know it (F1).
    pub fn downgrade(
        &self,
        txn: &TxnHandle,
        table: &TableHandle,
        items: &[LockItem],
        mode: LockMode,
    ) -> usize {
        if !table.is_of(self.places()) {
            return 0;
        }
        let holds = txn.holds.lock();
        let rows = self.places().get(table.place());
        let (mut downgraded, mut others) = (0, Vec::new());
        for item in items {
            let of_shard = match item {
                LockItem::Row(key) => {
                    let hash = rows.hash(key);
                    let mut shard = rows.shard(rows.shard_of(hash)).lock();
                    let is_served = shard.version == Some(table.bind().version);
                    is_served.then(|| shard.downgrade(hash, key, txn.id(), mode)).flatten()
                }
                LockItem::Range(_) => None,
            };
            match of_shard {
                Some(is_weaker) => downgraded += usize::from(is_weaker),
                None => others.push(item.clone()),
            }
        }
        drop(holds);
        if !others.is_empty() {
            downgraded += self.downgrade_in_state(txn.id(), table.bind(), &others, mode);
        }
        downgraded
    }

    /// Moves the holds of a transaction into the state, before the state decides a call of it for
    /// `items`, or ends it.
    ///
    /// Returns the number of the call.
    pub(in crate::table) fn inflate_own(&self, txn: &TxnHandle, items: &[LockItem]) -> HoldSeq {
        let mut holds = txn.holds.lock();
        holds.in_state = true;
        let RowHolds { list, bytes, .. } = &mut *holds;
        *bytes = 0;
        // Under the transaction's mutex: its end finds all of them in the list, or all of them in
        // the state.
        for some in list.chunks(INFLATE) {
            self.inflate_holds(txn.id(), some);
        }
        list.clear();
        (holds.released, holds.released_in_state) = (0, 0);
        let of_call = items.iter().map(hold_bytes).sum::<usize>();
        holds.state_bytes = self.bytes_in_state(txn.id()) + of_call;
        holds.take_seq()
    }

    /// Returns memory that a shard had on credit.
    fn give_back(&self, surplus: usize) {
        if surplus > 0 {
            self.places().give_back(surplus);
        }
    }
}
