use super::*;

fn bounded(sessions_max: usize, ops_max: usize, kept_bytes_max: usize) -> QuotaSettings {
    QuotaSettings { sessions_max, ops_max, kept_bytes_max, ..QuotaSettings::default() }
}

fn address_owner() -> QuotaOwner {
    QuotaOwner::Client("the address 10.0.0.1".to_owned())
}

fn used(quota: &Quota) -> (usize, usize, usize) {
    (quota.used(Resource::Sessions), quota.used(Resource::Ops), quota.used(Resource::KeptBytes))
}

fn session(peer: &Arc<Quota>, node: &Arc<Quota>) -> Result<Charge> {
    Charge::session(Some(Arc::clone(peer)), node)
}

#[test]
fn a_charge_counts_at_every_level_above_and_is_released_with_the_session() {
    let node = Quota::new(QuotaOwner::Node, QuotaSettings::default(), None);
    let address = Quota::new(address_owner(), QuotaSettings::default(), None);
    let one =
        Quota::new(QuotaOwner::Connection, QuotaSettings::default(), Some(Arc::clone(&address)));
    let two =
        Quota::new(QuotaOwner::Connection, QuotaSettings::default(), Some(Arc::clone(&address)));
    let mut first = session(&one, &node).expect("room");
    let mut second = session(&two, &node).expect("room");
    first.set(3, 100);
    second.set(1, 50);
    first.set(2, 40);
    assert_eq!((used(&one), used(&address), used(&node)), ((1, 2, 40), (2, 3, 90), (2, 3, 90)));
    drop(first);
    assert_eq!((used(&one), used(&address), used(&node)), ((0, 0, 0), (1, 1, 50), (1, 1, 50)));
    drop(second);
    assert_eq!((used(&address), used(&node)), ((0, 0, 0), (0, 0, 0)));
}

#[test]
fn a_session_that_is_refused_somewhere_is_charged_nowhere() {
    let node = Quota::new(QuotaOwner::Node, bounded(2, 9, 9), None);
    let address = Quota::new(address_owner(), bounded(1, 9, 9), None);
    let one = Quota::new(QuotaOwner::Connection, bounded(5, 5, 5), Some(Arc::clone(&address)));
    let held = session(&one, &node).expect("room");
    let refused = session(&one, &node).expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.to_string().contains("of the address 10.0.0.1"), "{refused}");
    assert_eq!((used(&one).0, used(&address).0, used(&node).0), (1, 1, 1));
    let other = Quota::new(address_owner(), bounded(9, 9, 9), None);
    let last = session(&other, &node).expect("room");
    assert!(session(&other, &node).expect_err("full").to_string().contains("of the node"));
    assert_eq!((used(&other).0, used(&node).0), (1, 2));
    drop((held, last));
    session(&one, &node).expect("room again");
}

#[test]
fn operations_and_bytes_are_bounded_for_all_sessions_of_one_together() {
    let node = Quota::new(QuotaOwner::Node, QuotaSettings::default(), None);
    let one = Quota::new(address_owner(), bounded(9, 2, 100), None);
    let mut first = session(&one, &node).expect("room");
    let mut second = session(&one, &node).expect("room");
    first.set(1, 10);
    second.check_room().expect("room");
    second.set(1, 10);
    for charge in [&first, &second] {
        assert!(
            charge.check_room().expect_err("full").to_string().contains("operations under way")
        );
    }
    second.set(0, 70);
    first.hold(10).expect("room");
    assert!(first.hold(11).is_err(), "100 is the most");
    first.let_go_of(10);
    second.set(0, 90);
    assert!(first.check_room().expect_err("full").to_string().contains("bytes"));
    second.set(0, 0);
    first.check_room().expect("room again");
}

