//! What a caller keeps, so that the engine looks nothing up for it.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::places::{TablePlace, TablePlaces};
use crate::bind::Bind;
use crate::error::{Error, ErrorKind, Result};
use crate::id::TxnId;
use crate::sync::{Mutex, MutexGuard};
use crate::table::memory::shrink;

/// A table that the engine serves, at one version. A cheap handle.
///
/// It is of use at its engine alone. After the table was removed, nothing is locked by it, and the
/// general way says why.
#[derive(Clone)]
pub struct TableHandle {
    bind: Arc<Bind>,
    place: TablePlace,
    engine: u64,
}

impl TableHandle {
    pub(in crate::table) fn new(bind: Bind, place: TablePlace, places: &TablePlaces) -> Self {
        Self { bind: Arc::new(bind), place, engine: places.engine() }
    }

    /// True if it is a handle of the engine with these places.
    pub(super) const fn is_of(&self, places: &TablePlaces) -> bool {
        self.engine == places.engine()
    }

    /// The bind that is served.
    pub fn bind(&self) -> &Arc<Bind> {
        &self.bind
    }

    /// True if there is no other handle of the table than this one, and its copies of the bind are
    /// gone.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.bind).is_some()
    }

    pub(in crate::table) const fn place(&self) -> TablePlace {
        self.place
    }
}

impl fmt::Debug for TableHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TableHandle").field(&self.bind).finish()
    }
}

/// A transaction at an engine: its id and its uncontended holds.
///
/// A transaction has one handle, at one engine. Its owner calls
/// [`unlock_all`](crate::table::LockEngine::unlock_all) before it drops the handle. Otherwise the
/// holds stay until their table is removed.
#[derive(Debug)]
#[must_use = "the holds of a transaction are ended with its handle"]
pub struct TxnHandle {
    id: TxnId,
    pub(super) holds: Mutex<RowHolds>,
}

/// The holds of a transaction that are, or were, uncontended.
#[derive(Debug, Default)]
pub(super) struct RowHolds {
    /// In the order in which they were granted. Some of them may have been inflated or released
    /// since: the shard knows.
    pub(super) list: SmallVec<[HoldRef; 1]>,
    /// The number of those in the list that were released in their shards. The others that are not
    /// there any more were inflated.
    pub(super) released: usize,
    /// Releases in the state, of which some may be of holds in the list.
    pub(super) released_in_state: usize,
    /// The memory of the holds in the list, in bytes, except of those that were released.
    pub(super) bytes: usize,
    /// At least the memory of the holds in the state, in bytes.
    pub(super) state_bytes: usize,
    /// The memory that the holds may take before somebody is asked for more, in bytes; `None`: as
    /// much as the settings allow.
    pub(super) allowance: Option<usize>,
    /// The number of the next hold, or of the next call that goes the general way.
    pub(super) next: HoldSeq,
    /// The state may have holds, or a call, of the transaction.
    pub(super) in_state: bool,
    /// Nothing more is granted.
    pub(super) closed: bool,
    /// Everything was released, or is being released under this mutex.
    pub(super) ended: bool,
    /// The calls of the transaction that go the general way.
    pub(super) in_flight: u32,
}

/// When a transaction was [closed](TxnHandle::close).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// By this call.
    Now,
    /// By an earlier one. It has not ended.
    Before,
    /// It was [ended](crate::table::LockEngine::end).
    Ended,
}

/// A point in the sequence of a transaction's calls. See
/// [`LockEngine::savepoint`](crate::table::LockEngine::savepoint).
///
/// It is of use for its own transaction alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Savepoint(pub(super) HoldSeq);

impl Savepoint {
    /// The savepoint before the first call of a transaction.
    pub const FIRST: Self = Self(HoldSeq::FIRST);

    /// The savepoint with this number, as [`get`](Self::get) returned it.
    pub const fn new(number: u32) -> Self {
        Self(HoldSeq(number))
    }

    /// Its number, which rises from savepoint to savepoint, unless nothing was requested between
    /// them.
    pub const fn get(self) -> u32 {
        self.0.0
    }
}

/// The number of a hold in its transaction, in the order in which they were granted. All holds of
/// a call that goes the general way have one number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(in crate::table) struct HoldSeq(u32);

impl HoldSeq {
    pub(in crate::table) const FIRST: Self = Self(0);

    /// No hold that is kept in a shard has it: after so many calls, all go the general way.
    pub(in crate::table) const LAST: Self = Self(u32::MAX);

    pub(in crate::table) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Where a hold is.
#[derive(Clone, Copy, Debug)]
pub(super) struct HoldRef {
    pub(super) place: TablePlace,
    pub(super) shard: u32,
    pub(super) slot: u32,
    pub(super) seq: HoldSeq,
}

impl TxnHandle {
    /// The handle of a transaction that holds nothing.
    pub fn new(id: TxnId) -> Self {
        Self { id, holds: Mutex::new(RowHolds::default()) }
    }

    /// The transaction.
    pub const fn id(&self) -> TxnId {
        self.id
    }

    /// Notes that some holds were released in the state. They may still be listed here.
    pub(in crate::table) fn note_released(&self, places: &TablePlaces, count: usize) {
        let mut holds = self.holds.lock();
        holds.released_in_state += count;
        holds.tidy(self.id, places);
    }

