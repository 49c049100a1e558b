//! Limits of what one client may use of a node, so that none can use all of it.
//!
//! A [`Quota`] counts what its owner (a connection, a client, the node) uses: sessions and their
//! operations under way (so also their waits), open calls, and the bytes that are kept for them.
//! Quotas nest: what is charged to a connection is charged to its client too. Every session is
//! charged to the node. Transactions and the memory of their locks are charged to the client alone:
//! the node has limits of its own for them.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Quota`] |
//! | `call.rs` | [`OpenCall`], [`CallMemory`]: the charge of a call |
//! | `charge.rs` | [`Charge`]: that of a session |
//! | `txn.rs` | [`TxnCharge`]: that of a transaction |
//!
//! # Invariant
//! A charge is returned exactly once: with the session, the call or the transaction that it was
//! charged for.

mod call;
mod charge;
#[cfg(all(test, not(loom)))]
mod tests;
mod txn;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::error::{Error, ErrorKind, Result};

pub use self::call::{CallMemory, OpenCall};
pub(crate) use self::charge::Charge;
pub(crate) use self::txn::TxnCharge;

/// The bounds of a [`Quota`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuotaSettings {
    /// The largest number of sessions at once.
    pub sessions_max: usize,
    /// The largest number of transactions of those sessions at once.
    pub txns_max: usize,
    /// The largest number of operations under way at once, waits included.
    pub ops_max: usize,
    /// The largest number of calls that are open at once, and again as many of those that release
    /// something.
    pub calls_max: usize,
    /// The most memory of messages that arrive, of queued operations and of responses that are kept
    /// for a replay, in bytes, as estimated.
    pub kept_bytes_max: usize,
    /// The most memory of the locks of those transactions, in bytes, as estimated. Each takes a
    /// little of it when it begins, and more in steps.
    pub lock_bytes_max: usize,
}

impl Default for QuotaSettings {
    /// No bounds.
    fn default() -> Self {
        Self {
            sessions_max: usize::MAX,
            txns_max: usize::MAX,
            ops_max: usize::MAX,
            calls_max: usize::MAX,
            kept_bytes_max: usize::MAX,
            lock_bytes_max: usize::MAX,
        }
    }
}

/// The owner of a [`Quota`], as errors name it and its settings.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum QuotaOwner {
    /// The node.
    Node,
    /// One connection.
    Connection,
    /// One client, described by this: `the address 10.0.0.1`.
    Client(String),
}

impl QuotaOwner {
    /// The setting with the limit of `resource`.
    fn setting(&self, resource: Resource) -> String {
        let name = resource.name();
        match self {
            Self::Node => format!("service.{name}_max"),
            Self::Connection => format!("server.{name}_per_connection_max"),
            Self::Client(_) => format!("server.{name}_per_client_max"),
        }
    }
}

impl fmt::Display for QuotaOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("the node"),
            Self::Connection => f.write_str("one connection"),
            Self::Client(client) => f.write_str(client),
        }
    }
}

/// Something that a [`Quota`] bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Resource {
    Sessions,
    Txns,
    Ops,
    Calls,
    KeptBytes,
    LockBytes,
}

impl Resource {
    /// The name, as in settings.
    const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Txns => "txns",
            Self::Ops => "ops",
            Self::Calls => "calls",
            Self::KeptBytes => "kept_bytes",
            Self::LockBytes => "lock_bytes",
        }
    }

    /// What there is too much of, and what the client can do about it.
    const fn advice(self) -> (&'static str, &'static str) {
        match self {
            Self::Sessions => ("sessions", "close some"),
            Self::Txns => ("transactions", "end some"),
            Self::Ops => ("operations under way", "wait for responses"),
            Self::Calls => ("open calls", "wait for responses"),
            Self::KeptBytes => (
                "bytes of messages, operations and unacknowledged responses",
                "send less at a time and acknowledge responses",
            ),
            Self::LockBytes => ("bytes of locks", "release some"),
        }
    }
}

/// One number for each [`Resource`].
///
/// ORDERING: `Relaxed`, without a partner: each is changed by single steps that need nothing of the
/// others.
#[derive(Debug, Default)]
struct Amounts([AtomicUsize; 6]);

impl Amounts {
    const fn of(&self, resource: Resource) -> &AtomicUsize {
        &self.0[resource as usize]
    }
}

