//! A server that goes away in the middle of writes, and comes back.

use std::sync::Arc;

use integration::containers::Postgres;
use integration::within;
use lockservice_core::ErrorKind;
use lockservice_core::store::BindStore;
use lockservice_pg::PgStore;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{Journal, assert_refused, bounded, config, open, server};

/// Writes and renews until it is stopped.
struct Writer {
    acknowledged: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Journal>,
}

impl Writer {
    async fn start(store: Arc<PgStore>) -> Self {
        let mut journal = Journal::begin(&*store).await;
        let (written, acknowledged) = watch::channel(journal.applied);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            while !*stopped.borrow() {
                journal.go_on(&*store).await;
                written.send_replace(journal.applied);
                drop(bounded("a renewal", store.renew(journal.epoch)).await);
            }
            journal
        });
        Self { acknowledged, stop, task }
    }

    /// Waits until as many more were acknowledged.
    async fn some_more(&mut self, more: u64) {
        let now = *self.acknowledged.borrow();
        within(
            "writes to be acknowledged",
            self.acknowledged.wait_for(|number| *number >= now + more),
        )
        .await
        .expect("the writer works");
    }

    async fn stop(self) -> Journal {
        self.stop.send_replace(true);
        within("the writer", self.task).await.expect("no bound was broken")
    }
}

async fn survives(server: &Postgres, outage: impl AsyncFn()) {
    let store = Arc::new(open(server).await);
    let mut writer = Writer::start(Arc::clone(&store)).await;
    for _ in 0..3 {
        writer.some_more(5).await;
        outage().await;
    }
    writer.some_more(5).await;
    writer.stop().await.check(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_kill_nine_and_a_start_in_the_middle_of_writes() {
    let Some(server) = server(&[]).await else { return };
    survives(&server, async || {
        server.kill().await;
        server.start().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_a_stop_and_a_start_in_the_middle_of_writes() {
    let Some(server) = server(&[]).await else { return };
    survives(&server, async || {
        server.stop().await;
        server.start().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_said_to_be_away_within_the_bound() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let mut journal = Journal::begin(&store).await;
    server.stop().await;
    // The first finds its connection closed, the second none at all.
    assert_refused(
        journal.write(&store).await,
        ErrorKind::UnknownOutcome,
        &["read before deciding"],
    );
    assert_refused(journal.write(&store).await, ErrorKind::Unavailable, &["is it running"]);
    assert_refused(
        bounded("a renewal", store.renew(journal.epoch)).await,
        ErrorKind::Unavailable,
        &["server"],
    );
    assert_refused(
        bounded("a reading", store.applied()).await,
        ErrorKind::Unavailable,
        &["server"],
    );
    assert_refused(bounded("a load", store.load()).await, ErrorKind::Unavailable, &["server"]);
    assert_refused(
        bounded("an open", PgStore::connect_with(config(&server))).await,
        ErrorKind::Unavailable,
        &["server"],
    );
    server.start().await;
    journal.go_on(&store).await;
    journal.check(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_is_not_waited_for_beyond_the_bound_and_its_late_write_is_found() {
    let Some(server) = server(&[]).await else { return };
    let store = open(&server).await;
    let mut journal = Journal::begin(&store).await;
    for _ in 0..2 {
        server.pause().await;
        assert_refused(
            journal.write(&store).await,
            ErrorKind::UnknownOutcome,
            &["does not respond in time"],
        );
        // More calls than there are places: none is held by a call that was given up.
        for _ in 0..5 {
            assert_refused(
                bounded("a reading", store.applied()).await,
                ErrorKind::Unavailable,
                &["in time"],
            );
        }
        let renewal = bounded("a renewal", store.renew(journal.epoch)).await;
        assert_refused(renewal, ErrorKind::Unavailable, &["in time"]);
        server.unpause().await;
        journal.go_on(&store).await;
        journal.check(&store).await;
    }
}
