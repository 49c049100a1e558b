//! Claims that the server cannot decide (P6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use lockservice::server::ServerSettings;
use lockservice_core::allocator::{
    AllocatorSettings, ClaimedTable, LocalAllocator, LockTableAllocator, TableClaim,
};
use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::service::ServiceParts;
use lockservice_core::store::{BindStore, Candidate, MemoryStore};
use lockservice_core::testing::{AllocatorHooks, HookedAllocator};
use lockservice_core::{Error, ErrorKind, NodeName, Result, ServiceId};

use super::*;

/// A clock, and an allocator that finds no leader while it says so: each try takes three seconds of
/// that clock.
#[derive(Clone, Debug, Default)]
struct NoLeader {
    ahead_ms: Arc<AtomicU64>,
    is_so: Arc<AtomicBool>,
}

impl Clock for NoLeader {
    fn now(&self) -> Time {
        SystemClock.now() + Duration::from_millis(self.ahead_ms.load(SeqCst))
    }
}

#[async_trait::async_trait]
impl AllocatorHooks for NoLeader {
    async fn claim_table(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        claim: &TableClaim,
    ) -> Result<ClaimedTable> {
        if self.is_so.load(SeqCst) {
            self.ahead_ms.fetch_add(3_000, SeqCst);
            return Err(Error::new(ErrorKind::NotLeader, "for the test"));
        }
        inner.claim_table(service, claim).await
    }
}

/// Starts the next process of a node on its store.
async fn process(store: &Arc<dyn BindStore>, no_leader: &NoLeader) -> Served {
    let name = || NodeName::new("node-1").expect("a name");
    let (settings, clock) = (AllocatorSettings::default(), Arc::new(no_leader.clone()));
    let candidate = Candidate::from(name());
    let opened = LocalAllocator::open(
        Arc::clone(store),
        Arc::<NoLeader>::clone(&clock),
        settings,
        candidate,
    );
    let inner = opened.await.expect("it opens");
    let allocator = Arc::new(HookedAllocator { inner, hooks: no_leader.clone() });
    let parts = ServiceParts::new(allocator, clock, name());
    Served::start_service(parts, ServerSettings::default()).await
}

#[tokio::test]
async fn claims_are_not_over_while_one_of_them_is_not_decided() {
    let store: Arc<dyn BindStore> = Arc::new(MemoryStore::new(1));
    let no_leader = NoLeader::default();
    let first = process(&store, &no_leader).await;
    let (mut raw, welcome) = Raw::greeted(&first).await;
    let locked = match raw.ask(Op::Lock(lock(1, "accounts", b"k"))).await {
        Some(Response::Locked(locked)) => locked,
        other => panic!("not locked: {other:?}"),
    };
    first.kill();
    no_leader.is_so.store(true, SeqCst);
    let second = process(&store, &no_leader).await;

    let bind = locked.bind.expect("its bind");
    let held = proto::HeldLocks {
        group: bind.group,
        table: bind.table,
        version: bind.version,
        token: locked.token,
        mode: proto::LockMode::Exclusive.into(),
        rows: vec![Bytes::from_static(b"k")],
        ..Default::default()
    };
    let claim = proto::ClaimOp {
        txn: 1,
        id: locked.txn,
        next_sequence: 2,
        locks: vec![held],
        ..Default::default()
    };
    let all = || vec![Op::Claim(claim.clone()), Op::ClaimsDone(proto::ClaimsDone { last_txn: 1 })];
    let back = async || {
        let hello = proto::Hello {
            session: welcome.session,
            service: welcome.service,
            claims: true,
            ..Default::default()
        };
        let mut raw = Raw::open(&second).await;
        match raw.ask(Op::Hello(hello)).await {
            Some(Response::Welcome(welcome)) => assert!(welcome.reclaim),
            other => panic!("no welcome: {other:?}"),
        }
        raw.send(all()).await;
        raw
    };
    let mut raw = back().await;
    let mut responses = raw.next().await;
    assert_eq!(responses.len(), 1, "the claims are not over: {responses:?}");
    assert_eq!(kind(responses.remove(0).response), "unavailable");
    let end = raw.responses.message().await.expect("it ends in order");
    assert!(end.is_none(), "the client claims again on another stream: {end:?}");

    no_leader.is_so.store(false, SeqCst);
    let mut raw = back().await;
    let mut responses = raw.next().await;
    while responses.len() < 2 {
        responses.extend(raw.next().await);
    }
    assert!(matches!(responses[0].response, Some(Response::Claimed(_))), "{responses:?}");
    assert!(matches!(responses[1].response, Some(Response::Promise(_))), "{responses:?}");
}
