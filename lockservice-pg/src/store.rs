//! [`PgStore`]: the store itself. The core's [`Head`] decides what a change of leadership means;
//! how a batch lands is `write_batch` of the schema.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, Damage, Floor, Head, Inspection, Leadership, Lineage,
    Renewal, StoreState, Turns, WriteAck,
};
use lockservice_core::{Epoch, Error, ErrorKind, Result, WriteNumber};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use crate::calls::Calls;
use crate::config::{PgConfig, millis};
use crate::connections::Connections;
use crate::error::{Failure, Stage};
use crate::migrate::{check_format, migrate};
use crate::record::{
    Arrays, add_constants, add_forgotten, add_service, add_table, add_tombstone, format_written,
    head, json,
};
use crate::server_check::check_server;
use crate::servers::Servers;
use crate::sql::{Sql, sql};
use crate::watch::Watch;

/// The number of times that a candidate decides again because the head changed between its reading
/// and its writing.
const DECISIONS_MAX: usize = 8;

/// A [`BindStore`] in a schema of a PostgreSQL database, shared by any number of nodes.
///
/// Dropping it closes its connections. Cheap calls on it cost one round trip; see the
/// [crate's](crate) documentation for what it guarantees and what it needs.
pub struct PgStore {
    calls: Calls,
    sql: Sql,
    channel: String,
    lock_ms: i32,
    watch: Watch,
}

