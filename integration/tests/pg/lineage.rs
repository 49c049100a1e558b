//! Lines of history (L4), and hearing of changes of leadership.

use std::sync::Arc;
use std::time::Duration;

use integration::within;
use lockservice_core::store::{Acquired, BindStore, Candidate, Leadership};
use lockservice_core::{Epoch, NodeName, WriteNumber};
use lockservice_pg::PgStore;

use crate::support::{TTL, admin, bounded, candidate, count, lead, open, server, until};

/// Longer than any test: a node that returns earlier got a notice.
const FOREVER: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_copy_has_another_line_of_history_and_each_response_says_so() {
    // With nothing to fetch from an archive, recovery ends at the end of the log, on a timeline of
    // its own: what a promotion does.
    let Some(server) = server(&[("restore_command", "false")]).await else { return };
    let store = open(&server).await;
    let me = candidate();
    let epoch = lead(&store).await;
    let before = store.write(epoch, WriteNumber::FIRST, &vec![]).await.expect("a write").lineage;
    assert_eq!(store.renew(epoch).await.expect("it leads").lineage, before);
    assert_eq!(store.applied().await.expect("readable").lineage, before);
    let (status, said) = server.exec(["touch", "/var/lib/postgresql/data/recovery.signal"]).await;
    assert_eq!(status, 0, "{said}");
    server.stop().await;
    server.start().await;
    // It responds to queries before it has come so far.
    until(&mut admin(&server).await, "select (not pg_is_in_recovery())::int::bigint").await;
    let after = store.applied().await.expect("readable").lineage;
    assert_ne!(after, before);
    assert_eq!(
        after.0.split('/').next(),
        before.0.split('/').next(),
        "the same system, another timeline"
    );
    assert_eq!(store.renew(epoch).await.expect("the epoch is the same").lineage, after);
    assert_eq!(
        store
            .write(epoch, WriteNumber::new(2), &vec![])
            .await
            .expect("and the number follows")
            .lineage,
        after
    );
    // L4: on another copy neither the leader's own name nor a resignation proves anything.
    let leadership = store.acquire_leadership(&me, TTL).await.expect("a response");
    assert!(
        matches!(&leadership, Leadership::Held { seen, .. } if seen.lineage == after),
        "{leadership:?}"
    );
    assert!(lead(&store).await > epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stand_by_hears_of_a_resignation_at_once_also_after_its_connection_was_lost() {
    let Some(server) = server(&[]).await else { return };
    let (leader, waiting) = (open(&server).await, Arc::new(open(&server).await));
    let mut admin = admin(&server).await;
    let second = Candidate { node: NodeName::new("second").expect("a name"), ..candidate() };
    for _ in 0..2 {
        let epoch = lead(&leader).await;
        let listening = "select count(*) from pg_stat_activity where query like 'LISTEN%'";
        // The first wait opens the connection; with it open nothing is missed.
        let mut observed = tokio::spawn(hear(Arc::clone(&waiting), second.clone()));
        until(&mut admin, listening).await;
        assert!(!observed.is_finished(), "nothing has changed");
        bounded("a resignation", leader.resign(epoch)).await.expect("it leads");
        let led = within("the news", &mut observed).await.expect("no panic");
        waiting.resign(led).await.expect("it leads now");
        let ended = "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity where \
            query like 'LISTEN%'";
        assert_eq!(count(&mut admin, ended).await, 1);
    }
}

/// Asks and waits until it leads; returns the epoch.
async fn hear(store: Arc<PgStore>, candidate: Candidate) -> Epoch {
    loop {
        match store.acquire_leadership(&candidate, TTL).await.expect("a response") {
            Leadership::Acquired(Acquired { epoch, .. }) => return epoch,
            Leadership::Held { .. } => store.wait_for_change(FOREVER).await.expect("it can tell"),
        }
    }
}
