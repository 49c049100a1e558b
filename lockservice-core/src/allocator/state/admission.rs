//! The admission of a commit (C1 to C3): the part of [`AllocatorState`] that every validating
//! transaction goes through.
//!
//! 1. [`AllocatorState::check_admitting`]: may this leader admit anything now?
//! 2. [`check_alive`]: may this transaction commit, as far as its origin says?
//! 3. [`AllocatorState::find`]: each presented bind is found in its slot. It is there if the
//!    transaction presents it as it came with the grant; else its table is looked up once. Does its
//!    owner hold its lease, and how long (C1)?
//! 4. [`AllocatorState::pin`]: each bind is pinned, then compared, then its owner is looked at
//!    again.
//! 5. [`CommitControl::admit`](super::commits::CommitControl::admit): the transaction is registered
//!    with its origin, under the lock of one stripe.
//!
//! A step that fails removes the pins of the steps before it.
//!
//! # What two commits share
//! The word of a bind, if both present it; a stripe of their origin, if their numbers fall into the
//! same one; and the lock of a copy of the incarnations, if their threads read the same one, which
//! is held for steps 2 to 5. No reference is counted, and nothing else is written.
//!
//! # Why pin first
//! A release closes the slot's word, and a pin fails on a closed one: of the two, one comes first.
//! A resignation changes the lease of the owner, then visits the word of each bind. A pin that it
//! does not count comes later than that visit, so that the look at the owner after the pin sees the
//! resignation. A look before the pin would not do.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::allocator::messages::{BeginCommit, CommitAdmission, PresentedBind};
use crate::allocator::state::AllocatorState;
use crate::allocator::state::commits::{TxnLife, Window};
use crate::allocator::state::errors::{not_alive, not_reported, stopping};
use crate::allocator::state::leases::LeaseState;
use crate::allocator::state::pins::NotPinned;
use crate::allocator::state::service::Service;
use crate::allocator::state::slots::{PinSet, Slot};
use crate::bind::BindSlot;
use crate::clock::Time;
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::guarded_map::View;
use crate::id::{CommitAttempt, ServiceId, TxnId};
use crate::sync::atomic::Ordering;

impl AllocatorState {
    /// Validates and admits a commit (C1 to C3), or refuses it. No store, no wait, no lock that
    /// commits share; creates nothing on a miss.
    pub(crate) fn begin_commit(&self, request: &BeginCommit, now: Time) -> Result<CommitAdmission> {
        let (txn, least) = (request.txn, request.window.least);
        self.check_admitting(now)?;
        self.check_request(request)?;
        if planted!(BindNotChecked) {
            let commit_before = request.window.most;
            return Ok(CommitAdmission { commit_before, at: self.progress() });
        }
        let life = self.origins.life(txn);
        let commit_before = self.services.view(|services| {
            let origin = services.get(&txn.origin).ok_or_else(|| unknown_origin(txn))?;
            check_alive(origin, life, txn)?;
            let binds = self.find(&services, &request.binds, now)?;
            // C1: no commit outlives the leadership, nor the leases it rests on.
            let ends = (now + request.window.most)
                .min(origin.lease.get().ends(origin.ttl))
                .min(self.leadership.ends(now))
                .min(
                    binds.iter().map(|bind| bind.ends).min().unwrap_or(Time::from_nanos(u64::MAX)),
                );
            let window = Window::new(now, ends);
            if window.length < least || window.length.is_zero() {
                // The error says so if the origin's lease is over: more time will not come.
                return Err(if origin.check_holds(now) {
                    too_short(txn, window.length)
                } else {
                    origin_fenced(txn)
                });
            }
            let pins = self.pin(&binds, window.until)?;
            origin.commits.admit(txn, request.attempt, pins, window, now)
        })?;
        if commit_before < least {
            return Err(ending(txn, commit_before));
        }
        Ok(CommitAdmission { commit_before, at: self.progress() })
    }

