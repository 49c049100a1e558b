//! The engine's pure state: every table of the node, every transaction that holds or waits, and
//! every call in flight.
//!
//! Nothing here reads a clock, awaits or wakes a task. Wakers are collected, and the shell fires
//! them after its mutex is free.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Waker;

use super::call::{CallId, Calls, Stage, bind_changed};
use super::counts::{EngineCounts, add};
use super::entry::{Position, Positions};
use super::hash::IdMap;
use super::lock_table::LockTable;
use super::memory::{entry_bytes, hold_bytes, queue_bytes};
use super::queue::CommitNumber;
use super::slices::{Released, Slice};
use super::txn::Txns;
use super::types::{EngineSettings, Grant};
use super::uncontended::{TableHandle, TablePlace, TablePlaces};
use crate::bind::{Bind, TokenBlock};
use crate::clock::Time;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BindVersion, TableId};
use crate::sync::Arc;

/// See the module.
#[derive(Debug)]
pub(super) struct EngineState {
    pub(super) settings: EngineSettings,
    /// The rows of all tables.
    pub(super) places: Arc<TablePlaces>,
    /// The table in each place that was made, with its version.
    in_places: Vec<Option<(TableId, BindVersion)>>,
    /// The places without a table.
    free_places: Vec<TablePlace>,
    pub(super) tables: IdMap<TableId, LockTable>,
    /// The tables in order, for lists.
    pub(super) table_ids: BTreeSet<TableId>,
    pub(super) txns: Txns,
    pub(super) calls: Calls,
    /// The last version of each table that is installed here (B5).
    versions: IdMap<TableId, BindVersion>,
    /// The highest version that was removed. Versions grow over all tables. So no version is served
    /// twice (B5), and no record is kept of a removed table.
    removed_to: BindVersion,
    sealed: Option<fn() -> Error>,
    /// The number of calls that wait for a lock or a token.
    pub(super) waiting_calls: usize,
    /// The number of holds that are known here.
    pub(super) held: usize,
    /// What has happened since it was last taken.
    pub(super) counts: EngineCounts,
    /// The calls that were granted while a task waited for them, in this hold of the mutex.
    pub(super) handed_over: Vec<CallId>,
    /// Estimated memory of all locks and waits, and the credit of all shards, in bytes. See
    /// `memory.rs`.
    pub(super) bytes: usize,
    /// The last commit with a timestamp.
    pub(super) commits: CommitNumber,
    pub(super) positions: Positions,
    /// The number of calls in flight that have ancestors.
    pub(super) nested_calls: usize,
    /// Nested calls that wait, and whose transaction or ancestor has got more locks since.
    pub(super) recheck: Vec<CallId>,
    /// Items that a holder or a waiter has left. Waiters that overlap them may have become
    /// grantable.
    pub(super) released: Vec<(TableId, Released)>,
    /// Waiters that may have become grantable, in queue order.
    pub(super) candidates: BTreeSet<(Position, CallId)>,
    /// Calls between two slices of their work, first come first.
    pub(super) unfinished: BTreeMap<Position, CallId>,
    /// Tables that have got tokens, for which calls may wait.
    pub(super) refilled: Vec<TableId>,
    /// The steps of this hold of the mutex.
    pub(super) slice: Slice,
    /// True while a thread goes on, hold after hold, until no work is pending.
    pub(super) draining: bool,
    /// The tasks to wake once the mutex is free.
    pub(super) wake: Vec<Waker>,
}

/// A lock call after its first slice.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the grant is the common case and must not cost an allocation"
)]
pub(super) enum Started {
    /// The call is over.
    Done(Result<Grant>),
    /// The call is kept under this id, from which its outcome is taken.
    Kept(CallId),
}

impl EngineState {
    pub(super) fn new(settings: EngineSettings, slice: Slice, places: Arc<TablePlaces>) -> Self {
        Self {
            settings,
            places,
            in_places: Vec::new(),
            free_places: Vec::new(),
            tables: IdMap::default(),
            table_ids: BTreeSet::new(),
            txns: Txns::default(),
            calls: Calls::default(),
            versions: IdMap::default(),
            removed_to: BindVersion::default(),
            sealed: None,
            waiting_calls: 0,
            held: 0,
            counts: EngineCounts::default(),
            handed_over: Vec::new(),
            bytes: 0,
            commits: CommitNumber::default(),
            positions: Positions::default(),
            nested_calls: 0,
            recheck: Vec::new(),
            released: Vec::new(),
            candidates: BTreeSet::new(),
            unfinished: BTreeMap::new(),
            refilled: Vec::new(),
            slice,
            draining: false,
            wake: Vec::new(),
        }
    }

