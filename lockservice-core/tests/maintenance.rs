//! Dumps and restores: what goes in comes out, and nothing but a whole, consistent dump in an empty
//! store is ever served from.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorPeers, AllocatorSettings, ElectedAllocator, LocalAllocator, LockTableAllocator,
    Registration,
};
use lockservice_core::clock::hi;
use lockservice_core::maintenance::{
    Dump, EPOCHS_SKIPPED, RestoreOptions, Restored, problems, restore,
};
use lockservice_core::store::{
    self, Acquired, BindRecord, BindStore, Candidate, ClusterConstants, ClusterId, Floor,
    Forgotten, Leadership, MemoryStore, Op, ServiceRecord, ServiceState, StoreState, TableRecord,
};
use lockservice_core::testing::{Fault, FaultyStore, SharedStore, TokioClock};
use lockservice_core::{
    BindVersion, EPOCH_SHIFT, Epoch, EpochNumber, Error, ErrorKind, FencingToken, NodeName, Nonce,
    Result, ServiceId, TableId, TableRef, TxnId, TxnNumber, WriteNumber,
};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(5);

/// A store as allocators make it: `epoch` leaderships, each with incarnations and tables of its
/// own.
fn states(most: usize) -> impl Strategy<Value = StoreState> {
    let service = (0..3u8, any::<u64>(), "[a-z0-9:.]{0,12}");
    let table = (any::<bool>(), "\\PC{1,20}", any::<u16>(), 1..4u32);
    let parts = (
        1..1_000u64,
        any::<u32>(),
        any::<Option<u16>>(),
        any::<Option<(u16, u16)>>(),
        vec(service, 1..4),
        vec(table, 0..most),
        vec(any::<u16>(), 0..4),
    );
    parts.prop_map(|(epoch, applied, constants, forgotten, services, tables, tombstones)| {
        let number = |at: usize| epoch << EPOCH_SHIFT | at as u64;
        let services: Vec<_> = services
            .into_iter()
            .enumerate()
            .map(|(at, (state, nonce, address))| ServiceRecord {
                id: ServiceId::new(number(at)),
                node: NodeName::new(format!("node-{at}")).expect("a name"),
                nonce: Nonce::new(nonce),
                address,
                state: [ServiceState::Live, ServiceState::Fenced, ServiceState::Resigned]
                    [usize::from(state)],
            })
            .collect();
        let tables: Vec<_> = tables
            .into_iter()
            .enumerate()
            .map(|(at, (group, name, tokens, partitions))| TableRecord {
                table: TableRef::new(if group { "g" } else { "h" }, format!("{at}{name}"))
                    .expect("names"),
                id: TableId::new(number(at)),
                partitions,
                tokens_reserved_to: FencingToken::new(number(usize::from(tokens))),
                binds: (0..partitions as usize)
                    .map(|p| BindRecord {
                        owner: services[(at + p) % services.len()].id,
                        version: BindVersion::new(number(at)),
                    })
                    .collect(),
            })
            .collect();
        StoreState {
            epoch: Epoch::new(epoch),
            applied: WriteNumber::new(applied.into()),
            constants: constants.map(|ms| ClusterConstants {
                leadership_ttl_ms: 1_000 + u64::from(ms),
                lease_ttl_ms: 5_000,
            }),
            tombstones: tombstones
                .into_iter()
                .enumerate()
                .map(|(at, n)| {
                    TxnId::new(
                        services[at % services.len()].id,
                        TxnNumber::new(u64::from(n) << 4 | at as u64),
                        true,
                    )
                })
                .collect(),
            tables,
            forgotten: forgotten.map_or_else(Forgotten::default, |(numbers, tokens)| Forgotten {
                high_water: EpochNumber::new(number(numbers.into())),
                tokens_reserved_to: FencingToken::new(number(tokens.into())),
            }),
            services,
            volatile_tokens_from: None,
        }
    })
}

/// The records in the order of a dump.
fn sorted(mut state: StoreState) -> StoreState {
    state.tables.sort_by(|a, b| a.table.cmp(&b.table));
    state.services.sort_by_key(|service| service.id);
    state.tombstones.sort();
    state
}

fn text(dump: &Dump) -> Vec<u8> {
    let mut text = Vec::new();
    dump.write_to(&mut text).expect("memory");
    text
}

fn read(text: &[u8]) -> Result<Dump> {
    Dump::read_from(text)
}

