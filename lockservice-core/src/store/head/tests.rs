use super::*;
use crate::id::EpochNumber;

const TTL: Duration = Duration::from_secs(5);

fn candidate(node: &str) -> Candidate {
    let nonce = Nonce::new(u64::from(node.as_bytes()[0]) << 32);
    Candidate { nonce, ..Candidate::new(NodeName::new(node).expect("a name"), format!("{node}:1")) }
}

fn lineage(name: &str) -> Lineage {
    Lineage(name.to_owned())
}

fn acquire(found: Option<&Head>, candidate: &Candidate, on: &str) -> (Option<Head>, Leadership) {
    Head::acquire_shared(found, candidate, TTL, &lineage(on), Floor::default())
        .expect("epochs are left")
}

fn seen(response: Leadership) -> Seen {
    match response {
        Leadership::Held { seen, .. } => seen,
        Leadership::Acquired(_) => panic!("acquired: {response:?}"),
    }
}

/// The leadership that it takes over has been watched.
fn take_over(found: Option<&Head>, mut candidate: Candidate, on: &str) -> (Head, Leadership) {
    candidate.seen = Some(seen(acquire(found, &candidate, on).1));
    let (head, response) = acquire(found, &candidate, on);
    (head.expect("acquired"), response)
}

#[test]
fn an_empty_shared_store_is_watched_before_it_is_led() {
    let (head, response) = take_over(None, candidate("a"), "one");
    assert_eq!(head.epoch, Epoch::new(1));
    assert!(matches!(
        response,
        Leadership::Acquired(Acquired { clean: false, continuous: false, exclusive: false, .. })
    ));
}

#[test]
fn a_renewal_between_watching_and_asking_keeps_the_leader() {
    let (head, _) = take_over(None, candidate("a"), "one");
    let mut late = candidate("b");
    late.seen = Some(seen(acquire(Some(&head), &late, "one").1));
    let renewed = head.renew(head.epoch).expect("it leads");
    let (none, response) = acquire(Some(&renewed), &late, "one");
    assert_eq!(none, None);
    assert_eq!(
        seen(response).leader,
        Some(LeaderSeen {
            epoch: head.epoch,
            nonce: leader(&head),
            counter: RenewalNumber::new(1),
            ttl_ms: 5_000
        })
    );
    let (taken, response) = take_over(Some(&renewed), late, "one");
    assert!(taken.epoch > head.epoch);
    assert!(matches!(response, Leadership::Acquired(Acquired { clean: false, .. })));
    assert_eq!(renewed.renew(taken.epoch).expect_err("not yet").kind(), ErrorKind::Fenced);
    assert_eq!(taken.renew(head.epoch).expect_err("fenced").kind(), ErrorKind::Fenced);
}

#[test]
fn an_unknown_data_loss_outlives_leaders_until_one_of_them_resolves_it() {
    let continuous = |response: Leadership| {
        matches!(response, Leadership::Acquired(Acquired { continuous: true, .. }))
    };
    let (first, response) = take_over(None, candidate("a"), "one");
    assert!(!continuous(response), "an empty store may have lost everything");
    let other = Candidate { data_loss: DataLoss::Resolved, ..candidate("b") };
    let (second, response) = take_over(Some(&first), other.clone(), "one");
    assert!(!continuous(response), "only the leader can know that it waited");
    let (resolved, response) = acquire(Some(&second), &other, "one");
    assert!(continuous(response));
    let resolved = resolved.expect("its own");
    let (third, response) = take_over(Some(&resolved), candidate("c"), "one");
    assert!(continuous(response));
    let (fourth, response) = take_over(Some(&third), candidate("d"), "two");
    assert!(!continuous(response), "another copy");
    let (fifth, _) = take_over(Some(&resolved), candidate("e"), "one");
    let raised = Candidate {
        data_loss: DataLoss::Known { high_water: EpochNumber::new(0) },
        ..candidate("f")
    };
    let (sixth, response) = take_over(Some(&fifth), raised, "one");
    assert!(!continuous(response), "it says so itself");
    assert!(fourth.loss_unresolved && sixth.loss_unresolved);
}

