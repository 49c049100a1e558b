//! The next process of a node that crashed, on stores that nodes share (B1, B3).

use std::process::Stdio;
use std::time::Duration;

use integration::binary;
use integration::server::{Place, Server};
use lockservice::core::clock::{Clock as _, SystemClock, Time};
use tokio::process::Command;

/// Long enough for a start within it, on most machines.
const LEASE: Duration = Duration::from_secs(6);

/// The first process of a node, which has locked in the table `old`.
async fn first(place: &Place) -> Server {
    let first = place.start().await;
    // A new store may have lost data for one lease; then its leader resolves that.
    assert_eq!(lock(place, "old", "60s").await.0, Some(0));
    first
}

/// `lock TABLE k --timeout TIME -- true` at a place.
async fn lock(place: &Place, table: &str, time: &str) -> (Option<i32>, String) {
    let mut lock = Command::new(binary::lockservice());
    lock.args(["--json", "lock", table, "k", "--timeout", time, "--server", &place.address]);
    lock.args(["--", "true"]).stdin(Stdio::null());
    let output = place.run(&mut lock).await;
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The table `old` is given to the process at `place` no sooner than the promises may have run out
/// that the process before it made until `killed`: the last one is at most a third of a lease
/// older.
async fn the_old_table_waits(place: &Place, killed: Time) {
    let (status, said) = lock(place, "old", "60s").await;
    assert_eq!(status, Some(0), "{said}");
    let waited = SystemClock.now().since(killed);
    assert!(waited >= LEASE / 2, "granted after {waited:?}");
}

integration::on_each_server! {
    the_next_process_of_a_killed_node_serves_at_once_and_its_tables_wait_all_the_same;
    a_second_process_of_a_node_that_lives_is_told_so;
    a_copy_of_the_file_elsewhere_ends_the_node_and_gets_its_tables_no_sooner;
}

mod check {
    use super::*;

    pub(super) async fn the_next_process_of_a_killed_node_serves_at_once_and_its_tables_wait_all_the_same(
        store: &str,
    ) {
        let place = Place::joining(store, "a").with_lease(LEASE);
        let first = first(&place).await;
        let before = first.incarnation;
        first.kill().await;
        let killed = SystemClock.now();
        let mut next = place.start().await;
        assert!(next.incarnation > before);
        assert!(!next.log().contains("lease of this node name"), "{}", next.log());
        assert_eq!(lock(&place, "new", "60s").await.0, Some(0));
        the_old_table_waits(&place, killed).await;
        assert!(next.stop_in_order().await.success());
    }

    pub(super) async fn a_second_process_of_a_node_that_lives_is_told_so(store: &str) {
        let place = Place::joining(store, "a");
        let first = place.start().await;
        let other = Place::joining(store, "a");
        let mut serve = other.serve();
        serve.env("XDG_STATE_HOME", place.directory());
        let refused = place.run(&mut serve).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains("another process of the node a runs on this machine"), "{said}");
        assert!(said.contains("name_in_use"), "{said}");
        assert_eq!(lock(&place, "t", "60s").await.0, Some(0), "the first was left alone");
        assert!(first.stop().await.success());
    }

    pub(super) async fn a_copy_of_the_file_elsewhere_ends_the_node_and_gets_its_tables_no_sooner(
        store: &str,
    ) {
        let place = Place::joining(store, "a").with_lease(LEASE);
        let mut first = first(&place).await;
        let other = Place::joining(store, "a").with_lease(LEASE);
        let (from, to) =
            (place.directory().join("lockservice"), other.directory().join("lockservice"));
        std::fs::create_dir(&to).expect("a folder");
        for file in std::fs::read_dir(from).expect("the first node's") {
            let file = file.expect("readable");
            std::fs::copy(file.path(), to.join(file.file_name())).expect("writable");
        }
        let copied = SystemClock.now();
        let next = other.start().await;
        the_old_table_waits(&other, copied).await;
        // It learns by its next renewal that another has its name.
        let ended = first.ends_by_itself().await;
        assert!(!ended.success(), "{}", first.log());
        next.kill().await;
    }
}
