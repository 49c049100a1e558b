use super::*;
use crate::id::{BindVersion, EpochNumber, FencingToken, Nonce, TableId, TxnNumber, WriteNumber};
use crate::store::{BindRecord, ClusterConstants, Damage, Forgotten, ServiceRecord};

fn service(number: u64, node: &str) -> ServiceRecord {
    ServiceRecord {
        id: ServiceId::new(3 << 32 | number),
        node: NodeName::new(node).unwrap(),
        nonce: Nonce::new(u64::MAX),
        address: String::new(),
        state: ServiceState::Live,
        succession: Default::default(),
    }
}

fn table(name: &str, number: u64) -> TableRecord {
    TableRecord {
        table: TableRef::new("g", name).unwrap(),
        id: TableId::new(3 << 32 | number),
        partitions: 1,
        tokens_reserved_to: FencingToken::new(4 << 32),
        binds: vec![BindRecord {
            owner: ServiceId::new(3 << 32 | 1),
            version: BindVersion::new(3 << 32),
        }],
        claimable_from: Default::default(),
    }
}

fn sound() -> StoreState {
    StoreState {
        epoch: Epoch::new(3),
        applied: WriteNumber::new(9),
        constants: Some(ClusterConstants::default()),
        tables: vec![table("a", 1), table("b", 2)],
        forgotten: Forgotten {
            high_water: EpochNumber::new(3 << 32 | 5),
            tokens_reserved_to: FencingToken::new(4 << 32),
        },
        services: vec![service(1, "n"), service(2, "m")],
        tombstones: vec![TxnId::new(ServiceId::new(3 << 32 | 1), TxnNumber::new(7), true)],
        volatile_tokens_from: None,
    }
}

#[test]
fn a_sound_store_has_no_problems_and_each_kind_of_damage_is_found_in_its_record() {
    assert_eq!(problems(&sound()), []);
    assert_eq!(problems(&StoreState::default()), []);
    type Spoil = fn(&mut StoreState);
    let cases: [(ProblemKind, &str, Spoil); 17] = [
        (ProblemKind::Twice, "table g/a", |s| {
            s.tables.push(TableRecord { id: TableId::new(1), ..table("a", 9) })
        }),
        (ProblemKind::Twice, "table g/b", |s| s.tables[1].id = s.tables[0].id),
        (ProblemKind::Twice, "incarnation 12884901889", |s| {
            s.services
                .push(ServiceRecord { node: NodeName::new("x").unwrap(), ..s.services[0].clone() });
        }),
        (ProblemKind::Twice, "tombstone 300000001-f", |s| s.tombstones.push(s.tombstones[0])),
        (ProblemKind::EpochAhead, "table g/a", |s| s.tables[0].id = TableId::new(4 << 32)),
        (ProblemKind::EpochAhead, "table g/a", |s| {
            s.tables[0].binds[0].version = BindVersion::new(4 << 32)
        }),
        (ProblemKind::EpochAhead, "table g/a", |s| {
            s.tables[0].tokens_reserved_to = FencingToken::new((4 << 32) + 1)
        }),
        (ProblemKind::EpochAhead, "incarnation 17179869184 of z", |s| {
            s.services.push(ServiceRecord { id: ServiceId::new(4 << 32), ..service(0, "z") });
        }),
        (ProblemKind::EpochAhead, "the forgotten tables", |s| {
            s.forgotten.high_water = EpochNumber::new(4 << 32)
        }),
        (ProblemKind::EpochAhead, "the forgotten tables", |s| {
            s.forgotten.tokens_reserved_to = FencingToken::new((4 << 32) + 1)
        }),
        (ProblemKind::OutOfRange, "the forgotten tables", |s| {
            s.forgotten.tokens_reserved_to = FencingToken::new((1 << 53) + 1)
        }),
        (ProblemKind::OutOfRange, "table g/a", |s| {
            s.tables[0].tokens_reserved_to = FencingToken::new((1 << 53) + 1)
        }),
        (ProblemKind::OutOfRange, "the constants", |s| {
            s.constants = Some(ClusterConstants { lease_ttl_ms: 0, ..ClusterConstants::default() });
        }),
        (ProblemKind::Layout, "table g/a", |s| s.tables[0].partitions = 2),
        (ProblemKind::UnknownOwner, "table g/a", |s| {
            s.tables[0].binds[0].owner = ServiceId::new(3 << 32 | 77)
        }),
        (ProblemKind::TwoLive, "incarnation 12884901890 of n", |s| s.services[1] = service(2, "n")),
        (ProblemKind::UnfinishedRestore, "the store", |s| {
            s.services.push(StoreState::unfinished("x"))
        }),
    ];
    for (kind, record, spoil) in cases {
        let mut state = sound();
        spoil(&mut state);
        let found: Vec<_> =
            problems(&state).into_iter().map(|problem| (problem.kind, problem.record)).collect();
        assert_eq!(found, [(kind, record.to_owned())]);
    }
}

#[test]
fn the_end_of_an_epochs_last_block_belongs_to_that_epoch() {
    let mut state = sound();
    state.tables[0].tokens_reserved_to = FencingToken::new(4 << 32);
    assert_eq!(problems(&state), []);
    state.tables[0].tokens_reserved_to = FencingToken::new(1 << 53);
    assert_eq!(
        problems(&state)[0].kind,
        ProblemKind::EpochAhead,
        "the last token there is, of a later epoch"
    );
}

#[test]
fn records_that_cannot_be_read_are_reported_by_name_and_beyond_a_hundred_by_count() {
    let mut state = sound();
    state.services[1] = service(2, "n");
    let store = "file:x".to_owned();
    let mut inspection = Inspection { store, state, head: None, damage: Damage::noted() };
    assert_eq!(diagnose(&inspection), problems(&inspection.state));
    assert_eq!(diagnose(&inspection)[0].kind, ProblemKind::TwoLive);
    for number in (0..103).rev() {
        let kind = if number == 50 { ErrorKind::StoreNewer } else { ErrorKind::StoreCorrupt };
        let error = Error::new(kind, "unreadable").with("record", format!("{number:03}"));
        inspection
            .damage
            .tolerate::<()>(Err(error.with_source(std::io::Error::other("because"))))
            .expect("noted");
    }
    let found = diagnose(&inspection);
    let named: Vec<_> = found.iter().map(|problem| problem.record.as_str()).collect();
    let expected: Vec<_> = (3..103)
        .map(|number| format!("{number:03}"))
        .chain(["3 more records".to_owned()])
        .collect();
    assert_eq!(named, expected);
    let newer: Vec<_> = found.iter().filter(|problem| problem.kind == ProblemKind::Newer).collect();
    assert_eq!((newer.len(), newer[0].record.as_str()), (1, "050"));
    assert_eq!(found[0].sentence, "unreadable: because");
}
