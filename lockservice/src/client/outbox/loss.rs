//! Transactions that have lost their locks while the session goes on.
//!
//! The server has ended one of them, or refused to let it claim its locks after a restart.
//!
//! | the loss | until the application was told |
//! |---|---|
//! | of one that was ended | the server renews nothing |
//! | of one that was refused | a renewal does not count for the session (P6) |
//! | of one that validates | the session is renewed: its commit is refused (T4) |
//!
//! So an application that watches only its session loses that in time, before the locks can go to
//! others (P5). It is told by [`Outbox::tell_loss`]. From then on renewals do not count for the
//! transaction: its deadline stays where it is.

use lockservice_core::clock::Time;
use lockservice_core::{Error, TxnNumber};

use super::state::OutboxState;
use super::{ACKED_MAX, NumberedTxn, Outbox, TxnKey};

/// The loss of a transaction.
#[derive(Debug)]
pub(super) struct TxnLoss {
    pub(super) why: Error,
    /// The deadline of its locks, once it is known: at the latest when the application is told.
    deadline: Option<Time>,
    told: bool,
    pub(super) place: LossPlace,
}

/// The place where a lost transaction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LossPlace {
    /// The server has it, and waits for its end.
    Server,
    /// Only the client has it: it is from before a restart, and was not claimed.
    Client {
        /// The session is not renewed before the application was told.
        holds_back: bool,
    },
}

impl TxnLoss {
    pub(super) fn new(why: Error, place: LossPlace) -> Self {
        Self { why, deadline: None, told: false, place }
    }

    /// The server restarts, and does not get it again. `deadline` is that of its locks.
    pub(super) fn leave_server(&mut self, deadline: Time) {
        self.deadline.get_or_insert(deadline);
        if self.place == LossPlace::Server {
            self.place = LossPlace::Client { holds_back: true };
        }
    }

    /// True if the session is not to be renewed on its account.
    pub(super) fn holds_back(&self) -> bool {
        !self.told && self.place == LossPlace::Client { holds_back: true }
    }
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
        state.lost.insert(number, TxnLoss::new(why, LossPlace::Server));
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
        loss.deadline.get_or_insert(deadline);
        let first = !std::mem::replace(&mut loss.told, true);
        Some((loss.why.clone(), first))
    }

    /// The deadline of a transaction that is lost, once it stays where it is.
    pub(in crate::client) fn lost_deadline(&self, txn: &NumberedTxn) -> Option<Time> {
        let key = *txn.key.lock();
        self.state.lock().loss_of(key?)?.deadline
    }

    /// True if the session must not be renewed: a transaction was not claimed, and the application
    /// was not told yet.
    pub(in crate::client) fn is_held_back(&self) -> bool {
        self.state.lock().lost.values().any(TxnLoss::holds_back)
    }

    /// The reason why a transaction could not be claimed, if that is so.
    pub(super) fn why_not_claimed(&self, txn: &NumberedTxn) -> Option<Error> {
        let key = *txn.key.lock();
        self.state.lock().why_not_claimed(key?)
    }
}

impl OutboxState {
    fn loss_of(&mut self, key: TxnKey) -> Option<&mut TxnLoss> {
        // Losses are rare.
        if self.lost.is_empty() {
            return None;
        }
        let number = self.txns.get_mut(key.0)?.number;
        self.lost.get_mut(&number)
    }

    /// The reason why a transaction is lost, if it is.
    pub(super) fn why_lost(&mut self, key: TxnKey) -> Option<Error> {
        self.loss_of(key).map(|loss| loss.why.clone())
    }

    /// The reason why a transaction is lost, if the server does not have it any more.
    pub(super) fn why_not_claimed(&mut self, key: TxnKey) -> Option<Error> {
        let loss = self.loss_of(key)?;
        (loss.place != LossPlace::Server).then(|| loss.why.clone())
    }

    /// The lost transactions of which the application was told, and the server has to know.
    pub(super) fn told_losses(&self) -> Vec<u64> {
        let is_told = |loss: &TxnLoss| loss.told && loss.place == LossPlace::Server;
        let told = self.lost.iter().filter(|(_, loss)| is_told(loss));
        told.map(|(number, _)| number.get()).take(ACKED_MAX).collect()
    }
}
