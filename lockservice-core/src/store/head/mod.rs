//! [`Head`]: who leads and how far the store has come. Pure: the response to a candidate is decided
//! here for every backend (L1, L2, L4).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Acquired, Candidate, Cluster, DataLoss, Floor, LeaderSeen, Leadership, LeadershipHistory,
    Lineage, Loss, NodeAddress, Seen,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, NodeName, Nonce};

/// The leader and the progress of the store: the one record that every write reads and replaces
/// (L2).
///
/// A backend keeps it in whatever way lets it compare `epoch` and `applied` in the same atomic step
/// as a write.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Head {
    /// The epoch of the current or last leadership; 0 if there was none.
    pub epoch: Epoch,
    /// The number of the last applied write; 0 if there was none.
    pub applied: u64,
    /// The current leader; `None` if there never was one, or if the last one resigned.
    pub leader: Option<Leader>,
    /// Raised by each renewal. Stays 0 where the exclusive open is the leadership.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub counter: u64,
    /// How long the leadership lasts without a renewal, as its holder counts it. Stays 0 where the
    /// exclusive open is the leadership.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ttl_ms: u64,
    /// The copy of the store on which the leadership was acquired (L4). Empty where it cannot go
    /// back in time.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub lineage: Lineage,
    /// True while writes may have been lost (L4).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[serde(rename = "in_doubt")]
    pub loss_unresolved: bool,
    /// The known data loss (L4).
    #[serde(default, skip_serializing_if = "Loss::is_none")]
    pub loss: Loss,
    /// The writes at which this leadership and those before it began (L4). Stays empty where the
    /// exclusive open is the leadership.
    #[serde(default, skip_serializing_if = "LeadershipHistory::is_empty")]
    #[serde(rename = "terms")]
    pub history: LeadershipHistory,
    /// The cluster of the store; `None` if it was never led by a version that knew clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
}

/// The leader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leader {
    /// Its node.
    pub node: NodeName,
    /// Tells two processes of one node apart.
    pub nonce: Nonce,
    /// The address at which the other nodes reach it.
    pub address: String,
    /// The address at which clients reach it. Empty if it did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub clients: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_empty(lineage: &Lineage) -> bool {
    lineage.0.is_empty()
}

impl Leader {
    fn node_address(&self) -> NodeAddress {
        NodeAddress { nodes: self.address.clone(), clients: self.clients.clone() }
    }
}

impl Head {
    /// The head of an exclusive store once `candidate` leads, and the response to it (L1: the
    /// exclusive open is the leadership).
    pub fn acquire_exclusive(&self, candidate: &Candidate) -> Result<(Self, Leadership)> {
        let cluster = self.cluster_of(candidate);
        let head = self.led_by(candidate, Duration::ZERO, Epoch::default(), Lineage::default())?;
        let acquired =
            Acquired::exclusive(head.epoch, self.applied, self.leader.is_none(), cluster);
        Ok((head, Leadership::Acquired(acquired)))
    }

