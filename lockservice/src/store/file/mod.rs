//! [`FileStore`]: the bindings in one file, `file:PATH`.

mod backend;
mod engine;
mod error;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::store::{
    Applied, Batch, BindStore, Candidate, ExclusiveStore, Head, Leadership, Renewal, StoreState, WriteAck,
};
use lockservice_core::{Epoch, Result};

use self::engine::FileEngine;

/// A [`BindStore`] in one file, a [redb](::redb) database, open to one process at a time.
///
/// Each write is one transaction that has reached the disk (`fsync`) before it is answered. When the disk is full, writes fail with
/// [`StoreUnusable`](lockservice_core::ErrorKind::StoreUnusable) and succeed again once there is space; nothing acknowledged is lost.
/// Clones are handles to one store; the file is closed with the last of them.
#[derive(Clone, Debug)]
pub struct FileStore(ExclusiveStore<FileEngine>);

impl FileStore {
    /// Opens the store in the file `path`, which is created if it is not there (its folder is not).
    ///
    /// Fails, naming the path and what to do, with `StoreInUse` if another process has it open, `StoreUnusable` if the file
    /// cannot be opened, created or written, `StoreCorrupt` if it is not a store of lockservice or is damaged, and `StoreNewer` if a newer
    /// version wrote it. Reads the whole file once to check it. Cancel safe.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        ExclusiveStore::open(format!("file:{}", path.display()), move || FileEngine::open(&path)).await.map(Self)
    }
}

#[async_trait]
impl BindStore for FileStore {
    fn describe(&self) -> String {
        self.0.describe()
    }

    async fn load(&self) -> Result<StoreState> {
        self.0.load().await
    }

    async fn head(&self) -> Result<Option<Head>> {
        self.0.head().await
    }

    async fn acquire_leadership(&self, candidate: &Candidate, _ttl: Duration) -> Result<Leadership> {
        self.0.acquire_leadership(candidate).await
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.0.renew(epoch).await
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.0.resign(epoch).await
    }

    async fn write(&self, epoch: Epoch, number: u64, batch: &Batch) -> Result<WriteAck> {
        self.0.write(epoch, number, batch).await
    }

    async fn applied(&self) -> Result<Applied> {
        self.0.applied().await
    }
}
