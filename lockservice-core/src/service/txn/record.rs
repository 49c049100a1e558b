//! [`TxnRecord`]: a transaction as the service knows it, from its begin to its end.

use std::sync::Arc;

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::TxnId;
use crate::service::session::Renewals;
use crate::service::{ServiceInner, TxnOptions};
use crate::sync::Mutex;
use crate::table::TxnHandle;

/// Longest label.
const LABEL_BYTES_MAX: usize = 255;

/// A transaction as the service knows it.
#[derive(Debug)]
pub(crate) struct TxnRecord {
    pub(crate) id: TxnId,
    pub(crate) label: String,
    /// The client of its session; empty for an embedder.
    pub(crate) client: String,
    /// The promise of its session; `None` for an embedder's, which lives as long as the process.
    pub(crate) session: Option<Arc<Renewals>>,
    pub(super) state: Mutex<TxnPhase>,
    /// Its holds.
    at_engine: TxnHandle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TxnPhase {
    Active,
    /// Nothing more is granted, but what it holds stays until it surely cannot commit.
    Closing,
    Ended,
}

impl TxnRecord {
    pub(in crate::service) fn new(
        id: TxnId,
        label: String,
        client: String,
        session: Option<Arc<Renewals>>,
    ) -> Self {
        let (state, at_engine) = (Mutex::new(TxnPhase::Active), TxnHandle::new(id));
        Self { id, label, client, session, state, at_engine }
    }

    /// The transaction at the engine.
    pub(in crate::service) const fn at_engine(&self) -> &TxnHandle {
        &self.at_engine
    }

    /// Begins its end: nothing more is granted to it. Returns the phase before.
    pub(super) fn leave_active(&self, phase: TxnPhase) -> TxnPhase {
        let before = std::mem::replace(&mut *self.state.lock(), phase);
        self.at_engine.close();
        before
    }

    pub(super) fn check_active(&self) -> Result<()> {
        match *self.state.lock() {
            TxnPhase::Active => Ok(()),
            TxnPhase::Closing | TxnPhase::Ended => Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            )
            .with("txn", self.id)),
        }
    }
}

impl ServiceInner {
    /// Begins a transaction. `now` was just read.
    pub(crate) fn begin(
        &self,
        now: Time,
        options: &TxnOptions,
        session: Option<Arc<Renewals>>,
        client: &str,
    ) -> Result<Arc<TxnRecord>> {
        self.check_serving_at(now)?;
        if options.label.len() > LABEL_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a transaction's label is too long: shorten it",
            )
            .with("bytes", options.label.len())
            .with("limit", LABEL_BYTES_MAX));
        }
        let id = TxnId::new(self.id, self.live.begin(options.validates), options.validates);
        let (label, client) = (options.label.clone(), client.to_owned());
        let record = Arc::new(TxnRecord::new(id, label, client, session));
        self.txns.insert(id, Arc::clone(&record)).inspect_err(|_| self.live.end(id))?;
        Ok(record)
    }

    /// The label and the client that operators know a transaction by.
    pub(crate) fn names(&self, txn: TxnId) -> (String, String) {
        self.txns
            .get(&txn)
            .map(|record| (record.label.clone(), record.client.clone()))
            .unwrap_or_default()
    }

    /// The processes that a transaction's client left running when it went; empty unless it said
    /// so.
    pub(crate) fn still_running(&self, txn: TxnId) -> String {
        let session = self.txns.get(&txn).and_then(|record| record.session.clone());
        session.map(|session| session.still_running().to_owned()).unwrap_or_default()
    }
}
