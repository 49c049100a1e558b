//! [`MemoryStore`]: bindings that live as long as the process (B7).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Acquired, Applied, Batch, BindStore, Candidate, Cluster, ClusterConstants, Forgotten,
    Leadership, Lineage, Op, Renewal, ServiceRecord, StoreState, TableRecord, WriteAck,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, FencingToken, ServiceId, TableRef, TxnId, WriteNumber};
use crate::sync::{Arc, Mutex};

/// Tokens that one wall-clock second is worth (B7): a process that starts a second later than
/// another, on a clock that was not set back, begins above all tokens of the other, unless that
/// gave out more than a million a second.
const TOKENS_PER_SECOND: u64 = 1 << 20;

/// A store in memory, for one process alone: nothing of it survives the process (B7).
///
/// Mutual exclusion and the order of tokens hold within one life of the process. Clones are handles
/// to one store; a process that acquires the leadership through one of them replaces the leader
/// before, as a process that opens a file does.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    inner: Arc<Mutex<MemoryState>>,
}

#[derive(Debug)]
struct MemoryState {
    epoch: Epoch,
    applied: WriteNumber,
    /// False from an acquisition until the leader resigned.
    clean: bool,
    /// True while there is a leader.
    led: bool,
    tokens_from: FencingToken,
    constants: Option<ClusterConstants>,
    cluster: Option<Cluster>,
    tables: HashMap<TableRef, TableRecord>,
    forgotten: Forgotten,
    services: HashMap<ServiceId, ServiceRecord>,
    tombstones: HashSet<TxnId>,
}

impl MemoryStore {
    /// An empty store. `wall_clock_s` is the time now in seconds since 1970: fencing tokens begin
    /// at `wall_clock_s * 2^20` (B7), so that they normally grow over restarts of the process too.
    pub fn new(wall_clock_s: u64) -> Self {
        Self {
            inner: Arc::new(Mutex::new(MemoryState {
                epoch: Epoch::default(),
                applied: WriteNumber::default(),
                clean: true,
                led: false,
                tokens_from: FencingToken::new(
                    wall_clock_s.saturating_mul(TOKENS_PER_SECOND).min(1 << 52),
                ),
                constants: None,
                cluster: None,
                tables: HashMap::new(),
                forgotten: Forgotten::default(),
                services: HashMap::new(),
                tombstones: HashSet::new(),
            })),
        }
    }
}

impl MemoryState {
    fn check_epoch(&self, epoch: Epoch) -> Result<()> {
        if epoch == self.epoch && self.led {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Fenced, "another leader has taken over the store: stop leading")
            .with("epoch", epoch)
            .with("current", self.epoch))
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::PutConstants(constants) => self.constants = Some(*constants),
            Op::PutTable(table) => {
                self.tables.insert(table.table.clone(), table.clone());
            }
            Op::RemoveTable(table) => {
                self.tables.remove(table);
            }
            Op::PutForgotten(forgotten) => self.forgotten = *forgotten,
            Op::PutService(service) => {
                self.services.insert(service.id, service.clone());
            }
            Op::RemoveService(id) => {
                self.services.remove(id);
            }
            Op::PutTombstone(txn) => {
                self.tombstones.insert(*txn);
            }
            Op::RemoveTombstone(txn) => {
                self.tombstones.remove(txn);
            }
        }
    }
}

#[async_trait]
impl BindStore for MemoryStore {
    fn describe(&self) -> String {
        "memory:".to_owned()
    }

    async fn load(&self) -> Result<StoreState> {
        let inner = self.inner.lock();
        Ok(StoreState {
            epoch: inner.epoch,
            applied: inner.applied,
            constants: inner.constants,
            tables: inner.tables.values().cloned().collect(),
            forgotten: inner.forgotten,
            services: inner.services.values().cloned().collect(),
            tombstones: inner.tombstones.iter().copied().collect(),
            volatile_tokens_from: Some(inner.tokens_from),
        })
    }

    async fn acquire_leadership(
        &self,
        candidate: &Candidate,
        _ttl: Duration,
    ) -> Result<Leadership> {
        let mut inner = self.inner.lock();
        let clean = inner.clean;
        let epoch = inner.epoch.max(candidate.floor).next()?;
        inner.epoch = epoch;
        inner.clean = false;
        inner.led = true;
        let cluster = inner.cluster.filter(|_| !candidate.founds).unwrap_or(candidate.cluster);
        inner.cluster = Some(cluster);
        let acquired = Acquired::exclusive(epoch, inner.applied, clean, cluster);
        Ok(Leadership::Acquired(acquired))
    }

    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.inner.lock().check_epoch(epoch)?;
        Ok(Renewal::default())
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.check_epoch(epoch)?;
        inner.clean = true;
        inner.led = false;
        Ok(())
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        let mut inner = self.inner.lock();
        inner.check_epoch(epoch)?;
        if !number.follows(inner.applied) {
            return Err(Error::new(
                ErrorKind::Fenced,
                "the write's number does not follow the last applied one: read it before the next \
                    write",
            )
            .with("number", number)
            .with("applied", inner.applied));
        }
        for op in batch {
            inner.apply(op);
        }
        inner.applied = number;
        Ok(WriteAck::default())
    }

    async fn applied(&self) -> Result<Applied> {
        let inner = self.inner.lock();
        Ok(Applied { epoch: inner.epoch, number: inner.applied, lineage: Lineage::default() })
    }
}
