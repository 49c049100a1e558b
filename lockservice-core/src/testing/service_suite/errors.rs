//! Errors and lists: what operators and refused callers learn.

use std::ops::Bound;
use std::time::Duration;

use super::fixture::{ServiceFixture, UnparsedItem};
use super::kit::{
    Scene, Variations as _, client_of, exclusive, item, refused, shared, table, table_named,
};
use crate::error::{Advice, ErrorKind};
use crate::key::{KEY_BYTES_MAX, LockMode};
use crate::service::{LockSpec, WaitStatus};

// Long: the expected lists of one scene.
pub(super) async fn locks_and_waits_show_who_waits_for_whom(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    let (v, w) = (scene.actor("v").await, scene.actor("w").await);
    let of_a = a.gets(exclusive("k")).await;
    let of_b = b.gets(shared("[m,p]")).await;
    b.gets(exclusive("k").of(&table_named("u"))).await;
    w.gets(exclusive("w")).await;
    v.gets(exclusive("v")).await;
    let calls = [
        scene.waits(&w, shared("k")).await,
        scene.waits(&v, exclusive("[k,n]")).await,
        scene.waits(&a, exclusive("k").of(&table_named("u"))).await,
    ];

    let locks = fixture.locks(Some(&table())).await.expect("a list");
    let lock = |label: &str, text: &str| {
        let found = locks.iter().find(|it| it.party.label == label && it.info.item == item(text));
        found.unwrap_or_else(|| panic!("{label} holds {text}: {locks:?}"))
    };
    assert_eq!(locks.len(), 4, "of that table alone: {locks:?}");
    for (actor, text, mode, token, waiters) in [
        (&a, "k", LockMode::Exclusive, of_a.token, 2),
        (&b, "[m,p]", LockMode::Shared, of_b.token, 1),
    ] {
        let lock = lock(&actor.name, text);
        assert_eq!((lock.info.mode, lock.info.token, lock.info.txn), (mode, token, actor.id()));
        assert_eq!(
            (&lock.info.table, &lock.party.client, lock.info.waiters),
            (&table(), &client_of(&actor.name), waiters)
        );
    }

    let waits = fixture.waits(Some(&table())).await.expect("a list");
    let mut lines: Vec<_> = waits.iter().map(in_words).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "v waits for [k, n], exclusive, since [m, p] is held by b",
            "v waits for [k, n], exclusive, since k is held by a",
            "v waits for [k, n], exclusive, since k is requested by w",
            "w waits for k, shared, since k is held by a",
        ]
    );
    let holder = |label: &str| {
        waits.iter().find(|w| w.holder.label == label).expect("in the lines").info.holder
    };
    for wait in &waits {
        let waiter = if wait.waiter.label == "v" { v.id() } else { w.id() };
        assert_eq!(wait.info.waiter, waiter);
    }
    assert_eq!((holder("a"), holder("b"), holder("w")), (a.id(), b.id(), w.id()));

    assert_eq!(fixture.waits(None).await.expect("a list").len(), 5, "of every table");
    let never = table_named("never");
    assert_eq!(fixture.locks(Some(&never)).await.expect("a list"), []);
    assert_eq!(fixture.waits(Some(&never)).await.expect("a list"), []);
    for call in calls {
        call.cancelled().await;
    }
}

fn in_words(wait: &WaitStatus) -> String {
    let info = &wait.info;
    assert_eq!(info.table, table());
    assert_eq!(wait.waiter.client, client_of(&wait.waiter.label));
    assert_eq!(wait.holder.client, client_of(&wait.holder.label));
    assert!(wait.waiting < Duration::from_secs(60));
    let how = if info.granted { "held" } else { "requested" };
    let (who, whom) = (&wait.waiter.label, &wait.holder.label);
    let (item, mode, held) = (&info.item, info.mode, &info.held_item);
    format!("{who} waits for {item}, {mode}, since {held} is {how} by {whom}")
}

