//! The kit of the clauses: actors that lock, calls that wait, and pictures of who holds
//! and who waits.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::fixture::{ServiceFixture, SessionFixture, TxnFixture};
use crate::allocator::{BeginCommit, CommitWindow, PresentedBind};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitAttempt, CommitTimestamp, FencingToken, TableRef, TxnId};
use crate::key::{Key, KeyRange, LockItem, LockMode};
use crate::service::{LockSpec, TxnOptions};
use crate::table::{Commit, Grant, WaitPolicy};

/// How long anything may take that must happen. With a paused clock it takes no real time; over a
/// network much less is needed.
const PATIENCE: Duration = Duration::from_secs(20);
/// A list must be requested again and again; with a paused clock a timer lets time pass, where a
/// bare loop would stop it.
const CHECK_PAUSE: Duration = Duration::from_millis(1);

/// The table of nearly every clause.
pub(super) fn table() -> TableRef {
    table_named("t")
}

pub(super) fn table_named(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

/// A range in mathematical notation, `[a,c)`, unbounded where no key is written, or else a row.
pub(super) fn item(text: &str) -> LockItem {
    let key = |text: &str| Key::new(text).expect("a key");
    let Some((start, end)) = text.split_once(',') else { return LockItem::Row(key(text)) };
    let bound = |text: &str, included: bool| match text {
        "" => Bound::Unbounded,
        text if included => Bound::Included(key(text)),
        text => Bound::Excluded(key(text)),
    };
    let start = bound(&start[1..], start.starts_with('['));
    let end = bound(&end[..end.len() - 1], end.ends_with(']'));
    LockItem::Range(KeyRange::new(start, end).expect("a range"))
}

/// Items that are separated by spaces.
pub(super) fn items(text: &str) -> Vec<LockItem> {
    text.split(' ').map(item).collect()
}

/// Exclusive locks on `items`.
pub(super) fn exclusive(text: &str) -> LockSpec {
    LockSpec::new(table(), items(text))
}

/// Shared locks on `items`.
pub(super) fn shared(text: &str) -> LockSpec {
    LockSpec { mode: LockMode::Shared, ..exclusive(text) }
}

/// Update locks on `items`.
pub(super) fn update(text: &str) -> LockSpec {
    LockSpec { mode: LockMode::Update, ..exclusive(text) }
}

/// Other requests, made of one.
pub(super) trait Variations {
    fn no_wait(self) -> LockSpec;
    fn skip_locked(self) -> LockSpec;
    fn within(self, timeout: Duration) -> LockSpec;
    fn of(self, table: &TableRef) -> LockSpec;
    /// With a snapshot that was begun this long ago.
    fn with_snapshot(self, age: Duration) -> LockSpec;
}

impl Variations for LockSpec {
    fn no_wait(self) -> LockSpec {
        LockSpec { wait: WaitPolicy::NoWait, ..self }
    }

    fn skip_locked(self) -> LockSpec {
        LockSpec { wait: WaitPolicy::SkipLocked, ..self }
    }

    fn within(self, timeout: Duration) -> LockSpec {
        LockSpec { timeout: Some(timeout), ..self }
    }

    fn of(self, table: &TableRef) -> LockSpec {
        LockSpec { table: table.clone(), ..self }
    }

    fn with_snapshot(self, age: Duration) -> LockSpec {
        LockSpec { snapshot_age: Some(age), ..self }
    }
}

/// A transaction with a name, in a session of its own unless it [shares](Actor::sibling) one.
pub(super) struct Actor {
    pub(super) name: String,
    pub(super) session: Arc<dyn SessionFixture>,
    txn: Arc<dyn TxnFixture>,
}

impl Actor {
    fn new(name: &str, session: Arc<dyn SessionFixture>, validates: bool) -> Self {
        let txn = Arc::from(session.begin(TxnOptions { validates, label: name.to_owned() }));
        Self { name: name.to_owned(), session, txn }
    }

    /// Another transaction of the same session.
    pub(super) fn sibling(&self, name: &str) -> Self {
        Self::new(name, Arc::clone(&self.session), false)
    }

    pub(super) fn id(&self) -> TxnId {
        self.txn.id().expect("it was granted a lock")
    }

    /// Locks what must be free.
    pub(super) async fn locks(&self, spec: LockSpec) -> Grant {
        let shown = format!("{spec:?}");
        match self.txn.lock(spec).await {
            Ok(grant) => grant,
            Err(e) => {
                panic!("{} was to get what it requests with {shown}, and not {e:?}", self.name)
            }
        }
    }

    /// Locks what must be free, now.
    pub(super) async fn gets(&self, spec: LockSpec) -> Grant {
        self.locks(spec.no_wait()).await
    }

    /// Locks in vain, without waiting.
    pub(super) async fn may_not(&self, spec: LockSpec) -> Error {
        self.fails(spec.no_wait(), ErrorKind::Conflict).await
    }

    /// Locks in vain.
    pub(super) async fn fails(&self, spec: LockSpec, kind: ErrorKind) -> Error {
        let shown = format!("{} with {spec:?}", self.name);
        refused(&shown, self.txn.lock(spec).await, kind)
    }

    /// Makes a call, which goes on beside the clause, whatever becomes of it.
    pub(super) fn requests(&self, spec: LockSpec) -> Call {
        let txn = Arc::clone(&self.txn);
        Call { who: self.name.clone(), task: tokio::spawn(async move { txn.lock(spec).await }) }
    }

    pub(super) async fn unlocks(&self, text: &str) {
        self.txn.unlock(&table(), &items(text), None).await.expect("a release is acknowledged");
    }

    /// Releases what it has committed.
    pub(super) async fn unlocks_at(&self, text: &str, ts: u64) {
        self.txn
            .unlock(&table(), &items(text), Some(Commit::at(CommitTimestamp::new(ts))))
            .await
            .expect("a release is acknowledged");
    }

    pub(super) async fn unlocks_of(&self, table: &TableRef, text: &str) {
        self.txn.unlock(table, &items(text), None).await.expect("a release is acknowledged");
    }

    pub(super) async fn downgrades(&self, text: &str, mode: LockMode) {
        let downgraded = self.txn.downgrade(&table(), &items(text), mode).await;
        downgraded.expect("a downgrade is acknowledged");
    }

    pub(super) async fn sets_a_savepoint(&self) -> usize {
        self.txn.savepoint().await.expect("the transaction goes on")
    }

    pub(super) async fn goes_back_to(&self, savepoint: usize) {
        self.txn.roll_back_to(savepoint).await.expect("a roll-back is acknowledged");
    }

    /// Ends it after a commit that changed the definition of the table.
    pub(super) async fn commits_a_definition_at(&self, ts: u64) {
        let timestamp = CommitTimestamp::new(ts);
        let commit = Commit { timestamp, definition_changed: true };
        self.txn.end(Some(commit)).await.expect("an end is acknowledged");
    }

    pub(super) async fn ends(&self) {
        self.txn.end(None).await.expect("an end is acknowledged");
    }

    pub(super) async fn commits_at(&self, ts: u64) {
        self.txn
            .end(Some(Commit::at(CommitTimestamp::new(ts))))
            .await
            .expect("an end is acknowledged");
    }

    pub(super) async fn closes(&self) {
        self.session.close().await.expect("the service is notified");
    }

    /// The commit request that presents its locks under `grants`.
    pub(super) fn commit(&self, grants: &[&Grant]) -> BeginCommit {
        BeginCommit {
            txn: self.id(),
            binds: grants.iter().map(|grant| PresentedBind::from(&grant.bind)).collect(),
            attempt: CommitAttempt::new(1),
            window: CommitWindow { least: Duration::from_millis(1), most: Duration::from_secs(3) },
        }
    }
}

/// Says so if `result` is not an error of this kind.
pub(super) fn refused<T: Debug>(who: &str, result: Result<T>, kind: ErrorKind) -> Error {
    match result {
        Err(e) if e.kind() == kind => e,
        other => panic!("{who}: {kind:?} was to be returned, and not {other:?}"),
    }
}

/// A call under way. Dropping it leaves the call to itself.
#[must_use]
pub(super) struct Call {
    who: String,
    task: JoinHandle<Result<Grant>>,
}

impl Call {
    /// Its outcome.
    pub(super) async fn outcome(self) -> Result<Grant> {
        match tokio::time::timeout(PATIENCE, self.task).await {
            Ok(outcome) => outcome.expect("a call does not panic"),
            Err(_) => panic!("{} is still waiting: its call was to end", self.who),
        }
    }

    pub(super) async fn granted(self) -> Grant {
        let who = self.who.clone();
        match self.outcome().await {
            Ok(grant) => grant,
            Err(e) => panic!("{who} was to be granted what it waits for, and not {e:?}"),
        }
    }

    pub(super) async fn refused(self, kind: ErrorKind) -> Error {
        let who = self.who.clone();
        refused(&who, self.outcome().await, kind)
    }

    pub(super) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Drops the caller, whose conflicting holders have not released.
    pub(super) async fn cancelled(self) {
        let who = self.who.clone();
        if let Some(outcome) = self.cancelled_or_over().await {
            panic!("{who} was to wait until it is cancelled, and got {outcome:?}");
        }
    }

    /// Drops the caller. Returns what became of the call if that was known to it first: then it
    /// counts.
    pub(super) async fn cancelled_or_over(self) -> Option<Result<Grant>> {
        self.task.abort();
        match self.task.await {
            Err(e) if e.is_cancelled() => None,
            outcome => Some(outcome.expect("a call does not panic")),
        }
    }
}

/// How the client of an actor's session is called.
pub(super) fn client_of(name: &str) -> String {
    format!("client of {name}")
}

/// A lock of a transaction: the item, its mode and its token.
pub(super) type Held = BTreeSet<(String, LockMode, FencingToken)>;

/// The service, and those who use it.
pub(super) struct Scene<'a> {
    pub(super) fixture: &'a dyn ServiceFixture,
}

