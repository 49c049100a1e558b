//! The calls of the model: their way from item to item.

use std::ops::Bound;

use lockservice_core::table::{RowGrant, WaitPolicy};
use lockservice_core::{BindVersion, ErrorKind, FencingToken, KeyRange, LockItem, LockMode};

use super::graph::conflicts;
use super::{Advance, Call, Granted, Hold, Model, Outcome, Part};
use crate::Client;

impl Model {
    #[allow(clippy::too_many_arguments, reason = "the fields of a request")]
    pub(crate) fn lock(
        &mut self,
        txn: usize,
        table: usize,
        version: BindVersion,
        mut items: Vec<LockItem>,
        mode: LockMode,
        (wait, escalate): (WaitPolicy, bool),
        came_earlier: Option<u64>,
        clients: &mut [Client],
    ) {
        self.at_once.insert(txn);
        self.calls += 1;
        if wait == WaitPolicy::SkipLocked && items.iter().any(is_range) {
            self.done.insert(txn, Outcome::Failed(ErrorKind::InvalidArgument));
            return;
        }
        // The state decides, and has to know what the transaction holds.
        self.inflate_own(txn);
        if !self.tables[table].installed || self.tables[table].version != version {
            // The call is over at once.
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
            call: self.calls,
            table,
            items,
            next: 0,
            mode,
            changes,
            covered: 0,
            in_shard: false,
            waited: false,
            promoted: false,
            prev_commit: None,
            wait,
            skipped: Vec::new(),
            escalate,
            escalated: None,
            came_earlier,
            part: Part::All,
        };
        let refused = match self.advance(&mut call) {
            Advance::Complete if self.lacks_token(&call) && !wait.is_patient() => {
                Some(ErrorKind::Unavailable)
            }
            Advance::Complete if self.lacks_token(&call) && !self.has_room_to_wait(&call) => {
                Some(ErrorKind::ResourceExhausted)
            }
            Advance::Blocked(_) if !wait.is_patient() => Some(ErrorKind::Conflict),
            Advance::Blocked(_)
                if !self.has_room_to_wait(&call) || !escalate && !self.can_ever_fit(&call) =>
            {
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
            self.roll_back_call(call);
            self.done.insert(txn, Outcome::Failed(kind));
        }
        self.promote(clients);
        if !self.done.contains_key(&txn) {
            self.at_once.remove(&txn);
        }
    }

    /// A row that the engine granted at once: it was free, or held already.
    pub(crate) fn lock_row(
        &mut self,
        txn: usize,
        table: usize,
        item: LockItem,
        mode: LockMode,
        grant: &RowGrant,
    ) {
        assert!(self.tables[table].installed, "the table is not served");
        self.calls += 1;
        let mut call = Call {
            txn,
            call: self.calls,
            table,
            items: vec![item],
            next: 0,
            mode,
            changes: Vec::new(),
            covered: 0,
            in_shard: true,
            waited: false,
            promoted: false,
            prev_commit: None,
            wait: WaitPolicy::NoWait,
            skipped: Vec::new(),
            escalate: false,
            escalated: None,
            came_earlier: None,
            part: Part::All,
        };
        assert!(matches!(self.advance(&mut call), Advance::Complete), "{txn}: {grant:?}");
        assert_eq!(grant.newly_locked, !call.changes.is_empty(), "{txn}: {grant:?}");
        assert_eq!(grant.table_commit_ts, self.tables[table].commit_ts, "{txn}: {grant:?}");
        if grant.newly_locked {
            assert_eq!(call.changes[0].1, None, "an upgrade goes the general way");
            self.tables[table].tokens.push_front(grant.token.get());
        } else {
            assert_eq!(grant.token.get(), call.covered, "{txn}: {grant:?}");
        }
        self.complete(call);
        self.done.remove(&txn);
        self.check_own_limit(txn);
    }

    /// Shards have drawn tokens, the first ones, so that so many are left.
    pub(crate) fn draw_tokens(&mut self, table: usize, left: u64) {
        let tokens = &mut self.tables[table].tokens;
        tokens.drain(..tokens.len() - left as usize);
    }

    /// Takes free items.
    pub(super) fn advance(&mut self, call: &mut Call) -> Advance {
        while call.next < call.items.len() {
            if !call.in_shard {
                self.inflate(call.table, &call.items[call.next]);
            }
            let item = &call.items[call.next];
            let own =
                self.holds.iter().filter(|hold| hold.txn == call.txn && hold.table == call.table);
            let own: Vec<&Hold> = own.filter(|hold| hold.item.covers(item)).collect();
            if let Some(token) =
                own.iter().filter(|hold| hold.mode >= call.mode).map(|hold| hold.shown()).max()
            {
                call.covered = call.covered.max(token);
                call.next += 1;
                continue;
            }
            let upgrade = !own.is_empty();
            let behind = (0..self.queue.len()).filter(|at| conflicts(&self.queue[*at], call));
            // A row that is waited for is not free, whoever the waiter waits for.
            let passes =
                |at: usize| call.wait != WaitPolicy::SkipLocked && self.reaches(at, call.txn, true);
            let must_wait = !upgrade && behind.into_iter().any(|at| !passes(at));
            if !self.conflicting_holders(call).is_empty() || must_wait {
                if call.wait == WaitPolicy::SkipLocked {
                    call.skipped.push(call.items[call.next].clone());
                    call.next += 1;
                    continue;
                }
                return Advance::Blocked(upgrade);
            }
            match self.take_or_escalate(call) {
                None => return Advance::Full,
                Some(true) => return Advance::Complete,
                Some(false) => {}
            }
        }
        Advance::Complete
    }

    /// Takes the next item. True if the rows became one range instead; `None` if a limit is
    /// reached.
    pub(super) fn take_or_escalate(&mut self, call: &mut Call) -> Option<bool> {
        if self.take(call) {
            Some(false)
        } else if call.escalate && self.escalate(call) {
            Some(true)
        } else {
            None
        }
    }

    /// Makes one range of the rows of a call's transaction and of the items of the call, if that is
    /// free now.
    fn escalate(&mut self, call: &mut Call) -> bool {
        let own = |hold: &Hold| hold.txn == call.txn && hold.table == call.table;
        let is_replaced = |hold: &Hold| {
            own(hold)
                && (!is_range(&hold.item)
                    || call.changes.iter().any(|(changed, _)| *changed == hold.item))
        };
        let rows = self.holds.iter().filter(|hold| own(hold) && !is_range(&hold.item));
        let items: Vec<&LockItem> = rows.map(|hold| &hold.item).chain(&call.items).collect();
        let first = items.iter().min_by_key(|item| start_of(item)).expect("an item").start();
        let last = items.iter().max_by_key(|item| end_of(item)).expect("an item").end();
        if first == last && first != Bound::Unbounded {
            return false;
        }
        let Ok(range) = KeyRange::new(first.cloned(), last.cloned()) else { return false };
        let range = LockItem::Range(range);
        self.inflate(call.table, &range);
        let replaced: Vec<&Hold> = self.holds.iter().filter(|hold| is_replaced(hold)).collect();
        let mode = replaced.iter().map(|hold| hold.mode).max().max(Some(call.mode));
        let mode = mode.expect("that of the call");
        let first_call = replaced.iter().map(|hold| hold.first_call()).min();
        let first_call = first_call.map_or(call.call, |first| first.min(call.call));
        let replaced_count = replaced.len();
        let fits = self.fits_for(&range, &replaced, call);
        let mut probe = call.clone();
        (probe.items, probe.next, probe.mode) = (vec![range.clone()], 0, mode);
        let mut ahead = (0..self.queue.len()).filter(|at| conflicts(&self.queue[*at], &probe));
        if !fits
            || self.holds.iter().any(|hold| own(hold) && hold.item == range)
            || !self.conflicting_holders(&probe).is_empty()
            || ahead.any(|at| !self.reaches(at, call.txn, true))
        {
            return false;
        }
        let Some(token) = self.tables[call.table].tokens.pop_front() else { return false };
        self.holds.retain(|hold| !is_replaced(hold));
        self.holds.push(Hold {
            table: call.table,
            txn: call.txn,
            item: range.clone(),
            mode,
            token,
            pending: false,
            call: first_call,
            ended: 0,
            in_state: true,
            beneath: Vec::new(),
        });
        let is_of_call = replaced_count == call.changes.len()
            && call.changes.iter().all(|(_, before)| before.is_none());
        call.changes.clear();
        if is_of_call {
            call.changes.push((range.clone(), None));
        }
        call.skipped.clear();
        call.next = call.items.len();
        call.escalated = Some((range, token));
        true
    }

    /// False if a limit is reached.
    pub(super) fn take(&mut self, call: &mut Call) -> bool {
        let item = call.items[call.next].clone();
        let full = !call.in_shard && self.is_full(call, &item);
        let exact = |hold: &&mut Hold| {
            hold.txn == call.txn && hold.table == call.table && hold.item == item
        };
        match self.holds.iter_mut().find(exact) {
            Some(hold) => {
                call.changes.push((item, Some((hold.mode, FencingToken::new(hold.shown())))));
                hold.beneath.push((hold.mode, hold.token, hold.call));
                (hold.mode, hold.call, hold.pending) = (call.mode, call.call, true);
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
                    call: call.call,
                    ended: 0,
                    in_state: !call.in_shard,
                    beneath: Vec::new(),
                });
                call.changes.push((item, None));
            }
        }
        call.next += 1;
        true
    }

    pub(super) fn complete(&mut self, call: Call) {
        let table = &mut self.tables[call.table];
        let token = match &call.escalated {
            Some((_, token)) => Some(*token),
            None if call.changes.is_empty() => Some(call.covered),
            None => table.tokens.pop_front(),
        };
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
            version: table.version,
            token,
            waited: call.waited,
            prev_commit: call.prev_commit,
            table_commit_ts: table.commit_ts,
            table_definition_ts: table.definition_ts,
            skipped: call.skipped,
            escalated: call.escalated.map(|(range, _)| range),
            tokens_left: table.tokens.len() as u64,
            changes: call.changes,
        };
        self.done.insert(call.txn, Outcome::Granted { table: call.table, grant });
    }

    pub(super) fn roll_back_call(&mut self, call: Call) {
        for (item, _) in call.changes {
            self.roll_back_item(call.txn, call.table, &item, None);
        }
    }

    /// Rolls back the change to a hold by the grant under `token`; without a token, by the call in
    /// flight.
    pub(super) fn roll_back_item(
        &mut self,
        txn: usize,
        table: usize,
        item: &LockItem,
        token: Option<u64>,
    ) {
        let exact = |hold: &Hold| hold.txn == txn && hold.table == table && hold.item == *item;
        let Some(at) = self.holds.iter().position(exact) else { return };
        let hold = &mut self.holds[at];
        if token.map_or(hold.pending, |token| hold.token == token && !hold.pending) {
            if !hold.uncover() {
                self.holds.remove(at);
            }
        } else if let Some(token) = token {
            hold.beneath.retain(|(_, beneath, _)| *beneath != token);
        }
    }

    pub(super) fn lacks_token(&self, call: &Call) -> bool {
        // An escalation has taken its token already.
        let needs_one = !call.changes.is_empty() && call.escalated.is_none();
        needs_one && self.tables[call.table].tokens.is_empty()
    }
}

fn is_range(item: &LockItem) -> bool {
    matches!(item, LockItem::Range(_))
}

/// The key of the lower bound, and whether it is outside. No key here ends in a zero byte.
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
