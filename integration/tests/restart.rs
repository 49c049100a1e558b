//! A server that ends, by force or in order, and starts again on its store.

use std::collections::BTreeMap;
use std::time::Duration;

use integration::command::Commands;
use integration::server::Place;
use integration::store::StoreKind;
use integration::timeline::Timeline;
use integration::{LEASE, on_each_store};
use lockservice::client::Session;
use lockservice_core::allocator::{BeginCommit, CommitWindow, PresentedBind};
use lockservice_core::clock::{Clock as _, SystemClock, hi};
use lockservice_core::service::{LockSpec, TxnOptions};
use lockservice_core::{CommitAttempt, ErrorKind, Key, LockItem, TableRef};
use nix::sys::signal::Signal;

on_each_store! {
    after_a_kill_no_command_of_the_old_holder_runs_beside_the_next_ones;
    after_a_kill_every_table_is_known_and_reassigned_with_larger_numbers;
    after_a_kill_new_tables_are_granted_at_once_and_old_ones_wait_out_the_lease;
    after_a_kill_a_transaction_that_locked_before_cannot_commit_and_learns_why;
    after_a_clean_stop_old_tables_are_granted_at_once;
}

fn row(table: &str, key: &str) -> LockSpec {
    let table = TableRef::new("default", table).expect("a good name");
    LockSpec::new(table, vec![LockItem::Row(Key::new(key).expect("a good key"))])
}

/// Locks and unlocks one row in each of `tables`, and returns the tokens.
async fn tokens(session: &Session, tables: &[String]) -> BTreeMap<String, u64> {
    let mut tokens = BTreeMap::new();
    for table in tables {
        let lock = session.lock(row(table, "k")).await.expect("no one else locks");
        tokens.insert(table.clone(), lock.token().get());
        lock.unlock().await.expect("the server runs");
    }
    tokens
}

/// The tests, for any store.
mod check {
    use super::*;

    /// B3, P2: also where the process that watches over the command is stopped.
    pub(super) async fn after_a_kill_no_command_of_the_old_holder_runs_beside_the_next_ones(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        let server = place.start().await;
        let timeline = Timeline::new(place.directory());
        let watched = Commands { address: &place.address, timeline: timeline.path() };
        let elsewhere = place.directory().join("stopped");
        std::fs::create_dir(&elsewhere).expect("the test's directory can be written");
        let timeline_of_stopped = Timeline::new(&elsewhere);
        let unwatched = Commands { address: &place.address, timeline: timeline_of_stopped.path() };
        let mut old = watched.stubborn("old", "jobs", "nightly");
        let mut stopped = unwatched.stubborn("old", "jobs", "weekly");
        let (old_token, stopped_token) = (old.start_token().await, stopped.start_token().await);

        stopped.signal(Signal::SIGSTOP);
        server.kill().await;
        // One whose server is back earlier keeps its lock (P6).
        let old = old.ended().await;
        let _server = place.start().await;
        let (next, next_after_stopped) = tokio::join!(
            watched.brief("next", &[], "jobs", "nightly"),
            unwatched.brief("next", &[], "jobs", "weekly"),
        );

        assert_eq!(old.status, Some(70), "{old:?}");
        assert!(old.said.contains("lost"), "{old:?}");
        assert_eq!(
            (next.status, next_after_stopped.status),
            (Some(0), Some(0)),
            "{next:?} {next_after_stopped:?}"
        );
        assert!(next.token > Some(old_token), "{next:?}");
        assert!(next_after_stopped.token > Some(stopped_token), "{next_after_stopped:?}");
        timeline.check(&["old", "next"]);
        timeline_of_stopped.check(&["old", "next"]);
        stopped.signal(Signal::SIGCONT);
        assert_eq!(stopped.ended().await.status, Some(70));
    }

