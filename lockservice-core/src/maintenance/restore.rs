//! [`restore`]: writes a dump into an empty store of any backend.
//!
//! # To ensure correctness
//! - The restorer leads the store while it writes (L1, L2): no other process writes between, and a
//!   leader of the empty store is fenced.
//! - The first write adds a record that says *unfinished* and the last takes it away, so that a
//!   part of a dump is never served from.
//! - The new epoch is above every number of the dump, and [`EPOCHS_SKIPPED`] above that (L4): the
//!   numbers that the old cluster handed out after the dump was made stay below all that the
//!   restored one hands out.
//! - Every incarnation is written as fenced (C4): no bind, lease, session or transaction of the old
//!   cluster is valid in the restored one, also if it comes back.
//! - The restored store gets a cluster id of its own (T3): nodes of the old cluster and of the
//!   restored one believe nothing of each other.
//! - An exclusive store is left without a resignation, a shared one with a known [`DataLoss`]: its
//!   first leader waits out every promise (L1, L4).
//!
//! # What it cannot know
//! A dump does not show whether its cluster still runs. Epochs fence writers of one store, and two
//! stores do not know of each other. Two clusters from one dump both grant the same locks. Only
//! data that checks tokens (F1) distinguishes their holders, for as long as the restored one is
//! ahead.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::dump::Dump;
use crate::allocator::cluster::watch::LeadershipWatch;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{EPOCH_END, Epoch, EpochNumber, NodeName, ServiceId, TableRef, WriteNumber};
use crate::store::{
    Acquired, Applied, Batch, BindStore, Candidate, ClusterId, DataLoss, Floor, Leadership, Op,
    Seen, ServiceRecord, ServiceState, StoreState, TableRecord,
};

/// The number of epochs that are left out between those of a dump and the restored store's, for
/// leaderships of the old cluster after the dump.
pub const EPOCHS_SKIPPED: u64 = 1_024;

/// Records in one write.
const BATCH_OPS_MAX: usize = 1_000;

/// The number of times that one write with an unknown outcome is sent.
const SENDS_MAX: usize = 3;

/// The options of a restore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreOptions {
    /// The node that restores.
    pub node: NodeName,
    /// The leadership's TTL of the clusters that may have led this store: so long a shared store is
    /// watched before it is written (L1).
    pub leadership_ttl: Duration,
    /// An epoch that the old cluster reached after the dump was made, as far as that is known: the
    /// restored store's is above it, and so are all numbers and tokens that its leaders hand out. 0
    /// if nothing is known.
    pub above: Epoch,
}

/// The result of a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The restored store's epoch.
    pub epoch: Epoch,
    /// The cluster of the restored store: a new one.
    pub cluster: ClusterId,
    /// Records that are in the store now.
    pub records: usize,
}