impl<'a> Scene<'a> {
    pub(super) fn new(fixture: &'a dyn ServiceFixture) -> Self {
        Self { fixture }
    }

    /// A transaction in a session of its own.
    pub(super) async fn actor(&self, name: &str) -> Actor {
        self.with_ttl(name, None, false).await
    }

    /// One that says it will validate its commit (T1).
    pub(super) async fn validating(&self, name: &str) -> Actor {
        self.with_ttl(name, None, true).await
    }

    pub(super) async fn with_ttl(
        &self,
        name: &str,
        ttl: Option<Duration>,
        validates: bool,
    ) -> Actor {
        let session =
            self.fixture.session(&client_of(name), ttl).await.expect("the service serves");
        Actor::new(name, Arc::from(session), validates)
    }

    /// Makes a call of which it is known, once this is over, that it waits.
    pub(super) async fn waits(&self, actor: &Actor, spec: LockSpec) -> Call {
        let shown = format!("{} waits, as it must with {spec:?}", actor.name);
        let call = actor.requests(spec);
        eventually(
            &shown,
            async || (self.waiting().await, call.is_over()),
            |(waiting, over)| *over || waiting.contains(&actor.name),
        )
        .await;
        if call.is_over() {
            panic!("{shown}; but it is over: {:?}", call.outcome().await);
        }
        call
    }

