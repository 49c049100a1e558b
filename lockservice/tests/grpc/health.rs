//! The statuses that a probe gets.

use std::sync::Arc;
use std::time::Duration;

use crate::support::spec;
use lockservice::client::Client;
use lockservice::server::{Server, ServerSettings, ServiceHost, Stop};
use lockservice_core::NodeName;
use lockservice_core::Nonce;
use lockservice_core::allocator::{
    AllocatorSettings, ElectedAllocator, LocalAllocator, LockTableAllocator, Registration, Role,
};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::ServiceParts;
use lockservice_core::store::{Candidate, MemoryStore};
use lockservice_core::testing::{LocalPeers, SharedStore};
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Longer than anything here takes, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
const LOCKS: &str = "lockservice.v1.Locks";
const ALLOCATOR: &str = "lockservice.v1.Allocator";

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

/// The shortest promises.
fn settings() -> AllocatorSettings {
    let mut settings = AllocatorSettings::default();
    (settings.constants.leadership_ttl_ms, settings.constants.lease_ttl_ms) = (1_000, 1_000);
    settings
}

async fn listen() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    (listener.local_addr().expect("it is bound").to_string(), listener)
}

/// The statuses of one service.
struct Probe(HealthClient<Channel>, &'static str);

impl Probe {
    async fn of(address: &str, service: &'static str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self(HealthClient::new(endpoint.connect().await.expect("it listens")), service)
    }

    fn request(&self) -> HealthCheckRequest {
        HealthCheckRequest { service: self.1.to_owned() }
    }

    async fn now(&mut self) -> ServingStatus {
        let request = self.request();
        self.0.check(request).await.expect("it is known").into_inner().status()
    }

    /// Waits until it is so.
    async fn becomes(&mut self, status: ServingStatus) {
        let request = self.request();
        let mut news = self.0.watch(request).await.expect("it is known").into_inner();
        let becomes = async {
            while news
                .message()
                .await
                .expect("the server lives")
                .expect("the server lives")
                .status()
                != status
            {}
        };
        tokio::time::timeout(DEADLINE, becomes).await.expect("in time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_reported_as_served_only_while_the_node_has_its_lease() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (store, candidate) = (Arc::new(MemoryStore::new(1)), Candidate::from(name("n")));
    let allocator = LocalAllocator::open(store, Arc::clone(&clock), settings(), candidate)
        .await
        .expect("fresh");
    let leader = Arc::clone(&allocator) as Arc<dyn LockTableAllocator>;
    let (address, listener) = listen().await;
    let mut server = Server::start(listener, Arc::clone(&leader), ServerSettings::default())
        .await
        .expect("listens");
    let (mut locks, mut whole) = (Probe::of(&address, LOCKS).await, Probe::of(&address, "").await);
    let mut commits = Probe::of(&address, ALLOCATOR).await;
    assert_eq!(
        (locks.now().await, whole.now().await),
        (ServingStatus::NotServing, ServingStatus::NotServing)
    );
    assert_eq!(commits.now().await, ServingStatus::Serving, "it answers before the service stands");
    let host =
        ServiceHost::start(ServiceParts::new(leader, clock, name("n"))).await.expect("starts");
    let first = host.current();
    server.host(host.clone()).await;
    assert_eq!(
        (locks.now().await, whole.now().await),
        (ServingStatus::Serving, ServingStatus::Serving)
    );
    // Another process takes the name over, as it may that knows the incarnation; the lease is lost.
    let (nonce, replaces) = (Nonce::new(1), Some((first.id(), first.nonce())));
    let thief = allocator
        .register(&Registration { node: name("n"), nonce, address: "x:1".to_owned(), replaces })
        .await;
    let thief = thief.expect("it knows the incarnation");
    locks.becomes(ServingStatus::NotServing).await;
    whole.becomes(ServingStatus::NotServing).await;
    assert_eq!(commits.now().await, ServingStatus::Serving);
    // It goes, or its lease has run out meanwhile: the node serves again, as another incarnation.
    drop(allocator.resign(thief.service, nonce).await);
    locks.becomes(ServingStatus::Serving).await;
    whole.becomes(ServingStatus::Serving).await;
    assert_ne!(host.current().id(), first.id());
    let session =
        Client::connect(&address).await.expect("listens").session(None).await.expect("serves");
    drop(session.lock(spec("k")).await.expect("served"));
    session.close().await.expect("acknowledged");
    let stop = tokio::spawn(async move { server.run(async { Stop::Drain }).await.map(|_| server) });
    locks.becomes(ServingStatus::NotServing).await;
    whole.becomes(ServingStatus::NotServing).await;
    stop.await.expect("no panic").expect("stops").close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_allocator_is_reported_as_served_while_the_node_leads_or_knows_who_does() {
    let (store, net) = (SharedStore::new(), LocalPeers::default());
    let mut nodes = Vec::new();
    for node in ["a", "b"] {
        let (address, listener) = listen().await;
        let connection = store.connect();
        let (own, clock) = (Arc::new(connection.clone()), Arc::new(SystemClock));
        let allocator = ElectedAllocator::start(
            own,
            clock,
            settings(),
            name(node),
            node,
            Arc::new(net.clone()),
        );
        let allocator = allocator.expect("valid settings");
        net.join(node, allocator.as_leader());
        let mut server =
            Server::start(listener, allocator.for_clients(), ServerSettings::default())
                .await
                .expect("listens");
        server.follow(allocator.roles());
        allocator.elected().await.expect("the store responds");
        let mut probe = Probe::of(&address, ALLOCATOR).await;
        probe.becomes(ServingStatus::Serving).await;
        nodes.push((connection, allocator, server, probe));
    }
    // A node that never reached the store knows no leader.
    let (address, listener) = listen().await;
    let lost = store.connect();
    lost.set_cut(true);
    let (lost, clock) = (Arc::new(lost), Arc::new(SystemClock));
    let allocator =
        ElectedAllocator::start(lost, clock, settings(), name("c"), "c", Arc::new(net.clone()));
    let allocator = allocator.expect("valid settings");
    let server = Server::start(listener, allocator.for_clients(), ServerSettings::default()).await;
    let mut server = server.expect("listens");
    server.follow(allocator.roles());
    Probe::of(&address, ALLOCATOR).await.becomes(ServingStatus::NotServing).await;

    let [(_, leads, _, leader), (store, _, _, follower)] = &mut nodes[..] else {
        unreachable!("two")
    };
    assert!(matches!(leads.role(), Role::Leading(_)));
    // The follower alone does not reach the store: it knows who leads all the same.
    store.set_cut(true);
    leader.becomes(ServingStatus::Serving).await;
    follower.becomes(ServingStatus::Serving).await;
    // Nor does the leader, until its leadership has run out.
    nodes[0].0.set_cut(true);
    nodes[0].3.becomes(ServingStatus::NotServing).await;
    nodes[0].0.set_cut(false);
    nodes[0].3.becomes(ServingStatus::Serving).await;
}
