//! Several nodes on one store, in one process, with real connections between them and to their
//! clients (L1, L3, T5).

use std::sync::Arc;
use std::time::Duration;

use lockservice::client::{Client, ClusterAdmin, ClusterList};
use lockservice::peers::{GrpcPeers, Patience};
use lockservice::server::{PeerServer, Server, ServerSettings, ServiceHost, Stop};
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, CommitWindow, ElectedAllocator, LockTableAllocator,
    PresentedBind, Role,
};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::{LockSpec, LockStatus, ServiceParts, TxnOptions};
use lockservice_core::store::NodeAddress;
use lockservice_core::table::{Commit, WaitPolicy};
use lockservice_core::testing::SharedStore;
use lockservice_core::{
    Advice, CommitAttempt, CommitTimestamp, ErrorKind, Key, LockItem, NodeName, TableRef,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Short, so that a fail-over does not take long; a lease outlives the election of a leader.
const LEADERSHIP_TTL_MS: u64 = 1_000;
const LEASE_TTL_MS: u64 = 4_000;
/// Longer than anything here takes, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A node in a runtime of its own, so that all of it can end at once.
struct Node {
    address: String,
    allocator: Arc<ElectedAllocator>,
    host: ServiceHost,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    async fn start(name: &'static str, store: &SharedStore) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads");
        let started = runtime.spawn(Self::begin(name, store.connect()));
        let (address, allocator, host, stop, serving) = started.await.expect("it starts");
        Self { address, allocator, host, stop: Some(stop), serving, runtime: Some(runtime) }
    }

    async fn begin(
        name: &'static str,
        store: SharedStore,
    ) -> (String, Arc<ElectedAllocator>, ServiceHost, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let peer_listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let nodes = peer_listener.local_addr().expect("it is bound").to_string();
        let mut settings = AllocatorSettings::default();
        (settings.constants.leadership_ttl_ms, settings.constants.lease_ttl_ms) =
            (LEADERSHIP_TTL_MS, LEASE_TTL_MS);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let node = NodeName::new(name).expect("a name");
        let peers = Arc::new(GrpcPeers::new(Patience::for_lease(settings.constants.lease_ttl())));
        let (store, at) = (Arc::new(store), NodeAddress { nodes, clients: address.clone() });
        let allocator =
            ElectedAllocator::start(store, Arc::clone(&clock), settings, node.clone(), at, peers)
                .expect("valid settings");
        let server_settings = ServerSettings { grace_ms: 1_000, ..ServerSettings::default() };
        let (leader, cluster) = (allocator.as_leader(), allocator.cluster());
        let peers = PeerServer::start(peer_listener, leader, cluster, server_settings);
        let mut server = Server::start(listener, allocator.for_clients(), server_settings)
            .await
            .expect("it listens");
        allocator.elected().await.expect("the store responds");
        let parts = ServiceParts {
            address: address.clone(),
            ..ServiceParts::new(Arc::clone(&allocator) as Arc<dyn LockTableAllocator>, clock, node)
        };
        let host = ServiceHost::start(parts).await.expect("a leader responds");
        server.host(host.clone()).await;
        let (stop, stopped) = oneshot::channel::<()>();
        let elected = Arc::clone(&allocator);
        let serving = tokio::spawn(async move {
            let stop = async {
                drop(stopped.await);
                Stop::Drain
            };
            let stopped = server.run(stop).await.expect("the listener works");
            elected
                .shutdown(stopped.confirmed, Duration::from_secs(1))
                .await
                .expect("the store responds");
            server.close().await;
            peers.close().await;
        });
        (address, allocator, host, stop, serving)
    }

    fn leads(&self) -> bool {
        matches!(self.allocator.role(), Role::Leading(_))
    }

    /// Stops in order.
    async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.serving).await.expect("no panic");
    }

    /// Gone, without a message.
    fn vanish(self) {
        drop(self);
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address).await.expect("it listens")
    }
}

/// Three nodes; the first leads.
async fn three() -> (SharedStore, Vec<Node>) {
    let store = SharedStore::new();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(Node::start(name, &store).await);
    }
    assert!(nodes[0].leads() && !nodes[1].leads() && !nodes[2].leads());
    (store, nodes)
}

fn spec(table: &str, key: &str) -> LockSpec {
    let table = TableRef::new("default", table).expect("names");
    LockSpec::new(table, vec![LockItem::Row(Key::new(key).expect("a key"))])
}

