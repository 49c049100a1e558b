//! The lock engine against a deliberately naive model, step by step.
//!
//! The model is a flat list of holds and a flat list of waiters in queue order; every question is
//! answered by looking at all of them. Both are driven by the same random steps, and after each the
//! held locks with their modes and tokens, the waits, the outcomes of all calls, and the memory
//! that the engine counts must be the same. The model predicts everything except which of several
//! cycles is broken first; there it checks that the cycle the engine reports exists.
//!
//! Half of the runs have limits so small that calls run into them, also as their turn comes. In
//! half of them the engine's mutex is let go after so few steps that nearly every call is done in
//! several slices: nothing may come of that.

#[path = "kit/by_id.rs"]
mod by_id;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use by_id::{LockEngine, LockRequest};
use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::clock::Time;
use lockservice_core::table::{
    Commit, EngineSettings, Grant, LockCall, Savepoint, VictimPolicy, WaitPolicy,
};
use lockservice_core::{
    BindVersion, CommitTimestamp, DeadlockEdge, ErrorKind, FencingToken, Key, KeyRange, LockItem,
    LockMode, ServiceId, TableId, TableRef, TxnId, TxnNumber,
};
use model::Model;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

fn id(txn: usize) -> TxnId {
    TxnId::new(ServiceId::new(1), TxnNumber::new(txn as u64), false)
}

/// Every other key is a long one, which takes more memory.
fn key(number: u8) -> Key {
    Key::new(vec![b'a' + number; if number.is_multiple_of(2) { 1 } else { 100 }]).expect("a key")
}

fn number(txn: TxnId) -> usize {
    txn.number().get() as usize
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One caller per transaction: its call, if one is in flight, and whether it looks at it.
struct Client {
    call: Option<LockCall>,
    /// Does not poll for now, as a busy task.
    busy: bool,
    polled: bool,
    woken: Arc<Woken>,
    received: Option<Result<Grant, lockservice_core::Error>>,
    /// Its savepoints, and those of the model.
    savepoints: Vec<(Savepoint, u64)>,
    /// The items that it was granted since it last ended.
    grants: Vec<(usize, Grant)>,
}

impl Client {
    /// Polls if there is a reason to: never yet, or woken since. A wake-up that is lost leaves the
    /// outcome where it is.
    fn poll(&mut self, anyway: bool) {
        let Some(call) = &mut self.call else { return };
        let woken = self.woken.0.swap(false, Ordering::Relaxed);
        if !(anyway || woken || !self.polled) {
            return;
        }
        self.polled = true;
        let waker = Waker::from(Arc::clone(&self.woken));
        if let Poll::Ready(outcome) = Pin::new(call).poll(&mut Context::from_waker(&waker)) {
            self.call = None;
            self.received = Some(outcome);
        }
    }
}

/// The engine, its callers and the model.
struct Run {
    seed: u64,
    random: StdRng,
    engine: LockEngine,
    clients: Vec<Client>,
    model: Model,
    keys: u8,
    /// Of the items, how many are rows.
    rows: f64,
    tables: usize,
    next_version: u64,
    next_token: u64,
    next_ts: u64,
    /// The last token of each key in each mode.
    last_tokens: BTreeMap<(usize, u8), [u64; 3]>,
    tokens_seen: BTreeSet<u64>,
    counts: BTreeMap<&'static str, u64>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let txns = random.random_range(2..14);
        let tables = random.random_range(1..3);
        let victim = if random.random_bool(0.5) {
            VictimPolicy::FewestLocks
        } else {
            VictimPolicy::Youngest
        };
        let mut settings = EngineSettings { victim, ..EngineSettings::default() };
        if random.random_bool(0.5) {
            settings.txn_lock_bytes_max = random.random_range(200..4_000);
            settings.lock_bytes_max = random.random_range(500..12_000);
            settings.waiters_max = random.random_range(1..12);
        }
        let engine = match random.random_range(0..12) {
            steps @ 1..7 => LockEngine::with_steps_per_hold(settings, steps),
            _ => LockEngine::new(settings),
        };
        let mut run = Self {
            seed,
            engine,
            clients: (0..txns)
                .map(|_| Client {
                    call: None,
                    busy: false,
                    polled: false,
                    woken: Arc::default(),
                    received: None,
                    savepoints: Vec::new(),
                    grants: Vec::new(),
                })
                .collect(),
            model: Model::new(tables, settings),
            keys: random.random_range(2..9),
            rows: if random.random_bool(0.3) { 1.0 } else { 0.7 },
            tables,
            next_version: 1,
            next_token: 1,
            next_ts: 1,
            last_tokens: BTreeMap::new(),
            tokens_seen: BTreeSet::new(),
            counts: BTreeMap::new(),
            random,
        };
        for table in 0..tables {
            run.install(table);
        }
        run
    }

    fn block(&mut self, most: u64) -> TokenBlock {
        let next = self.next_token;
        self.next_token += self.random.random_range(1..=most);
        TokenBlock { next: FencingToken::new(next), end: FencingToken::new(self.next_token) }
    }

    fn install(&mut self, table: usize) {
        let version = BindVersion::new(self.next_version);
        self.next_version += 1;
        let bind = Bind {
            table: TableRef::new("g", format!("t{table}")).expect("a name"),
            id: TableId::new(table as u64),
            partition: 0,
            owner: ServiceId::new(1),
            version,
            slot: BindSlot::NONE,
        };
        let block = self.random.random_bool(0.8).then(|| self.block(60));
        self.engine.install(bind.clone(), block, None).expect("a new version");
        let again =
            self.engine.install(bind, None, None).expect_err("B5: a version is installed once");
        assert_eq!(again.kind(), ErrorKind::BindChanged);
        self.model.install(table, version, block);
    }

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

    fn step(&mut self) {
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
        let call = self.engine.lock(request, Time::ZERO);
        let client = &mut self.clients[txn];
        client.call = Some(call);
        client.polled = false;
        client.woken.0.store(false, Ordering::Relaxed);
        self.model.lock(txn, table, version, items, mode, (wait, escalate), &mut self.clients);
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

    fn finish(mut self) -> BTreeMap<&'static str, u64> {
        for txn in 0..self.clients.len() {
            self.clients[txn].busy = false;
            self.engine.unlock_all(id(txn), None);
            self.model.unlock_all(txn, None, &mut self.clients);
            self.clients[txn].poll(true);
            self.check();
        }
        assert!(
            self.engine.locks(None).is_empty() && self.engine.waits(None).is_empty(),
            "no lock and no wait is left"
        );
        self.counts
    }
}