#[test]
fn calls_and_the_memory_of_their_messages_are_bounded_and_released_with_them() {
    let bounds = QuotaSettings { calls_max: 2, ..bounded(9, 9, 100) };
    let address = Quota::new(address_owner(), bounds, None);
    let one =
        Quota::new(QuotaOwner::Connection, QuotaSettings::default(), Some(Arc::clone(&address)));
    let other =
        Quota::new(QuotaOwner::Connection, QuotaSettings::default(), Some(Arc::clone(&address)));
    let calls = [&one, &other].map(|quota| Arc::new(quota.open_call(false).expect("room")));
    let refused = one.open_call(false).expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.to_string().contains("open calls of the address 10.0.0.1"), "{refused}");
    let releases = [one.open_call(true), one.open_call(true)];
    assert!(releases.iter().all(Result::is_ok) && one.open_call(true).is_err(), "as many again");
    drop(releases);

    let [mut first, mut second] = calls.each_ref().map(OpenCall::memory);
    first.grow_to(60).expect("room");
    first.grow_to(40).expect("it is that large already");
    assert!(second.grow_to(41).is_err());
    assert_eq!((used(&one).2, used(&other).2, used(&address).2), (60, 0, 60));
    second.grow_to(40).expect("room");
    drop(first);
    second.grow_to(100).expect("room again");
    drop((second, calls));
    let calls = |quota: &Quota| quota.used(Resource::Calls);
    assert_eq!((used(&address).2, calls(&address), calls(&one), calls(&other)), (0, 0, 0, 0));
}

#[test]
fn a_transaction_reserves_memory_in_steps_and_returns_all_of_it_once() {
    let bounds = QuotaSettings { txns_max: 2, lock_bytes_max: 10_000, ..QuotaSettings::default() };
    let client = Quota::new(address_owner(), bounds, None);
    let one =
        Quota::new(QuotaOwner::Connection, QuotaSettings::default(), Some(Arc::clone(&client)));
    let node = Quota::new(QuotaOwner::Node, QuotaSettings::default(), None);
    let session = session(&one, &node).expect("room");
    let txn = || session.txn().map(|charge| charge.expect("the client is bounded"));
    let used = || (client.used(Resource::Txns), client.used(Resource::LockBytes));
    let (first, second) = (txn().expect("room"), txn().expect("room"));
    let refused = txn().expect_err("two is the most").to_string();
    assert!(refused.contains("transactions of the address 10.0.0.1"), "{refused}");
    assert!(refused.contains("server.txns_per_client_max"), "{refused}");
    assert_eq!((first.reserved(), used()), (1_024, (2, 2_048)));
    assert_eq!(first.reserve(1_000).expect("it has as much"), 1_024);
    assert_eq!(first.reserve(1_025).expect("room"), 2_048, "as much again");
    assert_eq!(first.reserve(5_000).expect("room"), 5_000);
    assert_eq!(second.reserve(5_000).expect("room"), 5_000, "what is left");
    let refused = second.reserve(5_001).expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(refused.to_string().contains("bytes of locks"), "{refused}");
    assert_eq!((second.reserved(), used()), (5_000, (2, 10_000)), "nothing has changed");
    assert_eq!(first.shrink(|| 0), None, "it is not worth it");
    client.set_limits(QuotaSettings { lock_bytes_max: 100_000, ..bounds });
    assert_eq!(first.reserve(40_000).expect("room"), 40_000);
    assert_eq!(first.shrink(|| 10_001), None, "it is not worth it");
    assert_eq!(first.shrink(|| 700), Some(1_400));
    assert_eq!(used(), (2, 6_400));
    first.give_back();
    first.give_back();
    assert_eq!(used(), (1, 5_000));
    let ended = first.reserve(2_000).expect_err("it has ended");
    assert_eq!((ended.kind(), used()), (ErrorKind::TxnNotFound, (1, 5_000)));
    drop((first, second));
    assert_eq!(used(), (0, 0));
    // Without room for its first locks a transaction begins all the same.
    client.set_limits(QuotaSettings { lock_bytes_max: 100, ..bounds });
    let poor = txn().expect("room for a transaction");
    assert_eq!((poor.reserved(), poor.reserve(100).expect("all of it")), (0, 100));
    drop((poor, session));
    assert_eq!(client.usage(), Quota::new(QuotaOwner::Node, bounds, None).usage());
}
