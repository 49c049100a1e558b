//! The model: lists, and loops over them.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | the lists, and the ends of holds and calls |
//! | `call.rs` | the way of a call |
//! | `memory.rs` | the memory that the engine counts |
//! | `graph.rs` | conflicts, cycles and the order of the queue |
//! | `check.rs` | the comparison with the engine |
//! | `view.rs` | the state as it is compared with the engine's |

mod call;
mod check;
mod graph;
mod memory;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockservice_core::allocator::TokenBlock;
use lockservice_core::table::{Commit, EngineSettings, Grant, WaitPolicy};
use lockservice_core::{BindVersion, CommitTimestamp, ErrorKind, FencingToken, LockItem, LockMode};

use crate::Client;

#[derive(Clone, Debug)]
struct Hold {
    table: usize,
    txn: usize,
    item: LockItem,
    mode: LockMode,
    token: u64,
    pending: bool,
    /// The call that locked or upgraded it.
    call: u64,
    /// The largest token of upgrades that have ended on it, and that were used.
    ended: u64,
    /// It is kept in the engine's state, where it takes more memory than in a shard.
    in_state: bool,
    /// The holds that an upgrade lies on, with their tokens and calls, the weakest first.
    beneath: Vec<(LockMode, u64, u64)>,
}

#[derive(Clone, Debug)]
struct Call {
    txn: usize,
    /// Its number.
    call: u64,
    table: usize,
    items: Vec<LockItem>,
    next: usize,
    mode: LockMode,
    changes: Vec<(LockItem, Option<(LockMode, FencingToken)>)>,
    covered: u64,
    waited: bool,
    /// It locks a row at once, which is then kept in a shard.
    in_shard: bool,
    /// It takes the item that it waited for, whose entry is there still.
    promoted: bool,
    prev_commit: Option<Commit>,
    wait: WaitPolicy,
    skipped: Vec<LockItem>,
    escalate: bool,
    /// The range that its transaction's rows became, and its token.
    escalated: Option<(LockItem, u64)>,
    /// When it came to an earlier incarnation, in milliseconds.
    came_earlier: Option<u64>,
    /// Its part of the queue.
    part: Part,
}

/// The parts of the queue, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Part {
    Upgrades,
    /// Those that came to an earlier incarnation, by the millisecond in which they did.
    Earlier(u64),
    All,
}

impl Call {
    fn learn(&mut self, commit: Commit) {
        let known = self.prev_commit.unwrap_or(Commit::at(commit.timestamp));
        self.prev_commit = Some(Commit {
            timestamp: known.timestamp.max(commit.timestamp),
            definition_changed: known.definition_changed || commit.definition_changed,
        });
    }
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
    pub(super) version: BindVersion,
    pub(super) token: u64,
    pub(super) waited: bool,
    pub(super) prev_commit: Option<Commit>,
    pub(super) table_commit_ts: Option<CommitTimestamp>,
    pub(super) table_definition_ts: Option<CommitTimestamp>,
    pub(super) skipped: Vec<LockItem>,
    pub(super) escalated: Option<LockItem>,
    pub(super) tokens_left: u64,
    pub(super) changes: Vec<(LockItem, Option<(LockMode, FencingToken)>)>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a model may be slow")]
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
    definition_ts: Option<CommitTimestamp>,
}

