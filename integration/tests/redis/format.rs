//! Format 1 as it was committed: written the same today, and opened by many nodes at once.

use std::sync::Arc;

use integration::containers::{Redis, RedisOptions};
use integration::store::named;
use integration::within;
use lockservice_core::maintenance::ProblemKind;
use lockservice_core::store::{
    Acquired, BindStore, Candidate, ClusterConstants, Head, Leadership, LeadershipHistory, Lineage,
    Op, ServiceRecord, ServiceState, StoreState, decode, encode,
};
use lockservice_core::{Epoch, ErrorKind, Nonce, ServiceId, TxnCounter, TxnId, WriteNumber};
use lockservice_redis::{RedisStore, redis as driver};
use tokio::task::JoinSet;

use crate::support::{Leader, TTL, ask, bounded, candidate, open, seen, table};

/// One field a line: its name and its value, with the escapes of Rust's byte strings.
const FIXTURE: &str = include_str!("../../fixtures/redis-format-1.txt");
const KEY: &str = "{lockservice:default}";
const ORIGIN: ServiceId = ServiceId::new(900_000 << 32 | 1);

/// Does what the committed store was made by.
async fn make(store: &RedisStore) {
    let mut first = candidate("fixture");
    first.nonce = Nonce::new(u64::MAX - 1);
    first.seen = Some(seen(store, &first).await);
    let leader = Leader::acquire(store, first).await;
    leader.renew().await.expect("a renewal");
    let records = vec![
        Op::PutConstants(ClusterConstants { leadership_ttl_ms: 6_000, lease_ttl_ms: 7_000 }),
        Op::PutTable(table(1)),
        Op::PutTable(table(2)),
        Op::PutService(ServiceRecord {
            id: ORIGIN,
            node: leader.candidate.node.clone(),
            nonce: Nonce::new(u64::MAX - 2),
            address: "127.0.0.1:2".to_owned(),
            state: ServiceState::Live,
            succession: Default::default(),
        }),
        Op::PutTombstone(TxnId { origin: ORIGIN, counter: TxnCounter::new(9) }),
    ];
    store.write(leader.epoch, WriteNumber::FIRST, &records).await.expect("a write");
}

/// What is in the store, but for what depends on when and where it was made.
async fn dump(url: &str) -> String {
    let fields: Vec<(Vec<u8>, Vec<u8>)> = ask(url, &format!("HGETALL {KEY}")).await;
    let mut lines: Vec<_> = fields.iter().map(|(name, value)| line(name, value)).collect();
    lines.sort();
    lines.concat()
}

/// One line of a dump, as if it had been made on another copy in the epoch 900,000.
fn line(name: &[u8], value: &[u8]) -> String {
    let value = match name {
        b"head/epoch" => b"900000".to_vec(),
        b"head/record" => {
            let head: Head = decode("head/record", value).expect("a head");
            // The committed head is older than the optional field of where leaderships began; it
            // opens all the same.
            let lineage = Lineage("another/copy".to_owned());
            encode(&Head {
                epoch: Epoch::new(900_000),
                lineage,
                history: LeadershipHistory::default(),
                ..head
            })
        }
        _ => value.to_vec(),
    };
    format!("{} {}\n", name.escape_ascii(), value.escape_ascii())
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().expect("an escape") {
                b'x' => {
                    let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                    u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16)
                        .expect("hexadecimal")
                }
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            },
            other => other,
        });
    }
    bytes
}

async fn restore(url: &str) {
    let mut command = driver::cmd("HSET");
    command.arg(KEY);
    for line in FIXTURE.lines() {
        let (name, value) = line.split_once(' ').expect("a name and a value");
        command.arg(unescaped(name)).arg(unescaped(value));
    }
    let mut connection = driver::Client::open(url)
        .expect("a URL")
        .get_multiplexed_async_connection()
        .await
        .expect("it connects");
    let () = command.query_async(&mut connection).await.expect("restored");
}

