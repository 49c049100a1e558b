//! The model of `engine_model.rs`: lists, and loops over them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use lockservice_core::allocator::TokenBlock;
use lockservice_core::table::{EngineSettings, Grant, VictimPolicy, WaitPolicy};
use lockservice_core::{
    BindVersion, DeadlockEdge, ErrorKind, FencingToken, Key, LockItem, LockMode,
};

use super::{Client, number, poll_all};

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
    prev_commit_ts: Option<u64>,
}

/// How far a call got.
enum Advance {
    Complete,
    /// Its next item is not free; true if it would be an upgrade.
    Blocked(bool),
    /// A limit is reached.
    Full,
}

/// What the engine counts a hold with.
fn hold_bytes(item: &LockItem) -> usize {
    240 + 2 * heap_bytes(item)
}

/// What the engine counts a wait with.
fn wait_bytes(call: &Call) -> usize {
    320 + call.items.iter().map(|item| size_of::<LockItem>() + heap_bytes(item)).sum::<usize>()
}

/// Short keys are kept inline.
fn heap_bytes(item: &LockItem) -> usize {
    let bytes = |bytes: usize| if bytes > 22 { bytes + 16 } else { 0 };
    match item {
        LockItem::Row(key) => bytes(key.as_bytes().len()),
        LockItem::Range(_) => {
            let bound = |bound| match bound {
                Bound::Unbounded => 0,
                Bound::Included(key) | Bound::Excluded(key) => bytes(Key::as_bytes(key).len()),
            };
            bound(item.start()) + bound(item.end())
        }
    }
}

