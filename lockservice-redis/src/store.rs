//! [`RedisStore`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, Change, Damage, Floor, Head, Inspection, Leadership,
    Lineage, Renewal, STORE_FORMAT, StoreState, Turns, WriteAck, absorb, changes, encode,
};
use lockservice_core::{Epoch, Error, ErrorKind, Result, WriteNumber};
use redis::Value;
use tokio::time::timeout;

use crate::audit::audit;
use crate::config::{RedisConfig, Servers};
use crate::connection::{ScriptCall, ScriptResponse, StoreConnection};
use crate::error::{Errors, Stage};
use crate::head::{Fields, Found, Verdict, verdict};
use crate::scripts::{Script, Scripts};
use crate::watch::Watch;

/// The number of times that a candidate decides again because the head changed under its decision.
const RACES_MAX: u32 = 20;

/// The number of times that a reading of everything begins again because a write came between.
const LOADS_MAX: u32 = 3;

/// About how many records to read in one round trip.
const PAGE: usize = 500;

/// The most records that one write may change: Redis takes no more than a million arguments.
const CHANGES_MAX: usize = 400_000;

/// A [`BindStore`] in Redis, shared by any number of processes. The crate's documentation says what
/// it promises.
///
/// Clones are handles that share one connection. It makes itself again whenever it is lost, and
/// leads to the new master after a fail-over.
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

struct Inner {
    config: Arc<RedisConfig>,
    key: String,
    errors: Errors,
    scripts: Scripts,
    connection: StoreConnection,
    watch: Watch,
}

