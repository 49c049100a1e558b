//! Claims after a restart of the server (P6), at a server that says what a test wants.
//!
//! | file | noun |
//! |---|---|
//! | `claims` | what is claimed, and what goes on |
//! | `refused` | claims that fail, transactions that cannot be claimed |
//! | `broken` | streams that break on the way; a server that says that it stops |

mod broken;
mod claims;
mod refused;

use std::sync::Arc;

use lockservice::client::{Client, LockGuard, Session};
use lockservice::proto::client_op::Op;
use lockservice::proto::server_op::Response as Wire;
use lockservice::proto::{self, HeldLocks};
use lockservice_core::LockMode;
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::LockSpec;

use super::within;
use crate::fake::{FakeServer, FakeStream};
use crate::support::{row, spec};

/// The promise of a test that does not wait for its end.
const LONG_MS: u64 = 60_000;

/// A session at a fake server.
struct Opened {
    server: FakeServer,
    stream: FakeStream,
    session: Session,
}

/// Opens a session with a promise of `promised_ms`.
async fn open(promised_ms: u64) -> Opened {
    open_by(Arc::new(SystemClock), promised_ms).await
}

/// Opens a session of a client that goes by `clock`.
async fn open_by(clock: Arc<dyn Clock>, promised_ms: u64) -> Opened {
    let mut server = FakeServer::start().await;
    let client = Client::builder().env(clock).connect(&server.address).await;
    let client = client.expect("it listens");
    let welcoming = async {
        let mut stream = server.stream().await;
        let hello = stream.hello().await;
        assert_eq!((hello.session, hello.claims), (0, false), "a new one has nothing to claim");
        stream.welcome(proto::Welcome::default(), promised_ms);
        stream
    };
    let (stream, session) = tokio::join!(welcoming, client.session(None));
    Opened { server, stream, session: session.expect("welcomed") }
}

/// The grant of a lock under `token`, by transaction `txn` of process 1.
fn locked(txn: u64, token: u64, promised_ms: u64) -> Wire {
    let bind = proto::Bind {
        group: "default".to_owned(),
        table: "accounts".to_owned(),
        version: 5,
        owner: 1,
        ..proto::Bind::default()
    };
    Wire::Locked(proto::Locked {
        txn: format!("1-{}", 2 * txn),
        bind: Some(bind),
        token,
        newly_locked: true,
        promise: Some(proto::Promise { valid_for_ms: promised_ms }),
        ..proto::Locked::default()
    })
}

impl Opened {
    /// Grants the next lock call of the stream.
    async fn grant(&mut self, txn: u64, token: u64, promised_ms: u64) {
        match self.stream.next_op().await {
            (id, Op::Lock(_)) => self.stream.respond(id, locked(txn, token, promised_ms)),
            (_, other) => panic!("no lock: {other:?}"),
        }
    }

    /// Locks in a transaction of its own, the session's `number`th.
    async fn lock(&mut self, spec: LockSpec, number: u64, promised_ms: u64) -> LockGuard {
        let session = self.session.clone();
        let granting = self.grant(number, 10 + number, promised_ms);
        tokio::join!(granting, session.lock(spec)).1.expect("granted")
    }

    /// Waits for the next stream of the client. Returns the last one.
    async fn next_stream(&mut self) -> FakeStream {
        let next = within(self.server.stream()).await;
        std::mem::replace(&mut self.stream, next)
    }

    /// The stream breaks. The next process of the server takes the next one: its greeting.
    async fn restart(&mut self, welcome: proto::Welcome, promised_ms: u64) -> proto::Hello {
        self.stream.end();
        drop(self.next_stream().await);
        let hello = within(self.stream.hello()).await;
        self.stream.welcome(welcome, promised_ms);
        hello
    }

    /// The claims of the stream, each with its id, and the id and message of what ends them.
    async fn claims(&mut self) -> (Vec<(u64, proto::ClaimOp)>, u64, proto::ClaimsDone) {
        let mut claims = Vec::new();
        loop {
            let next = within(self.stream.next()).await;
            match next.op {
                Some(Op::Claim(claim)) => claims.push((next.id, claim)),
                Some(Op::ClaimsDone(done)) => return (claims, next.id, done),
                other => panic!("no claim: {other:?}"),
            }
        }
    }

    /// Takes all claims, and promises.
    async fn take_claims(&mut self, promised_ms: u64) -> Vec<proto::ClaimOp> {
        let (claims, done, _) = self.claims().await;
        claims.iter().for_each(|(id, _)| self.stream.done(*id));
        self.stream.promise(done, promised_ms);
        claims.into_iter().map(|(_, claim)| claim).collect()
    }
}

/// The next process of the server, number `service`.
fn process(service: u64) -> proto::Welcome {
    proto::Welcome { service, reclaim: true, resumed: true, ..proto::Welcome::default() }
}

/// Rows of the table that are held under `token`.
fn held(rows: &[&str], token: u64, mode: LockMode) -> HeldLocks {
    HeldLocks {
        group: "default".to_owned(),
        table: "accounts".to_owned(),
        version: 5,
        token,
        mode: lockservice::convert::mode_to_proto(mode),
        rows: rows.iter().map(|row| row.as_bytes().to_vec().into()).collect(),
        ranges: Vec::new(),
    }
}

/// A lock of several rows.
fn rows(names: &[&str], mode: LockMode) -> LockSpec {
    LockSpec { items: names.iter().map(|name| row(name)).collect(), mode, ..spec("x") }
}
