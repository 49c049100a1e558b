//! [`ElectedAllocator`]: the cluster's allocator as one node sees it. It leads when it is elected,
//! and follows whoever is (L1, L3, L4).
//!
//! # Implementation details
//! One task campaigns: it asks the store for the leadership, watches whoever holds it, and takes
//! over what stood still for long enough ([`LeadershipWatch`]). Each leadership is a
//! [`LocalAllocator`] of its own with a nonce of its own, so that no memory of an earlier one is
//! left in it. Calls are routed by the role that the task last published; the task holds nothing
//! over an await that a call needs.
//!
//! What leaders told is reported to later ones (L4). A renewal reports for an incarnation that its
//! leader knows. Everything else is proven with the key of the cluster, which every answer of the
//! store tells: see [`Cluster`].

pub(in crate::allocator) mod observed;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::allocator::cluster::observed::Observed;
use crate::allocator::leader::leadership::{LeadershipWatch, Namesake};
use crate::allocator::leader::origins::Origins;
use crate::allocator::leader::recover::{HeldBy, acquire};
use crate::allocator::leader::{AllocatorStopped, Beginning, LocalAllocator};
use crate::allocator::messages::{
    AllocatorStatus, Answer, BeginCommit, BoundTable, CannotCommit, CommitAdmission, Forgetting,
    Incarnation, Latest, LeaseAck, Progress, Registration, Released, ReservedTokens,
};
use crate::allocator::report::Report;
use crate::allocator::state::commits::{OriginTxns, TxnRange};
use crate::allocator::state::stopping;
use crate::allocator::{AllocatorSettings, LockTableAllocator};
use crate::clock::{Clock, Time, hi};
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{
    BindVersion, CommitAttempt, Epoch, NodeName, Nonce, ServiceId, TableId, TableRef, TxnId,
};
use crate::store::{BindStore, Candidate, Cluster, ClusterId, NodeAddress};
use crate::sync::Mutex;

/// First pause after the store failed to answer; doubled up to [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(1);
/// How long a call waits before it asks again who leads, where nobody tells it.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often it is looked whether the campaign has ended that a stop has aborted: it does within
/// moments.
const CAMPAIGN_ENDS: Duration = Duration::from_millis(1);
/// How often a call follows a hint before it waits for the campaign to find the leader (T5).
const HOPS_MAX: usize = 3;

/// How a node reaches the allocators of others.
pub trait AllocatorPeers: fmt::Debug + Send + Sync + 'static {
    /// The allocator at `address`, which may not answer, or not lead. Connects when it is first
    /// called; fails only for an address that is none.
    ///
    /// Its calls tell that they come from a node of `cluster`, and fail with `Unavailable` if
    /// another cluster answers (T3).
    fn connect(&self, address: &str, cluster: ClusterId) -> Result<Arc<dyn LockTableAllocator>>;
}

/// The cluster's allocator as one node sees it: any number of nodes with one store, one of which
/// leads (L1).
///
/// Calls go to the leader, which may be this very process. While none is known they wait, at most
/// for about two leadership TTLs, then fail with `Unavailable`. Answers of an earlier leadership
/// than the last known are rejected (L3), and what each leader told is reported to a later one at
/// the next [`keepalive`](LockTableAllocator::keepalive) (L4). What other nodes may ask of this one
/// is [`as_leader`](Self::as_leader), what clients may ask [`for_clients`](Self::for_clients).
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
    clock: Arc<dyn Clock>,
    settings: AllocatorSettings,
    node: NodeName,
    address: NodeAddress,
    peers: Arc<dyn AllocatorPeers>,
    role: watch::Sender<Role>,
    /// Whose the store is, as its last answer told.
    cluster: watch::Sender<Option<Cluster>>,
    /// The leadership that is being opened, or is open, until it is over. Locked to set or to take
    /// it.
    local: Mutex<Option<Arc<LocalAllocator>>>,
    /// How the stop ended. Locked for as long as one is under way.
    stopped: tokio::sync::Mutex<Option<AllocatorStopped>>,
    /// What the answers have told (L3, L4). Locked for a comparison.
    observed: Mutex<Observed>,
    /// The origins of this process (C4).
    origins: Arc<Origins>,
}

