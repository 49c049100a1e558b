//! The client against a real server, over connections that break.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::support::{Proxy, Served, row, spec, table};
use futures::FutureExt as _;
use lockservice::client::{AdminClient, Client, Session};
use lockservice::server::ServerSettings;
use lockservice_core::allocator::{BeginCommit, CommitWindow, PresentedBind};
use lockservice_core::clock::{Clock, SystemClock, Time};
use lockservice_core::service::{LockSpec, TxnOptions};
use lockservice_core::table::WaitPolicy;
use lockservice_core::{CommitAttempt, Epoch, ErrorKind, LockItem, LockMode, TableRef};

async fn server() -> Served {
    Served::start(ServerSettings::default()).await
}

async fn client(address: &str) -> Client {
    Client::builder().name("tester").connect(address).await.expect("the server answers")
}

async fn session(address: &str) -> Session {
    client(address).await.session(None).await.expect("a session")
}

/// Asks until there are `n` waits; the question itself is the only event there is.
async fn waits(admin: &AdminClient, n: usize) {
    while admin.waits(None).await.expect("the server answers").len() != n {
        tokio::task::yield_now().await;
    }
}

async fn locks(admin: &AdminClient, n: usize) {
    while admin.locks(None).await.expect("the server answers").len() != n {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_address_that_is_frozen_or_not_ready_does_not_keep_a_client_from_the_next() {
    let served = server().await;
    // The kernel accepts, and no process responds: as with a process that is stopped.
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let frozen = (frozen.local_addr().expect("bound").to_string(), frozen);
    // Bound and closed again: no listener is there.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound")
        .to_string();
    let (starting, _server) = starting().await;
    let addresses =
        [&frozen.0, &gone, &starting, &frozen.0, &served.address].map(String::as_str).join(",");
    // Only the head start of each address bounds how long a frozen one is waited for.
    let found = Client::builder().connect_timeout(Duration::from_secs(600)).connect(&addresses);
    let found = within(found).await.expect("one serves");
    found.admin().locks(None).await.expect("it serves");
    let held =
        found.session(None).await.expect("a session").lock(spec("alice")).await.expect("free");
    held.unlock();

    let second_best = client(&format!("{},{starting}", frozen.0)).await;
    let error = second_best.admin().locks(None).await.expect_err("it cannot serve yet");
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("starting"),
        "{error}"
    );
    let error = Client::builder()
        .connect_timeout(Duration::from_millis(500))
        .connect(&format!("{},{gone}", frozen.0))
        .await
        .expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// A server whose service does not stand yet.
async fn starting() -> (String, lockservice::server::Server) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let name = lockservice_core::NodeName::new("starting").expect("a name");
    let allocator = lockservice::open_allocator("memory:", name).await.expect("in memory");
    let server =
        lockservice::server::Server::start(listener, allocator, ServerSettings::default()).await;
    (address, server.expect("it listens"))
}

#[tokio::test]
async fn a_session_waits_for_a_server_that_is_starting_unless_it_may_not() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let name = lockservice_core::NodeName::new("starting").expect("a name");
    let allocator = lockservice::open_allocator("memory:", name.clone()).await.expect("in memory");
    let allocator: Arc<dyn lockservice_core::allocator::LockTableAllocator> = allocator;
    let settings = ServerSettings::default();
    let mut server = lockservice::server::Server::start(listener, Arc::clone(&allocator), settings)
        .await
        .expect("ok");
    let impatient = Client::builder()
        .start_timeout(Duration::ZERO)
        .connect(&address)
        .await
        .expect("it answers");
    let error = impatient.session(None).await.expect_err("it may not wait");
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("starting"),
        "{error}"
    );
    let patient = client(&address).await;
    let opened = patient.session(None);
    let mut opened = std::pin::pin!(opened);
    tokio::select! {
        outcome = &mut opened => panic!("no node is there yet: {outcome:?}"),
        // Longer than one round.
        () = tokio::time::sleep(Duration::from_millis(250)) => {}
    }
    let parts =
        lockservice_core::service::ServiceParts::new(allocator, Arc::new(SystemClock), name);
    server
        .host(lockservice::server::ServiceHost::start(parts).await.expect("it has a lease"))
        .await;
    let session = opened.await.expect("it has started");
    session.lock(spec("alice")).await.expect("free").release().await.expect("acknowledged");
}

