//! The campaign: one task per node requests the leadership from the store, watches the leader, and
//! leads when it is elected (L1).
//!
//! # What the task does
//! 1. [`Campaign::acquire`] requests the leadership from the store, with what the node has observed
//!    unchanged for hi(leadership TTL), if anything.
//! 2. If the store gives it, [`Campaign::won`] leads until that is over ([`ElectedShared::lead`]),
//!    takes a new nonce, and goes on with step 1.
//! 3. If another holds it, [`Campaign::lost`] follows the leader ([`ElectedShared::follow`]), adds
//!    the reading to its [`LeadershipWatch`], and waits for a change of the store, or until the
//!    watch is complete.
//! 4. If the store does not say, [`Campaign::failed`] pauses.
//!
//! The task ends when an exclusive store is lost: it cannot be led again by this process.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::allocator::cluster::watch::{LeadershipWatch, Namesake};
use crate::allocator::cluster::{ElectedShared, Role, TRY_AGAIN};
use crate::allocator::leader::recover::acquire;
use crate::allocator::leader::{Beginning, Elected, LocalAllocator};
use crate::error::{Error, ErrorKind};
use crate::id::{Epoch, Nonce};
use crate::store::{Candidate, Cluster, Leadership, NodeAddress, Seen};

/// The first pause after the store failed to respond. It is doubled up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Leads whenever it may. Ends only when an exclusive store is lost.
pub(super) async fn campaign(shared: Arc<ElectedShared>) {
    let mut campaign = Campaign::new(shared);
    while campaign.acquire().await.is_continue() {}
}

/// The state of the task between two requests to the store.
struct Campaign {
    shared: Arc<ElectedShared>,
    ttl: Duration,
    candidate: Candidate,
    watch: LeadershipWatch,
    namesake: Namesake,
    pause: Duration,
    /// The reason why the last leadership of this node could not read the store.
    unreadable: Option<Error>,
}

impl Campaign {
    fn new(shared: Arc<ElectedShared>) -> Self {
        Self {
            ttl: shared.settings.constants.leadership_ttl(),
            candidate: Candidate::in_env(&shared.env, shared.node.clone(), shared.address.clone()),
            watch: LeadershipWatch::default(),
            namesake: Namesake::default(),
            pause: PAUSE_FIRST,
            unreadable: None,
            shared,
        }
    }

    /// Requests the leadership once, and acts on the response.
    async fn acquire(&mut self) -> ControlFlow<()> {
        let shared = &self.shared;
        self.candidate.floor = shared.observed.lock().last().epoch;
        self.candidate.seen = self.watch.complete(self.ttl, shared.env.now()).cloned();
        match acquire(&*shared.store, &shared.env, &self.candidate, self.ttl).await {
            Ok((Leadership::Acquired(acquired), sent)) => {
                self.won(Elected { acquired, sent }).await
            }
            Ok((Leadership::Held { seen, address, cluster }, _)) => {
                self.lost(seen, address, cluster).await;
                ControlFlow::Continue(())
            }
            // Only an exclusive store fails so: another process may have its path now.
            Err(e) if e.kind() == ErrorKind::Fenced => {
                shared.role.send_replace(Role::Stopped(e));
                ControlFlow::Break(())
            }
            Err(e) => {
                self.failed(e).await;
                ControlFlow::Continue(())
            }
        }
    }

    /// Leads until that is over.
    async fn won(&mut self, elected: Elected) -> ControlFlow<()> {
        let shared = &self.shared;
        let (cluster, exclusive) = (elected.acquired.cluster, elected.acquired.exclusive);
        self.candidate.cluster = cluster;
        shared.belongs_to(cluster);
        tracing::info!(
            epoch = %elected.acquired.epoch,
            continuous = elected.acquired.continuous,
            cluster = %cluster.id,
            "leads the store"
        );
        let why = shared.lead(Beginning {
            candidate: self.candidate.clone(),
            elected: Some(elected),
            observed: shared.observed.lock().clone(),
            origins: Arc::clone(&shared.origins),
            metrics: Arc::clone(&shared.metrics),
        });
        let why = why.await;
        if exclusive {
            // No other process can have the leadership, so another try would not help: the store
            // failed, or another process took it over.
            shared.role.send_replace(Role::Stopped(why));
            return ControlFlow::Break(());
        }
        tracing::warn!(error = ?why, "does not lead any more; requests the leadership again");
        *shared.local.lock() = None;
        // No node can lead a store that cannot be read: callers get the reason, until a node leads.
        let is_unreadable = matches!(
            why.kind(),
            ErrorKind::StoreCorrupt | ErrorKind::StoreNewer | ErrorKind::StoreUnusable
        );
        self.unreadable = is_unreadable.then_some(why);
        shared.role.send_replace(Role::Searching(self.unreadable.clone()));
        // A nonce of its own for each leadership: commits that the last one admitted may still be
        // in flight, so this process counts like any other.
        self.candidate.nonce = Nonce::new(shared.env.random_u64());
        self.watch.restart();
        self.pause = PAUSE_FIRST;
        ControlFlow::Continue(())
    }

