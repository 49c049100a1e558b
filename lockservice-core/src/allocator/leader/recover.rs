//! The start of a leadership: the loads, comparisons and writes of a new leader before its first
//! response (L1, L4, B4).
//!
//! # What an opening does
//! 1. [`load`] reads every record.
//! 2. [`Opening::check_same_copy`] makes sure that the records are of the copy of the store that
//!    gave the leadership.
//! 3. [`Opening::compare`] compares the store with the high-water marks of this node, and raises
//!    the epoch if the store has lost something (L4).
//! 4. [`Opening::state`] decides from which numbers the leadership goes on, and how long it waits
//!    for promises of earlier ones (L1, B4).
//! 5. [`Records`] puts every record into memory, and collects what must change in the store.
//! 6. [`Opening::first_writes`] writes that.
//!
//! An opening that fails, or is dropped, may be repeated: nothing that it wrote depends on the
//! rest.

use std::collections::HashMap;
use std::time::Duration;

use crate::allocator::cluster::observed::Observed;
use crate::allocator::leader::leadership::LeadershipCell;
use crate::allocator::leader::records::{Past, Records};
use crate::allocator::leader::writer::another_store;
use crate::allocator::messages::Progress;
use crate::allocator::settings::AllocatorSettings;
use crate::allocator::state::AllocatorState;
use crate::allocator::state::tokens::TokenSource;
use crate::clock::{Time, hi};
use crate::env::Env;
use crate::error::{ErrorKind, Result};
use crate::id::{Epoch, EpochNumber, NodeName, ServiceId, WriteNumber};
use crate::store::{
    Acquired, Applied, Batch, BindStore, Candidate, ClusterConstants, DataLoss, Floor, Leadership,
    Op, StoreState,
};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The pause between two attempts to read a store that does not respond.
const LOAD_AGAIN: Duration = Duration::from_millis(50);

/// The findings of an opening.
pub(in crate::allocator) struct Opened {
    pub(in crate::allocator) state: AllocatorState,
    pub(in crate::allocator) names: HashMap<NodeName, ServiceId>,
    pub(in crate::allocator) epoch: Epoch,
    pub(in crate::allocator) applied: WriteNumber,
    /// To be stored once the promises under the old constants have run out (B4), and when that is.
    pub(in crate::allocator) constants_later: Option<Time>,
}

/// By what a leadership is held that is renewed meanwhile.
#[derive(Clone, Copy)]
pub(in crate::allocator) struct Hold<'a> {
    /// The epoch that the renewals name.
    pub(in crate::allocator) head: &'a tokio::sync::Mutex<Epoch>,
    pub(in crate::allocator) leadership: &'a LeadershipCell,
}

/// A store that a new leader opens.
pub(in crate::allocator) struct Opening<'a> {
    pub(in crate::allocator) store: &'a dyn BindStore,
    pub(in crate::allocator) env: &'a Env,
    pub(in crate::allocator) settings: &'a AllocatorSettings,
    pub(in crate::allocator) candidate: &'a mut Candidate,
    pub(in crate::allocator) hold: Hold<'a>,
    /// The progress of leaders that this node observed (L4).
    pub(in crate::allocator) observed: &'a Observed,
}