#[tokio::test]
async fn two_sessions_never_hold_one_row_and_the_later_token_is_larger() {
    let served = server().await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let held = a.lock(spec("alice")).await.expect("free");
    let mut waiting = Box::pin(b.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    let admin = client(&served.address).await.admin();
    waits(&admin, 1).await;
    let wait = &admin.waits(Some(&table())).await.expect("the server answers")[0];
    assert_eq!((wait.info.item.clone(), wait.waiter_client.as_str()), (row("alice"), "tester"));
    let token = held.token();
    let nowait = LockSpec { wait: WaitPolicy::NoWait, ..spec("alice") };
    assert_eq!(b.lock(nowait).await.expect_err("held").kind(), ErrorKind::Conflict);
    let short = LockSpec { timeout: Some(Duration::from_millis(20)), ..spec("alice") };
    assert_eq!(b.lock(short).await.expect_err("held").kind(), ErrorKind::Timeout);
    // Not waited for.
    held.unlock();
    let next = waiting.await.expect("handed on");
    assert!(next.token() > token && next.grant().waited.is_some());
    assert_eq!(next.bind().table, table());
}

#[tokio::test]
async fn a_deadlock_is_reported_with_its_whole_cycle() {
    let served = server().await;
    let session = session(&served.address).await;
    let (a, b) = (session.txn(TxnOptions::default()), session.txn(TxnOptions::default()));
    a.lock(spec("1")).await.expect("free");
    b.lock(spec("2")).await.expect("free");
    let both = [a.lock(spec("2")).boxed(), b.lock(spec("1")).boxed()];
    let (first, _, others) = futures::future::select_all(both).await;
    let error = first.expect_err("somebody is told");
    assert_eq!(error.kind(), ErrorKind::Deadlock);
    let cycle = error.deadlock().expect("the cycle");
    assert_eq!(cycle.len(), 2);
    assert_eq!((cycle[0].holder, cycle[1].holder), (cycle[1].waiter, cycle[0].waiter));
    drop(others);
}

#[tokio::test]
async fn a_broken_connection_resumes_the_session_and_keeps_its_locks() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let session = session(&proxy.address).await;
    let held = session.lock(spec("alice")).await.expect("free");
    for n in 0..3 {
        proxy.cut();
        let other = session.lock(spec(&format!("row {n}"))).await.expect("on a new connection");
        other.unlock().await.expect("acknowledged");
    }
    assert!(session.lost_now().is_none());
    let admin = client(&served.address).await.admin();
    let locks = admin.locks(None).await.expect("the server answers");
    assert_eq!(locks.len(), 1);
    assert_eq!(locks[0].info.token, held.token());
}