#[test]
fn a_known_data_loss_is_known_to_every_leader_until_one_resolves_it() {
    let (first, _) = take_over(None, candidate("a"), "one");
    assert_eq!(first.loss, Loss::default(), "possible, not known");
    let knows = |high_water| Candidate {
        data_loss: DataLoss::Known { high_water: EpochNumber::new(high_water) },
        ..candidate("b")
    };
    let (second, response) = take_over(Some(&first), knows(77), "one");
    assert_eq!(
        second.loss,
        Loss { known: true, observed_before: second.epoch, high_water: EpochNumber::new(77) }
    );
    assert!(matches!(
        response,
        Leadership::Acquired(Acquired { loss, continuous: false, .. })
            if loss == second.loss
    ));
    let (third, _) = take_over(Some(&second), candidate("c"), "one");
    assert_eq!(third.loss, second.loss);
    let (fourth, _) = take_over(Some(&third), knows(5), "two");
    assert_eq!(
        fourth.loss,
        Loss { known: true, observed_before: fourth.epoch, high_water: EpochNumber::new(77) },
        "lost twice"
    );
    let resolved =
        Candidate { data_loss: DataLoss::Resolved, nonce: leader(&fourth), ..candidate("b") };
    let sound = acquire(Some(&fourth), &resolved, "two").0.expect("its own");
    assert_eq!(
        sound.loss,
        Loss { known: false, observed_before: sound.epoch, high_water: EpochNumber::new(77) }
    );
    assert!(!sound.loss_unresolved);
}

#[test]
fn a_store_keeps_its_cluster_over_its_leaders_and_gets_another_only_if_one_is_founded() {
    // Also one that was led by a version that knew no clusters.
    let old = Head { cluster: None, ..take_over(None, candidate("z"), "one").0 };
    for found in [None, Some(&old)] {
        let a = candidate("a");
        let (first, response) = take_over(found, a.clone(), "one");
        assert_eq!(first.cluster, Some(a.cluster), "the first leader's");
        assert!(matches!(
            response,
            Leadership::Acquired(Acquired { cluster, .. })
                if cluster == a.cluster
        ));
        let (_, response) = acquire(Some(&first), &candidate("b"), "one");
        assert!(matches!(response, Leadership::Held { cluster, .. } if cluster == Some(a.cluster)));
        let (second, response) = take_over(Some(&first), candidate("b"), "two");
        assert_eq!(second.cluster, Some(a.cluster));
        assert!(matches!(
            response,
            Leadership::Acquired(Acquired { cluster, .. })
                if cluster == a.cluster
        ));
        let resigned = second.resign(second.epoch).expect("it leads");
        let founder = Candidate { founds: true, ..candidate("c") };
        let third = acquire(Some(&resigned), &founder, "two").0.expect("it was resigned");
        assert_eq!(third.cluster, Some(founder.cluster));
        assert_ne!(third.cluster, second.cluster);
    }
    let (exclusive, _) =
        Head::default().acquire_exclusive(&candidate("a")).expect("epochs are left");
    let (next, response) = exclusive.acquire_exclusive(&candidate("b")).expect("epochs are left");
    assert!(next.cluster.is_some() && next.cluster == exclusive.cluster);
    assert!(matches!(
        response,
        Leadership::Acquired(Acquired { cluster, .. })
            if Some(cluster) == next.cluster
    ));
}

#[test]
fn where_each_leadership_began_is_kept() {
    let (first, _) = take_over(None, candidate("a"), "one");
    let (second, response) = take_over(
        Some(&Head { applied: WriteNumber::new(8), ..first.clone() }),
        candidate("b"),
        "one",
    );
    assert!(matches!(
        &response,
        Leadership::Acquired(Acquired { history, .. })
            if *history == second.history
    ));
    let (third, _) = take_over(
        Some(&Head { applied: WriteNumber::new(90), ..second.clone() }),
        candidate("c"),
        "one",
    );
    let lost = |by: &Head, write| third.history.lost(by.epoch, leader(by), WriteNumber::new(write));
    assert!(lost(&first, 9) && !lost(&first, 8));
    assert!(lost(&second, 91) && !lost(&second, 90));
    let resigned = third.resign(third.epoch).expect("it leads").history;
    assert_eq!(resigned, third.history);
}

