//! [`Records`]: what the records of a store become in the memory of a new leader. It reads no clock
//! and no store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::allocator::state::commits::{CommitControl, Tombstoned};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::{
    AllocatorState, BindEntry, Service, TableById, TableClaims, TableEntry,
};
use crate::clock::{Time, hi};
use crate::id::{BindVersion, FencingToken, NodeName, Nonce, ServiceId, TxnId};
use crate::store::{
    Batch, Op, ServiceRecord, ServiceState, StoreState, Succession, TableRecord, Turns,
};
use crate::sync::atomic::Ordering;

/// Facts about the leaderships before this one.
#[derive(Clone, Copy, Debug)]
pub(in crate::allocator) struct Past {
    /// Everything that they promised was promised before this.
    pub(in crate::allocator) now: Time,
    /// The longest lease that they promised.
    pub(in crate::allocator) lease_ttl: Duration,
    /// True if the store is open to this process alone.
    pub(in crate::allocator) exclusive: bool,
    /// True if the last leadership ended by a resignation.
    pub(in crate::allocator) clean: bool,
    /// True if the store has lost writes that a node had observed (L4).
    pub(in crate::allocator) went_back: bool,
}

impl Past {
    /// True after a clean stop of the only process: nothing of the past is in use.
    fn over(&self) -> bool {
        self.exclusive && self.clean
    }

    /// The lease of an incarnation that the store has in `state`.
    fn lease(&self, state: ServiceState) -> LeaseState {
        match state {
            // B1: a process that opens a store exclusively replaces the one before it. Else a live
            // incarnation counts as renewed now (B4).
            ServiceState::Live if !self.exclusive && !self.went_back => LeaseState::Live,
            ServiceState::Resigned => LeaseState::Resigned,
            _ if self.over() => LeaseState::Resigned,
            _ => LeaseState::Fenced,
        }
    }
}

/// The records of a store, in memory.
pub(in crate::allocator) struct Records {
    pub(in crate::allocator) state: AllocatorState,
    pub(in crate::allocator) names: HashMap<NodeName, ServiceId>,
    /// The changes that the store needs.
    pub(in crate::allocator) batch: Batch,
    past: Past,
    commits_max: usize,
    turns: Turns,
}

impl Records {
    /// No records yet. Each origin has room for `commits_max` transactions.
    pub(in crate::allocator) fn new(state: AllocatorState, past: Past, commits_max: usize) -> Self {
        Self {
            state,
            names: HashMap::new(),
            batch: Batch::new(),
            past,
            commits_max,
            turns: Turns::default(),
        }
    }

    /// Adds everything. Lets other tasks run meanwhile: there can be a million records.
    pub(in crate::allocator) async fn add(&mut self, loaded: StoreState) {
        for record in loaded.services {
            self.turns.next().await;
            self.add_service(record);
        }
        self.add_tombstones(loaded.tombstones).await;
        for table in loaded.tables {
            self.turns.next().await;
            self.add_table(table);
        }
    }

    fn add_service(&mut self, mut record: ServiceRecord) {
        let lease = self.past.lease(record.state);
        if record.state == ServiceState::Live && lease != LeaseState::Live {
            record.state = ServiceState::Fenced;
            self.batch.push(Op::PutService(record.clone()));
        }
        if lease == LeaseState::Live {
            self.names.insert(record.node.clone(), record.id);
        }
        let Past { lease_ttl, now, .. } = self.past;
        let commits = CommitControl::new(self.commits_max, &self.state.slots);
        let service = Arc::new(Service::new(record, lease_ttl, now, lease, commits));
        if lease != LeaseState::Live {
            service.commits.fence();
        }
        self.state.services.insert(service.id, Arc::clone(&service));
    }

