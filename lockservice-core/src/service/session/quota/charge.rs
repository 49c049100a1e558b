//! [`Charge`]: the charge of a session, and of what it keeps.

use std::sync::Arc;

use super::{Quota, Resource, TxnCharge};
use crate::error::Result;

/// The charge of one session. Returned when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    /// Its peer's, if that is bounded, and the node's.
    quotas: Vec<Arc<Quota>>,
    /// That of its client, if that is bounded.
    client: Option<Arc<Quota>>,
    ops: usize,
    kept_bytes: usize,
    /// Of a frame that is being taken in.
    frame_bytes: usize,
}

impl Charge {
    /// Of a session that begins. Fails with `ResourceExhausted` at a bound on sessions.
    pub(crate) fn session(peer: Option<Arc<Quota>>, node: &Arc<Quota>) -> Result<Self> {
        let mut charge = Self::default();
        charge.client = peer.as_ref().map(|peer| Arc::clone(peer.outermost()));
        for quota in peer.into_iter().chain([Arc::clone(node)]) {
            quota.add(Resource::Sessions, 1, 1)?;
            // Dropped with those before it if the next one has no room.
            charge.quotas.push(quota);
        }
        Ok(charge)
    }

    /// The charge of a transaction of the session. Fails with `ResourceExhausted` at the bound on
    /// those of its client; `None` if that has none.
    pub(crate) fn txn(&self) -> Result<Option<TxnCharge>> {
        self.client.as_ref().map(TxnCharge::begin).transpose()
    }

    /// All that it counts in.
    fn quotas(&self) -> impl Iterator<Item = &Quota> {
        self.quotas.iter().flat_map(|quota| quota.chain())
    }

    /// Fails with `ResourceExhausted` if there is no room for one more operation.
    ///
    /// Sessions check at the same time, so several may find the last place. The bounds are exceeded
    /// by one operation for each session at most.
    pub(crate) fn check_room(&self) -> Result<()> {
        for quota in self.quotas() {
            for resource in [Resource::Ops, Resource::KeptBytes] {
                if quota.used(resource) >= quota.most(resource) {
                    return Err(quota.exhausted(resource));
                }
            }
        }
        Ok(())
    }

    /// The session now has so many operations under way, and keeps so many bytes.
    pub(crate) fn set(&mut self, ops: usize, kept_bytes: usize) {
        for quota in self.quotas() {
            quota.change_one(Resource::Ops, self.ops, ops);
            quota.change_one(Resource::KeptBytes, self.kept_bytes, kept_bytes);
        }
        (self.ops, self.kept_bytes) = (ops, kept_bytes);
    }

    /// Counts a frame of `bytes` in memory, until [`let_go_of`](Self::let_go_of) it. Fails with
    /// `ResourceExhausted` if there is no room for it; then nothing is charged.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<()> {
        for quota in self.quotas() {
            if quota.used(Resource::KeptBytes).saturating_add(bytes)
                > quota.most(Resource::KeptBytes)
            {
                return Err(quota.exhausted(Resource::KeptBytes));
            }
        }
        self.quotas().for_each(|quota| quota.change_one(Resource::KeptBytes, 0, bytes));
        self.frame_bytes += bytes;
        Ok(())
    }

    /// A frame of `bytes` that was held is no longer in memory. Does nothing for a session that
    /// ended meanwhile: its charge was returned whole.
    pub(crate) fn let_go_of(&mut self, bytes: usize) {
        let bytes = bytes.min(self.frame_bytes);
        self.quotas().for_each(|quota| quota.change_one(Resource::KeptBytes, bytes, 0));
        self.frame_bytes -= bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0, 0);
        self.let_go_of(self.frame_bytes);
        self.quotas().for_each(|quota| quota.change_one(Resource::Sessions, 1, 0));
    }
}
