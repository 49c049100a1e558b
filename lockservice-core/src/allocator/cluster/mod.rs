//! [`ElectedAllocator`]: the cluster's allocator as one node sees it. It leads when it is elected,
//! and otherwise follows the leader (L1, L3, L4).
//!
//! | file | noun |
//! |---|---|
//! | `campaign` | the election: the task that requests the leadership, leads and follows |
//! | `watch` | a candidate's observation of the leader's record; pure |
//! | `route` | the way of a call to the leader, in six steps |
//! | `view` | the calls that other nodes and clients may make to this one |
//! | `observed` | the high-water marks of earlier leaders, for later leaders; pure |
//!
//! ```text
//!   this node's service ──▶ ElectedAllocator ──▶ Route ──▶ LocalAllocator of this node
//!                                                  └─────▶ AllocatorPeers ──▶ another node
//!   other nodes, clients ──▶ LeaderView ──▶ LocalAllocator of this node, or a refusal
//! ```
//!
//! # Implementation details
//! Each leadership is a [`LocalAllocator`] of its own with a nonce of its own, so that no memory of
//! an earlier one is left in it. Calls are routed by the role that the campaign last published; the
//! campaign holds nothing over an await that a call needs.
//!
//! Nodes report their high-water marks of earlier leaders to later ones (L4). A renewal reports for
//! an incarnation that its leader knows. Everything else is proven with the key of the cluster,
//! which comes with every response of the store: see [`Cluster`].

mod campaign;
pub(in crate::allocator) mod observed;
mod route;
mod view;
pub(crate) mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::{Receiver, Sender};

use crate::allocator::cluster::campaign::campaign;
use crate::allocator::cluster::observed::Observed;
use crate::allocator::cluster::view::LeaderView;
use crate::allocator::leader::origins::Origins;
use crate::allocator::leader::{AllocatorStopped, LocalAllocator};
use crate::allocator::state::stopping;
use crate::allocator::{AllocatorSettings, LockTableAllocator};
use crate::env::{Env, JoinHandle};
use crate::error::{Error, Result};
use crate::id::NodeName;
use crate::metrics::LeadershipMetrics;
use crate::store::{BindStore, Cluster, ClusterId, NodeAddress};
use crate::sync::Mutex;

/// The pause of a call before it looks for the leader again, where no event reports one.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The interval at which a stop checks that the aborted campaign has ended, which takes moments.
const CAMPAIGN_ENDS: Duration = Duration::from_millis(1);

/// The way of a node to the allocators of others.
pub trait AllocatorPeers: fmt::Debug + Send + Sync + 'static {
    /// The allocator at `address`, which may not respond, or not lead. Connects when it is first
    /// called.
    ///
    /// Its calls name `cluster` as the caller's, and fail with `Unavailable` if another cluster
    /// responds (T3).
    ///
    /// # Errors
    /// `InvalidArgument` for a text that is no address.
    fn connect(&self, address: &str, cluster: ClusterId) -> Result<Arc<dyn LockTableAllocator>>;
}

/// The cluster's allocator as one node sees it: any number of nodes with one store, one of which
/// leads (L1).
///
/// Calls go to the leader, which may be this very process. While none is known they wait, at most
/// for about two leadership TTLs, then fail with `Unavailable`. Responses of an earlier leadership
/// than the last known are rejected (L3), and the progress of each leader is reported to a later
/// one at the next [`keepalive`](LockTableAllocator::keepalive) (L4). Other nodes call
/// [`as_leader`](Self::as_leader), clients call [`for_clients`](Self::for_clients).
///
/// On an exclusive store it leads at once and never follows.
#[derive(Debug)]
pub struct ElectedAllocator {
    shared: Arc<ElectedShared>,
    /// Locked for a moment, together with nothing.
    campaign: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct ElectedShared {
    store: Arc<dyn BindStore>,
    env: Env,
    settings: AllocatorSettings,
    node: NodeName,
    address: NodeAddress,
    peers: Arc<dyn AllocatorPeers>,
    role: Sender<Role>,
    /// The cluster of the store, as its last response named it.
    cluster: Sender<Option<Cluster>>,
    /// The leadership that is being opened, or is open, until it is over. Locked to set or to take
    /// it.
    local: Mutex<Option<Arc<LocalAllocator>>>,
    /// The result of the stop. Locked while a stop is in progress.
    stopped: tokio::sync::Mutex<Option<AllocatorStopped>>,
    /// The progress of each leadership (L3, L4). Locked for a comparison.
    observed: Mutex<Observed>,
    /// The origins of this process (C4).
    origins: Arc<Origins>,
    /// What the node counts of its leaderships.
    metrics: Arc<LeadershipMetrics>,
}

/// The part of a node in the cluster's allocator. Exhaustive: a server must handle each.
///
/// Exhaustive on purpose: a match must handle each.
#[derive(Clone, Debug)]
pub enum Role {
    /// It knows no leader, because of the store's error if there is one.
    Searching(Option<Error>),
    /// It leads.
    Leading(Arc<LocalAllocator>),
    /// Another leads.
    Following {
        /// The address at which other nodes reach the leader.
        address: String,
        /// The address at which clients reach the leader. Empty if it is not known.
        clients: String,
        /// The cluster that it leads.
        cluster: ClusterId,
        /// The leader.
        allocator: Arc<dyn LockTableAllocator>,
    },
    /// It was stopped, or can never lead again.
    Stopped(Error),
}

impl ElectedAllocator {
    /// Joins the cluster of `store` as `node`, which other nodes and clients reach at `address`.
    /// Returns at once; [`elected`](Self::elected) waits.
    ///
    /// Dropping it without [`shutdown`](Self::shutdown) lets the others wait for the leadership's
    /// TTL.
    ///
    /// # Errors
    /// `InvalidArgument` for settings out of range.
    ///
    /// # Panics
    /// Outside of a tokio runtime, in which it spawns a task that ends with it.
    pub fn start(
        store: Arc<dyn BindStore>,
        env: impl Into<Env>,
        settings: AllocatorSettings,
        node: NodeName,
        address: impl Into<NodeAddress>,
        peers: Arc<dyn AllocatorPeers>,
    ) -> Result<Arc<Self>> {
        settings.check()?;
        let env = env.into();
        let shared = Arc::new(ElectedShared {
            store,
            env: env.clone(),
            settings,
            node,
            address: address.into(),
            peers,
            role: Sender::new(Role::Searching(None)),
            cluster: Sender::new(None),
            local: Mutex::new(None),
            stopped: tokio::sync::Mutex::new(None),
            observed: Mutex::new(Observed::default()),
            origins: Arc::default(),
            metrics: Arc::default(),
        });
        let campaign = env.spawn(campaign(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared, campaign: Mutex::new(Some(campaign)) }))
    }

