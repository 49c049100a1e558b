//! Tables that a service forgets: in time, and for an operator. Time is tokio's paused clock.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, BoundTable, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Released,
};
use lockservice_core::service::{
    Granted, LockService, LockSpec, ServiceParts, ServiceSettings, Txn, TxnOptions,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::table::{Commit, WaitPolicy};
use lockservice_core::testing::{AllocatorHooks, HookedAllocator, TokioClock};
use lockservice_core::{
    BindVersion, CommitAttempt, CommitTimestamp, Error, ErrorKind, Key, LockItem, NodeName, Nonce,
    Result, ServiceId, TableRef,
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
/// A table is forgotten this long after its last use at the latest: it is looked at every eighth of
/// the time.
const AT_LATEST: Duration = Duration::from_secs(3_600 + 2 * 450 + 1);

/// The fate of the next releases.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is carried out, and its response is lost.
    ResponseLost,
    /// It is lost itself.
    Lost,
}

/// A local allocator loses releases, and its responses to binds can be slow.
#[derive(Debug)]
struct Losses {
    fates: Mutex<Vec<Fate>>,
    /// The time that the response to a bind is on its way.
    bind_takes: Mutex<Duration>,
}

#[async_trait]
impl AllocatorHooks for Losses {
    async fn release_table(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        nonce: Nonce,
        table: &TableRef,
        version: BindVersion,
    ) -> Result<Released> {
        let fate = self.fates.lock().pop();
        let lost = || Err(Error::new(ErrorKind::Unavailable, "no answer"));
        match fate {
            None => inner.release_table(service, nonce, table, version).await,
            Some(Fate::ResponseLost) => {
                inner.release_table(service, nonce, table, version).await?;
                lost()
            }
            Some(Fate::Lost) => lost(),
        }
    }

    async fn bind(
        &self,
        inner: &dyn LockTableAllocator,
        service: ServiceId,
        table: &TableRef,
    ) -> Result<BoundTable> {
        let (bound, takes) = (inner.bind(service, table).await, *self.bind_takes.lock());
        sleep(takes).await;
        bound
    }
}

type Lossy = HookedAllocator<Losses>;

struct Stage {
    allocator: Arc<Lossy>,
    service: LockService,
}

impl Stage {
    /// A service that forgets tables after an hour.
    async fn new() -> Self {
        Self::with_idle(HOUR).await
    }

    async fn with_idle(idle: Duration) -> Self {
        let (store, clock) = (Arc::new(MemoryStore::new(1)), Arc::new(TokioClock::new()));
        let settings = AllocatorSettings::default();
        let inner = LocalAllocator::open(store, clock, settings, name("leader"))
            .await
            .expect("a fresh store");
        let hooks = Losses { fates: Mutex::default(), bind_takes: Mutex::default() };
        let allocator = Arc::new(Lossy { inner, hooks });
        let service = Self::start(&allocator, "a", idle).await;
        Self { allocator, service }
    }

    async fn start(allocator: &Arc<Lossy>, node: &str, idle: Duration) -> LockService {
        let of: Arc<dyn LockTableAllocator> = Arc::<Lossy>::clone(allocator);
        let parts = ServiceParts::new(of, Arc::new(TokioClock::new()), name(node));
        let settings = ServiceSettings {
            table_idle_ms: idle.as_millis() as u64,
            ..ServiceSettings::default()
        };
        LockService::start(ServiceParts { settings, ..parts }).await.expect("it starts")
    }

    fn begin(&self) -> Txn {
        self.service.begin(TxnOptions { validates: true, label: String::new() }).expect("it serves")
    }

    /// Locks and unlocks in a transaction of its own.
    async fn touch(&self, name: &str) -> Granted {
        let txn = self.begin();
        let granted = txn.lock(spec(name, "k")).await.expect("free");
        txn.end(None);
        granted
    }

    async fn knows(&self, name: &str) -> bool {
        self.allocator.latest(&table(name)).await.expect("responds").bind.is_some()
    }

    /// Waits until the table is forgotten.
    async fn forgotten(&self, name: &str) {
        while self.knows(name).await {
            sleep(SECOND).await;
        }
    }
}

fn name(node: &str) -> NodeName {
    NodeName::new(node).expect("a name")
}

fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

fn spec(name: &str, key: &str) -> LockSpec {
    LockSpec::new(table(name), vec![LockItem::Row(Key::new(key).expect("a key"))])
}

fn commit(granted: &Granted, most: Duration) -> BeginCommit {
    BeginCommit {
        txn: granted.txn,
        binds: vec![PresentedBind::from(&granted.grant.bind)],
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: Duration::from_millis(1), most },
    }
}

