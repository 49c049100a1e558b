//! [`TxnRecord`]: a transaction as the service knows it, from its begin to its end.

use std::sync::{Arc, OnceLock};

use crate::clock::{Clock, Time};
use crate::error::{Error, ErrorKind, Result};
use crate::id::TxnId;
use crate::service::limits::LimitedHolds;
use crate::service::session::Renewals;
use crate::service::session::quota::TxnCharge;
use crate::service::txn::kill::TxnKill;
use crate::service::{ServiceInner, TxnOptions, TxnParty};
use crate::sync::atomic::{AtomicU64, Ordering};
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
    /// Its holds, and whether it is closed (nothing more is granted, but what it holds stays until
    /// it surely cannot commit) or has ended.
    at_engine: TxnHandle,
    pub(in crate::service) held_since: HeldSince,
    rare: OnceLock<Box<Rare>>,
    /// What it takes of the quota of its client, if that is bounded.
    charge: Option<TxnCharge>,
}

/// What few transactions have: made when it is needed, so that the others stay small.
#[derive(Debug, Default)]
struct Rare {
    kill: TxnKill,
    limited: LimitedHolds,
}

/// When a transaction was first granted a lock, if that is noted.
///
/// ORDERING: `Relaxed`, without a partner: a measurement, on which nothing depends.
#[derive(Debug, Default)]
pub(in crate::service) struct HeldSince(AtomicU64);

impl HeldSince {
    /// Notes a grant; only the first one counts.
    pub(in crate::service) fn note(&self, now: impl FnOnce() -> Time) {
        if self.0.load(Ordering::Relaxed) == 0 {
            self.0.store(now().as_nanos().max(1), Ordering::Relaxed);
        }
    }

    pub(in crate::service) fn get(&self) -> Option<Time> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Time::from_nanos(nanos)),
        }
    }
}

impl TxnRecord {
    pub(in crate::service) fn new(
        id: TxnId,
        label: Box<str>,
        session: Option<Arc<Renewals>>,
    ) -> Self {
        let at_engine = TxnHandle::new(id);
        let (held_since, rare) = Default::default();
        Self { id, label, session, at_engine, held_since, rare, charge: None }
    }

    /// What operators know of it.
    fn party(&self, clock: &dyn Clock) -> TxnParty {
        let session = self.session.as_deref();
        TxnParty {
            label: self.label.to_string(),
            client: self.client().to_owned(),
            session: session.map(|session| session.handle),
            opened_by: session.map(|session| session.opened_by.clone()).unwrap_or_default(),
            left: session.and_then(|session| session.left(clock)),
            held: self.held_since.get().map(|since| clock.now().since(since)),
            still_running: session.map_or_else(String::new, |it| it.still_running().to_owned()),
        }
    }

    /// It is charged to its client.
    fn charged(mut self, charge: Option<TxnCharge>) -> Self {
        if let Some(charge) = &charge {
            self.at_engine.allow(charge.reserved());
        }
        self.charge = charge;
        self
    }

    pub(super) const fn charge(&self) -> Option<&TxnCharge> {
        self.charge.as_ref()
    }

    /// The client of its session; empty for an embedder.
    pub(crate) fn client(&self) -> &str {
        self.session.as_ref().map_or("", |session| &session.client)
    }

    /// True if operators know it by a label, or by the client of its session.
    pub(in crate::service) fn has_name(&self) -> bool {
        self.session.is_some() || !self.label.is_empty()
    }

    /// The transaction at the engine.
    pub(in crate::service) const fn at_engine(&self) -> &TxnHandle {
        &self.at_engine
    }

    /// The kill of the transaction, if there is or was to be one.
    pub(in crate::service) fn kill(&self) -> Option<&TxnKill> {
        self.rare.get().map(|rare| &rare.kill)
    }

    /// The kill of the transaction, perhaps to come.
    pub(in crate::service) fn kill_or_new(&self) -> &TxnKill {
        &self.rare.get_or_init(Box::default).kill
    }