#[tokio::test]
async fn a_response_lost_after_the_grant_is_replayed_and_nothing_is_locked_twice() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let session = session(&proxy.address).await;
    let admin = client(&served.address).await.admin();
    proxy.mute(true);
    let call = tokio::spawn({
        let session = session.clone();
        async move { session.lock(spec("alice")).await }
    });
    locks(&admin, 1).await;
    let token = admin.locks(None).await.expect("the server answers")[0].info.token;
    proxy.mute(false);
    proxy.cut();
    let held = call.await.expect("no panic").expect("granted once");
    assert_eq!(held.token(), token);
    assert_eq!(admin.locks(None).await.expect("the server answers").len(), 1);
    held.unlock().await.expect("acknowledged");
    locks(&admin, 0).await;
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_whether_it_waited_or_was_granted() {
    let served = server().await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let admin = client(&served.address).await.admin();
    let held = a.lock(spec("alice")).await.expect("free");
    let txn = b.txn(TxnOptions::default());
    txn.lock(spec("bob")).await.expect("free");
    let mut waiting = Box::pin(txn.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    waits(&admin, 1).await;
    drop(waiting);
    waits(&admin, 0).await;
    // Granted, but dropped before the response is looked at.
    let mut unseen = Box::pin(txn.lock(spec("carol")));
    assert!(unseen.as_mut().now_or_never().is_none());
    locks(&admin, 3).await;
    drop(unseen);
    locks(&admin, 2).await;
    // The earlier locks of the transaction stay, and it goes on.
    txn.lock(spec("dora")).await.expect("free");
    drop((held, txn));
    locks(&admin, 0).await;
}

#[tokio::test]
async fn chosen_keys_can_be_unlocked_and_a_dropped_session_leaves_nothing() {
    let served = server().await;
    let session = session(&served.address).await;
    let admin = client(&served.address).await.admin();
    let txn = session.txn(TxnOptions { label: "audit".to_owned(), ..Default::default() });
    let shared =
        LockSpec { mode: LockMode::Shared, ..LockSpec::new(table(), vec![row("a"), row("b")]) };
    txn.lock(shared).await.expect("free");
    txn.unlock(&table(), &[row("a")], None).await.expect("acknowledged");
    let left = admin.locks(Some(&table())).await.expect("the server answers");
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].info.item.clone(), left[0].label.as_str()), (row("b"), "audit"));
    assert_eq!(admin.binds().await.expect("the server answers")[0].bind.table, table());
    drop((txn, session));
    locks(&admin, 0).await;
}

#[tokio::test]
async fn a_commit_is_admitted_for_a_time_that_counts_from_the_request() {
    let served = server().await;
    let client = client(&served.address).await;
    let session = client.session(None).await.expect("a session");
    let txn = session.txn(TxnOptions { validates: true, ..Default::default() });
    let grant = txn.lock(spec("alice")).await.expect("free");
    let allocator = client.allocator();
    let window =
        CommitWindow { least: Duration::from_millis(10), most: Duration::from_millis(800) };
    let mut request = BeginCommit {
        txn: txn.id().expect("it locked"),
        binds: vec![PresentedBind::from(&grant.bind)],
        attempt: CommitAttempt::new(1),
        window,
    };
    let before = SystemClock.now();
    let admission = allocator.begin_commit(&request).await.expect("nothing changed");
    assert!(admission.commit_before <= window.most);
    assert!(admission.until >= before && admission.until < SystemClock.now() + window.most);
    allocator.finish_commit(request.txn, request.attempt).await.expect("it ended");
    let silent = session.txn(TxnOptions::default());
    silent.lock(spec("bob")).await.expect("free");
    request.txn = silent.id().expect("it locked");
    assert_eq!(
        allocator.begin_commit(&request).await.expect_err("T1").kind(),
        ErrorKind::CannotCommit
    );
    assert!(allocator.latest(&table()).await.expect("the server answers").is_some());
    let unknown = TableRef::new("default", "unknown").expect("names");
    assert!(allocator.latest(&unknown).await.expect("the server answers").is_none());
}

/// The system's clock, some seconds ahead.
#[derive(Debug, Default)]
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now(&self) -> Time {
        SystemClock.now() + Duration::from_secs(self.0.load(SeqCst))
    }
}

/// L3: if a store is removed or lost, the epochs of its servers begin again, and clients have
/// observed later ones.
#[tokio::test]
async fn a_lower_epoch_is_refused_as_an_earlier_leaders_and_believed_when_that_cannot_be() {
    let later = Served::start_above(Epoch::new(77), ServerSettings::default()).await;
    let proxy = Proxy::start(&later.address).await;
    let clock = Arc::new(Ahead::default());
    let clock_of_client: Arc<dyn Clock> = Arc::<Ahead>::clone(&clock);
    let builder = Client::builder().clock(clock_of_client).call_timeout(Duration::from_secs(1));
    let allocator = builder.connect(&proxy.address).await.expect("the server answers").allocator();
    allocator.latest(&table()).await.expect("it leads");
    let forgot = server().await;
    proxy.lead_to(&forgot.address);
    let ask = async || loop {
        match allocator.latest(&table()).await {
            // Its connection was cut.
            Err(e) if e.kind() == ErrorKind::Unavailable => tokio::task::yield_now().await,
            response => return response.map(drop).map_err(|e| e.kind()),
        }
    };
    assert_eq!(ask().await, Err(ErrorKind::NotLeader));
    clock.0.store(40, SeqCst);
    assert_eq!(ask().await, Err(ErrorKind::NotLeader));
    clock.0.store(70, SeqCst);
    assert_eq!(ask().await, Ok(()));
    proxy.lead_to(&later.address);
    assert_eq!(ask().await, Ok(()), "a higher one is always news");
}

