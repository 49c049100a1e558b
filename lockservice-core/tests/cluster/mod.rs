//! Nodes of one process on one shared store, for tests of the fate of leaders and stores.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | nodes of one process on one shared store |
//! | `hooked_store.rs` | a shared store with one hook for a test |

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod hooked_store;

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, BoundTable, CommitWindow, ElectedAllocator, Incarnation,
    LockTableAllocator, PresentedBind, Progress, Registration, Report, Role,
};
use lockservice_core::clock::{hi, lo};
use lockservice_core::store::{BindStore as _, ClusterConstants};
use lockservice_core::testing::{LocalPeers, SharedStore, TokioClock};
use lockservice_core::{
    CommitAttempt, ErrorKind, NodeName, Nonce, Result, TableRef, TxnId, TxnNumber,
};
use tokio::time::Instant;

use self::hooked_store::HookedStore;

/// The leadership of these clusters.
pub(crate) const TTL: Duration = Duration::from_secs(5);
/// Leases that are long enough for two leaders in one.
pub(crate) const LEASE: Duration = Duration::from_secs(20);

pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) store: HookedStore,
    pub(crate) allocator: Arc<ElectedAllocator>,
}

pub(crate) struct Cluster {
    pub(crate) store: SharedStore,
    pub(crate) clock: TokioClock,
    pub(crate) net: LocalPeers,
    lease: Duration,
}

impl Cluster {
    pub(crate) fn with_lease(lease: Duration) -> Self {
        Self {
            store: SharedStore::new(),
            clock: TokioClock::new(),
            net: LocalPeers::default(),
            lease,
        }
    }

    pub(crate) fn node(&self, name: &'static str) -> Node {
        self.node_with(name, |_| {})
    }

    pub(crate) fn node_with(
        &self,
        name: &'static str,
        alter: impl FnOnce(&mut AllocatorSettings),
    ) -> Node {
        self.node_at(name, name, alter)
    }

    /// A node that advertises `address` to others.
    pub(crate) fn node_at(
        &self,
        name: &'static str,
        address: &str,
        alter: impl FnOnce(&mut AllocatorSettings),
    ) -> Node {
        let store = HookedStore::new(self.store.connect());
        let mut settings = self.settings();
        alter(&mut settings);
        let allocator = ElectedAllocator::start(
            Arc::new(store.clone()),
            Arc::new(self.clock),
            settings,
            NodeName::new(name).expect("a name"),
            address,
            Arc::new(self.net.clone()),
        )
        .expect("valid settings");
        self.net.join(name, allocator.as_leader());
        Node { name, store, allocator }
    }

    pub(crate) fn settings(&self) -> AllocatorSettings {
        let (leadership_ttl_ms, lease_ttl_ms) =
            (TTL.as_millis() as u64, self.lease.as_millis() as u64);
        AllocatorSettings {
            constants: ClusterConstants { leadership_ttl_ms, lease_ttl_ms },
            ..AllocatorSettings::default()
        }
    }

    /// A node that leads a store of which nothing is in doubt any more.
    pub(crate) async fn led(&self) -> Node {
        let node = self.node("a");
        node.leading().await;
        // An empty store may be one that lost everything: nothing is granted for one lease, until
        // that is settled (L4).
        tokio::time::sleep(hi(self.lease) + TTL / 4).await;
        node
    }

    /// A report of a node that can read the store.
    pub(crate) async fn report(&self, observed: Progress) -> Report {
        let head = self.store.head().await.expect("responds").expect("led");
        Report::new(observed, &head.cluster.expect("every leader names it"))
    }

    /// Kills the node.
    pub(crate) fn kill(&self, node: Node) {
        self.net.leave(node.name);
    }
}

impl Node {
    pub(crate) fn leads(&self) -> bool {
        matches!(self.allocator.role(), Role::Leading(_))
    }

    /// Waits until it leads.
    pub(crate) async fn leading(&self) {
        self.allocator
            .roles()
            .wait_for(|role| matches!(role, Role::Leading(_)))
            .await
            .expect("the allocator is there");
    }

    /// Waits until it follows `leader`.
    pub(crate) async fn follows(&self, leader: &Self) {
        let follows =
            |role: &Role| matches!(role, Role::Following { address, .. } if address == leader.name);
        self.allocator.roles().wait_for(follows).await.expect("the allocator is there");
    }

    async fn register(&self) -> Result<Incarnation> {
        let request = Registration {
            node: NodeName::new(self.name).expect("a name"),
            nonce: Nonce::new(7),
            address: self.name.to_owned(),
            replaces: None,
        };
        self.allocator.register(&request).await
    }

    /// Begins an incarnation at once.
    pub(crate) async fn begin(&self) -> Incarnation {
        self.register().await.expect("a leader responds")
    }

    /// Begins an incarnation when it may, and there is a leader.
    pub(crate) async fn begin_in_time(&self) -> Incarnation {
        loop {
            match self.register().await {
                Ok(incarnation) => return incarnation,
                Err(e) if e.kind() == ErrorKind::NameInUse => tokio::time::sleep(TTL / 10).await,
                Err(e) if e.kind() == ErrorKind::Unavailable => tokio::time::sleep(TTL / 10).await,
                Err(e) => panic!("{e:?}"),
            }
        }
    }

    pub(crate) async fn keep(
        &self,
        incarnation: &Incarnation,
        observed: Progress,
    ) -> Result<Progress> {
        self.allocator
            .keepalive(incarnation.service, Nonce::new(7), observed)
            .await
            .map(|ack| ack.at)
    }
}

pub(crate) fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("a name")
}

pub(crate) fn commit(incarnation: &Incarnation, bound: &BoundTable, counter: u64) -> BeginCommit {
    BeginCommit {
        txn: TxnId::new(incarnation.service, TxnNumber::new(counter), true),
        binds: vec![PresentedBind::from(&bound.bind)],
        attempt: CommitAttempt::new(counter),
        window: CommitWindow { least: Duration::from_millis(1), most: Duration::from_secs(60) },
    }
}

/// `owner` has been granted `name` and renews for as long as it may; `other` tries to have it.
/// Passes if `other` is granted it only once the lease of `owner` must have run out.
pub(crate) async fn granted_after_the_owner(
    name: &str,
    owner: &Node,
    owns: &Incarnation,
    other: &Node,
) {
    let mut renewed = Instant::now();
    let mut alive = true;
    let mut asks = other.begin_in_time().await;
    loop {
        let sent = Instant::now();
        if alive {
            match owner.keep(owns, Progress::default()).await {
                Ok(_) => renewed = sent,
                Err(e) => alive = e.kind() != ErrorKind::LeaseLost,
            }
        }
        if other
            .keep(&asks, Progress::default())
            .await
            .is_err_and(|e| e.kind() == ErrorKind::LeaseLost)
        {
            asks = other.begin_in_time().await;
        }
        match other.allocator.bind(asks.service, &table(name)).await {
            Ok(bound) => {
                assert_eq!(bound.bind.owner, asks.service, "granted to it");
                let since = renewed.elapsed();
                assert!(
                    !alive || since >= lo(LEASE),
                    "granted {since:?} after the owner's last renewal"
                );
                return;
            }
            Err(e) if e.kind() == ErrorKind::LeaseLost => {}
            Err(e) => assert!(
                matches!(
                    e.kind(),
                    ErrorKind::Reassigning | ErrorKind::Unavailable | ErrorKind::NotLeader
                ),
                "{e:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
