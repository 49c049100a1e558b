//! The allocator over gRPC keeps the contract of an allocator, over a real connection.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use lockservice::peers::{GrpcPeers, Patience};
use lockservice::server::{Server, ServerSettings};
use lockservice_core::allocator::{
    AllocatorPeers, AllocatorSettings, ElectedAllocator, LocalAllocator, LockTableAllocator, Progress, Resume,
};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::store::{Candidate, MemoryStore};
use lockservice_core::testing::{AllocatorFixture, ManualClock, SharedStore, allocator_suite};
use lockservice_core::{ErrorKind, NodeName, Nonce, ServiceId, TableRef, TxnId};
use tokio::net::TcpListener;

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

const PATIENCE: Patience = Patience { call: Duration::from_secs(10), change: Duration::from_secs(30) };

struct Remote {
    remote: Arc<dyn LockTableAllocator>,
    clock: ManualClock,
    _server: Server,
}

impl Remote {
    async fn start() -> Self {
        let clock = ManualClock::new();
        let dyn_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let store = Arc::new(MemoryStore::new(1_700_000_000));
        let local =
            LocalAllocator::open(store, dyn_clock, AllocatorSettings::default(), Candidate::new(name("n"), "n:1"))
                .await
                .expect("an empty store");
        let (address, _server) = serve(local).await;
        let remote = GrpcPeers::new(PATIENCE).connect(&address).expect("an address");
        Self { remote, clock, _server }
    }
}

async fn serve(allocator: Arc<dyn LockTableAllocator>) -> (String, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let server = Server::start(listener, allocator, ServerSettings::default()).await.expect("it serves");
    (address, server)
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
    allocator_suite(|| async { Box::new(Remote::start().await) as Box<dyn AllocatorFixture> }).await;
}

#[tokio::test]
async fn a_status_and_a_list_of_transactions_of_any_length_get_through() {
    let fixture = Remote::start().await;
    let request = Resume { node: name("n"), nonce: Nonce::new(1), address: "n:1".to_owned(), replaces: None };
    let service = fixture.remote.resume(&request).await.expect("a fresh store").service;
    let long = "x".repeat(200);
    let binds = (0..3_000).map(|n| {
        let (remote, table) =
            (Arc::clone(&fixture.remote), TableRef::new(&long, format!("{long}{n:04}")).expect("names"));
        async move { drop(remote.bind(service, &table).await.expect("free")) }
    });
    futures::stream::iter(binds).buffer_unordered(256).collect::<Vec<()>>().await;
    let status = fixture.remote.status().await.expect("it leads");
    assert_eq!((status.services.len(), status.binds.len()), (1, 3_000));
    assert!(status.at > Progress::default());
    // Of an origin that nobody knows: nothing is written, and it is known at once that they cannot commit.
    let txns: Vec<_> = (0..250_000).map(|n| TxnId::new(ServiceId::new(1 << 32 | 7), n, true)).collect();
    let answer = fixture.remote.cannot_commit(&txns).await.expect("it leads");
    assert_eq!(answer.tombstoned, txns);
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
        let peer = peers.connect(&address).expect("an address");
        let error = peer.status().await.expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let error = peer.keepalive(ServiceId::new(1), Nonce::new(1), Progress::default()).await.expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    assert_eq!(peers.connect("no address").expect_err("none").kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_node_that_follows_tells_where_the_leader_is() {
    let store = SharedStore::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut nodes = Vec::new();
    for n in ["a", "b"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let mut settings = AllocatorSettings::default();
        settings.constants.leadership_ttl_ms = 1_000;
        let peers = Arc::new(GrpcPeers::new(PATIENCE));
        let store = Arc::new(store.connect());
        let elected = ElectedAllocator::start(store, Arc::clone(&clock), settings, name(n), address.clone(), peers)
            .expect("settings");
        let server = Server::start(listener, elected.as_leader(), ServerSettings::default()).await.expect("it serves");
        elected.settled().await.expect("the store answers");
        nodes.push((address, elected, server));
    }
    let follower = GrpcPeers::new(PATIENCE).connect(&nodes[1].0).expect("an address");
    let error = follower.status().await.expect_err("it follows");
    assert_eq!((error.kind(), error.leader()), (ErrorKind::NotLeader, Some(nodes[0].0.as_str())), "{error:?}");
    // Its own calls get there.
    let request = Resume { node: name("b"), nonce: Nonce::new(1), address: nodes[1].0.clone(), replaces: None };
    let at = nodes[1].1.resume(&request).await.expect("the leader answers");
    assert_eq!(nodes[0].1.status().await.expect("it leads").services[0].id, at.service);
}
