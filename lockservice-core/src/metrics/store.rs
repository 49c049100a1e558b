//! [`MeteredStore`]: a store whose calls are counted.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{ByKind, Counter, Distribution, Histogram};
use crate::env::Env;
use crate::error::{ErrorKind, Result};
use crate::id::{Epoch, WriteNumber};
use crate::store::{
    Applied, Batch, BindStore, Candidate, Head, Leadership, Renewal, StoreState, WriteAck,
};

/// A call of a store that is counted. A wait for a change is not: it is meant to take long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum StoreCall {
    /// [`BindStore::load`].
    Load,
    /// [`BindStore::acquire_leadership`].
    Acquire,
    /// [`BindStore::renew`].
    Renew,
    /// [`BindStore::resign`].
    Resign,
    /// [`BindStore::write`].
    Write,
    /// [`BindStore::applied`].
    Applied,
    /// [`BindStore::head`].
    Head,
}

impl StoreCall {
    /// Every call there is.
    pub const ALL: [Self; 7] = [
        Self::Load,
        Self::Acquire,
        Self::Renew,
        Self::Resign,
        Self::Write,
        Self::Applied,
        Self::Head,
    ];

    /// A stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Acquire => "acquire",
            Self::Renew => "renew",
            Self::Resign => "resign",
            Self::Write => "write",
            Self::Applied => "applied",
            Self::Head => "head",
        }
    }
}

#[derive(Debug)]
struct OfCall {
    times: Histogram,
    failed: ByKind,
}

/// What was counted of the calls of a store.
#[derive(Debug)]
pub struct StoreMetrics {
    calls: [OfCall; StoreCall::ALL.len()],
    ops_written: Counter,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        let of_call = |_| OfCall { times: Histogram::of_times(), failed: ByKind::default() };
        Self { calls: StoreCall::ALL.map(of_call), ops_written: Counter::default() }
    }
}

/// What was counted of one kind of calls.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct StoreCallCounts {
    /// How long the calls took that have returned, also those that failed. A call that was dropped
    /// is not counted.
    pub times: Distribution,
    /// Calls that failed, by kind.
    pub failed: Vec<(ErrorKind, u64)>,
}

impl StoreMetrics {
    /// What was counted of one kind of calls.
    pub fn counts(&self, call: StoreCall) -> StoreCallCounts {
        let OfCall { times, failed } = &self.calls[call as usize];
        StoreCallCounts { times: times.snapshot(), failed: failed.counts() }
    }

    /// Changes that were written, in all batches that succeeded.
    pub fn ops_written(&self) -> u64 {
        self.ops_written.get()
    }
}

/// A store whose calls are counted, and are otherwise those of `inner`.
#[derive(Debug)]
pub struct MeteredStore {
    inner: Arc<dyn BindStore>,
    metrics: Arc<StoreMetrics>,
    env: Env,
}

impl MeteredStore {
    /// Counts the calls of `inner` in `metrics`, by the time of `env`.
    pub fn new(inner: Arc<dyn BindStore>, metrics: Arc<StoreMetrics>, env: impl Into<Env>) -> Self {
        Self { inner, metrics, env: env.into() }
    }

    async fn count<T>(
        &self,
        call: StoreCall,
        result: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let began = self.env.now();
        let result = result.await;
        let OfCall { times, failed } = &self.metrics.calls[call as usize];
        times.note_time(self.env.now().since(began));
        result.inspect_err(|e| failed.note(e.kind()))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BindStore for MeteredStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn load(&self) -> Result<StoreState> {
        self.count(StoreCall::Load, self.inner.load()).await
    }

    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        self.count(StoreCall::Acquire, self.inner.acquire_leadership(candidate, ttl)).await
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.count(StoreCall::Renew, self.inner.renew(epoch)).await
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.count(StoreCall::Resign, self.inner.resign(epoch)).await
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        let written = self.inner.write(epoch, number, batch);
        let written = self.count(StoreCall::Write, written).await?;
        self.metrics.ops_written.add(batch.len() as u64);
        Ok(written)
    }

    async fn applied(&self) -> Result<Applied> {
        self.count(StoreCall::Applied, self.inner.applied()).await
    }

    async fn head(&self) -> Result<Option<Head>> {
        self.count(StoreCall::Head, self.inner.head()).await
    }

    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.inner.wait_for_change(poll).await
    }
}