#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: u64,
    pub(super) waited: bool,
    pub(super) prev_commit_ts: Option<u64>,
    pub(super) table_commit_ts: Option<u64>,
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
    commit_ts: Option<u64>,
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
    /// Calls that were over when they were made: what comes later changes nothing about their
    /// outcome.
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

    #[allow(clippy::too_many_arguments, reason = "the fields of a request")]
    pub(super) fn lock(
        &mut self,
        txn: usize,
        table: usize,
        version: BindVersion,
        mut items: Vec<LockItem>,
        mode: LockMode,
        wait: WaitPolicy,
        clients: &mut [Client],
    ) {
        self.at_once.insert(txn);
        if !self.tables[table].installed || self.tables[table].version != version {
            // A call that is over at once: the clients that are busy have not received it.
            self.done.insert(txn, Outcome::Failed(ErrorKind::BindChanged));
            return;
        }
        items.sort_by(|a, b| {
            start_of(a)
                .cmp(&start_of(b))
                .then(end_of(b).cmp(&end_of(a)))
                .then(is_range(a).cmp(&is_range(b)))
        });
        items.dedup();
        let changes = Vec::new();
        let mut call = Call {
            txn,
            table,
            items,
            next: 0,
            mode,
            changes,
            covered: 0,
            waited: false,
            prev_commit_ts: None,
        };
        let refused = match self.advance(&mut call) {
            Advance::Complete if self.lacks_token(&call) && wait == WaitPolicy::NoWait => {
                Some(ErrorKind::Unavailable)
            }
            Advance::Complete if self.lacks_token(&call) && !self.has_room_to_wait(&call) => {
                Some(ErrorKind::ResourceExhausted)
            }
            Advance::Blocked(_) if wait == WaitPolicy::NoWait => Some(ErrorKind::Conflict),
            Advance::Blocked(_) if !self.has_room_to_wait(&call) || !self.can_ever_fit(&call) => {
                Some(ErrorKind::ResourceExhausted)
            }
            Advance::Full => Some(ErrorKind::ResourceExhausted),
            Advance::Complete => {
                self.complete(call.clone());
                None
            }
            Advance::Blocked(upgrade) => {
                self.begin_wait(call.clone(), upgrade, clients);
                None
            }
        };
        if let Some(kind) = refused {
            self.revert(call);
            self.done.insert(txn, Outcome::Failed(kind));
        }
        self.settle(clients);
        if !self.done.contains_key(&txn) {
            self.at_once.remove(&txn);
        }
    }

    /// What all holds and waits are counted with, and what those of one transaction are. `call` is
    /// in no list at the moment.
    fn bytes(&self, call: &Call) -> (usize, usize) {
        let waits: usize = self.queue.iter().chain(&self.awaiting_token).map(wait_bytes).sum();
        let holds: usize = self.holds.iter().map(|hold| hold_bytes(&hold.item)).sum();
        let own = self.holds.iter().filter(|hold| hold.txn == call.txn);
        let wait = if call.waited { wait_bytes(call) } else { 0 };
        (holds + waits + wait, own.map(|hold| hold_bytes(&hold.item)).sum())
    }

    fn has_room_to_wait(&self, call: &Call) -> bool {
        let in_flight = self.queue.len() + self.awaiting_token.len();
        in_flight < self.settings.waiters_max
            && self.bytes(call).0 + wait_bytes(call) <= self.settings.lock_bytes_max
    }

    /// True if the limits let the call have the rest of its items when nobody else is there.
    fn can_ever_fit(&self, call: &Call) -> bool {
        let own = |exact: bool, item: &LockItem| {
            let mut own =
                self.holds.iter().filter(|hold| hold.txn == call.txn && hold.table == call.table);
            own.any(|hold| {
                if exact {
                    hold.item == *item
                } else {
                    hold.mode >= call.mode && hold.item.covers(item)
                }
            })
        };
        let mut new: Vec<&LockItem> = Vec::new();
        let mut later: Vec<&LockItem> = Vec::new();
        for item in &call.items[call.next..] {
            let covered = own(false, item) || later.iter().any(|earlier| earlier.covers(item));
            later.push(item);
            if !covered && !own(true, item) {
                new.push(item);
            }
        }
        let needed = self.bytes(call).1 + new.into_iter().map(hold_bytes).sum::<usize>();
        needed <= self.settings.txn_lock_bytes_max
            && needed + wait_bytes(call) <= self.settings.lock_bytes_max
    }

    fn lacks_token(&self, call: &Call) -> bool {
        !call.changes.is_empty() && self.tables[call.table].tokens.is_empty()
    }

    /// Takes what is free.
    fn advance(&mut self, call: &mut Call) -> Advance {
        while call.next < call.items.len() {
            let item = &call.items[call.next];
            let own =
                self.holds.iter().filter(|hold| hold.txn == call.txn && hold.table == call.table);
            let own: Vec<&Hold> = own.filter(|hold| hold.item.covers(item)).collect();
            if let Some(token) =
                own.iter().filter(|hold| hold.mode >= call.mode).map(|hold| hold.token).max()
            {
                call.covered = call.covered.max(token);
                call.next += 1;
                continue;
            }
            let upgrade = !own.is_empty();
            let behind = (0..self.queue.len()).filter(|at| in_the_way(&self.queue[*at], call));
            let must_wait =
                !upgrade && behind.into_iter().any(|at| !self.reaches(at, call.txn, true));
            if !self.holders_in_the_way(call).is_empty() || must_wait {
                return Advance::Blocked(upgrade);
            }
            if !self.take(call) {
                return Advance::Full;
            }
        }
        Advance::Complete
    }

    /// False if a limit is reached.
    fn take(&mut self, call: &mut Call) -> bool {
        let (all, own) = self.bytes(call);
        let item = call.items[call.next].clone();
        let bytes = hold_bytes(&item);
        let full = all + bytes > self.settings.lock_bytes_max
            || own + bytes > self.settings.txn_lock_bytes_max;
        let exact = |hold: &&mut Hold| {
            hold.txn == call.txn && hold.table == call.table && hold.item == item
        };
        match self.holds.iter_mut().find(exact) {
            Some(hold) => {
                call.changes.push((item, Some((hold.mode, FencingToken::new(hold.token)))));
                hold.beneath = hold.token;
                hold.mode = call.mode;
                hold.pending = true;
            }
            None if full => return false,
            None => {
                let (table, txn, mode) = (call.table, call.txn, call.mode);
                self.holds.push(Hold {
                    table,
                    txn,
                    item: item.clone(),
                    mode,
                    token: 0,
                    pending: true,
                    beneath: 0,
                });
                call.changes.push((item, None));
            }
        }
        call.next += 1;
        true
    }

    fn complete(&mut self, call: Call) {
        let table = &mut self.tables[call.table];
        let token =
            if call.changes.is_empty() { Some(call.covered) } else { table.tokens.pop_front() };
        let Some(token) = token else {
            self.awaiting_token.push(call);
            return;
        };
        for (item, _) in &call.changes {
            let exact = |hold: &&mut Hold| {
                hold.txn == call.txn && hold.table == call.table && hold.item == *item
            };
            let hold = self.holds.iter_mut().find(exact).expect("what a call took is held");
            hold.token = token;
            hold.pending = false;
        }
        let grant = Granted {
            token,
            waited: call.waited,
            prev_commit_ts: call.prev_commit_ts,
            table_commit_ts: table.commit_ts,
            tokens_left: table.tokens.len() as u64,
            changes: call.changes,
        };
        self.done.insert(call.txn, Outcome::Granted { table: call.table, grant });
    }

    fn revert(&mut self, call: Call) {
        for (item, _) in call.changes {
            self.roll_back_item(call.txn, call.table, &item, None);
        }
    }

    /// Takes back what a grant under `token` did to a hold, or without one what the call in flight
    /// did.
    fn roll_back_item(&mut self, txn: usize, table: usize, item: &LockItem, token: Option<u64>) {
        let exact = |hold: &Hold| hold.txn == txn && hold.table == table && hold.item == *item;
        let Some(at) = self.holds.iter().position(exact) else { return };
        let hold = &mut self.holds[at];
        if token.map_or(hold.pending, |token| hold.token == token && !hold.pending) {
            if hold.beneath == 0 {
                self.holds.remove(at);
            } else {
                (hold.mode, hold.token, hold.pending, hold.beneath) =
                    (LockMode::Shared, hold.beneath, false, 0);
            }
        } else if token.is_some_and(|token| hold.beneath == token) {
            forget_beneath(hold);
        }
    }

    fn begin_wait(&mut self, mut call: Call, upgrade: bool, clients: &mut [Client]) {
        let txn = call.txn;
        call.waited = true;
        if upgrade {
            self.queue.insert(0, call);
        } else {
            self.queue.push(call);
        }
        let at = self.queue.iter().position(|call| call.txn == txn).expect("just put there");
        if self.reaches(at, txn, false) {
            // One victim, however many cycles there are.
            let victim = self.explain(txn, clients);
            self.fail(victim, ErrorKind::Deadlock);
        }
        if let Some(at) = self.queue.iter().position(|call| call.txn == txn)
            && self.reaches(at, txn, true)
        {
            self.reorder(at);
        }
    }

    /// Which member of a cycle the engine told, having checked that there is that cycle and that
    /// the policy names that member.
    fn explain(&mut self, txn: usize, clients: &mut [Client]) -> usize {
        let mut reported = poll_all(clients);
        reported
            .retain(|(victim, cycle)| !self.explained.contains(victim) && self.is_real(cycle, txn));
        let all = reported.clone();
        let is_member = |who: usize, cycle: &[DeadlockEdge]| {
            cycle.iter().any(|edge| number(edge.waiter) == who)
        };
        // The first one told is in no cycle that was found after it.
        let first = reported.into_iter().find(|(victim, _)| {
            all.iter().all(|(other, cycle)| other == victim || !is_member(*victim, cycle))
        });
        let (victim, cycle) =
            first.unwrap_or_else(|| panic!("a deadlock of {txn} was not told to anybody"));
        let cost = |who: usize| match self.settings.victim {
            VictimPolicy::FewestLocks => {
                (self.holds.iter().filter(|hold| hold.txn == who).count(), usize::MAX - who)
            }
            _ => (0, usize::MAX - who),
        };
        let members = cycle.iter().map(|edge| number(edge.waiter));
        let expected =
            members.filter(|who| !self.closes_without(txn, *who)).min_by_key(|who| cost(*who));
        assert_eq!(Some(victim), expected, "the victim of {cycle:?}");
        self.explained.insert(victim);
        victim
    }

    fn is_real(&self, cycle: &[DeadlockEdge], txn: usize) -> bool {
        let closes = cycle
            .iter()
            .zip(cycle.iter().cycle().skip(1))
            .all(|(edge, next)| edge.holder == next.waiter);
        closes
            && cycle.iter().any(|edge| number(edge.waiter) == txn)
            && cycle.iter().all(|edge| {
                self.queue.iter().any(|call| {
                    call.txn == number(edge.waiter)
                        && call.items[call.next].to_string() == edge.item
                        && self.holders_in_the_way(call).contains(&number(edge.holder))
                })
            })
    }

    /// True if a transaction waits for itself, over holders, also if `without` did not wait.
    fn closes_without(&self, txn: usize, without: usize) -> bool {
        let mut queue = self.queue.clone();
        queue.retain(|call| call.txn != without);
        let rest = Self { queue, holds: self.holds.clone(), ..Self::new(0, self.settings) };
        rest.queue
            .iter()
            .position(|call| call.txn == txn)
            .is_some_and(|at| rest.reaches(at, txn, false))
    }

    /// Those that wait for `at` and for which it waits are brought into an order with those first
    /// whose locks others wait for; they and all others that wait for `at` go behind everybody
    /// else.
    fn reorder(&mut self, at: usize) {
        let txn = self.queue[at].txn;
        let waits_for_it = |from: &usize| *from == at || self.reaches(*from, txn, true);
        let waiting: Vec<usize> = (0..self.queue.len()).filter(waits_for_it).collect();
        let reached = self.reached(at, true);
        let on_cycle: Vec<usize> =
            waiting.iter().copied().filter(|at| reached.contains(at)).collect();
        let mut order: Vec<usize> =
            (0..self.queue.len()).filter(|at| !waiting.contains(at)).collect();
        fn visit(model: &Model, at: usize, on_cycle: &[usize], order: &mut Vec<usize>) {
            if order.contains(&at) || !on_cycle.contains(&at) {
                return;
            }
            for holder in on_cycle {
                if model.holders_in_the_way(&model.queue[at]).contains(&model.queue[*holder].txn) {
                    visit(model, *holder, on_cycle, order);
                }
            }
            order.push(at);
        }
        for member in &on_cycle {
            visit(self, *member, &on_cycle, &mut order);
        }
        order.extend(waiting.iter().copied().filter(|at| !on_cycle.contains(at)));
        self.queue = order.into_iter().map(|at| self.queue[at].clone()).collect();
    }

    fn fail(&mut self, txn: usize, kind: ErrorKind) {
        let found = [&mut self.queue, &mut self.awaiting_token].into_iter().find_map(|list| {
            let at = list.iter().position(|call| call.txn == txn)?;
            Some(list.remove(at))
        });
        if let Some(call) = found {
            self.revert(call);
            self.done.insert(txn, Outcome::Failed(kind));
        }
    }

    fn settle(&mut self, clients: &mut [Client]) {
        while let Some(at) = (0..self.queue.len()).find(|at| !self.is_blocked(*at)) {
            let mut call = self.queue.remove(at);
            let advanced =
                if self.take(&mut call) { self.advance(&mut call) } else { Advance::Full };
            match advanced {
                Advance::Complete => self.complete(call),
                Advance::Blocked(upgrade) => self.begin_wait(call, upgrade, clients),
                Advance::Full => {
                    self.done.insert(call.txn, Outcome::Failed(ErrorKind::ResourceExhausted));
                    self.revert(call);
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
        self.settle(clients);
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
        self.settle(clients);
    }

    pub(super) fn unlock(
        &mut self,
        txn: usize,
        table: usize,
        items: &[LockItem],
        ts: Option<u64>,
        clients: &mut [Client],
    ) -> usize {
        let named =
            |hold: &Hold| hold.txn == txn && hold.table == table && items.contains(&hold.item);
        self.holds.iter_mut().filter(|hold| named(hold) && hold.pending).for_each(forget_beneath);
        let goes = |hold: &Hold| named(hold) && !hold.pending;
        let released: Vec<Hold> = self.holds.iter().filter(|hold| goes(hold)).cloned().collect();
        if ts.is_some() && !released.is_empty() {
            self.tables[table].commit_ts = self.tables[table].commit_ts.max(ts);
            // Its own call that waits, for others, is told too: to know its own commit harms
            // nobody.
            for call in self.queue.iter_mut().filter(|call| call.table == table) {
                let in_the_way = |hold: &Hold| {
                    !hold.mode.is_compatible(call.mode)
                        && hold.item.overlaps(&call.items[call.next])
                };
                if released.iter().any(in_the_way) {
                    call.prev_commit_ts = call.prev_commit_ts.max(ts);
                }
            }
        }
        self.holds.retain(|hold| !goes(hold));
        self.settle(clients);
        released.len()
    }

    pub(super) fn unlock_all(&mut self, txn: usize, ts: Option<u64>, clients: &mut [Client]) {
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
                if self.holders_in_the_way(&self.queue[at]).contains(&txn) {
                    self.queue[at].prev_commit_ts = self.queue[at].prev_commit_ts.max(ts);
                }
            }
        }
        self.holds.retain(|hold| hold.txn != txn);
        self.settle(clients);
    }

    fn holders_in_the_way(&self, call: &Call) -> BTreeSet<usize> {
        let item = &call.items[call.next];
        self.holds
            .iter()
            .filter(|hold| hold.table == call.table && hold.txn != call.txn)
            .filter(|hold| !hold.mode.is_compatible(call.mode) && hold.item.overlaps(item))
            .map(|hold| hold.txn)
            .collect()
    }

    fn waiters_in_the_way(&self, at: usize) -> Vec<usize> {
        (0..at).filter(|ahead| in_the_way(&self.queue[*ahead], &self.queue[at])).collect()
    }

    fn is_blocked(&self, at: usize) -> bool {
        !self.holders_in_the_way(&self.queue[at]).is_empty()
            || !self.waiters_in_the_way(at).is_empty()
    }

    /// The waiters for which a waiter waits, directly or over others, and itself; in queue order.
    fn reached(&self, from: usize, soft: bool) -> Vec<usize> {
        let mut reached = BTreeSet::from([from]);
        let mut next = vec![from];
        while let Some(at) = next.pop() {
            let holders = self.holders_in_the_way(&self.queue[at]);
            let mut on: Vec<usize> =
                (0..self.queue.len()).filter(|at| holders.contains(&self.queue[*at].txn)).collect();
            if soft {
                on.extend(self.waiters_in_the_way(at));
            }
            next.extend(on.into_iter().filter(|at| reached.insert(*at)));
        }
        reached.into_iter().collect()
    }

    /// True if a waiter waits for a transaction, directly or over others.
    fn reaches(&self, from: usize, txn: usize, soft: bool) -> bool {
        self.reached(from, soft).into_iter().any(|at| {
            self.holders_in_the_way(&self.queue[at]).contains(&txn)
                || soft
                    && self.waiters_in_the_way(at).iter().any(|ahead| self.queue[*ahead].txn == txn)
        })
    }

    pub(super) fn check_invariants(&mut self) {
        self.explained.clear();
        for (at, a) in self.holds.iter().enumerate() {
            for b in &self.holds[..at] {
                let exclude = a.table == b.table && a.txn != b.txn && !a.mode.is_compatible(b.mode);
                assert!(!exclude || !a.item.overlaps(&b.item), "held at once: {a:?} and {b:?}");
            }
        }
        for at in 0..self.queue.len() {
            assert!(self.is_blocked(at), "nothing is in the way of {:?}", self.queue[at]);
            assert!(
                !self.reaches(at, self.queue[at].txn, true),
                "{:?} waits for itself",
                self.queue[at]
            );
        }
    }

    pub(super) fn locks(&self) -> BTreeSet<(usize, String, LockMode, usize, u64, usize)> {
        let lock = |hold: &Hold| {
            let wanted = self.queue.iter().filter(|call| {
                call.table == hold.table
                    && call.txn != hold.txn
                    && !call.mode.is_compatible(hold.mode)
                    && call.items[call.next].overlaps(&hold.item)
            });
            (
                hold.table,
                format!("{:?}", hold.item),
                hold.mode,
                hold.txn,
                hold.token,
                wanted.count(),
            )
        };
        self.holds.iter().map(lock).collect()
    }

    pub(super) fn waits(&self) -> BTreeMap<usize, (BTreeSet<usize>, BTreeSet<usize>)> {
        let wait = |at: usize| {
            let ahead = self
                .waiters_in_the_way(at)
                .into_iter()
                .map(|ahead| self.queue[ahead].txn)
                .collect();
            (self.queue[at].txn, (self.holders_in_the_way(&self.queue[at]), ahead))
        };
        (0..self.queue.len()).map(wait).collect()
    }

    pub(super) fn tokens(&self) -> Vec<(usize, LockItem, LockMode, u64)> {
        let granted = self.holds.iter().filter(|hold| !hold.pending);
        granted.map(|hold| (hold.table, hold.item.clone(), hold.mode, hold.token)).collect()
    }
}

