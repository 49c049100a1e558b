//! Transactions that the server has ended while the session goes on.
//!
//! The server renews nothing until it hears that the client knows. It hears that when the
//! application was told ([`Outbox::tell_loss`]), and not before: an application that watches only
//! its session then loses that in time, before the locks can go to others (P5). From then on
//! renewals do not count for the transaction: its deadline stays where it is.

use lockservice_core::clock::Time;
use lockservice_core::{Error, TxnNumber};

use super::state::OutboxState;
use super::{ACKED_MAX, NumberedTxn, Outbox};

/// A transaction that the server has ended.
#[derive(Debug)]
pub(super) struct TxnLoss {
    pub(super) why: Error,
    /// The deadline of its locks, once the application was told.
    told: Option<Time>,
}

impl Outbox {
    /// Notes that the server has ended a transaction. False if it has ended here, too, or that is
    /// known.
    pub(in crate::client) fn lose_txn(&self, number: TxnNumber, why: Error) -> bool {
        let mut state = self.state.lock();
        let is_there = state.txns.iter_mut().any(|txn| txn.number == number);
        if !is_there || state.lost.contains_key(&number) {
            return false;
        }
        state.lost.insert(number, TxnLoss { why, told: None });
        true
    }

    /// The reason why a transaction is lost, if it is, for the application. `deadline` is that of
    /// the session now. Also returns true if the application was not told before: the server is to
    /// hear of it, with a [renewal](Self::heartbeat).
    pub(in crate::client) fn tell_loss(
        &self,
        txn: &NumberedTxn,
        deadline: Time,
    ) -> Option<(Error, bool)> {
        let key = *txn.key.lock();
        let mut state = self.state.lock();
        let loss = state.loss_of(key?)?;
        let first = loss.told.is_none();
        loss.told.get_or_insert(deadline);
        Some((loss.why.clone(), first))
    }

    /// The deadline of a transaction that is lost, once the application was told.
    pub(in crate::client) fn lost_deadline(&self, txn: &NumberedTxn) -> Option<Time> {
        let key = *txn.key.lock();
        self.state.lock().loss_of(key?)?.told
    }
}

impl OutboxState {
    fn loss_of(&mut self, key: super::TxnKey) -> Option<&mut TxnLoss> {
        // Losses are rare.
        if self.lost.is_empty() {
            return None;
        }
        let number = self.txns.get_mut(key.0)?.number;
        self.lost.get_mut(&number)
    }

    /// The reason why a transaction is lost, if it is.
    pub(super) fn why_lost(&mut self, key: super::TxnKey) -> Option<Error> {
        self.loss_of(key).map(|loss| loss.why.clone())
    }

    /// The lost transactions of which the application was told.
    pub(super) fn told_losses(&self) -> Vec<u64> {
        let told = self.lost.iter().filter(|(_, loss)| loss.told.is_some());
        told.map(|(number, _)| number.get()).take(ACKED_MAX).collect()
    }
}
