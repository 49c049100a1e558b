//! Allocators of several nodes on one real store, their requests, and their acknowledgements.
//!
//! The nodes are in this process, so that their store is all that can fail; each calls, all the
//! time, for binds, tokens, commits and tombstones, as a service does. The [`Ledger`] holds what
//! was acknowledged and fails the test at the first acknowledgement that contradicts an earlier
//! one.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, Bind, CommitWindow, ElectedAllocator, LockTableAllocator,
    PresentedBind, Progress, Registration, Role, TokenBlock,
};
use lockservice_core::clock::SystemClock;
use lockservice_core::store::{BindStore, ClusterConstants, StoreState};
use lockservice_core::testing::LocalPeers;
use lockservice_core::{
    CommitAttempt, ErrorKind, NodeName, Nonce, Result, ServiceId, TableRef, TxnId, TxnNumber,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::within_limit;

/// The TTLs of these clusters, leadership and lease.
pub const TTL: Duration = Duration::from_secs(2);
/// No call may take longer: two leadership TTLs until a leader is found, and what the store takes
/// on top.
const CALL_MAX: Duration = Duration::from_secs(20);
/// The number of tables that the nodes share.
const TABLES: usize = 40;

/// Settings with [`TTL`].
pub fn settings() -> AllocatorSettings {
    let ttl_ms = TTL.as_millis() as u64;
    AllocatorSettings {
        constants: ClusterConstants { leadership_ttl_ms: ttl_ms, lease_ttl_ms: ttl_ms },
        ..AllocatorSettings::default()
    }
}

/// The acknowledgements so far.
#[derive(Debug, Default)]
pub struct Ledger {
    tables: HashMap<TableRef, History>,
    tombstones: Vec<TxnId>,
    /// By which origins a commit was admitted.
    pub admitted: HashSet<ServiceId>,
    /// The number of granted binds and reserved blocks of tokens: each is a write.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct History {
    /// The owner of each acknowledged version.
    owners: HashMap<u64, ServiceId>,
    newest: u64,
    blocks: Vec<TokenBlock>,
}

/// A ledger that tasks share.
pub type SharedLedger = Arc<std::sync::Mutex<Ledger>>;

impl Ledger {
    fn bound(&mut self, bound: &lockservice_core::allocator::BoundTable) {
        let history = self.tables.entry(bound.bind.table.clone()).or_default();
        let version = bound.bind.version.get();
        let owner = *history.owners.entry(version).or_insert(bound.bind.owner);
        assert_eq!(
            owner, bound.bind.owner,
            "{}: two owners at version {version}",
            bound.bind.table
        );
        if let Some(block) = bound.tokens {
            assert!(
                // Another node may have observed it first.
                version >= history.newest,
                "{}: version {version} was granted after {}",
                bound.bind.table,
                history.newest
            );
            history.tokens(block, &bound.bind.table);
            self.written.send_modify(|written| *written += 1);
        }
        history.newest = history.newest.max(version);
    }

    fn newest(&self, table: &TableRef) -> u64 {
        self.tables.get(table).map_or(0, |history| history.newest)
    }

    /// Counts what was written to the store and acknowledged.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    fn reserved(&mut self, table: &TableRef, block: TokenBlock) {
        self.tables.entry(table.clone()).or_default().tokens(block, table);
        self.written.send_modify(|written| *written += 1);
    }

    /// Compares what the store holds at the end with what was acknowledged.
    ///
    /// # Panics
    /// If something acknowledged is missing, or an earlier one stands in its place.
    pub fn check(&self, state: &StoreState) {
        for (table, history) in &self.tables {
            let record = state.tables.iter().find(|record| record.table == *table);
            let record = record.unwrap_or_else(|| panic!("{table}: an acknowledged bind is lost"));
            let stored = record.binds[0].version.get();
            assert!(
                stored >= history.newest,
                "{table}: version {stored} is stored, {} was acknowledged",
                history.newest
            );
            if let Some(owner) = history.owners.get(&stored) {
                assert_eq!(
                    *owner, record.binds[0].owner,
                    "{table}: another owner is stored than was acknowledged"
                );
            }
            for block in &history.blocks {
                assert!(
                    block.end <= record.tokens_reserved_to,
                    "{table}: tokens are given out, not reserved"
                );
            }
        }
    }
}