    /// B3, B5, F1.
    pub(super) async fn after_a_kill_every_table_is_known_and_reassigned_with_larger_numbers(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        let server = place.start().await;
        let tables: Vec<String> = (0..20).map(|number| format!("table-{number}")).collect();
        let session = place.client().await.session(None).await.expect("the server runs");
        let tokens_before = tokens(&session, &tables).await;
        let before = place.binds().await;
        assert_eq!(before.len(), tables.len());

        server.kill().await;
        let _server = place.start().await;
        let known = place.binds().await;
        for (table, bind) in &before {
            let now = known.get(table).expect("every table is still known");
            assert_eq!(
                (now.version, now.owner, now.state.as_str()),
                (bind.version, bind.owner, "waiting"),
                "{table}"
            );
        }
        let session = place.client().await.session(None).await.expect("the server runs");
        let tokens_after = tokens(&session, &tables).await;
        let after = place.binds().await;
        assert_eq!(after.len(), tables.len());
        for (table, bind) in &before {
            let now = &after[table];
            assert_eq!(now.state, "bound", "{table}");
            assert!(
                now.version > bind.version && now.owner > bind.owner,
                "{table}: {bind:?}, then {now:?}"
            );
            assert!(
                tokens_after[table] > tokens_before[table],
                "{table}: {tokens_before:?}, then {tokens_after:?}"
            );
        }
    }

    /// B3.
    pub(super) async fn after_a_kill_new_tables_are_granted_at_once_and_old_ones_wait_out_the_lease(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        let server = place.start().await;
        let timeline = Timeline::new(place.directory());
        let commands = Commands { address: &place.address, timeline: timeline.path() };
        assert_eq!(commands.brief("first", &["--no-wait"], "old", "k").await.status, Some(0));

        server.kill().await;
        let killed = SystemClock.now();
        let _server = place.start().await;
        let refused = commands.brief("refused", &["--no-wait"], "old", "k").await;
        assert_eq!((refused.status, refused.token), (Some(75), None), "{refused:?}");
        assert!(
            refused.said.contains("may still be at work: try again")
                && refused.said.contains("remaining_ms"),
            "{refused:?}"
        );
        // Less than the lease, but not to be had.
        let impatient = commands.brief("impatient", &["--timeout", "100ms"], "old", "k").await;
        assert_eq!((impatient.status, impatient.token), (Some(75), None), "{impatient:?}");
        let fresh = commands.brief("fresh", &["--no-wait"], "new", "k").await;
        assert_eq!(fresh.status, Some(0), "{fresh:?}");
        let patient = commands.brief("patient", &[], "old", "k").await;
        assert_eq!(patient.status, Some(0), "{patient:?}");
        let waited = SystemClock.now().since(killed);
        assert!(waited >= hi(LEASE), "reassigned after {waited:?}");
        let ran: Vec<String> =
            timeline.events().into_iter().filter(|e| e.does == "ends").map(|e| e.name).collect();
        assert_eq!(ran, ["first", "fresh", "patient"]);
    }

    /// B3, C3.
    pub(super) async fn after_a_kill_a_transaction_that_locked_before_cannot_commit_and_learns_why(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        let server = place.start().await;
        let session = place.client().await.session(None).await.expect("the server runs");
        let window =
            CommitWindow { least: Duration::from_millis(10), most: Duration::from_millis(500) };
        let lock = async |session: &Session, key: &str| {
            let txn = session.txn(TxnOptions { validates: true, label: "late".to_owned() });
            let grant = txn.lock(row("ledger", key)).await.expect("no one else locks");
            let id = txn.id().expect("it holds a lock");
            let binds = vec![PresentedBind::from(&grant.bind)];
            (txn, BeginCommit { txn: id, binds, attempt: CommitAttempt::new(1), window })
        };
        let (_early_txn, early) = lock(&session, "early").await;
        let (_late_txn, late) = lock(&session, "late").await;
        // What is refused below would have been admitted.
        place.client().await.allocator().begin_commit(&early).await.expect("nothing is wrong yet");

        server.kill().await;
        let _server = place.start().await;
        let allocator = place.client().await.allocator();
        for request in [&early, &late] {
            let refused = allocator.begin_commit(request).await.expect_err("its locks are gone");
            assert!(
                matches!(refused.kind(), ErrorKind::BindChanged | ErrorKind::CannotCommit),
                "{refused:?}"
            );
            let sentence = refused.to_string();
            assert!(sentence.contains("start"), "it says what to do: {sentence}");
        }
        // Also once the table is reassigned.
        let session = place.client().await.session(None).await.expect("the server runs");
        let (_new_txn, new) = lock(&session, "late").await;
        let refused = allocator.begin_commit(&late).await.expect_err("its locks are gone");
        assert!(
            matches!(refused.kind(), ErrorKind::BindChanged | ErrorKind::CannotCommit),
            "{refused:?}"
        );
        allocator.begin_commit(&new).await.expect("a transaction of now may commit");
    }

