//! The cost of each store for an allocator: binds per second alone and with 64 callers, writes per
//! bind, validation while the store is paused, and the time of a fail-over. Prints one line per
//! store; compare only lines of one run.
//!
//! ```text
//! cargo bench -p integration --bench stores    (with --all-features RocksDB too)
//! ```

#![allow(clippy::disallowed_methods, reason = "a benchmark measures; it promises nothing")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use integration::allocators::{Node, TTL, settings};
use integration::containers::{Container, Postgres, PostgresOptions, Redis, RedisOptions};
use lockservice_core::allocator::{
    BeginCommit, CommitWindow, Incarnation, LocalAllocator, LockTableAllocator, PresentedBind,
    Registration,
};
use lockservice_core::clock::SystemClock;
use lockservice_core::store::{
    Acquired, Applied, Batch, BindStore, Candidate, DataLoss, Head, Leadership, Renewal,
    StoreState, WriteAck,
};
use lockservice_core::testing::LocalPeers;
use lockservice_core::{
    CommitAttempt, Epoch, NodeName, Nonce, Result, TableRef, TxnId, TxnNumber, WriteNumber,
};
use lockservice_pg::PgStore;
use lockservice_redis::RedisStore;
use tokio::task::JoinSet;

/// Binds of one caller, and of 64 callers each.
const ALONE: usize = 300;
const EACH: usize = 50;
const CALLERS: usize = 64;

/// Counts the writes.
#[derive(Debug)]
struct Counted(Arc<dyn BindStore>, AtomicU64);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BindStore for Counted {
    fn describe(&self) -> String {
        self.0.describe()
    }
    async fn load(&self) -> Result<StoreState> {
        self.0.load().await
    }
    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        self.0.acquire_leadership(candidate, ttl).await
    }
    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.0.renew(epoch).await
    }
    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.0.resign(epoch).await
    }
    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.write(epoch, number, batch).await
    }
    async fn applied(&self) -> Result<Applied> {
        self.0.applied().await
    }
    async fn head(&self) -> Result<Option<Head>> {
        self.0.head().await
    }
    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.0.wait_for_change(poll).await
    }
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Box::pin(async {
        println!(
            "store      alone: binds/s    p99   64 callers: binds/s    p99   writes per 100 binds"
        );
        let folder = tempfile::tempdir().expect("a folder");
        local("memory", "memory:").await;
        local("file", &format!("file:{}", folder.path().join("bench.db").display())).await;
        #[cfg(feature = "rocks")]
        local("rocks", &format!("rocks:{}", folder.path().join("rocks").display())).await;
        if let Some(postgres) = Postgres::start(PostgresOptions::default()).await {
            let url = postgres.url().to_owned();
            let open = async || {
                Arc::new(PgStore::connect(&url).await.expect("it has started"))
                    as Arc<dyn BindStore>
            };
            binds("postgres", open().await).await;
            Box::pin(shared("postgres", open, &postgres)).await;
        }
        if let Some(redis) = Redis::start(RedisOptions::durable()).await {
            let url = redis.url().to_owned();
            let open = async || {
                Arc::new(RedisStore::connect(&url).await.expect("it has started"))
                    as Arc<dyn BindStore>
            };
            binds("redis", open().await).await;
            Box::pin(shared("redis", open, &redis)).await;
        }
    }));
}

async fn local(name: &str, url: &str) {
    binds(name, lockservice::store::open(url).await.expect("a store")).await;
}

/// Leads at once: nobody can have been told of anything that a new store lost.
async fn candidate(store: &dyn BindStore) -> Candidate {
    let mut candidate = Candidate::new(NodeName::new("bench").expect("a name"), "127.0.0.1:1");
    for _ in 0..3 {
        match store.acquire_leadership(&candidate, TTL).await.expect("a response") {
            Leadership::Acquired(Acquired { continuous: true, .. }) => break,
            Leadership::Acquired(_) => candidate.data_loss = DataLoss::Resolved,
            Leadership::Held { seen, .. } => candidate.seen = Some(seen),
        }
    }
    Candidate { data_loss: DataLoss::Unknown, ..candidate }
}

