//! [`Connection`]: one process's connection to the store that the nodes share, with the faults of a
//! network and of a server between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, Head, Leadership, Renewal, StoreState, WriteAck,
};
use lockservice_core::testing::SharedStore;
use lockservice_core::{Epoch, Error, ErrorKind, Result, WriteNumber};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// The faults of a store, in parts of a thousand of its calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// Calls that never arrive, and fail.
    pub refused: u32,
    /// Calls that are carried out, and whose responses are lost.
    pub unknown: u32,
    /// Writes that are said to be lost, and arrive later all the same.
    pub late: u32,
    /// Writes that arrive once more, later.
    pub again: u32,
    /// Calls that take up to [`slow_max`](Self::slow_max).
    pub slow: u32,
    /// See [`slow`](Self::slow).
    pub slow_max: Duration,
}

/// The troubles of the store, for all connections. Clones are the same.
#[derive(Clone, Debug)]
pub struct Troubles(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    random: StdRng,
    now: Trouble,
    faults: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Carried,
    Refused,
    Unknown,
    Late,
    Again,
}

impl Troubles {
    /// None yet.
    pub fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let (now, faults) = (Trouble::default(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { random, now, faults })))
    }

    /// From now on these.
    pub fn set(&self, trouble: Trouble) {
        self.0.lock().now = trouble;
    }

    /// How often each kind of fault happened.
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().faults.clone()
    }

    fn draw(&self) -> (Fate, Duration) {
        let mut state = self.0.lock();
        let State { random, now, faults } = &mut *state;
        let mut delay = Duration::from_millis(random.random_range(0..4));
        if random.random_ratio(now.slow.min(1_000), 1_000) && !now.slow_max.is_zero() {
            let most = u64::try_from(now.slow_max.as_millis()).unwrap_or(u64::MAX);
            delay = Duration::from_millis(random.random_range(5..=most.max(5)));
            *faults.entry("slow store call").or_default() += 1;
        }
        let mut drawn = random.random_range(0..1_000);
        for (parts, fate, fault) in [
            (now.refused, Fate::Refused, "store call refused"),
            (now.unknown, Fate::Unknown, "store response lost"),
            (now.late, Fate::Late, "late store write"),
            (now.again, Fate::Again, "repeated store write"),
        ] {
            if drawn < parts {
                *faults.entry(fault).or_default() += 1;
                return (fate, delay);
            }
            drawn -= parts;
        }
        (Fate::Carried, delay)
    }

    fn late_delay(&self) -> Duration {
        Duration::from_millis(self.0.lock().random.random_range(20..3_000))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    store: SharedStore,
    troubles: Troubles,
}

impl Connection {
    /// A connection to `store`.
    pub fn new(store: &SharedStore, troubles: Troubles) -> Self {
        Self { store: store.connect(), troubles }
    }

    /// While true, nothing comes of a call.
    pub fn set_cut(&self, cut: bool) {
        self.store.set_cut(cut);
    }

    async fn call<T>(
        &self,
        changes: bool,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let (fate, delay) = self.troubles.draw();
        tokio::time::sleep(delay).await;
        let lost = || {
            let kind = if changes { ErrorKind::UnknownOutcome } else { ErrorKind::Unavailable };
            Error::new(kind, "the response of the store was lost")
        };
        match fate {
            Fate::Refused => Err(Error::new(ErrorKind::Unavailable, "the store refuses the call")),
            Fate::Unknown => {
                let _ = call.await;
                Err(lost())
            }
            // Only a write comes late, see there.
            Fate::Carried | Fate::Late | Fate::Again => {
                let done = call.await?;
                tokio::time::sleep(delay / 2).await;
                Ok(done)
            }
        }
    }
}

#[async_trait]
impl BindStore for Connection {
    fn describe(&self) -> String {
        self.store.describe()
    }

    async fn load(&self) -> Result<StoreState> {
        self.call(false, self.store.load()).await
    }

    async fn head(&self) -> Result<Option<Head>> {
        self.call(false, self.store.head()).await
    }

    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        self.call(true, self.store.acquire_leadership(candidate, ttl)).await
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.call(true, self.store.renew(epoch)).await
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.call(true, self.store.resign(epoch)).await
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        let (fate, delay) = self.troubles.draw();
        if !matches!(fate, Fate::Late | Fate::Again) {
            return self.call(true, self.store.write(epoch, number, batch)).await;
        }
        tokio::time::sleep(delay).await;
        // What is on its way outlives the process that sent it (L2).
        let (store, batch, later) = (self.store.clone(), batch.clone(), self.troubles.late_delay());
        let now = match fate {
            Fate::Again => self.store.write(epoch, number, &batch).await,
            _ => Err(Error::new(ErrorKind::UnknownOutcome, "the write is on its way")),
        };
        tokio::spawn(async move {
            tokio::time::sleep(later).await;
            drop(store.write(epoch, number, &batch).await);
        });
        now
    }

    async fn applied(&self) -> Result<Applied> {
        self.call(false, self.store.applied()).await
    }

    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.store.wait_for_change(poll).await
    }
}