    /// See [`LockEngine::install`](super::LockEngine::install).
    pub(super) fn install(
        &mut self,
        bind: Bind,
        tokens: Option<TokenBlock>,
        history_since: Option<Time>,
    ) -> Result<TableHandle> {
        self.check_not_sealed()?;
        let (table, version) = (bind.id, bind.version);
        // B5: a (table, version) is installed empty at most once.
        let last = self.versions.get(&table).copied().unwrap_or(self.removed_to);
        if version <= last {
            return Err(Error::new(
                ErrorKind::BindChanged,
                "this version of the table, or a later one, was already served here: bind it again",
            )
            .with("table", &bind.table)
            .with("version", version)
            .with("last", last));
        }
        self.drop_table(table);
        self.versions.insert(table, version);
        let place = self.free_places.pop().unwrap_or_else(|| {
            // `tables_max` is reached long before 2^32 tables.
            let place = TablePlace(self.in_places.len() as u32);
            self.places.make(place);
            self.in_places.push(None);
            place
        });
        self.in_places[place.0 as usize] = Some((table, version));
        self.places.get(place).open(version, history_since);
        let handle = TableHandle::new(bind.clone(), place, &self.places);
        let places = Arc::clone(&self.places);
        self.tables.insert(table, LockTable::new(bind, tokens, place, places));
        self.table_ids.insert(table);
        Ok(handle)
    }

    /// The table in a place, with its version.
    pub(super) fn table_in(&self, place: TablePlace) -> Option<(TableId, BindVersion)> {
        self.in_places[place.0 as usize]
    }

    pub(super) fn remove(&mut self, table: TableId, version: BindVersion) {
        if self.tables.get(&table).is_some_and(|installed| installed.bind.version == version) {
            self.drop_table(table);
            self.versions.remove(&table);
            self.removed_to = self.removed_to.max(version);
        }
    }

    fn drop_table(&mut self, table: TableId) {
        let Some(dropped) = self.tables.remove(&table) else { return };
        self.table_ids.remove(&table);
        let (bytes, granted) = dropped.table_rows().close();
        self.bytes -= bytes;
        add(&mut self.counts.granted, granted);
        self.in_places[dropped.place.0 as usize] = None;
        self.free_places.push(dropped.place);
        for id in dropped.calls.keys() {
            // A grant that was not received yet is invalid too (T4).
            if !matches!(self.calls[*id].stage, Stage::Done(Err(_))) {
                self.finish(*id, Err(bind_changed(table)));
            }
        }
        let mut holders = BTreeSet::new();
        dropped.for_each(|at, entry| {
            holders.extend(entry.holders().iter().map(|holder| holder.txn));
            let item = at.to_item();
            self.bytes -= entry_bytes(&item) + entry.queue().map_or(0, |_| queue_bytes(&item));
        });
        for id in holders {
            let Some(txn) = self.txns.get_mut(&id) else { continue };
            if let Some(items) = txn.take_table(table) {
                self.held -= items.len();
                self.bytes -= items.iter().map(hold_bytes).sum::<usize>();
            }
            self.forget_if_idle(id);
        }
    }

    pub(super) fn seal(&mut self, error: fn() -> Error) {
        self.sealed = Some(error);
        self.tables.values().for_each(|table| table.table_rows().set_open(false));
        for id in self.calls.ids() {
            match &self.calls[id].stage {
                // B2: a sealed owner returns nothing else, not even a grant that was made before.
                Stage::Waiting | Stage::AwaitingToken | Stage::Moving | Stage::Done(Ok(_)) => {
                    self.fail(id, error())
                }
                Stage::Failing(_) | Stage::Done(Err(_)) => {}
            }
        }
    }

    pub(super) const fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    pub(super) fn check_not_sealed(&self) -> Result<()> {
        self.sealed.map_or(Ok(()), |error| Err(error()))
    }

    pub(super) fn add_tokens(&mut self, table: TableId, version: BindVersion, block: TokenBlock) {
        let Some(installed) =
            self.tables.get_mut(&table).filter(|table| table.bind.version == version)
        else {
            return;
        };
        installed.tokens.add(block);
        self.refilled.push(table);
    }
}