    /// Follows the leader until its record may have changed, or stood still for long enough.
    async fn lost(&mut self, seen: Seen, address: Option<NodeAddress>, cluster: Option<Cluster>) {
        let shared = &self.shared;
        if let Some(cluster) = cluster {
            // If the store loses that, and this node leads it, the cluster stays the same.
            self.candidate.cluster = cluster;
            shared.belongs_to(cluster);
        }
        if seen.leader.is_none() {
            tracing::info!("the store holds no leader's record: waiting, in case it was lost");
        }
        let own = &shared.address.nodes;
        let at_our_address = address.as_ref().is_some_and(|at| !own.is_empty() && at.nodes == *own);
        let taken = at_our_address && seen.leader.is_some_and(|leader| self.namesake.lives(leader));
        self.watch.observe(seen, shared.env.now());
        if taken {
            shared.follow(None, Some(&address_taken(own)));
        } else {
            shared.follow(address, self.unreadable.as_ref());
        }
        let left = self.watch.left(self.ttl, shared.env.now());
        // An error only means that the store does not know; the next round tries again.
        let poll = left.clamp(Duration::from_millis(1), self.ttl / 8);
        if let Err(e) = shared.store.wait_for_change(poll).await {
            tracing::debug!(error = ?e, "cannot wait for a change of leadership; tries again soon");
            shared.env.sleep(left.min(TRY_AGAIN)).await;
        }
        self.pause = PAUSE_FIRST;
    }

    /// Publishes why the store does not say who leads, and pauses.
    async fn failed(&mut self, e: Error) {
        tracing::warn!(error = ?e, "cannot read the leadership from the store; trying again");
        self.shared.role.send_if_modified(|role| {
            let searching = matches!(role, Role::Searching(_));
            if searching {
                *role = Role::Searching(Some(e));
            }
            searching
        });
        self.shared.env.sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

impl ElectedShared {
    /// Leads until that is over; returns why.
    async fn lead(&self, beginning: Beginning) -> Error {
        // The leader that the node followed does not lead any more, and this node cannot serve yet.
        self.role.send_replace(Role::Searching(None));
        let known = beginning.observed.clone();
        let epoch = beginning
            .elected
            .as_ref()
            .map_or_else(Epoch::default, |elected| elected.acquired.epoch);
        let started = LocalAllocator::begin(
            Arc::clone(&self.store),
            self.env.clone(),
            self.settings.clone(),
            beginning,
        );
        let local = match started {
            Ok(local) => local,
            Err(e) => return e,
        };
        *self.local.lock() = Some(Arc::clone(&local));
        if let Err(e) = local.opened().await {
            return e;
        }
        // Earlier progress is accounted for: the leadership began with it.
        {
            let mut observed = self.observed.lock();
            known.each().iter().for_each(|report| observed.compared(*report, epoch));
        }
        self.role.send_replace(Role::Leading(Arc::clone(&local)));
        let why = local.ended().await;
        let mut observed = self.observed.lock();
        local.observed().each().iter().for_each(|at| observed.add(*at));
        why
    }

    /// Remembers to which cluster the store belongs.
    fn belongs_to(&self, cluster: Cluster) {
        let before = self.cluster.send_replace(Some(cluster));
        if let Some(before) = before.filter(|before| before.id != cluster.id) {
            tracing::error!(
                store = %self.store.describe(),
                before = %before.id,
                now = %cluster.id,
                "the store belongs to another cluster than before: it was emptied, or restored \
                    from a dump"
            );
        }
    }

    /// Publishes the address of the leader, or that none is known.
    fn follow(&self, address: Option<NodeAddress>, unreadable: Option<&Error>) {
        // Its own address is that of the process that it replaces, or of its own last leadership.
        let address = address
            .filter(|address| !address.nodes.is_empty() && address.nodes != self.address.nodes);
        // No leader is recorded without it.
        let cluster = self.cluster.borrow().map(|cluster| cluster.id);
        let next = match address.zip(cluster) {
            None => Role::Searching(unreadable.cloned()),
            Some((NodeAddress { nodes, clients }, cluster)) => {
                let follows = |role: &Role| {
                    matches!(role, Role::Following { address, clients: known, cluster: of, .. }
                        if (address, known, *of) == (&nodes, &clients, cluster))
                };
                if follows(&self.role.borrow()) {
                    return;
                }
                match self.peers.connect(&nodes, cluster) {
                    Ok(allocator) => {
                        tracing::info!(leader = %nodes, %cluster, "follows the leader");
                        Role::Following { address: nodes, clients, cluster, allocator }
                    }
                    Err(e) => Role::Searching(Some(e.with("leader", nodes))),
                }
            }
        };
        let same =
            matches!((&*self.role.borrow(), &next), (Role::Searching(None), Role::Searching(None)));
        if !same {
            self.role.send_replace(next);
        }
    }
}

fn address_taken(address: &str) -> Error {
    Error::new(
        ErrorKind::NameInUse,
        "another node leads the store and publishes that it is reached at this node's own \
         address: give each node \
         addresses of its own with --peer-advertise and --advertise",
    )
    .with("address", address)
}
