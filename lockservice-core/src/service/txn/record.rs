//! [`TxnRecord`]: a transaction as the service knows it, from its begin to its end.

use std::sync::Arc;

use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::TxnId;
use crate::service::session::Renewals;
use crate::service::{ServiceInner, TxnOptions};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::table::TxnHandle;

/// Longest label.
const LABEL_BYTES_MAX: usize = 255;

/// A transaction as the service knows it.
#[derive(Debug)]
pub(crate) struct TxnRecord {
    pub(crate) id: TxnId,
    pub(crate) label: Box<str>,
    /// The promise of its session; `None` for an embedder's, which lives as long as the process.
    pub(crate) session: Option<Arc<Renewals>>,
    /// A [`TxnPhase`]. ORDERING: `AcqRel` and `Acquire`, partners of each other: the end of a
    /// transaction sets it before it releases, and a lock call reads it after the grant. A grant
    /// that the release did not find was made after it, so that its call sees the end.
    phase: AtomicU8,
    /// Its holds.
    at_engine: TxnHandle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum TxnPhase {
    Active,
    /// Nothing more is granted, but what it holds stays until it surely cannot commit.
    Closing,
    Ended,
}

impl TxnPhase {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Active,
            1 => Self::Closing,
            _ => Self::Ended,
        }
    }
}

impl TxnRecord {
    pub(in crate::service) fn new(
        id: TxnId,
        label: Box<str>,
        session: Option<Arc<Renewals>>,
    ) -> Self {
        let (phase, at_engine) = (AtomicU8::new(TxnPhase::Active as u8), TxnHandle::new(id));
        Self { id, label, session, phase, at_engine }
    }

    /// The client of its session; empty for an embedder.
    pub(crate) fn client(&self) -> &str {
        self.session.as_ref().map_or("", |session| &session.client)
    }

    /// The transaction at the engine.
    pub(in crate::service) const fn at_engine(&self) -> &TxnHandle {
        &self.at_engine
    }

    /// Begins its end: nothing more is granted to it. Returns the phase before.
    pub(super) fn leave_active(&self, phase: TxnPhase) -> TxnPhase {
        let before = self.set_phase(phase);
        self.at_engine.close();
        before
    }

    /// Returns the phase before.
    pub(super) fn set_phase(&self, phase: TxnPhase) -> TxnPhase {
        TxnPhase::of(self.phase.swap(phase as u8, Ordering::AcqRel))
    }

    pub(super) fn check_active(&self) -> Result<()> {
        match TxnPhase::of(self.phase.load(Ordering::Acquire)) {
            TxnPhase::Active => Ok(()),
            TxnPhase::Closing | TxnPhase::Ended => Err(Error::new(
                ErrorKind::TxnNotFound,
                "the transaction has ended: start a new one",
            )
            .with("txn", self.id)),
        }
    }
}

/// A lock call of a transaction that is being made. Until it is dropped no row is locked at once
/// for the transaction, and no savepoint is gone back to (T2).
#[derive(Debug)]
pub(in crate::service) struct CallInFlight(Arc<TxnRecord>);

impl CallInFlight {
    pub(in crate::service) fn new(txn: Arc<TxnRecord>) -> Self {
        txn.at_engine.call_begins();
        Self(txn)
    }

    pub(in crate::service) fn txn(&self) -> &TxnRecord {
        &self.0
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.0.at_engine.call_ends();
    }
}

impl ServiceInner {
    /// Begins a transaction. `now` was just read.
    pub(crate) fn begin(
        &self,
        now: Time,
        options: &TxnOptions,
        session: Option<Arc<Renewals>>,
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
        let label = options.label.as_str().into();
        let record = Arc::new(TxnRecord::new(id, label, session));
        self.txns.insert(id, Arc::clone(&record)).inspect_err(|_| self.live.end(id))?;
        Ok(record)
    }

    /// The label and the client that operators know a transaction by.
    pub(crate) fn names(&self, txn: TxnId) -> (String, String) {
        self.txns
            .get(&txn)
            .map(|record| (String::from(&*record.label), record.client().to_owned()))
            .unwrap_or_default()
    }

    /// The processes that a transaction's client left running when it went; empty unless it said
    /// so.
    pub(crate) fn still_running(&self, txn: TxnId) -> String {
        let session = self.txns.get(&txn).and_then(|record| record.session.clone());
        session.map(|session| session.still_running().to_owned()).unwrap_or_default()
    }
}
