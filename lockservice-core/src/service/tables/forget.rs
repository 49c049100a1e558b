//! Forgetting tables in which nothing is locked: when they were not used for the time that is
//! set, and for an operator.
//!
//! A bind leaves a live incarnation only by its acknowledged release (B5), in these steps:
//!
//! 1. [`Tables::leave`] takes the table out of those that are owned, if nothing in it is locked,
//!    waited for or requested. Calls that come from here on stand in the table's line.
//! 2. [`ServiceInner::await_release`] has the allocator forget the table. As long as it is not
//!    known whether that has happened, the table is not served.
//! 3. If it was forgotten, the engine drops that version for ever, and if calls stand in the line
//!    the name is bound again: to another table. If it surely was not, the table is served as
//!    before.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::allocator::ForgetOutcome;
use crate::bind::Bind;
use crate::env::JoinSet;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{BindVersion, TableRef};
use crate::service::tables::{RETRY_FIRST, RETRY_MOST, Tables};
use crate::service::{LockService, ServiceInner, shutting_down};
use crate::table::{LockEngine, TableHandle, Usage};

/// Tables that are looked at in one hold of the engine's mutex.
const SLICE: usize = 256;

/// The largest number of tables that are being forgotten at one time: so many are not served
/// meanwhile.
const RELEASES_MAX: usize = 64;

/// The shortest and the longest pause between two looks.
const SCAN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));

/// A table that was taken out of service, to be released. Its line is open.
#[derive(Debug)]
struct Leaving {
    bind: Arc<Bind>,
    /// Notified when the last call leaves the line.
    deserted: Arc<Notify>,
    /// False if this service was granted the bind and never installed it.
    served: Option<TableHandle>,
}

/// The outcome of taking a table out of service.
#[derive(Debug)]
enum Leave {
    Leaving(Leaving),
    /// It is served, and in use.
    InUse(Usage),
    /// So many calls wait for it to be bound here, or to be forgotten.
    Standing(usize),
    /// It is not served here.
    NotOwned,
}

impl Tables {
    /// Takes `table` out of service if it is not in use; only at `version`, if one is given.
    ///
    /// A task that is about to make a call at the engine has the bind in hand: taken under the lock
    /// that is held here, and kept until the call is in the engine, or over.
    fn leave(&self, engine: &LockEngine, table: &TableRef, version: Option<BindVersion>) -> Leave {
        let mut lines = self.lines.lock();
        let mut owned = self.owned.write();
        let Some(bound) = owned
            .get_mut(table)
            .filter(|bound| version.is_none_or(|version| version == bound.bind().version))
        else {
            return lines.standing_in(table).map_or(Leave::NotOwned, Leave::Standing);
        };
        let usage = usage_of(bound, |bind| engine.usage(bind.id, bind.version));
        if !usage.is_none() {
            return Leave::InUse(usage);
        }
        match owned.remove(table) {
            Some(bound) => {
                let bind = Arc::clone(bound.bind());
                Leave::Leaving(Leaving { bind, deserted: lines.open(table), served: Some(bound) })
            }
            None => Leave::NotOwned,
        }
    }

    /// Takes a table over that the allocator says is bound here, and that is not served.
    fn leave_unserved(&self, bind: Bind) -> Leave {
        let mut lines = self.lines.lock();
        let owned = self.owned.read().get(&bind.table).is_some();
        match lines.standing_in(&bind.table) {
            Some(standing) => Leave::Standing(standing),
            // The table was bound after the question.
            None if owned => Leave::Standing(0),
            None => {
                let deserted = lines.open(&bind.table);
                Leave::Leaving(Leaving { bind: Arc::new(bind), deserted, served: None })
            }
        }
    }
}

/// The use of a table, while the map of binds is locked, so that no further task takes its bind.
///
/// A task that has the bind in hand counts as a call. This is checked first: a task that has
/// dropped the bind has made its call at the engine before that, where `at_engine` sees it. In the
/// other order a call that is made between the two would be missed, and its table forgotten under
/// its lock.
fn usage_of(bound: &mut TableHandle, at_engine: impl FnOnce(&Bind) -> Usage) -> Usage {
    let in_hand = !bound.is_unique();
    let mut usage = at_engine(bound.bind());
    if in_hand && usage.is_none() {
        usage.calls = 1;
    }
    usage
}