fn options() -> RestoreOptions {
    RestoreOptions {
        node: NodeName::new("restorer").expect("a name"),
        leadership_ttl: TTL,
        above: Epoch::default(),
    }
}

/// Some state, the same each time.
fn sample(tables: usize) -> StoreState {
    let owner = ServiceId::new(7 << 32 | 1);
    StoreState {
        epoch: Epoch::new(7),
        applied: WriteNumber::new(12),
        constants: Some(ClusterConstants::default()),
        services: vec![ServiceRecord {
            id: owner,
            node: NodeName::new("a").expect("a name"),
            nonce: Nonce::new(u64::MAX),
            address: "127.0.0.1:1".to_owned(),
            state: ServiceState::Live,
        }],
        tables: (0..tables as u64)
            .map(|at| TableRecord {
                table: TableRef::new("g", format!("t{at:05}")).expect("names"),
                id: TableId::new(7 << 32 | at),
                partitions: 1,
                tokens_reserved_to: FencingToken::new(8 << 32),
                binds: vec![BindRecord { owner, version: BindVersion::new(7 << 32 | at) }],
            })
            .collect(),
        forgotten: Forgotten {
            high_water: EpochNumber::new(7 << 32 | 1 << 20),
            tokens_reserved_to: FencingToken::new(8 << 32),
        },
        tombstones: vec![TxnId::new(owner, TxnNumber::new(3), true)],
        volatile_tokens_from: None,
    }
}

fn dump() -> Dump {
    Dump::new("test:", sample(2_500)).expect("finished")
}

/// Checks the content of the restored store.
fn expect_restored(found: StoreState, dumped: &StoreState, restored: Restored, above: Epoch) {
    let mut goal = dumped.clone();
    for service in &mut goal.services {
        service.state = ServiceState::Fenced;
    }
    assert!(
        restored.epoch.get()
            > dumped.epoch.max(dumped.highest_epoch()).max(above).get() + EPOCHS_SKIPPED
    );
    assert_eq!(found.epoch, restored.epoch);
    let same = StoreState {
        epoch: goal.epoch,
        applied: goal.applied,
        volatile_tokens_from: None,
        ..found
    };
    assert_eq!(sorted(same), sorted(goal));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_dump_reads_back_as_what_was_dumped_whatever_the_order_of_the_store(state in states(12)) {
        prop_assert_eq!(problems(&state), vec![]);
        let dump = Dump::new("test:", state.clone()).expect("finished");
        let again = read(&text(&dump)).expect("its own dump");
        prop_assert_eq!(&again, &dump);
        let mut turned = state;
        turned.tables.reverse();
        turned.services.reverse();
        prop_assert_eq!(text(&Dump::new("test:", turned).expect("finished")), text(&dump));
    }

    #[test]
    fn a_restored_store_equals_the_dumped_one_up_to_epoch_and_states(
        state in states(12),
        above in 0..2_000u64,
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("one");
        runtime.block_on(async {
            let dump = Dump::new("test:", state.clone()).expect("finished");
            let above = Epoch::new(above);
            let options = RestoreOptions { above, ..options() };
            let shared: Arc<dyn BindStore> = Arc::new(SharedStore::new());
            for store in [shared, Arc::new(MemoryStore::new(0))] {
                let clock = TokioClock::new();
                let restored = restore(&*store, &clock, &dump, &options);
                let restored = restored.await.expect("restored");
                let found = store.load().await.expect("readable");
                assert_eq!(problems(&found), vec![]);
                expect_restored(found, &state, restored, above);
            }
        });
    }

    #[test]
    fn a_dump_that_was_cut_off_anywhere_is_refused(
        state in states(4),
        at in any::<prop::sample::Index>(),
    ) {
        let text = text(&Dump::new("test:", state).expect("finished"));
        // Without the last line's end it is still whole.
        let cut = at.index(text.len() - 1);
        prop_assert_eq!(read(&text[..cut]).expect_err("cut off").kind(), ErrorKind::StoreCorrupt);
        prop_assert!(read(&text[..text.len() - 1]).is_ok());
    }

    #[test]
    fn garbage_is_refused_and_never_panics(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert_eq!(read(&bytes).expect_err("garbage").kind(), ErrorKind::StoreCorrupt);
        let mut behind = text(&Dump::new("test:", sample(1)).expect("finished"));
        let at = behind.len();
        behind.extend(&bytes);
        let blank = bytes.trim_ascii().is_empty();
        prop_assert_eq!(read(&behind).is_ok(), blank, "{:?}", &behind[at..]);
    }
}