impl History {
    fn tokens(&mut self, block: TokenBlock, table: &TableRef) {
        let last = self.blocks.iter().map(|block| block.end).max();
        assert!(
            last.is_none_or(|last| block.next >= last),
            "{table}: tokens {block:?} after {last:?}"
        );
        self.blocks.push(block);
    }
}

/// One node: an allocator that leads or follows.
#[derive(Debug)]
pub struct Node {
    name: String,
    /// Its allocator.
    pub allocator: Arc<ElectedAllocator>,
    peers: LocalPeers,
}

impl Node {
    /// Joins the cluster of `store`.
    pub fn join(name: &str, store: Arc<dyn BindStore>, peers: &LocalPeers) -> Self {
        let allocator = ElectedAllocator::start(
            store,
            Arc::new(SystemClock),
            settings(),
            NodeName::new(name).expect("a name"),
            name,
            Arc::new(peers.clone()),
        )
        .expect("valid settings");
        peers.join(name, allocator.as_leader());
        Self { name: name.to_owned(), allocator, peers: peers.clone() }
    }

    /// True while it leads.
    pub fn leads(&self) -> bool {
        matches!(self.allocator.role(), Role::Leading(_))
    }
}

impl Drop for Node {
    /// Kills it.
    fn drop(&mut self) {
        self.peers.leave(&self.name);
    }
}

/// Makes all calls of a service to `allocator`, until `stop`; everything that is acknowledged goes
/// into `ledger`.
///
/// # Panics
/// At an acknowledgement that contradicts an earlier one, an error that is none of those of its
/// call, or a call that takes too long.
pub async fn work(
    name: String,
    allocator: Arc<ElectedAllocator>,
    ledger: SharedLedger,
    mut stop: watch::Receiver<bool>,
    seed: u64,
) {
    let random = SmallRng::seed_from_u64(seed);
    let mut worker = Worker { name, allocator, ledger, random };
    let mut last: Option<(ServiceId, Nonce)> = None;
    while !*stop.borrow() {
        let nonce = Nonce::new(worker.random.random());
        let request = Registration {
            node: NodeName::new(&worker.name).expect("a name"),
            nonce,
            address: worker.name.clone(),
            replaces: last,
        };
        let incarnation = match bounded("resume", worker.allocator.register(&request)).await {
            Ok(incarnation) => incarnation,
            Err(e) => {
                let fine = [
                    ErrorKind::Unavailable,
                    ErrorKind::NameInUse,
                    ErrorKind::NotLeader,
                    ErrorKind::UnknownOutcome,
                ];
                assert!(fine.contains(&e.kind()), "resume: {e:?}");
                pause(&mut stop, Duration::from_millis(50)).await;
                continue;
            }
        };
        last = Some((incarnation.service, nonce));
        worker.live(incarnation.service, nonce, &mut stop).await;
    }
}

/// A service that commits, reserves tokens and makes transactions unable to commit.
struct Worker {
    name: String,
    allocator: Arc<ElectedAllocator>,
    ledger: SharedLedger,
    random: SmallRng,
}

