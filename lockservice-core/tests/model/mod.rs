//! The model of `engine_model.rs`: lists, and loops over them.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the lists, and the ends of holds and calls |
//! | `call.rs` | the way of a call, and its memory |
//! | `graph.rs` | conflicts, cycles and the order of the queue |
//! | `check.rs` | the comparison with the engine |
//! | `view.rs` | the state as it is compared with the engine's |

mod call;
mod check;
mod graph;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockservice_core::allocator::TokenBlock;
use lockservice_core::table::{EngineSettings, Grant};
use lockservice_core::{BindVersion, CommitTimestamp, ErrorKind, FencingToken, LockItem, LockMode};

use super::Client;

#[derive(Clone, Debug)]
struct Hold {
    table: usize,
    txn: usize,
    item: LockItem,
    mode: LockMode,
    token: u64,
    pending: bool,
    /// The token of the shared hold that an upgrade lies on; 0 if there is none.
    beneath: u64,
}

#[derive(Clone, Debug)]
struct Call {
    txn: usize,
    table: usize,
    items: Vec<LockItem>,
    next: usize,
    mode: LockMode,
    changes: Vec<(LockItem, Option<(LockMode, FencingToken)>)>,
    covered: u64,
    waited: bool,
    prev_commit_ts: Option<CommitTimestamp>,
}

/// The progress of a call.
enum Advance {
    Complete,
    /// Its next item is not free; true if it would be an upgrade.
    Blocked(bool),
    /// A limit is reached.
    Full,
}

#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: u64,
    pub(super) waited: bool,
    pub(super) prev_commit_ts: Option<CommitTimestamp>,
    pub(super) table_commit_ts: Option<CommitTimestamp>,
    pub(super) tokens_left: u64,
    pub(super) changes: Vec<(LockItem, Option<(LockMode, FencingToken)>)>,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Granted { table: usize, grant: Granted },
    Failed(ErrorKind),
}

#[derive(Default)]
struct Table {
    installed: bool,
    version: BindVersion,
    tokens: VecDeque<u64>,
    commit_ts: Option<CommitTimestamp>,
}

pub(super) struct Model {
    settings: EngineSettings,
    tables: Vec<Table>,
    holds: Vec<Hold>,
    /// Waiting calls, in queue order.
    queue: Vec<Call>,
    /// Calls that wait for a token.
    awaiting_token: Vec<Call>,
    /// Outcomes not received yet.
    pub(super) done: BTreeMap<usize, Outcome>,
    /// Cycles that the engine reported and that were found to be real.
    explained: BTreeSet<usize>,
    /// Calls that were over when they were made. Later events do not change their outcome.
    at_once: BTreeSet<usize>,
}

impl Model {
    pub(super) fn new(tables: usize, settings: EngineSettings) -> Self {
        Self {
            settings,
            tables: (0..tables).map(|_| Table::default()).collect(),
            holds: Vec::new(),
            queue: Vec::new(),
            awaiting_token: Vec::new(),
            done: BTreeMap::new(),
            explained: BTreeSet::new(),
            at_once: BTreeSet::new(),
        }
    }

    pub(super) fn is_installed(&self, table: usize) -> bool {
        self.tables[table].installed
    }

    pub(super) fn version(&self, table: usize) -> BindVersion {
        self.tables[table].version
    }

    pub(super) fn items(&self, txn: usize, table: usize) -> Vec<LockItem> {
        let own = self.holds.iter().filter(|hold| hold.txn == txn && hold.table == table);
        own.map(|hold| hold.item.clone()).collect()
    }

    pub(super) fn install(
        &mut self,
        table: usize,
        version: BindVersion,
        block: Option<TokenBlock>,
    ) {
        self.tables[table] =
            Table { installed: true, version, tokens: VecDeque::new(), commit_ts: None };
        if let Some(block) = block {
            self.tables[table].tokens.extend(block.next.get()..block.end.get());
        }
    }

    pub(super) fn remove(&mut self, table: usize) {
        self.tables[table].installed = false;
        self.holds.retain(|hold| hold.table != table);
        for list in [&mut self.queue, &mut self.awaiting_token] {
            for call in list.iter().filter(|call| call.table == table) {
                self.done.insert(call.txn, Outcome::Failed(ErrorKind::BindChanged));
            }
            list.retain(|call| call.table != table);
        }
        for (txn, outcome) in &mut self.done {
            if !self.at_once.contains(txn)
                && matches!(outcome, Outcome::Granted { table: at, .. } if *at == table)
            {
                *outcome = Outcome::Failed(ErrorKind::BindChanged);
            }
        }
    }

