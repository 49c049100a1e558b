//! The perils that every store on a disk must survive: a second process, a kill, a full disk,
//! missing rights, damage, and a newer version.
//!
//! Each test runs on `file:` and, with the feature, on `rocks:`. Processes that have to die are
//! this test binary itself, started again with a role (see `child_process`).

#![cfg(feature = "file")]

mod store_kit;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::allocator::{
    AllocatorSettings, BeginCommit, BindSlot, CommitWindow, LocalAllocator, LockTableAllocator,
    PresentedBind, Registration,
};
use lockservice_core::clock::SystemClock;
use lockservice_core::maintenance::{ProblemKind, diagnose};
use lockservice_core::store::{
    BindStore, ClusterConstants, Op, ServiceRecord, ServiceState, StoreState,
};
use lockservice_core::testing::{StoreFixture, fault_suite, store_suite};
use lockservice_core::{
    BindVersion, CommitAttempt, Epoch, ErrorKind, NodeName, Nonce, ServiceId, TableId, TxnCounter,
    TxnId, TxnNumber, WriteNumber,
};
use tokio::task::JoinSet;

use self::store_kit::child;
use self::store_kit::disk::small_disk;
use self::store_kit::{Kind, Site, acquire, candidate, open, spoil, state_of, table, write_tables};

macro_rules! on_every_store {
    ($($name:ident;)*) => {
        mod file {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Kind::File).await })*
        }
        #[cfg(feature = "rocks")]
        mod rocks {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::Kind::Rocks).await })*
        }
    };
}

on_every_store! {
    it_keeps_the_contract_of_a_store;
    a_second_process_learns_the_path_and_what_to_do_and_may_come_in_after_a_kill;
    one_process_cannot_open_a_store_twice_either;
    every_acknowledged_write_survives_a_kill_in_the_middle_of_writing;
    a_kill_during_the_very_first_open_leaves_a_store_that_opens;
    a_full_disk_refuses_writes_loses_nothing_and_the_store_goes_on_when_there_is_space;
    missing_rights_are_named_with_what_to_do;
    paths_that_cannot_be_a_store_are_refused_with_what_to_do;
    a_store_of_a_newer_format_is_refused_as_newer_and_left_alone;
    a_flipped_byte_anywhere_is_found_or_harmless;
    a_store_cut_off_anywhere_is_refused_or_unharmed;
    an_inspection_names_every_damaged_record_and_an_open_refuses_the_store;
    an_allocator_on_it_survives_lost_late_and_doubled_responses;
    a_store_of_format_one_as_it_was_committed_still_opens;
    a_store_of_format_one_is_opened_while_commits_are_validated_and_tables_bound;
}

#[async_trait]
impl StoreFixture for Site {
    async fn open(&self) -> Arc<dyn BindStore> {
        Site::open(self).await.expect("a store in a folder of its own")
    }
}

async fn it_keeps_the_contract_of_a_store(kind: Kind) {
    store_suite(|| async move { Box::new(Site::new(kind)) as Box<dyn StoreFixture> }).await;
}

async fn an_allocator_on_it_survives_lost_late_and_doubled_responses(kind: Kind) {
    fault_suite(|| async move { Box::new(Site::new(kind)) as Box<dyn StoreFixture> }, 0..10).await;
}

async fn a_second_process_learns_the_path_and_what_to_do_and_may_come_in_after_a_kill(kind: Kind) {
    let site = Site::new(kind);
    let mut holder = child::spawn("hold", &site.url());
    holder.wait_for("open");
    let error = site.open().await.expect_err("the child has it");
    assert_eq!(error.kind(), ErrorKind::StoreInUse);
    let text = error.to_string();
    assert!(
        text.contains(&site.path().display().to_string()) && text.contains("stop that process"),
        "{text}"
    );
    holder.kill();
    site.open().await.expect("the lock ends with the process");
}