    /// The number of its holds that are uncontended.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(in crate::table) fn uncontended_count(&self, places: &TablePlaces) -> usize {
        self.holds.lock().list.iter().filter(|hold| hold.is_held(self.id, places)).count()
    }

    /// Sets how much memory the holds may take, in bytes, before
    /// [`lock_row`](crate::table::LockEngine::lock_row) grants nothing more. The caller sees to it
    /// that other calls keep to it too.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn allow(&self, bytes: usize) {
        self.holds.lock().allowance = Some(bytes);
    }

    /// The memory of its holds that are uncontended, in bytes.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn bytes_uncontended(&self) -> usize {
        self.holds.lock().bytes
    }

    /// At least the memory of its holds, in bytes.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn bytes_at_most(&self) -> usize {
        let holds = self.holds.lock();
        holds.bytes + holds.state_bytes
    }

    /// Begins a call that goes the general way. Until the guard is dropped,
    /// [`lock_row`](crate::table::LockEngine::lock_row) grants nothing to this transaction (T2).
    pub fn begin_call(&self) -> CallGuard<'_> {
        self.call_begins();
        CallGuard(self)
    }

    /// As [`begin_call`](Self::begin_call), for a caller that has its mutex.
    pub(super) fn begin_call_under(&self, mut holds: MutexGuard<'_, RowHolds>) -> CallGuard<'_> {
        holds.in_flight += 1;
        CallGuard(self)
    }

    /// As [`begin_call`](Self::begin_call). The caller calls [`call_ends`](Self::call_ends) once.
    pub(crate) fn call_begins(&self) {
        self.holds.lock().in_flight += 1;
    }

    /// Ends what [`call_begins`](Self::call_begins) began.
    pub(crate) fn call_ends(&self) {
        self.holds.lock().in_flight -= 1;
    }

    /// True if a call of the transaction goes the general way.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn has_call_in_flight(&self) -> bool {
        self.holds.lock().in_flight > 0
    }

    /// The number of the next call, as a savepoint that was not set.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn position(&self) -> Savepoint {
        Savepoint(self.holds.lock().next)
    }

    /// See [`LockEngine::savepoint`](crate::table::LockEngine::savepoint).
    pub(super) fn savepoint(&self) -> Result<Savepoint> {
        let mut holds = self.holds.lock();
        if holds.next == HoldSeq::LAST {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "the transaction has made too many calls for a savepoint: begin another one",
            )
            .with("txn", self.id));
        }
        // Later calls have larger numbers, also those that are granted nothing new.
        Ok(Savepoint(holds.take_seq()))
    }

    /// Has [`lock_row`](crate::table::LockEngine::lock_row) grant nothing more to this transaction.
    /// A grant that is being made comes before this returns.
    pub fn close(&self) -> Closed {
        let mut holds = self.holds.lock();
        let was_closed = std::mem::replace(&mut holds.closed, true);
        match (holds.ended, was_closed) {
            (true, _) => Closed::Ended,
            (false, true) => Closed::Before,
            (false, false) => Closed::Now,
        }
    }

    /// True if the transaction was [closed](Self::close) or [ended](crate::table::LockEngine::end).
    ///
    /// A caller of [`lock`](crate::table::LockEngine::lock) checks that after a grant. A grant that
    /// the end did not find was made after it, so that its caller sees the end.
    pub fn is_closed(&self) -> bool {
        self.holds.lock().closed
    }
}

/// A call of a transaction that goes the general way.
#[derive(Debug)]
#[must_use = "the call is over when the guard is dropped"]
pub struct CallGuard<'a>(&'a TxnHandle);

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.0.call_ends();
    }
}

impl RowHolds {
    /// The most memory that the holds may take, if the settings allow `most`.
    pub(super) fn bytes_max(&self, most: usize) -> usize {
        self.allowance.map_or(most, |allowance| allowance.min(most))
    }

    /// The number of a call that goes the general way.
    pub(super) const fn take_seq(&mut self) -> HoldSeq {
        let next = self.next.next();
        std::mem::replace(&mut self.next, next)
    }

    /// Holds that are listed although they were released.
    const RELEASED_MAX: usize = 16;

    /// Removes released holds from the list, once that is worth it.
    pub(super) fn tidy(&mut self, txn: TxnId, places: &TablePlaces) {
        let released = self.released + self.released_in_state;
        if released > Self::RELEASED_MAX && released > self.list.len() / 2 {
            let before = self.list.len();
            // Some were inflated, and their memory is that of the state now.
            let mut bytes = 0;
            self.list
                .retain(|hold| hold.bytes(txn, places).inspect(|hold| bytes += hold).is_some());
            self.bytes = bytes;
            shrink(&mut self.list);
            // Those that were inflated are in the state.
            self.in_state |= before - self.list.len() > self.released;
            (self.released, self.released_in_state) = (0, 0);
        }
    }
}

impl HoldRef {
    /// The memory of the hold, in bytes, if it is still where it was granted.
    fn bytes(&self, txn: TxnId, places: &TablePlaces) -> Option<usize> {
        places.get(self.place).shard(self.shard).lock().bytes_of(self.slot, txn, self.seq)
    }

    /// True if the hold is still where it was granted.
    pub(super) fn is_held(&self, txn: TxnId, places: &TablePlaces) -> bool {
        places.get(self.place).shard(self.shard).lock().has(self.slot, txn, self.seq)
    }
}