/// Forgets tables that were not used for as long as is set. Ends with the service.
pub(crate) async fn forget_idle(inner: Arc<ServiceInner>) {
    let Some(idle) = inner.parts.settings.table_idle() else { return };
    let every = (idle / 8).clamp(SCAN_PAUSE.0, SCAN_PAUSE.1);
    loop {
        inner.pause(every).await;
        if inner.check_serving().is_err() {
            return;
        }
        inner.forget_idle_tables(idle).await;
    }
}

impl ServiceInner {
    async fn forget_idle_tables(self: &Arc<Self>, idle: Duration) {
        let mut releases = JoinSet::new();
        let mut after = None;
        loop {
            let slice = self.engine.idle_tables(after, SLICE, self.parts.env.now(), idle);
            for (table, version) in slice.idle {
                let Leave::Leaving(leaving) =
                    self.tables.leave(&self.engine, &table, Some(version))
                else {
                    continue;
                };
                if releases.len() >= RELEASES_MAX {
                    drop(releases.join_next().await);
                }
                let inner = Arc::clone(self);
                // Kept, it is looked at again in its time.
                let release = async move { drop(inner.release(leaving).await) };
                self.parts.env.spawn_in(&mut releases, release);
            }
            after = slice.last;
            if after.is_none() {
                break;
            }
            tokio::task::yield_now().await;
        }
        while releases.join_next().await.is_some() {}
    }

    /// Has a table forgotten that was taken out of service. Fails if it was kept: then it is what
    /// it was. To be run to its end.
    async fn release(self: &Arc<Self>, leaving: Leaving) -> Result<()> {
        let Leaving { bind, deserted, served } = leaving;
        let table = &bind.table;
        let outcome = tokio::select! {
            biased;
            () = self.phase_changed() => {
                // Nothing is granted any more, so that it need not be known.
                let why = self.check_serving().err().unwrap_or_else(shutting_down);
                self.tables.lines.lock().end(table, &why);
                return Err(why);
            }
            outcome = self.await_release(&bind) => outcome,
        };
        match &outcome {
            Ok(()) => {
                // B5: never again at this version.
                self.engine.remove(bind.id, bind.version);
                tracing::info!(%table, id = %bind.id, version = %bind.version, "table forgotten");
            }
            Err(why) => tracing::info!(%table, error = ?why, "a table was not forgotten"),
        }
        if outcome.is_err()
            && let Some(bound) = served
        {
            self.hand_to_line(table, &bound);
        } else if !self.tables.lines.lock().end_if_deserted(table) {
            let (inner, table) = (Arc::clone(self), table.clone());
            self.spawn(async move { inner.bind_for_line(&table, &deserted).await });
        }
        outcome
    }