async fn one_process_cannot_open_a_store_twice_either(kind: Kind) {
    let site = Site::new(kind);
    let store = site.open().await.expect("first");
    assert_eq!(site.open().await.expect_err("second").kind(), ErrorKind::StoreInUse);
    acquire(&*store).await;
}

async fn every_acknowledged_write_survives_a_kill_in_the_middle_of_writing(kind: Kind) {
    let site = Site::new(kind);
    let mut before = 0;
    for round in 0..5 {
        let mut writer = child::spawn("write", &site.url());
        // The child prints a number only after the write of that number was acknowledged.
        writer.wait_for(&(before + 3 + 7 * round).to_string());
        let acknowledged: u64 = writer.kill().parse().expect("the last line is a number");
        let state = state_of(&*site.open().await.expect("reopened after a kill")).await;
        let applied = state.applied.get();
        assert!(applied >= acknowledged, "{applied} is there, {acknowledged} was acknowledged");
        // Write n puts the tables 2n and 2n + 1: neither of them is ever there alone.
        let ids: Vec<_> = state.tables.iter().map(|table| table.id.get()).collect();
        assert_eq!(ids, (2..2 * applied + 2).collect::<Vec<_>>());
        before = applied;
    }
}

async fn a_kill_during_the_very_first_open_leaves_a_store_that_opens(kind: Kind) {
    for delay_us in [0, 200, 500, 1_000, 2_000, 4_000, 8_000, 16_000] {
        let site = Site::new(kind);
        let mut opener = child::spawn("hold", &site.url());
        opener.wait_for("opening");
        // The steps of an open cannot be observed: the kills are spread over it.
        tokio::time::sleep(Duration::from_micros(delay_us)).await;
        opener.kill();
        let store = site
            .open()
            .await
            .unwrap_or_else(|error| panic!("killed after {delay_us} µs: {error:?}"));
        assert_eq!(state_of(&*store).await, StoreState::default());
    }
}

async fn a_full_disk_refuses_writes_loses_nothing_and_the_store_goes_on_when_there_is_space(
    kind: Kind,
) {
    let Some(disk) = small_disk(24 << 20) else { return };
    let url = kind.url(&disk.path().join("store"));
    let store = open(&url).await.expect("there is space for a new store");
    let (epoch, _) = acquire(&*store).await;
    let mut written = 0;
    for _ in 0..3 {
        disk.fill();
        let error = loop {
            match write_tables(&*store, epoch, written + 1).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 100_000, "the disk never was full");
        };
        // Where the store cannot even be opened again to look, the outcome is unknown until there
        // is space.
        assert!(
            matches!(error.kind(), ErrorKind::StoreUnusable | ErrorKind::UnknownOutcome),
            "{error:?}"
        );
        assert!(format!("{error:?}").contains("is full: free space"), "{error:?}");
        match store.applied().await {
            Ok(applied) => {
                assert_eq!(applied.number.get(), written, "a refused write is not there")
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::StoreUnusable, "{error:?}"),
        }
        assert_eq!(
            open(&url).await.expect_err("it still is ours alone").kind(),
            ErrorKind::StoreInUse
        );
    }

    disk.free();
    let applied = store.applied().await.expect("the store is back").number.get();
    assert!(
        applied == written || applied == written + 1,
        "{applied} were applied, {written} acknowledged"
    );
    write_tables(&*store, epoch, applied + 1).await.expect("the same leadership goes on");
    drop(store);
    let state = state_of(&*open(&url).await.expect("reopened")).await;
    assert_eq!(
        (state.applied.get(), state.tables),
        (applied + 1, (2..2 * applied + 4).map(table).collect())
    );
}

async fn missing_rights_are_named_with_what_to_do(kind: Kind) {
    let site = Site::new(kind);
    drop(site.open().await.expect("a store"));
    site.set_mode(0o000);
    let said = child::open_without_rights(&site);
    site.set_mode(0o755);
    if let Some(text) = said {
        assert!(text.starts_with("store_unusable: no permission"), "{text}");
        assert!(text.contains("give this user the right"), "{text}");
        assert!(text.contains(&site.path().display().to_string()), "{text}");
    }
    site.open().await.expect("untouched");
}

