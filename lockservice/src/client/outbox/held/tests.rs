use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use lockservice_core::allocator::{Bind, BindSlot};
use lockservice_core::service::Promise;
use lockservice_core::table::Grant;
use lockservice_core::{LockItem, LockMode, ServiceId, TableId, TableRef, TxnId, TxnNumber};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::convert::{items_to_proto, mode_to_proto};
use crate::proto;
use LockMode::{Exclusive, Shared, Update};

fn row(n: u8) -> LockItem {
    LockItem::Row(Key::new([b'a' + n]).expect("a key"))
}

fn range(from: u8, to: u8) -> LockItem {
    let bound = |n: u8| Bound::Included(Key::new([b'a' + n]).expect("a key"));
    LockItem::Range(KeyRange::new(bound(from), bound(to)).expect("a range"))
}

fn granted(token: u64) -> Granted {
    let bind = Bind {
        table: TableRef::new("g", "t").expect("names"),
        id: TableId::new(1),
        partition: 0,
        owner: ServiceId::new(1),
        version: BindVersion::new(7),
        slot: BindSlot::NONE,
    };
    let mut grant = Grant::new(bind, FencingToken::new(token));
    grant.newly_locked = true;
    Granted {
        txn: TxnId::new(ServiceId::new(1), TxnNumber::new(1), false),
        grant,
        promise: Promise { valid_for: Duration::ZERO },
        history_known: None,
    }
}

fn lock_of(items: &[LockItem], mode: LockMode, granted: &Granted) -> Change {
    let (rows, ranges) = items_to_proto(items);
    let (group, table) = ("g".to_owned(), "t".to_owned());
    let op = proto::LockOp {
        group,
        table,
        rows,
        ranges,
        mode: mode_to_proto(mode),
        ..proto::LockOp::default()
    };
    Change::Lock(op.encode_to_vec(), LockGrant::of(granted).expect("it holds something"))
}

fn lock(items: &[LockItem], mode: LockMode, token: u64) -> Change {
    lock_of(items, mode, &granted(token))
}

fn unlock(items: &[LockItem]) -> Change {
    let (rows, ranges) = items_to_proto(items);
    let (group, table) = ("g".to_owned(), "t".to_owned());
    Change::Unlock(
        proto::UnlockOp { group, table, rows, ranges, ..Default::default() }.encode_to_vec(),
    )
}

fn downgrade(items: &[LockItem], mode: LockMode) -> Change {
    let (rows, ranges) = items_to_proto(items);
    let (group, table) = ("g".to_owned(), "t".to_owned());
    let op = proto::DowngradeOp {
        group,
        table,
        rows,
        ranges,
        mode: mode_to_proto(mode),
        ..Default::default()
    };
    Change::Downgrade(op.encode_to_vec())
}

/// The items that are held after `changes`, which are numbered from 1: mode and token of each.
fn after(changes: Vec<Change>) -> Vec<(LockItem, LockMode, u64)> {
    let mut held = Held::default();
    for (n, change) in (1..).zip(changes) {
        held.note(Sequence::new(n), change);
    }
    items(held.replay([]).expect("readable"))
}

fn items(holds: Holds) -> Vec<(LockItem, LockMode, u64)> {
    holds.items().into_iter().map(|held| (held.item, held.mode, held.token.get())).collect()
}

#[test]
fn what_is_held_at_least_as_strongly_stays_and_what_is_held_more_weakly_is_upgraded() {
    let changes = vec![
        lock(&[row(0), row(1)], Update, 1),
        lock(&[row(0)], Shared, 1),
        lock(&[row(1)], Exclusive, 2),
    ];
    assert_eq!(after(changes), [(row(0), Update, 1), (row(1), Exclusive, 2)]);
}

#[test]
fn a_row_in_a_range_that_is_held_is_not_held_by_itself() {
    let changes = vec![
        lock(&[row(1), range(0, 2)], Shared, 1),
        lock(&[row(0)], Shared, 1),
        lock(&[row(2)], Exclusive, 2),
    ];
    assert_eq!(after(changes), [(range(0, 2), Shared, 1), (row(2), Exclusive, 2)]);
    let changes =
        vec![lock(&[range(0, 2)], Shared, 1), lock(&[row(0)], Shared, 1), unlock(&[range(0, 2)])];
    assert_eq!(after(changes), [], "the row went with the range");
}

