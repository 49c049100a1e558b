//! A node as a process on PostgreSQL or Redis, and callers without the role `peer`: they raise no
//! epoch, resign no node and tombstone nothing, at either port.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use integration::containers::{Postgres, PostgresOptions, Redis, RedisOptions};
use integration::server::{Place, Server};
use integration::{LEASE, binary, json_lines};
use lockservice::core::allocator::{
    AllocatorPeers as _, AllocatorStatus, LockTableAllocator, Registration, Report, TxnRange,
};
use lockservice::core::service::{LockSpec, TxnOptions};
use lockservice::core::store::Cluster;
use lockservice::core::{
    BindVersion, Error, ErrorKind, Key, LockItem, NodeName, Nonce, ServiceId, TableId, TableRef,
    TxnId, TxnNumber,
};
use lockservice::peers::{GrpcPeers, Patience};
use lockservice::token::{TokenHash, new_token};
use lockservice::{Client, Credentials};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

/// The names of the identities, with their roles.
const IDENTITIES: [(&str, &str); 3] = [("a", "peer"), ("app", "client"), ("admin", "operator")];

/// Writes the identities to a file of `folder`, and their tokens to others.
fn write_identities(folder: &Path) -> std::path::PathBuf {
    let identities = IDENTITIES.map(|(name, role)| {
        let token = new_token().expect("random");
        std::fs::write(folder.join(name), &token).expect("written");
        let hash = TokenHash::of(&token);
        format!("[[identity]]\nname = '{name}'\nroles = ['{role}']\ntoken_sha256 = '{hash}'\n")
    });
    let file = folder.join("identities.toml");
    std::fs::write(&file, identities.concat()).expect("written");
    file
}

fn credentials(place: &Place, name: &str) -> Credentials {
    Credentials::default().token_file(place.directory().join(name))
}

async fn client(place: &Place, name: &str) -> Client {
    let builder = Client::builder().credentials(credentials(place, name));
    builder.connect(&place.address).await.expect("it serves")
}

/// The cluster, as `store check` shows it.
async fn cluster(place: &Place) -> Cluster {
    let mut check = Command::new(binary::lockservice());
    check.args(["--json", "store", "check", "--store", &place.store]);
    let output: Output = place.run(&mut check).await;
    let lines = json_lines(&output);
    let id = lines.iter().find_map(|line| line["cluster"].as_str()).expect("a cluster");
    // Its key is what a stranger does not have.
    Cluster { id: id.parse().expect("an id"), ..Cluster::random() }
}

/// The allocator at `address`, as one that shows `credentials` reaches it.
fn reached(
    address: &str,
    credentials: &Credentials,
    cluster: &Cluster,
) -> Arc<dyn LockTableAllocator> {
    let patience = Patience { call: Duration::from_secs(10), change: Duration::from_secs(10) };
    let peers = GrpcPeers::with_credentials(patience, credentials).expect("its files");
    peers.connect(address, cluster.id).expect("an address")
}

/// What a stranger would have to be able to do to harm the node or a transaction.
async fn every_call(
    at: &dyn LockTableAllocator,
    status: &AllocatorStatus,
    cluster: &Cluster,
    (service, txn): (ServiceId, TxnId),
) -> Vec<Option<Error>> {
    let nonce = Nonce::new(1);
    let table = TableRef::new("default", "jobs").expect("names");
    let mut higher = status.at;
    higher.epoch = higher.epoch.next().expect("more");
    let range =
        TxnRange { floor: TxnNumber::new(u64::MAX >> 12), end: TxnNumber::new(u64::MAX >> 11) };
    let register = Registration {
        node: NodeName::new("a").expect("a name"),
        nonce,
        address: "127.0.0.1:1".to_owned(),
        replaces: Some((service, nonce)),
    };
    let version = BindVersion::new(1);
    vec![
        at.keepalive(service, nonce, higher).await.err(),
        at.report(&Report::new(higher, cluster)).await.err(),
        at.resign(service, nonce).await.err(),
        at.register(&register).await.err(),
        at.release_table(service, nonce, &table, version).await.err(),
        at.forget_table(&table).await.err(),
        at.bind(service, &table).await.err(),
        at.reserve_tokens(service, TableId::new(1), version).await.err(),
        at.cannot_commit(&[txn]).await.err(),
        at.report_txns(service, nonce, range).await.err(),
    ]
}