/// What a node is to the cluster's allocator.
#[derive(Clone, Debug)]
pub enum Role {
    /// It knows no leader; the store's error if that is why.
    Searching(Option<Error>),
    /// It leads.
    Leading(Arc<LocalAllocator>),
    /// Another leads.
    Following {
        /// Where other nodes reach the leader.
        address: String,
        /// Where clients reach the leader. Empty if it did not say.
        clients: String,
        /// Whose the store is that it leads.
        cluster: ClusterId,
        /// The leader.
        allocator: Arc<dyn LockTableAllocator>,
    },
    /// It was stopped, or can never lead again.
    Stopped(Error),
}

impl ElectedAllocator {
    /// Joins the cluster of `store` as `node`, which other nodes and clients reach at `address`.
    /// Answers at once; [`settled`](Self::settled) waits.
    ///
    /// Fails with `InvalidArgument` for settings out of range. Must be called within a tokio
    /// runtime, in which it spawns a task that ends with it. Dropping it without
    /// [`shutdown`](Self::shutdown) lets the others wait for the leadership's TTL.
    pub fn start(
        store: Arc<dyn BindStore>,
        clock: Arc<dyn Clock>,
        settings: AllocatorSettings,
        node: NodeName,
        address: impl Into<NodeAddress>,
        peers: Arc<dyn AllocatorPeers>,
    ) -> Result<Arc<Self>> {
        settings.check()?;
        let shared = Arc::new(ElectedShared {
            store,
            clock,
            settings,
            node,
            address: address.into(),
            peers,
            role: watch::Sender::new(Role::Searching(None)),
            cluster: watch::Sender::new(None),
            local: Mutex::new(None),
            stopped: tokio::sync::Mutex::new(None),
            observed: Mutex::new(Observed::default()),
            origins: Arc::default(),
        });
        let campaign = tokio::spawn(campaign(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared, campaign: Mutex::new(Some(campaign)) }))
    }

    /// Waits until a leader is known, or this node leads. Fails with the store's error as soon as
    /// the store does not let it find out. Cancel safe; may be called again after a failure, for
    /// the campaign goes on.
    pub async fn settled(&self) -> Result<()> {
        let mut role = self.shared.role.subscribe();
        let settled = role
            .wait_for(|role| !matches!(role, Role::Searching(None)))
            .await
            .map_err(|_| stopping())?;
        match &*settled {
            Role::Searching(Some(e)) | Role::Stopped(e) => Err(e.clone()),
            _ => Ok(()),
        }
    }

    /// What this node is now.
    pub fn role(&self) -> Role {
        self.shared.role.borrow().clone()
    }

    /// The role as it changes.
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.shared.role.subscribe()
    }

    /// Whose the store is, as it changes; `None` until the store has told.
    pub fn cluster(&self) -> watch::Receiver<Option<Cluster>> {
        self.shared.cluster.subscribe()
    }

    /// What other nodes may ask of this one: it answers as the leader, or fails with `NotLeader`,
    /// which tells where nodes reach the leader.
    ///
    /// On an exclusive store the calls that are for nodes fail with `NotPermitted`: only this
    /// process can be meant, and it asks itself.
    pub fn as_leader(&self) -> Arc<dyn LockTableAllocator> {
        Arc::new(LeaderView { shared: Arc::clone(&self.shared), nodes: true })
    }

    /// What clients may ask of this node: it answers as the leader, or fails with `NotLeader`,
    /// which tells where clients reach the leader.
    ///
    /// Calls that are for nodes fail with `NotPermitted`.
    pub fn for_clients(&self) -> Arc<dyn LockTableAllocator> {
        Arc::new(LeaderView { shared: Arc::clone(&self.shared), nodes: false })
    }

    /// Stops: campaigns no more and, if it leads, gives the leadership up as
    /// [`LocalAllocator::shutdown`] does. A node that follows has nothing to give up and answers as
    /// if it had. Dropped half way, it may be called again; once it has answered, it answers the
    /// same.
    pub async fn shutdown(&self, quiet: bool, grace: Duration) -> Result<AllocatorStopped> {
        let mut outcome = self.shared.stopped.lock().await;
        if let Some(stopped) = *outcome {
            return Ok(stopped);
        }
        if let Some(campaign) = &*self.campaign.lock() {
            campaign.abort();
        }
        // Aborted, it ends at its next await. It is taken only then, so that whoever stops again
        // after this was dropped waits for it too.
        while self.campaign.lock().as_ref().is_some_and(|campaign| !campaign.is_finished()) {
            tokio::time::sleep(CAMPAIGN_ENDS).await;
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

/// Leads whenever it may, for ever.
async fn campaign(shared: Arc<ElectedShared>) {
    let ttl = shared.settings.constants.leadership_ttl();
    let mut candidate = Candidate::new(shared.node.clone(), shared.address.clone());
    let mut watch = LeadershipWatch::default();
    let mut namesake = Namesake::default();
    let mut pause = PAUSE_FIRST;
    let mut unreadable = None;
    loop {
        candidate.floor = shared.observed.lock().last().epoch;
        candidate.seen = watch.complete(ttl, shared.clock.now()).cloned();
        match acquire(&*shared.store, &*shared.clock, &candidate, ttl).await {
            Ok(Ok(acquired)) => {
                candidate.cluster = acquired.cluster;
                shared.belongs_to(acquired.cluster);
                let cluster = acquired.cluster.id;
                tracing::info!(epoch = %acquired.epoch, continuous = acquired.continuous, %cluster, "leads the store");
                let exclusive = acquired.exclusive;
                let why = shared.lead(Beginning {
                    candidate: candidate.clone(),
                    acquired: Some(acquired),
                    observed: shared.observed.lock().clone(),
                    origins: Arc::clone(&shared.origins),
                });
                let why = why.await;
                if exclusive {
                    // Nobody else can have it, so asking again would not help: the store failed, or
                    // another process took it over.
                    shared.role.send_replace(Role::Stopped(why));
                    return;
                }
                tracing::warn!(error = ?why, "does not lead any more");
                *shared.local.lock() = None;
                // Nobody can lead a store that cannot be read: whoever waits is told why, until
                // somebody leads.
                let is_unreadable = matches!(
                    why.kind(),
                    ErrorKind::StoreCorrupt | ErrorKind::StoreNewer | ErrorKind::StoreUnusable
                );
                unreadable = is_unreadable.then_some(why);
                shared.role.send_replace(Role::Searching(unreadable.clone()));
                // A nonce of its own for each leadership: commits that the last one admitted may
                // still be in flight, so this process counts like any other.
                candidate.nonce = Nonce::new(rand::random());
                watch.restart();
                pause = PAUSE_FIRST;
            }
            Ok(Err(HeldBy { seen, address, cluster })) => {
                if let Some(cluster) = cluster {
                    // If the store loses that, and this node leads it, the cluster stays the same.
                    candidate.cluster = cluster;
                    shared.belongs_to(cluster);
                }
                if seen.leader.is_none() {
                    tracing::info!(
                        "the store holds no leader's record: waiting, in case it was lost"
                    );
                }
                let own = &shared.address.nodes;
                let at_our_address =
                    address.as_ref().is_some_and(|at| !own.is_empty() && at.nodes == *own);
                let taken =
                    at_our_address && seen.leader.is_some_and(|leader| namesake.lives(leader));
                watch.observe(seen, shared.clock.now());
                if taken {
                    shared.follow(None, Some(&address_taken(own)));
                } else {
                    shared.follow(address, unreadable.as_ref());
                }
                let left = watch.left(ttl, shared.clock.now());
                // An error only means that the store cannot tell; it is asked again.
                if let Err(e) = shared
                    .store
                    .wait_for_change(left.clamp(Duration::from_millis(1), ttl / 8))
                    .await
                {
                    tracing::debug!(error = ?e, "cannot wait for a change of leadership");
                    tokio::time::sleep(left.min(ASK_AGAIN)).await;
                }
                pause = PAUSE_FIRST;
            }
            // Only an exclusive store answers so: another process may have its path now.
            Err(e) if e.kind() == ErrorKind::Fenced => {
                shared.role.send_replace(Role::Stopped(e));
                return;
            }
            Err(e) => {
                tracing::warn!(error = ?e, "cannot ask the store who leads; trying again");
                shared.role.send_if_modified(|role| {
                    let searching = matches!(role, Role::Searching(_));
                    if searching {
                        *role = Role::Searching(Some(e));
                    }
                    searching
                });
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MOST);
            }
        }
    }
}

impl ElectedShared {
    /// Leads until that is over; answers why.
    async fn lead(&self, beginning: Beginning) -> Error {
        // Whoever it followed does not lead any more, and it cannot answer yet.
        self.role.send_replace(Role::Searching(None));
        let known = beginning.observed.clone();
        let epoch =
            beginning.acquired.as_ref().map_or_else(Epoch::default, |acquired| acquired.epoch);
        let begun = LocalAllocator::begin(
            Arc::clone(&self.store),
            Arc::clone(&self.clock),
            self.settings.clone(),
            beginning,
        );
        let local = match begun {
            Ok(local) => local,
            Err(e) => return e,
        };
        *self.local.lock() = Some(Arc::clone(&local));
        if let Err(e) = local.opened().await {
            return e;
        }
        // What was told before is accounted for: the leadership began with it.
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

    /// Remembers whose the store is.
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

    /// What a node of this cluster says it was told. `None` before the store has told whose it is.
    fn report(&self, observed: Progress) -> Option<Report> {
        self.cluster.borrow().map(|cluster| Report::new(observed, &cluster))
    }

    /// Renews at `leader`. One that does not know the incarnation believes nothing of it: it may
    /// have lost that, and is told with a proof.
    async fn renew(
        &self,
        leader: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        let outcome = leader.keepalive(service, nonce, observed).await;
        if outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::LeaseLost)
            && let Some(report) = self.report(observed)
        {
            // What it is answered makes no difference: the lease is lost.
            drop(leader.report(&report).await);
        }
        outcome
    }

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

    /// Tells who leads, to a node or to a client.
    fn not_leader(&self, nodes: bool) -> Error {
        let error =
            Error::new(ErrorKind::NotLeader, "this node does not lead the store: ask the leader");
        let role = self.role.borrow();
        let address = match &*role {
            Role::Following { address, clients, .. } => {
                if nodes {
                    address
                } else {
                    clients
                }
            }
            _ => return error,
        };
        if address.is_empty() {
            return error;
        }
        error.with("leader", address).with_detail(Detail::Leader(address.clone()))
    }
}

fn address_taken(address: &str) -> Error {
    Error::new(
        ErrorKind::NameInUse,
        "another node leads the store and tells the others that it is reached at this node's own \
         address: give each node \
         addresses of its own with --peer-advertise and --advertise",
    )
    .with("address", address)
}

/// One call's way to the leader.
struct Route<'a> {
    shared: &'a ElectedShared,
    give_up: Time,
    hint: Option<Arc<dyn LockTableAllocator>>,
    hops: usize,
    /// The leadership that is asked, if it is this node's own.
    own: Option<Epoch>,
    /// What whoever answered does not know: it was replaced, or leads a store that has forgotten
    /// it, and must step over it (L4).
    unknown: Option<Progress>,
    /// True if whoever seemed to lead does not.
    wrong_node: bool,
}

