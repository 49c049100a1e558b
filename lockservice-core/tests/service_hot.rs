//! The keys that calls wait for most, the longest waits and the sessions nearest to a loss.
//!
//! Tokio's paused clock drives everything, so the times are exact.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "a test drives tasks and timers itself")]

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::{AllocatorSettings, LocalAllocator, LockTableAllocator};
use lockservice_core::service::{
    HotKey, HotWindow, LockService, LockSpec, Operation, ServiceParts, Session, Txn, TxnOp,
    TxnOptions, WaitsFor,
};
use lockservice_core::store::MemoryStore;
use lockservice_core::table::WaitPolicy;
use lockservice_core::testing::TokioClock;
use lockservice_core::{
    ErrorKind, Key, KeyRange, LockItem, LockMode, NodeName, Sequence, TableRef, TxnNumber,
};

const SECOND: Duration = Duration::from_secs(1);

async fn service() -> LockService {
    let (clock, name) = (Arc::new(TokioClock::new()), NodeName::new("n").expect("a name"));
    let settings = AllocatorSettings::default();
    let store = Arc::new(MemoryStore::new(1));
    let allocator = LocalAllocator::open(store, Arc::clone(&clock), settings, name.clone()).await;
    let allocator = allocator.expect("a fresh store opens") as Arc<dyn LockTableAllocator>;
    LockService::start(ServiceParts::new(allocator, clock, name)).await.expect("it starts")
}

fn table(name: &str) -> TableRef {
    TableRef::new("g", name).expect("names")
}

fn row(name: &str) -> LockItem {
    LockItem::Row(Key::new(name).expect("a key"))
}

fn spec(name: &str) -> LockSpec {
    LockSpec::new(table("t"), vec![row(name)])
}

fn begin(service: &LockService) -> Txn {
    service.begin(TxnOptions::default()).expect("begin")
}

async fn holds(service: &LockService, spec: LockSpec) -> Txn {
    let txn = begin(service);
    txn.lock(spec).await.expect("free");
    txn
}

/// The lines of the last ten minutes: item, number of waits, their time and the longest.
fn hot(service: &LockService) -> Vec<(LockItem, u64, Duration, Duration)> {
    let lines = service.hot(None, HotWindow::TenMinutes, 100).into_iter();
    let shown = |line: HotKey| {
        let counts = line.ten_minutes;
        assert_eq!((line.minute, counts.missed), (counts, Duration::ZERO));
        (line.item, counts.waits, counts.waited, counts.longest)
    };
    lines.map(shown).collect()
}

#[tokio::test(start_paused = true)]
async fn a_wait_counts_for_its_key_however_it_ends_and_a_call_that_waits_for_nothing_never() {
    let service = service().await;
    let holder = holds(&service, spec("granted")).await;
    let waiter = begin(&service);
    // Neither free rows nor refused calls wait.
    waiter.lock(spec("free")).await.expect("free");
    let at_once = |wait| LockSpec { wait, ..spec("granted") };
    waiter.lock(at_once(WaitPolicy::NoWait)).await.expect_err("held");
    waiter.lock(at_once(WaitPolicy::SkipLocked)).await.expect("it is left out");
    assert!(hot(&service).is_empty());
    // Granted after 3 s.
    let (granted, ()) = tokio::join!(waiter.lock(spec("granted")), async {
        tokio::time::sleep(3 * SECOND).await;
        assert!(hot(&service).is_empty(), "it is counted at its end");
        holder.end(None);
    });
    granted.expect("free again");
    // Timed out after 2 s, at the same key.
    let late = LockSpec { timeout: Some(2 * SECOND), ..spec("granted") };
    begin(&service).lock(late).await.expect_err("held");
    assert_eq!(hot(&service), [(row("granted"), 2, 5 * SECOND, 3 * SECOND)]);
    waiter.end(None);
}

#[tokio::test(start_paused = true)]
async fn a_deadlock_counts_for_the_key_that_its_victim_waited_for() {
    let service = service().await;
    let (a, b) = (holds(&service, spec("a")).await, holds(&service, spec("b")).await);
    // The wait of `a` is 4 s old when `b` closes the cycle. The younger one, `b`, fails at once.
    let (first, second) = tokio::join!(a.lock(spec("b")), async {
        tokio::time::sleep(4 * SECOND).await;
        let failed = b.lock(spec("a")).await;
        b.end(None);
        failed
    });
    assert_eq!((first.is_ok(), second.is_ok()), (true, false));
    assert_eq!(hot(&service), [(row("b"), 1, 4 * SECOND, 4 * SECOND)]);
    a.end(None);
    // Now the one that has waited fails: it holds fewer locks.
    let (a, b) = (holds(&service, spec("c")).await, holds(&service, spec("d")).await);
    b.lock(spec("e")).await.expect("free");
    let (first, second) = tokio::join!(
        async {
            let failed = a.lock(spec("d")).await;
            a.end(None);
            failed
        },
        async {
            tokio::time::sleep(7 * SECOND).await;
            b.lock(spec("c")).await
        }
    );
    assert_eq!(first.expect_err("the victim").kind(), ErrorKind::Deadlock);
    second.expect("free again");
    assert_eq!(hot(&service)[0], (row("d"), 1, 7 * SECOND, 7 * SECOND));
}