    /// C4: the floors first, for they say the same as the tombstones below them.
    async fn add_tombstones(&mut self, tombstones: Vec<TxnId>) {
        let (floors, tombstones): (Vec<_>, Vec<_>) =
            tombstones.into_iter().partition(|txn| !txn.validates());
        for floor in &floors {
            self.turns.next().await;
            if let Some(origin) = self.live_origin(floor) {
                origin.commits.raise_floor(floor.number());
                origin.commits.floor_stored(floor.number());
            }
        }
        for txn in floors.into_iter().chain(tombstones) {
            self.turns.next().await;
            let stored = |origin: &Arc<Service>| origin.commits.stored_floor();
            match self.live_origin(&txn) {
                Some(origin) if txn.validates() && txn.number() >= stored(&origin) => {
                    restore_tombstone(&origin, txn, self.past.now);
                }
                Some(origin) if !txn.validates() && txn.number() == stored(&origin) => {}
                // Its origin is fenced or its floor is higher, which says the same.
                _ => self.batch.push(Op::RemoveTombstone(txn)),
            }
        }
    }

    fn live_origin(&self, txn: &TxnId) -> Option<Arc<Service>> {
        let origin = self.state.service(txn.origin);
        origin.filter(|origin| origin.lease.get().state == LeaseState::Live)
    }

    fn add_table(&mut self, table: TableRecord) {
        let state = &self.state;
        let binds: SmallVec<[BindEntry; 1]> = table
            .binds
            .iter()
            .enumerate()
            .map(|(partition, bind)| {
                let owner =
                    state.service(bind.owner).unwrap_or_else(|| self.unknown_owner(bind.owner));
                owner.references.fetch_add(1, Ordering::AcqRel);
                let (slots, partition) = (&state.slots, partition as u32);
                let bind = BindEntry::closed(slots, table.id, partition, owner, bind.version);
                bind.slot.pins().open();
                bind
            })
            .collect();
        let by_id = || TableById::new(table.table.clone(), &binds);
        state.ids.upsert(table.id, by_id, |_| ());
        let tokens_reserved_to = table.tokens_reserved_to;
        let entry = TableEntry {
            id: table.id,
            tokens_reserved_to,
            claims: self.claims(table.claimable_from, &binds, tokens_reserved_to),
            binds,
            pending: None,
            leaving: false,
        };
        state.tables.upsert(table.table, || entry, |_| ());
    }

    /// The claims for which a table was bound, as far as the store says it (P6). It does not say
    /// when the wait for them ends: it counts from now.
    fn claims(
        &self,
        from: BindVersion,
        binds: &[BindEntry],
        tokens_below: FencingToken,
    ) -> Option<TableClaims> {
        let is_set = from != BindVersion::default();
        let lease = binds.first().filter(|_| is_set)?.owner.lease.get();
        let until = match lease.state {
            LeaseState::Live => self.past.now + hi(self.past.lease_ttl),
            // Its owner is over: what counts is the version.
            _ => self.past.now,
        };
        Some(TableClaims { from, tokens_below, until, holders: None, waiters: Vec::new() })
    }

    /// An owner whose record is not in the store: it is as good as fenced, and its binds invalid.
    fn unknown_owner(&self, id: ServiceId) -> Arc<Service> {
        let record = ServiceRecord {
            id,
            node: NodeName::new("unknown").expect("a valid name"),
            nonce: Nonce::default(),
            address: String::new(),
            state: ServiceState::Fenced,
            succession: Succession::default(),
        };
        let lease = if self.past.over() { LeaseState::Resigned } else { LeaseState::Fenced };
        let commits = CommitControl::new(1, &self.state.slots);
        let Past { lease_ttl, now, .. } = self.past;
        let service = Arc::new(Service::new(record, lease_ttl, now, lease, commits));
        service.commits.fence();
        self.state.services.insert(id, Arc::clone(&service));
        service
    }
}

fn restore_tombstone(origin: &Service, txn: TxnId, now: Time) {
    let outcome = origin.commits.tombstone(txn, now, |outcome| outcome);
    match outcome {
        Ok(Tombstoned::ToWrite(generation)) => origin.commits.durable(txn, generation),
        // Over the limit of this run's settings: refuse all of the origin rather than forget one.
        Ok(Tombstoned::Full) | Err(_) => origin.fence(),
        Ok(
            Tombstoned::Committing | Tombstoned::Durable | Tombstoned::Fenced | Tombstoned::Over,
        ) => {}
    }
}