impl<'a> Route<'a> {
    fn new(shared: &'a ElectedShared) -> Self {
        let patience = hi(shared.settings.constants.leadership_ttl()) * 2;
        Self {
            shared,
            give_up: shared.clock.now() + patience,
            hint: None,
            hops: 0,
            own: None,
            unknown: None,
            wrong_node: false,
        }
    }

    /// Whom to ask next.
    async fn next(&mut self) -> Result<Arc<dyn LockTableAllocator>> {
        self.own = None;
        if let Some(hint) = self.hint.take() {
            return Ok(hint);
        }
        let mut role = self.shared.role.subscribe();
        if std::mem::take(&mut self.wrong_node) {
            // Over time or not, it looks again.
            drop(tokio::time::timeout(ASK_AGAIN, role.changed()).await);
        }
        loop {
            let unavailable = match &*role.borrow_and_update() {
                Role::Leading(local) => {
                    self.own = Some(local.epoch());
                    return Ok(Arc::<LocalAllocator>::clone(local));
                }
                Role::Following { allocator, .. } => return Ok(Arc::clone(allocator)),
                Role::Stopped(e) => return Err(e.clone()),
                Role::Searching(why) => {
                    let error = Error::new(
                        ErrorKind::Unavailable,
                        "no allocator leads the store now: try again",
                    );
                    why.as_ref()
                        .map_or_else(|| error.clone(), |why| error.clone().with_source(why.clone()))
                }
            };
            let left = self.give_up.remaining(self.shared.clock.now());
            if left.is_zero() {
                return Err(unavailable);
            }
            // The timer only wakes.
            if let Ok(Err(_)) = tokio::time::timeout(left, role.changed()).await {
                return Err(stopping());
            }
        }
    }

