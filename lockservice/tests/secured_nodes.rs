//! Nodes that reach each other over mutual TLS, and strangers that do not get in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockservice::Credentials;
use lockservice::peers::{GrpcPeers, Patience};
use lockservice::server::{PeerServer, ServerListener, ServerSettings, ServerTls, TlsSettings};
use lockservice_core::allocator::{
    AllocatorPeers as _, AllocatorSettings, ElectedAllocator, LockTableAllocator, Registration,
};
use lockservice_core::clock::SystemClock;
use lockservice_core::store::NodeAddress;
use lockservice_core::testing::SharedStore;
use lockservice_core::{Error, ErrorKind, NodeName, Nonce};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;

const PATIENCE: Patience =
    Patience { call: Duration::from_secs(10), change: Duration::from_secs(30) };

/// A CA in a folder, and the certificates that it signed.
struct Ca {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn make() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = params.self_signed(&key).expect("signed");
        std::fs::write(folder.path().join("ca.pem"), signed.pem()).expect("written");
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The files of a certificate for this machine, and of its key.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let path = |what: &str| self.folder.path().join(format!("{name}{what}.pem"));
        std::fs::write(path("-key"), key.serialize_pem()).expect("written");
        std::fs::write(path(""), signed.pem()).expect("written");
        (path(""), path("-key"))
    }

    /// What a node of `name` trusts, and shows to other nodes.
    fn credentials(&self, name: &str) -> Credentials {
        let (cert, key) = self.sign(name);
        Credentials::default().ca(self.file()).certificate(cert, key)
    }
}

/// A node without a service.
struct Node {
    allocator: Arc<ElectedAllocator>,
    /// Where other nodes reach it.
    address: String,
    _peers: PeerServer,
}

impl Node {
    /// Joins the nodes of `store`, with a certificate that `ca` has signed.
    async fn join(name: &str, store: &SharedStore, ca: &Ca) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (cert, key) = ca.sign(name);
        let settings = TlsSettings { cert, key, client_ca: ca.file(), ..TlsSettings::default() };
        let tls = ServerTls::load(&settings).expect("its files");
        let peers = GrpcPeers::with_credentials(PATIENCE, &ca.credentials(name));
        let at = NodeAddress { nodes: address.clone(), clients: address.clone() };
        let mut allocator_settings = AllocatorSettings::default();
        allocator_settings.constants.leadership_ttl_ms = 1_000;
        let allocator = ElectedAllocator::start(
            Arc::new(store.connect()),
            Arc::new(SystemClock),
            allocator_settings,
            NodeName::new(name).expect("a name"),
            at,
            Arc::new(peers.expect("its files")),
        )
        .expect("valid settings");
        let listener = ServerListener::from(listener).with_tls(tls);
        let (leader, cluster) = (allocator.as_leader(), allocator.cluster());
        let server = PeerServer::start(listener, leader, cluster, ServerSettings::default());
        allocator.elected().await.expect("the store responds");
        Self { allocator, address, _peers: server }
    }

    /// The node's allocator as one that shows `credentials` reaches it.
    fn reached_with(&self, credentials: &Credentials) -> Arc<dyn LockTableAllocator> {
        let peers = GrpcPeers::with_credentials(PATIENCE, credentials).expect("its files");
        let cluster = self.allocator.cluster().borrow().expect("it is known").id;
        peers.connect(&self.address, cluster).expect("an address")
    }
}

fn register(name: &str) -> Registration {
    Registration {
        node: NodeName::new(name).expect("a name"),
        nonce: Nonce::new(1),
        address: "n:1".to_owned(),
        replaces: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_the_leader_over_mutual_tls() {
    let (ca, store) = (Ca::make(), SharedStore::new());
    let leads = Node::join("a", &store, &ca).await;
    let follows = Node::join("b", &store, &ca).await;
    let at = follows.allocator.register(&register("b")).await.expect("the leader responds");
    let status = leads.allocator.status().await.expect("it leads");
    assert_eq!(status.services[0].id, at.service);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_without_a_certificate_of_the_nodes_ca_reaches_no_node() {
    let (ca, other, store) = (Ca::make(), Ca::make(), SharedStore::new());
    let leads = Node::join("a", &store, &ca).await;
    let before = leads.allocator.status().await.expect("it leads");
    let (cert, key) = other.sign("stranger");
    for (credentials, said) in [
        (Credentials::default(), "this server speaks TLS"),
        (Credentials::default().ca(ca.file()), "requires a certificate of its clients"),
        (Credentials::default().ca(ca.file()).certificate(cert, key), "does not know the CA"),
        (other.credentials("other"), "is signed by no CA of"),
    ] {
        let stranger = leads.reached_with(&credentials);
        let refusals: [Option<Error>; 3] = [
            stranger.register(&register("x")).await.err(),
            stranger.status().await.err(),
            stranger.cannot_commit(&[]).await.err(),
        ];
        for refusal in refusals {
            let refusal = refusal.expect("it is refused");
            let kinds = [ErrorKind::Unavailable, ErrorKind::Unauthenticated];
            assert!(kinds.contains(&refusal.kind()), "{refusal:?}");
            assert!(refusal.to_string().contains(said), "{said}: {refusal:?}");
        }
    }
    let after = leads.allocator.status().await.expect("it leads");
    assert_eq!((after.at, after.services.len()), (before.at, 0), "nothing has happened");
}
