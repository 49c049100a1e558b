//! Three nodes as processes on one PostgreSQL or Redis: the leader, and the owner of a table, do
//! not run for longer than their promises, and then go on as if nothing had happened (L1, L3, B2,
//! B3, B5, C1).

use integration::LEASE;
use integration::command::Commands;
use integration::server::{Place, Server};
use integration::timeline::Timeline;
use integration::within;
use lockservice::core::allocator::{BeginCommit, CommitWindow, PresentedBind};
use lockservice::core::clock::{Clock as _, SystemClock, Time};
use lockservice::core::service::{LockSpec, TxnOptions};
use lockservice::core::{CommitAttempt, ErrorKind, Key, LockItem, TableRef};
use nix::sys::signal::Signal;
use std::time::Duration;

/// Nodes that have started in this order; the first leads.
struct Nodes {
    places: Vec<Place>,
    servers: Vec<Server>,
}

impl Nodes {
    async fn start(store: &str) -> Self {
        let (mut places, mut servers) = (Vec::new(), Vec::new());
        for name in ["a", "b", "c"] {
            let place = Place::joining(store, name);
            servers.push(place.start().await);
            places.push(place);
        }
        // A new store may have lost data for one lease; then its leader resolves that.
        within("the leader to resolve the data loss", async {
            while !servers[0].log().contains("anything that the store lost") {
                tokio::time::sleep(LEASE / 20).await;
            }
        })
        .await;
        Self { places, servers }
    }
}

/// Who locks through the node at `place`.
fn through<'a>(place: &'a Place, timeline: &'a Timeline) -> Commands<'a> {
    Commands { address: &place.address, timeline: timeline.path() }
}

/// Time itself is what is tested here.
async fn let_pass(clock: &SystemClock, since: Time, time: Duration) {
    while clock.now().since(since) < time {
        tokio::time::sleep(LEASE / 20).await;
    }
}

integration::on_each_server! {
    a_leader_that_slept_past_its_leadership_changes_nothing_when_it_wakes;
    the_table_of_a_sleeping_owner_goes_to_another_and_the_owner_grants_nothing;
}

mod check {
    use super::*;

    pub(super) async fn a_leader_that_slept_past_its_leadership_changes_nothing_when_it_wakes(
        store: &str,
    ) {
        let nodes = Nodes::start(store).await;
        let [a, b, c] = &nodes.places[..] else { unreachable!("three nodes") };
        let timeline = Timeline::new(a.directory());
        let others = Timeline::new(b.directory());
        let mut held = through(b, &timeline).stubborn("held", "jobs", "nightly");
        held.start_token().await;
        let before = b.binds().await;
        assert_eq!(
            before["jobs"].owner, nodes.servers[1].incarnation,
            "the first to ask owns the table"
        );

        let clock = SystemClock;
        nodes.servers[0].signal(Signal::SIGSTOP);
        let stopped = clock.now();
        // A new table, at the third node, can only be bound by a new leader.
        let granted = through(c, &others).brief("first", &["--timeout=30s"], "other", "k").await;
        let took = clock.now().since(stopped);
        assert_eq!(granted.status, Some(0), "{granted:?}; {}", nodes.servers[2].log());
        println!("leader replaced and a new table bound after {took:?}");
        let between = c.binds().await;
        assert_eq!(between["jobs"], before["jobs"], "every bind is kept over a fail-over");
        let_pass(&clock, stopped, LEASE * 2).await;
        nodes.servers[0].signal(Signal::SIGCONT);

        // It follows now, and its earlier responses do not count.
        let second = through(a, &others).brief("second", &["--timeout=30s"], "other", "k").await;
        assert_eq!(second.status, Some(0), "{second:?}; {}", nodes.servers[0].log());
        assert!(second.token > granted.token);
        for place in &nodes.places {
            let now = place.binds().await;
            assert_eq!(now["jobs"], before["jobs"], "seen by {}", place.address);
            assert_eq!(now["other"], between["other"], "seen by {}", place.address);
        }
        assert!(
            nodes.servers[0].log().contains("does not lead any more"),
            "{}",
            nodes.servers[0].log()
        );
        held.signal(Signal::SIGINT);
        held.ended().await;
        timeline.check(&["held"]);
        others.check(&["first", "second"]);
        for server in nodes.servers {
            assert!(server.stop().await.success());
        }
    }

