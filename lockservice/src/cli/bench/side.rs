//! [`Side`]: one of the systems that are measured in turns.

use async_trait::async_trait;
use lockservice_core::Result;

use super::cpu::ServerProcess;
use super::workload::{Want, Workload};

/// A server, and the way in which its callers use it.
///
/// # Cancel safety
/// A future of these functions may be dropped at any moment: [`close`](Side::close) is called after
/// it, and leaves nothing locked.
#[async_trait]
pub(super) trait Side: Send + Sync {
    /// The name in what is printed.
    fn name(&self) -> &'static str;

    /// The processes whose CPU time counts as the server's.
    fn server(&self) -> &ServerProcess;

    /// The callers of one run, in the order of their numbers.
    async fn callers(&self, workload: Workload, count: u32) -> Result<Vec<Box<dyn Caller>>>;

    /// Leaves nothing locked and nothing behind.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// One caller of a side.
#[async_trait]
pub(super) trait Caller: Send {
    /// Locks, and unlocks.
    ///
    /// # Cancel safety
    /// As of [`Side`].
    async fn cycle(&mut self, want: &Want) -> Result<()>;

    /// Says goodbye to the server, if that is due.
    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