    /// Takes an answer into account. Nobody acts on one of an earlier leader than the last that is
    /// known, be it a refusal (L3).
    fn checked<T: Answer>(&mut self, outcome: Result<T>) -> Result<T> {
        let epoch = match &outcome {
            Ok(answer) => Some(answer.at().epoch),
            // It says itself that another leads, and may know where.
            Err(e) if e.kind() == ErrorKind::NotLeader => None,
            Err(e) => e.answered_by().or(self.own),
        };
        let Some(epoch) = epoch else { return outcome };
        let mut observed = self.shared.observed.lock();
        let last = observed.last().epoch;
        if epoch < last {
            self.unknown = Some(observed.last());
            return Err(Error::new(
                ErrorKind::NotLeader,
                "an earlier leader answered, which does not know yet that it was replaced: try \
                    again",
            )
            .with("epoch", epoch)
            .with("known", last));
        }
        if let Ok(answer) = &outcome {
            observed.add(answer.at());
        }
        outcome
    }

    /// True if the call should be made again, because whoever was asked does not lead.
    fn again<T>(&mut self, outcome: &Result<T>) -> bool {
        let Err(e) = outcome else { return false };
        if e.kind() != ErrorKind::NotLeader
            || self.give_up.remaining(self.shared.clock.now()).is_zero()
        {
            return false;
        }
        self.hint = e
            .leader()
            .filter(|address| *address != self.shared.address.nodes && self.hops < HOPS_MAX)
            .zip(*self.shared.cluster.borrow())
            .and_then(|(address, cluster)| self.shared.peers.connect(address, cluster.id).ok());
        self.hops += 1;
        self.wrong_node = self.hint.is_none();
        true
    }
}

