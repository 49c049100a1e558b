//! Damaged stores.

use lockservice_core::ErrorKind;
use lockservice_core::maintenance::{ProblemKind, diagnose};
use lockservice_core::store::StoreState;

use crate::store_kit::{Kind, Site, acquire, spoil, state_of, write_tables};

on_every_store! {
    a_flipped_byte_anywhere_is_found_or_harmless;
    a_store_cut_off_anywhere_is_refused_or_unharmed;
    an_inspection_names_every_damaged_record_and_an_open_refuses_the_store;
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
    let refused = site.open().await.expect_err("no one leads it");
    assert!(
        matches!(refused.kind(), ErrorKind::StoreCorrupt | ErrorKind::StoreNewer),
        "{refused:?}"
    );

    site.raw_put(b"head", b"");
    let (problems, inspection) = damaged().await;
    assert_eq!(problems, records(&[&[(ProblemKind::Damaged, "head")], &three[..]].concat()));
    assert_eq!(inspection.head, None);
}