#[test]
fn skipped_rows_are_not_held_and_rows_become_the_range_of_an_escalation() {
    let mut skipping = granted(2);
    skipping.grant.skipped = vec![Key::new("b").expect("a key")];
    let changes = |then| {
        let first = lock(&[row(0), row(1)], Shared, 1);
        vec![first, lock_of(&[row(1), row(2)], Exclusive, &skipping), then]
    };
    assert_eq!(
        after(changes(unlock(&[row(4)]))),
        [(row(0), Shared, 1), (row(1), Shared, 1), (row(2), Exclusive, 2)]
    );
    let mut escalating = granted(3);
    let LockItem::Range(whole) = range(0, 3) else { panic!("a range") };
    escalating.grant.escalated = Some(Box::new(whole));
    let escalated = || lock_of(&[row(3)], Shared, &escalating);
    assert_eq!(after(changes(escalated())), [(range(0, 3), Exclusive, 3)]);
    // It stands for earlier grants, which are not rolled back.
    let mut cancelled = changes(escalated());
    cancelled.push(Change::Cancel(Sequence::new(3)));
    assert_eq!(after(cancelled), [(range(0, 3), Exclusive, 3)]);
}

#[test]
fn a_call_that_added_nothing_is_not_noted() {
    let mut nothing = granted(1);
    nothing.grant.newly_locked = false;
    assert!(LockGrant::of(&nothing).is_none());
}

#[test]
fn a_log_that_is_what_is_held_is_not_replayed_ahead() {
    let mut held = Held::default();
    let lock = |n: u64| {
        let name = LockItem::Row(Key::new(n.to_string()).expect("a key"));
        lock(&[name], Exclusive, n)
    };
    assert!((1..5_000).all(|n| !held.note(Sequence::new(n), lock(n))));
}

#[test]
fn a_roll_back_ends_what_came_since_and_the_token_of_an_upgrade_stays() {
    let changes = |to| {
        vec![
            lock(&[row(0)], Shared, 1),
            lock(&[row(0), row(1)], Exclusive, 2),
            Change::RollBackTo(Sequence::new(to)),
        ]
    };
    assert_eq!(after(changes(1)), [(row(0), Shared, 2)]);
    assert_eq!(after(changes(0)), []);
}

#[test]
fn a_loop_of_locks_and_unlocks_keeps_no_more_than_what_is_held() {
    let mut held = Held::default();
    held.note(Sequence::FIRST, lock(&[row(9)], Shared, 1));
    let mut longest = 0;
    for n in 1..2_000 {
        held.note(Sequence::new(2 * n), lock(&[row(0)], Exclusive, 1 + n));
        if held.note(Sequence::new(2 * n + 1), unlock(&[row(0)])) {
            held.compact(Sequence::new(2 * n + 2));
        }
        longest = longest.max(held.log_len());
    }
    assert!(longest < 200, "{longest}");
    assert_eq!(items(held.replay([]).expect("readable")), [(row(9), Shared, 1)]);
}

#[test]
fn what_is_before_an_operation_under_way_alone_is_replayed_ahead() {
    let mut held = Held::default();
    held.note(Sequence::new(3), lock(&[row(0)], Exclusive, 2));
    held.compact(Sequence::new(2));
    // The response to the unlock comes late.
    held.note(Sequence::new(2), unlock(&[row(0)]));
    assert_eq!(items(held.replay([]).expect("readable")), [(row(0), Exclusive, 2)]);
}

/// An operation of a test.
#[derive(Clone, Debug)]
enum Op {
    Lock(Vec<LockItem>, LockMode),
    Unlock(Vec<LockItem>),
    Downgrade(Vec<LockItem>, LockMode),
    RollBackTo(u64),
    Cancel(u64),
}

/// A naive lock set: of each item, the grants that count, the latest last.
#[derive(Default)]
struct Naive(BTreeMap<String, (LockItem, u64, Vec<NaiveGrant>)>);

/// Its mode, its operation and its token.
type NaiveGrant = (LockMode, u64, u64);

impl Naive {
    fn keys(item: &LockItem) -> Vec<u8> {
        (0..5).filter(|n| item.covers(&row(*n))).collect()
    }

    fn is_covered(&self, item: &LockItem, mode: LockMode) -> bool {
        self.0.values().any(|(held, _, grants)| {
            let is_in = Self::keys(item).iter().all(|key| Self::keys(held).contains(key));
            is_in && grants.last().is_some_and(|(strength, ..)| *strength >= mode)
        })
    }

