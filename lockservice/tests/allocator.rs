//! The allocator over gRPC keeps the contract of an allocator, over a real connection.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use lockservice::client::Client;
use lockservice::convert::{self, from_status};
use lockservice::peers::{GrpcPeers, Patience};
use lockservice::proto;
use lockservice::proto::allocator_client::AllocatorClient;
use lockservice::proto::peer_client::PeerClient;
use lockservice::server::{PeerServer, Server, ServerSettings};
use lockservice_core::allocator::{
    AllocatorPeers, AllocatorSettings, ElectedAllocator, LocalAllocator, LockTableAllocator,
    Progress, Registration, Report,
};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::store::{Candidate, Cluster, MemoryStore, NodeAddress};
use lockservice_core::testing::{AllocatorFixture, ManualClock, SharedStore, allocator_suite};
use lockservice_core::{ErrorKind, NodeName, Nonce, ServiceId, TableRef, TxnId, TxnNumber};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

const PATIENCE: Patience =
    Patience { call: Duration::from_secs(10), change: Duration::from_secs(30) };

struct Remote {
    remote: Arc<dyn LockTableAllocator>,
    clock: ManualClock,
    _server: PeerServer,
}

impl Remote {
    async fn start() -> Self {
        let clock = ManualClock::new();
        let dyn_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let store = Arc::new(MemoryStore::new(1_700_000_000));
        let local = LocalAllocator::open(
            store,
            dyn_clock,
            AllocatorSettings::default(),
            Candidate::new(name("n"), "n:1"),
        )
        .await
        .expect("an empty store");
        let cluster = Cluster::random();
        let (address, _server) = serve(local, cluster).await;
        let remote = GrpcPeers::new(PATIENCE).connect(&address, cluster.id).expect("an address");
        Self { remote, clock, _server }
    }
}

async fn listen() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    (listener.local_addr().expect("it is bound").to_string(), listener)
}

async fn serve(allocator: Arc<dyn LockTableAllocator>, cluster: Cluster) -> (String, PeerServer) {
    let (address, listener) = listen().await;
    let cluster = watch::channel(Some(cluster)).1;
    (address, PeerServer::start(listener, allocator, cluster, ServerSettings::default()))
}

