//! The disk and the path of a store.

use std::path::PathBuf;

use lockservice_core::ErrorKind;
use lockservice_core::store::BindStore;

use crate::store_kit::disk::small_disk;
use crate::store_kit::{Kind, Site, acquire, child, open, state_of, table, write_tables};

on_every_store! {
    a_full_disk_refuses_writes_loses_nothing_and_the_store_goes_on_when_there_is_space;
    missing_rights_are_named_with_what_to_do;
    paths_that_cannot_be_a_store_are_refused_with_what_to_do;
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