fn assert_as_committed(mut state: StoreState) {
    assert_eq!((state.epoch.get(), state.applied.get()), (900_000, 1));
    state.tables.sort_by_key(|table| table.id);
    assert_eq!(state.tables, [table(1), table(2)]);
    assert_eq!(
        state.constants,
        Some(ClusterConstants { leadership_ttl_ms: 6_000, lease_ttl_ms: 7_000 })
    );
    assert_eq!(state.services.iter().map(|service| service.id).collect::<Vec<_>>(), [ORIGIN]);
    assert_eq!(state.tombstones, [TxnId { origin: ORIGIN, counter: TxnCounter::new(9) }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_today_is_format_one_as_it_was_committed() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    make(&open(redis.url()).await).await;
    let written = dump(redis.url()).await;
    assert_eq!(
        without_additions(&written),
        FIXTURE,
        "the format has changed; what is written now:\n{written}"
    );
}

/// Takes out what records of format 1 may have since the fixture was committed: the leader's
/// address for clients, and the cluster, whose id is random.
fn without_additions(written: &str) -> String {
    let mut text = written.to_owned();
    for (field, end) in [(r#",\"clients\":\""#, r#"\""#), (r#",\"cluster\":{"#, "}")] {
        let begin = text.find(field).unwrap_or_else(|| panic!("no {field} in {written}"));
        let content = begin + field.len();
        let length = text[content..].find(end).expect("it ends") + end.len();
        text.replace_range(begin..content + length, "");
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_nodes_open_format_one_at_once_under_load_and_one_leads() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    restore(redis.url()).await;
    let url: Arc<str> = redis.url().into();
    let mut nodes = JoinSet::new();
    for n in 0..16 {
        let url = Arc::clone(&url);
        nodes.spawn(async move {
            let store = bounded(RedisStore::connect(&url)).await.expect("format 1 opens");
            let mut node = candidate(&format!("node-{n}"));
            // It was led on another copy: every node watches first, and reads all the while.
            node.seen = Some(seen(&store, &node).await);
            for _ in 0..4 {
                assert_as_committed(bounded(store.load()).await.expect("format 1 is read"));
            }
            (store, node)
        });
    }
    let nodes = within("sixteen nodes", nodes.join_all()).await;
    let mut asking = JoinSet::new();
    for (store, node) in nodes {
        asking.spawn(async move {
            let response = bounded(store.acquire_leadership(&node, TTL)).await.expect("a response");
            let led = matches!(
                &response,
                Leadership::Acquired(Acquired {
                    applied: WriteNumber::FIRST,
                    clean: false,
                    continuous: false,
                    epoch,
                    ..
                })
                // It may have forgotten some: the next skips ahead of them.
                if (900_001..900_001 + 16).contains(&epoch.get())
            );
            let state = bounded(store.load()).await.expect("read while it is led");
            (led.then(|| (store.clone(), node.clone())), state)
        });
    }
    let responses = within("sixteen answers", asking.join_all()).await;
    assert!(responses.iter().all(|(_, state)| state.tables.len() == 2));
    let mut leaders = responses.into_iter().filter_map(|(led, _)| led);
    let (store, node) = leaders.next().expect("one leads");
    assert!(leaders.next().is_none(), "two lead");
    let mut leader = Leader::acquire(&store, Candidate { seen: None, ..node }).await;
    leader.write().await.expect("and writes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inspection_names_every_damaged_record_and_changes_nothing() {
    let Some(redis) = Redis::start(RedisOptions::default()).await else { return };
    let url = redis.url();
    let empty = bounded(RedisStore::inspect(url)).await.expect("nothing is there");
    assert_eq!((empty.state, empty.head), (StoreState::default(), None));
    assert!(!ask::<bool>(url, &format!("EXISTS {KEY}")).await, "nothing was created");

    restore(url).await;
    let inspection = bounded(RedisStore::inspect(url)).await.expect("a store");
    assert!(inspection.damage.named().is_empty());
    assert_as_committed(inspection.state);
    let spoil = async |field: &str, value: &str| {
        ask::<i64>(url, &format!("HSET {KEY} {field} {value}")).await
    };
    spoil("table/g\0t1", "\u{1}{}").await;
    spoil("service/\0\0\0\0\0\0\0\u{7}", "\u{2}").await;
    spoil("invention", "?").await;
    let before = dump(url).await;
    let inspection = bounded(RedisStore::inspect(url)).await.expect("a store");
    let three = [
        (ProblemKind::Newer, "incarnation 7".to_owned()),
        (ProblemKind::Damaged, "invention".to_owned()),
        (ProblemKind::Damaged, "table g/t1".to_owned()),
    ];
    assert_eq!(named(&inspection), three);
    assert_eq!((inspection.state.tables, inspection.state.applied.get()), (vec![table(2)], 1));
    assert_eq!(inspection.head.expect("sound").epoch, Epoch::new(900_000));
    assert_eq!(dump(url).await, before, "nothing was changed");
    let refused = bounded(open(url).await.load()).await.expect_err("no one leads it");
    assert!(
        matches!(refused.kind(), ErrorKind::StoreCorrupt | ErrorKind::StoreNewer),
        "{refused:?}"
    );

    spoil("head/record", "\u{1}{}").await;
    let inspection = bounded(RedisStore::inspect(url)).await.expect("a store");
    let head = (ProblemKind::Damaged, "head/record".to_owned());
    assert_eq!(named(&inspection), [&[head], &three[..]].concat());
    assert_eq!(inspection.head, None);
    let refused = bounded(RedisStore::connect(url)).await.expect_err("no one leads it");
    assert_eq!(refused.kind(), ErrorKind::StoreCorrupt, "{refused:?}");

    ask::<i64>(url, &format!("HDEL {KEY} format")).await;
    bounded(RedisStore::inspect(url)).await.expect_err("no store of lockservice at all");
}