/// Makes the node the owner of `table`.
async fn own(node: &Node, table: &str) {
    let session = node.client().await.session(None).await.expect("it serves");
    let lock = session.lock(spec(table, "first touch")).await.expect("free");
    assert_eq!(lock.bind().owner, node.host.current().id());
    lock.unlock().await.expect("acknowledged");
    session.close().await.expect("acknowledged");
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_at_a_node_that_does_not_own_the_table_is_taken_at_the_one_that_does() {
    let (_store, nodes) = three().await;
    own(&nodes[1], "b's").await;
    // The node itself says who owns it.
    let local = nodes[2].host.current().begin(TxnOptions::default()).expect("it serves");
    let error = local.lock(spec("b's", "k")).await.expect_err("not its own");
    assert_eq!(
        (error.kind(), error.owner()),
        (ErrorKind::NotOwner, Some(nodes[1].address.as_str())),
        "{error:?}"
    );
    // The client follows, and the lock is one and the same at every node.
    let session = nodes[2].client().await.session(None).await.expect("it serves");
    let lock = session.lock(spec("b's", "k")).await.expect("free");
    assert_eq!(
        (lock.bind().owner, lock.txn().node().as_str()),
        (nodes[1].host.current().id(), "b")
    );
    let other = nodes[0].client().await.session(None).await.expect("it serves");
    let nowait = LockSpec { wait: WaitPolicy::NoWait, ..spec("b's", "k") };
    assert_eq!(other.lock(nowait.clone()).await.expect_err("held").kind(), ErrorKind::Conflict);
    let (first, waiting) = (lock.token(), other.lock(spec("b's", "k")));
    let unlock = async {
        while nodes[1].host.current().waits(None).is_empty() {
            tokio::task::yield_now().await;
        }
        lock.unlock().await.expect("acknowledged");
    };
    let (second, ()) = within(async { tokio::join!(waiting, unlock) }).await;
    assert!(second.expect("free now").token() > first);
    // Many at once find the way too, and what is known is used.
    let many = (0..50).map(|n| session.lock(spec("b's", &format!("k{n}"))));
    let held = within(futures::future::try_join_all(many)).await.expect("all free");
    // The one that was dropped is released in the background.
    while nodes[1].host.current().locks(None).len() != 50 {
        tokio::task::yield_now().await;
    }
    assert!(session.deadline() <= held[0].deadline());
    within(session.close()).await.expect("both servers answer");
    while !nodes[1].host.current().locks(None).is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_that_was_set_before_its_transaction_moved_is_gone_back_to_at_its_new_node() {
    let (_store, nodes) = three().await;
    own(&nodes[1], "b's").await;
    let session = nodes[0].client().await.session(None).await.expect("it serves");
    let txn = session.txn(TxnOptions::default());
    let before = txn.savepoint().await.expect("nothing is asked");
    txn.lock(spec("b's", "k")).await.expect("it holds nothing, so it goes there");
    let after = txn.savepoint().await.expect("the new node responds");
    txn.lock(spec("b's", "l")).await.expect("free");
    let locks = || nodes[1].host.current().locks(None).len();
    assert_eq!((txn.node().as_str(), locks()), ("b", 2));
    txn.roll_back_to(&after).await.expect("of this transaction");
    assert_eq!(locks(), 1);
    txn.roll_back_to(&before).await.expect("of this transaction");
    assert_eq!(locks(), 0);
    // It goes on there.
    txn.lock(spec("b's", "k")).await.expect("free");
    assert_eq!((txn.node().as_str(), locks()), ("b", 1));
    txn.end(None).await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_would_hold_locks_on_two_nodes_learns_what_to_do() {
    let (_store, nodes) = three().await;
    own(&nodes[1], "b's").await;
    own(&nodes[2], "c's").await;
    let session = nodes[0].client().await.session(None).await.expect("it serves");
    let txn = session.txn(TxnOptions { validates: true, label: "spans".to_owned() });
    let grant = txn.lock(spec("b's", "k")).await.expect("it holds nothing, so it goes there");
    assert_eq!(grant.bind.owner, nodes[1].host.current().id());
    let id = txn.id().expect("granted");
    assert_eq!(id.origin, nodes[1].host.current().id());
    let error = txn.lock(spec("c's", "k")).await.expect_err("it holds a lock at b");
    assert_eq!(
        (error.kind(), error.advice()),
        (ErrorKind::SpansNodes, Advice::RetryTransaction),
        "{error:?}"
    );
    let error = txn.lock(spec("new", "k")).await;
    // A table that is not owns becomes the property of the node where the transaction is.
    assert_eq!(error.expect("free").bind.owner, nodes[1].host.current().id());
    assert_eq!(nodes[1].host.current().locks(None).len(), 2, "what it held stays");
    txn.end(None).await.expect("acknowledged");
    // Calls that are made at once find the owner together, at the latest when the transaction is
    // started again.
    let calls = || async {
        let txn = session.txn(TxnOptions::default());
        let (x, y) = tokio::join!(txn.lock(spec("c's", "x")), txn.lock(spec("c's", "y")));
        x.and(y).map(drop)
    };
    if let Err(e) = within(calls()).await {
        assert_eq!(e.advice(), Advice::RetryTransaction, "{e:?}");
        within(calls()).await.expect("the owner is known now");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_dropped_by_its_owner_whichever_node_has_the_call() {
    let (_store, nodes) = three().await;
    own(&nodes[1], "b's").await;
    let admin = nodes[2].client().await.admin();
    let table = spec("b's", "k").table;
    let session = nodes[2].client().await.session(None).await.expect("it serves");
    let lock = session.lock(spec("b's", "k")).await.expect("free");
    let used = within(admin.drop_table(&table)).await.expect_err("b has a lock in it");
    assert_eq!(used.kind(), ErrorKind::TableInUse, "{used:?}");
    let first = lock.token();
    lock.unlock().await.expect("acknowledged");
    within(admin.drop_table(&table)).await.expect("nothing is locked");
    let gone = within(admin.drop_table(&table)).await.expect_err("it is forgotten");
    assert_eq!(gone.kind(), ErrorKind::TableNotFound);
    // The remembered owner refuses nothing: the first node that is called has the name now.
    let again = within(session.lock(spec("b's", "k"))).await.expect("free");
    assert!(again.token() > first);
}

/// The tables of the lines, with their nodes.
fn tables(list: &ClusterList<LockStatus>) -> Vec<(&str, &str)> {
    let lines = list.lines.iter();
    lines.map(|(node, lock)| (node.as_str(), lock.info.table.name.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_the_cluster_has_the_lines_of_all_nodes_and_names_the_one_that_is_missing() {
    let (_store, mut nodes) = three().await;
    let mut held = Vec::new();
    for (node, table) in nodes.iter().zip(["a's", "b's", "c's"]) {
        let session = node.client().await.session(None).await.expect("it serves");
        held.push((session.lock(spec(table, "k")).await.expect("free"), session));
    }
    let client = nodes[2].client().await;
    let cluster = client.cluster_admin().await.expect("it serves");
    let locks = |cluster: ClusterAdmin| async move {
        within(cluster.list(|node| async move { node.locks(None).await })).await
    };
    let all = locks(cluster.clone()).await;
    assert_eq!(tables(&all), [("a", "a's"), ("b", "b's"), ("c", "c's")]);
    assert_eq!((all.nodes, all.missing.len()), (3, 0));
    let name = |name: &str| NodeName::new(name).expect("a name");
    let only = cluster.only(&name("b")).expect("all are known").expect("it is one of them");
    assert_eq!(tables(&locks(only).await), [("b", "b's")]);
    assert!(cluster.only(&name("x")).expect("all are known").is_none());
    let row = within(cluster.list(|node| async move {
        let spec = spec("b's", "k");
        node.row(&spec.table, &Key::new("k").expect("a key")).await
    }));
    assert_eq!(tables(&row.await), [("b", "b's")]);

    let gone = nodes.remove(1);
    let address = gone.address.clone();
    gone.vanish();
    let rest = locks(cluster).await;
    assert_eq!(tables(&rest), [("a", "a's"), ("c", "c's")]);
    let missing = &rest.missing[0];
    assert_eq!((missing.node.as_ref(), &missing.address), (Some(&name("b")), &address));
    assert_eq!((missing.error.kind(), rest.missing.len()), (ErrorKind::Unavailable, 1));
    // Once its lease has run out nothing is locked there, and nothing is missing.
    let complete = async {
        loop {
            let cluster = client.cluster_admin().await.expect("it serves");
            if cluster.names().count() == 2 {
                return locks(cluster).await;
            }
        }
    };
    let complete = within(complete).await;
    assert_eq!((tables(&complete), complete.missing.len()), (tables(&rest), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_taken_away_at_the_owner_of_its_table_whichever_node_has_the_call() {
    let (_store, nodes) = three().await;
    own(&nodes[1], "t").await;
    let session = nodes[2].client().await.session(None).await.expect("it serves");
    let held = within(session.lock(spec("t", "k"))).await.expect("free");
    let admin = nodes[0].client().await.admin();
    let (table, key) = (spec("t", "k").table, Key::new("k").expect("a key"));
    let forced = within(admin.force_release(&table, &key, "x", false)).await;
    let mut forced = forced.expect("it is followed to the owner");
    assert_eq!(forced.begun.len(), 1);
    assert_eq!(within(held.lost()).await.kind(), ErrorKind::TxnKilled);
    assert!(session.lost_now().is_none(), "it goes on, also at the owner");
    drop(held);
    let (txn, _) = within(forced.next()).await.expect("it serves").expect("one");
    assert_eq!(txn, forced.begun[0].txn);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_validated_by_the_leader_whichever_node_has_the_call() {
    let (_store, nodes) = three().await;
    own(&nodes[1], "b's").await;
    let client = nodes[2].client().await;
    let session = client.session(None).await.expect("it serves");
    let txn = session.txn(TxnOptions { validates: true, label: String::new() });
    let grant = txn.lock(spec("b's", "k")).await.expect("free");
    let request = BeginCommit {
        txn: txn.id().expect("granted"),
        binds: vec![PresentedBind::from(&grant.bind)],
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: Duration::from_millis(1), most: Duration::from_secs(1) },
    };
    let admission = client.allocator().begin_commit(&request).await.expect("c sends it on to a");
    assert!(admission.until > client.clock().now());
    let stale = BeginCommit { txn: request.txn, attempt: CommitAttempt::new(2), ..request.clone() };
    let changed =
        PresentedBind { version: lockservice_core::BindVersion::new(1), ..request.binds[0] };
    let stale = BeginCommit { binds: vec![changed], ..stale };
    let refused = client.allocator().begin_commit(&stale).await.expect_err("not the current bind");
    assert_eq!(refused.kind(), ErrorKind::BindChanged);
    client.allocator().finish_commit(request.txn, request.attempt).await.expect("idempotent");
    txn.end(Some(Commit::at(CommitTimestamp::new(7)))).await.expect("acknowledged");
    let binds = client.admin().binds().await.expect("c asks a");
    assert_eq!((binds.len(), binds[0].address.as_str()), (1, nodes[1].address.as_str()));
    assert_eq!(client.admin().node().await.expect("it responds").0.as_str(), "c");
}

/// After the leader has gone, in order or not: binds and locks of the others stay, and commits are
/// validated.
async fn survives_the_leader(vanish: bool) {
    let (_store, mut nodes) = three().await;
    own(&nodes[1], "b's").await;
    // The first of the addresses is the leader's, which goes.
    let all = nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    let client = Client::connect(&all).await.expect("they listen");
    let session = nodes[2].client().await.session(None).await.expect("it serves");
    let txn = session.txn(TxnOptions { validates: true, label: String::new() });
    let grant = txn.lock(spec("b's", "k")).await.expect("free");
    let leader = nodes.remove(0);
    if vanish {
        leader.vanish();
    } else {
        leader.stop().await;
    }
    // A table that is not owns yet: to the caller the election is a slow bind.
    let other = session.txn(TxnOptions::default());
    let fresh = within(other.lock(spec("new", "k"))).await.expect("bound by the new leader");
    assert_eq!(fresh.bind.owner, nodes[1].host.current().id());
    assert!(nodes[0].leads() || nodes[1].leads());
    let request = BeginCommit {
        txn: txn.id().expect("granted"),
        binds: vec![PresentedBind::from(&grant.bind)],
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: Duration::from_millis(1), most: Duration::from_millis(500) },
    };
    within(client.allocator().begin_commit(&request))
        .await
        .expect("the bind is kept, and the new leader is found");
    client.allocator().finish_commit(request.txn, request.attempt).await.expect("idempotent");
    assert!(session.lost_now().is_none() && txn.lost_now().is_none(), "nobody else lost anything");
    // A new session, too, finds a node that responds.
    let found = within(client.session(None)).await.expect("two of three serve");
    assert_ne!(found.node().as_str(), "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_stops_binds_and_transactions_of_the_others_go_on() {
    survives_the_leader(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_vanishes_binds_and_transactions_of_the_others_go_on() {
    survives_the_leader(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_a_node_that_vanished_goes_to_the_node_with_the_call_when_its_lease_has_run_out()
 {
    let (_store, mut nodes) = three().await;
    own(&nodes[1], "b's").await;
    let session = nodes[2].client().await.session(None).await.expect("it serves");
    // Nothing is held at b, but the session knows the way there.
    session.lock(spec("b's", "k")).await.expect("free").unlock().await.expect("acknowledged");
    let before = session.lock(spec("c's", "k")).await.expect("free");
    nodes.remove(1).vanish();
    let nowait = LockSpec { wait: WaitPolicy::NoWait, ..spec("b's", "k") };
    let error = within(session.lock(nowait)).await.expect_err("b has it still");
    assert_eq!(error.advice(), Advice::RetryCall, "the session at c is well: {error:?}");
    let lock = within(session.lock(spec("b's", "k"))).await.expect("reassigned");
    assert_eq!(lock.bind().owner, nodes[1].host.current().id());
    assert!(session.lost_now().is_none() && before.lost_now().is_none(), "nothing was held at b");
}
