//! [`Head`]: the leadership, and the last write. Pure: the response to a candidate is decided here
//! for every backend (L1, L2, L4).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Acquired, Candidate, Cluster, DataLoss, Floor, LeaderSeen, Leadership, LeadershipHistory,
    Lineage, Loss, NodeAddress, Seen,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, NodeName, Nonce, RenewalNumber, WriteNumber};

/// The leader and the progress of the store: the one record that every write reads and replaces
/// (L2).
///
/// A backend keeps it in a form in which it can compare `epoch` and `applied` in the same atomic
/// step as a write.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Head {
    /// The epoch of the current or last leadership; 0 if there was none.
    pub epoch: Epoch,
    /// The number of the last applied write; 0 if there was none.
    pub applied: WriteNumber,
    /// The current leader; `None` if there never was one, or if the last one resigned.
    pub leader: Option<Leader>,
    /// The number of the last renewal. Stays 0 where the exclusive open is the leadership.
    #[serde(default, skip_serializing_if = "is_default")]
    pub counter: RenewalNumber,
    /// The time for which the leadership lasts without a renewal, as its holder counts it. Stays 0
    /// where the exclusive open is the leadership.
    #[serde(default, skip_serializing_if = "is_default")]
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
    /// Distinguishes two processes of one node.
    pub nonce: Nonce,
    /// The address at which the other nodes reach it.
    pub address: String,
    /// The address at which clients reach it. Empty if it did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub clients: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    ///
    /// # Errors
    /// `ResourceExhausted` if every epoch is used up: start a new store.
    pub(crate) fn acquire_exclusive(&self, candidate: &Candidate) -> Result<(Self, Leadership)> {
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
    ///
    /// # Errors
    /// `ResourceExhausted` if every epoch is used up: start a new store.
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

    /// Checks that `epoch` is the epoch of the current leadership (L2).
    ///
    /// # Errors
    /// `Fenced` if it is not: stop leading.
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

    /// The head after the write `number` of `epoch` (L2).
    ///
    /// # Errors
    /// `Fenced` if the epoch is not current, or the number is not the next one.
    pub fn advance(&self, epoch: Epoch, number: WriteNumber) -> Result<Self> {
        self.check(epoch)?;
        if !number.follows(self.applied) {
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
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub fn renew(&self, epoch: Epoch) -> Result<Self> {
        self.check(epoch)?;
        Ok(Self { counter: self.counter.next(), ..self.clone() })
    }

    /// The head after the leader of `epoch` resigned.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub fn resign(&self, epoch: Epoch) -> Result<Self> {
        self.check(epoch)?;
        Ok(Self { leader: None, ..self.clone() })
    }
}

#[cfg(test)]
mod tests;