async fn binds(name: &str, store: Arc<dyn BindStore>) {
    let candidate = candidate(&*store).await;
    let counted = Arc::new(Counted(store, AtomicU64::new(0)));
    let allocator = LocalAllocator::open(
        Arc::clone(&counted) as _,
        Arc::new(SystemClock),
        settings(),
        candidate,
    )
    .await
    .expect("leads");
    let service = begin(&*allocator, "bench").await.service;
    let alive = tokio::spawn({
        let allocator = Arc::clone(&allocator);
        async move {
            loop {
                allocator
                    .keepalive(service, Nonce::new(1), Default::default())
                    .await
                    .expect("live");
                tokio::time::sleep(TTL / 4).await;
            }
        }
    });
    let bind = async |table: String| {
        let table = TableRef::new("bench", table).expect("a name");
        let start = Instant::now();
        allocator.bind(service, &table).await.expect("free");
        start.elapsed()
    };
    let began = Instant::now();
    let mut alone = Vec::with_capacity(ALONE);
    for n in 0..ALONE {
        alone.push(bind(format!("a{n}")).await);
    }
    let alone_rate = ALONE as f64 / began.elapsed().as_secs_f64();
    let writes = counted.1.load(Ordering::Relaxed);
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let allocator = Arc::clone(&allocator);
        callers.spawn(async move {
            let mut times = Vec::with_capacity(EACH);
            for n in 0..EACH {
                let table = TableRef::new("bench", format!("c{caller}-{n}")).expect("a name");
                let start = Instant::now();
                allocator.bind(service, &table).await.expect("free");
                times.push(start.elapsed());
            }
            times
        });
    }
    let mut together: Vec<Duration> = callers.join_all().await.into_iter().flatten().collect();
    let together_rate = together.len() as f64 / began.elapsed().as_secs_f64();
    let writes =
        (counted.1.load(Ordering::Relaxed) - writes) as f64 * 100.0 / together.len() as f64;
    println!(
        "{name:<10} {alone_rate:>14.0} {:>8.2?} {together_rate:>20.0} {:>8.2?} {writes:>20.1}",
        p99(&mut alone),
        p99(&mut together)
    );
    alive.abort();
    drop(alive.await);
    allocator.resign(service, Nonce::new(1)).await.expect("live");
    allocator.shutdown(true, Duration::from_secs(5)).await.expect("stops");
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

async fn begin(allocator: &dyn LockTableAllocator, name: &str) -> Incarnation {
    let request = Registration {
        node: NodeName::new(name).expect("a name"),
        nonce: Nonce::new(1),
        address: "127.0.0.1:2".to_owned(),
        replaces: None,
    };
    allocator.register(&request).await.expect("a leader responds")
}

/// Validation while the store is paused, and the fail-over of a leader that died.
async fn shared(name: &str, open: impl AsyncFn() -> Arc<dyn BindStore>, server: &Container) {
    let peers = LocalPeers::default();
    let first = Node::join("first", open().await, &peers);
    first.allocator.elected().await.expect("leads");
    let second = Node::join("second", open().await, &peers);
    second.allocator.elected().await.expect("follows");
    let incarnation = begin(&*first.allocator, "first").await;
    let bound = first
        .allocator
        .bind(incarnation.service, &TableRef::new("bench", "one").expect("a name"))
        .await
        .expect("free");
    let mut counter = 0;
    let mut rate = async |time: Duration| {
        let began = Instant::now();
        let mut admitted = 0_u64;
        while began.elapsed() < time {
            counter += 1;
            let commit = BeginCommit {
                txn: TxnId::new(incarnation.service, TxnNumber::new(counter), true),
                binds: vec![PresentedBind::from(&bound.bind)],
                attempt: CommitAttempt::new(1),
                window: CommitWindow {
                    least: Duration::from_millis(1),
                    most: Duration::from_millis(100),
                },
            };
            first.allocator.begin_commit(&commit).await.expect("the leadership lasts");
            first.allocator.finish_commit(commit.txn, commit.attempt).await.expect("admitted");
            admitted += 1;
        }
        admitted as f64 / began.elapsed().as_secs_f64()
    };
    first
        .allocator
        .keepalive(incarnation.service, Nonce::new(1), Default::default())
        .await
        .expect("live");
    let before = rate(Duration::from_millis(500)).await;
    server.pause().await;
    let paused = rate(Duration::from_millis(500)).await;
    server.unpause().await;
    println!(
        "{name:<10} begin_commit + finish_commit: {before:.0}/s, while the store is paused \
            {paused:.0}/s ({:.2})",
        paused / before
    );
    first.allocator.keepalive(incarnation.service, Nonce::new(1), Default::default()).await.ok();
    let died = Instant::now();
    drop(first);
    second
        .allocator
        .roles()
        .wait_for(|role| matches!(role, lockservice_core::allocator::Role::Leading(_)))
        .await
        .expect("there");
    println!(
        "{name:<10} a leader that died is replaced after {:.2?} (TTL {TTL:?})",
        died.elapsed()
    );
}
