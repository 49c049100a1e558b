//! Claims after a restart of the service (P6).

use async_trait::async_trait;
use lockservice_core::allocator::{ClaimedTable, TableClaim};
use lockservice_core::service::{ClaimedLocks, OpenedBy, TxnClaim};
use lockservice_core::testing::{AllocatorHooks, HookedAllocator};
use lockservice_core::{BindVersion, Error, FencingToken, ServiceId, SessionId};

use super::*;

/// A node whose process is started again and again over one store.
pub(super) struct Node {
    store: Arc<dyn BindStore>,
    clock: TokioClock,
}

pub(super) type Running = (LockService, Arc<LocalAllocator>);

impl Node {
    pub(super) fn new() -> Self {
        Self { store: Arc::new(MemoryStore::new(1)), clock: TokioClock::new() }
    }

    /// Starts the next process. The one before, if it was not stopped, is as good as killed.
    pub(super) async fn start(&self) -> Running {
        self.start_with(|allocator| allocator).await
    }

    /// The same, with an allocator around its own.
    pub(super) async fn start_with<A: LockTableAllocator>(
        &self,
        around: impl FnOnce(Arc<LocalAllocator>) -> Arc<A>,
    ) -> Running {
        let (store, clock) = (Arc::clone(&self.store), Arc::new(self.clock));
        let opened = LocalAllocator::open(store, clock, AllocatorSettings::default(), node());
        let allocator = opened.await.expect("it opens");
        let around = around(Arc::clone(&allocator));
        let parts = ServiceParts::new(around, Arc::new(self.clock), node());
        (LockService::start(parts).await.expect("the service starts"), allocator)
    }

    /// Stops a process for a restart.
    pub(super) async fn stop(&self, (service, allocator): Running) {
        let stopped = service.stop_for_restart(SECOND).await;
        assert!(stopped.resigned, "{stopped:?}");
        let stopped = allocator.shutdown(stopped.confirmed, SECOND).await.expect("it resigns");
        assert!(stopped.resigned);
    }
}

/// A client, with what it holds by its own account.
pub(super) struct Holder {
    pub(super) id: SessionId,
    pub(super) claim: TxnClaim,
}

/// Opens a session, whose transaction 1 locks `items` in a table.
pub(super) async fn hold(service: &LockService, table: &str, items: &[&str]) -> Holder {
    let session = open(service);
    let table = TableRef::new("g", table).expect("names");
    let items: Vec<LockItem> = items.iter().map(|name| row(name)).collect();
    let spec = LockSpec::new(table.clone(), items.clone());
    let granted = locked(session.submit(op(1, 1), Operation::Lock(spec)).await);
    let (version, token) = (granted.grant.bind.version, granted.grant.token);
    let locks = vec![ClaimedLocks { table, version, token, mode: LockMode::Exclusive, items }];
    let (number, next) = (TxnNumber::new(1), Sequence::new(2));
    let claim = TxnClaim { number, id: Some(granted.txn), label: String::new(), next, locks };
    Holder { id: session.id(), claim }
}

impl Holder {
    /// Comes back to a service. It was at the incarnation `from`.
    pub(super) fn come_back(&self, service: &LockService, from: u64) -> Session {
        let earlier = (self.id, ServiceId::new(from));
        let opened_by = OpenedBy::default();
        service.reclaim_session(earlier, None, None, "test", opened_by).expect("it begins again")
    }

    /// Comes back, and claims everything.
    pub(super) async fn claim(&self, service: &LockService, from: u64) -> Session {
        let session = self.come_back(service, from);
        session.claim(self.claim.clone()).await.expect("it held this");
        session.claims_done(TxnNumber::new(1)).expect("a promise");
        session
    }

    async fn refused(&self, service: &LockService, from: u64) -> String {
        let session = self.come_back(service, from);
        let refused = session.claim(self.claim.clone()).await.expect_err("it is not to have it");
        assert_eq!(refused.kind(), ErrorKind::ClaimRefused);
        refused.to_string()
    }
}