#[tokio::test]
async fn a_stopping_server_tells_holders_and_waiters_and_resigns_when_they_have_closed() {
    let mut served = server().await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let held = a.lock(spec("alice")).await.expect("free");
    let mut waiting = Box::pin(b.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    waits(&client(&served.address).await.admin(), 1).await;
    served.stop();
    assert_eq!(waiting.await.expect_err("stopped").kind(), ErrorKind::ShuttingDown);
    assert_eq!(a.lost().await.kind(), ErrorKind::ShuttingDown);
    // The deadline has not passed: the work may be put away in order.
    assert!(a.deadline() > SystemClock.now());
    held.unlock();
    a.close().await.expect("the server waits for it");
    b.close().await.expect("the server waits for it");
    assert!(served.stopped().await.resigned);
}

#[tokio::test]
async fn the_deadline_of_a_client_without_responses_is_before_the_end_of_its_session() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let ttl = Duration::from_secs(1);
    let session = client(&proxy.address).await.session(Some(ttl)).await.expect("a session");
    let held = session.lock(spec("alice")).await.expect("free");
    proxy.mute(true);
    let muted = SystemClock.now();
    let lost = session.lost().await;
    assert_eq!(lost.kind(), ErrorKind::SessionLost);
    let now = SystemClock.now();
    assert!(now >= session.deadline(), "not before the deadline");
    assert!(session.deadline() <= muted + ttl, "P2: lo(ttl) after the last renewal was sent");
    assert_eq!(session.lock(spec("bob")).await.expect_err("lost").kind(), ErrorKind::SessionLost);
    drop(held);
}

#[derive(Debug, Default)]
struct Settable(AtomicU64);

impl Clock for Settable {
    fn now(&self) -> Time {
        SystemClock.now() + Duration::from_millis(self.0.load(SeqCst))
    }
}

#[tokio::test]
async fn a_client_that_slept_past_its_deadline_has_lost_its_session_whatever_the_server_says() {
    let served = server().await;
    let clock = Arc::new(Settable::default());
    let builder = Client::builder().clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let session = builder
        .connect(&served.address)
        .await
        .expect("the server answers")
        .session(None)
        .await
        .expect("a session");
    session.lock(spec("alice")).await.expect("free").unlock();
    clock.0.store(60_000, SeqCst);
    // At once, by the clock, not when some timer fires.
    assert_eq!(
        session.lock(spec("alice")).await.expect_err("slept").kind(),
        ErrorKind::SessionLost
    );
    assert_eq!(session.lost().await.kind(), ErrorKind::SessionLost);
    session.close().await.expect("the server is told");
}

