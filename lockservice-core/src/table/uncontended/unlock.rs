//! The release of holds: chosen ones, or all of a transaction.

use super::handles::{RowHolds, TableHandle, TxnHandle};
use super::rows::TableRows;
use crate::clock::Time;
use crate::key::{Key, LockItem};
use crate::sync::MutexGuard;
use crate::table::engine::LockEngine;
use crate::table::types::Commit;

/// How a transaction ends.
#[derive(Clone, Copy)]
enum End {
    /// Its owner ends it, and says whether it committed.
    Told(Option<Commit>),
    /// Its owner is gone: whether it committed is not known at this time.
    Forced(Time),
}

impl LockEngine {
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
        self.release_all(txn, txn.holds.lock(), End::Told(commit))
    }

    /// [Closes](TxnHandle::close) a transaction, and [releases](Self::unlock_all) all its holds.
    /// `None` if it was ended before; then nothing happens.
    pub fn end(&self, txn: &TxnHandle, commit: Option<Commit>) -> Option<usize> {
        self.end_as(txn, End::Told(commit))
    }

    /// As [`end`](Self::end), for a transaction whose client is gone. It may have committed at a
    /// timestamp that no unlock carries. So in the tables where it held locks the history is known
    /// only since `now` (C5).
    pub fn end_forced(&self, txn: &TxnHandle, now: Time) -> Option<usize> {
        self.end_as(txn, End::Forced(now))
    }

    fn end_as(&self, txn: &TxnHandle, end: End) -> Option<usize> {
        let mut holds = txn.holds.lock();
        if holds.ended {
            return None;
        }
        (holds.closed, holds.ended) = (true, true);
        Some(self.release_all(txn, holds, end))
    }

    fn release_all(&self, txn: &TxnHandle, mut holds: MutexGuard<'_, RowHolds>, end: End) -> usize {
        let list = std::mem::take(&mut holds.list);
        let known = std::mem::take(&mut holds.released);
        holds.released_in_state = 0;
        (holds.bytes, holds.state_bytes) = (0, 0);
        let mut released = 0;
        for hold in &list {
            let rows = self.places().get(hold.place);
            let mut shard = rows.shard(hold.shard).lock();
            if shard.has(hold.slot, txn.id(), hold.seq) {
                match end {
                    End::Told(None) => {}
                    End::Told(Some(commit)) => rows.history.note_commit(commit),
                    End::Forced(now) => rows.history.unknown_until(now),
                }
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
            released += match end {
                End::Told(commit) => self.unlock_all_in_state(txn.id(), commit),
                End::Forced(now) => self.unlock_all_forced_in_state(txn.id(), now),
            };
        }
        released
    }

    /// True if a transaction holds something in a table.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn holds_in(&self, txn: &TxnHandle, table: &TableHandle) -> bool {
        let (holds, place) = (txn.holds.lock(), table.place());
        let mut here = holds.list.iter().filter(|hold| hold.place == place);
        if here.any(|hold| hold.is_held(txn.id(), self.places())) {
            return true;
        }
        drop(holds);
        self.holds_in_state(txn.id(), table.bind().id)
    }

    /// The number of rows and ranges that a transaction holds on this node.
    pub fn held(&self, txn: &TxnHandle) -> usize {
        let holds = txn.holds.lock();
        let here = holds.list.iter().filter(|hold| hold.is_held(txn.id(), self.places())).count();
        drop(holds);
        here + self.held_in_state(txn.id())
    }

    /// Returns memory that a shard had on credit.
    pub(super) fn give_back(&self, surplus: usize) {
        if surplus > 0 {
            self.places().give_back(surplus);
        }
    }
}