pub(super) fn in_table(name: &str, key: &str) -> LockSpec {
    LockSpec::new(TableRef::new("g", name).expect("names"), vec![row(key)])
}

/// The kind of failure of a call that may not wait; `None` if it is granted.
pub(super) async fn at_once(service: &LockService, table: &str, key: &str) -> Option<ErrorKind> {
    let txn = service.begin(TxnOptions::default()).expect("begin");
    let spec = LockSpec { wait: WaitPolicy::NoWait, ..in_table(table, key) };
    txn.lock(spec).await.err().map(|e| e.kind())
}

/// The lease of the default settings has run out for everybody.
pub(super) async fn the_lease_has_run_out() {
    let lease = AllocatorSettings::default().constants.lease_ttl();
    tokio::time::sleep(lockservice_core::clock::hi(lockservice_core::clock::hi(lease))).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_held_before_a_crash_is_held_after_it_and_nobody_else_got_it() {
    let node = Node::new();
    let (service, allocator) = node.start().await;
    let from = service.id().get();
    let holder = hold(&service, "t", &["a", "b"]).await;
    let token = holder.claim.locks[0].token;
    drop((service, allocator));

    let (service, _allocator) = node.start().await;
    assert_eq!(at_once(&service, "t", "a").await, Some(ErrorKind::Reassigning), "it waits (B3)");
    let session = holder.claim(&service, from).await;
    assert_eq!(at_once(&service, "t", "a").await, Some(ErrorKind::Reassigning));
    assert_eq!(at_once(&service, "t", "free").await, Some(ErrorKind::Reassigning));
    assert_eq!(at_once(&service, "other", "a").await, None, "a new table does not wait");
    let held: Vec<_> = service.locks(None).into_iter().map(|lock| lock.info).collect();
    assert_eq!(held.len(), 2);
    assert!(held.iter().all(|it| it.token == token && Some(it.txn) == holder.claim.id));

    let next = service.begin(TxnOptions::default()).expect("begin");
    let waits =
        tokio::spawn(async move { next.lock(in_table("t", "a")).await.map(|it| (it, next)) });
    the_lease_has_run_out().await;
    while at_once(&service, "t", "free").await.is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        session.renew().expect("its client lives");
    }
    assert_eq!(at_once(&service, "t", "a").await, Some(ErrorKind::Conflict), "it is held");
    assert!(!waits.is_finished());
    done(session.submit(op(1, 2), Operation::End { commit: None }).await);
    let (granted, _next) = waits.await.expect("no panic").expect("its turn");
    assert!(granted.grant.token > token, "tokens grow over the restart (F1)");
}