/// True if one waiter's claim excludes another's.
fn in_the_way(ahead: &Call, call: &Call) -> bool {
    ahead.table == call.table
        && ahead.txn != call.txn
        && !ahead.mode.is_compatible(call.mode)
        && ahead.items[ahead.next].overlaps(&call.items[call.next])
}

/// What was held before an upgrade is gone; of an upgrade in flight only its call knows then.
fn forget_beneath(hold: &mut Hold) {
    if hold.pending {
        hold.token = 0;
    }
    hold.beneath = 0;
}

fn is_range(item: &LockItem) -> bool {
    matches!(item, LockItem::Range(_))
}

/// The first key inside, and whether the one named is outside. No key here ends in a zero byte.
fn start_of(item: &LockItem) -> (Vec<u8>, bool) {
    match item.start() {
        Bound::Unbounded => (Vec::new(), false),
        Bound::Included(key) => (key.as_bytes().to_vec(), false),
        Bound::Excluded(key) => (key.as_bytes().to_vec(), true),
    }
}

fn end_of(item: &LockItem) -> (Vec<u8>, bool) {
    match item.end() {
        Bound::Unbounded => (vec![0xff], true),
        Bound::Included(key) => (key.as_bytes().to_vec(), true),
        Bound::Excluded(key) => (key.as_bytes().to_vec(), false),
    }
}