/// What the server says of itself to monitoring.
async fn metrics(server: &Server) -> String {
    let address = server.metrics_address.as_ref().expect("it serves metrics");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n";
    stream.write_all(request).await.expect("it reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("it responds, and closes the connection");
    response
}

async fn change_nothing(store: &str) {
    let place = Place::joining(store, "a");
    let identities = write_identities(place.directory());
    let mut serve = place.serve();
    serve.arg("--identity-file").arg(identities);
    serve.arg("--peer-token-file").arg(place.directory().join("a"));
    serve.args(["--metrics", "127.0.0.1:0"]);
    let server: Server = place.start_with(serve).await;
    let nodes = server.peer_address.clone().expect("others share the store");
    let cluster = cluster(&place).await;
    let app = client(&place, "app").await;
    let session = app.session(Some(LEASE)).await.expect("it serves");
    let txn = session.txn(TxnOptions { validates: true, ..TxnOptions::default() });
    let row = LockItem::Row(Key::new("nightly").expect("a key"));
    let spec = LockSpec::new(TableRef::new("default", "jobs").expect("names"), vec![row]);
    txn.lock(spec).await.expect("free");
    let subject = (ServiceId::new(server.incarnation), txn.id().expect("it has locked"));

    let peer = reached(&nodes, &credentials(&place, "a"), &cluster);
    let before = peer.status().await.expect("it has the role");
    for (name, kind) in [
        ("app", ErrorKind::NotPermitted),
        ("admin", ErrorKind::NotPermitted),
        ("nobody", ErrorKind::Unauthenticated),
    ] {
        let credentials = match name {
            "nobody" => Credentials::default(),
            name => credentials(&place, name),
        };
        let at = reached(&nodes, &credentials, &cluster);
        for (call, refused) in every_call(&*at, &before, &cluster, subject).await.iter().enumerate()
        {
            let refused = refused.as_ref().unwrap_or_else(|| panic!("{name} may call {call}"));
            assert_eq!(refused.kind(), kind, "{name}, call {call}: {refused:?}");
        }
        // The port for clients serves none of that, to nobody.
        let at = reached(&place.address, &credentials, &cluster);
        for (call, refused) in every_call(&*at, &before, &cluster, subject).await.iter().enumerate()
        {
            assert!(refused.is_some(), "{name} may call {call} at the port for clients");
        }
    }
    let after = peer.status().await.expect("it has the role");
    assert_eq!(after.at.epoch, before.at.epoch, "no epoch was raised");
    assert_eq!(after.services, before.services, "no node has resigned, or is another one");
    assert_eq!(after.binds, before.binds);
    let metrics = metrics(&server).await;
    for (code, count) in [("permission_denied", 2), ("unauthenticated", 1)] {
        let labels = format!("method=\"lockservice.v1.Peer/Resign\",code=\"{code}\"");
        let series = format!("lockservice_peer_rpc_calls_total{{{labels}}} {count}\n");
        assert!(metrics.contains(&series), "{series} in {metrics}");
    }
    // What was not tombstoned commits.
    let begin = lockservice::BeginCommit {
        txn: subject.1,
        attempt: lockservice::CommitAttempt::new(1),
        binds: Vec::new(),
        window: lockservice::CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
    };
    app.allocator().begin_commit(&begin).await.expect("it is not tombstoned");
    app.allocator().finish_commit(subject.1, begin.attempt).await.expect("it was admitted");
    txn.end(None).await.expect("its session goes on");
    session.close().await.expect("acknowledged");
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_the_role_peer_change_nothing_on_postgres() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    Box::pin(change_nothing(postgres.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_the_role_peer_change_nothing_on_redis() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    Box::pin(change_nothing(redis.url())).await;
}
