//! Set-up for tests of what the engine's work costs: numbered rows, and many tables.

use std::ops::Bound;

use super::by_id::{LockEngine, LockRequest};
use lockservice_core::allocator::{Bind, BindSlot, TokenBlock};
use lockservice_core::clock::Time;
use lockservice_core::table::{EngineSettings, LockCall, WaitPolicy};
use lockservice_core::{
    BindVersion, FencingToken, KeyRange, LockItem, LockMode, ServiceId, TableId, TableRef,
};

use super::{granted, poll, txn};

pub(crate) const TABLE: u64 = 0;
/// A row that is in demand.
pub(crate) const HOT: u64 = u64::MAX;

/// The transactions of a case count from 0; this one is none of them.
pub(crate) const OTHER: u64 = 1 << 40;

/// Far fewer than by default, so that much work takes many holds.
const STEPS_PER_HOLD: usize = 256;

pub(crate) fn engine(tables: u64, tokens: bool) -> LockEngine {
    let engine = LockEngine::with_steps_per_hold(EngineSettings::default(), STEPS_PER_HOLD);
    for table in 0..tables {
        let bind = Bind {
            table: TableRef::new("g", format!("t{table}")).expect("a name"),
            id: TableId::new(table),
            partition: 0,
            owner: ServiceId::new(1),
            version: BindVersion::new(1),
            slot: BindSlot::NONE,
        };
        let block = tokens
            .then(|| TokenBlock { next: FencingToken::new(1), end: FencingToken::new(1 << 40) });
        engine.install(bind, block, None).expect("the first version");
    }
    engine
}

pub(crate) fn row(number: u64) -> LockItem {
    super::row(number.to_be_bytes())
}

pub(crate) fn everything() -> LockItem {
    LockItem::Range(KeyRange::new(Bound::Unbounded, Bound::Unbounded).expect("a range"))
}

pub(crate) fn lock_in(
    engine: &LockEngine,
    table: u64,
    who: u64,
    items: Vec<LockItem>,
    mode: LockMode,
) -> LockCall {
    let (table, version, wait) = (TableId::new(table), BindVersion::new(1), WaitPolicy::Wait);
    let request = LockRequest { txn: txn(who), table, version, items, mode, wait, escalate: false };
    engine.lock(request, Time::ZERO)
}

pub(crate) fn lock(engine: &LockEngine, who: u64, item: LockItem, mode: LockMode) -> LockCall {
    lock_in(engine, TABLE, who, vec![item], mode)
}

pub(crate) fn holds(engine: &LockEngine, who: u64, item: LockItem, mode: LockMode) {
    granted(lock(engine, who, item, mode));
}

pub(crate) fn waits(engine: &LockEngine, who: u64, item: LockItem, mode: LockMode) -> LockCall {
    let mut call = lock(engine, who, item, mode);
    assert!(poll(&mut call).is_pending(), "{who} waits");
    call
}