#[tokio::test(start_paused = true)]
async fn after_a_stop_for_a_restart_a_table_serves_others_once_its_holders_have_claimed() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holders = [
        hold(&running.0, "t", &["a"]).await,
        hold(&running.0, "t", &["b"]).await,
        hold(&running.0, "u", &["a"]).await,
    ];
    assert_eq!(at_once(&running.0, "free", "a").await, None);
    node.stop(running).await;

    let (service, _allocator) = node.start().await;
    assert_eq!(at_once(&service, "free", "a").await, None, "nothing was held in it");
    assert_eq!(at_once(&service, "t", "free").await, Some(ErrorKind::Reassigning));
    let first = holders[0].claim(&service, from).await;
    assert_eq!(at_once(&service, "t", "free").await, Some(ErrorKind::Reassigning), "one is left");
    let second = holders[1].claim(&service, from).await;
    let granted = service.begin(TxnOptions::default()).expect("begin");
    granted.lock(in_table("t", "free")).await.expect("without a wait for the lease");
    for key in ["a", "b"] {
        assert_eq!(at_once(&service, "t", key).await, Some(ErrorKind::Conflict));
    }
    assert_eq!(at_once(&service, "u", "free").await, Some(ErrorKind::Reassigning));
    service.gave_up(holders[2].id);
    granted.lock(in_table("u", "a")).await.expect("its holder has gone");
    first.renew().and(second.renew()).expect("they live");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_comes_back_without_its_locks_is_waited_for_no_longer() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let holder = hold(&running.0, "t", &["a"]).await;
    node.stop(running).await;
    let (service, _allocator) = node.start().await;
    let session = holder.come_back(&service, from);
    session.claims_done(TxnNumber::new(1)).expect("a promise");
    let txn = service.begin(TxnOptions::default()).expect("begin");
    txn.lock(in_table("t", "a")).await.expect("its work had ended meanwhile");
    let late = session.claim(holder.claim.clone()).await.expect_err("it said that it had all");
    assert_eq!(late.kind(), ErrorKind::ClaimRefused);
    // T3: the number of the transaction counts as used.
    done(session.submit(op(1, 2), Operation::End { commit: None }).await);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_held_is_refused_and_the_reason_is_told() {
    let node = Node::new();
    let (service, allocator) = node.start().await;
    let from = service.id().get();
    let holder = hold(&service, "t", &["a"]).await;
    drop((service, allocator));
    let (service, _allocator) = node.start().await;
    let with = |change: &dyn Fn(&mut TxnClaim)| {
        let mut claim = holder.claim.clone();
        change(&mut claim);
        Holder { id: SessionId::new(77), claim }
    };
    let unknown = with(&|it| it.locks[0].table = TableRef::new("g", "never").expect("names"));
    assert!(unknown.refused(&service, from).await.contains("not known here"));
    let bind = with(&|it| it.locks[0].version = BindVersion::new(1 << 50));
    assert!(
        Holder { id: SessionId::new(78), ..bind }.refused(&service, from).await.contains("bind")
    );
    let token = with(&|it| it.locks[0].token = FencingToken::new((1 << 53) - 1));
    let token = Holder { id: SessionId::new(79), ..token };
    assert!(token.refused(&service, from).await.contains("under that token"));

    let (session, validates) = (holder.come_back(&service, from), holder.claim.id.expect("set"));
    let validates = TxnId::new(validates.origin, TxnNumber::new(9), true);
    let claim = TxnClaim { id: Some(validates), ..holder.claim.clone() };
    let refused = session.claim(claim).await.expect_err("it validates");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    session.claim(holder.claim.clone()).await.expect("what it held");
    session.claim(holder.claim.clone()).await.expect("a repetition succeeds");
    session.claims_done(TxnNumber::new(1)).expect("a promise");
    session.claim(holder.claim.clone()).await.expect("the response to that may have been lost");
    let thief = Holder { id: SessionId::new(80), claim: holder.claim.clone() };
    assert!(thief.refused(&service, from).await.contains("another session"));
    assert_eq!(service.locks(None).len(), 1, "a refused claim took nothing");
    let not_earlier = service.reclaim_session(
        (SessionId::new(81), service.id()),
        None,
        None,
        "test",
        OpenedBy::default(),
    );
    assert_eq!(not_earlier.expect_err("the present one").kind(), ErrorKind::SessionLost);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_comes_after_the_wait_has_lost_its_locks() {
    let node = Node::new();
    let (service, allocator) = node.start().await;
    let from = service.id().get();
    let (late, other) = (hold(&service, "t", &["a"]).await, hold(&service, "u", &["a"]).await);
    drop((service, allocator));
    let (service, _allocator) = node.start().await;
    the_lease_has_run_out().await;
    let txn = service.begin(TxnOptions::default()).expect("begin");
    txn.lock(in_table("t", "a")).await.expect("the wait is over");
    assert!(late.refused(&service, from).await.contains("serves others"));
    assert!(other.refused(&service, from).await.contains("does not wait"));
}

#[tokio::test(start_paused = true)]
async fn of_two_claims_that_exclude_each_other_the_larger_token_stands() {
    let node = Node::new();
    let (service, allocator) = node.start().await;
    let from = service.id().get();
    let holder = hold(&service, "t", &["a"]).await;
    let mut wrong = hold(&service, "t", &["b"]).await;
    drop((service, allocator));
    // It claims what it never had, under its own token, which is the later one.
    wrong.claim.locks[0].items = vec![row("a")];
    for wrong_first in [true, false] {
        let (service, _allocator) = node.start().await;
        if wrong_first {
            wrong.claim(&service, from).await;
            assert!(holder.refused(&service, from).await.contains("not smaller"));
        } else {
            let session = holder.claim(&service, from).await;
            wrong.claim(&service, from).await;
            let lost = session.lost_txns();
            let [(number, why)] = lost.as_slice() else { panic!("one is lost: {lost:?}") };
            assert_eq!((number.get(), why.kind()), (1, ErrorKind::ClaimRefused));
            let next = session.submit(op(1, 2), Operation::Lock(in_table("other", "a"))).await;
            assert_eq!(next.expect_err("it is lost").kind(), ErrorKind::ClaimRefused);
        }
        let held: Vec<_> = service.locks(None).into_iter().map(|lock| lock.info.txn).collect();
        assert_eq!(held, [wrong.claim.id.expect("set")], "wrong first: {wrong_first}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_crash_in_the_middle_of_the_claims_loses_nobodys_locks() {
    let node = Node::new();
    let (service, allocator) = node.start().await;
    let first = service.id().get();
    let (mut early, late) = (hold(&service, "t", &["a"]).await, hold(&service, "t", &["b"]).await);
    drop((service, allocator));
    let (service, allocator) = node.start().await;
    let second = service.id().get();
    early.claim(&service, first).await;
    let version = service.locks(None).len();
    assert_eq!(version, 1);
    let bind = allocator.latest(&table()).await.expect("a response").bind.expect("bound").bind;
    drop((service, allocator));

    let (service, _allocator) = node.start().await;
    early.claim.locks[0].version = bind.version;
    let sessions = [early.claim(&service, second).await, late.claim(&service, first).await];
    assert_eq!(service.locks(None).len(), 2);
    assert_eq!(at_once(&service, "t", "free").await, Some(ErrorKind::Reassigning));
    for session in &sessions {
        session.renew().expect("it lives");
    }
}

/// Starts another node beside those of the allocator.
async fn another_node(allocator: Arc<dyn LockTableAllocator>) -> LockService {
    let name = NodeName::new("node-2").expect("a name");
    let parts = ServiceParts::new(allocator, Arc::new(TokioClock::new()), name);
    LockService::start(parts).await.expect("the service starts")
}

#[tokio::test(start_paused = true)]
async fn a_stop_for_good_among_the_claims_leaves_the_table_to_those_who_have_not_come_yet() {
    let node = Node::new();
    let (service, allocator) = node.start().await;
    let from = service.id().get();
    let (early, late) = (hold(&service, "t", &["a"]).await, hold(&service, "t", &["b"]).await);
    let other = hold(&service, "u", &["a"]).await;
    drop((service, allocator));
    let (service, allocator) = node.start().await;
    early.claim(&service, from).await.close().await;
    assert_eq!(at_once(&service, "free", "a").await, None);
    let stopped = service.shutdown(SECOND).await;
    assert!(stopped.confirmed && stopped.resigned, "{stopped:?}");
    let beside = another_node(allocator).await;
    assert_eq!(at_once(&beside, "t", "b").await, Some(ErrorKind::Reassigning), "late works on");
    assert_eq!(at_once(&beside, "u", "a").await, Some(ErrorKind::Reassigning), "nobody claimed");
    assert_eq!(at_once(&beside, "free", "a").await, None, "it was in no use");
    drop((late, other));
}

/// Binds a table for claims, and loses the response.
#[derive(Debug)]
struct LosesClaims;

#[async_trait]
impl AllocatorHooks for LosesClaims {
    async fn claim_table(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        claim: &TableClaim,
    ) -> Result<ClaimedTable> {
        inner.claim_table(service, claim).await?;
        Err(Error::new(ErrorKind::Unavailable, "the response is lost"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_resign_a_table_that_may_have_been_bound_for_claims() {
    for for_restart in [false, true] {
        let node = Node::new();
        let (service, allocator) = node.start().await;
        let from = service.id().get();
        let holder = hold(&service, "t", &["a"]).await;
        drop((service, allocator));
        let (between, inner) = node.start().await;
        let allocator = Arc::new(HookedAllocator { inner: Arc::clone(&inner), hooks: LosesClaims });
        let next = ServiceParts::new(allocator, Arc::new(node.clock), super::node());
        let replaces = Some((between.id(), between.nonce()));
        let service = LockService::start(ServiceParts { replaces, ..next }).await.expect("starts");
        let session = holder.come_back(&service, from);
        let claimed = session.claim(holder.claim.clone()).await;
        assert_eq!(claimed.expect_err("lost").kind(), ErrorKind::Unavailable);
        session.close().await;
        let stopped = match for_restart {
            true => service.stop_for_restart(SECOND).await,
            false => service.shutdown(SECOND).await,
        };
        assert!(!stopped.resigned, "for a restart: {for_restart}");
        let beside = another_node(inner).await;
        assert!(at_once(&beside, "t", "a").await.is_some(), "its holder works on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_after_all_had_claimed_waits_for_those_alone_who_hold_something_then() {
    let node = Node::new();
    let running = node.start().await;
    let from = running.0.id().get();
    let mut holder = hold(&running.0, "t", &["a"]).await;
    let gone = hold(&running.0, "t", &["b"]).await;
    node.stop(running).await;
    let running = node.start().await;
    let second = running.0.id().get();
    let ended = gone.claim(&running.0, from).await;
    holder.claim(&running.0, from).await;
    ended.close().await;
    let txn = running.0.begin(TxnOptions::default()).expect("begin");
    txn.lock(in_table("t", "free")).await.expect("opened");
    txn.end(None);
    let bind = running.1.latest(&table()).await.expect("a response").bind.expect("bound").bind;
    node.stop(running).await;

    let (service, _allocator) = node.start().await;
    holder.claim.locks[0].version = bind.version;
    assert!(gone.refused(&service, from).await.contains("given"), "that was over before");
    holder.claim(&service, second).await;
    let txn = service.begin(TxnOptions::default()).expect("begin");
    txn.lock(in_table("t", "free")).await.expect("all have claimed");
}

#[tokio::test(start_paused = true)]
async fn operations_go_on_with_the_sequence_that_the_claim_names() {
    let node = Node::new();
    let (service, allocator) = node.start().await;
    let from = service.id().get();
    let mut holder = hold(&service, "t", &["a"]).await;
    holder.claim.next = Sequence::new(5);
    drop((service, allocator));
    let (service, _allocator) = node.start().await;
    let session = holder.claim(&service, from).await;
    let unlock = |key| Operation::Unlock { table: table(), items: vec![row(key)], commit: None };
    let mut early = session.submit(op(1, 6), Operation::End { commit: None });
    assert_eq!(released((&mut early).await), 1, "an end overtakes");
    let again = session.submit(op(1, 4), unlock("a")).await;
    done(again);
    let after = session.submit(op(2, 1), Operation::Lock(in_table("fresh", "a"))).await;
    locked(after);
}

#[tokio::test(start_paused = true)]
async fn waits_end_with_restarting_and_nobody_is_told_to_stop() {
    let node = Node::new();
    let running = node.start().await;
    let holder = hold(&running.0, "t", &["a"]).await;
    let session = running.0.session(holder.id).expect("its session");
    let next = running.0.begin(TxnOptions::default()).expect("begin");
    let embedder = tokio::spawn(async move { next.lock(spec("a")).await });
    while running.0.waits(None).is_empty() {
        tokio::task::yield_now().await;
    }
    let stopped = running.0.stop_for_restart(SECOND).await;
    assert!(!stopped.resigned, "the work of an embedder cannot be claimed");
    let why = embedder.await.expect("no panic").expect_err("it waited");
    assert_eq!(why.kind(), ErrorKind::Restarting);
    assert_eq!(session.lost().await.kind(), ErrorKind::Restarting);
    let ends = running.0.metrics().counts().sessions_ended;
    assert!(ends.iter().all(|(end, count)| end.name() == "restarting" || *count == 0), "{ends:?}");
}