    pub(super) fn add_tokens(&mut self, table: usize, block: TokenBlock) {
        if self.tables[table].installed {
            self.tables[table].tokens.extend(block.next.get()..block.end.get());
            while !self.tables[table].tokens.is_empty() {
                let Some(at) = self.awaiting_token.iter().position(|call| call.table == table)
                else {
                    break;
                };
                let call = self.awaiting_token.remove(at);
                self.complete(call);
            }
        }
    }

    pub(super) fn fail(&mut self, txn: usize, kind: ErrorKind) {
        let found = [&mut self.queue, &mut self.awaiting_token].into_iter().find_map(|list| {
            let at = list.iter().position(|call| call.txn == txn)?;
            Some(list.remove(at))
        });
        if let Some(call) = found {
            self.roll_back_call(call);
            self.done.insert(txn, Outcome::Failed(kind));
        }
    }

    pub(super) fn promote(&mut self, clients: &mut [Client]) {
        while let Some(at) = (0..self.queue.len()).find(|at| !self.is_blocked(*at)) {
            let mut call = self.queue.remove(at);
            let advanced =
                if self.take(&mut call) { self.advance(&mut call) } else { Advance::Full };
            match advanced {
                Advance::Complete => self.complete(call),
                Advance::Blocked(upgrade) => self.begin_wait(call, upgrade, clients),
                Advance::Full => {
                    self.done.insert(call.txn, Outcome::Failed(ErrorKind::ResourceExhausted));
                    self.roll_back_call(call);
                }
            }
        }
    }

    pub(super) fn abandon(&mut self, txn: usize, clients: &mut [Client]) {
        match self.done.remove(&txn) {
            Some(Outcome::Granted { table, grant }) => {
                for (item, _) in grant.changes {
                    self.roll_back_item(txn, table, &item, Some(grant.token));
                }
            }
            Some(Outcome::Failed(_)) => {}
            None => {
                self.fail(txn, ErrorKind::Cancelled);
                self.done.remove(&txn);
            }
        }
        self.promote(clients);
    }

    pub(super) fn roll_back(
        &mut self,
        txn: usize,
        table: usize,
        grant: &Grant,
        clients: &mut [Client],
    ) {
        if self.tables[table].installed && grant.bind.version == self.tables[table].version {
            for (item, _) in grant.changes() {
                self.roll_back_item(txn, table, &item, Some(grant.token.get()));
            }
        }
        self.promote(clients);
    }

    pub(super) fn unlock(
        &mut self,
        txn: usize,
        table: usize,
        items: &[LockItem],
        ts: Option<CommitTimestamp>,
        clients: &mut [Client],
    ) -> usize {
        let named =
            |hold: &Hold| hold.txn == txn && hold.table == table && items.contains(&hold.item);
        self.holds.iter_mut().filter(|hold| named(hold) && hold.pending).for_each(drop_beneath);
        let is_released = |hold: &Hold| named(hold) && !hold.pending;
        let released: Vec<Hold> =
            self.holds.iter().filter(|hold| is_released(hold)).cloned().collect();
        if ts.is_some() && !released.is_empty() {
            self.tables[table].commit_ts = self.tables[table].commit_ts.max(ts);
            // Its own waiting call learns of it too, which is harmless.
            for call in self.queue.iter_mut().filter(|call| call.table == table) {
                let conflicts = |hold: &Hold| {
                    !hold.mode.is_compatible(call.mode)
                        && hold.item.overlaps(&call.items[call.next])
                };
                if released.iter().any(conflicts) {
                    call.prev_commit_ts = call.prev_commit_ts.max(ts);
                }
            }
        }
        self.holds.retain(|hold| !is_released(hold));
        self.promote(clients);
        released.len()
    }

    pub(super) fn unlock_all(
        &mut self,
        txn: usize,
        ts: Option<CommitTimestamp>,
        clients: &mut [Client],
    ) {
        self.fail(txn, ErrorKind::Cancelled);
        if matches!(self.done.get(&txn), Some(Outcome::Granted { .. }))
            && !self.at_once.contains(&txn)
        {
            self.done.insert(txn, Outcome::Failed(ErrorKind::Cancelled));
        }
        if ts.is_some() {
            for hold in self.holds.iter().filter(|hold| hold.txn == txn) {
                let table = &mut self.tables[hold.table];
                table.commit_ts = table.commit_ts.max(ts);
            }
            for at in 0..self.queue.len() {
                if self.conflicting_holders(&self.queue[at]).contains(&txn) {
                    self.queue[at].prev_commit_ts = self.queue[at].prev_commit_ts.max(ts);
                }
            }
        }
        self.holds.retain(|hold| hold.txn != txn);
        self.promote(clients);
    }
}

/// Forgets the hold beneath an upgrade. Only its call knows of an upgrade in flight then.
fn drop_beneath(hold: &mut Hold) {
    if hold.pending {
        hold.token = 0;
    }
    hold.beneath = 0;
}