fn steps(seeds: std::ops::Range<u64>, steps: u32) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for seed in seeds {
        let run = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            (0..steps).for_each(|_| run.step());
            run.finish()
        });
        match run {
            Ok(run) => {
                run.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count)
            }
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    counts
}

/// A million steps, in two halves because tests run side by side.
#[test]
fn the_engine_does_what_the_model_does_in_long_runs() {
    let counts = steps(0..500, 1000);
    println!("{counts:?}");
    let of_calls =
        ["granted", "waited", "conflict", "deadlock", "cancelled", "bind_changed", "dropped"];
    let others = ["back to a savepoint", "downgraded", "skipped", "escalated"];
    for what in of_calls.into_iter().chain(others).chain([
        "resource_exhausted",
        "all rolled back",
        "at once",
    ]) {
        assert!(
            counts.get(what).is_some_and(|count| *count > 100),
            "the runs saw too little: {counts:?}"
        );
    }
}

#[test]
fn the_engine_does_what_the_model_does_in_short_runs() {
    let counts = steps(10_000..15_000, 100);
    assert!(counts["deadlock"] > 100, "the runs saw too little: {counts:?}");
}

/// The start of the search for a deadlock's cycle.
fn poll_all(clients: &mut [Client]) -> Vec<(usize, Vec<DeadlockEdge>)> {
    let mut found = Vec::new();
    for (txn, client) in clients.iter_mut().enumerate() {
        client.poll(true);
        if let Some(Err(error)) = &client.received
            && let Some(cycle) = error.deadlock()
        {
            found.push((txn, cycle.to_vec()));
        }
    }
    found
}