impl RedisStore {
    /// Opens the store that a URL names; [`RedisConfig::from_url`] has the syntax.
    ///
    /// Creates nothing. Warns in the log if the server may lose what it acknowledged.
    ///
    /// # Errors
    /// - `InvalidArgument`: the URL is malformed.
    /// - `Unavailable`: no server responds. Try again.
    /// - `StoreUnusable`: the server cannot serve: too old, a wrong password, a missing permission.
    /// - `StoreCorrupt`, `StoreNewer`: the content cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(RedisConfig::from_url(url)?).await
    }

    /// Opens a store as [`connect`](Self::connect) does.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), but for the URL.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn connect_with(config: RedisConfig) -> Result<Self> {
        let store = Self::reach(config).await?;
        store.found().await?;
        Ok(store)
    }

    /// Reads the store that a URL names, damaged or not, as far as it can be read.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), but for damaged records: those are in the result.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn inspect(url: &str) -> Result<Inspection> {
        let store = Self::reach(RedisConfig::from_url(url)?).await?;
        let mut damage = Damage::noted();
        let (state, head) = store.read(&mut damage).await?;
        Ok(Inspection { store: store.describe(), state, head, damage })
    }

    /// A store whose content may be anything.
    async fn reach(config: RedisConfig) -> Result<Self> {
        config.validate()?;
        let config = Arc::new(config);
        let errors = Errors::new(config.describe(), config.secrets());
        let connection = StoreConnection::new(Arc::clone(&config), errors.clone());
        let watch = Watch::new(config.channel());
        let store = Self(Arc::new(Inner {
            key: config.key(),
            scripts: Scripts::new(),
            config,
            errors,
            connection,
            watch,
        }));
        audit(&store.0.connection, &store.0.config, &store.0.errors).await?;
        Ok(store)
    }

    /// Opens a store through a client that is there already. The client's address, credentials and
    /// encryption are used; everything else is taken from `config`.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), but for the URL.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn with_client(client: redis::Client, config: RedisConfig) -> Result<Self> {
        Self::connect_with(RedisConfig { servers: Servers::Client(client), ..config }).await
    }

    async fn found(&self) -> Result<Found> {
        let response = self.run(&self.0.scripts.read, Vec::new(), Stage::Repeatable, false).await?;
        Found::parse(response.value, &self.0.errors)
    }

    async fn run(
        &self,
        script: &Script,
        arguments: Vec<Vec<u8>>,
        stage: Stage,
        waits: bool,
    ) -> Result<ScriptResponse> {
        self.0
            .connection
            .run(ScriptCall { script, key: &self.0.key, arguments, stage, waits })
            .await
    }

    /// Runs a script that checks and writes. Fails with `Fenced` if it found another epoch or
    /// number, and if too few replicas have it.
    async fn decide(
        &self,
        script: &Script,
        arguments: Vec<Vec<u8>>,
        stage: Stage,
    ) -> Result<(Lineage, bool)> {
        let response = self.run(script, arguments, stage, true).await?;
        match verdict(response.value, &self.0.errors)? {
            (_, Verdict::Fenced(error)) => Err(error),
            (lineage, Verdict::Race) => Ok((lineage, false)),
            (_, Verdict::Done) if !response.replicated => Err(self.not_replicated(stage)),
            (lineage, Verdict::Done) => Ok((lineage, true)),
        }
    }

    /// L4: what too few replicas have may be gone after a fail-over.
    fn not_replicated(&self, stage: Stage) -> Error {
        let (kind, message) = if stage == Stage::Write {
            (
                ErrorKind::UnknownOutcome,
                "the write did not reach enough replicas in time: read its number before the next \
                    write",
            )
        } else {
            (
                ErrorKind::Unavailable,
                "the change did not reach enough replicas in time: are they running? Try again",
            )
        };
        self.0.errors.about(kind, message).with("replicas", self.0.config.replicas)
    }

    /// Everything, of one moment.
    async fn read(&self, damage: &mut Damage) -> Result<(StoreState, Option<Head>)> {
        let read = async {
            for _ in 0..LOADS_MAX {
                if let Some(read) = self.read_once(damage).await? {
                    return Ok(read);
                }
            }
            Err(self.0.errors.about(
                ErrorKind::Unavailable,
                "the store was written while it was read: try again",
            ))
        };
        timeout(self.0.config.load_timeout, read)
            .await
            .unwrap_or_else(|_| Err(self.0.errors.timed_out(Stage::Repeatable)))
    }

    /// The same, but `None` if something was written meanwhile. Notes no damage then.
    async fn read_once(&self, damage: &mut Damage) -> Result<Option<(StoreState, Option<Head>)>> {
        let before = damage.tolerate(self.found().await)?;
        let mut records = BTreeMap::new();
        let mut cursor = b"0".to_vec();
        loop {
            let mut page = redis::cmd("HSCAN");
            page.arg(&self.0.key).arg(&cursor).arg("COUNT").arg(PAGE);
            cursor = self.take_page(self.0.connection.query(page).await?, &mut records)?;
            if cursor == b"0" {
                break;
            }
        }
        let place = |found: &Found| found.head.as_ref().map(|head| (head.epoch, head.applied));
        // Only the leader writes: if epoch, number and copy are as before, so is everything else.
        // Of a damaged head there is nothing to compare, and no node can become the leader.
        if let Some(before) = &before {
            let after = self.found().await?;
            if before.lineage != after.lineage || place(before) != place(&after) {
                return Ok(None);
            }
        }
        let mut state = StoreState::default();
        (state.epoch, state.applied) = before.as_ref().and_then(place).unwrap_or_default();
        // Format and head were looked at before.
        let mut turns = Turns::default();
        for (key, value) in
            records.iter().filter(|(key, _)| *key != b"format" && !key.starts_with(b"head/"))
        {
            turns.next().await;
            damage.tolerate(absorb(&mut state, key, value))?;
        }
        Ok(Some((state, before.and_then(|found| found.head))))
    }

    /// Adds one response of `HSCAN`, and returns the begin of the next. An entry may come twice.
    fn take_page(&self, page: Value, records: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>> {
        let strange = || self.0.errors.strange("another shape of HSCAN");
        let Value::Array(parts) = page else { return Err(strange()) };
        let Ok([Value::BulkString(cursor), Value::Array(entries)]) = <[Value; 2]>::try_from(parts)
        else {
            return Err(strange());
        };
        let mut entries = entries.into_iter();
        while let (Some(key), Some(value)) = (entries.next(), entries.next()) {
            let (Value::BulkString(key), Value::BulkString(value)) = (key, value) else {
                return Err(strange());
            };
            records.insert(key, value);
        }
        Ok(cursor)
    }

    fn acquire_arguments(&self, found: &Found, head: &Head) -> Vec<Vec<u8>> {
        let decimal = |number: u64| number.to_string().into_bytes();
        let mut arguments = vec![found.lineage.0.clone().into_bytes()];
        arguments.extend(Fields::clone(&found.fields));
        arguments.extend([
            self.0.config.channel().into_bytes(),
            decimal(u64::from(STORE_FORMAT)),
            decimal(head.epoch.get()),
            decimal(head.applied.get()),
            decimal(head.counter.get()),
            b"1".to_vec(),
            encode(head),
        ]);
        arguments
    }
}