/// The use that a connection, a client or all clients make of a node, and its limits.
#[derive(Debug)]
pub struct Quota {
    owner: QuotaOwner,
    limits: Amounts,
    used: Amounts,
    parent: Option<Arc<Self>>,
}

impl Quota {
    /// A quota of which nothing is used yet. Each charge is charged to `parent` too.
    pub fn new(owner: QuotaOwner, settings: QuotaSettings, parent: Option<Arc<Self>>) -> Arc<Self> {
        let (limits, used) = Default::default();
        let quota = Arc::new(Self { owner, limits, used, parent });
        quota.set_limits(settings);
        quota
    }

    /// Replaces the limits. What is used above them stays, and nothing more is admitted until it is
    /// less.
    pub fn set_limits(&self, settings: QuotaSettings) {
        let QuotaSettings {
            sessions_max,
            txns_max,
            ops_max,
            calls_max,
            kept_bytes_max,
            lock_bytes_max,
        } = settings;
        for (resource, most) in [
            (Resource::Sessions, sessions_max),
            (Resource::Txns, txns_max),
            (Resource::Ops, ops_max),
            (Resource::Calls, calls_max),
            (Resource::KeptBytes, kept_bytes_max),
            (Resource::LockBytes, lock_bytes_max),
        ] {
            self.limits.of(resource).store(most, Relaxed);
        }
    }

    /// It and those above it.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |quota| quota.parent.as_deref())
    }

    /// The outermost of those above it: that of the client.
    fn outermost(self: &Arc<Self>) -> &Arc<Self> {
        let mut quota = self;
        while let Some(parent) = &quota.parent {
            quota = parent;
        }
        quota
    }

    fn most(&self, resource: Resource) -> usize {
        self.limits.of(resource).load(Relaxed)
    }

    fn used(&self, resource: Resource) -> usize {
        self.used.of(resource).load(Relaxed)
    }

    /// Adds `amount` to what is used of it and of those above it, up to `times` the limit. Fails
    /// with `ResourceExhausted` if one has no room; then nothing is added.
    fn add(&self, resource: Resource, amount: usize, times: usize) -> Result<()> {
        for (charged, quota) in self.chain().enumerate() {
            let most = quota.most(resource).saturating_mul(times);
            let room = |used: usize| used.checked_add(amount).filter(|sum| *sum <= most);
            if quota.used.of(resource).fetch_update(Relaxed, Relaxed, room).is_err() {
                let before = self.chain().take(charged);
                before.for_each(|quota| quota.change_one(resource, amount, 0));
                return Err(quota.exhausted(resource));
            }
        }
        Ok(())
    }

    /// Changes what one charge uses of it and of those above it.
    fn change(&self, resource: Resource, from: usize, to: usize) {
        self.chain().for_each(|quota| quota.change_one(resource, from, to));
    }

    /// As [`change`](Self::change), of it alone.
    fn change_one(&self, resource: Resource, from: usize, to: usize) {
        // Wraps around where `to` is less: the sum is right all the same.
        if from != to {
            self.used.of(resource).fetch_add(to.wrapping_sub(from), Relaxed);
        }
    }

    /// The bytes that are kept.
    pub(in crate::service) fn kept_bytes(&self) -> usize {
        self.used(Resource::KeptBytes)
    }

    fn exhausted(&self, resource: Resource) -> Error {
        let (what, remedy) = resource.advice();
        let setting = self.owner.setting(resource);
        let own = match self.owner {
            QuotaOwner::Client(_) => " (or the limit of the identity)",
            QuotaOwner::Node | QuotaOwner::Connection => "",
        };
        let sentence = format!(
            "too many {what} of {} at once: {remedy}, or have the setting {setting}{own} raised",
            self.owner
        );
        Error::new(ErrorKind::ResourceExhausted, sentence).with("limit", self.most(resource))
    }
}

/// For tests of what is counted.
#[cfg(any(test, feature = "testing"))]
impl Quota {
    /// What is used now, in the form of its limits.
    pub fn usage(&self) -> QuotaSettings {
        QuotaSettings {
            sessions_max: self.used(Resource::Sessions),
            txns_max: self.used(Resource::Txns),
            ops_max: self.used(Resource::Ops),
            calls_max: self.used(Resource::Calls),
            kept_bytes_max: self.used(Resource::KeptBytes),
            lock_bytes_max: self.used(Resource::LockBytes),
        }
    }
}
