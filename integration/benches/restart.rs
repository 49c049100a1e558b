//! A planned restart with 1,000 holders in 100 tables: for how long nobody can lock a free row of
//! another table, and how soon a held table serves others after its last claim. Prints one line for
//! each store and figure.
//!
//! ```text
//! cargo bench -p integration --bench restart    (with --all-features RocksDB too)
//! ```
//!
//! The server is the `lockservice` beside the benchmark; it is built if it is missing. The rest of
//! its absence is the time that a process takes to end and to start.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures; it promises nothing")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use integration::holders::{Holders, HoldersOptions, Holding, row, sessions, table};
use integration::server::Place;
use integration::store::StoreKind;
use integration::within;
use lockservice::client::Session;
use lockservice_core::clock::{Clock as _, SystemClock, Time};
use lockservice_core::{ServiceId, TableRef};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// The defaults of an exclusive store.
const LEASE: Duration = Duration::from_secs(15);
const TTL: Duration = Duration::from_secs(10);

/// Restarts of each store.
const ROUNDS: usize = 5;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Box::pin(async {
        for store in [StoreKind::File, StoreKind::Rocks] {
            if store.is_there() {
                measure(store).await;
            }
        }
    }));
}

/// Figures of some rounds.
#[derive(Debug, Default)]
struct Figures(Vec<Duration>);

impl Figures {
    fn print(mut self, store: StoreKind, what: &str) {
        self.0.sort_unstable();
        let count = self.0.len();
        let (Some(longest), Some(median)) = (self.0.last(), self.0.get(count / 2)) else { return };
        println!("{store:?}: {what}: median {median:?}, longest {longest:?}, of {count}");
    }
}

async fn measure(store: StoreKind) {
    let place = Place::new(store).with_lease(LEASE);
    let mut server = place.start().await;
    let holders = Holders::start(&place.address, HoldersOptions::thousand(TTL)).await;
    let (mut down, mut away) = (Figures::default(), Figures::default());
    let (mut free, mut held, mut next) =
        (Figures::default(), Figures::default(), Figures::default());
    let mut holders = Some(holders);
    for _ in 0..ROUNDS {
        let all = holders.take().expect("they were put back");
        let before = all.all[0].session.service();
        let prober = Prober::start(&place).await;
        let waiters = waiters(&place, &all).await;
        let stopped = SystemClock.now();
        assert!(server.stop().await.success());
        down.0.push(SystemClock.now().since(stopped));
        server = place.start().await;
        away.0.push(SystemClock.now().since(stopped));
        held.0.extend(until_held_tables_serve(&place, &all, before).await);
        assert_eq!(all.lost(), Vec::<String>::new(), "{}", server.log());
        free.0.push(prober.longest_gap().await);
        let (all, handed_over) = hand_over(all, waiters).await;
        next.0.extend(handed_over);
        holders = Some(all);
    }
    down.print(store, "the server exits after SIGTERM");
    away.print(store, "the next one is ready after SIGTERM");
    free.print(store, "nobody can lock a free row of another table (goal: below 1 s)");
    held.print(store, "a held table serves after its last claim (goal: below 50 ms)");
    next.print(store, "a waiter of before the restart has its row after the release");
}

/// Locks and releases one row of a table in which nothing else is held, all the time.
struct Prober {
    stop: Arc<Notify>,
    task: tokio::task::JoinHandle<Duration>,
}

impl Prober {
    async fn start(place: &Place) -> Self {
        let session = place.client().await.session(Some(TTL)).await.expect("a session");
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let table = TableRef::new("default", "free").expect("a name");
            let (mut last, mut longest) = (SystemClock.now(), Duration::ZERO);
            loop {
                tokio::select! {
                    lock = session.lock(row(&table, "k")) => {
                        drop(lock.expect("free").release().await);
                        let now = SystemClock.now();
                        longest = longest.max(now.since(last));
                        last = now;
                    }
                    () = stopped.notified() => return longest,
                }
            }
        });
        Self { stop, task }
    }

    async fn longest_gap(self) -> Duration {
        self.stop.notify_one();
        self.task.await.expect("no panic")
    }
}

/// A waiter for the row of the first holder of each table.
async fn waiters(place: &Place, holders: &Holders) -> JoinSet<(usize, Time, Session)> {
    let count = holders.tables().count();
    let mut waiting = JoinSet::new();
    for (number, session) in sessions(&place.address, count, TTL).await.into_iter().enumerate() {
        let spec = row(&table(number), &holders.all[number].row);
        waiting.spawn(async move {
            let lock = session.lock(spec).await.expect("its wait goes on");
            let granted = SystemClock.now();
            lock.release().await.expect("it runs");
            (number, granted, session)
        });
    }
    let admin = place.client().await.admin();
    while admin.waits(None).await.expect("it responds").len() < count {}
    waiting
}

/// For each held table, how long after its last claim a free row of it was locked. Those who lock
/// come beside those who claim: one who comes later than the last claim has its own time counted.
async fn until_held_tables_serve(
    place: &Place,
    holders: &Holders,
    before: ServiceId,
) -> Vec<Duration> {
    let client = place.client().await;
    let mut probes = JoinSet::new();
    for table in holders.tables() {
        let client = client.clone();
        probes.spawn(async move {
            let session = client.session(Some(TTL)).await.expect("a session");
            let lock = session.lock(row(&table, "free")).await.expect("free");
            let granted = SystemClock.now();
            lock.release().await.expect("it runs");
            (table, granted)
        });
    }
    let claimed = within("every session claims", holders.reclaimed(before)).await;
    let mut times = Vec::new();
    while let Some(probed) = within("held tables serve", probes.join_next()).await {
        let (table, granted) = probed.expect("no panic");
        times.push(granted.since(claimed[&table]));
    }
    times
}

/// The first holder of each table releases its row, and takes it again after the waiter.
async fn hand_over(
    mut holders: Holders,
    mut waiters: JoinSet<(usize, Time, Session)>,
) -> (Holders, Vec<Duration>) {
    let mut released = HashMap::new();
    let count = waiters.len();
    let mut rest = holders.all.split_off(count);
    let mut first = Vec::new();
    for (number, held) in holders.all.drain(..).enumerate() {
        let Holding { session, txn, table, row, .. } = held;
        released.insert(number, SystemClock.now());
        txn.end(None).await.expect("it was never lost");
        first.push((session, table, row));
    }
    let mut times = Vec::new();
    while let Some(served) = within("a waiter is served", waiters.join_next()).await {
        let (number, granted, _session) = served.expect("no panic");
        times.push(granted.since(released[&number]));
    }
    for (session, table, name) in first {
        holders.all.push(Holding::lock(session, table, name).await);
    }
    holders.all.append(&mut rest);
    (holders, times)
}
