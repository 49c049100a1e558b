//! [`LocalShared`]: what the calls and tasks of a leadership share; and how a leadership begins.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot, watch};

use crate::allocator::cluster::observed::Observed;
use crate::allocator::leader::origins::Origins;
use crate::allocator::leader::writer::{Command, Done};
use crate::allocator::settings::AllocatorSettings;
use crate::allocator::state::tokens::RaiseEpoch;
use crate::allocator::state::{AllocatorState, stopping};
use crate::clock::Time;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{NodeName, ServiceId};
use crate::metrics::LeadershipMetrics;
use crate::store::{Acquired, Candidate, Op};
use crate::sync::Mutex;

/// A leadership that a store gave.
#[derive(Clone, Debug)]
pub(in crate::allocator) struct Elected {
    pub(in crate::allocator) acquired: Acquired,
    /// The time before the request, from which the leadership counts.
    pub(in crate::allocator) sent: Time,
}

/// The start of a leadership.
pub(in crate::allocator) struct Beginning {
    pub(in crate::allocator) candidate: Candidate,
    /// The leadership that the store gave; `None` to acquire it.
    pub(in crate::allocator) elected: Option<Elected>,
    /// The progress of earlier leaderships that this node observed (L4).
    pub(in crate::allocator) observed: Observed,
    /// The origins of this process, also those that were attached to a leader before this one.
    pub(in crate::allocator) origins: Arc<Origins>,
    /// What the node counts of its leaderships.
    pub(in crate::allocator) metrics: Arc<LeadershipMetrics>,
}

pub(in crate::allocator) struct LocalShared {
    pub(in crate::allocator) env: Env,
    pub(in crate::allocator) settings: AllocatorSettings,
    pub(in crate::allocator) queue: mpsc::Sender<Command>,
    /// Set once, when the opening succeeded.
    pub(in crate::allocator) state: std::sync::OnceLock<Arc<AllocatorState>>,
    /// `None` while opening.
    pub(in crate::allocator) opened: watch::Sender<Option<Result<()>>>,
    /// The reason why the leadership is over, once it is.
    pub(in crate::allocator) ended: watch::Sender<Option<Error>>,
    /// A place in the queue that is kept for [`Command::RaiseAbove`], until it is sent: it must not
    /// be lost because there is much to write.
    pub(in crate::allocator) raise_above: Mutex<Option<mpsc::OwnedPermit<Command>>>,
    /// The progress of earlier leaderships that this node observed, or that was reported where it
    /// shows that the store went back (L4).
    pub(in crate::allocator) observed: Mutex<Observed>,
    /// The incarnation of each name. Locked for a few lookups, never over an await or another lock
    /// but a service shard's.
    pub(in crate::allocator) names: Mutex<HashMap<NodeName, NameHolder>>,
    /// Entries of the map of tables, counted so that the limit holds without counting shards. Only
    /// a count: it carries no other memory, and needs no partner.
    pub(in crate::allocator) tables: crate::sync::atomic::AtomicUsize,
    pub(in crate::allocator) constants_later: Mutex<Option<Time>>,
    /// The origins of this process (C4).
    pub(in crate::allocator) origins: Arc<Origins>,
    /// What the node counts of its leaderships.
    pub(in crate::allocator) metrics: Arc<LeadershipMetrics>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::allocator) enum NameHolder {
    Known(ServiceId),
    /// Its record is being written.
    Starting(ServiceId),
}

impl LocalShared {
    /// The state, once the store is open.
    pub(in crate::allocator) async fn opened(&self) -> Result<&Arc<AllocatorState>> {
        if let Some(state) = self.state.get() {
            return Ok(state);
        }
        let mut opened = self.opened.subscribe();
        let outcome = opened.wait_for(Option::is_some).await.map_err(|_| stopping())?.clone();
        outcome.unwrap_or_else(|| Err(stopping()))?;
        self.state.get().ok_or_else(stopping)
    }

    /// The state, if the leader may respond now (L1). Every call of the allocator begins here.
    pub(in crate::allocator) async fn leading(&self) -> Result<&Arc<AllocatorState>> {
        let state = match self.state.get() {
            Some(state) => state,
            // Boxed, so that the future of each call is small.
            None => Box::pin(self.opened()).await?,
        };
        state.check_leading(self.env.now())?;
        Ok(state)
    }

    /// The reason why there is no state yet.
    pub(super) fn not_open(&self) -> Error {
        match &*self.opened.borrow() {
            Some(Err(e)) => e.clone(),
            _ => {
                Error::new(ErrorKind::Unavailable, "the allocator is opening its store: try again")
            }
        }
    }

    /// Room in the writer's queue for one change. Fails once the allocator has stopped.
    pub(in crate::allocator) async fn room(&self) -> Result<mpsc::Permit<'_, Command>> {
        self.queue.reserve().await.map_err(|_| stopping())
    }

    /// Writes `ops` and waits for it.
    pub(in crate::allocator) async fn write(&self, ops: SmallVec<[Op; 2]>) -> Result<()> {
        let (done, response) = oneshot::channel();
        self.room().await?.send(Command::Write { ops, done: send_to(done) });
        response.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Raises the epoch to at least `wanted`.
    pub(in crate::allocator) async fn raise(&self, wanted: RaiseEpoch) -> Result<()> {
        let (done, response) = oneshot::channel();
        self.room().await?.send(Command::Raise { wanted: wanted.0, done });
        response.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Hands the outcome to a caller that may have gone.
fn send_to(done: oneshot::Sender<Result<()>>) -> Done {
    Box::new(move |outcome| drop(done.send(outcome)))
}