impl PgStore {
    /// Opens the store that a URL names, and creates or migrates its schema; [`PgConfig::from_url`]
    /// says how it is written.
    ///
    /// # Errors
    /// - `InvalidArgument`: the URL cannot be read.
    /// - `Unavailable`: the server does not respond. Try again.
    /// - `StoreUnusable`: the login, a right or the database is missing, or the server is a standby
    ///   or read-only.
    /// - `StoreNewer`, `StoreCorrupt`: the content is of a later version, or damaged.
    ///
    /// # Cancel safety
    /// Cancel safe: a migration is done as a whole or not at all.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(PgConfig::from_url(url)?).await
    }

    /// Opens the store that `config` describes.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), but for the URL.
    ///
    /// # Cancel safety
    /// As [`connect`](Self::connect).
    pub async fn connect_with(config: PgConfig) -> Result<Self> {
        let servers = Arc::new(Servers::new(&config));
        // On the heap: it is done once, and the driver's part is large.
        Box::pin(Self::open(Connections::own(&config, &servers), config, servers)).await
    }

    /// Opens the store in `config.schema` through a ready pool, whose own rules then hold: for
    /// opening and closing connections, and for the longest time of a statement.
    ///
    /// At most `config.connections_max` of its connections are used at once. The connection that
    /// listens is one more, opened with the pool's options but outside of it; `config.listen` turns
    /// it off. If the pool's connections go through a pooler that shares them between
    /// transactions, say so in `config.pooler`: here it is not found out.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), but for the URL.
    ///
    /// # Cancel safety
    /// As [`connect`](Self::connect).
    pub async fn with_pool(pool: PgPool, config: PgConfig) -> Result<Self> {
        let config =
            PgConfig { connect: (*pool.connect_options()).clone(), others: Vec::new(), ..config };
        let servers = Arc::new(Servers::new(&config));
        // On the heap: it is done once, and the driver's part is large.
        Box::pin(Self::open(Connections::pool(pool, &config, &servers), config, servers)).await
    }

    /// Reads the store that a URL names, damaged or not, as far as it can be read. Creates and
    /// migrates nothing.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), but for damaged records: those are in the result.
    /// `StoreUnusable` too if there is no store, or one of an older format.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn inspect(url: &str) -> Result<Inspection> {
        let config = PgConfig::from_url(url)?;
        let servers = Arc::new(Servers::new(&config));
        let store = Self::reach(Connections::own(&config, &servers), &config, servers).await?;
        check_format(&store.calls, &config.schema).await?;
        let mut damage = Damage::noted();
        let (state, head) = Box::pin(store.read(&mut damage)).await?;
        Ok(Inspection { store: store.describe(), state, head, damage })
    }

    async fn open(
        connections: Connections,
        config: PgConfig,
        servers: Arc<Servers>,
    ) -> Result<Self> {
        let store = Self::reach(connections, &config, servers).await?;
        migrate(&store.calls, &config.schema).await?;
        Ok(store)
    }

    /// A store whose schema may be missing or old.
    async fn reach(
        connections: Connections,
        config: &PgConfig,
        servers: Arc<Servers>,
    ) -> Result<Self> {
        let calls = Calls::new(connections, config.describe(), config);
        check_server(&calls).await?;
        let channel = format!("lockservice:{}", config.schema);
        let watch = Watch::new(config, &channel, servers);
        Ok(Self {
            sql: Sql::new(&config.schema),
            lock_ms: millis(config.lock_timeout),
            calls,
            channel,
            watch,
        })
    }

    /// The head as it stands, the copy of the store that responded, and the server's clock.
    async fn read_head(&self) -> Result<PgRow> {
        self.calls.repeatable(Stage::Reading, || sql(&self.sql.head)).await
    }

    /// True if the head was still `found`, and is `next` now.
    async fn lead(&self, found: Option<&Head>, next: &Head) -> Result<bool> {
        let found = found.cloned().unwrap_or_default();
        let lead = sql(&self.sql.lead)
            .bind(self.lock_ms)
            .bind(&self.channel)
            .bind(number(found.epoch.get()))
            .bind(number(found.applied.get()))
            .bind(number(found.counter.get()))
            .bind(found.leader.is_some())
            .bind(number(next.epoch.get()))
            .bind(&next.lineage.0)
            .bind(json(next));
        let row = self.calls.once(lead).await?;
        self.get(&row, "done")
    }

    /// The reason in the head as it stands why a change was refused.
    fn refused<T>(&self, row: &PgRow, check: impl FnOnce(&Head) -> Result<T>) -> Error {
        match head(row).map(Option::unwrap_or_default).and_then(|head| check(&head)) {
            Err(refusal) => refusal.with("store", &self.calls.describe),
            Ok(_) => Error::new(
                ErrorKind::Internal,
                "the store refused a change that was due: please report this",
            )
            .with("store", &self.calls.describe),
        }
    }

    fn lineage(&self, row: &PgRow) -> Result<Lineage> {
        Ok(Lineage(self.get(row, "lineage")?))
    }

    fn get<'r, T>(&self, row: &'r PgRow, column: &str) -> Result<T>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        self.calls.unchanged(row.try_get(column).map_err(Failure::from))
    }

    /// Everything, of one moment.
    async fn read(&self, damage: &mut Damage) -> Result<(StoreState, Option<Head>)> {
        let calls = &self.calls;
        let mut connection = calls.take().await?;
        let begin = format!(
            "begin isolation level repeatable read, read only; set local statement_timeout = {}; \
                set local lock_timeout = {}",
            millis(calls.load_timeout),
            self.lock_ms,
        );
        calls.unchanged(connection.begin(&begin, calls.response_timeout).await)?;
        let mut state = StoreState::default();
        let head_row =
            calls.unchanged(connection.row(sql(&self.sql.head), calls.response_timeout).await)?;
        let head = damage.tolerate(head(&head_row))?.flatten();
        if let Some(head) = &head {
            (state.epoch, state.applied) = (head.epoch, head.applied);
        }
        type Add = fn(&mut StoreState, &PgRow) -> Result<()>;
        let parts: [(&Arc<str>, Add); 5] = [
            (&self.sql.constants, add_constants),
            (&self.sql.forgotten, add_forgotten),
            (&self.sql.tables, add_table),
            (&self.sql.services, add_service),
            (&self.sql.tombstones, add_tombstone),
        ];
        let mut turns = Turns::default();
        for (query, add) in parts {
            for row in calls.unchanged(connection.rows(sql(query), calls.load_timeout).await)? {
                turns.next().await;
                damage.tolerate(
                    add(&mut state, &row).map_err(|e| e.with("store", &calls.describe)),
                )?;
            }
        }
        calls.unchanged(connection.commit(calls.response_timeout).await)?;
        connection.keep();
        Ok((state, head))
    }
}

