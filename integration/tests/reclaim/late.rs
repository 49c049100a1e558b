//! A server that is away for longer than the guards of its clients: their work ends first.

use std::time::Duration;

use integration::holders::row;
use integration::journal::Journal;
use integration::load::{KEYS, Load, LoadOptions, seed};
use integration::server::Place;
use integration::{LEASE, on_each_store, within};
use lockservice_core::TableRef;
use nix::sys::signal::Signal;

use crate::WRITER;

/// Three for each key, so that each has a next one, twice.
const COMMANDS: usize = 3 * KEYS;

on_each_store! {
    after_a_longer_absence_every_command_was_ended_before_the_next_began;
}

mod check {
    use integration::store::StoreKind;

    use super::*;

    pub(super) async fn after_a_longer_absence_every_command_was_ended_before_the_next_began(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        Box::pin(all_end_first(&place)).await;
    }
}

mod shared {
    use super::*;

    integration::on_each_server! {
        after_a_longer_absence_every_command_was_ended_before_the_next_began;
    }

    mod check {
        use super::*;

        pub(super) async fn after_a_longer_absence_every_command_was_ended_before_the_next_began(
            store: &str,
        ) {
            let place = Place::joining(store, "a");
            Box::pin(all_end_first(&place)).await;
        }
    }
}

/// P2, B3, F1: the journal refuses what a command writes after the next one of its key has begun,
/// and a command that begins while one still runs that is deaf to SIGTERM.
async fn all_end_first(place: &Place) {
    let mut server = place.start().await;
    a_row_is_granted(place).await;
    let mut journal = Journal::new(place.directory());
    let mut load = Load::start(&LoadOptions {
        address: place.address.clone(),
        writer: WRITER,
        journal: journal.path().to_owned(),
        commands: COMMANDS,
        ttl: LEASE,
        // Those that hold a key hold it until they are ended.
        hold_max: Duration::from_secs(3_600),
        seed: seed(),
        deaf: true,
    });
    within("every key is held", journal.wait_until(|turns| turns.len() == KEYS)).await;
    for (round, signal) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        let (held, ended) = (journal.turns().len(), load.ended_early().len());
        match signal {
            Signal::SIGKILL => server.kill().await,
            _ => assert!(server.stop().await.success()),
        }
        // Each holder ends while there is no server.
        let all_have = async {
            while load.ended_early().len() < ended + KEYS {
                tokio::time::sleep(LEASE / 100).await;
            }
        };
        within("every command is ended", all_have).await;
        assert_eq!(journal.turns().len(), held, "nobody holds a lock without a server");
        let all = load.ended_early();
        for end in &all[ended..] {
            assert_eq!(end.status, Some(70), "round {round}: {end:?}");
        }
        server = place.start().await;
        within("the next ones hold them", journal.wait_until(|turns| turns.len() >= held + KEYS))
            .await;
    }
    journal.stop_writers();
    load.stop().await;
    journal.turns();
    assert_eq!(load.ended_early().len(), 2 * KEYS, "{:?}", load.ended_early());
    assert!(server.stop().await.success());
}

/// A new store of several nodes may have lost data for one lease.
async fn a_row_is_granted(place: &Place) {
    let session = place.client().await.session(None).await.expect("a session");
    let table = TableRef::new("default", "first").expect("a name");
    let lock = within("a first row", session.lock(row(&table, "k"))).await.expect("free");
    lock.release().await.expect("it runs");
}
