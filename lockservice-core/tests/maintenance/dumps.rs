//! The form of a dump, and the equality of a restored store.

use std::sync::Arc;

use lockservice_core::maintenance::{Dump, RestoreOptions, problems, restore};
use lockservice_core::store::{
    BindRecord, BindStore, ClusterConstants, Forgotten, MemoryStore, ServiceRecord, ServiceState,
    StoreState, TableRecord,
};
use lockservice_core::testing::{SharedStore, TokioClock};
use lockservice_core::{
    BindVersion, EPOCH_SHIFT, Epoch, EpochNumber, ErrorKind, FencingToken, NodeName, Nonce,
    ServiceId, TableId, TableRef, TxnId, TxnNumber, WriteNumber,
};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{expect_restored, options, read, sample, text};

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
                succession: Default::default(),
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
                claimable_from: Default::default(),
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
