//! [`BindSlots`]: where each bind is kept for commits, with its pins (C2, C3).
//!
//! # Implementation details
//! Slots stand in [`Segments`]: their array never shrinks, and none of them moves. A slot is
//! one cache line: its [`Pins`], and the four numbers of its bind. [`BindSlot`] is its place in
//! the array. It comes with the bind, so that a commit that presents the bind finds the slot
//! without a look-up, without a lock, and without a cache line that other commits change.
//!
//! # The life of a slot
//! ```text
//!         claim              open                close, or the bind is replaced
//!   free ───────▶ closed ───────────▶ open ───────────────────────┐
//!    ▲              │ ▲                 ▲ reopen: the table stays    ▼
//!    │              │ └─────────────────┴───────────────────── closed
//!    └──────────────┴──────────────────────────────────────────────┘
//!                      drop of [`ClaimedSlot`]
//! ```
//!
//! # Invariants
//! - The numbers change only while the slot is closed and has no pin. A slot with pins that were
//!   not removed stays out of use: an attempt that ends late removes its pins from the bind on
//!   which it put them, and from no other.
//! - A commit compares the numbers after it has pinned the slot. From then on they stand. Before
//!   that they are only a first look, which keeps a stale bind from pinning another one.
//! - A version is never given out twice (L4). So a slot that has the version that is presented has
//!   the bind that is presented, wherever its place came from: a caller may present any place.
//! - Reading creates nothing: a place that is not there has no slot.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::allocator::messages::PresentedBind;
use crate::allocator::state::pins::{NotPinned, Pins};
use crate::bind::BindSlot;
use crate::clock::Time;
use crate::id::BindVersion;
use crate::segments::Segments;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Slots of the first segment.
#[cfg(not(any(loom, shuttle)))]
const FIRST: usize = 1 << 10;
#[cfg(any(loom, shuttle))]
const FIRST: usize = 1 << 1;

/// The number of free slots that a claim checks before it takes one that was never used.
const LOOKS: usize = 4;

/// The slots of all binds of an allocator.
pub(crate) struct BindSlots {
    slots: Segments<Slot, FIRST>,
    free: Mutex<Free>,
}

/// The slots that are not in use.
struct Free {
    /// Were in use before. Pins that have run out may be left on some.
    used: VecDeque<BindSlot>,
    /// The first that never was.
    next: u32,
}

/// One bind as commits see it.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Slot {
    pins: Pins,
    // ORDERING of the four: Relaxed. They are written before `Pins::open` releases them, and count
    // only for a reader whose `Pins::pin` acquired that.
    table: AtomicU64,
    partition: AtomicU32,
    owner: AtomicU64,
    version: AtomicU64,
}

impl Slot {
    fn new() -> Self {
        Self {
            pins: Pins::closed(),
            table: AtomicU64::new(0),
            partition: AtomicU32::new(0),
            owner: AtomicU64::new(0),
            version: AtomicU64::new(0),
        }
    }

    fn fill(&self, bind: &PresentedBind) {
        self.table.store(bind.table.get(), Ordering::Relaxed);
        self.partition.store(bind.partition, Ordering::Relaxed);
        self.owner.store(bind.owner.get(), Ordering::Relaxed);
        self.version.store(bind.version.get(), Ordering::Relaxed);
    }

    /// True if this is the slot of the bind that is presented.
    pub(crate) fn is_of(&self, bind: &PresentedBind) -> bool {
        self.version.load(Ordering::Relaxed) == bind.version.get()
            && self.owner.load(Ordering::Relaxed) == bind.owner.get()
            && self.table.load(Ordering::Relaxed) == bind.table.get()
            && self.partition.load(Ordering::Relaxed) == bind.partition
    }
}

impl BindSlots {
    /// No slots.
    pub(crate) fn new() -> Self {
        Self { slots: Segments::new(), free: Mutex::new(Free { used: VecDeque::new(), next: 1 }) }
    }

