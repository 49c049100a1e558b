//! The kit of the tests of the Redis store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use integration::within;
use lockservice_core::store::{
    Acquired, Batch, BindRecord, BindStore, Candidate, LeaderSeen, Leadership, Lineage, Op, Seen,
    StoreState, TableRecord,
};
use lockservice_core::testing::StoreFixture;
use lockservice_core::{
    BindVersion, Epoch, Error, FencingToken, NodeName, ServiceId, TableId, TableRef, WriteNumber,
};
use lockservice_redis::RedisStore;
use lockservice_redis::redis::{self, FromRedisValue};

pub(crate) const TTL: Duration = Duration::from_secs(5);

/// No call takes longer: the time of two calls, as an acquisition may, and some for a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(8);

/// A store that is opened under names that were never used, on one server.
pub(crate) struct Named {
    url: String,
}

impl Named {
    /// `url` without a name.
    pub(crate) fn new(url: &str) -> Self {
        static NAMES: AtomicU64 = AtomicU64::new(0);
        let separator = if url.contains('?') { '&' } else { '?' };
        Self { url: format!("{url}{separator}name=t{}", NAMES.fetch_add(1, Ordering::Relaxed)) }
    }
}

#[async_trait]
impl StoreFixture for Named {
    async fn open(&self) -> Arc<dyn BindStore> {
        Arc::new(open(&self.url).await)
    }
}

pub(crate) async fn open(url: &str) -> RedisStore {
    bounded(RedisStore::connect(url)).await.expect("the store opens")
}

/// Every call ends in time.
pub(crate) async fn bounded<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, call).await.expect("a call ends within its bound")
}

/// A leader, and what it has done.
pub(crate) struct Leader {
    pub(crate) store: RedisStore,
    pub(crate) candidate: Candidate,
    pub(crate) epoch: Epoch,
    pub(crate) lineage: Lineage,
    pub(crate) applied: u64,
}

impl Leader {
    /// Watches the store and leads it.
    pub(crate) async fn of(store: &RedisStore) -> Self {
        let mut candidate = candidate("leader");
        candidate.seen = Some(seen(store, &candidate).await);
        Self::acquire(store, candidate).await
    }

    pub(crate) async fn acquire(store: &RedisStore, candidate: Candidate) -> Self {
        match bounded(store.acquire_leadership(&candidate, TTL)).await.expect("a response") {
            Leadership::Acquired(Acquired { epoch, applied, lineage, .. }) => {
                let applied = applied.get();
                Self { store: store.clone(), candidate, epoch, lineage, applied }
            }
            held => panic!("it watched what stands still, and may not lead: {held:?}"),
        }
    }

    /// Writes the next table.
    pub(crate) async fn write(&mut self) -> Result<Lineage, Error> {
        let number = self.applied + 1;
        let write = WriteNumber::new(number);
        let ack = bounded(self.store.write(self.epoch, write, &batch(number))).await?;
        self.applied = number;
        Ok(ack.lineage)
    }

    pub(crate) async fn renew(&self) -> Result<Lineage, Error> {
        Ok(bounded(self.store.renew(self.epoch)).await?.lineage)
    }
}

/// What a candidate that may not lead yet sees.
pub(crate) async fn seen(store: &RedisStore, candidate: &Candidate) -> Seen {
    match bounded(store.acquire_leadership(candidate, TTL)).await.expect("a response") {
        Leadership::Held { seen, .. } => seen,
        led => panic!("it leads although it watched nothing: {led:?}"),
    }
}

pub(crate) fn leader_seen(seen: &Seen) -> LeaderSeen {
    seen.leader.expect("the store holds a record of a leader")
}

pub(crate) fn candidate(node: &str) -> Candidate {
    Candidate::new(NodeName::new(node).expect("a name"), "127.0.0.1:1")
}

/// The write of this number: one table, named after it.
pub(crate) fn batch(number: u64) -> Batch {
    vec![Op::PutTable(table(number))]
}

pub(crate) fn table(number: u64) -> TableRecord {
    TableRecord {
        table: TableRef::new("g", format!("t{number}")).expect("names"),
        id: TableId::new(number),
        partitions: 1,
        tokens_reserved_to: FencingToken::new(number << 32),
        binds: vec![BindRecord { owner: ServiceId::new(1), version: BindVersion::new(number) }],
        claimable_from: Default::default(),
    }
}

/// Exactly the tables of the writes up to `applied` are there.
pub(crate) fn assert_whole(state: &StoreState, applied: u64) {
    assert_eq!(state.applied.get(), applied);
    let mut values: Vec<u64> = state.tables.iter().map(|table| table.id.get()).collect();
    values.sort_unstable();
    assert_eq!(values, (1..=applied).collect::<Vec<_>>());
}

/// One command to the server at `url`.
pub(crate) async fn ask<T: FromRedisValue>(url: &str, command: &str) -> T {
    let mut words = command.split(' ');
    let mut request = redis::cmd(words.next().expect("a command"));
    for word in words {
        request.arg(word);
    }
    let client = redis::Client::open(url).expect("a URL");
    let mut connection =
        within("a connection", Box::pin(client.get_multiplexed_async_connection()))
            .await
            .expect("a connection");
    within(command, Box::pin(request.query_async(&mut connection))).await.expect(command)
}