/// The answer of a node that found nobody who leads, or says that it does.
fn nobody_leads(last: Error) -> Error {
    if last.kind() != ErrorKind::NotLeader {
        return last;
    }
    Error::new(ErrorKind::Unavailable, "no allocator leads the store now: try again")
        .with_source(last)
}

/// Makes a call at the leader, wherever that is. Every call of the allocator may be repeated.
macro_rules! routed {
    ($self:ident, $leader:ident => $call:expr) => {{
        let mut route = Route::new(&$self.shared);
        loop {
            let $leader = route.next().await?;
            let outcome = route.checked($call.await);
            if let Some(report) =
                route.unknown.take().and_then(|observed| $self.shared.report(observed))
            {
                // What it is answered makes no difference.
                drop($leader.report(&report).await);
            }
            if !route.again(&outcome) {
                break outcome.map_err(nobody_leads);
            }
        }
    }};
}

impl ElectedAllocator {
    /// Tells the leader what an earlier one told. What is not believed is kept, to be told again.
    async fn tell(&self, observed: Progress) -> Result<()> {
        let Some(report) = self.shared.report(observed) else { return Ok(()) };
        match self.report(&report).await {
            Ok(at) => self.shared.observed.lock().compared(observed, at.epoch),
            // This node has yet to learn whose the store is now.
            Err(e) if e.kind() == ErrorKind::NotPermitted => {
                tracing::warn!(error = ?e, "the leader does not believe what this node was told");
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

#[async_trait]
impl LockTableAllocator for ElectedAllocator {
    async fn register(&self, request: &Registration) -> Result<Incarnation> {
        routed!(self, leader => leader.register(request))
    }

    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        let mut reports = {
            let mut all = self.shared.observed.lock();
            all.add(observed);
            all.each().to_vec()
        };
        // L4: a later leader is told what each earlier one said, hardly ever more than one.
        let last = reports.pop().unwrap_or_default();
        for observed in reports {
            self.tell(observed).await?;
        }
        let answer =
            routed!(self, leader => self.shared.renew(leader.as_ref(), service, nonce, last))?;
        self.shared.observed.lock().compared(last, answer.at.epoch);
        Ok(answer)
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        routed!(self, leader => leader.report(report))
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        routed!(self, leader => leader.resign(service, nonce))
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        routed!(self, leader => leader.bind(service, table))
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        routed!(self, leader => leader.reserve_tokens(service, table, version))
    }

    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        routed!(self, leader => leader.release_table(service, nonce, table, version))
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        routed!(self, leader => leader.forget_table(table))
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        routed!(self, leader => leader.latest(table))
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        routed!(self, leader => leader.begin_commit(request))
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        routed!(self, leader => leader.finish_commit(txn, attempt))
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        routed!(self, leader => leader.cannot_commit(txns))
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        routed!(self, leader => leader.report_txns(service, nonce, range))
    }

    /// Whoever leads on this node, now and later, asks the origin itself.
    fn attach_origin(&self, service: ServiceId, origin: Weak<dyn OriginTxns>) {
        self.shared.origins.attach(service, origin);
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        routed!(self, leader => leader.status())
    }
}

/// See [`ElectedAllocator::as_leader`] and [`ElectedAllocator::for_clients`].
#[derive(Debug)]
struct LeaderView {
    shared: Arc<ElectedShared>,
    /// True if nodes ask.
    nodes: bool,
}

impl LeaderView {
    fn local(&self) -> Result<Arc<LocalAllocator>> {
        if let Role::Leading(local) = &*self.shared.role.borrow() {
            return Ok(Arc::clone(local));
        }
        Err(self.shared.not_leader(self.nodes))
    }

    /// Makes `call` at this node's leader. A refusal tells who refused (L3).
    async fn answer<T, F>(&self, call: impl FnOnce(Arc<LocalAllocator>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let local = self.local()?;
        // Before the call: what it decides is decided under this epoch or a later one.
        let epoch = local.epoch();
        call(local).await.map_err(|e| {
            // That this leader stops is no news for those who ask from afar: another will lead.
            let e = if e.kind() == ErrorKind::ShuttingDown {
                self.shared.not_leader(self.nodes)
            } else {
                e
            };
            e.with_answered_by(epoch)
        })
    }

    /// Makes a `call` that is for nodes.
    ///
    /// Fails with `NotPermitted` for clients, and on an exclusive store: nobody but this process
    /// can be meant, and it asks itself.
    async fn answer_node<T, F>(&self, call: impl FnOnce(Arc<LocalAllocator>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        if !self.nodes {
            return Err(Error::new(ErrorKind::NotPermitted, "this call is for nodes"));
        }
        if self.local()?.is_exclusive() {
            return Err(not_for_others());
        }
        self.answer(call).await
    }
}

/// The answer to a call that is for nodes, where there can be only one.
fn not_for_others() -> Error {
    Error::new(
        ErrorKind::NotPermitted,
        "this call is for nodes, and the store is open to this node alone: share a store between \
            nodes instead",
    )
}

#[async_trait]
impl LockTableAllocator for LeaderView {
    async fn register(&self, request: &Registration) -> Result<Incarnation> {
        self.answer_node(async |local| local.register(request).await).await
    }

    async fn keepalive(
        &self,
        service: ServiceId,
        nonce: Nonce,
        observed: Progress,
    ) -> Result<LeaseAck> {
        self.answer_node(async |local| local.keepalive(service, nonce, observed).await).await
    }

    async fn report(&self, report: &Report) -> Result<Progress> {
        self.answer_node(async |local| local.report(report).await).await
    }

    async fn resign(&self, service: ServiceId, nonce: Nonce) -> Result<Progress> {
        self.answer_node(async |local| local.resign(service, nonce).await).await
    }

    async fn bind(&self, service: ServiceId, table: &TableRef) -> Result<BoundTable> {
        self.answer_node(async |local| local.bind(service, table).await).await
    }

    async fn reserve_tokens(
        &self,
        service: ServiceId,
        table: TableId,
        version: BindVersion,
    ) -> Result<ReservedTokens> {
        self.answer_node(async |local| local.reserve_tokens(service, table, version).await).await
    }

    async fn release_table(
        &self,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        self.answer_node(async |local| local.release_table(service, nonce, table, version).await)
            .await
    }

    async fn forget_table(&self, table: &TableRef) -> Result<Forgetting> {
        self.answer_node(async |local| local.forget_table(table).await).await
    }

    async fn latest(&self, table: &TableRef) -> Result<Latest> {
        self.answer(async |local| local.latest(table).await).await
    }

    async fn begin_commit(&self, request: &BeginCommit) -> Result<CommitAdmission> {
        self.answer(async |local| local.begin_commit(request).await).await
    }

    async fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) -> Result<Progress> {
        self.answer(async |local| local.finish_commit(txn, attempt).await).await
    }

    async fn cannot_commit(&self, txns: &[TxnId]) -> Result<CannotCommit> {
        self.answer_node(async |local| local.cannot_commit(txns).await).await
    }

    async fn report_txns(
        &self,
        service: ServiceId,
        nonce: Nonce,
        range: TxnRange,
    ) -> Result<Progress> {
        self.answer_node(async |local| local.report_txns(service, nonce, range).await).await
    }

    async fn status(&self) -> Result<AllocatorStatus> {
        self.answer(async |local| local.status().await).await
    }
}
