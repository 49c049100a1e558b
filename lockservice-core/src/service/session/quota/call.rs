//! The charge of a call, and of the messages that arrive in it.

use std::sync::Arc;

use super::{Quota, Resource};
use crate::error::Result;

impl Quota {
    /// Counts one more call, until the returned value is dropped. A call that `releases` something
    /// makes room for others: as many again of those are admitted.
    ///
    /// # Errors
    /// `ResourceExhausted` at a bound. Nothing is charged then.
    pub fn open_call(self: &Arc<Self>, releases: bool) -> Result<OpenCall> {
        self.add(Resource::Calls, 1, if releases { 2 } else { 1 })?;
        Ok(OpenCall { quota: Arc::clone(self) })
    }
}

/// A call that is counted, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct OpenCall {
    quota: Arc<Quota>,
}

impl OpenCall {
    /// Memory for the messages of this call: nothing yet.
    pub fn memory(self: &Arc<Self>) -> CallMemory {
        CallMemory { call: Arc::clone(self), bytes: 0 }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.quota.change(Resource::Calls, 1, 0);
    }
}

/// Memory that a call's messages arrive in. Returned when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct CallMemory {
    call: Arc<OpenCall>,
    bytes: usize,
}

impl CallMemory {
    /// Grows it to `bytes`, if it is less: the buffer of a stream stays as large as its largest
    /// message.
    ///
    /// # Errors
    /// `ResourceExhausted` if there is no room. It stays as it was then.
    pub fn grow_to(&mut self, bytes: usize) -> Result<()> {
        let more = bytes.saturating_sub(self.bytes);
        self.call.quota.add(Resource::KeptBytes, more, 1)?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for CallMemory {
    fn drop(&mut self) {
        self.call.quota.change(Resource::KeptBytes, self.bytes, 0);
    }
}