    /// Fails unless this leader may admit commits now.
    fn check_admitting(&self, now: Time) -> Result<()> {
        // ORDERING: only a hint to fail well, without a partner; what keeps commits out of a stop
        // is the fence of every origin.
        if !self.admitting.load(Ordering::Relaxed) {
            return Err(stopping());
        }
        self.check_leading(now)?;
        let held = self.held_until.remaining(now);
        if held.is_zero() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the store may have lost writes, and the nodes that may rely on them are waited for: \
                try again",
        )
        .with_detail(Detail::RetryAfter(held)))
    }

    /// Fails for a request that can never be admitted.
    fn check_request(&self, request: &BeginCommit) -> Result<()> {
        let txn = request.txn;
        if !txn.validates() {
            return Err(Error::new(
                ErrorKind::CannotCommit,
                "the transaction said at its start that it would not validate: start a validating \
                    one",
            )
            .with("txn", txn));
        }
        if request.binds.len() > self.commit_binds_max {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                "the commit presents too many binds: lock fewer tables in one transaction, or \
                    raise commit_binds_max",
            )
            .with("binds", request.binds.len()));
        }
        Ok(())
    }

    /// Ends an admitted commit. Idempotent; unknown ones change nothing.
    pub(crate) fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) {
        self.services.read(&txn.origin, |origin| {
            if let Some(origin) = origin {
                origin.commits.finish(txn, attempt);
            }
        });
    }

    /// Finds each presented bind, and its owner. Fails for one that is not current.
    fn find<'a>(
        &'a self,
        services: &View<'a, ServiceId, Arc<Service>>,
        binds: &'a [PresentedBind],
        now: Time,
    ) -> Result<SmallVec<[Found<'a>; 4]>> {
        let mut found = SmallVec::<[Found<'a>; 4]>::new();
        for bind in binds {
            let Some((at, slot)) = self.find_slot(bind) else {
                return Err(self.bind_changed(bind));
            };
            // Most transactions lock tables of one owner.
            let (owner, ends) = match found.last() {
                Some(last) if last.owner.id == bind.owner => (last.owner, last.ends),
                _ => {
                    let owner = services.get(&bind.owner).filter(|owner| owner.check_holds(now));
                    let owner = owner.ok_or_else(|| self.bind_changed(bind))?;
                    (&**owner, owner.lease.get().ends(owner.ttl))
                }
            };
            found.push(Found { bind, at, slot, owner, ends });
        }
        Ok(found)
    }

    /// The slot of a bind: at its place, or else at that to which its table leads.
    fn find_slot(&self, bind: &PresentedBind) -> Option<(BindSlot, &Slot)> {
        let look = |at| self.slots.get(at).filter(|slot| slot.is_of(bind)).map(|slot| (at, slot));
        look(bind.slot).or_else(|| {
            let partition = bind.partition as usize;
            let at = self.ids.read(&bind.table, |table| table?.slots.get(partition).copied());
            look(at?)
        })
    }

    /// Pins each bind and compares it under its pin (C3).
    fn pin(&self, binds: &[Found<'_>], until: Time) -> Result<PinSet<'_>> {
        let mut pins = PinSet::new(&self.slots);
        for &Found { bind, at, slot, owner, .. } in binds {
            pins.pin(at, slot, until).map_err(|e| match e {
                NotPinned::Closed => self.bind_changed(bind),
                NotPinned::Full => too_many_pins(bind),
            })?;
            // The lease was checked before, at the same reading of the clock.
            if !slot.is_of(bind) || owner.lease.get().state != LeaseState::Live {
                return Err(self.bind_changed(bind));
            }
        }
        Ok(pins)
    }

    fn bind_changed(&self, bind: &PresentedBind) -> Error {
        let error = Error::new(
            ErrorKind::BindChanged,
            "a table that the transaction locked is bound again, or its bind is invalid: end the \
                transaction and start it again",
        );
        let named = self.ids.read(&bind.table, |table| table.map(|table| table.name.clone()));
        match named {
            Some(name) => error.with("table", name),
            None => error.with("table", bind.table),
        }
        .with("version", bind.version)
    }
}

/// A presented bind that was found. Nothing keeps it in place yet.
struct Found<'a> {
    bind: &'a PresentedBind,
    at: BindSlot,
    slot: &'a Slot,
    owner: &'a Service,
    /// The raw end of its owner's lease.
    ends: Time,
}

/// Fails unless the transaction has begun and has not ended, by the reports of its origin (C4).
fn check_alive(origin: &Service, life: Option<TxnLife>, txn: TxnId) -> Result<()> {
    match life {
        Some(TxnLife::Alive) => Ok(()),
        None if origin.commits.may_have_started(txn) => Ok(()),
        None => Err(not_reported(txn)),
        Some(_) if planted!(OrphanReleasedEarly) => Ok(()),
        Some(life) => Err(not_alive(txn, life)),
    }
}

fn unknown_origin(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::CannotCommit,
        "the transaction's origin is unknown: start a new transaction",
    )
    .with("txn", txn)
}

fn too_many_pins(bind: &PresentedBind) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        "too many commits are in flight on one table: try again",
    )
    .with("table", bind.table)
}

fn too_short(txn: TxnId, left: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "less time is left of a lease than the commit needs: try again")
        .with("txn", txn)
        .with("left_ms", left.as_millis())
}

fn origin_fenced(txn: TxnId) -> Error {
    Error::new(
        ErrorKind::CannotCommit,
        "the transaction's origin is fenced: start a new transaction",
    )
    .with("txn", txn)
}

fn ending(txn: TxnId, left: Duration) -> Error {
    Error::new(
        ErrorKind::CannotCommit,
        "the end of the transaction was requested, and less time is left of its admission than it \
            needs: start a new one",
    )
    .with("txn", txn)
    .with("left_ms", left.as_millis())
}