    /// The waiters, in the order of the queue.
    pub(super) async fn waiting(&self) -> Vec<String> {
        let waits = self.fixture.waits(None).await.expect("a list");
        let mut names: Vec<String> = waits.into_iter().map(|wait| wait.waiter.label).collect();
        names.dedup();
        names
    }

    /// The holders and their locks, in words, and in the order of the words.
    pub(super) async fn holding(&self) -> Vec<String> {
        let locks = self.fixture.locks(None).await.expect("a list");
        let mut held: Vec<String> = locks
            .into_iter()
            .map(|lock| match lock.info.mode {
                LockMode::Update => format!("{} updates {}", lock.party.label, lock.info.item),
                LockMode::Exclusive => format!("{} holds {}", lock.party.label, lock.info.item),
                LockMode::Shared => format!("{} shares {}", lock.party.label, lock.info.item),
            })
            .collect();
        held.sort();
        held
    }

    /// The locks of one transaction.
    pub(super) async fn held_by(&self, actor: &Actor) -> Held {
        let locks = self.fixture.locks(None).await.expect("a list");
        let own = locks.into_iter().filter(|lock| lock.party.label == actor.name);
        own.map(|lock| (lock.info.item.to_string(), lock.info.mode, lock.info.token)).collect()
    }

    /// Waits until holders and waiters are as described.
    pub(super) async fn reaches(&self, holding: &[&str], waiting: &[&str]) {
        let what = format!("{holding:?}, while {waiting:?} wait");
        eventually(
            &what,
            async || (self.holding().await, self.waiting().await),
            |(holds, waits)| holds == holding && waits == waiting,
        )
        .await;
    }

    /// That everything is as described, now.
    pub(super) async fn is(&self, holding: &[&str], waiting: &[&str]) {
        assert_eq!((self.holding().await, self.waiting().await), (owned(holding), owned(waiting)));
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Looks until what is seen `is` right.
pub(super) async fn eventually<T: Debug>(
    what: &str,
    read: impl AsyncFn() -> T,
    is: impl Fn(&T) -> bool,
) -> T {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen = read().await;
        if is(&seen) {
            return seen;
        }
        assert!(tokio::time::Instant::now() < give_up, "expected: {what}; seen: {seen:?}");
        tokio::time::sleep(CHECK_PAUSE).await;
    }
}