    /// P5.
    pub(super) async fn after_a_clean_stop_old_tables_are_granted_at_once(store: StoreKind) {
        let place = Place::new(store);
        let timeline = Timeline::new(place.directory());
        let commands = Commands { address: &place.address, timeline: timeline.path() };
        let server = place.start().await;
        let first = commands.brief("first", &[], "jobs", "k").await;
        assert_eq!(first.status, Some(0), "{first:?}");
        assert!(server.stop().await.success());

        // A holder gives up its session when it is told, so that nothing is left to be waited for.
        let mut command = place.serve();
        command.arg("--drain-stop");
        let server = place.start_with(command).await;
        let mut holder = commands.stubborn("holder", "jobs", "k");
        let second = holder.start_token().await;
        assert!(first.token < Some(second));
        let (stopped, holder) = tokio::join!(server.stop(), holder.ended());
        assert!(stopped.success());
        assert_eq!(holder.status, Some(70), "{holder:?}");
        assert!(holder.said.contains("shutting down"), "{holder:?}");

        let _server = place.start().await;
        let third = commands.brief("third", &["--no-wait"], "jobs", "k").await;
        assert_eq!(third.status, Some(0), "{third:?}");
        assert!(third.token > Some(second), "{third:?}");
        timeline.check(&["first", "holder", "third"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_over_a_kill_while_the_clock_of_the_machine_is_set_back_a_day() {
    // Asked for what it does to a process: it would stand between this test and the server, and
    // leave that behind when it is killed.
    let preloads = std::process::Command::new("faketime")
        .args(["-f", "-1d", "printenv", "LD_PRELOAD"])
        .output();
    let Ok(preloads) = preloads else {
        return integration::skip("faketime is missing (Debian's package faketime)");
    };
    let preload = String::from_utf8(preloads.stdout).expect("a path is text");
    for store in [StoreKind::File, StoreKind::Rocks] {
        if !store.is_there() {
            continue;
        }
        let place = Place::new(store);
        let timeline = Timeline::new(place.directory());
        let commands = Commands { address: &place.address, timeline: timeline.path() };
        let server = place.start().await;
        let mut old = commands.stubborn("old", "jobs", "k");
        let old_token = old.start_token().await;
        let (before, today) = (place.binds().await, day(&server.log()));
        server.kill().await;
        // One whose server is back earlier keeps its lock (P6).
        let old = old.ended().await;

        let mut set_back = place.serve();
        set_back.env("LD_PRELOAD", preload.trim()).env("FAKETIME", "-1d");
        // Only the wall clock goes back: a machine's monotonic clocks cannot be set.
        set_back.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        let server = place.start_with(set_back).await;
        let next = commands.brief("next", &[], "jobs", "k").await;
        assert!(
            day(&server.log()) < today,
            "the server sees a clock set back: {} after {today}",
            server.log()
        );
        assert_eq!((old.status, next.status), (Some(70), Some(0)), "{old:?} {next:?}");
        assert!(next.token > Some(old_token), "{next:?} after {old_token}");
        assert!(place.binds().await["jobs"].version > before["jobs"].version);
        timeline.check(&["old", "next"]);
    }
}

/// The day of the first line of a log of JSON lines that has one, YYYY-MM-DD.
fn day(log: &str) -> String {
    let day = log.split(r#""timestamp":""#).nth(1).and_then(|line| line.get(..10));
    day.unwrap_or_else(|| panic!("some line has its day: {log}")).to_owned()
}