    /// The slot at a place. `None` if there never was one.
    pub(crate) fn get(&self, at: BindSlot) -> Option<&Slot> {
        self.slots.get(index(at)?)
    }

    /// A slot for a bind, closed. The slot in `bind` makes no difference.
    pub(crate) fn claim(self: &Arc<Self>, bind: &PresentedBind) -> ClaimedSlot {
        let mut free = self.free.lock();
        let at = self.used(&mut free).unwrap_or_else(|| self.unused(&mut free));
        drop(free);
        let claimed = ClaimedSlot { at, slots: Arc::clone(self) };
        claimed.slot().fill(bind);
        claimed
    }

    /// True while a commit is, or may be, in flight on the bind with this version that was at `at`.
    pub(crate) fn held(&self, at: BindSlot, version: BindVersion, now: Time) -> bool {
        let of_bind = |slot: &&Slot| slot.version.load(Ordering::Relaxed) == version.get();
        self.get(at).filter(of_bind).is_some_and(|slot| slot.pins.held(now))
    }

    /// Removes pins.
    pub(crate) fn unpin(&self, pinned: &[BindSlot]) {
        for &at in pinned {
            if let Some(slot) = self.get(at) {
                slot.pins.unpin();
            }
        }
    }

    fn used(&self, free: &mut Free) -> Option<BindSlot> {
        for _ in 0..LOOKS.min(free.used.len()) {
            let at = free.used.pop_front()?;
            if self.get(at).is_some_and(|slot| !slot.pins.any()) {
                return Some(at);
            }
            free.used.push_back(at);
        }
        None
    }

    fn unused(&self, free: &mut Free) -> BindSlot {
        let at = BindSlot::new(free.next);
        free.next += 1;
        let index = index(at).expect("the numbers of places begin at 1");
        self.slots.get_or_make(index, Slot::new);
        at
    }
}

/// The index of a place. Place 1 is the first of all.
fn index(at: BindSlot) -> Option<u32> {
    at.get().checked_sub(1)
}

impl fmt::Debug for BindSlots {
    /// Takes no lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindSlots").finish_non_exhaustive()
    }
}

/// The slot of a bind. When it is dropped the slot is closed, and free for another bind.
#[derive(Debug)]
pub(crate) struct ClaimedSlot {
    at: BindSlot,
    slots: Arc<BindSlots>,
}

impl ClaimedSlot {
    /// The place of the slot.
    pub(crate) fn at(&self) -> BindSlot {
        self.at
    }

    /// The pins of the bind.
    pub(crate) fn pins(&self) -> &Pins {
        &self.slot().pins
    }

    fn slot(&self) -> &Slot {
        self.slots.get(self.at).expect("a slot that was claimed is there for ever")
    }
}

impl Drop for ClaimedSlot {
    fn drop(&mut self) {
        self.pins().close();
        self.slots.free.lock().used.push_back(self.at);
    }
}

/// Places of pinned slots.
pub(crate) type Places = SmallVec<[BindSlot; 4]>;

/// The pins of a commit that is not registered yet. They are removed when it is dropped.
#[derive(Debug)]
pub(crate) struct PinSet<'a> {
    slots: &'a BindSlots,
    pinned: Places,
}

impl<'a> PinSet<'a> {
    /// No pins yet.
    pub(crate) fn new(slots: &'a BindSlots) -> Self {
        Self { slots, pinned: Places::new() }
    }

    /// Pins `slot`, which is at `at`, until `until`.
    pub(crate) fn pin(&mut self, at: BindSlot, slot: &Slot, until: Time) -> Result<(), NotPinned> {
        slot.pins.pin(until)?;
        self.pinned.push(at);
        Ok(())
    }

    /// The pins, which [`BindSlots::unpin`] removes from here on.
    pub(crate) fn keep(mut self) -> Places {
        std::mem::take(&mut self.pinned)
    }
}

impl Drop for PinSet<'_> {
    fn drop(&mut self) {
        self.slots.unpin(&self.pinned);
    }
}