#[async_trait]
impl AllocatorFixture for Remote {
    fn allocator(&self) -> Arc<dyn LockTableAllocator> {
        Arc::clone(&self.remote)
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
}

#[tokio::test]
async fn the_allocator_over_grpc_keeps_the_contract_of_an_allocator() {
    allocator_suite(|| async { Box::new(Remote::start().await) as Box<dyn AllocatorFixture> })
        .await;
}

#[tokio::test]
async fn a_status_and_a_list_of_transactions_of_any_length_get_through() {
    let fixture = Remote::start().await;
    let request = Registration {
        node: name("n"),
        nonce: Nonce::new(1),
        address: "n:1".to_owned(),
        replaces: None,
    };
    let service = fixture.remote.register(&request).await.expect("a fresh store").service;
    let long = "x".repeat(200);
    let binds = (0..3_000).map(|n| {
        let (remote, table) = (
            Arc::clone(&fixture.remote),
            TableRef::new(&long, format!("{long}{n:04}")).expect("names"),
        );
        async move { drop(remote.bind(service, &table).await.expect("free")) }
    });
    futures::stream::iter(binds).buffer_unordered(256).collect::<Vec<()>>().await;
    let status = fixture.remote.status().await.expect("it leads");
    assert_eq!((status.services.len(), status.binds.len()), (1, 3_000));
    assert!(status.at > Progress::default());
    // Of an unknown origin: nothing is written, and it is known at once that they cannot commit.
    let txns: Vec<_> = (0..250_000)
        .map(|n| TxnId::new(ServiceId::new(1 << 32 | 7), TxnNumber::new(n), true))
        .collect();
    let response = fixture.remote.cannot_commit(&txns).await.expect("it leads");
    assert_eq!(response.tombstoned, txns);
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_or_says_nothing_is_unavailable_within_the_time_allowed() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let closed = taken.local_addr().expect("it is bound").to_string();
    drop(taken);
    let patience = Patience { call: Duration::from_millis(50), change: Duration::from_millis(50) };
    let peers = GrpcPeers::new(patience);
    for address in [silent.local_addr().expect("it is bound").to_string(), closed] {
        let peer = peers.connect(&address, Cluster::random().id).expect("an address");
        let error = peer.status().await.expect_err("no one responds");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let error = peer
            .keepalive(ServiceId::new(1), Nonce::new(1), Progress::default())
            .await
            .expect_err("no one");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    assert_eq!(
        peers.connect("no address", Cluster::random().id).expect_err("none").kind(),
        ErrorKind::InvalidArgument
    );
}

/// One of several nodes, as others and clients reach it.
struct Elected {
    address: NodeAddress,
    allocator: Arc<ElectedAllocator>,
    _peers: PeerServer,
    _server: Server,
}

async fn join(node: &str, store: &SharedStore) -> Elected {
    let ((nodes, peer_listener), (clients, listener)) = (listen().await, listen().await);
    let address = NodeAddress { nodes, clients };
    let mut settings = AllocatorSettings::default();
    settings.constants.leadership_ttl_ms = 1_000;
    let (store, clock) = (Arc::new(store.connect()), Arc::new(SystemClock));
    let peers = Arc::new(GrpcPeers::new(PATIENCE));
    let allocator =
        ElectedAllocator::start(store, clock, settings, name(node), address.clone(), peers)
            .expect("settings");
    let settings = ServerSettings::default();
    let _peers =
        PeerServer::start(peer_listener, allocator.as_leader(), allocator.cluster(), settings);
    let _server =
        Server::start(listener, allocator.for_clients(), settings).await.expect("it serves");
    allocator.elected().await.expect("the store responds");
    Elected { address, allocator, _peers, _server }
}

fn cluster(node: &Elected) -> Cluster {
    node.allocator.cluster().borrow().expect("the store has told")
}

fn register(node: &str) -> Registration {
    Registration {
        node: name(node),
        nonce: Nonce::new(1),
        address: "n:1".to_owned(),
        replaces: None,
    }
}

#[tokio::test]
async fn a_node_that_follows_tells_nodes_and_clients_where_each_of_them_reaches_the_leader() {
    let store = SharedStore::new();
    let (leads, follows) = (join("a", &store).await, join("b", &store).await);
    let follower = GrpcPeers::new(PATIENCE)
        .connect(&follows.address.nodes, cluster(&leads).id)
        .expect("an address");
    let error = follower.status().await.expect_err("it follows");
    assert_eq!(
        (error.kind(), error.leader()),
        (ErrorKind::NotLeader, Some(&*leads.address.nodes)),
        "{error:?}"
    );
    let channel =
        Endpoint::from_shared(format!("http://{}", follows.address.clients)).expect("an address");
    let mut client = AllocatorClient::new(channel.connect().await.expect("it listens"));
    let error =
        from_status(&client.status(proto::StatusRequest::default()).await.expect_err("it follows"));
    assert_eq!(
        (error.kind(), error.leader()),
        (ErrorKind::NotLeader, Some(&*leads.address.clients)),
        "{error:?}"
    );
    // Its own calls get there, and a client's own way, too.
    let at = follows.allocator.register(&register("b")).await.expect("the leader responds");
    assert_eq!(leads.allocator.status().await.expect("it leads").services[0].id, at.service);
    let client = Client::connect(&follows.address.clients).await.expect("it listens");
    let table = TableRef::new("g", "t").expect("names");
    assert!(client.allocator().latest(&table).await.expect("the leader responds").is_none());
}

#[tokio::test]
async fn what_is_for_nodes_is_not_served_to_clients() {
    let store = SharedStore::new();
    let node = join("a", &store).await;
    let channel =
        Endpoint::from_shared(format!("http://{}", node.address.clients)).expect("an address");
    let mut wire = PeerClient::new(channel.connect().await.expect("it listens"));
    let mut request = Request::new(convert::registration_to_proto(&register("b")));
    request
        .metadata_mut()
        .insert("lockservice-cluster", cluster(&node).id.to_string().parse().expect("ascii"));
    assert_eq!(wire.register(request).await.expect_err("for nodes").code(), Code::Unimplemented);
    let refused =
        node.allocator.for_clients().register(&register("b")).await.expect_err("for nodes");
    assert_eq!(refused.kind(), ErrorKind::NotPermitted);
}

/// The leader of one cluster has left, and a node of another one listens at its address now.
#[tokio::test]
async fn nodes_of_two_clusters_believe_nothing_of_each_other() {
    let (ours, theirs) = (SharedStore::new(), SharedStore::new());
    let (leads, stranger) = (join("a", &ours).await, join("x", &theirs).await);
    assert_ne!(cluster(&leads).id, cluster(&stranger).id);
    let before = stranger.allocator.status().await.expect("it leads").at;
    let wrong_node = GrpcPeers::new(PATIENCE)
        .connect(&stranger.address.nodes, cluster(&leads).id)
        .expect("an address");
    let observed = Progress { epoch: before.epoch.next().expect("more"), ..before };
    let report = Report::new(observed, &cluster(&leads));
    let responses = [
        wrong_node.register(&register("b")).await.map(drop),
        wrong_node.keepalive(ServiceId::new(1), Nonce::new(1), observed).await.map(drop),
        wrong_node.report(&report).await.map(drop),
        wrong_node.status().await.map(drop),
    ];
    for response in responses {
        assert_eq!(response.expect_err("no response").kind(), ErrorKind::Unavailable);
    }
    // A caller that names no cluster is refused, and learns the cluster of the node.
    let channel =
        Endpoint::from_shared(format!("http://{}", stranger.address.nodes)).expect("an address");
    let mut wire = PeerClient::new(channel.connect().await.expect("it listens"));
    let refused = wire
        .register(convert::registration_to_proto(&register("b")))
        .await
        .expect_err("no cluster");
    assert_eq!(from_status(&refused).kind(), ErrorKind::NotPermitted, "{refused:?}");
    let observed = refused
        .metadata()
        .get("lockservice-cluster")
        .expect("it names its own")
        .to_str()
        .expect("ascii");
    assert_eq!(observed, cluster(&stranger).id.to_string());
    let after = stranger.allocator.status().await.expect("it leads");
    assert_eq!((after.at, after.services.len()), (before, 0), "nothing has happened");
}