    /// What it holds in tables with a limit, if it held something there.
    pub(in crate::service) fn limited(&self) -> Option<&LimitedHolds> {
        self.rare.get().map(|rare| &rare.limited)
    }

    /// What it holds in tables with a limit, perhaps to come.
    pub(in crate::service) fn limited_or_new(&self) -> &LimitedHolds {
        &self.rare.get_or_init(Box::default).limited
    }

    /// The reason why it was killed, if it was.
    pub(in crate::service) fn why_killed(&self) -> Option<&Error> {
        self.kill().and_then(TxnKill::why)
    }

    pub(in crate::service) fn check_active(&self) -> Result<()> {
        if !self.at_engine.is_closed() {
            return Ok(());
        }
        if let Some(why) = self.why_killed() {
            return Err(why.clone());
        }
        let what = "the transaction has ended: start a new one";
        Err(Error::new(ErrorKind::TxnNotFound, what).with("txn", self.id))
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

    /// Its transaction, to be kept.
    pub(in crate::service) const fn record(&self) -> &Arc<TxnRecord> {
        &self.0
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.0.at_engine.call_ends();
    }
}

fn check_label(options: &TxnOptions) -> Result<()> {
    if options.label.len() <= LABEL_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, "a transaction's label is too long: shorten it")
        .with("bytes", options.label.len())
        .with("limit", LABEL_BYTES_MAX))
}

impl ServiceInner {
    /// Begins a transaction, of a session that has this `charge` for it. `now` was just read.
    pub(crate) fn begin(
        &self,
        now: Time,
        options: &TxnOptions,
        session: Option<Arc<Renewals>>,
        charge: Option<TxnCharge>,
    ) -> Result<Arc<TxnRecord>> {
        self.check_serving_at(now)?;
        check_label(options)?;
        self.txns.enter()?;
        let id = TxnId::new(self.id, self.live.begin(options.validates), options.validates);
        let label = options.label.as_str().into();
        let record = Arc::new(TxnRecord::new(id, label, session).charged(charge));
        if record.has_name() {
            self.named_txns.upsert(id, || Arc::clone(&record), |_| ());
        }
        Ok(record)
    }

    /// Begins a transaction that its client had before a restart, under its id (P6); under a new
    /// one if it has none.
    pub(in crate::service) fn begin_with_id(
        &self,
        id: Option<TxnId>,
        options: &TxnOptions,
        session: Arc<Renewals>,
        charge: Option<TxnCharge>,
    ) -> Result<Arc<TxnRecord>> {
        let Some(id) = id else {
            return self.begin(self.parts.env.now(), options, Some(session), charge);
        };
        self.check_serving()?;
        check_label(options)?;
        self.txns.enter()?;
        let label = options.label.as_str().into();
        let record = Arc::new(TxnRecord::new(id, label, Some(session)).charged(charge));
        let is_first = self.named_txns.alter(&id, |slot| {
            let is_first = slot.is_none();
            slot.get_or_insert_with(|| Arc::clone(&record));
            is_first
        });
        if !is_first {
            self.txns.leave();
            return Err(Error::new(
                ErrorKind::ClaimRefused,
                "another session has claimed this transaction",
            )
            .with("txn", id));
        }
        Ok(record)
    }

    /// The label and the client that operators know a transaction by.
    pub(crate) fn names(&self, txn: TxnId) -> (String, String) {
        self.named_txns
            .read(&txn, |record| {
                record.map(|record| (String::from(&*record.label), record.client().to_owned()))
            })
            .unwrap_or_default()
    }

    /// What operators know of a transaction; nothing if it has no name, or has ended.
    pub(crate) fn party(&self, txn: TxnId) -> TxnParty {
        // The parts are read, and copied, while others use the map.
        let record = self.named_txns.read(&txn, |record| record.cloned());
        record.map(|record| record.party(&**self.parts.env.clock())).unwrap_or_default()
    }
}
