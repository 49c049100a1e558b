//! The release of a transaction's locks: some of them, all of them, or all of them once it
//! certainly cannot commit any more (C4).

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::Result;
use crate::id::{TableRef, TxnId};
use crate::key::{LockItem, LockMode};
use crate::service::ServiceInner;
use crate::service::kill::KillEnd;
use crate::service::tables::{RETRY_FIRST, RETRY_MOST};
use crate::service::txn::TxnRecord;
use crate::table::{Closed, Commit, Grant, Savepoint};

impl ServiceInner {
    /// Releases chosen items, and returns their number.
    pub(crate) fn unlock(
        &self,
        txn: &TxnRecord,
        table: &TableRef,
        items: &[LockItem],
        commit: Option<Commit>,
    ) -> usize {
        let bound = self.tables.served(table);
        let unlock = |bound| self.engine.unlock(txn.at_engine(), &bound, items, commit);
        let released = bound.map_or(0, unlock);
        self.note_released(txn);
        self.give_room_back(txn);
        released
    }

    /// Ends what was granted since a savepoint, and returns the number of released items.
    pub(crate) fn roll_back_to(&self, txn: &TxnRecord, savepoint: Savepoint) -> Result<usize> {
        let released = self.engine.roll_back_to(txn.at_engine(), savepoint);
        self.note_released(txn);
        self.give_room_back(txn);
        released
    }

    /// Rolls a grant back.
    pub(crate) fn roll_back(&self, txn: &TxnRecord, grant: &Grant) {
        self.engine.roll_back(txn.at_engine(), grant.bind.id, grant);
        self.note_released(txn);
        self.give_room_back(txn);
    }

    /// Makes chosen items weaker, and returns how many were stronger.
    pub(crate) fn downgrade(
        &self,
        txn: &TxnRecord,
        table: &TableRef,
        items: &[LockItem],
        mode: LockMode,
    ) -> usize {
        let bound = self.tables.served(table);
        bound.map_or(0, |bound| self.engine.downgrade(txn.at_engine(), &bound, items, mode))
    }

    /// Ends a transaction at its owner's request, and returns the number of released items.
    /// Idempotent.
    pub(crate) fn end(&self, txn: &TxnRecord, commit: Option<Commit>) -> usize {
        // C4: the transaction must not commit what the next holder is about to change.
        self.live.end(txn.id);
        self.left(txn, self.engine.end(txn.at_engine(), commit))
    }

    /// The transaction has released so many items, or had ended before.
    fn left(&self, txn: &TxnRecord, released: Option<usize>) -> usize {
        let Some(released) = released else { return 0 };
        self.count_end(txn);
        if txn.has_name() {
            self.named_txns.remove_if(&txn.id, |_| true);
        }
        if let Some(kill) = txn.kill() {
            kill.over();
        }
        if let Some(charge) = txn.charge() {
            charge.give_back();
        }
        self.txns.leave();
        self.departures.note();
        released
    }

    /// Ends transactions whose owner is gone, or is waited for no longer: those that validate are
    /// first made unable to commit (C4), the others are released at once. Calls `told` when all are
    /// released, except those of which it is known that their commit is in flight. `end` is what
    /// ends those that were killed, unless that was decided before.
    pub(crate) fn abandon(
        self: &Arc<Self>,
        txns: Vec<Arc<TxnRecord>>,
        end: KillEnd,
        told: impl FnOnce(Vec<TxnId>) + Send + 'static,
    ) {
        let mut validating = Vec::new();
        for txn in txns {
            if planted!(WaiterNotFenced) && self.engine.waiting_since(txn.id).is_some() {
                continue;
            }
            if txn.at_engine().close() == Closed::Ended {
                continue;
            }
            if let Some(kill) = txn.kill() {
                kill.decide(end);
            }
            // Sealed, this incarnation grants nothing more, and the allocator fences all its
            // transactions at once (C4).
            if txn.id.validates() && !self.is_sealed() && !planted!(OrphanReleasedEarly) {
                self.engine.cancel_wait(txn.id);
                validating.push(txn);
            } else {
                self.force_end(&txn);
            }
        }
        if validating.is_empty() {
            told(Vec::new());
        } else {
            let inner = Arc::clone(self);
            self.spawn(async move { inner.fence_then_release(validating, told).await });
        }
    }

    fn force_end(&self, txn: &TxnRecord) {
        self.live.end(txn.id);
        // C5: it may have committed at a timestamp that is unknown here.
        let released = self.engine.end_forced(txn.at_engine(), self.parts.env.now());
        self.left(txn, released);
    }

    async fn fence_then_release(
        self: Arc<Self>,
        mut txns: Vec<Arc<TxnRecord>>,
        told: impl FnOnce(Vec<TxnId>),
    ) {
        let mut told = Some(told);
        let mut pause = RETRY_FIRST;
        while !txns.is_empty() {
            if self.is_sealed() {
                // Nothing is granted here any more, as in `abandon`, and no call would end this
                // task.
                txns.iter().for_each(|txn| self.force_end(txn));
                if let Some(told) = told.take() {
                    told(Vec::new());
                }
                return;
            }
            let ids: Vec<TxnId> = txns.iter().map(|txn| txn.id).collect();
            match self.parts.allocator.cannot_commit(&ids).await {
                Ok(response) => {
                    self.observe(response.at);
                    for (txn, e) in &response.failed {
                        tracing::warn!(%txn, error = ?e, "cannot make a transaction unable to \
                            commit; trying again");
                    }
                    let over: HashSet<TxnId> = response.tombstoned.into_iter().collect();
                    let (fenced, rest): (Vec<_>, Vec<_>) =
                        txns.into_iter().partition(|txn| over.contains(&txn.id));
                    txns = rest;
                    for txn in &fenced {
                        self.force_end(txn);
                    }
                    if txns.iter().all(|txn| response.committing.contains(&txn.id)) {
                        // A kill may have come since the last time.
                        let kills = txns.iter().filter_map(|txn| Some((txn.id, txn.kill()?)));
                        kills.for_each(|(txn, kill)| kill.committing(txn));
                        if let Some(told) = told.take() {
                            told(txns.iter().map(|txn| txn.id).collect());
                        }
                    }
                    // Their tombstones go with the floor of this incarnation, which rises past them
                    // now (C4).
                    if txns.is_empty() {
                        return;
                    }
                }
                // An error means that it is not known whether they can commit: no lock is released.
                Err(e) => {
                    tracing::warn!(error = ?e, "cannot make transactions of a lost session unable \
                        to commit; trying again")
                }
            }
            self.pause(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }
}