#[tokio::test]
async fn a_grant_that_arrives_after_the_deadline_is_released() {
    let served = server().await;
    let clock = Arc::new(Settable::default());
    let builder = Client::builder().clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let sleeper = builder
        .connect(&served.address)
        .await
        .expect("the server answers")
        .session(None)
        .await
        .expect("a session");
    let admin = client(&served.address).await.admin();
    let held = session(&served.address).await.lock(spec("alice")).await.expect("free");
    let txn = sleeper.txn(TxnOptions::default());
    let mut waiting = Box::pin(txn.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    waits(&admin, 1).await;
    clock.0.store(60_000, SeqCst);
    held.unlock();
    assert_eq!(waiting.await.expect_err("too late").kind(), ErrorKind::SessionLost);
    // Its transaction lives on, and yet the grant went back.
    locks(&admin, 0).await;
    drop(txn);
}

#[tokio::test]
async fn the_deadline_is_earlier_by_the_time_that_the_work_needs_to_stop() {
    let served = server().await;
    let stop = Duration::from_secs(2);
    let plain = session(&served.address).await;
    let careful = Client::builder()
        .stop_time(stop)
        .connect(&served.address)
        .await
        .expect("the server answers");
    let careful = careful.session(None).await.expect("a session");
    let difference = plain.deadline().since(careful.deadline());
    assert!(difference > stop / 2, "{difference:?}");
}

// Two threads: making ten million keys takes seconds, in which the session must be renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_in_one_request_is_refused_and_the_session_goes_on() {
    let served = server().await;
    let session = session(&served.address).await;
    let txn = session.txn(TxnOptions::default());
    let many = |n: u32| LockSpec::new(table(), (0..n).map(|n| row(&format!("{n}"))).collect());
    // More than the server takes into one request, and more than fits into one message.
    for n in [30_000, 1_000_000] {
        assert_eq!(
            txn.lock(many(n)).await.expect_err("too many").kind(),
            ErrorKind::InvalidArgument,
            "{n}"
        );
    }
    let ten_million = LockSpec::new(table(), vec![row("a"); 10_000_000]);
    assert_eq!(
        txn.lock(ten_million).await.expect_err("too many").kind(),
        ErrorKind::InvalidArgument
    );
    let nothing = LockSpec::new(table(), Vec::<LockItem>::new());
    assert_eq!(txn.lock(nothing).await.expect_err("nothing").kind(), ErrorKind::InvalidArgument);
    txn.lock(many(1_000)).await.expect("as much as is allowed");
    txn.end(None).await.expect("acknowledged");
}

#[tokio::test]
async fn without_a_server_the_client_says_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    assert_eq!(Client::connect(&address).await.expect_err("nobody").kind(), ErrorKind::Unavailable);
    for bad in [
        "",
        "::::",
        "ftp://x",
        "http://",
        "localhost",
        "localhost:0",
        "localhost:65536",
        "http://localhost:65536",
    ] {
        assert_eq!(
            Client::connect(bad).await.expect_err("no address").kind(),
            ErrorKind::InvalidArgument,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn a_ttl_too_short_to_be_renewed_is_refused() {
    let served = server().await;
    let error = client(&served.address)
        .await
        .session(Some(Duration::from_millis(5)))
        .await
        .expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_time_out_counts_from_the_call_also_while_no_further_call_is_allowed() {
    let served = Served::start(ServerSettings { ops_under_way_max: 1, ..Default::default() }).await;
    let (a, b) = (session(&served.address).await, session(&served.address).await);
    let held = a.lock(spec("alice")).await.expect("free");
    let mut waiting = Box::pin(b.lock(spec("alice")));
    assert!(waiting.as_mut().now_or_never().is_none());
    let short = LockSpec { timeout: Some(Duration::from_millis(50)), ..spec("bob") };
    let error = within(b.lock(short)).await.expect_err("the only place is taken");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let nowait = LockSpec { wait: WaitPolicy::NoWait, ..spec("bob") };
    let error = within(b.lock(nowait)).await.expect_err("the only place is taken");
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    held.unlock();
    waiting.await.expect("handed on").unlock();
    within(b.lock(spec("bob"))).await.expect("free, and there is a place again").unlock();
}

#[tokio::test]
async fn a_time_out_counts_from_the_call_also_while_the_server_is_silent() {
    let served = server().await;
    let proxy = Proxy::start(&served.address).await;
    let session = client(&proxy.address)
        .await
        .session(Some(Duration::from_secs(60)))
        .await
        .expect("a session");
    proxy.mute(true);
    let txn = session.txn(TxnOptions::default());
    let short = LockSpec { timeout: Some(Duration::from_millis(50)), ..spec("alice") };
    let start = SystemClock.now();
    assert_eq!(within(txn.lock(short)).await.expect_err("no answer").kind(), ErrorKind::Timeout);
    assert!(
        SystemClock.now().since(start) < Duration::from_secs(2),
        "long before anything is noticed of the server"
    );
    // It was granted, and is taken back; the transaction goes on.
    proxy.mute(false);
    proxy.cut();
    txn.lock(spec("bob")).await.expect("on a new connection");
    locks(&client(&served.address).await.admin(), 1).await;
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it ends")
}
