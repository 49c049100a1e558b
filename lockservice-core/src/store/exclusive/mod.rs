//! [`ExclusiveStore`]: everything that stores which one process opens alone have in common.
//!
//! # Implementation details
//! A backend is a [`KeyValue`] engine; here it becomes a [`BindStore`]. Calls to the engine block,
//! so each runs on tokio's blocking threads, one at a time under the engine's mutex. Each write
//! replaces the head record, which names the epoch and the number of the last write, in the same
//! atomic batch (L2).
//!
//! After an engine failed or panicked in the middle of a write, its memory is worthless: it is
//! opened again, and the head on the disk shows whether the write is there.
//!
//! Before each call the engine compares its path with what it has open. A store that was removed,
//! renamed or replaced fails every call with `Fenced` from then on; its leader looks several times
//! within a lease, and ends.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use async_trait::async_trait;

use super::layout::{self, Change, FORMAT_KEY, HEAD_KEY, STORE_FORMAT};
use super::{
    Applied, Batch, BindStore, Candidate, Damage, Head, Inspection, KeyValue, Leadership, Lineage,
    Renewal, StoreState, WriteAck,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Epoch, WriteNumber};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex};

/// A [`BindStore`] on a [`KeyValue`] engine. The exclusive open is the leadership (L1). Clones are
/// handles to one store.
#[derive(Clone)]
pub struct ExclusiveStore {
    shared: Arc<ExclusiveShared>,
}

/// A type that is an [`ExclusiveStore`] under a name and with constructors of its own: that makes
/// it a [`BindStore`].
pub trait Exclusive: fmt::Debug + Send + Sync + 'static {
    /// The store that it is.
    fn exclusive(&self) -> &ExclusiveStore;
}

impl Exclusive for ExclusiveStore {
    fn exclusive(&self) -> &ExclusiveStore {
        self
    }
}

struct ExclusiveShared {
    url: String,
    state: Mutex<ExclusiveState>,
}

struct ExclusiveState {
    engine: Box<dyn KeyValue>,
    /// True from a failure until the engine was opened again.
    broken: bool,
}

impl fmt::Debug for ExclusiveStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the engine: its mutex may be held for as long as a disk takes.
        f.debug_struct("ExclusiveStore").field("url", &self.shared.url).finish_non_exhaustive()
    }
}

impl ExclusiveStore {
    /// Opens the store by `open`, on a blocking thread, and checks its format. A new one gets the
    /// current format.
    ///
    /// # Errors
    /// Those of `open`; `StoreNewer` for a store of a later version, `StoreCorrupt` for one that
    /// holds anything but entries of lockservice, or damaged ones. Nothing is changed in either.
    ///
    /// # Cancel safety
    /// Cancel safe: a store that is opened nevertheless is closed again.
    pub async fn open<E: KeyValue>(
        url: String,
        open: impl FnOnce() -> Result<E> + Send + 'static,
    ) -> Result<Self> {
        let described = url.clone();
        let opened = blocking(move || {
            let mut engine = open()?;
            establish(&mut engine)?;
            Ok(engine)
        });
        let engine = Box::new(opened.await.map_err(|error| error.with("store", &described))?);
        Ok(Self {
            shared: Arc::new(ExclusiveShared {
                url,
                state: Mutex::new(ExclusiveState { engine, broken: false }),
            }),
        })
    }

    /// Opens a store that may be damaged by `open`, reads it as far as it can be read, and closes
    /// it again. Writes no entry.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), except for damaged records, which are in the result.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn inspect<E: KeyValue>(
        url: String,
        open: impl FnOnce() -> Result<E> + Send + 'static,
    ) -> Result<Inspection> {
        let store = url.clone();
        let inspected = blocking(move || {
            let engine = open()?;
            match engine.read(FORMAT_KEY)? {
                // One that is damaged, not newer, is noted with the other records.
                Some(format) => drop(Damage::noted().tolerate(layout::check_format(&format))?),
                None => refuse_entries(&engine)?,
            }
            let (mut state, mut damage) = (StoreState::default(), Damage::noted());
            let read = unless_panic(|| read(&engine, &mut state, &mut damage));
            // The engine's own damage: the records behind it cannot be read.
            damage.tolerate(
                read.map_err(|error| error.with("record", "all that were not read yet")),
            )?;
            // If it cannot be read, that is noted already.
            let head = head(&engine).ok().filter(|head| *head != Head::default());
            Ok(Inspection { store, state, head, damage })
        });
        inspected.await.map_err(|error| error.with("store", &url))
    }

    /// Replaces the head by the one that `next` makes of it, together with its changes, and returns
    /// its result.
    async fn write_head<T: Send + 'static>(
        &self,
        next: impl FnOnce(&Head) -> Result<(Head, Vec<Change>, T)> + Send + 'static,
    ) -> Result<T> {
        self.run(move |engine| {
            let before = head(engine)?;
            let (after, mut changes, result) = next(&before)?;
            changes.push(layout::put_head(&after));
            let Err(error) = unless_panic(|| engine.apply(&changes)) else { return Ok(result) };
            match reread(engine) {
                Ok(found) if found == after => Ok(result),
                // It is not there, and never will be.
                Ok(_) if error.kind() == ErrorKind::UnknownOutcome => {
                    Err(Error::new(ErrorKind::Unavailable, error.message()).with_source(error))
                }
                Ok(_) => Err(error),
                Err(again) => Err(Error::new(
                    ErrorKind::UnknownOutcome,
                    "a write to the store failed, and the store cannot be read to see whether it \
                        is there: see to the disk",
                )
                .with("because", again)
                .with_source(error)),
            }
        })
        .await
    }

    /// Runs `call` on a blocking thread with the engine to itself.
    ///
    /// When the returned future is dropped before `call` began, `call` never runs, so that a later
    /// question for the outcome is not overtaken.
    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut dyn KeyValue) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel_on_drop = CancelOnDrop(Arc::clone(&cancelled));
        let shared = Arc::clone(&self.shared);
        let done = blocking(move || {
            let mut state = shared.state.lock();
            // ORDERING: Relaxed. Partner: CancelOnDrop. A call after the drop takes the mutex
            // after it; a call that holds the mutex by then has already passed here and is waited
            // for.
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    "the call was dropped before it began",
                ));
            }
            // L1: the exclusive open is the leadership, and it is one only while the path leads
            // here.
            state.engine.check_path()?;
            if state.broken {
                unless_panic(|| state.engine.reopen())?;
                state.broken = false;
            }
            let outcome = unless_panic(|| call(&mut *state.engine));
            // A refusal is no failure of the engine.
            state.broken = outcome.as_ref().is_err_and(|error| error.kind() != ErrorKind::Fenced);
            outcome
        });
        done.await.map_err(|error| error.with("store", &self.shared.url))
    }
}