/// Writes `dump` into `store`, which must be empty, or hold an interrupted restore of the same
/// dump, which this finishes.
///
/// A shared store is first watched for hi(the leadership's TTL), unless its last leader resigned.
///
/// # Errors
/// - `InvalidArgument`: the store holds records. Nothing is changed.
/// - `StoreInUse`: another process leads it.
/// - `Fenced`: another process took it over meanwhile.
/// - Those of the store.
///
/// After any failure a store that was begun stays unfinished, and every leader refuses it until the
/// restore was run again.
///
/// # Cancel safety
/// A dropped call leaves the store as a failure does: run the restore again.
pub async fn restore(
    store: &dyn BindStore,
    clock: &dyn Clock,
    dump: &Dump,
    options: &RestoreOptions,
) -> Result<Restored> {
    let goal = restored(&dump.state);
    // Before the leadership: an acquisition is a change too.
    check_empty(&store.load().await?, &goal)?;
    let ttl = goal
        .constants
        .map_or(options.leadership_ttl, |c| c.leadership_ttl().max(options.leadership_ttl));
    let floor = goal.epoch.max(goal.highest_epoch()).max(options.above);
    let mut candidate = Candidate {
        floor: Epoch::new(floor.get().saturating_add(EPOCHS_SKIPPED)),
        // The leader of the restored store waits out every promise of the old one (L4), and relies
        // on nothing before. Where the server has a clock, numbers begin there, not with the epoch,
        // so the highest known number of the old cluster is handed on.
        data_loss: DataLoss::Known { high_water: above(options.above) },
        founds: true,
        ..Candidate::from(options.node.clone())
    };
    let (mut writer, vouched) = lead(store, clock, &mut candidate, ttl).await?;
    if vouched != Floor::default() && goal.highest_epoch() >= vouched.epoch() {
        // The old cluster's clock was ahead of this one: what it handed out after the dump was made
        // is above what this clock vouches for.
        let skipped = Epoch::new(
            goal.highest_epoch().get().saturating_add(EPOCHS_SKIPPED).min(EPOCH_END - 2),
        );
        let data_loss = DataLoss::Known { high_water: above(options.above.max(skipped)) };
        candidate = Candidate { data_loss, elected: true, ..candidate };
        (writer, _) = lead(store, clock, &mut candidate, ttl).await?;
    }
    let found = store.load().await?;
    check_empty(&found, &goal)?;
    writer.write(&vec![Op::PutService(StoreState::unfinished(&dump.source))]).await?;
    let ops = ops(&goal);
    for batch in ops.chunks(BATCH_OPS_MAX) {
        writer.write(&batch.to_vec()).await?;
    }
    check_read_back(&store.load().await?, &goal)?;
    writer.write(&vec![Op::RemoveService(StoreState::UNFINISHED)]).await?;
    if !writer.exclusive {
        store.resign(writer.epoch).await?;
    }
    Ok(Restored { epoch: writer.epoch, cluster: candidate.cluster.id, records: ops.len() })
}

/// The first number above this epoch; 0 if none is known.
fn above(epoch: Epoch) -> EpochNumber {
    if epoch > Epoch::default() { epoch.end_number() } else { EpochNumber::default() }
}

/// The content of the new store: nothing of the old cluster is live.
fn restored(dumped: &StoreState) -> StoreState {
    let mut goal = dumped.clone();
    for service in &mut goal.services {
        service.state = ServiceState::Fenced;
    }
    goal
}

fn ops(goal: &StoreState) -> Vec<Op> {
    let constants = goal.constants.map(Op::PutConstants);
    let services = goal.services.iter().cloned().map(Op::PutService);
    let tables = goal.tables.iter().cloned().map(Op::PutTable);
    let forgotten = (!goal.forgotten.is_none()).then_some(Op::PutForgotten(goal.forgotten));
    let tombstones = goal.tombstones.iter().copied().map(Op::PutTombstone);
    constants.into_iter().chain(forgotten).chain(services).chain(tables).chain(tombstones).collect()
}

/// Refuses a store that holds anything but a part of `goal` under the record of an interrupted
/// restore.
fn check_empty(found: &StoreState, goal: &StoreState) -> Result<()> {
    let forgotten = usize::from(!found.forgotten.is_none());
    let records = found.tables.len() + found.services.len() + found.tombstones.len() + forgotten;
    if records == 0 && found.constants.is_none() {
        return Ok(());
    }
    let (count, message) = match found.unfinished_restore() {
        None => (
            records + usize::from(found.constants.is_some()),
            "the store holds records already: restore into an empty one",
        ),
        Some(_) => match strangers(found, goal) {
            0 => return Ok(()),
            strangers => (
                strangers,
                "the store holds an unfinished restore of another dump: restore that one, or \
                    empty the store",
            ),
        },
    };
    Err(Error::new(ErrorKind::InvalidArgument, message).with("records", count))
}