    fn pop(&mut self, is_over: impl Fn(&NaiveGrant) -> bool, keeps_token: bool) {
        for (_, best, grants) in self.0.values_mut() {
            while let Some(at) = grants.iter().rposition(&is_over) {
                if keeps_token {
                    *best = grants.last().map_or(*best, |(.., token)| (*best).max(*token));
                }
                grants.remove(at);
            }
        }
        self.0.retain(|_, (.., grants)| !grants.is_empty());
    }

    fn apply(&mut self, sequence: u64, op: &Op) {
        match op {
            Op::Lock(items, mode) => {
                // The largest first, and a row before a range of it.
                let mut items = items.clone();
                items.sort_by_key(|item| (5 - Self::keys(item).len(), item.as_row().is_none()));
                for item in items {
                    if !self.is_covered(&item, *mode) {
                        let entry = self.0.entry(item.to_string());
                        let entry = entry.or_insert_with(|| (item, 0, Vec::new()));
                        entry.2.push((*mode, sequence, sequence));
                    }
                }
            }
            Op::Unlock(items) => {
                items.iter().for_each(|item| drop(self.0.remove(&item.to_string())))
            }
            Op::Downgrade(items, mode) => {
                for item in items {
                    let Some((_, best, grants)) = self.0.get_mut(&item.to_string()) else {
                        continue;
                    };
                    while let [.., (beneath, ..), top] = &grants[..]
                        && beneath >= mode
                        && top.0 > *mode
                    {
                        *best = (*best).max(top.2);
                        grants.pop();
                    }
                    if let Some(top) = grants.last_mut() {
                        top.0 = top.0.min(*mode);
                    }
                }
            }
            Op::RollBackTo(to) => self.pop(|(_, since, _)| since > to, true),
            Op::Cancel(cancelled) => self.pop(|(_, since, _)| since == cancelled, false),
        }
    }
}

fn item() -> impl Strategy<Value = LockItem> {
    prop_oneof![
        3 => (0..5u8).prop_map(row),
        1 => (0..5u8, 0..5u8).prop_map(|(a, b)| range(a.min(b), a.max(b))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let items = || prop::collection::vec(item(), 1..4);
    let mode = || prop::sample::select(LockMode::ALL.to_vec());
    prop_oneof![
        6 => (items(), mode()).prop_map(|(items, mode)| Op::Lock(items, mode)),
        2 => items().prop_map(Op::Unlock),
        2 => (items(), prop::sample::select(vec![Shared, Update]))
            .prop_map(|(items, mode)| Op::Downgrade(items, mode)),
        1 => (0..30u64).prop_map(Op::RollBackTo),
        1 => (1..30u64).prop_map(Op::Cancel),
    ]
}

fn change(sequence: u64, op: &Op) -> Change {
    match op {
        // Every call gets a token of its own.
        Op::Lock(items, mode) => lock(items, *mode, sequence),
        Op::Unlock(items) => unlock(items),
        Op::Downgrade(items, mode) => downgrade(items, *mode),
        Op::RollBackTo(to) => Change::RollBackTo(Sequence::new(*to.min(&sequence))),
        Op::Cancel(cancelled) => Change::Cancel(Sequence::new(*cancelled)),
    }
}

proptest! {
    #[test]
    fn a_log_adds_up_to_what_a_naive_lock_set_has_however_it_is_compacted(
        ops in prop::collection::vec((op(), any::<bool>()), 1..30),
        last in 0..4usize,
    ) {
        let (mut held, mut naive) = (Held::default(), Naive::default());
        let noted = ops.len().saturating_sub(last);
        let mut others = Vec::new();
        for (n, (op, compacts)) in ops.iter().enumerate() {
            let sequence = n as u64 + 1;
            let op = match op {
                Op::RollBackTo(to) => Op::RollBackTo(*to.min(&sequence)),
                op => op.clone(),
            };
            naive.apply(sequence, &op);
            if n >= noted {
                others.push((Sequence::new(sequence), change(sequence, &op)));
                continue;
            }
            held.note(Sequence::new(sequence), change(sequence, &op));
            if *compacts {
                held.compact(Sequence::new(sequence));
            }
        }
        let others = others.iter().map(|(sequence, change)| (*sequence, change.as_ref()));
        let mut replayed: Vec<_> = items(held.replay(others).expect("readable"))
            .into_iter()
            .map(|(item, mode, token)| (item.to_string(), mode, token))
            .collect();
        replayed.sort();
        let expected: Vec<_> = naive
            .0
            .iter()
            .map(|(name, (_, best, grants))| {
                let (mode, _, token) = grants.last().expect("one that is not held is removed");
                (name.clone(), *mode, (*best).max(*token))
            })
            .collect();
        prop_assert_eq!(replayed, expected);
    }
}
