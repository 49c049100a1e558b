//! Nodes that reach each other over mutual TLS; strangers, and callers without the role `peer`,
//! change nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockservice::Credentials;
use lockservice::peers::{GrpcPeers, Patience};
use lockservice::server::{
    Access, AccessRole, IdentitySettings, PeerServer, ServerListener, ServerSettings, ServerTls,
    TlsSettings,
};
use lockservice_core::allocator::{
    AllocatorPeers as _, AllocatorSettings, BeginCommit, CommitWindow, ElectedAllocator,
    LockTableAllocator, Progress, Registration, Report, TxnRange,
};
use lockservice_core::clock::SystemClock;
use lockservice_core::store::NodeAddress;
use lockservice_core::testing::SharedStore;
use lockservice_core::{
    BindVersion, CommitAttempt, Error, ErrorKind, NodeName, Nonce, ServiceId, TableId, TableRef,
    TxnId, TxnNumber,
};
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
    async fn join(name: &str, store: &SharedStore, ca: &Ca, access: Access) -> Self {
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
        let listener = ServerListener::from(listener).with_tls(tls).with_access(access);
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
    let leads = Node::join("a", &store, &ca, Access::default()).await;
    let follows = Node::join("b", &store, &ca, Access::default()).await;
    let at = follows.allocator.register(&register("b")).await.expect("the leader responds");
    let status = leads.allocator.status().await.expect("it leads");
    assert_eq!(status.services[0].id, at.service);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_without_a_certificate_of_the_nodes_ca_reaches_no_node() {
    let (ca, other, store) = (Ca::make(), Ca::make(), SharedStore::new());
    let leads = Node::join("a", &store, &ca, Access::default()).await;
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

fn identity(name: &str, role: AccessRole) -> IdentitySettings {
    IdentitySettings {
        name: name.to_owned(),
        roles: vec![role],
        certificates: vec![name.to_owned()],
        ..IdentitySettings::default()
    }
}

/// Every call that is for nodes.
async fn every_call(at: &dyn LockTableAllocator, node: &Node) -> Vec<Option<Error>> {
    let status = node.allocator.status().await.expect("it leads");
    let cluster = node.allocator.cluster().borrow().expect("it is known");
    let (service, nonce) = (ServiceId::new(1), Nonce::new(1));
    let table = TableRef::new("g", "t").expect("names");
    let version = BindVersion::new(1);
    // It would raise the epoch.
    let higher = Progress { epoch: status.at.epoch.next().expect("more"), ..status.at };
    let txn = TxnId::new(service, TxnNumber::new(1), true);
    let range = TxnRange { floor: TxnNumber::new(1), end: TxnNumber::new(2) };
    let commit = BeginCommit {
        txn,
        attempt: CommitAttempt::new(1),
        binds: Vec::new(),
        window: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
    };
    vec![
        at.register(&register("x")).await.err(),
        at.keepalive(service, nonce, higher).await.err(),
        at.report(&Report::new(higher, &cluster)).await.err(),
        at.resign(service, nonce).await.err(),
        at.bind(service, &table).await.err(),
        at.reserve_tokens(service, TableId::new(1), version).await.err(),
        at.release_table(service, nonce, &table, version).await.err(),
        at.forget_table(&table).await.err(),
        at.latest(&table).await.err(),
        at.begin_commit(&commit).await.err(),
        at.finish_commit(txn, CommitAttempt::new(1)).await.err(),
        at.cannot_commit(&[txn]).await.err(),
        at.report_txns(service, nonce, range).await.err(),
        at.status().await.err(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_the_role_peer_raises_no_epoch_resigns_no_node_and_tombstones_nothing() {
    let (ca, store) = (Ca::make(), SharedStore::new());
    let identities = [
        identity("b", AccessRole::Peer),
        identity("app", AccessRole::Client),
        identity("admin", AccessRole::Operator),
    ];
    let access = Access::new(&identities).expect("valid");
    let leads = Node::join("a", &store, &ca, access.clone()).await;
    let follows = Node::join("b", &store, &ca, access.clone()).await;
    follows.allocator.register(&register("b")).await.expect("it has the role");
    let before = leads.allocator.status().await.expect("it leads");
    for (name, kind, said) in [
        ("app", ErrorKind::NotPermitted, "needs the role peer"),
        ("admin", ErrorKind::NotPermitted, "needs the role peer"),
        ("stranger", ErrorKind::Unauthenticated, "knows no identity"),
    ] {
        let at = leads.reached_with(&ca.credentials(name));
        for (call, refusal) in every_call(&*at, &leads).await.into_iter().enumerate() {
            let refusal = refusal.unwrap_or_else(|| panic!("call {call} of {name} is served"));
            assert_eq!(refusal.kind(), kind, "call {call}: {refusal:?}");
            assert!(refusal.to_string().contains(said), "call {call}: {refusal:?}");
        }
    }
    let after = leads.allocator.status().await.expect("it still leads");
    assert_eq!((after.at, after.services.len()), (before.at, before.services.len()));
    assert!(after.binds.is_empty(), "{:?}", after.binds);
    // The same calls of a node with the role are served.
    let at = leads.reached_with(&ca.credentials("b"));
    assert!(at.status().await.is_ok() && at.cannot_commit(&[]).await.is_ok());
    access.replace(&identities[1..]).expect("valid");
    let refused = at.status().await.expect_err("revoked");
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated, "{refused:?}");
}