/// Records of `found` that are not in `goal`.
fn strangers(found: &StoreState, goal: &StoreState) -> usize {
    let tables: HashMap<&TableRef, &TableRecord> =
        goal.tables.iter().map(|table| (&table.table, table)).collect();
    let services: HashMap<ServiceId, &ServiceRecord> =
        goal.services.iter().map(|service| (service.id, service)).collect();
    let tombstones: HashSet<_> = goal.tombstones.iter().collect();
    let constants = found.constants.is_some() && found.constants != goal.constants;
    found.tables.iter().filter(|table| tables.get(&table.table) != Some(table)).count()
        + found
            .services
            .iter()
            .filter(|service| {
                service.id != StoreState::UNFINISHED && services.get(&service.id) != Some(service)
            })
            .count()
        + found.tombstones.iter().filter(|txn| !tombstones.contains(txn)).count()
        + usize::from(constants)
        + usize::from(!found.forgotten.is_none() && found.forgotten != goal.forgotten)
}

/// Nothing is taken on trust: a store that went back in time between two writes may lack the first.
fn check_read_back(found: &StoreState, goal: &StoreState) -> Result<()> {
    // One more for the record of the restore.
    let whole = found.tables.len() == goal.tables.len()
        && found.services.len() == goal.services.len() + 1
        && found.tombstones.len() == goal.tombstones.len()
        && found.constants == goal.constants
        && found.forgotten == goal.forgotten
        && strangers(found, goal) == 0;
    if whole {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::StoreUnusable,
        "the store does not hold what was written to it: see to its server or disk, empty it, and \
            restore again",
    ))
}

/// Becomes the leader. Fails with `StoreInUse` if another process is.
async fn lead<'a>(
    store: &'a dyn BindStore,
    clock: &dyn Clock,
    candidate: &mut Candidate,
    ttl: Duration,
) -> Result<(Writer<'a>, Floor)> {
    let mut watch = LeadershipWatch::default();
    let mut first: Option<Seen> = None;
    loop {
        candidate.seen = watch.complete(ttl, clock.now()).cloned();
        match store.acquire_leadership(candidate, ttl).await? {
            Leadership::Acquired(Acquired { epoch, applied, exclusive, floor, .. }) => {
                return Ok((Writer { store, epoch, applied, exclusive }, floor));
            }
            Leadership::Held { seen, address, .. } => {
                // An empty store, and one whose leader has died, stand still.
                if first.get_or_insert_with(|| seen.clone()) != &seen {
                    return Err(Error::new(
                        ErrorKind::StoreInUse,
                        "another process leads this store: stop every server that uses it, then \
                            restore",
                    )
                    .with("store", store.describe())
                    .with("leader", address.as_ref().map_or("unknown", |address| &address.nodes)));
                }
                watch.observe(seen, clock.now());
                let left = watch.left(ttl, clock.now());
                store.wait_for_change(left.clamp(Duration::from_millis(1), ttl / 4)).await?;
            }
        }
    }
}

/// Writes under one leadership.
struct Writer<'a> {
    store: &'a dyn BindStore,
    epoch: Epoch,
    /// The number of the last write.
    applied: WriteNumber,
    exclusive: bool,
}

impl Writer<'_> {
    async fn write(&mut self, batch: &Batch) -> Result<()> {
        // A write takes far less than a leadership's TTL, so one renewal each is enough, and a
        // takeover is noticed here.
        self.store.renew(self.epoch).await?;
        let number = self.applied.next();
        for _ in 1..SENDS_MAX {
            match self.store.write(self.epoch, number, batch).await {
                Err(e) if e.kind() == ErrorKind::UnknownOutcome => {
                    // L2: resolved by reading the number. The same write under the same number
                    // lands once.
                    let Applied { epoch, number: applied, .. } = self.store.applied().await?;
                    if epoch == self.epoch && applied == number {
                        self.applied = number;
                        return Ok(());
                    }
                }
                outcome => {
                    outcome?;
                    self.applied = number;
                    return Ok(());
                }
            }
        }
        self.store.write(self.epoch, number, batch).await?;
        self.applied = number;
        Ok(())
    }
}
