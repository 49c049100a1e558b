//! A planned restart with 1,000 holders. Its times are in the benchmark `restart`; here the lease
//! is longer than any wait of a test, so that nothing passes because it has run out.

use std::collections::HashMap;
use std::time::Duration;

use integration::holders::{Holders, HoldersOptions, row, sessions, table};
use integration::server::Place;
use integration::store::StoreKind;
use integration::{LIMIT, on_each_store, within};
use lockservice_core::TableRef;

/// No wait of a test is as long.
const LEASE: Duration = Duration::from_secs(2 * LIMIT.as_secs());

on_each_store! {
    a_planned_restart_takes_no_lock_of_a_thousand_and_keeps_no_row_from_the_next;
}

mod check {
    use super::*;

    pub(super) async fn a_planned_restart_takes_no_lock_of_a_thousand_and_keeps_no_row_from_the_next(
        store: StoreKind,
    ) {
        let place = Place::new(store).with_lease(LEASE);
        let server = place.start().await;
        let holders = Holders::start(&place.address, HoldersOptions::thousand(LEASE * 3 / 4)).await;
        let before = holders.all[0].session.service();
        let free = TableRef::new("default", "free").expect("a name");
        let others = sessions(&place.address, 101, LEASE / 2).await;
        let (free_session, waiters) = others.split_last().expect("some");
        free_session.lock(row(&free, "k")).await.expect("free").release().await.expect("it runs");
        // The first holder of each table is waited for.
        let mut waiting = tokio::task::JoinSet::new();
        for (number, session) in waiters.iter().cloned().enumerate() {
            let spec = row(&table(number), &format!("row-{number}"));
            waiting.spawn(async move { (number, session.lock(spec).await) });
        }
        let admin = place.client().await.admin();
        while admin.waits(None).await.expect("it responds").len() < waiters.len() {}

        assert!(server.stop().await.success());
        let server = place.start().await;
        // A row of a table in which nothing was held, for one who was there and for a newcomer.
        for session in [free_session, &place.client().await.session(None).await.expect("one")] {
            let lock = within("a free row of another table", session.lock(row(&free, "k"))).await;
            lock.expect("free").release().await.expect("it runs");
        }
        within("every session claims", holders.reclaimed(before)).await;
        // Rows that nobody held, in tables in which others did.
        let session = place.client().await.session(None).await.expect("a session");
        for table in holders.tables() {
            let lock = within("a free row of a held table", session.lock(row(&table, "f"))).await;
            lock.expect("free").release().await.expect("it runs");
        }
        assert_eq!(holders.lost(), Vec::<String>::new(), "{}", server.log());
        all_are_held_under_their_tokens(&place, &holders).await;

        let mut tokens = HashMap::new();
        for held in holders.all {
            let further = held.txn.lock(row(&held.table, &format!("{}-b", held.row))).await;
            further.expect("the transaction goes on");
            tokens.insert((held.table.clone(), held.row.clone()), held.token);
            held.txn.end(None).await.expect("it was never lost");
        }
        while let Some(served) = within("a waiter is served", waiting.join_next()).await {
            let (number, lock) = served.expect("no panic");
            let lock = lock.expect("its wait went on");
            let before = tokens[&(table(number), format!("row-{number}"))];
            assert!(lock.token() > before, "{:?} after {before:?}", lock.token());
        }
    }
}

/// The server has every row under the token of its grant, and nothing else of those tables.
async fn all_are_held_under_their_tokens(place: &Place, holders: &Holders) {
    let locks = place.client().await.admin().locks(None).await.expect("it responds");
    assert!(!locks.is_cut());
    let mut held: Vec<_> = locks
        .iter()
        .filter(|lock| lock.info.table.name.as_str().starts_with("held-"))
        .map(|lock| (lock.info.table.clone(), lock.info.item.to_string(), lock.info.token))
        .collect();
    let mut expected: Vec<_> = holders
        .all
        .iter()
        .map(|held| {
            let spec = row(&held.table, &held.row);
            (held.table.clone(), spec.items[0].to_string(), held.token)
        })
        .collect();
    held.sort();
    expected.sort();
    assert_eq!(held.len(), expected.len());
    assert_eq!(held, expected);
}