#[test]
fn what_is_wrong_with_a_dump_is_named_with_its_line() {
    let whole =
        String::from_utf8(text(&Dump::new("test:", sample(2)).expect("finished"))).expect("text");
    let lines: Vec<&str> = whole.lines().collect();
    let cases: [(String, ErrorKind, &str); 9] = [
        (String::new(), ErrorKind::StoreCorrupt, "empty"),
        ("{}\n".to_owned(), ErrorKind::StoreCorrupt, "no dump"),
        (
            whole.replacen("\"format\":1", "\"format\":2,\"more\":true", 1),
            ErrorKind::StoreNewer,
            "dump format 2",
        ),
        (whole.replacen("\"format\":1", "\"format\":0", 1), ErrorKind::StoreCorrupt, "no dump"),
        (lines[..lines.len() - 1].join("\n") + "\n", ErrorKind::StoreCorrupt, "cut off"),
        ([&lines[..3], &lines[4..]].concat().join("\n"), ErrorKind::StoreCorrupt, "missing"),
        (
            whole.replacen("\"partitions\":1", "\"partitions\":-1", 1),
            ErrorKind::StoreCorrupt,
            "line: 4",
        ),
        (whole.replacen("t00001", "t00000", 1), ErrorKind::StoreCorrupt, "contradicts itself"),
        (whole.clone() + &whole, ErrorKind::StoreCorrupt, "one at a time"),
    ];
    for (text, kind, said) in cases {
        let refused = read(text.as_bytes()).expect_err(said);
        assert_eq!(refused.kind(), kind, "{refused}");
        assert!(refused.to_string().contains(said), "{said}: {refused}");
    }
}

/// Its server's clock is behind the epoch that the old cluster is known to have reached.
#[tokio::test(start_paused = true)]
async fn numbers_and_tokens_of_a_restored_cluster_are_above_the_epoch_that_was_given() {
    numbers_begin_above(Epoch::new(5_000), 100, Epoch::new(5_000)).await;
}

/// The old cluster handed out numbers after the dump that are above those of this clock.
#[tokio::test(start_paused = true)]
async fn a_restore_begins_above_the_numbers_of_a_cluster_whose_clock_was_ahead() {
    let highest = sample(2_500).highest_epoch();
    numbers_begin_above(
        Epoch::default(),
        highest.get() - 1,
        Epoch::new(highest.get() + EPOCHS_SKIPPED),
    )
    .await;
}