    /// Releases a bind at the allocator, however long it takes to know how that went. Fails if the
    /// bind surely was kept, and will be.
    pub(in crate::service) async fn await_release(&self, bind: &Bind) -> Result<()> {
        let (mut pause, mut unknown) = (RETRY_FIRST, false);
        loop {
            let release =
                self.parts.allocator.release_table(self.id, self.nonce, &bind.table, bind.version);
            match release.await {
                Ok(released) => {
                    self.observe(released.at);
                    match released.kept {
                        None => return Ok(()),
                        Some(why) if !unknown => return Err(why),
                        // An earlier request may have been on its way all the time, and land yet.
                        Some(_) => {}
                    }
                }
                // An earlier request did it, and the table was bound again since.
                Err(e) if e.kind() == ErrorKind::BindChanged => return Ok(()),
                Err(e) => {
                    if !std::mem::replace(&mut unknown, true) {
                        tracing::warn!(
                            table = %bind.table,
                            error = ?e,
                            "it is not known whether a table was forgotten: it is not served \
                                until that is known"
                        );
                    }
                }
            }
            self.pause(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// Runs a release to its end, even if its caller leaves.
    async fn run_release(self: &Arc<Self>, leaving: Leaving) -> Result<()> {
        let inner = Arc::clone(self);
        let release = self.parts.env.spawn(async move { inner.release(leaving).await });
        // It ends without a response only together with the runtime.
        release.await.unwrap_or_else(|_| Err(shutting_down()))
    }
}

impl LockService {
    /// Forgets a table, for an operator: its name is free, no number of it comes back, and the
    /// next lock in it makes another table. One without an owner is forgotten by the allocator.
    ///
    /// # Errors
    /// Nothing is changed by any of these: `TableInUse` while something in it is locked or waits,
    /// or a commit is in flight on it; `TableNotFound`; `NotOwner` if another node owns it: call
    /// that one; `Reassigning` while its last owner may still be at work. `ShuttingDown`,
    /// `LeaseLost`, `Unavailable`: it is not known; call again.
    ///
    /// # Cancel safety
    /// A dropped call may have the table forgotten all the same. Call again.
    pub async fn drop_table(&self, table: &TableRef) -> Result<()> {
        let inner = &self.inner;
        inner.check_serving()?;
        match inner.tables.leave(&inner.engine, table, None) {
            Leave::Leaving(leaving) => inner.run_release(leaving).await,
            Leave::InUse(usage) => Err(in_use(table, usage)),
            Leave::Standing(calls) => Err(in_use(table, Usage { items: 0, calls })),
            Leave::NotOwned => self.drop_elsewhere(table).await,
        }
    }

    /// Drops a table that is not served here.
    async fn drop_elsewhere(&self, table: &TableRef) -> Result<()> {
        let inner = &self.inner;
        let response = inner.parts.allocator.forget_table(table).await?;
        inner.observe(response.at);
        match response.outcome {
            ForgetOutcome::Forgotten => Ok(()),
            ForgetOutcome::Unknown => Err(Error::new(
                ErrorKind::TableNotFound,
                "there is no such table: correct its name",
            )
            .with("table", table)),
            // It was granted to a call that had gone before the response came.
            ForgetOutcome::Owned(owned) if owned.bind.owner == inner.id => {
                match inner.tables.leave_unserved(owned.bind) {
                    Leave::Leaving(leaving) => inner.run_release(leaving).await,
                    Leave::Standing(calls) => Err(in_use(table, Usage { items: 0, calls })),
                    Leave::InUse(usage) => Err(in_use(table, usage)),
                    Leave::NotOwned => Err(in_use(table, Usage::default())),
                }
            }
            ForgetOutcome::Owned(owned) => {
                Err(Error::new(ErrorKind::NotOwner, "another node owns the table: call that one")
                    .with("table", table)
                    .with("owner", &owned.node)
                    .with_detail(Detail::Owner {
                        service: owned.bind.owner,
                        node: owned.node,
                        address: owned.address,
                    }))
            }
        }
    }
}

fn in_use(table: &TableRef, usage: Usage) -> Error {
    let Usage { items, calls } = usage;
    let what = match (items, calls) {
        (0, 0) => "it is just being bound or forgotten".to_owned(),
        (0, calls) => format!("{calls} of its calls wait or are under way"),
        (items, 0) => format!("{items} of its rows and ranges are locked"),
        (items, calls) => format!(
            "{items} of its rows and ranges are locked or waited for, and {calls} calls wait"
        ),
    };
    Error::new(
        ErrorKind::TableInUse,
        format!(
            "the table is in use, {what}: `lockservice locks {} --group {}` lists them; try again \
                when they are gone",
            table.name, table.group
        ),
    )
    .with("table", table)
    .with("locked", items)
    .with("waiting", calls)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::id::{ServiceId, TableId};
    use crate::table::EngineSettings;

    #[test]
    fn a_call_that_is_made_while_its_table_is_looked_at_is_seen() {
        let bind = Bind {
            table: TableRef::new("g", "t").expect("names"),
            id: TableId::new(1),
            partition: 0,
            owner: ServiceId::new(1),
            version: BindVersion::new(1),
            slot: crate::bind::BindSlot::NONE,
        };
        let engine = LockEngine::new(EngineSettings::default());
        let mut bound = engine.install(bind, None, None).expect("the first version");
        // The call has the bind in hand, and is made and decided while the engine is checked.
        let mut in_hand = Some(bound.clone());
        let usage = usage_of(&mut bound, |_| {
            in_hand = None;
            Usage::default()
        });
        assert!(!usage.is_none());
        drop(in_hand);
        assert!(usage_of(&mut bound, |_| Usage::default()).is_none());
    }
}
