//! Savepoints and downgrades: a transaction gives up a part of what it was granted.

use super::handles::{Savepoint, TableHandle, TxnHandle};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{LockItem, LockMode};
use crate::table::call::call_in_flight;
use crate::table::engine::LockEngine;

impl LockEngine {
    /// A point in the sequence of the transaction's calls: [`roll_back_to`](Self::roll_back_to)
    /// ends what later calls are granted. A savepoint costs nothing, and needs no release. It
    /// counts as a call.
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
    /// flight: the caller waits for it, or drops it, and tries again. A caller that has not polled
    /// a call that is over does the same: what that was granted is released here. Also if the
    /// savepoint is of another transaction.
    pub fn roll_back_to(&self, txn: &TxnHandle, savepoint: Savepoint) -> Result<usize> {
        let mut holds = txn.holds.lock();
        if savepoint.0 > holds.next {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the savepoint is of another transaction: use one of this transaction",
            )
            .with("txn", txn.id()));
        }
        if holds.in_flight > 0 || holds.in_state && self.has_call(txn.id()) {
            return Err(call_in_flight(txn.id()));
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
        if !holds.in_state {
            return Ok(released);
        }
        // No row is granted to it meanwhile. Its mutex is free, for the state wakes tasks.
        let _in_flight = txn.begin_call_under(holds);
        Ok(released + self.roll_back_to_in_state(txn.id(), savepoint.0)?)
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
}