/// Restores the dump with `above`, on a server whose clock vouches for `clock_epoch`: all that is
/// handed out is above the epoch `least`.
async fn numbers_begin_above(above: Epoch, clock_epoch: u64, least: Epoch) {
    let store = SharedStore::new();
    store.set_floor(Floor::of_clock(1_767_225_600 + clock_epoch * 1024).expect("in range"));
    let clock = TokioClock::new();
    restore(&store, &clock, &dump(), &RestoreOptions { above, ..options() })
        .await
        .expect("restored");
    let node = NodeName::new("n").expect("a name");
    let allocator = LocalAllocator::open(
        Arc::new(store),
        Arc::new(clock),
        AllocatorSettings::default(),
        node.clone(),
    );
    let allocator = allocator.await.expect("restored stores are resigned");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let register =
        Registration { node, nonce: Nonce::new(1), address: String::new(), replaces: None };
    let owner = allocator.register(&register).await.expect("it leads");
    for table in ["new", "t00001"] {
        let table = TableRef::new("g", table).expect("names");
        let bound = allocator.bind(owner.service, &table).await.expect("everybody was waited for");
        let tokens = bound.tokens.expect("fresh");
        for number in [owner.service.get(), bound.bind.version.get(), tokens.next.get()] {
            assert!(number >= least.end_number().get(), "{table}: {number}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_with_records_is_refused_and_left_as_it_is() {
    let store = SharedStore::new();
    let clock = TokioClock::new();
    restore(&store, &clock, &dump(), &options()).await.expect("restored");
    let before = store.load().await.expect("readable");
    let refused = restore(&store, &clock, &dump(), &options()).await.expect_err("not empty");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    assert_eq!(store.load().await.expect("readable"), before);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_somebody_leads_is_refused_and_one_whose_leader_died_is_watched_first() {
    let store = SharedStore::new();
    let clock = TokioClock::new();
    let mut candidate = Candidate::from(NodeName::new("other").expect("a name"));
    let Leadership::Held { seen, .. } =
        store.acquire_leadership(&candidate, TTL).await.expect("asked")
    else {
        panic!("an empty store is watched first")
    };
    candidate.seen = Some(seen);
    let Leadership::Acquired(Acquired { epoch, .. }) =
        store.acquire_leadership(&candidate, TTL).await.expect("asked")
    else {
        panic!("it was watched")
    };
    let other = store.connect();
    let renewing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(TTL / 3).await;
            other.renew(epoch).await.expect("it leads");
        }
    });
    let refused = restore(&store, &clock, &dump(), &options()).await.expect_err("led");
    assert_eq!(refused.kind(), ErrorKind::StoreInUse, "{refused}");
    renewing.abort();
    let began = Instant::now();
    restore(&store, &clock, &dump(), &options()).await.expect("nobody leads any more");
    assert!(began.elapsed() >= hi(TTL), "{:?}", began.elapsed());
}

/// Every fault at every call of a restore: it succeeds, or the store is refused by every leader
/// until the same restore was run again.
#[tokio::test(start_paused = true)]
async fn an_interrupted_restore_is_never_served_from_and_can_be_finished() {
    let dump = dump();
    let clock = TokioClock::new();
    let mut unfinished = 0;
    for &fault in Fault::ALL {
        for call in 0.. {
            let shared = SharedStore::new();
            let faulty = FaultyStore::once(Arc::new(shared.connect()), call, fault);
            let outcome = restore(&faulty, &clock, &dump, &options()).await;
            if faulty.struck() == 0 {
                outcome.expect("nothing befell it");
                assert!(call > 8, "hardly anything was called");
                break;
            }
            let what = format!("{fault:?} at call {call}: {outcome:?}");
            let found = shared.load().await.expect("readable");
            let records = found.tables.len() + found.services.len();
            if found.unfinished_restore().is_some() {
                unfinished += 1;
                assert!(outcome.is_err(), "{what}");
                let refused = open_once_free(&shared).await.expect_err("unfinished");
                assert_eq!(refused.kind(), ErrorKind::StoreUnusable, "{what}: {refused}");
                assert!(Dump::new("test:", found.clone()).is_err(), "{what}: nor is it dumped");
                if found.tables.len() > 1 {
                    let other = Dump::new("other:", sample(1)).expect("finished");
                    let refused = restore(&shared, &clock, &other, &options())
                        .await
                        .expect_err("another dump");
                    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{what}: {refused}");
                }
            } else if records > 0 {
                expect_restored(
                    found,
                    &dump.state,
                    Restored {
                        epoch: shared.load().await.expect("readable").epoch,
                        cluster: store::Cluster::random().id,
                        records: 0,
                    },
                    Epoch::default(),
                );
                open_once_free(&shared).await.expect(&what);
                continue;
            }
            let restored = restore(&shared, &clock, &dump, &options()).await.expect(&what);
            expect_restored(
                shared.load().await.expect("readable"),
                &dump.state,
                restored,
                Epoch::default(),
            );
        }
    }
    assert!(unfinished > 5, "only {unfinished} faults left a restore unfinished");
}

/// An allocator on the store, as soon as the last leader's time is over.
async fn open_once_free(store: &SharedStore) -> Result<Arc<LocalAllocator>> {
    let mut candidate = Candidate::from(NodeName::new("server").expect("a name"));
    if let Leadership::Held { seen, .. } = store.acquire_leadership(&candidate, TTL).await? {
        tokio::time::sleep(hi(TTL)).await;
        candidate.seen = Some(seen);
    }
    let store = Arc::new(store.connect());
    LocalAllocator::open(
        store,
        Arc::new(TokioClock::new()),
        AllocatorSettings::default(),
        candidate,
    )
    .await
}

/// The restored cluster's first leader finds nothing of the old one valid, and hands out only what
/// is above.
#[tokio::test(start_paused = true)]
async fn nothing_of_the_old_cluster_is_valid_in_the_restored_one_and_its_numbers_grow() {
    let shared = SharedStore::new();
    let dump = Dump::new("test:", sample(3)).expect("finished");
    restore(&shared, &TokioClock::new(), &dump, &options()).await.expect("restored");
    let allocator = open_once_free(&shared).await.expect("complete");
    let old = &dump.state.services[0];
    let refused = allocator
        .keepalive(old.id, old.nonce, Default::default())
        .await
        .expect_err("of the old cluster");
    assert_eq!(refused.kind(), ErrorKind::LeaseLost, "{refused}");
    let table = &dump.state.tables[0];
    let register = Registration {
        node: old.node.clone(),
        nonce: Nonce::new(1),
        address: String::new(),
        replaces: None,
    };
    let incarnation = allocator.register(&register).await.expect("its name is free");
    let waits = allocator
        .bind(incarnation.service, &table.table)
        .await
        .expect_err("promised by the old cluster (B3)");
    assert_eq!(waits.kind(), ErrorKind::Reassigning, "{waits}");
    tokio::time::sleep(hi(TTL)).await;
    allocator.keepalive(incarnation.service, register.nonce, Default::default()).await.ok();
    let incarnation = allocator
        .register(&Registration { nonce: Nonce::new(2), ..register })
        .await
        .expect("again");
    let bound =
        allocator.bind(incarnation.service, &table.table).await.expect("the promises are over");
    assert_eq!(bound.bind.id, table.id, "a table keeps its number");
    assert!(bound.bind.version > table.binds[0].version);
    assert!(bound.tokens.expect("a block").next >= table.tokens_reserved_to);
}

#[derive(Debug)]
struct Alone;

impl AllocatorPeers for Alone {
    fn connect(&self, _address: &str, _cluster: ClusterId) -> Result<Arc<dyn LockTableAllocator>> {
        Err(Error::new(ErrorKind::Unavailable, "nobody else is there"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_joins_the_cluster_of_an_unfinished_restore_learns_why_there_is_no_leader() {
    let shared = SharedStore::new();
    let clock = TokioClock::new();
    let faulty = FaultyStore::once(Arc::new(shared.connect()), 13, Fault::Refused);
    restore(&faulty, &clock, &dump(), &options()).await.expect_err("interrupted");
    assert!(shared.load().await.expect("readable").unfinished_restore().is_some());
    let node = NodeName::new("a").expect("a name");
    let settings = AllocatorSettings::default();
    let joined = ElectedAllocator::start(
        Arc::new(shared),
        Arc::new(clock),
        settings,
        node,
        "here",
        Arc::new(Alone),
    );
    let loss = tokio::time::timeout(hi(TTL) * 4, joined.expect("valid settings").elected())
        .await
        .expect("told in time");
    assert_eq!(loss.expect_err("unfinished").kind(), ErrorKind::StoreUnusable);
}

#[tokio::test]
async fn the_record_of_an_unfinished_restore_alone_is_refused_by_an_exclusive_stores_leader_too() {
    let store = MemoryStore::new(0);
    let candidate = Candidate::from(NodeName::new("a").expect("a name"));
    let Leadership::Acquired(Acquired { epoch, .. }) =
        store.acquire_leadership(&candidate, TTL).await.expect("asked")
    else {
        panic!("exclusive")
    };
    store
        .write(epoch, WriteNumber::FIRST, &vec![Op::PutService(StoreState::unfinished("x"))])
        .await
        .expect("written");
    let clock = Arc::new(TokioClock::new());
    let opened =
        LocalAllocator::open(Arc::new(store), clock, AllocatorSettings::default(), candidate).await;
    assert_eq!(opened.expect_err("unfinished").kind(), ErrorKind::StoreUnusable);
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_is_another_clusters_than_the_dumped_one() {
    let (store, clock) = (SharedStore::new(), TokioClock::new());
    let node = NodeName::new("a").expect("a name");
    let cluster = async || {
        store
            .head()
            .await
            .expect("answers")
            .expect("led")
            .cluster
            .expect("every leader names it")
            .id
    };
    // Led once, and empty: it may even be the dumped one.
    restore(
        &store,
        &clock,
        &Dump::new("test:", StoreState::default()).expect("finished"),
        &options(),
    )
    .await
    .expect("empty");
    let before = cluster().await;
    let dumped = dump().of(Some(before));
    assert_eq!(read(&text(&dumped)).expect("its own dump"), dumped);
    let restored = restore(&store, &clock, &dumped, &options()).await.expect("still empty");
    assert_eq!(cluster().await, restored.cluster);
    assert_ne!(restored.cluster, before);
    // A leader keeps it.
    let Leadership::Acquired(Acquired { cluster: kept, .. }) =
        store.acquire_leadership(&Candidate::from(node), TTL).await.expect("asked")
    else {
        panic!("it was resigned")
    };
    assert_eq!(kept.id, restored.cluster);
}