impl Table {
    fn note_commit(&mut self, commit: Commit) {
        self.commit_ts = self.commit_ts.max(Some(commit.timestamp));
        if commit.definition_changed {
            self.definition_ts = self.definition_ts.max(Some(commit.timestamp));
        }
    }
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
    /// The number of calls that were made.
    calls: u64,
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
            calls: 0,
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
        self.tables[table] = Table { installed: true, version, ..Table::default() };
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
            call.promoted = true;
            let advanced = match self.take_or_escalate(&mut call) {
                Some(false) => {
                    call.promoted = false;
                    self.advance(&mut call)
                }
                Some(true) => Advance::Complete,
                None => Advance::Full,
            };
            call.promoted = false;
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
                let is_served = self.tables[table].version == grant.version;
                for (item, _) in grant.changes.into_iter().rev() {
                    if self.at_once.contains(&txn) && is_served && self.is_installed(table) {
                        // It is rolled back as one that was received.
                        self.inflate(table, &item);
                    }
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
            for (item, _) in grant.changes().into_iter().rev() {
                self.inflate(table, &item);
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
        commit: Option<Commit>,
        clients: &mut [Client],
    ) -> usize {
        let named =
            |hold: &Hold| hold.txn == txn && hold.table == table && items.contains(&hold.item);
        self.holds
            .iter_mut()
            .filter(|hold| named(hold) && hold.pending)
            .for_each(Hold::drop_beneath);
        let is_released = |hold: &Hold| named(hold) && !hold.pending;
        let released: Vec<Hold> =
            self.holds.iter().filter(|hold| is_released(hold)).cloned().collect();
        if let Some(commit) = commit.filter(|_| !released.is_empty()) {
            self.tables[table].note_commit(commit);
            // Its own waiting call learns of it too, which is harmless.
            for call in self.queue.iter_mut().filter(|call| call.table == table) {
                let conflicts = |hold: &Hold| {
                    !hold.mode.is_compatible(call.mode)
                        && hold.item.overlaps(&call.items[call.next])
                };
                if released.iter().any(conflicts) {
                    call.learn(commit);
                }
            }
        }
        self.holds.retain(|hold| !is_released(hold));
        self.promote(clients);
        released.len()
    }

    /// True if the call of a transaction was over when it was made, and was not received yet.
    pub(super) fn is_over_at_once(&self, txn: usize) -> bool {
        self.at_once.contains(&txn)
    }

    pub(super) fn savepoint(&self) -> u64 {
        self.calls
    }

    /// Ends what calls after the savepoint were granted. Returns how many items were released.
    pub(super) fn roll_back_to(
        &mut self,
        txn: usize,
        savepoint: u64,
        clients: &mut [Client],
    ) -> usize {
        let before = self.holds.len();
        self.holds.retain_mut(|hold| {
            while hold.txn == txn && hold.call > savepoint {
                if !hold.end_upgrade() {
                    return false;
                }
            }
            true
        });
        let released = before - self.holds.len();
        self.promote(clients);
        released
    }

    /// Makes holds weaker. Returns how many were stronger.
    pub(super) fn downgrade(
        &mut self,
        txn: usize,
        table: usize,
        items: &[LockItem],
        mode: LockMode,
        clients: &mut [Client],
    ) -> usize {
        let mut downgraded = 0;
        for hold in &mut self.holds {
            let named = hold.txn == txn && hold.table == table && items.contains(&hold.item);
            if named && !hold.pending && hold.mode > mode {
                downgraded += 1;
                while hold.beneath.last().is_some_and(|(beneath, ..)| *beneath >= mode) {
                    hold.end_upgrade();
                }
                hold.mode = mode;
            }
        }
        self.promote(clients);
        downgraded
    }

    pub(super) fn unlock_all(
        &mut self,
        txn: usize,
        commit: Option<Commit>,
        clients: &mut [Client],
    ) {
        self.fail(txn, ErrorKind::Cancelled);
        if matches!(self.done.get(&txn), Some(Outcome::Granted { .. }))
            && !self.at_once.contains(&txn)
        {
            self.done.insert(txn, Outcome::Failed(ErrorKind::Cancelled));
        }
        if let Some(commit) = commit {
            for hold in self.holds.iter().filter(|hold| hold.txn == txn) {
                self.tables[hold.table].note_commit(commit);
            }
            for at in 0..self.queue.len() {
                if self.conflicting_holders(&self.queue[at]).contains(&txn) {
                    self.queue[at].learn(commit);
                }
            }
        }
        self.holds.retain(|hold| hold.txn != txn);
        self.promote(clients);
    }
}

impl Hold {
    /// The first call whose grant is left.
    fn first_call(&self) -> u64 {
        self.beneath.first().map_or(self.call, |(_, _, call)| *call)
    }

    /// The token under which it is held. An upgrade in flight shows that of the hold that it lies
    /// on.
    fn shown(&self) -> u64 {
        let beneath = || self.beneath.last().map_or(0, |(_, token, _)| *token);
        self.ended.max(if self.pending { beneath() } else { self.token })
    }

    /// Forgets the holds beneath an upgrade. Only its call knows of an upgrade in flight then.
    fn drop_beneath(&mut self) {
        self.beneath.clear();
        self.ended = 0;
    }

    /// As `uncover`, of an upgrade that was received.
    fn end_upgrade(&mut self) -> bool {
        let shown = self.shown();
        let is_left = self.uncover();
        if is_left {
            self.ended = shown;
        }
        is_left
    }

    /// Ends an upgrade. False if it lies on nothing.
    fn uncover(&mut self) -> bool {
        let Some((mode, token, call)) = self.beneath.pop() else { return false };
        (self.mode, self.token, self.call, self.pending) = (mode, token, call, false);
        true
    }
}
