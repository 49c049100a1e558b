//! A small state, for the tests and the models of commit admission.

use std::sync::Arc;
use std::time::Duration;

use crate::allocator::state::commits::CommitControl;
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::tokens::TokenSource;
use crate::allocator::state::{AllocatorState, BindEntry, Service, TableById, TableEntry};
use crate::allocator::{BeginCommit, CommitWindow, PresentedBind};
use crate::clock::Time;
use crate::id::{
    BindVersion, CommitAttempt, Epoch, EpochNumber, FencingToken, NodeName, Nonce, ServiceId,
    TableId, TableRef, TxnId, TxnNumber, WriteNumber,
};
use crate::store::{ServiceRecord, ServiceState};

pub(super) const TTL: Duration = Duration::from_secs(5);
pub(super) const ORIGIN: ServiceId = ServiceId::new(1 << 32 | 1);
pub(super) const OWNER: ServiceId = ServiceId::new(1 << 32 | 2);
/// Most binds of one commit.
pub(super) const BINDS_MAX: usize = 10;
pub(super) const NOW: Time = Time::from_origin(Duration::from_secs(100));

/// The state of an allocator with an origin, and another incarnation that owns one table.
pub(super) struct Fixture {
    pub(super) state: AllocatorState,
    pub(super) owner: Arc<Service>,
    /// The bind of `g/t5`.
    pub(super) bind: PresentedBind,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let (applied, tokens) =
            (WriteNumber::default(), TokenSource::Epoch { from: FencingToken::default() });
        let state =
            AllocatorState::new(Epoch::new(1), EpochNumber::default(), applied, tokens, BINDS_MAX);
        add_service(&state, ORIGIN);
        let owner = add_service(&state, OWNER);
        let bind = add_table(&state, &owner, 5);
        Self { state, owner, bind }
    }

    /// A commit of the origin's `n`th transaction on the table.
    #[cfg_attr(loom, allow(dead_code, reason = "of tests that are not built for loom"))]
    pub(super) fn request(&self, n: u64) -> BeginCommit {
        request(n, vec![self.bind])
    }
}

/// A commit of the origin's `n`th transaction, for a second.
pub(super) fn request(n: u64, binds: Vec<PresentedBind>) -> BeginCommit {
    BeginCommit {
        txn: TxnId::new(ORIGIN, TxnNumber::new(n), true),
        binds,
        attempt: CommitAttempt::new(1),
        window: CommitWindow { least: Duration::ZERO, most: Duration::from_secs(1) },
    }
}

pub(super) fn add_service(state: &AllocatorState, id: ServiceId) -> Arc<Service> {
    let record = ServiceRecord {
        id,
        node: NodeName::new("n").expect("a name"),
        nonce: Nonce::new(1),
        address: String::new(),
        state: ServiceState::Live,
        succession: Default::default(),
    };
    let commits = CommitControl::new(10, &state.slots);
    let service = Arc::new(Service::new(record, TTL, NOW, LeaseState::Live, commits));
    state.services.insert(id, Arc::clone(&service));
    service
}

/// The name of the table with this number.
pub(super) fn name(id: u64) -> TableRef {
    TableRef::new("g", format!("t{id}")).expect("names")
}

/// Binds a new table, as a grant that has landed does.
pub(super) fn add_table(state: &AllocatorState, owner: &Arc<Service>, id: u64) -> PresentedBind {
    let (table, version) = (TableId::new(id), BindVersion::new(id + 1));
    let bind = BindEntry::closed(&state.slots, table, 0, Arc::clone(owner), version);
    bind.slot.pins().open();
    let slot = bind.slot.at();
    let binds = [bind];
    state.ids.upsert(table, || TableById::new(name(id), &binds), |_| ());
    let entry = TableEntry {
        id: table,
        tokens_reserved_to: FencingToken::default(),
        binds: binds.into_iter().collect(),
        pending: None,
        leaving: false,
        claims: None,
    };
    state.tables.upsert(name(id), || entry, |_| ());
    PresentedBind { table, partition: 0, owner: owner.id, version, slot }
}

/// Removes a table, as a forgetting that has landed does.
pub(super) fn remove_table(state: &AllocatorState, id: u64) {
    state.tables.remove_if(&name(id), |_| true);
    state.ids.remove_if(&TableId::new(id), |_| true);
}

/// True while a commit is in flight on a bind.
pub(super) fn held(state: &AllocatorState, bind: &PresentedBind, now: Time) -> bool {
    state.slots.held(bind.slot, bind.version, now)
}