    /// Waits until a leader is known, or this node leads.
    ///
    /// # Errors
    /// The store's error, as soon as the store does not let it find out. It may be called again:
    /// the campaign goes on.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn elected(&self) -> Result<()> {
        let mut roles = self.shared.role.subscribe();
        let role = roles
            .wait_for(|role| !matches!(role, Role::Searching(None)))
            .await
            .map_err(|_| stopping())?;
        match &*role {
            Role::Searching(Some(e)) | Role::Stopped(e) => Err(e.clone()),
            _ => Ok(()),
        }
    }

    /// The part of this node now.
    pub fn role(&self) -> Role {
        self.shared.role.borrow().clone()
    }

    /// What this node counts of its leaderships.
    pub fn metrics(&self) -> &Arc<LeadershipMetrics> {
        &self.shared.metrics
    }

    /// The changes that wait for the store at this node, if it leads, and the most that may. A node
    /// that does not lead writes nothing.
    pub fn queued_changes(&self) -> (usize, usize) {
        let queued = match &*self.shared.role.borrow() {
            Role::Leading(leader) => leader.queued_changes(),
            _ => 0,
        };
        (queued, self.shared.settings.queue_max)
    }

    /// The role as it changes.
    pub fn roles(&self) -> Receiver<Role> {
        self.shared.role.subscribe()
    }

    /// The cluster of the store, as it changes; `None` until the store has named it.
    pub fn cluster(&self) -> Receiver<Option<Cluster>> {
        self.shared.cluster.subscribe()
    }

    /// The allocator for calls of other nodes: each succeeds if this node leads, or fails with
    /// `NotLeader`, which says where nodes reach the leader.
    ///
    /// On an exclusive store the calls that are for nodes fail with `NotPermitted`: only this
    /// process can be meant, and it has this [`ElectedAllocator`].
    pub fn as_leader(&self) -> Arc<dyn LockTableAllocator> {
        Arc::new(LeaderView { shared: Arc::clone(&self.shared), nodes: true })
    }

    /// The allocator for calls of clients: each succeeds if this node leads, or fails with
    /// `NotLeader`, which says where clients reach the leader.
    ///
    /// Calls that are for nodes fail with `NotPermitted`.
    pub fn for_clients(&self) -> Arc<dyn LockTableAllocator> {
        Arc::new(LeaderView { shared: Arc::clone(&self.shared), nodes: false })
    }

    /// Stops: campaigns no more and, if it leads, gives the leadership up as
    /// [`LocalAllocator::shutdown`] does. A node that follows has nothing to give up and returns as
    /// if it had. Once it has returned, it returns the same.
    ///
    /// # Errors
    /// The same as [`LocalAllocator::shutdown`].
    ///
    /// # Cancel safety
    /// Dropped half way, it may be called again, and goes on.
    pub async fn shutdown(&self, quiet: bool, grace: Duration) -> Result<AllocatorStopped> {
        let mut outcome = self.shared.stopped.lock().await;
        if let Some(stopped) = *outcome {
            return Ok(stopped);
        }
        if let Some(campaign) = &*self.campaign.lock() {
            campaign.abort();
        }
        // Aborted, it ends at its next await. It is taken only then, so that a second stop, after
        // this one was dropped, waits for it too.
        while self.campaign.lock().as_ref().is_some_and(|campaign| !campaign.is_finished()) {
            self.shared.env.sleep(CAMPAIGN_ENDS).await;
        }
        // It leads until it has ended: commits in flight, for which it waits, must be able to
        // finish. Also a leadership that is still being opened is one that the others wait out.
        let local = self.shared.local.lock().clone();
        let stopped = match local {
            Some(local) => local.shutdown(quiet, grace).await,
            None => Ok(AllocatorStopped { resigned: true }),
        };
        self.shared.role.send_replace(Role::Stopped(stopping()));
        *outcome = stopped.as_ref().ok().copied();
        stopped
    }
}

impl Drop for ElectedAllocator {
    fn drop(&mut self) {
        if let Some(task) = self.campaign.lock().take() {
            task.abort();
        }
    }
}
