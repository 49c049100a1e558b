//! Lists of sessions and transactions, for operators, made slice by slice. Other calls go on
//! between two slices, so a list does not show one moment.

use std::sync::Arc;
use std::time::Duration;

use crate::id::{SessionHandle, SessionNumber, TxnId};
use crate::service::ServiceInner;
use crate::service::session::OpenedBy;
use crate::service::txn::TxnRecord;

/// A session, as operators see it. What lets a client use it is not in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionStatus {
    /// The session.
    pub handle: SessionHandle,
    /// The name that its client gave itself.
    pub client: String,
    /// Who opened it.
    pub opened_by: OpenedBy,
    /// The time for which the locks of a silent client are kept.
    pub ttl: Duration,
    /// What is left of it, until the locks go to others unless the client renews.
    pub left: Duration,
    /// The number of its transactions.
    pub txns: usize,
    /// The number of its lock calls that wait.
    pub waiting: usize,
    /// The reason why it is ending, for a session that was killed and is not over; else empty.
    pub ending: String,
    /// The processes that its client left running when it went; empty unless it said so.
    pub still_running: String,
}

/// A transaction, as operators see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnStatus {
    /// The transaction.
    pub txn: TxnId,
    /// Its label.
    pub label: String,
    /// Its session; `None` for one of an embedder.
    pub session: Option<SessionHandle>,
    /// The client of its session; empty for an embedder.
    pub client: String,
    /// The number of rows and ranges that it holds.
    pub locks: usize,
    /// True if a lock call of it waits.
    pub waits: bool,
    /// For how long that call has waited for locks of others; `None` if it waits for none, or for
    /// its table to be bound here.
    pub waiting: Option<Duration>,
    /// The reason why it is ending, for one that was killed and still holds its locks; else empty.
    pub ending: String,
}

/// Sessions, made in slices, in the order in which they were opened.
#[derive(Debug)]
pub struct SessionList {
    inner: Arc<ServiceInner>,
    /// The last one that was listed.
    last: SessionNumber,
}

impl SessionList {
    pub(in crate::service) fn new(inner: Arc<ServiceInner>) -> Self {
        Self { inner, last: SessionNumber::default() }
    }

    /// The next sessions, at most `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<SessionStatus>> {
        let slice = self.inner.session_numbers.after(self.last, most.max(1));
        self.last = slice.last()?.0;
        let clock = &**self.inner.parts.env.clock();
        let records = slice.into_iter().filter_map(|(_, id)| self.inner.sessions.get(&id));
        // One that has ended meanwhile is left out.
        Some(records.filter_map(|record| record.status(clock)).collect())
    }
}

/// Transactions, made in slices, in no order.
#[derive(Debug)]
pub struct TxnList {
    inner: Arc<ServiceInner>,
    /// The next shard of the map of those that have a name.
    shard: usize,
}

impl TxnList {
    pub(in crate::service) fn new(inner: Arc<ServiceInner>) -> Self {
        Self { inner, shard: 0 }
    }

    /// The next transactions, about `most` and perhaps none; `None` at the end.
    pub fn next_slice(&mut self, most: usize) -> Option<Vec<TxnStatus>> {
        let map = &self.inner.named_txns;
        if self.shard == map.shards() {
            return None;
        }
        let mut records = Vec::new();
        while self.shard < map.shards() && records.len() < most.max(1) {
            map.for_each_in(self.shard, |_, record| records.push(Arc::clone(record)));
            self.shard += 1;
        }
        Some(records.iter().map(|record| self.status(record)).collect())
    }

    fn status(&self, record: &TxnRecord) -> TxnStatus {
        let (engine, txn) = (&self.inner.engine, record.at_engine());
        let since = engine.waiting_since(record.id);
        TxnStatus {
            txn: record.id,
            label: record.label.to_string(),
            session: record.session.as_ref().map(|session| session.handle),
            client: record.client().to_owned(),
            locks: engine.lock_count(txn),
            waits: since.is_some() || txn.has_call_in_flight(),
            waiting: since.map(|since| self.inner.parts.env.now().since(since)),
            ending: record.why_killed().map(ToString::to_string).unwrap_or_default(),
        }
    }
}
