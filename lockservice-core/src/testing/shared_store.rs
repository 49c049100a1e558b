//! [`SharedStore`]: a store that several processes share, in memory, whose faults are called for by
//! the test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, WriteNumber};
use crate::store::{
    Applied, Batch, BindStore, Candidate, Change, Floor, Head, Leadership, Lineage, Renewal,
    StoreState, WriteAck, absorb, changes,
};

/// How long a call waits for a connection that is cut.
const CUT_OFF_MAX: Duration = Duration::from_secs(1);

/// A shared [`BindStore`] in memory: what PostgreSQL and Redis are, without the server. Clones
/// share a connection, each [`connect`](Self::connect) makes a further one to the same store.
///
/// The whole content can be [taken](Self::backup) and [put back](Self::restore), which changes the
/// lineage as a promoted replica does, or not, as a restored disk image does. While a connection is
/// [cut](Self::set_cut), calls on it wait, then fail.
#[derive(Clone, Debug, Default)]
pub struct SharedStore {
    shared: Arc<SharedState>,
    cut: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct SharedState {
    content: Mutex<Content>,
    /// The floor that the server's clock vouches for.
    floor: Mutex<Floor>,
    /// Notified of each change of leadership.
    changed: watch::Sender<()>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    head: Option<Head>,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Which life of the server this is.
    life: u64,
    writes: u64,
}

/// The content of a [`SharedStore`] at some time.
#[derive(Clone, Debug)]
pub struct Backup(Content);

impl SharedStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A further connection to the same store.
    pub fn connect(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), cut: watch::Sender::new(false) }
    }

    /// Everything in it now.
    pub fn backup(&self) -> Backup {
        Backup(self.shared.content.lock().clone())
    }

    /// Goes back to `backup`; with a `new_life` as another copy of the store, else unnoticeably.
    pub fn restore(&self, backup: &Backup, new_life: bool) {
        let mut content = self.shared.content.lock();
        let life = content.life + u64::from(new_life);
        *content = Content { life, writes: content.writes, ..backup.0.clone() };
    }

    /// Loses everything, as a restart without persistence does.
    pub fn forget(&self) {
        self.restore(&Backup(Content::default()), true);
    }

    /// While true, every call on this connection waits, as for a server that is paused or cannot be
    /// reached.
    pub fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// From now on the server's clock vouches for `floor` (L4). Without, the store has no clock.
    pub fn set_floor(&self, floor: Floor) {
        *self.shared.floor.lock() = floor;
    }

    /// How many batches were written in all.
    pub fn writes(&self) -> u64 {
        self.shared.content.lock().writes
    }

    async fn run<T>(&self, call: impl FnOnce(&mut Content) -> Result<T>) -> Result<T> {
        let mut cut = self.cut.subscribe();
        if tokio::time::timeout(CUT_OFF_MAX, cut.wait_for(|cut| !cut)).await.is_err() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the store does not respond: is it running?",
            ));
        }
        call(&mut self.shared.content.lock())
    }

    /// Replaces the head by what `next` makes of it.
    async fn write_head<T>(
        &self,
        next: impl FnOnce(&Head, &mut Content) -> Result<(Head, T)>,
    ) -> Result<T> {
        self.run(|content| {
            let head = content.head.clone().unwrap_or_default();
            let (head, response) = next(&head, content)?;
            content.head = Some(head);
            Ok(response)
        })
        .await
    }
}

impl Content {
    fn lineage(&self) -> Lineage {
        Lineage(format!("life {}", self.life))
    }
}

#[async_trait]
impl BindStore for SharedStore {
    fn describe(&self) -> String {
        "shared:".to_owned()
    }

    async fn load(&self) -> Result<StoreState> {
        self.run(|content| {
            let mut state = StoreState::default();
            let head = content.head.clone().unwrap_or_default();
            (state.epoch, state.applied) = (head.epoch, head.applied);
            for (key, value) in &content.entries {
                absorb(&mut state, key, value)?;
            }
            Ok(state)
        })
        .await
    }

    async fn head(&self) -> Result<Option<Head>> {
        self.run(|content| Ok(content.head.clone())).await
    }

    async fn acquire_leadership(&self, candidate: &Candidate, ttl: Duration) -> Result<Leadership> {
        let floor = *self.shared.floor.lock();
        let response = self
            .run(|content| {
                let (head, response) = Head::acquire_shared(
                    content.head.as_ref(),
                    candidate,
                    ttl,
                    &content.lineage(),
                    floor,
                )?;
                if let Some(head) = head {
                    content.head = Some(head);
                }
                Ok(response)
            })
            .await?;
        if matches!(response, Leadership::Acquired(_)) {
            self.shared.changed.send_replace(());
        }
        Ok(response)
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.write_head(|head, content| {
            Ok((head.renew(epoch)?, Renewal { lineage: content.lineage() }))
        })
        .await
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.write_head(|head, _| Ok((head.resign(epoch)?, ()))).await?;
        self.shared.changed.send_replace(());
        Ok(())
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        self.write_head(|head, content| {
            let head = head.advance(epoch, number)?;
            for change in changes(batch) {
                match change {
                    Change::Put { key, value } => drop(content.entries.insert(key, value)),
                    Change::Delete { key } => drop(content.entries.remove(&key)),
                }
            }
            content.writes += 1;
            Ok((head, WriteAck { lineage: content.lineage() }))
        })
        .await
    }

    async fn applied(&self) -> Result<Applied> {
        self.run(|content| {
            let head = content.head.clone().unwrap_or_default();
            Ok(Applied { epoch: head.epoch, number: head.applied, lineage: content.lineage() })
        })
        .await
    }

    async fn wait_for_change(&self, poll: Duration) -> Result<()> {
        let mut changed = self.shared.changed.subscribe();
        // Over time or not, the caller looks again.
        drop(tokio::time::timeout(poll, changed.changed()).await);
        Ok(())
    }
}
