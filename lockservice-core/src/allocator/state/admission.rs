//! The admission of a commit (C1 to C3): the part of [`AllocatorState`] that every validating
//! transaction goes through.
//!
//! 1. [`AllocatorState::check_admitting`]: may this leader admit anything now?
//! 2. [`AllocatorState::check_request`] and [`AllocatorState::check_alive`]: may this transaction
//!    commit, as far as it and its origin say?
//! 3. [`AllocatorState::pin`]: each presented bind is compared and pinned, under the lock of its
//!    own shard.
//! 4. [`CommitControl::admit`](super::commits::CommitControl::admit): the transaction is registered
//!    with its origin, under the lock of one stripe.
//!
//! A step that fails drops the pins of the steps before it.

use std::sync::Arc;
use std::time::Duration;

use crate::allocator::messages::{BeginCommit, CommitAdmission, PresentedBind};
use crate::allocator::state::AllocatorState;
use crate::allocator::state::commits::TxnLife;
use crate::allocator::state::errors::{not_alive, not_reported, stopping};
use crate::allocator::state::pins::{Pin, PinSet};
use crate::allocator::state::service::Service;
use crate::clock::{Time, hi};
use crate::error::{Detail, Error, ErrorKind, Result};
use crate::id::{CommitAttempt, TxnId};
use crate::sync::atomic::Ordering;

impl AllocatorState {
    /// Validates and admits a commit (C1 to C3), or refuses it. No store, no wait, no global lock;
    /// creates nothing on a miss.
    pub(crate) fn begin_commit(&self, request: &BeginCommit, now: Time) -> Result<CommitAdmission> {
        let (txn, least) = (request.txn, request.window.least);
        self.check_admitting(now)?;
        let origin = self.check_request(request)?;
        self.check_alive(&origin, txn)?;
        // C1: no commit outlives the leadership, nor the leases it rests on.
        let mut window = request
            .window
            .most
            .min(origin.lease.get().remaining(origin.ttl, now))
            .min(self.leadership.remaining(now));
        let mut pins = PinSet::new();
        for presented in &request.binds {
            let (pin, remaining) = self.pin(presented, window, now)?;
            pins.push(pin);
            window = window.min(remaining);
        }
        if window < least || window.is_zero() {
            // The error says so if the origin's lease is over: more time will not come.
            return Err(if origin.check_holds(now) {
                too_short(txn, window)
            } else {
                origin_fenced(txn)
            });
        }
        let commit_before = origin.commits.admit(txn, request.attempt, pins, window, now)?;
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

    /// Fails for a request that can never be admitted. Returns the transaction's origin.
    fn check_request(&self, request: &BeginCommit) -> Result<Arc<Service>> {
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
        self.service(txn.origin).ok_or_else(|| {
            Error::new(
                ErrorKind::CannotCommit,
                "the transaction's origin is unknown: start a new transaction",
            )
            .with("txn", txn)
        })
    }

    /// Fails unless the transaction has begun and has not ended, as far as its origin has told
    /// (C4).
    fn check_alive(&self, origin: &Service, txn: TxnId) -> Result<()> {
        match self.origins.life(txn) {
            Some(TxnLife::Alive) => Ok(()),
            None if origin.commits.may_have_started(txn) => Ok(()),
            None => Err(not_reported(txn)),
            Some(life) => Err(not_alive(txn, life)),
        }
    }

    /// Ends an admitted commit. Idempotent; unknown ones change nothing.
    pub(crate) fn finish_commit(&self, txn: TxnId, attempt: CommitAttempt) {
        if let Some(origin) = self.service(txn.origin) {
            origin.commits.finish(txn, attempt);
        }
    }

    /// Compares and pins one presented bind, under its shard's lock (C3), and returns what is left
    /// of its owner's lease.
    fn pin(
        &self,
        presented: &PresentedBind,
        window: Duration,
        now: Time,
    ) -> Result<(Pin, Duration)> {
        let pinned = self.tables.read(&presented.table, |entry| {
            let entry = entry.filter(|entry| !entry.leaving)?;
            let bind = entry.binds.get(presented.partition as usize)?;
            if bind.version != presented.version
                || bind.owner.id != presented.owner
                || !bind.owner.check_holds(now)
            {
                return None;
            }
            let remaining = bind.owner.lease.get().remaining(bind.owner.ttl, now);
            // The window can only shrink from here, so this is late enough; and it must be there
            // before the shard's lock is left.
            Some((Pin::new(&bind.pins, now + hi(window.min(remaining))), remaining))
        });
        pinned.ok_or_else(|| {
            Error::new(
                ErrorKind::BindChanged,
                "a table that the transaction locked is bound again, or its bind is invalid: end \
                    the transaction and start it again",
            )
            .with("table", &presented.table)
            .with("version", presented.version)
        })
    }
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
        "the end of the transaction was asked for, and less time is left of its admission than it \
            needs: start a new one",
    )
    .with("txn", txn)
    .with("left_ms", left.as_millis())
}