impl Opening<'_> {
    /// Loads everything that a new leader must know, and makes its first writes.
    ///
    /// # Errors
    /// As the store has them, and `Fenced` if the store is another copy by now. Repeating it is
    /// safe.
    ///
    /// # Cancel safety
    /// Dropped half way, it may have raised the epoch and written some of its changes. Each of them
    /// stands by itself.
    pub(in crate::allocator) async fn open(mut self, mut acquired: Acquired) -> Result<Opened> {
        let exclusive = acquired.exclusive;
        if !exclusive {
            // From here on it has something in memory.
            (self.candidate.elected, self.candidate.seen) = (true, None);
        }
        let patience = hi(self.settings.constants.leadership_ttl());
        let loaded = load(self.store, self.env, self.hold.leadership, exclusive, patience).await?;
        if !exclusive {
            self.check_same_copy(&acquired).await?;
        }
        loaded.check_finished()?;
        let reported = self.observed.high_water().max(acquired.loss.high_water);
        let went_back = self.compare(&mut acquired, &loaded, reported).await?;
        // Counted from after the response: no other leader can have promised anything later (B4).
        let now = self.env.now();
        let constants = NextConstants::of(&loaded, self.settings.constants, now);
        let past = Past {
            now,
            lease_ttl: constants.wait_ttl,
            exclusive,
            clean: acquired.clean,
            went_back,
        };
        let state = self.state(&acquired, &loaded, reported, &past);
        let mut records = Records::new(state, past, self.settings.commits_max);
        records.batch.extend(constants.now);
        records.add(loaded).await;
        let Records { state, names, batch, .. } = records;
        let applied = self.first_writes(&acquired, &batch).await?;
        // ORDERING: Release, the partner of the acquire in `AllocatorState::progress`.
        state.applied.store(applied.get(), Ordering::Release);
        Ok(Opened {
            state,
            names,
            epoch: acquired.epoch,
            applied,
            constants_later: constants.later,
        })
    }

    /// L4: a copy that was promoted meanwhile may have neither the leadership nor the last writes
    /// before it.
    async fn check_same_copy(&self, acquired: &Acquired) -> Result<()> {
        let expected = applied(acquired, acquired.applied);
        if self.store.applied().await? == expected { Ok(()) } else { Err(another_store()) }
    }

    /// Compares the store with what is known of it, and raises the epoch if it has lost something
    /// (L4). Returns whether it has: then every bind is invalid, and `acquired` is not continuous.
    async fn compare(
        &mut self,
        acquired: &mut Acquired,
        loaded: &StoreState,
        reported: EpochNumber,
    ) -> Result<bool> {
        // Numbers lie below the end of their epoch. A store that lost its newest epoch but not its
        // records gets an epoch above them.
        let used =
            loaded.highest_epoch().max(self.observed.last().epoch).max(reported.previous().epoch());
        // This node observed writes that are not there. They are unknown, so nothing in the store
        // can be relied on: every incarnation starts again.
        let Acquired { loss, history, .. } = &*acquired;
        let lost = |observed: &Progress| {
            observed.epoch >= loss.observed_before
                && history.lost(observed.epoch, observed.leader, observed.write)
        };
        let found_out = !acquired.exclusive && self.observed.each().iter().any(lost);
        // A leader before may have found out, and not have lived to raise its epoch.
        let went_back = found_out || loss.known;
        acquired.continuous &= !went_back;
        if went_back {
            tracing::error!(
                observed = ?self.observed,
                applied = acquired.applied.get(),
                loss = ?acquired.loss,
                "the store has lost writes: every bind is invalid"
            );
        }
        if found_out {
            self.candidate.data_loss = DataLoss::Known { high_water: self.observed.high_water() };
        }
        if used > acquired.epoch || found_out {
            self.candidate.floor = self.candidate.floor.max(used);
            self.raise(acquired).await?;
        }
        Ok(went_back)
    }

    /// Raises the epoch above the candidate's floor, with what the candidate knows of a data loss.
    async fn raise(&mut self, acquired: &mut Acquired) -> Result<()> {
        // No renewal may name the epoch that is being replaced.
        let mut head = self.hold.head.lock().await;
        let ttl = self.settings.constants.leadership_ttl();
        match self.store.acquire_leadership(self.candidate, ttl).await? {
            Leadership::Acquired(again)
                if again.lineage == acquired.lineage
                    && again.applied == acquired.applied
                    && again.cluster == acquired.cluster =>
            {
                (acquired.epoch, acquired.loss, acquired.history) =
                    (again.epoch, again.loss, again.history);
            }
            _ => return Err(another_store()),
        }
        *head = acquired.epoch;
        self.candidate.data_loss = DataLoss::Unknown;
        Ok(())
    }

    /// The state of the new leadership, without any record: its numbers, and how long it waits.
    fn state(
        &self,
        acquired: &Acquired,
        loaded: &StoreState,
        reported: EpochNumber,
        past: &Past,
    ) -> AllocatorState {
        let Acquired { epoch, applied, continuous, floor, .. } = *acquired;
        // L4: above everything that was ever handed out. Where the server has a clock that vouches
        // for it, the epoch does not count: see `Floor`.
        let has_clock = floor != Floor::default();
        let vouched = if has_clock { floor.number() } else { epoch.first_number() };
        let from = vouched.max(loaded.highest_number()).max(reported);
        let tokens = match loaded.volatile_tokens_from {
            Some(from) => TokenSource::Volatile { from },
            None => TokenSource::Epoch { from: from.into() },
        };
        let binds_max = self.settings.commit_binds_max;
        let mut state = AllocatorState::new(epoch, from, applied, tokens, binds_max);
        state.forgotten = Mutex::new(loaded.forgotten);
        let wait_until = past.now + hi(past.lease_ttl);
        // L1: no candidate waited for an exclusive store, so after an unclean stop everything
        // earlier counts for hi(lease TTL).
        let unclean = past.exclusive && !past.clean;
        state.earlier_until = if unclean || !continuous { wait_until } else { past.now };
        state.held_until = if continuous { past.now } else { wait_until };
        (state.leader, state.cluster) = (self.candidate.nonce, acquired.cluster);
        if has_clock {
            state.vouched = floor.epoch();
        }
        state.observed_before = AtomicU64::new(acquired.loss.observed_before.get());
        state.history = acquired.history.clone();
        state.resolved = AtomicBool::new(continuous);
        state
    }

    /// Writes `batch`, in its order: a record that is no longer needed goes after that which makes
    /// it so. Returns the number of the last applied write.
    async fn first_writes(&self, acquired: &Acquired, batch: &Batch) -> Result<WriteNumber> {
        let mut number = acquired.applied;
        for some in batch.chunks(self.settings.batch_max) {
            let next = number.next();
            match self.store.write(acquired.epoch, next, &some.to_vec()).await {
                Ok(ack) if ack.lineage == acquired.lineage => {}
                Ok(_) => return Err(another_store()),
                // L2: the number decides. It is a new leadership's write, so no other can have that
                // number.
                Err(e) if e.kind() == ErrorKind::UnknownOutcome => {
                    if self.store.applied().await? != applied(acquired, next) {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
            number = next;
        }
        Ok(number)
    }
}

/// The position of the store when `number` was the last write of this leadership.
fn applied(acquired: &Acquired, number: WriteNumber) -> Applied {
    Applied { epoch: acquired.epoch, number, lineage: acquired.lineage.clone() }
}

/// The change of the cluster's constants (B4).
struct NextConstants {
    /// To be stored now.
    now: Option<Op>,
    /// When they may be stored, if not now.
    later: Option<Time>,
    /// The longer lease TTL of the old and the new constants.
    wait_ttl: Duration,
}

impl NextConstants {
    fn of(loaded: &StoreState, new: ClusterConstants, now: Time) -> Self {
        let old = loaded.constants.unwrap_or(new);
        let wait_ttl = old.lease_ttl().max(new.lease_ttl());
        if loaded.constants == Some(new) {
            Self { now: None, later: None, wait_ttl }
        } else if new.lease_ttl_ms < old.lease_ttl_ms {
            // Stored now, a second restart would wait for the shorter promise only.
            Self { now: None, later: Some(now + hi(wait_ttl)), wait_ttl }
        } else {
            Self { now: Some(Op::PutConstants(new)), later: None, wait_ttl }
        }
    }
}

/// Reads everything. A shared store that does not respond is tried again for `patience`, as long as
/// the leadership lasts: giving it up would cost the cluster another TTL.
async fn load(
    store: &dyn BindStore,
    env: &Env,
    leadership: &LeadershipCell,
    exclusive: bool,
    patience: Duration,
) -> Result<StoreState> {
    let give_up = env.now() + patience;
    loop {
        match store.load().await {
            Err(e) if e.kind() == ErrorKind::Unavailable && !exclusive => {
                // It is renewed meanwhile, but a leader that cannot read must let another lead.
                let now = env.now();
                if leadership.remaining(now).is_zero() || give_up.remaining(now).is_zero() {
                    return Err(e);
                }
                tracing::warn!(store = %store.describe(), error = ?e, "cannot read the store yet; \
                    trying again");
                env.sleep(LOAD_AGAIN).await;
            }
            loaded => return loaded,
        }
    }
}

/// Requests the leadership. Returns the response of the store, and the time of the request, from
/// which a leadership counts (L1).
pub(in crate::allocator) async fn acquire(
    store: &dyn BindStore,
    env: &Env,
    candidate: &Candidate,
    ttl: Duration,
) -> Result<(Leadership, Time)> {
    let sent = env.now();
    Ok((store.acquire_leadership(candidate, ttl).await?, sent))
}