async fn paths_that_cannot_be_a_store_are_refused_with_what_to_do(kind: Kind) {
    let site = Site::new(kind);
    let folder = site.folder();
    let refused = async |path: PathBuf, kinds: &[ErrorKind], advice: &str| {
        let error = open(&kind.url(&path)).await.expect_err("no store");
        assert!(kinds.contains(&error.kind()), "{error:?}");
        let text = error.to_string();
        // The path that was given, and no other.
        assert!(
            text.contains(advice) && text.contains(&format!("path: {})", path.display()))
                || text.contains(&format!("path: {},", path.display())),
            "{text}"
        );
    };
    refused(folder.join("no/such/store"), &[ErrorKind::StoreUnusable], "create it").await;
    let letter = "I am a letter and no store at all. ".repeat(1_000);
    std::fs::write(folder.join("letter"), &letter).expect("a file");
    refused(folder.join("letter/store"), &[ErrorKind::StoreUnusable], "another path").await;
    refused(
        folder.join("letter"),
        &[ErrorKind::StoreUnusable, ErrorKind::StoreCorrupt],
        "another path",
    )
    .await;
    assert_eq!(std::fs::read_to_string(folder.join("letter")).expect("still there"), letter);
    std::fs::create_dir(folder.join("letters")).expect("a folder");
    std::fs::write(folder.join("letters/one"), "not ours").expect("a file");
    refused(folder.join("letters"), &[ErrorKind::StoreUnusable], "folder").await;
    assert_eq!(
        std::fs::read_dir(folder.join("letters")).expect("there").count(),
        1,
        "nothing was left behind"
    );
}

async fn a_store_of_a_newer_format_is_refused_as_newer_and_left_alone(kind: Kind) {
    let site = Site::new(kind);
    drop(site.open().await.expect("a store"));
    site.raw_put(b"format", b"2");
    site.raw_put(b"invention", b"of version 2");
    let error = site.open().await.expect_err("newer");
    assert_eq!(error.kind(), ErrorKind::StoreNewer, "{error:?}");
    assert!(error.to_string().contains("newer version"), "{error}");
    let entry = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    assert_eq!(site.raw_entries(), [entry("format", "2"), entry("invention", "of version 2")]);
    site.raw_put(b"format", b"1");
    let error = site.open().await.expect_err("not a record of format 1");
    assert_eq!(error.kind(), ErrorKind::StoreCorrupt, "{error:?}");
}

/// A closed store with many records, and what is in it.
async fn filled(kind: Kind) -> (Site, StoreState) {
    let site = Site::new(kind);
    let store = site.open().await.expect("a store");
    let (epoch, _) = acquire(&*store).await;
    for number in 1..=20 {
        write_tables(&*store, epoch, number).await.expect("a write");
    }
    let state = state_of(&*store).await;
    drop(store);
    (site, state)
}

async fn a_flipped_byte_anywhere_is_found_or_harmless(kind: Kind) {
    let (site, state) = filled(kind).await;
    let (mut found, mut harmless) = (0, 0);
    for (file, offset) in site.offsets(100) {
        let copy = site.copy();
        copy.flip(&file, offset);
        let place = format!("byte {offset} of {}", file.display());
        match copy.open().await {
            Ok(store) => {
                assert_eq!(state_of(&*store).await, state, "{place} changed what is read");
                harmless += 1;
            }
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::StoreCorrupt | ErrorKind::StoreNewer),
                    "{place}: {error:?}"
                );
                assert!(
                    error.to_string().contains(&copy.path().display().to_string()),
                    "{place}: {error}"
                );
                found += 1;
            }
        }
    }
    assert!(found > 0, "no flip was found, {harmless} were harmless");
}

