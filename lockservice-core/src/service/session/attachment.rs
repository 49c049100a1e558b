//! [`Attachment`]: the one current connection of a session; [`HeldFrame`]: what it keeps in memory.

use tokio::sync::watch;

use crate::error::Result;
use crate::service::session::Session;

/// A frame that is counted in memory: see [`Session::hold_frame`].
#[derive(Debug)]
#[must_use = "a frame that is dropped counts no more"]
pub struct HeldFrame<'a> {
    session: &'a Session,
    bytes: usize,
}

impl Drop for HeldFrame<'_> {
    fn drop(&mut self) {
        self.session.record.state.lock().charge.let_go_of(self.bytes);
    }
}

/// The number of an attachment in its session: a later one has a larger number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct AttachmentNumber(u64);

/// Says when another connection has taken the session over.
#[derive(Clone, Debug)]
pub struct Attachment {
    number: AttachmentNumber,
    attached: watch::Receiver<AttachmentNumber>,
}

impl Attachment {
    /// False once a later attachment has replaced this one.
    pub fn is_current(&self) -> bool {
        *self.attached.borrow() <= self.number || planted!(ReplayTakenTwice)
    }

    /// Resolves when a later attachment has replaced this one: its frames are to be dropped (T3).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn replaced(&mut self) {
        let number = self.number;
        // The sender lives in the session; if that is gone, nothing can replace this attachment any
        // more.
        let gone = self.attached.wait_for(|current| *current > number).await.is_err();
        if gone || planted!(ReplayTakenTwice) {
            std::future::pending().await
        }
    }
}

impl Session {
    /// Counts a frame of about `bytes` in memory among the memory that the session's peer and the
    /// node keep, until the returned value is dropped.
    ///
    /// # Errors
    /// `ResourceExhausted` if there is no room for it: refuse its operations.
    pub fn hold_frame(&self, bytes: usize) -> Result<HeldFrame<'_>> {
        self.record.state.lock().charge.hold(bytes)?;
        Ok(HeldFrame { session: self, bytes })
    }

    /// Makes the caller the session's one current connection (T3); earlier attachments learn that
    /// they were replaced.
    pub fn attach(&self) -> Attachment {
        let mut number = AttachmentNumber::default();
        self.record.attached.send_modify(|current| {
            current.0 += 1;
            number = *current;
        });
        Attachment { number, attached: self.record.attached.subscribe() }
    }
}