    pub(super) async fn the_table_of_a_sleeping_owner_goes_to_another_and_the_owner_grants_nothing(
        store: &str,
    ) {
        let nodes = Nodes::start(store).await;
        let [a, b, c] = &nodes.places[..] else { unreachable!("three nodes") };
        let timeline = Timeline::new(a.directory());
        let mut old = through(c, &timeline).stubborn("old", "jobs", "nightly");
        let old_token = old.start_token().await;
        let before = b.binds().await;
        assert_eq!(before["jobs"].owner, nodes.servers[2].incarnation);

        // A transaction that validates, on a table of the same owner; its commit is admitted before
        // the owner stops.
        let client = c.client().await;
        let session = client.session(None).await.expect("a session");
        let options = TxnOptions { validates: true, ..TxnOptions::default() };
        let (first, second) = (session.txn(options.clone()), session.txn(options));
        let mut commits = Vec::new();
        for (txn, key) in [(&first, "x"), (&second, "y")] {
            let item = LockItem::Row(Key::new(key.as_bytes()).expect("a key"));
            let spec = LockSpec::new(TableRef::new("default", "rows").expect("a name"), vec![item]);
            let grant = txn.lock(spec).await.expect("granted");
            commits.push(BeginCommit {
                txn: txn.id().expect("granted"),
                binds: vec![PresentedBind::from(&grant.bind)],
                attempt: CommitAttempt::new(1),
                window: CommitWindow {
                    least: Duration::from_millis(10),
                    most: Duration::from_secs(60),
                },
            });
        }
        let clock = SystemClock;
        let validator = a.client().await;
        let admitted =
            validator.allocator().begin_commit(&commits[0]).await.expect("everything holds");
        nodes.servers[2].signal(Signal::SIGSTOP);
        let stopped = clock.now();
        assert!(
            admitted.until.since(stopped) <= LEASE,
            "no commit outlives the lease it rests on (C1)"
        );

        // The next holder comes in when the owner's lease must have run out, and the old one's
        // command has ended before.
        let next = through(b, &timeline).brief("next", &["--timeout=30s"], "jobs", "nightly").await;
        let took = clock.now().since(stopped);
        assert_eq!(next.status, Some(0), "{next:?}; {}", nodes.servers[1].log());
        assert!(next.token > Some(old_token));
        println!("an owner's table granted elsewhere after {took:?}, of a lease of {LEASE:?}");
        assert!(clock.now() >= admitted.until, "a commit admitted before lands before");
        let old = within("the old holder ends", old.ended()).await;
        assert_eq!(old.status, Some(70), "{old:?}");
        let refused = validator
            .allocator()
            .begin_commit(&commits[1])
            .await
            .expect_err("its origin and its bind are invalid");
        assert!(
            matches!(refused.kind(), ErrorKind::BindChanged | ErrorKind::CannotCommit),
            "{refused:?}"
        );
        let moved = b.binds().await;
        assert!(
            moved["jobs"].version > before["jobs"].version
                && moved["jobs"].owner != before["jobs"].owner
        );

        let_pass(&clock, stopped, LEASE * 2).await;
        nodes.servers[2].signal(Signal::SIGCONT);
        let after =
            through(c, &timeline).brief("after", &["--timeout=30s"], "jobs", "nightly").await;
        assert_eq!(after.status, Some(0), "{after:?}; {}", nodes.servers[2].log());
        assert!(after.token > next.token, "granted by the new owner");
        assert_eq!(c.binds().await["jobs"], moved["jobs"], "it granted nothing of its own");
        timeline.check(&["old", "next", "after"]);
    }
}
