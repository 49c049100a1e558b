//! Claims that cannot be decided yet, and claims that fail though something was held (P6, P5).

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use lockservice_core::allocator::{ClaimedTable, TableClaim};
use lockservice_core::testing::{AllocatorHooks, HookedAllocator};
use lockservice_core::{Error, ServiceId};

use super::reclaim::{Node, at_once, hold, in_table};
use super::*;

/// No leader is known, while it says so.
#[derive(Clone, Debug)]
struct NoLeader(Arc<AtomicBool>);

#[async_trait::async_trait]
impl AllocatorHooks for NoLeader {
    async fn claim_table(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        claim: &TableClaim,
    ) -> Result<ClaimedTable> {
        if self.0.load(SeqCst) {
            return Err(Error::new(ErrorKind::NotLeader, "for the test"));
        }
        inner.claim_table(service, claim).await
    }
}

/// Starts the next process of a node, whose allocator has no leader.
async fn start_without_leader(node: &Node) -> (LockService, NoLeader) {
    let no_leader = NoLeader(Arc::new(AtomicBool::new(true)));
    let hooks = no_leader.clone();
    let around = |inner| Arc::new(HookedAllocator { inner, hooks });
    (node.start_with(around).await.0, no_leader)
}

#[tokio::test(start_paused = true)]
async fn a_claim_waits_for_a_leader() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holder = hold(&running.0, "t", &["a"]).await;
    node.stop(running).await;
    let (service, no_leader) = start_without_leader(&node).await;
    let session = holder.come_back(&service, from);
    let claim = async { session.claim(holder.claim.clone()).await };
    let elected = async {
        tokio::time::sleep(SECOND).await;
        no_leader.0.store(false, SeqCst);
    };
    tokio::join!(claim, elected).0.expect("it held this");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_cannot_be_decided_in_time_is_not_refused_and_is_made_again() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holder = hold(&running.0, "t", &["a"]).await;
    node.stop(running).await;
    let (service, no_leader) = start_without_leader(&node).await;
    let session = holder.come_back(&service, from);
    for _ in 0..2 {
        let began = tokio::time::Instant::now();
        let why = session.claim(holder.claim.clone()).await.expect_err("there is no leader");
        assert_eq!(why.kind(), ErrorKind::Unavailable, "{why}");
        // A client that hears nothing for three seconds claims again.
        assert!(began.elapsed() <= 2 * SECOND, "{:?}", began.elapsed());
    }
    no_leader.0.store(false, SeqCst);
    holder.claim(&service, from).await;
    assert_eq!(service.locks(None).len(), 1);
    let txn = service.begin(TxnOptions::default()).expect("begin");
    txn.lock(in_table("t", "free")).await.expect("all have claimed");
    assert_eq!(at_once(&service, "t", "a").await, Some(ErrorKind::Conflict));
}

#[tokio::test(start_paused = true)]
async fn what_was_held_stays_closed_if_its_claim_failed_for_another_reason() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let mut holder = hold(&running.0, "t", &["a"]).await;
    node.stop(running).await;
    let (service, _allocator) = node.start().await;
    holder.claim.next = Sequence::default();
    let session = holder.come_back(&service, from);
    let why = session.claim(holder.claim.clone()).await.expect_err("operations begin at 1");
    assert_eq!(why.kind(), ErrorKind::InvalidArgument);
    session.claims_done(TxnNumber::new(1)).expect("a promise");
    tokio::time::sleep(SECOND).await;
    assert_eq!(at_once(&service, "t", "a").await, Some(ErrorKind::Reassigning), "P5");
}
