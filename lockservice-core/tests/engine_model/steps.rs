//! The random steps of a run, made in the engine and in the model.

use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockservice_core::clock::Time;
use lockservice_core::table::{Commit, Grant, WaitPolicy};
use lockservice_core::{
    BindVersion, CommitTimestamp, ErrorKind, Key, KeyRange, LockItem, LockMode, TableId,
};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::by_id::LockRequest;
use crate::{Run, id, key};

impl Run {
    fn key(&mut self) -> Key {
        key(self.random.random_range(0..self.keys))
    }

    fn bound(&mut self) -> Bound<Key> {
        match self.random.random_range(0..6) {
            0 => Bound::Unbounded,
            1 | 2 => Bound::Excluded(self.key()),
            _ => Bound::Included(self.key()),
        }
    }

    fn item(&mut self) -> LockItem {
        if self.random.random_bool(self.rows) {
            return LockItem::Row(self.key());
        }
        loop {
            if let Ok(range) = KeyRange::new(self.bound(), self.bound()) {
                return LockItem::Range(range);
            }
        }
    }

    pub(crate) fn step(&mut self) {
        let txn = self.random.random_range(0..self.clients.len());
        let table = self.random.random_range(0..self.tables);
        match self.random.random_range(0..100) {
            0..50 => self.lock(txn, table),
            50..53 => self.downgrade(txn, table),
            53..57 => self.savepoint(txn),
            57..62 => {
                // A caller gives up, whether or not it was granted meanwhile.
                if self.clients[txn].call.take().is_some() {
                    *self.counts.entry("dropped").or_default() += 1;
                    self.model.abandon(txn, &mut self.clients);
                }
            }
            62..67 => {
                let grants = &mut self.clients[txn].grants;
                if self.random.random_bool(0.5) {
                    // Any of them, and perhaps again later.
                    let any = grants.choose(&mut self.random).cloned();
                    any.into_iter().for_each(|grant| self.roll_back(txn, &grant));
                } else {
                    let mut all = grants.clone();
                    all.shuffle(&mut self.random);
                    all.iter().for_each(|grant| self.roll_back(txn, grant));
                    // A range that rows became stays.
                    let is_all = all.iter().all(|(_, grant)| grant.escalated.is_none());
                    if self.clients[txn].call.is_none() && is_all {
                        *self.counts.entry("all rolled back").or_default() += 1;
                        assert_eq!(self.engine.held(id(txn)), 0, "everything was rolled back");
                    }
                }
            }
            67..75 => {
                let mut items: Vec<LockItem> = self.model.items(txn, table);
                items.retain(|_| self.random.random_bool(0.4));
                items.push(self.item());
                let ts = self.commit();
                let released = self.engine.unlock(id(txn), TableId::new(table as u64), &items, ts);
                assert_eq!(released, self.model.unlock(txn, table, &items, ts, &mut self.clients));
            }
            75..94 => {
                let ts = self.commit();
                self.engine.unlock_all(id(txn), ts);
                self.model.unlock_all(txn, ts, &mut self.clients);
                assert_eq!(self.engine.held(id(txn)), 0, "everything is released");
                self.clients[txn].grants.clear();
                self.clients[txn].savepoints.clear();
            }
            94..97 => {
                let block = self.block(20);
                let version = self.model.version(table);
                self.engine.add_tokens(TableId::new(table as u64), version, block);
                self.model.add_tokens(table, block);
            }
            97 => {
                let busy = self.random.random_bool(0.5);
                self.clients[txn].busy = busy;
            }
            98 if self.random.random_bool(0.3) => {
                let version = self.model.version(table);
                self.engine.remove(TableId::new(table as u64), version);
                self.model.remove(table);
                if self.random.random_bool(0.7) {
                    self.install(table);
                }
            }
            _ => {
                if !self.model.is_installed(table) {
                    self.install(table);
                }
            }
        }
        self.check();
    }

    fn commit(&mut self) -> Option<Commit> {
        if self.random.random_bool(0.6) {
            return None;
        }
        let timestamp = self.random.random_range(0..self.next_ts + 3);
        self.next_ts = self.next_ts.max(timestamp);
        let timestamp = CommitTimestamp::new(timestamp);
        Some(Commit { timestamp, definition_changed: self.random.random_bool(0.2) })
    }

    fn mode(&mut self) -> LockMode {
        *LockMode::ALL.choose(&mut self.random).expect("a mode")
    }