fn assert_another(old: &Granted, new: &Granted) {
    let (old, new) = (&old.grant, &new.grant);
    assert!(new.bind.id > old.bind.id && new.bind.version > old.bind.version, "{old:?} {new:?}");
    assert!(new.token > old.token, "tokens of one key only grow (F1): {old:?} {new:?}");
}

#[tokio::test(start_paused = true)]
async fn a_table_without_locks_is_forgotten_in_time_and_its_name_is_another_table() {
    let stage = Stage::new().await;
    let began = Instant::now();
    let old = stage.touch("t").await;
    stage.forgotten("t").await;
    assert!(began.elapsed() >= HOUR && began.elapsed() <= AT_LATEST, "after {:?}", began.elapsed());
    assert_eq!(stage.allocator.inner.entries().0, 0);
    assert_another(&old, &stage.touch("t").await);
}

#[tokio::test(start_paused = true)]
async fn a_table_is_kept_while_anything_is_locked_and_its_time_begins_with_its_last_use() {
    let stage = Stage::new().await;
    let txn = stage.begin();
    let held = txn.lock(spec("held", "k")).await.expect("free");
    for _ in 0..12 {
        stage.touch("used").await;
        sleep(HOUR / 4).await;
        assert!(stage.knows("held").await && stage.knows("used").await);
    }
    assert_eq!(
        txn.lock(spec("held", "k")).await.expect("still its own").grant.token,
        held.grant.token
    );
    let ended = Instant::now();
    txn.end(None);
    stage.forgotten("held").await;
    assert!(ended.elapsed() >= HOUR && ended.elapsed() <= AT_LATEST, "after {:?}", ended.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_table_whose_caller_left_before_it_was_bound_is_forgotten_in_time() {
    let stage = Stage::new().await;
    *stage.allocator.hooks.bind_takes.lock() = SECOND * 3;
    let txn = stage.begin();
    let left = tokio::time::timeout(SECOND, txn.lock(spec("t", "k"))).await;
    left.expect_err("the response is on its way");
    txn.end(None);
    assert!(stage.knows("t").await, "it was granted");
    *stage.allocator.hooks.bind_takes.lock() = Duration::ZERO;
    sleep(AT_LATEST + SECOND * 3).await;
    assert!(!stage.knows("t").await);
    assert_eq!(stage.allocator.inner.entries().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_comes_after_another_left_asks_for_the_table_again_and_has_its_turn() {
    let stage = Stage::new().await;
    *stage.allocator.hooks.bind_takes.lock() = HOUR;
    let (first, second) = (stage.begin(), stage.begin());
    let left = tokio::time::timeout(SECOND, first.lock(spec("t", "k"))).await;
    left.expect_err("the response is on its way");
    *stage.allocator.hooks.bind_takes.lock() = Duration::ZERO;
    let began = Instant::now();
    second.lock(spec("t", "k")).await.expect("free");
    assert!(began.elapsed() < SECOND, "it does not wait for the answer to the first");
}

#[tokio::test(start_paused = true)]
async fn no_table_is_forgotten_if_the_time_is_0() {
    let stage = Stage::with_idle(Duration::ZERO).await;
    stage.touch("t").await;
    sleep(HOUR * 4).await;
    assert!(stage.knows("t").await);
}

#[tokio::test(start_paused = true)]
async fn an_old_snapshot_learns_that_the_history_of_a_forgotten_table_is_unknown() {
    let stage = Stage::new().await;
    let old = stage.begin();
    let first = stage.begin();
    let before = LockSpec { snapshot_age: Some(Duration::ZERO), ..spec("t", "k") };
    first.lock(before.clone()).await.expect("free");
    first.end(Some(Commit::at(CommitTimestamp::new(77))));
    sleep(AT_LATEST).await;
    assert!(!stage.knows("t").await);
    let granted = old.lock(spec("t", "k")).await.expect("free");
    assert!(granted.grant.history_unknown, "the commit at 77 went with the table (C5)");
    old.end(None);
    sleep(SECOND).await;
    let young = stage.begin();
    assert!(!young.lock(before).await.expect("free").grant.history_unknown);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_comes_while_a_table_is_forgotten_is_made_in_the_new_one() {
    let stage = Stage::new().await;
    let old = stage.touch("t").await;
    *stage.allocator.hooks.fates.lock() = vec![Fate::Lost; 4];
    let name = table("t");
    let dropped = stage.service.drop_table(&name);
    let txn = stage.begin();
    let locked = async {
        sleep(Duration::from_millis(1)).await;
        let no_wait = LockSpec { wait: WaitPolicy::NoWait, ..spec("t", "k") };
        txn.lock(no_wait).await.expect("it waits for the allocator alone")
    };
    let (dropped, new) = tokio::join!(dropped, locked);
    dropped.expect("nothing was locked");
    assert_another(&old, &new);
}

#[tokio::test(start_paused = true)]
async fn a_table_is_not_served_while_it_is_not_known_whether_it_was_forgotten() {
    for fate in [Fate::ResponseLost, Fate::Lost] {
        let stage = Stage::new().await;
        let old = stage.touch("t").await;
        *stage.allocator.hooks.fates.lock() = vec![fate; 6];
        let name = table("t");
        let dropped = stage.service.drop_table(&name);
        let txn = stage.begin();
        let early = async {
            sleep(Duration::from_millis(1)).await;
            let short = LockSpec { timeout: Some(Duration::from_millis(100)), ..spec("t", "k") };
            txn.lock(short).await.expect_err("not known yet")
        };
        let (dropped, early) = tokio::join!(dropped, early);
        dropped.expect("settled");
        assert_eq!(early.kind(), ErrorKind::Timeout, "{fate:?}: {early:?}");
        assert_another(&old, &stage.touch("t").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_on_which_a_commit_is_in_flight_is_served_on_the_same_bind() {
    let stage = Stage::new().await;
    let txn = stage.begin();
    let granted = txn.lock(spec("t", "k")).await.expect("free");
    stage.allocator.begin_commit(&commit(&granted, SECOND * 4)).await.expect("current");
    txn.unlock(&table("t"), &[LockItem::Row(Key::new("k").expect("a key"))], None);
    let kept = stage.service.drop_table(&table("t")).await.expect_err("a commit is in flight (C2)");
    assert_eq!(kept.kind(), ErrorKind::TableInUse);
    let again = txn.lock(spec("t", "k")).await.expect("free");
    assert_eq!(again.grant.bind, granted.grant.bind);
    stage.allocator.finish_commit(granted.txn, CommitAttempt::new(1)).await.expect("admitted");
    txn.end(None);
    stage.service.drop_table(&table("t")).await.expect("nothing is in the way");
    let late =
        stage.allocator.begin_commit(&commit(&granted, SECOND)).await.expect_err("forgotten");
    assert!(matches!(late.kind(), ErrorKind::BindChanged | ErrorKind::CannotCommit), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_release_a_refusal_is_not_taken_for_the_last_word() {
    let stage = Stage::new().await;
    let txn = stage.begin();
    let granted = txn.lock(spec("t", "k")).await.expect("free");
    stage.allocator.begin_commit(&commit(&granted, SECOND * 3)).await.expect("current");
    txn.unlock(&table("t"), &[LockItem::Row(Key::new("k").expect("a key"))], None);
    *stage.allocator.hooks.fates.lock() = vec![Fate::Lost];
    let began = Instant::now();
    stage.service.drop_table(&table("t")).await.expect("it is asked again until it is done");
    assert!(
        began.elapsed() >= SECOND * 3,
        "the commit's time was waited for: {:?}",
        began.elapsed()
    );
    assert!(!stage.knows("t").await);
}

#[tokio::test(start_paused = true)]
async fn an_operator_learns_why_a_table_is_not_dropped() {
    let stage = Stage::new().await;
    let other = Stage::start(&stage.allocator, "b", HOUR).await;
    let never = stage.service.drop_table(&table("never")).await.expect_err("unknown");
    assert_eq!(never.kind(), ErrorKind::TableNotFound);
    let (holder, waiter) = (stage.begin(), stage.begin());
    holder.lock(spec("t", "k")).await.expect("free");
    holder.lock(spec("t", "l")).await.expect("free");
    let mut wait = Box::pin(waiter.lock(spec("t", "k")));
    tokio::select! {
        biased;
        _ = &mut wait => panic!("granted while held"),
        () = tokio::task::yield_now() => {}
    }
    let used = stage.service.drop_table(&table("t")).await.expect_err("in use");
    assert_eq!(used.kind(), ErrorKind::TableInUse);
    let text = used.to_string();
    assert!(text.contains("2 of its rows and ranges") && text.contains("1 calls wait"), "{text}");
    assert!(text.contains("lockservice locks t --group g"), "it says what to do: {text}");
    let elsewhere = other.drop_table(&table("t")).await.expect_err("another owns it");
    assert_eq!(elsewhere.kind(), ErrorKind::NotOwner);
    holder.end(None);
    wait.await.expect("its turn");
    waiter.end(None);
    stage.service.drop_table(&table("t")).await.expect("free");
    let again = stage.service.drop_table(&table("t")).await.expect_err("gone");
    assert_eq!(again.kind(), ErrorKind::TableNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_was_bound_for_a_call_that_had_gone_can_be_dropped() {
    let stage = Stage::new().await;
    let bound = stage.allocator.bind(stage.service.id(), &table("t")).await.expect("free");
    stage.service.drop_table(&table("t")).await.expect("no one uses it");
    assert!(!stage.knows("t").await);
    assert!(stage.touch("t").await.grant.bind.id > bound.bind.id);
}

#[tokio::test(start_paused = true)]
async fn an_earlier_bind_that_arrives_after_a_later_one_was_dropped_is_given_up_and_bound_again() {
    let stage = Stage::new().await;
    // Granted first, and observed last.
    let early = stage.allocator.bind(stage.service.id(), &table("early")).await.expect("free").bind;
    let late = stage.touch("late").await;
    assert!(late.grant.bind.version > early.version);
    stage.service.drop_table(&table("late")).await.expect("free");
    let granted = stage.touch("early").await;
    assert!(
        granted.grant.bind.version > late.grant.bind.version,
        "B5, with one number for all that was dropped"
    );
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_tables_are_forgotten_while_others_lock() {
    let stage = Stage::new().await;
    for n in 0..10_000 {
        stage.touch(&format!("t{n}")).await;
    }
    let txn = stage.begin();
    txn.lock(spec("kept", "k")).await.expect("free");
    while stage.allocator.inner.entries().0 > 1 {
        sleep(SECOND).await;
        stage.touch("kept-too").await;
        if stage.allocator.inner.entries().0 == 2 {
            break;
        }
    }
    assert!(stage.knows("kept").await && stage.knows("kept-too").await);
    txn.end(None);
}
