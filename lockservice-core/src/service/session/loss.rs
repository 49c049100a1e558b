//! Transactions of a session that were killed while the session lives.
//!
//! The queue of such a transaction stays until its client has ended it, even if its locks were
//! released before: its client is told until then. See [`kill`](crate::service::txn::kill) for the
//! whole way, and why it is safe (P5).

use std::sync::Arc;

use crate::clock::Time;
use crate::error::Error;
use crate::id::TxnNumber;
use crate::service::session::Session;
use crate::service::txn::TxnRecord;

/// The most lost transactions that are listed together.
const LISTED_MAX: usize = 64;

/// Whether a transaction was killed, and its client knows. It never goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::service) enum Loss {
    /// It was not killed.
    No,
    /// Its client has not said that it knows: the session is not renewed.
    Unknown,
    /// Its client knows, or is not waited for. What the session is promised does not count for it.
    Known,
}

impl Session {
    /// Withholds the renewals of the session because of a transaction that was killed, and has its
    /// client told. If `now`, its locks do not wait for the client, so nothing is withheld.
    ///
    /// Returns when what was promised to the transaction has run out; `None` if nothing is promised
    /// any more.
    pub(in crate::service) fn lose_txn(&self, txn: &Arc<TxnRecord>, now: bool) -> Option<Time> {
        let (clock, kill) = (&**self.inner.parts.env.clock(), txn.kill_or_new());
        let renewals = &self.record.renewals;
        let mut state = self.record.state.lock();
        let queue = state.txns.iter_mut().find(|(_, queue)| queue.txn.id == txn.id);
        let Some((&number, queue)) = queue else {
            drop(state);
            // The session is ending, and its transactions end with it.
            return renewals.lapses(clock).map(|(lapses, _)| lapses);
        };
        match queue.loss {
            Loss::No => {
                let lapses = if now { None } else { renewals.withhold(clock) };
                queue.loss = if lapses.is_some() { Loss::Unknown } else { Loss::Known };
                state.lost.push(number);
                lapses.into_iter().for_each(|lapses| kill.set_lapses(lapses));
                drop(state);
                self.record.waits.note_loss();
                lapses.into_iter().for_each(|lapses| self.inner.release_at(txn, lapses));
            }
            Loss::Unknown if now => {
                queue.loss = Loss::Known;
                renewals.grant();
            }
            Loss::Unknown | Loss::Known => {}
        }
        kill.lapses()
    }

    /// The transactions that were killed and that the client has not ended, with the reasons, at
    /// most 64: for a client that gets no [notices](Self::notices).
    pub fn lost_txns(&self) -> Vec<(TxnNumber, Error)> {
        let state = self.record.state.lock();
        let why = |number| Some((number, state.txns.get(&number)?.txn.why_killed()?.clone()));
        state.lost.iter().copied().take(LISTED_MAX).filter_map(why).collect()
    }

    /// Notes that the client knows that its transaction `number` was killed: it takes nothing that
    /// is promised to the session from now on as promised to that transaction. So the session is
    /// renewed again. Does nothing for a transaction that was not killed, or has ended.
    pub fn acknowledge_loss(&self, number: TxnNumber) {
        let mut state = self.record.state.lock();
        if let Some(queue) = state.txns.get_mut(&number)
            && queue.loss == Loss::Unknown
        {
            queue.loss = Loss::Known;
            self.record.renewals.grant();
        }
    }
}
