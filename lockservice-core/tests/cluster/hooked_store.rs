//! A shared store to which a test lets one thing happen at one moment.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, Head, Leadership, Renewal, StoreState, WriteAck,
};
use lockservice_core::testing::SharedStore;
use lockservice_core::{Epoch, Error, ErrorKind, Result, WriteNumber};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The events that a test sets.
type Hook = Box<dyn FnOnce() + Send>;

/// Clones are the same connection.
#[derive(Clone)]
pub(crate) struct HookedStore {
    pub(crate) inner: SharedStore,
    hooks: Arc<Hooks>,
}

#[derive(Default)]
struct Hooks {
    before_load: Mutex<Option<Hook>>,
    before_renewal: Mutex<Option<Hook>>,
    after_write: Mutex<Option<Hook>>,
    acquisitions_lost: AtomicU32,
    loads_fail: std::sync::atomic::AtomicBool,
    /// How many of the next writes are refused. A test sets it; `write` is the partner.
    writes_refused: AtomicU32,
    /// How long the response to a renewal takes, and the send of the last one with a response.
    renewals: Mutex<(Duration, Option<Instant>)>,
}

impl HookedStore {
    pub(crate) fn new(inner: SharedStore) -> Self {
        Self { inner, hooks: Arc::default() }
    }

    /// Happens once, between an acquisition and the reading that follows it.
    pub(crate) fn before_load(&self, hook: impl FnOnce() + Send + 'static) {
        *self.hooks.before_load.lock() = Some(Box::new(hook));
    }

    /// Happens once, when the leadership is renewed.
    pub(crate) fn before_renewal(&self, hook: impl FnOnce() + Send + 'static) {
        *self.hooks.before_renewal.lock() = Some(Box::new(hook));
    }

    pub(crate) fn fail_loads(&self) {
        self.hooks.loads_fail.store(true, Ordering::SeqCst);
    }

    /// Happens once, when the next write has landed, whose answer is lost.
    pub(crate) fn after_write(&self, hook: impl FnOnce() + Send + 'static) {
        *self.hooks.after_write.lock() = Some(Box::new(hook));
    }

    /// The next `n` writes are refused: certainly nothing of them lands.
    pub(crate) fn refuse_writes(&self, n: u32) {
        self.hooks.writes_refused.store(n, Ordering::SeqCst);
    }

    /// The responses to the next `n` acquisitions are lost.
    pub(crate) fn lose_acquisitions(&self, n: u32) {
        self.hooks.acquisitions_lost.store(n, Ordering::SeqCst);
    }

    /// From now on the response to each renewal takes this long.
    pub(crate) fn slow_renewals(&self, delay: Duration) {
        *self.hooks.renewals.lock() = (delay, None);
    }

    /// The send of the last renewal since then that got a response.
    pub(crate) fn renewed(&self) -> Option<Instant> {
        self.hooks.renewals.lock().1
    }

    pub(crate) fn acquisitions_to_lose(&self) -> u32 {
        self.hooks.acquisitions_lost.load(Ordering::SeqCst)
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::UnknownOutcome, "the response was lost (a fault of the test)")
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BindStore for HookedStore {
    fn describe(&self) -> String {
        "hooked".to_owned()
    }

    async fn load(&self) -> Result<StoreState> {
        let hook = self.hooks.before_load.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        if self.hooks.loads_fail.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(30)).await;
            return Err(Error::new(ErrorKind::Unavailable, "reading everything takes too long"));
        }
        self.inner.load().await
    }

    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        let response = self.inner.acquire_leadership(candidate, ttl).await?;
        let lose = |left: u32| left.checked_sub(1);
        if matches!(response, Leadership::Acquired(_))
            && self
                .hooks
                .acquisitions_lost
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose)
                .is_ok()
        {
            return Err(lost());
        }
        Ok(response)
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        let hook = self.hooks.before_renewal.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        let sent = Instant::now();
        let response = self.inner.renew(epoch).await?;
        let delay = self.hooks.renewals.lock().0;
        tokio::time::sleep(delay).await;
        self.hooks.renewals.lock().1 = Some(sent);
        Ok(response)
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.inner.resign(epoch).await
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        let refuse = |left: u32| left.checked_sub(1);
        let refused = &self.hooks.writes_refused;
        if refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuse).is_ok() {
            return Err(Error::new(ErrorKind::Unavailable, "refused (a fault of the test)"));
        }
        let response = self.inner.write(epoch, number, batch).await;
        let hook = self.hooks.after_write.lock().take();
        match hook {
            Some(hook) => {
                hook();
                Err(lost())
            }
            None => response,
        }
    }

    async fn applied(&self) -> Result<Applied> {
        self.inner.applied().await
    }

    async fn head(&self) -> Result<Option<Head>> {
        self.inner.head().await
    }

    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        self.inner.wait_for_change(poll).await
    }
}

impl fmt::Debug for HookedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookedStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}