#[async_trait]
impl<S: Exclusive> BindStore for S {
    fn describe(&self) -> String {
        self.exclusive().shared.url.clone()
    }

    async fn load(&self) -> Result<StoreState> {
        let load = |engine: &mut dyn KeyValue| {
            let mut state = StoreState::default();
            read(engine, &mut state, &mut Damage::refused())?;
            Ok(state)
        };
        self.exclusive().run(load).await
    }

    /// Waits for nothing: the process that has the store open leads.
    async fn acquire_leadership(
        &self,
        candidate: &Candidate,
        _ttl: Duration,
    ) -> Result<Leadership> {
        let candidate = candidate.clone();
        let acquire = move |head: &Head| {
            let (head, leadership) = head.acquire_exclusive(&candidate)?;
            Ok((head, Vec::new(), leadership))
        };
        self.exclusive().write_head(acquire).await
    }

    /// There is nothing to renew: only checks the epoch.
    async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
        self.exclusive()
            .run(move |engine| head(engine)?.check(epoch).map(|()| Renewal::default()))
            .await
    }

    async fn resign(&self, epoch: Epoch) -> Result<()> {
        self.exclusive().write_head(move |head| Ok((head.resign(epoch)?, Vec::new(), ()))).await
    }

    async fn write(&self, epoch: Epoch, number: WriteNumber, batch: &Batch) -> Result<WriteAck> {
        let changes = layout::changes(batch);
        let write =
            move |head: &Head| Ok((head.advance(epoch, number)?, changes, WriteAck::default()));
        self.exclusive().write_head(write).await
    }

    async fn applied(&self) -> Result<Applied> {
        let applied = |engine: &mut dyn KeyValue| {
            let head = head(engine)?;
            Ok(Applied { epoch: head.epoch, number: head.applied, lineage: Lineage::default() })
        };
        self.exclusive().run(applied).await
    }

    /// A leader is one that did not stop cleanly: this process has the store open now.
    async fn head(&self) -> Result<Option<Head>> {
        self.exclusive()
            .run(|engine| head(engine).map(|head| (head != Head::default()).then_some(head)))
            .await
    }
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        // ORDERING: Relaxed. Partner: `ExclusiveStore::run`, see there.
        self.0.store(true, Ordering::Relaxed);
    }
}

fn head(engine: &dyn KeyValue) -> Result<Head> {
    layout::decode_head(engine.read(HEAD_KEY)?.as_deref())
}

/// Opens the store again after a failed write and reads what is there.
fn reread(engine: &mut dyn KeyValue) -> Result<Head> {
    unless_panic(|| {
        engine.reopen()?;
        head(engine)
    })
}

/// Checks the store's format and every record, or gives an empty store its format.
fn establish(engine: &mut dyn KeyValue) -> Result<()> {
    if let Some(format) = engine.read(FORMAT_KEY)? {
        layout::check_format(&format)?;
        // Damage is to be found before anything is changed.
        return read(engine, &mut StoreState::default(), &mut Damage::refused());
    }
    refuse_entries(engine)?;
    engine.apply(&[Change::Put {
        key: FORMAT_KEY.to_vec(),
        value: STORE_FORMAT.to_string().into_bytes(),
    }])
}

/// A store without a format must be empty.
fn refuse_entries(engine: &dyn KeyValue) -> Result<()> {
    engine.scan(&mut |key, _| {
        Err(Error::new(
            ErrorKind::StoreCorrupt,
            "this is not a store of lockservice, or its format record is lost: choose another \
                store, or restore it from a backup",
        )
        .with("entry", String::from_utf8_lossy(key)))
    })
}

/// Adds every record to `state`.
fn read(engine: &dyn KeyValue, state: &mut StoreState, damage: &mut Damage) -> Result<()> {
    engine.scan(&mut |key, value| damage.tolerate(layout::absorb(state, key, value)).map(drop))
}

/// Storage engines panic on some kinds of damage, which must end neither the process nor
/// the mutex's owner.
fn unless_panic<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Error::new(
            ErrorKind::StoreCorrupt,
            "the storage engine broke down over the store's content: restore the store from a \
                backup",
        )
        .with("engine", said))
    })
}

#[allow(clippy::disallowed_methods, reason = "a store on a local disk is no part of a simulation")]
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(move || unless_panic(call)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::new(
            ErrorKind::UnknownOutcome,
            "the runtime was shut down during a call to the store: open the store again to see \
                what is there",
        )
        .with_source(error)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
