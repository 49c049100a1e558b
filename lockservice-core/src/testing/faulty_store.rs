//! [`FaultyStore`]: a store between which and its caller the network does what networks do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, WriteNumber};
use crate::store::{
    Applied, Batch, BindStore, Candidate, Head, Leadership, Renewal, StoreState, WriteAck,
};

/// The fault of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It never arrives: `Unavailable`, nothing happened.
    Refused,
    /// It arrives, but its response is lost: `UnknownOutcome` for what changes something,
    /// `Unavailable` for the rest.
    ReplyLost,
    /// Its response is lost before it arrives: it is carried out only with the next call, if
    /// ever.
    LateArrival,
    /// It arrives twice; the first response is given.
    Duplicate,
    /// It arrives again, long after its response: before the call after the next.
    LateDuplicate,
    /// It takes this long.
    Delay(Duration),
}

impl Fault {
    /// Every kind there is.
    pub const ALL: &[Self] = &[
        Self::Refused,
        Self::ReplyLost,
        Self::LateArrival,
        Self::Duplicate,
        Self::LateDuplicate,
        Self::Delay(Duration::from_millis(20)),
    ];
}

/// The calls that a fault befalls.
#[derive(Debug)]
enum Plan {
    /// One call, counted from zero.
    Once(u64, Fault),
    /// Each call with this probability, by a seeded generator.
    Random { per_cent: u32, faults: Vec<Fault>, random: SmallRng },
}

/// A [`BindStore`] that hands calls on to another and lets faults befall them, reproducibly.
pub struct FaultyStore {
    inner: Arc<dyn BindStore>,
    state: Mutex<FaultState>,
}

struct FaultState {
    plan: Plan,
    calls: u64,
    struck: u64,
    /// Writes that are still on their way, and before which call they arrive.
    late: Vec<(u64, Epoch, WriteNumber, Batch)>,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl FaultyStore {
    /// `fault` befalls call number `call`, counted from zero over all methods.
    pub fn once(inner: Arc<dyn BindStore>, call: u64, fault: Fault) -> Self {
        Self::new(inner, Plan::Once(call, fault))
    }

    /// Of 100 calls, `per_cent` are befallen by one of `faults`.
    pub fn random(inner: Arc<dyn BindStore>, seed: u64, per_cent: u32, faults: &[Fault]) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self::new(inner, Plan::Random { per_cent, faults: faults.to_vec(), random })
    }

    fn new(inner: Arc<dyn BindStore>, plan: Plan) -> Self {
        Self {
            inner,
            state: Mutex::new(FaultState { plan, calls: 0, struck: 0, late: Vec::new() }),
        }
    }

    /// The number of calls that a fault befell.
    pub fn struck(&self) -> u64 {
        self.state.lock().struck
    }

    /// Decides about the next call, once everything that was late has arrived.
    async fn next(&self) -> (u64, Option<Fault>) {
        let (call, fault, arrived) = {
            let mut state = self.state.lock();
            let call = state.calls;
            state.calls += 1;
            let fault = match &mut state.plan {
                Plan::Once(at, fault) => (*at == call).then_some(*fault),
                Plan::Random { per_cent, faults, random } => random
                    .random_ratio(*per_cent, 100)
                    .then(|| faults[random.random_range(0..faults.len())]),
            };
            state.struck += u64::from(fault.is_some());
            let (arrived, late) =
                std::mem::take(&mut state.late).into_iter().partition(|late| late.0 <= call);
            state.late = late;
            let arrived: Vec<(u64, Epoch, WriteNumber, Batch)> = arrived;
            (call, fault, arrived)
        };
        for (_, epoch, number, batch) in arrived {
            // No caller gets the response.
            drop(self.inner.write(epoch, number, &batch).await);
        }
        if let Some(Fault::Delay(delay)) = fault {
            tokio::time::sleep(delay).await;
        }
        (call, fault)
    }
}

/// A call that changes nothing, or whose repetition changes nothing.
macro_rules! harmless {
    ($self:ident, $call:expr) => {
        match $self.next().await.1 {
            Some(Fault::Refused | Fault::LateArrival) => Err(refused()),
            Some(Fault::ReplyLost) => {
                drop($call.await);
                Err(refused())
            }
            Some(Fault::Duplicate | Fault::LateDuplicate) => {
                let first = $call.await;
                drop($call.await);
                first
            }
            Some(Fault::Delay(_)) | None => $call.await,
        }
    };
}

fn refused() -> Error {
    Error::new(ErrorKind::Unavailable, "the store did not respond (a fault of the test)")
}

fn reply_lost() -> Error {
    Error::new(ErrorKind::UnknownOutcome, "the store's response was lost (a fault of the test)")
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BindStore for FaultyStore {
    fn describe(&self) -> String {
        format!("faulty {}", self.inner.describe())
    }

    async fn load(&self) -> Result<StoreState> {
        self.next()
            .await
            .1
            .filter(|fault| !matches!(fault, Fault::Delay(_)))
            .map_or(Ok(()), |_| Err(refused()))?;
        self.inner.load().await
    }

    async fn head(&self) -> Result<Option<Head>> {
        harmless!(self, self.inner.head())
    }

    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        match self.next().await.1 {
            Some(Fault::Refused | Fault::LateArrival) => Err(refused()),
            Some(Fault::ReplyLost) => {
                drop(self.inner.acquire_leadership(candidate, ttl).await);
                Err(reply_lost())
            }
            // An acquisition that arrives twice makes its own first response's epoch one of the
            // past: that is a lost reply.
            Some(Fault::Duplicate | Fault::LateDuplicate | Fault::Delay(_)) | None => {
                self.inner.acquire_leadership(candidate, ttl).await
            }
        }
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        harmless!(self, self.inner.renew(epoch))
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        match self.next().await.1 {
            Some(Fault::Refused | Fault::LateArrival) => Err(refused()),
            Some(Fault::ReplyLost) => {
                drop(self.inner.resign(epoch).await);
                Err(reply_lost())
            }
            _ => self.inner.resign(epoch).await,
        }
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        let (call, fault) = self.next().await;
        match fault {
            Some(Fault::Refused) => Err(refused()),
            Some(Fault::ReplyLost) => {
                drop(self.inner.write(epoch, number, batch).await);
                Err(reply_lost())
            }
            Some(Fault::LateArrival) => {
                self.state.lock().late.push((call + 2, epoch, number, batch.clone()));
                Err(reply_lost())
            }
            Some(Fault::Duplicate) => {
                let first = self.inner.write(epoch, number, batch).await;
                drop(self.inner.write(epoch, number, batch).await);
                first
            }
            Some(Fault::LateDuplicate) => {
                self.state.lock().late.push((call + 2, epoch, number, batch.clone()));
                self.inner.write(epoch, number, batch).await
            }
            Some(Fault::Delay(_)) | None => self.inner.write(epoch, number, batch).await,
        }
    }

    async fn applied(&self) -> Result<Applied> {
        harmless!(self, self.inner.applied())
    }

    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.inner.wait_for_change(poll).await
    }
}