pub(super) async fn an_error_says_what_happened_to_what_and_what_to_do(
    fixture: &dyn ServiceFixture,
) {
    let scene = Scene::new(fixture);
    let (a, b) = (scene.actor("a").await, scene.actor("b").await);
    let grant = a.gets(exclusive("k")).await;
    b.gets(exclusive("l m")).await;

    let conflict = b.may_not(exclusive("a k")).await;
    let timeout =
        b.fails(shared("[j,l)").within(Duration::from_millis(20)), ErrorKind::Timeout).await;
    for error in [&conflict, &timeout] {
        let blocker = error.blocker().expect("the conflicting holder");
        assert_eq!(
            (blocker.txn, &blocker.item, blocker.granted),
            (a.id(), &item("k"), true),
            "{error}"
        );
        assert_eq!(blocker.mode, LockMode::Exclusive);
        assert_eq!(
            (blocker.label.as_str(), blocker.client.as_str()),
            ("a", client_of("a").as_str()),
            "the names of the holder: {error}"
        );
    }
    let call = scene.waits(&a, exclusive("l")).await;
    let of_b = b.requests(exclusive("k"));
    let deadlock = call.refused(ErrorKind::Deadlock).await;
    of_b.cancelled().await;
    let invalid = b.fails(LockSpec::new(table(), Vec::new()), ErrorKind::InvalidArgument).await;
    let commit =
        refused("T1", fixture.begin_commit(&a.commit(&[&grant])).await, ErrorKind::CannotCommit);
    a.closes().await;
    let closed = a.fails(exclusive("x"), ErrorKind::SessionLost).await;
    for (error, advice) in [
        (conflict, Advice::RetryCall),
        (timeout, Advice::RetryCall),
        (deadlock, Advice::RetryTransaction),
        (invalid, Advice::FixRequest),
        (commit, Advice::RetryTransaction),
        (closed, Advice::NewSession),
    ] {
        assert_eq!(error.advice(), advice, "{error}");
        assert!(
            error.message().contains(' ') && error.to_string().starts_with(error.message()),
            "{error}"
        );
    }
}

pub(super) async fn bad_input_is_refused_and_the_transaction_goes_on(fixture: &dyn ServiceFixture) {
    let scene = Scene::new(fixture);
    let a = scene.actor("a").await;
    a.gets(exclusive("a")).await;
    a.fails(LockSpec::new(table(), Vec::new()), ErrorKind::InvalidArgument).await;
    let too_many = (0..20_001).map(|n| item(&n.to_string())).collect();
    a.fails(LockSpec::new(table(), too_many), ErrorKind::InvalidArgument).await;
    a.gets(exclusive("b b b [c,d] [c,d]")).await;

    let key = |text: &str| text.as_bytes().to_vec();
    let included = |text: &str| Bound::Included(key(text));
    let excluded = |text: &str| Bound::Excluded(key(text));
    for bad in [
        UnparsedItem::Row(Vec::new()),
        UnparsedItem::Row(vec![b'x'; KEY_BYTES_MAX + 1]),
        UnparsedItem::Range(included("q"), included("p")),
        UnparsedItem::Range(included("p"), excluded("p")),
        // No key lies between.
        UnparsedItem::Range(excluded("p"), excluded("p\0")),
        UnparsedItem::Range(included(""), Bound::Unbounded),
        UnparsedItem::Range(Bound::Unbounded, Bound::Excluded(vec![b'x'; KEY_BYTES_MAX + 1])),
    ] {
        let shown = format!("{bad:?}");
        // Beside a good one: all or nothing.
        let items = vec![UnparsedItem::Row(key("good")), bad];
        refused(&shown, fixture.lock_unparsed(&table(), items).await, ErrorKind::InvalidArgument);
    }
    scene.is(&["a holds [c, d]", "a holds a", "a holds b"], &[]).await;
    let longest = vec![
        UnparsedItem::Row(vec![b'x'; KEY_BYTES_MAX]),
        UnparsedItem::Range(included("p"), included("p")),
    ];
    fixture.lock_unparsed(&table(), longest).await.expect("as much as is allowed");
}