impl Worker {
    /// One incarnation's life.
    async fn live(&mut self, service: ServiceId, nonce: Nonce, stop: &mut watch::Receiver<bool>) {
        let (over, mut is_over) = watch::channel(false);
        let mut renewals = JoinSet::new();
        renewals.spawn(keep_alive(Arc::clone(&self.allocator), service, nonce, over));
        let mut counter = 0;
        while !*stop.borrow() && !*is_over.borrow_and_update() {
            counter += 1;
            // One of its own, so that each has something to commit, else one that all want.
            let table = if self.random.random_ratio(1, 4) {
                self.name.clone()
            } else {
                format!("t{}", self.random.random_range(0..TABLES))
            };
            let table = TableRef::new("g", table).expect("a name");
            let bound = match bounded("bind", self.allocator.bind(service, &table)).await {
                Ok(bound) => bound,
                Err(e) if e.kind() == ErrorKind::LeaseLost => break,
                Err(e) => {
                    let fine = [
                        ErrorKind::Unavailable,
                        ErrorKind::Reassigning,
                        ErrorKind::NotLeader,
                        ErrorKind::UnknownOutcome,
                    ];
                    assert!(fine.contains(&e.kind()), "bind: {e:?}");
                    pause(stop, Duration::from_millis(20)).await;
                    continue;
                }
            };
            self.ledger().bound(&bound);
            if bound.bind.owner == service && self.commit(&bound.bind, counter).await.is_err() {
                pause(stop, Duration::from_millis(20)).await;
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no panic holds it")
    }

    /// Commits a transaction on `bind`, and now and then requests tokens and tombstones meanwhile.
    async fn commit(&mut self, bind: &Bind, counter: u64) -> Result<()> {
        let service = bind.owner;
        let txn = TxnId::new(service, TxnNumber::new(counter), true);
        let commit = BeginCommit {
            txn,
            binds: vec![PresentedBind::from(bind)],
            attempt: CommitAttempt::new(counter),
            window: CommitWindow { least: Duration::from_millis(1), most: Duration::from_secs(1) },
        };
        let before = self.ledger().newest(&bind.table);
        if bounded("begin_commit", self.allocator.begin_commit(&commit)).await.is_ok() {
            self.ledger().admitted.insert(service);
            assert!(
                before <= bind.version.get(),
                "{}: a stale bind was validated: {before} had been granted",
                bind.table
            );
        }
        if self.random.random_ratio(1, 8)
            && let Ok(reserved) = bounded(
                "reserve_tokens",
                self.allocator.reserve_tokens(service, bind.id, bind.version),
            )
            .await
        {
            self.ledger().reserved(&bind.table, reserved.tokens);
        }
        if self.random.random_ratio(1, 16) {
            // A transaction that is to commit never.
            let dead = [TxnId::new(service, TxnNumber::new(counter + (1 << 40)), true)];
            let cannot_commit = bounded("cannot_commit", self.allocator.cannot_commit(&dead));
            if let Ok(response) = cannot_commit.await {
                // Until the data loss is resolved, everything before counts as committing (L4).
                self.ledger().tombstones.extend(response.tombstoned);
            }
        }
        if let Some(dead) = self.one_that_cannot_commit() {
            let commit = BeginCommit { txn: dead, binds: vec![], ..commit };
            let refused = bounded("begin_commit", self.allocator.begin_commit(&commit)).await;
            assert!(refused.is_err(), "a transaction that can never commit was admitted: {dead}");
        }
        let finished = self.allocator.finish_commit(txn, CommitAttempt::new(counter));
        bounded("finish_commit", finished).await.map(drop)
    }

    fn one_that_cannot_commit(&mut self) -> Option<TxnId> {
        let ledger = self.ledger.lock().expect("no panic holds it");
        let place = self.random.random_range(0..ledger.tombstones.len().max(1));
        ledger.tombstones.get(place).copied()
    }
}

/// Renews the lease of an incarnation until it is lost, and then says so.
async fn keep_alive(
    allocator: Arc<ElectedAllocator>,
    service: ServiceId,
    nonce: Nonce,
    over: watch::Sender<bool>,
) {
    loop {
        let renewal = allocator.keepalive(service, nonce, Progress::default());
        if let Err(e) = bounded("keepalive", renewal).await
            && e.kind() == ErrorKind::LeaseLost
        {
            over.send_replace(true);
            return;
        }
        tokio::time::sleep(TTL / 4).await;
    }
}

/// A call with a deadline: every caller gets a response.
async fn bounded<T>(what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    within_limit(CALL_MAX, what, call).await
}

async fn pause(stop: &mut watch::Receiver<bool>, pause: Duration) {
    // Over time or stopped, the caller checks again.
    drop(tokio::time::timeout(pause, stop.changed()).await);
}

/// Distinct owners in the ledger: to see that a test had several.
pub fn owners(ledger: &SharedLedger) -> usize {
    let ledger = ledger.lock().expect("no panic holds it");
    let owners: HashSet<ServiceId> =
        ledger.tables.values().flat_map(|history| history.owners.values().copied()).collect();
    owners.len()
}