#[async_trait]
impl BindStore for RedisStore {
    fn describe(&self) -> String {
        self.0.config.describe()
    }

    async fn load(&self) -> Result<StoreState> {
        self.read(&mut Damage::refused()).await.map(|(state, _)| state)
    }

    async fn head(&self) -> Result<Option<Head>> {
        Ok(self.found().await?.head)
    }

    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        let compete = async {
            for _ in 0..RACES_MAX {
                let found = self.found().await?;
                let floor = Floor::of_clock(found.time_s)
                    .map_err(|e| self.0.errors.about(e.kind(), e.message()))?;
                let (head, response) = Head::acquire_shared(
                    found.head.as_ref(),
                    candidate,
                    ttl,
                    &found.lineage,
                    floor,
                )?;
                let Some(head) = head else { return Ok(response) };
                let arguments = self.acquire_arguments(&found, &head);
                if let (_, true) =
                    self.decide(&self.0.scripts.acquire, arguments, Stage::Repeatable).await?
                {
                    return Ok(response);
                }
            }
            Err(self.0.errors.about(
                ErrorKind::Unavailable,
                "others changed the leadership all the time: try again",
            ))
        };
        // Two scripts if no other candidate conflicts.
        timeout(self.0.config.call_timeout * 2, compete)
            .await
            .unwrap_or_else(|_| Err(self.0.errors.timed_out(Stage::Repeatable)))
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        let epoch = epoch.get().to_string().into_bytes();
        let (lineage, _) =
            self.decide(&self.0.scripts.renew, vec![epoch], Stage::Repeatable).await?;
        Ok(Renewal { lineage })
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        let arguments =
            vec![epoch.get().to_string().into_bytes(), self.0.config.channel().into_bytes()];
        self.decide(&self.0.scripts.resign, arguments, Stage::Write).await?;
        Ok(())
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        let Some(before) = number.get().checked_sub(1) else {
            return Err(self
                .0
                .errors
                .about(ErrorKind::Fenced, "no write has the number 0: the first has 1"));
        };
        // The later change of a record wins.
        let mut last: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for change in changes(batch) {
            match change {
                Change::Put { key, value } => last.insert(key, Some(value)),
                Change::Delete { key } => last.insert(key, None),
            };
        }
        if last.len() > CHANGES_MAX {
            return Err(self
                .0
                .errors
                .about(ErrorKind::ResourceExhausted, "the batch is too big for Redis: split it"));
        }
        let puts = last.values().flatten().count();
        let decimal = |number: u64| number.to_string().into_bytes();
        let mut arguments = vec![
            decimal(epoch.get()),
            decimal(before),
            decimal(number.get()),
            decimal(puts as u64),
        ];
        let mut deletes = Vec::new();
        for (key, value) in last {
            match value {
                Some(value) => arguments.extend([key, value]),
                None => deletes.push(key),
            }
        }
        arguments.extend(deletes);
        let (lineage, _) = self.decide(&self.0.scripts.write, arguments, Stage::Write).await?;
        Ok(WriteAck { lineage })
    }

    async fn applied(&self) -> Result<Applied> {
        // L4: what is read must outlive a fail-over as what is written must, or a write would be
        // known that can still be lost.
        let script =
            if self.0.config.replicas > 0 { &self.0.scripts.touch } else { &self.0.scripts.read };
        let response = self.run(script, Vec::new(), Stage::Repeatable, true).await?;
        let found = Found::parse(response.value, &self.0.errors)?;
        if !response.replicated {
            return Err(self.not_replicated(Stage::Repeatable));
        }
        let head = found.head.unwrap_or_default();
        Ok(Applied { epoch: head.epoch, number: head.applied, lineage: found.lineage })
    }

    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.0.watch.wait(&self.0.connection, &self.0.config, poll).await;
        Ok(())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisStore").field(&self.describe()).finish()
    }
}
