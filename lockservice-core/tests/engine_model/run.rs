//! One run: the engine, its callers and the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::table::{EngineSettings, VictimPolicy};
use lockservice_core::{BindVersion, ErrorKind, FencingToken, ServiceId, TableId, TableRef};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::by_id::LockEngine;
use crate::model::Model;
use crate::{Client, id};

/// The engine, its callers and the model.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) random: StdRng,
    pub(crate) engine: LockEngine,
    pub(crate) clients: Vec<Client>,
    pub(crate) model: Model,
    pub(crate) keys: u8,
    /// Of the items, how many are rows.
    pub(crate) rows: f64,
    pub(crate) tables: usize,
    pub(crate) next_version: u64,
    pub(crate) next_token: u64,
    pub(crate) next_ts: u64,
    /// The last token of each key in each mode.
    pub(crate) last_tokens: BTreeMap<(usize, u8), [u64; 3]>,
    pub(crate) tokens_seen: BTreeSet<u64>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Run {
    pub(crate) fn new(seed: u64) -> Self {
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

    pub(crate) fn block(&mut self, most: u64) -> TokenBlock {
        let next = self.next_token;
        self.next_token += self.random.random_range(1..=most);
        TokenBlock { next: FencingToken::new(next), end: FencingToken::new(self.next_token) }
    }

    pub(crate) fn install(&mut self, table: usize) {
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

    pub(crate) fn finish(mut self) -> BTreeMap<&'static str, u64> {
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