#[test]
fn a_node_that_leads_already_takes_nothing_over() {
    let me = candidate("a");
    let (head, _) = take_over(None, me.clone(), "one");
    let elected = Candidate { elected: true, ..me };
    let (raised, _) = acquire(Some(&head), &elected, "one");
    let raised = raised.expect("its own");
    let (other, _) = take_over(Some(&raised), candidate("b"), "one");
    let resigned = other.resign(other.epoch).expect("it leads");
    for found in [&other, &resigned] {
        let (none, response) = acquire(Some(found), &elected, "one");
        assert_eq!(none, None);
        let watched = Candidate { seen: Some(seen(response)), ..elected.clone() };
        assert_eq!(acquire(Some(found), &watched, "one").0, None);
    }
}

fn leader(head: &Head) -> Nonce {
    head.leader.as_ref().expect("led").nonce
}

#[test]
fn a_resignation_and_the_leader_itself_need_no_watching_but_only_on_the_same_copy() {
    let me = candidate("a");
    let (head, _) = take_over(None, me.clone(), "one");
    let (raised, _) = acquire(Some(&head), &me, "one");
    assert_eq!(raised.expect("its own").epoch, Epoch::new(2));
    assert_eq!(seen(acquire(Some(&head), &me, "two").1).lineage, lineage("two"));
    let resigned = head.resign(head.epoch).expect("it leads");
    assert!(matches!(
        acquire(Some(&resigned), &candidate("b"), "one").1,
        Leadership::Acquired(Acquired { clean: true, .. })
    ));
    assert!(matches!(
        acquire(Some(&resigned), &candidate("b"), "two").1,
        Leadership::Held { address: None, .. }
    ));
    let (_, response) = take_over(Some(&resigned), candidate("b"), "two");
    assert!(matches!(
        response,
        Leadership::Acquired(Acquired { clean: false, continuous: false, .. })
    ));
}

#[test]
fn epochs_grow_past_every_floor() {
    let mut me = candidate("a");
    me.floor = Epoch::new(41);
    me.seen = Some(Seen::default());
    let floor = Floor::of_clock(1_767_225_600 + 77 * 1024 + 1023).expect("in range");
    let (head, response) =
        Head::acquire_shared(None, &me, TTL, &Lineage::default(), floor).expect("epochs are left");
    assert_eq!(head.expect("acquired").epoch, Epoch::new(78));
    assert!(
        matches!(response, Leadership::Acquired(Acquired { floor: f, .. }) if f == floor),
        "{response:?}"
    );
}

#[test]
fn a_leader_of_a_store_that_may_have_forgotten_epochs_skips_some_once() {
    let skips = |found: Option<&Head>, nonce, data_loss, on| {
        let me = Candidate { nonce: Nonce::new(nonce), data_loss, ..candidate("a") };
        take_over(found, me, on).0
    };
    let first = skips(None, 300, DataLoss::Unknown, "one");
    assert_eq!(first.epoch, Epoch::new(1 + 300 % 16), "an empty store");
    let same = skips(Some(&first), 200, DataLoss::Unknown, "one");
    assert_eq!(same.epoch, first.epoch.next().expect("left"), "the same data loss goes on");
    let other = skips(Some(&same), 200, DataLoss::Unknown, "two");
    assert_eq!(other.epoch.get(), same.epoch.get() + 1 + 200 % 16, "another copy");
    let raised =
        skips(Some(&other), 100, DataLoss::Known { high_water: EpochNumber::new(0) }, "two");
    assert_eq!(raised.epoch.get(), other.epoch.get() + 1 + 100 % 16, "known to have lost some");
}

#[test]
fn an_exclusive_head_is_written_as_in_the_first_format_and_with_its_cluster() {
    let (head, _) = Head::default().acquire_exclusive(&candidate("a")).expect("epochs are left");
    let json = serde_json::to_value(&head).expect("plain data");
    let names: Vec<&String> = json.as_object().expect("an object").keys().collect();
    assert_eq!(names, ["applied", "cluster", "epoch", "leader"]);
}