#[async_trait]
impl BindStore for PgStore {
    fn describe(&self) -> String {
        self.calls.describe.clone()
    }

    async fn load(&self) -> Result<StoreState> {
        let load = async || self.read(&mut Damage::refused()).await.map(|(state, _)| state);
        match load().await {
            // A connection from before a restart of the server fails only when it is used: the call
            // is made once more, with new ones.
            Err(e) if e.kind() == ErrorKind::Unavailable => {
                self.calls.connections.forget_idle();
                load().await
            }
            outcome => outcome,
        }
    }

    async fn head(&self) -> Result<Option<Head>> {
        head(&self.read_head().await?)
    }

    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        // From here on a change is news.
        self.watch.observe();
        for _ in 0..DECISIONS_MAX {
            let row = self.read_head().await?;
            let (found, lineage) = (head(&row)?, self.lineage(&row)?);
            let clock_s = u64::try_from(self.get::<i64>(&row, "clock_s")?).unwrap_or(0);
            let floor =
                Floor::of_clock(clock_s).map_err(|e| e.with("store", &self.calls.describe))?;
            match Head::acquire_shared(found.as_ref(), candidate, ttl, &lineage, floor)? {
                (None, held) => return Ok(held),
                (Some(next), acquired) => {
                    if self.lead(found.as_ref(), &next).await? {
                        return Ok(acquired);
                    }
                }
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "the leadership changes all the time: try again")
            .with("store", &self.calls.describe))
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        let renew = || sql(&self.sql.renew).bind(self.lock_ms).bind(number(epoch.get()));
        let row = self.calls.repeatable(Stage::Changing, renew).await?;
        match self.get(&row, "done")? {
            true => Ok(Renewal { lineage: self.lineage(&row)? }),
            false => Err(self.refused(&row, |head| head.renew(epoch))),
        }
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        let resign =
            sql(&self.sql.resign).bind(self.lock_ms).bind(&self.channel).bind(number(epoch.get()));
        let row = self.calls.once(resign).await?;
        match self.get(&row, "done")? {
            true => Ok(()),
            false => Err(self.refused(&row, |head| head.resign(epoch))),
        }
    }

    async fn write(
        &self,
        epoch: Epoch,
        batch_number: WriteNumber,
        batch: &Batch,
    ) -> Result<WriteAck> {
        let arrays = Arrays::from(batch);
        let write = sql(&self.sql.write)
            .bind(self.lock_ms)
            .bind(number(epoch.get()))
            .bind(number(batch_number.get()))
            .bind(format_written())
            .bind(arrays.constants)
            .bind(arrays.forgotten)
            .bind(arrays.put_groups)
            .bind(arrays.put_names)
            .bind(arrays.put_tables)
            .bind(arrays.gone_groups)
            .bind(arrays.gone_names)
            .bind(arrays.put_service_ids)
            .bind(arrays.put_services)
            .bind(arrays.gone_services)
            .bind(arrays.put_origins)
            .bind(arrays.put_counters)
            .bind(arrays.gone_origins)
            .bind(arrays.gone_counters);
        let row = self.calls.once(write).await?;
        match self.get(&row, "done")? {
            true => Ok(WriteAck { lineage: self.lineage(&row)? }),
            false => Err(self.refused(&row, |head| head.advance(epoch, batch_number))),
        }
    }

    async fn applied(&self) -> Result<Applied> {
        let row = self.read_head().await?;
        let head = head(&row)?.unwrap_or_default();
        Ok(Applied { epoch: head.epoch, number: head.applied, lineage: self.lineage(&row)? })
    }

    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.watch.changed(poll).await;
        Ok(())
    }
}

impl fmt::Debug for PgStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgStore").field("store", &self.calls.describe).finish_non_exhaustive()
    }
}

/// A number as the server's type. None that is stored reaches its end, so one beyond it is refused
/// like any other wrong one.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