async fn a_store_cut_off_anywhere_is_refused_or_unharmed(kind: Kind) {
    let (site, state) = filled(kind).await;
    for (file, offset) in site.offsets(20) {
        let copy = site.copy();
        copy.cut(&file, offset);
        let place = format!("{} cut at {offset}", file.display());
        match copy.open().await {
            Ok(store) => assert_eq!(state_of(&*store).await, state, "{place}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::StoreCorrupt, "{place}: {error:?}"),
        }
    }
}

async fn an_inspection_names_every_damaged_record_and_an_open_refuses_the_store(kind: Kind) {
    let (site, mut state) = filled(kind).await;
    let url = site.url();
    let damaged = async || {
        let inspection = lockservice::store::inspect(&url).await.expect("a store of lockservice");
        let problems =
            diagnose(&inspection).into_iter().map(|problem| (problem.kind, problem.record));
        (problems.collect::<Vec<_>>(), inspection)
    };
    let records = |records: &[(ProblemKind, &str)]| -> Vec<_> {
        records.iter().map(|(kind, record)| (*kind, (*record).to_owned())).collect()
    };
    assert_eq!(damaged().await.1.damage.named().len(), 0);

    spoil(&site);
    let entries = site.raw_entries();
    let (problems, mut inspection) = damaged().await;
    let three = [
        (ProblemKind::Newer, "incarnation 7"),
        (ProblemKind::Damaged, "table group/table-3"),
        (ProblemKind::Damaged, "tombstone 7-1"),
    ];
    assert_eq!(problems, records(&three));
    inspection.state.tables.sort_by_key(|table| table.id);
    state.tables.retain(|table| table.id.get() != 3);
    assert_eq!((inspection.store.as_str(), &inspection.state), (url.as_str(), &state));
    assert_eq!(inspection.head.expect("sound").epoch, state.epoch);
    assert_eq!(site.raw_entries(), entries, "nothing was changed");
    let refused = site.open().await.expect_err("nobody leads it");
    assert!(
        matches!(refused.kind(), ErrorKind::StoreCorrupt | ErrorKind::StoreNewer),
        "{refused:?}"
    );

    site.raw_put(b"head", b"");
    let (problems, inspection) = damaged().await;
    assert_eq!(problems, records(&[&[(ProblemKind::Damaged, "head")], &three[..]].concat()));
    assert_eq!(inspection.head, None);
}

async fn a_store_of_format_one_as_it_was_committed_still_opens(kind: Kind) {
    let site = Site::from_fixture(kind);
    let store = site.open().await.expect("format 1");
    let state = state_of(&*store).await;
    assert_eq!((state.epoch, state.applied.get()), (Epoch::new(3), 4));
    assert_eq!(state.tables, (2..8).map(table).collect::<Vec<_>>());
    assert_eq!(state.constants.expect("constants").lease_ttl_ms, 7_000);
    assert_eq!(
        state.tombstones,
        [TxnId { origin: ServiceId::new(3 << 32 | 1), counter: TxnCounter::new(9) }]
    );
    assert_eq!(
        state.services.iter().map(|service| service.address.as_str()).collect::<Vec<_>>(),
        ["127.0.0.1:1"]
    );
    let (epoch, clean) = acquire(&*store).await;
    assert_eq!((epoch, clean), (Epoch::new(4), true));
    write_tables(&*store, epoch, 5).await.expect("and is written");
}

/// The outage that this project began with: the first start after an upgrade, under load.
async fn a_store_of_format_one_is_opened_while_commits_are_validated_and_tables_bound(kind: Kind) {
    let site = Site::from_fixture(kind);
    let store = site.open().await.expect("format 1");
    let node = NodeName::new("n").expect("a name");
    // It responds at once; each call waits until the store is open.
    let allocator = LocalAllocator::start(
        store,
        Arc::new(SystemClock),
        AllocatorSettings::default(),
        node.clone(),
    );
    let allocator = allocator.expect("valid settings");
    let mut commits = JoinSet::new();
    for n in 0..300 {
        let allocator = Arc::clone(&allocator);
        commits.spawn(async move {
            let origin = ServiceId::new(3 << 32 | 1);
            let request = BeginCommit {
                txn: TxnId::new(origin, TxnNumber::new(n), true),
                binds: vec![PresentedBind {
                    table: TableId::new(n),
                    partition: 0,
                    owner: origin,
                    version: BindVersion::new(1),
                    slot: BindSlot::NONE,
                }],
                attempt: CommitAttempt::new(1),
                window: CommitWindow {
                    least: Duration::from_millis(1),
                    most: Duration::from_secs(1),
                },
            };
            allocator.begin_commit(&request).await.expect_err("of the past").kind()
        });
    }
    let register = Registration {
        node,
        nonce: Nonce::new(1),
        address: "127.0.0.1:1".to_owned(),
        replaces: None,
    };
    let me = allocator.register(&register).await.expect("it starts").service;
    let mut binds = JoinSet::new();
    for n in 2..100 {
        let allocator = Arc::clone(&allocator);
        binds.spawn(async move {
            allocator.bind(me, &table(n).table).await.expect("after a clean stop nothing waits")
        });
    }
    for bound in binds.join_all().await {
        let old = (2..8).map(table).find(|known| known.table == bound.bind.table);
        assert_eq!(bound.bind.owner, me);
        if let Some(old) = old {
            assert!(
                bound.bind.id == old.id && bound.bind.version > old.binds[0].version,
                "{bound:?}"
            );
            assert!(bound.tokens.expect("fresh").next >= old.tokens_reserved_to);
        }
    }
    for kind in commits.join_all().await {
        assert!(matches!(kind, ErrorKind::CannotCommit | ErrorKind::BindChanged), "{kind:?}");
    }
    assert_eq!(allocator.entries().0, 98, "no lookup has created anything");
}

/// Not a test: what this binary does when a test starts it again. Without a role it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Some((role, url)) = child::role() else { return };
    child::say("opening");
    let store = match open(&url).await {
        Ok(store) => store,
        Err(error) => return child::say(&format!("{error:?}")),
    };
    child::say("open");
    match role.as_str() {
        "hold" => std::future::pending().await,
        "write" => {
            let applied = store.applied().await.expect("readable").number.get();
            let (epoch, _) = acquire(&*store).await;
            for number in applied + 1.. {
                write_tables(&*store, epoch, number).await.expect("a write");
                child::say(&number.to_string());
            }
        }
        "fixture" => write_fixture(&*store).await,
        other => panic!("there is no role {other}"),
    }
}

/// Writes what `a_store_of_format_one_as_it_was_committed_still_opens` expects. To make a fixture
/// for a later format:
/// `LOCKSERVICE_TEST_ROLE=fixture LOCKSERVICE_TEST_STORE=file:format-2.db \
/// cargo test -p lockservice --test stores child_process`.
async fn write_fixture(store: &dyn BindStore) {
    acquire(store).await;
    acquire(store).await;
    let (epoch, _) = acquire(store).await;
    for number in 1..=3 {
        write_tables(store, epoch, number).await.expect("a write");
    }
    let id = ServiceId::new(3 << 32 | 1);
    let who = candidate();
    let service = ServiceRecord {
        id,
        node: who.node,
        nonce: who.nonce,
        address: who.address.nodes,
        state: ServiceState::Live,
    };
    let batch = vec![
        Op::PutService(service),
        Op::PutConstants(ClusterConstants { leadership_ttl_ms: 6_000, lease_ttl_ms: 7_000 }),
        Op::PutTombstone(TxnId { origin: id, counter: TxnCounter::new(9) }),
    ];
    store.write(epoch, WriteNumber::new(4), &batch).await.expect("the last write");
    store.resign(epoch).await.expect("resigned");
}