    /// Sets a savepoint, or goes back to one.
    fn savepoint(&mut self, txn: usize) {
        let savepoints = &mut self.clients[txn].savepoints;
        if savepoints.is_empty() || self.random.random_bool(0.6) {
            savepoints.push((self.engine.savepoint(id(txn)), self.model.savepoint()));
            return;
        }
        let (savepoint, in_model) = *savepoints.choose(&mut self.random).expect("one");
        if self.clients[txn].call.is_some() {
            match self.engine.roll_back_to(id(txn), savepoint) {
                Ok(released) => {
                    assert!(self.model.is_over_at_once(txn), "a call of {txn} is in flight");
                    let expected = self.model.roll_back_to(txn, in_model, &mut self.clients);
                    assert_eq!(released, expected);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}"),
            }
            return;
        }
        *self.counts.entry("back to a savepoint").or_default() += 1;
        let released = self.engine.roll_back_to(id(txn), savepoint).expect("no call is in flight");
        assert_eq!(released, self.model.roll_back_to(txn, in_model, &mut self.clients));
    }

    fn downgrade(&mut self, txn: usize, table: usize) {
        let mut items: Vec<LockItem> = self.model.items(txn, table);
        items.retain(|_| self.random.random_bool(0.4));
        items.push(self.item());
        let mode = self.mode();
        let downgraded = self.engine.downgrade(id(txn), TableId::new(table as u64), &items, mode);
        let expected = self.model.downgrade(txn, table, &items, mode, &mut self.clients);
        assert_eq!(downgraded, expected, "{items:?} to {mode}");
        *self.counts.entry("downgraded").or_default() += downgraded as u64;
    }

    fn roll_back(&mut self, txn: usize, (table, grant): &(usize, Grant)) {
        self.engine.roll_back(id(txn), TableId::new(*table as u64), grant);
        self.model.roll_back(txn, *table, grant, &mut self.clients);
    }

    fn lock(&mut self, txn: usize, table: usize) {
        if self.clients[txn].call.is_some() {
            return;
        }
        let count = *[1, 1, 1, 2, 3, 5].choose(&mut self.random).expect("a count");
        let items: Vec<LockItem> = (0..count).map(|_| self.item()).collect();
        let mode = self.mode();
        let wait = match self.random.random_range(0..10) {
            0 => WaitPolicy::NoWait,
            1 => WaitPolicy::SkipLocked,
            _ => WaitPolicy::Wait,
        };
        let escalate = self.random.random_bool(0.3);
        let version = if self.random.random_bool(0.99) {
            self.model.version(table)
        } else {
            BindVersion::new(0)
        };
        if let [LockItem::Row(key)] = items.as_slice()
            && self.random.random_bool(0.7)
            && self.lock_row(txn, table, key, mode)
        {
            return;
        }
        let request = LockRequest {
            txn: id(txn),
            table: TableId::new(table as u64),
            version,
            items: items.clone(),
            mode,
            wait,
            escalate,
        };
        let came_earlier = self.random.random_bool(0.1).then(|| self.random.random_range(0..20));
        let call = match came_earlier {
            Some(millis) => {
                let came = Time::from_origin(Duration::from_millis(millis));
                self.engine.lock_again(request, came)
            }
            None => self.engine.lock(request, Time::ZERO),
        };
        let client = &mut self.clients[txn];
        client.call = Some(call);
        client.polled = false;
        client.woken.0.store(false, Ordering::Relaxed);
        let how = (wait, escalate);
        self.model.lock(txn, table, version, items, mode, how, came_earlier, &mut self.clients);
    }

    /// Tries to lock a row at once. False if the general way decides.
    fn lock_row(&mut self, txn: usize, table: usize, key: &Key, mode: LockMode) -> bool {
        let table_id = TableId::new(table as u64);
        let granted = self.engine.lock_row(id(txn), table_id, key, mode);
        if let Some(left) = self.engine.tokens_left(table_id, self.model.version(table)) {
            self.model.draw_tokens(table, left);
        }
        let Some(grant) = granted else { return false };
        *self.counts.entry("at once").or_default() += 1;
        self.model.lock_row(txn, table, LockItem::Row(key.clone()), mode, &grant);
        let handle = self.engine.table(table_id).expect("it granted");
        self.clients[txn].grants.push((table, grant.to_grant(&handle, key)));
        true
    }
}
