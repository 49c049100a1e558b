//! What the client of a session is told by itself, over the connection that it has now.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::Error;
use crate::id::TxnNumber;
use crate::service::session::{Session, SessionRecord};
use crate::service::txn::waits::{NOTICES_MAX, WaitingCall};
use crate::service::{ServiceInner, Waiting};

/// Something that the client of a session is told by itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionNotice {
    /// A lock call waits: a hint, for people.
    Waiting(Waiting),
    /// A transaction was killed while the session lives. The client stops the work under its locks,
    /// says that it knows ([`Session::acknowledge_loss`]), and ends the transaction.
    TxnLost {
        /// The client's number of the transaction.
        number: TxnNumber,
        /// Why.
        why: Error,
    },
}

/// The notices of a session. See [`Session::notices`].
#[derive(Debug)]
pub struct SessionNotices {
    record: Arc<SessionRecord>,
    inner: Arc<ServiceInner>,
    /// The number of losses that were looked at.
    losses: usize,
    /// The lost transactions that were told. A number is used once.
    told: HashSet<TxnNumber>,
}

impl Session {
    /// What the client is to be told, present waits and losses included, for the one connection
    /// that the session has now. If two listen, each gets some of the notices.
    pub fn notices(&self) -> SessionNotices {
        self.record.waits.renew(self.inner.parts.env.now());
        SessionNotices {
            record: Arc::clone(&self.record),
            inner: Arc::clone(&self.inner),
            losses: 0,
            told: HashSet::new(),
        }
    }
}

impl SessionNotices {
    /// The transactions that were killed, and the calls that have begun to wait, or that wait for
    /// another holder than was reported before: at least one, and at most a bounded number. A call
    /// whose holder is not known yet comes later.
    ///
    /// A waiting call is checked after 50 ms, and then after twice the last interval, up to 30 s.
    ///
    /// # Cancel safety
    /// Cancel safe: what is taken out is returned at once.
    pub async fn next(&mut self) -> Vec<SessionNotice> {
        loop {
            let mut news = self.lost_txns();
            let (waits, env) = (self.record.waits(), &self.inner.parts.env);
            let calls = waits.due(env.now());
            news.extend(calls.into_iter().filter_map(|call| self.waiting(call)));
            if !news.is_empty() {
                return news;
            }
            match waits.next_due() {
                Some(at) => drop(self.inner.until(at, waits.woken()).await),
                None => waits.woken().await,
            }
            tokio::task::consume_budget().await;
        }
    }

    fn waiting(&self, call: WaitingCall) -> Option<SessionNotice> {
        let waits_for = self.inner.waits_for(call.txn, &call.table)?;
        let WaitingCall { number, sequence, .. } = call;
        let is_news = self.record.waits().is_news(&call, &waits_for);
        is_news.then_some(SessionNotice::Waiting(Waiting { number, sequence, waits_for }))
    }

    /// The losses that were not told. Most sessions have none, which one look says.
    fn lost_txns(&mut self) -> Vec<SessionNotice> {
        let losses = self.record.waits().losses();
        if losses == self.losses {
            return Vec::new();
        }
        let state = self.record.state.lock();
        self.told.retain(|number| state.txns.contains_key(number));
        let mut untold = state.lost.iter().filter(|number| !self.told.contains(*number));
        let lost = untold.by_ref().take(NOTICES_MAX).filter_map(|number| {
            let why = state.txns.get(number)?.txn.why_killed()?.clone();
            Some((*number, why))
        });
        let lost: Vec<_> = lost.collect();
        if untold.next().is_none() {
            self.losses = losses;
        }
        drop(state);
        self.told.extend(lost.iter().map(|(number, _)| *number));
        lost.into_iter().map(|(number, why)| SessionNotice::TxnLost { number, why }).collect()
    }
}