fn op(number: u64, sequence: u64) -> TxnOp {
    TxnOp { number: TxnNumber::new(number), sequence: Sequence::new(sequence), ..TxnOp::default() }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_its_client_cancels_counts_and_so_does_one_that_ends_with_its_transaction() {
    let service = service().await;
    let _holder = holds(&service, spec("k")).await;
    let session = service.open_session(Some(3_600 * SECOND), "c").expect("room");
    let lock = || Operation::Lock(spec("k"));
    let (cancelled, _) = tokio::join!(session.submit(op(1, 1), lock()), async {
        tokio::time::sleep(2 * SECOND).await;
        session.cancel(TxnNumber::new(1), Sequence::new(1));
    });
    assert_eq!(cancelled.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert_eq!(hot(&service), [(row("k"), 1, 2 * SECOND, 2 * SECOND)]);
    let (ended, _) = tokio::join!(session.submit(op(2, 1), lock()), async {
        tokio::time::sleep(SECOND).await;
        session.submit(op(2, 2), Operation::End { commit: None }).await.expect("it ends")
    });
    ended.expect_err("its transaction has ended");
    assert_eq!(hot(&service), [(row("k"), 2, 3 * SECOND, 2 * SECOND)]);
}

#[tokio::test(start_paused = true)]
async fn calls_for_rows_of_a_locked_range_count_for_the_range_and_are_counted_while_they_wait() {
    let service = service().await;
    let range = LockItem::Range(KeyRange::whole_table());
    let holder = holds(&service, LockSpec::new(table("t"), vec![range.clone()])).await;
    let (a, b) = (begin(&service), begin(&service));
    let _ = tokio::join!(a.lock(spec("a")), b.lock(spec("b")), async {
        tokio::time::sleep(SECOND).await;
        holder.end(None);
    });
    assert_eq!(hot(&service), [(range.clone(), 2, 2 * SECOND, SECOND)]);
    // The row `a` is held, and a call waits for it.
    let again = LockSpec { timeout: Some(SECOND), ..spec("a") };
    let (_, ()) = tokio::join!(holds_late(&service, again), async {
        tokio::time::sleep(SECOND / 2).await;
        let lines = service.hot(Some(&table("t")), HotWindow::Minute, 9);
        assert_eq!((&lines[0].item, lines[0].waiting), (&range, 1));
        assert_eq!(lines[0].last, SECOND / 2);
        assert!(service.hot(Some(&table("u")), HotWindow::Minute, 9).is_empty());
    });
    assert_eq!(
        service.hot(None, HotWindow::Minute, 1).len(),
        1,
        "two lines, of which one is asked"
    );
}

async fn holds_late(service: &LockService, spec: LockSpec) {
    begin(service).lock(spec).await.expect_err("held");
}

#[tokio::test(start_paused = true)]
async fn the_oldest_waits_are_found_among_many_with_whom_they_wait_for() {
    let service = service().await;
    let label = |label: &str| TxnOptions { label: label.to_owned(), ..TxnOptions::default() };
    let holder = service.begin(label("holder")).expect("begin");
    let keys: Vec<LockItem> = (0..600).map(|n| row(&format!("k{n}"))).collect();
    holder.lock(LockSpec::new(table("t"), keys)).await.expect("free");
    let mut waits = Vec::new();
    for n in 0..600_u32 {
        let waiter = service.begin(label(&format!("w{n}"))).expect("begin");
        waits.push(tokio::spawn(async move { waiter.lock(spec(&format!("k{n}"))).await }));
        tokio::time::sleep(SECOND / 10).await;
    }
    let oldest = service.longest_waits(None, 3);
    let seen: Vec<_> = oldest.iter().map(|wait| (&*wait.label, wait.waiting.as_secs())).collect();
    assert_eq!(seen, [("w0", 60), ("w1", 59), ("w2", 59)]);
    let Some(WaitsFor::Txn(blocker)) = &oldest[0].waits_for else { panic!("{oldest:?}") };
    assert_eq!((&*blocker.label, blocker.granted, &blocker.item), ("holder", true, &row("k0")));
    assert_eq!((&oldest[0].item, oldest[0].mode), (&row("k0"), LockMode::Exclusive));
    assert_eq!(service.longest_waits(Some(&table("t")), 1_000).len(), 600);
    assert!(service.longest_waits(Some(&table("u")), 9).is_empty());
    assert!(service.longest_waits(None, 0).is_empty());
    let stats = service.stats(None, HotWindow::Minute, 2);
    assert_eq!((stats.gauges.waiting, stats.longest_waits.len()), (600, 2));
    assert_eq!((stats.totals.granted, stats.totals.waits), (600, 0));
    holder.end(None);
    for wait in waits {
        wait.await.expect("no panic").expect("free again");
    }
    let totals = service.stats(None, HotWindow::Minute, 0).totals;
    assert_eq!((totals.granted, totals.waits), (1_200, 600));
    // 60 s, 59.9 s and so on.
    assert_eq!(totals.waited, SECOND / 10 * (600 * 601 / 2));
}

#[tokio::test(start_paused = true)]
async fn the_sessions_of_whose_ttl_the_smallest_part_is_left_come_first() {
    let service = service().await;
    let open =
        |ttl: u32, client: &str| service.open_session(Some(ttl * SECOND), client).expect("room");
    let _kept: Vec<Session> = (0..400).map(|n| open(100, &format!("idle {n}"))).collect();
    let renewed = open(20, "renewed");
    let _quiet = open(20, "quiet");
    tokio::time::sleep(12 * SECOND).await;
    renewed.renew().expect("in time");
    let nearest = service.sessions_nearest_to_loss(2);
    assert_eq!(nearest[0].client, "quiet");
    assert!((8..9).contains(&nearest[0].left.as_secs()), "{nearest:?}");
    assert!(nearest[1].client.starts_with("idle "), "{nearest:?}");
    let all = service.sessions_nearest_to_loss(1_000);
    assert_eq!((all.len(), &*all[401].client), (402, "renewed"));
    assert!(service.sessions_nearest_to_loss(0).is_empty());
}
