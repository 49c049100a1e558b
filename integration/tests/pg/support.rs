//! Stores on a server of their own, and a journal of what was acknowledged.

use std::time::Duration;

use integration::containers::{Postgres, PostgresOptions};
use integration::{within, within_limit};
use lockservice_core::store::{
    Acquired, BindRecord, BindStore, Candidate, Leadership, Op, StoreState, TableRecord,
};
use lockservice_core::{
    BindVersion, Epoch, ErrorKind, FencingToken, NodeName, Result, ServiceId, TableId, TableRef,
    WriteNumber,
};
use lockservice_pg::sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, Row, query, raw_sql,
};
use lockservice_pg::{PgConfig, PgStore};

pub(crate) const TTL: Duration = Duration::from_secs(5);

/// What a call may take beyond its own bound on a machine that does a lot else.
const SLACK: Duration = Duration::from_secs(4);

/// Starts a server with these settings; `None` where there is none to be had.
pub(crate) async fn server(settings: &[(&'static str, &str)]) -> Option<Postgres> {
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await
}

pub(crate) fn config(server: &Postgres) -> PgConfig {
    PgConfig::from_url(server.url()).expect("the server's URL")
}

pub(crate) async fn open(server: &Postgres) -> PgStore {
    PgStore::connect_with(config(server)).await.expect("a store")
}

/// A connection of somebody else.
pub(crate) async fn admin(server: &Postgres) -> PgConnection {
    within("a connection", PgConnection::connect(server.url())).await.expect("a connection")
}

/// Runs statements that return nothing.
pub(crate) async fn run(connection: &mut PgConnection, sql: &str) {
    connection
        .execute(raw_sql(AssertSqlSafe(sql)))
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The one number that a query answers.
pub(crate) async fn count(connection: &mut PgConnection, sql: &str) -> i64 {
    let row = connection
        .fetch_one(query(AssertSqlSafe(sql)))
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    row.get(0)
}

/// Waits until a query answers something else than 0.
pub(crate) async fn until(connection: &mut PgConnection, sql: &str) {
    within(sql, async {
        while count(connection, sql).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) fn candidate() -> Candidate {
    Candidate::new(NodeName::new("node-1").expect("a name"), "127.0.0.1:1")
}

/// Leads the store, whatever stood there before.
pub(crate) async fn lead(store: &dyn BindStore) -> Epoch {
    let mut candidate = candidate();
    loop {
        match store.acquire_leadership(&candidate, TTL).await.expect("a response") {
            Leadership::Acquired(Acquired { epoch, .. }) => return epoch,
            Leadership::Held { seen, .. } => candidate.seen = Some(seen),
        }
    }
}

pub(crate) fn table(number: u64) -> TableRecord {
    TableRecord {
        table: TableRef::new("group", format!("table-{number}")).expect("names"),
        id: TableId::new(number),
        partitions: 1,
        tokens_reserved_to: FencingToken::new(number << 32),
        binds: vec![BindRecord {
            owner: ServiceId::new(number),
            version: BindVersion::new(number),
        }],
        claimable_from: Default::default(),
    }
}

/// Everything in the store, in order.
pub(crate) async fn state(store: &dyn BindStore) -> StoreState {
    let mut state = store.load().await.expect("readable");
    state.tables.sort_by_key(|table| table.id);
    state.services.sort_by_key(|service| service.id);
    state.tombstones.sort();
    state
}

/// The call ends within the store's own bound.
pub(crate) async fn bounded<T>(what: &str, call: impl Future<Output = T>) -> T {
    let bound = PgConfig::from_url("postgres://x/y").expect("a URL").call_timeout();
    within_limit(bound + SLACK, what, call).await
}

/// A refusal of this kind, whose text holds all of these.
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    outcome: Result<T>,
    kind: ErrorKind,
    texts: &[&str],
) {
    let error = outcome.expect_err("it cannot have worked");
    let shown = format!("{error:?}");
    assert_eq!(error.kind(), kind, "{shown}");
    for text in texts {
        assert!(shown.contains(text), "{text} is missing: {shown}");
    }
}

/// Write `n` puts table `n`; so the store's content tells which writes are there.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) epoch: Epoch,
    /// The last write that is known to be there.
    pub(crate) applied: u64,
}

impl Journal {
    /// Leads the store and writes a little.
    pub(crate) async fn begin(store: &dyn BindStore) -> Self {
        let epoch = lead(store).await;
        let mut journal = Self { epoch, applied: 0 };
        for _ in 0..3 {
            journal.write(store).await.expect("a healthy server");
        }
        journal
    }

    /// The next write.
    pub(crate) async fn write(&mut self, store: &dyn BindStore) -> Result<()> {
        let number = self.applied + 1;
        let batch = vec![Op::PutTable(table(number))];
        let write = store.write(self.epoch, WriteNumber::new(number), &batch);
        let outcome = bounded("a write", write).await;
        if outcome.is_ok() {
            self.applied = number;
        }
        outcome.map(drop)
    }

    /// Goes on until a write is acknowledged; settles first what was left open (L2).
    pub(crate) async fn go_on(&mut self, store: &dyn BindStore) {
        within("the store to recover", async {
            loop {
                if let Ok(applied) = bounded("a reading of the number", store.applied()).await {
                    assert_eq!(applied.epoch, self.epoch, "nobody else leads");
                    assert!(
                        (self.applied..=self.applied + 1).contains(&applied.number.get()),
                        "{self:?}, but {applied:?}"
                    );
                    self.applied = applied.number.get();
                    if self.write(store).await.is_ok() {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Exactly what is known to be there is there, and the leadership can be renewed.
    pub(crate) async fn check(&self, store: &dyn BindStore) {
        let state = state(store).await;
        assert_eq!((state.epoch, state.applied.get()), (self.epoch, self.applied));
        let there: Vec<u64> = state.tables.iter().map(|table| table.id.get()).collect();
        assert_eq!(there, (1..=self.applied).collect::<Vec<_>>());
        store.renew(self.epoch).await.expect("it still leads");
    }
}
