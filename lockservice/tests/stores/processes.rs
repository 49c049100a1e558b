//! Several processes, and processes that are killed.

use std::time::Duration;

use lockservice_core::ErrorKind;
use lockservice_core::store::StoreState;

use crate::store_kit::{Kind, Site, acquire, child, state_of};

on_every_store! {
    a_second_process_learns_the_path_and_what_to_do_and_may_come_in_after_a_kill;
    one_process_cannot_open_a_store_twice_either;
    every_acknowledged_write_survives_a_kill_in_the_middle_of_writing;
    a_kill_during_the_very_first_open_leaves_a_store_that_opens;
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