    /// The response of a shared store to `candidate` (L1), and the head to be stored in the same
    /// atomic step if it leads now.
    ///
    /// `found` is the stored head, `None` if there is none; `ttl` the TTL of the candidate's own
    /// leadership; `lineage` the copy of the store that responds; `floor` the lowest number that
    /// the backend vouches for, for example by its server's clock (L4; zero if it has none).
    pub fn acquire_shared(
        found: Option<&Self>,
        candidate: &Candidate,
        ttl: Duration,
        lineage: &Lineage,
        floor: Floor,
    ) -> Result<(Option<Self>, Leadership)> {
        let seen = Seen { leader: found.map(Self::seen), lineage: lineage.clone() };
        // On another copy of the store neither a resignation nor the candidate's own name proves
        // anything: it may be of the past.
        let continuous = found.is_some_and(|head| head.lineage == *lineage);
        let leader = found.and_then(|head| head.leader.as_ref());
        let clean = continuous && leader.is_none();
        let own = continuous && leader.is_some_and(|leader| leader.nonce == candidate.nonce);
        let was_unresolved = found.is_some_and(|head| head.loss_unresolved);
        let loss_unresolved = match candidate.data_loss {
            DataLoss::Known { .. } => true,
            DataLoss::Resolved if own => false,
            DataLoss::Resolved | DataLoss::Unknown => !continuous || was_unresolved,
        };
        let may_take_over = !candidate.elected && (clean || candidate.seen.as_ref() == Some(&seen));
        if !own && !may_take_over {
            let address = leader.map(Leader::node_address);
            let cluster = found.and_then(|head| head.cluster);
            return Ok((None, Leadership::Held { seen, address, cluster }));
        }
        // L4: the store may have forgotten epochs too.
        let skips = matches!(candidate.data_loss, DataLoss::Known { .. })
            || (loss_unresolved && !(continuous && was_unresolved));
        let before = found.cloned().unwrap_or_default();
        let cluster = before.cluster_of(candidate);
        let mut head = before.led_by(candidate, ttl, floor.epoch(), lineage.clone())?;
        if skips {
            head.epoch = head.epoch.skip_ahead(candidate.nonce);
        }
        head.loss_unresolved = loss_unresolved;
        head.loss = found.map(|head| head.loss).unwrap_or_default();
        head.loss.update(candidate.data_loss, own, head.epoch);
        head.history = found
            .map(|found| &found.history)
            .unwrap_or(&LeadershipHistory::default())
            .with(head.epoch, head.applied, candidate.nonce);
        let acquired = Leadership::Acquired(Acquired {
            epoch: head.epoch,
            applied: head.applied,
            exclusive: false,
            clean,
            continuous: !loss_unresolved,
            loss: head.loss,
            history: head.history.clone(),
            floor,
            lineage: lineage.clone(),
            cluster,
        });
        Ok((Some(head), acquired))
    }

    /// The leadership as a candidate sees it.
    fn seen(&self) -> LeaderSeen {
        LeaderSeen {
            epoch: self.epoch,
            nonce: self.leader.as_ref().map_or_else(Nonce::default, |leader| leader.nonce),
            counter: self.counter,
            ttl_ms: self.ttl_ms,
        }
    }

    /// The cluster of the store once `candidate` leads it.
    fn cluster_of(&self, candidate: &Candidate) -> Cluster {
        self.cluster.filter(|_| !candidate.founds).unwrap_or(candidate.cluster)
    }

    fn led_by(
        &self,
        candidate: &Candidate,
        ttl: Duration,
        floor: Epoch,
        lineage: Lineage,
    ) -> Result<Self> {
        let NodeAddress { nodes, clients } = candidate.address.clone();
        let leader = Leader {
            node: candidate.node.clone(),
            nonce: candidate.nonce,
            address: nodes,
            clients,
        };
        // L4: epochs only grow.
        let epoch = self.epoch.max(candidate.floor).max(floor).next()?;
        let ttl_ms = ttl.as_millis() as u64;
        Ok(Self {
            epoch,
            applied: self.applied,
            leader: Some(leader),
            counter: self.counter,
            ttl_ms,
            lineage,
            loss_unresolved: false,
            loss: Loss::default(),
            history: LeadershipHistory::default(),
            cluster: Some(self.cluster_of(candidate)),
        })
    }

