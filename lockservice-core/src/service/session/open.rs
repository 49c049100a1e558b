//! The begin of a session, and the look-up of a known one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{ServiceId, SessionHandle, SessionId, TxnNumber};
use crate::service::session::end::unknown;
use crate::service::session::quota::{Charge, Quota};
use crate::service::session::renewals::Renewals;
use crate::service::session::state::{SessionState, Stage};
use crate::service::session::{Session, SessionRecord};
use crate::service::txn::waits::Waits;
use crate::service::{LockService, ServiceInner};
use crate::sync::Mutex;

/// Who opened a session, as far as the server knows; for operators.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenedBy {
    /// The name of the caller's identity; empty if callers have none.
    pub identity: String,
    /// The address from which it was opened; empty if that is not known.
    pub address: String,
}

impl ServiceInner {
    /// The session that operators know by `handle`, unless it is over.
    pub(in crate::service) fn session_of(
        self: &Arc<Self>,
        handle: SessionHandle,
    ) -> Option<Session> {
        let number = (handle.service == self.id).then_some(handle.number)?;
        let record = self.sessions.get(&self.session_numbers.get(number)?)?;
        Some(Session { record, inner: Arc::clone(self) })
    }
}

impl LockService {
    /// Opens a session whose locks are kept for `ttl` (the default of the settings if `None`) after
    /// its last renewal.
    ///
    /// # Errors
    /// `InvalidArgument`: the TTL or the name is out of bounds. `ShuttingDown`, `LeaseLost`: the
    /// service no longer serves. `ResourceExhausted`: the limit of sessions is reached.
    pub fn open_session(&self, ttl: Option<Duration>, client: &str) -> Result<Session> {
        self.open_session_within(None, ttl, client, OpenedBy::default())
    }

    /// Like [`open_session`](Self::open_session), for the peer `opened_by`, whose sessions together
    /// are bounded by `quota` if there is one.
    ///
    /// # Errors
    /// Those of [`open_session`](Self::open_session); `ResourceExhausted` at the bounds of `quota`,
    /// too.
    pub fn open_session_within(
        &self,
        quota: Option<Arc<Quota>>,
        ttl: Option<Duration>,
        client: &str,
        opened_by: OpenedBy,
    ) -> Result<Session> {
        // Random, so that one client cannot use another's session by counting; below 2^53, as all
        // ids; not 0.
        let id = SessionId::new(self.inner.parts.env.random_id());
        self.open_session_as((id, None), quota, ttl, client, opened_by)
    }

    /// Opens a session under this id, one that its client had at an earlier incarnation if one is
    /// given.
    pub(in crate::service) fn open_session_as(
        &self,
        (id, claims_from): (SessionId, Option<ServiceId>),
        quota: Option<Arc<Quota>>,
        ttl: Option<Duration>,
        client: &str,
        opened_by: OpenedBy,
    ) -> Result<Session> {
        let inner = &self.inner;
        inner.check_serving()?;
        let ttl = inner.parts.settings.session_ttl(ttl)?;
        if client.len() > 255 || client.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a client's name is at most 255 bytes without control characters",
            ));
        }
        let charge = Charge::session(quota, &inner.quota)?;
        let handle = SessionHandle { service: inner.id, number: inner.session_numbers.next() };
        let record = Arc::new(SessionRecord {
            id,
            renewals: Arc::new(Renewals::new(
                ttl,
                handle,
                (client, opened_by),
                inner.parts.env.now(),
            )),
            state: Mutex::new(SessionState {
                stage: Stage::Open,
                stopped: Vec::new(),
                killers: Vec::new(),
                txns: HashMap::default(),
                lost: Vec::new(),
                highest: TxnNumber::default(),
                numbered_by: None,
                kept_bytes: 0,
                ops: 0,
                charge,
                refused_claims: HashSet::new(),
                has_lost_claims: false,
                has_claimed: false,
            }),
            claims_from,
            ending: watch::Sender::default(),
            attached: watch::Sender::default(),
            waits: Waits::default(),
            span: tracing::debug_span!("session", client),
        });
        if !inner.sessions.insert(id, Arc::clone(&record))? {
            return Err(unknown());
        }
        inner.metrics().sessions_opened.add(1);
        inner.session_numbers.insert(handle.number, id);
        let session = Session { record, inner: Arc::clone(inner) };
        let watch = session.clone().watch_over();
        inner.spawn(watch.instrument(session.record.span.clone()));
        Ok(session)
    }

    /// The session with this id, if a caller with this `identity` opened it: an empty one stands
    /// for all callers without.
    ///
    /// # Errors
    /// As [`session`](Self::session). Whether another opened it is not told.
    pub fn session_of(&self, id: SessionId, identity: &str) -> Result<Session> {
        let session = self.session(id)?;
        if session.record.renewals.opened_by.identity == identity {
            Ok(session)
        } else {
            Err(unknown())
        }
    }

    /// The session with this id.
    ///
    /// # Errors
    /// `SessionLost` if there is none, or no longer: stop the protected work.
    pub fn session(&self, id: SessionId) -> Result<Session> {
        match self.inner.sessions.get(&id) {
            Some(record) => Ok(Session { record, inner: Arc::clone(&self.inner) }),
            // One that ended with the service may go on at the next incarnation (P6).
            None => Err(self.inner.check_serving().err().unwrap_or_else(unknown)),
        }
    }
}