    /// Fails with `Fenced` unless `epoch` is the epoch of the current leadership (L2).
    pub fn check(&self, epoch: Epoch) -> Result<()> {
        if epoch == self.epoch && self.leader.is_some() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Fenced,
            "another leader has taken over the store, or this one resigned: stop leading",
        )
        .with("epoch", epoch)
        .with("current", self.epoch))
    }

    /// The head after the write `number` of `epoch`, or `Fenced` if that is not the next one (L2).
    pub fn advance(&self, epoch: Epoch, number: u64) -> Result<Self> {
        self.check(epoch)?;
        if self.applied.checked_add(1) != Some(number) {
            return Err(Error::new(
                ErrorKind::Fenced,
                "the write's number does not follow the last applied one: read that before the \
                    next write",
            )
            .with("number", number)
            .with("applied", self.applied));
        }
        Ok(Self { applied: number, ..self.clone() })
    }

    /// The head after the leader of `epoch` renewed (L1).
    pub fn renew(&self, epoch: Epoch) -> Result<Self> {
        self.check(epoch)?;
        Ok(Self { counter: self.counter + 1, ..self.clone() })
    }

    /// The head after the leader of `epoch` resigned.
    pub fn resign(&self, epoch: Epoch) -> Result<Self> {
        self.check(epoch)?;
        Ok(Self { leader: None, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn candidate(node: &str) -> Candidate {
        let nonce = Nonce::new(u64::from(node.as_bytes()[0]) << 32);
        Candidate {
            nonce,
            ..Candidate::new(NodeName::new(node).expect("a name"), format!("{node}:1"))
        }
    }

    fn lineage(name: &str) -> Lineage {
        Lineage(name.to_owned())
    }

    fn acquire(
        found: Option<&Head>,
        candidate: &Candidate,
        on: &str,
    ) -> (Option<Head>, Leadership) {
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
            Leadership::Acquired(Acquired {
                clean: false,
                continuous: false,
                exclusive: false,
                ..
            })
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
            Some(LeaderSeen { epoch: head.epoch, nonce: leader(&head), counter: 1, ttl_ms: 5_000 })
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
        let raised = Candidate { data_loss: DataLoss::Known { high_water: 0 }, ..candidate("f") };
        let (sixth, response) = take_over(Some(&fifth), raised, "one");
        assert!(!continuous(response), "it says so itself");
        assert!(fourth.loss_unresolved && sixth.loss_unresolved);
    }

    #[test]
    fn a_known_data_loss_is_known_to_every_leader_until_one_resolves_it() {
        let (first, _) = take_over(None, candidate("a"), "one");
        assert_eq!(first.loss, Loss::default(), "possible, not known");
        let knows =
            |high_water| Candidate { data_loss: DataLoss::Known { high_water }, ..candidate("b") };
        let (second, response) = take_over(Some(&first), knows(77), "one");
        assert_eq!(
            second.loss,
            Loss { known: true, observed_before: second.epoch, high_water: 77 }
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
            Loss { known: true, observed_before: fourth.epoch, high_water: 77 },
            "lost twice"
        );
        let resolved =
            Candidate { data_loss: DataLoss::Resolved, nonce: leader(&fourth), ..candidate("b") };
        let sound = acquire(Some(&fourth), &resolved, "two").0.expect("its own");
        assert_eq!(sound.loss, Loss { known: false, observed_before: sound.epoch, high_water: 77 });
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
            assert!(
                matches!(response, Leadership::Held { cluster, .. } if cluster == Some(a.cluster))
            );
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
        let (next, response) =
            exclusive.acquire_exclusive(&candidate("b")).expect("epochs are left");
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
        let (second, response) =
            take_over(Some(&Head { applied: 8, ..first.clone() }), candidate("b"), "one");
        assert!(matches!(
            &response,
            Leadership::Acquired(Acquired { history, .. })
                if *history == second.history
        ));
        let (third, _) =
            take_over(Some(&Head { applied: 90, ..second.clone() }), candidate("c"), "one");
        let lost = |by: &Head, write| third.history.lost(by.epoch, leader(by), write);
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
        let (head, response) = Head::acquire_shared(None, &me, TTL, &Lineage::default(), floor)
            .expect("epochs are left");
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
        let raised = skips(Some(&other), 100, DataLoss::Known { high_water: 0 }, "two");
        assert_eq!(raised.epoch.get(), other.epoch.get() + 1 + 100 % 16, "known to have lost some");
    }

    #[test]
    fn an_exclusive_head_is_written_as_in_the_first_format_and_with_its_cluster() {
        let (head, _) =
            Head::default().acquire_exclusive(&candidate("a")).expect("epochs are left");
        let json = serde_json::to_value(&head).expect("plain data");
        let names: Vec<&String> = json.as_object().expect("an object").keys().collect();
        assert_eq!(names, ["applied", "cluster", "epoch", "leader"]);
    }
}
