//! One error type: what happened, what the caller must do, and what it happened to.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Error`] |
//! | `kind.rs` | [`ErrorKind`] and its [`Advice`] |
//! | `detail.rs` | [`Detail`]: machine-readable particulars |

mod detail;
mod kind;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::id::Epoch;

pub use self::detail::{Blocker, DeadlockEdge, Detail};
pub use self::kind::{Advice, ErrorKind};

/// An error of this library: a [kind](ErrorKind), a sentence that says what to do, and what it
/// happened to.
///
/// Cheap enough to clone: a response that is kept for a replay (T2) is the same error every time.
///
/// ```
/// use lockservice_core::{Error, ErrorKind, Key};
///
/// let error: Error = Key::new("").expect_err("a key is not empty");
/// assert_eq!(error.kind(), ErrorKind::InvalidArgument);
/// println!("{error}"); // what is wrong, and what to do
/// ```
#[derive(Clone)]
pub struct Error(Box<ErrorDetails>);

#[derive(Clone)]
struct ErrorDetails {
    kind: ErrorKind,
    message: String,
    context: Vec<(String, String)>,
    detail: Option<Detail>,
    leader_epoch: Option<Epoch>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with a sentence that says what happened and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorDetails {
            kind,
            message: message.into(),
            context: Vec::new(),
            detail: None,
            leader_epoch: None,
            source: None,
        }))
    }

    /// Adds what it happened to, for example `.with("path", path)`.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.0.context.push((name.into(), value.to_string()));
        self
    }

    /// Adds machine-readable particulars.
    #[must_use]
    pub fn with_detail(mut self, detail: Detail) -> Self {
        self.0.detail = Some(detail);
        self
    }

    /// Adds the epoch of the leadership that returned it (L3).
    #[must_use]
    pub fn with_leader_epoch(mut self, epoch: Epoch) -> Self {
        self.0.leader_epoch = Some(epoch);
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The advice to the caller.
    pub fn advice(&self) -> Advice {
        self.0.kind.advice()
    }

    /// The sentence alone, without context and source.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The objects of the failure, by name.
    pub fn context(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.context.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Machine-readable particulars, if there are any.
    pub fn detail(&self) -> Option<&Detail> {
        self.0.detail.as_ref()
    }

    /// The epoch of the leadership that returned it, for a refusal by another node's allocator. A
    /// caller that knows a later one must not act on it (L3).
    pub fn leader_epoch(&self) -> Option<Epoch> {
        self.0.leader_epoch
    }

    /// About how much memory it takes, in bytes, without its detail and its source.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn bytes(&self) -> usize {
        /// Overhead of the heap allocator for one block.
        const BLOCK: usize = 16;
        let texts = self.0.context.iter().map(|(name, value)| name.len() + value.len() + 2 * BLOCK);
        let places = self.0.context.capacity() * size_of::<(String, String)>() + BLOCK;
        let context = texts.reduce(|a, b| a + b).map_or(0, |texts| texts + places);
        size_of::<ErrorDetails>() + self.0.message.len() + 2 * BLOCK + context
    }

    /// The whole cycle of a [`ErrorKind::Deadlock`].
    pub fn deadlock(&self) -> Option<&[DeadlockEdge]> {
        match self.detail() {
            Some(Detail::Deadlock(cycle)) => Some(cycle),
            _ => None,
        }
    }

    /// The conflicting holder or waiter, of a [`ErrorKind::Conflict`] or a [`ErrorKind::Timeout`],
    /// if that is known.
    pub fn blocker(&self) -> Option<&Blocker> {
        match self.detail() {
            Some(Detail::Blocked(blocker)) => Some(blocker),
            _ => None,
        }
    }

    /// The particulars, to be completed by one who knows more.
    #[cfg_attr(loom, allow(dead_code, reason = "the service is not built for loom"))]
    pub(crate) fn detail_mut(&mut self) -> Option<&mut Detail> {
        self.0.detail.as_mut()
    }

    /// The pause before another try, if it is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.detail() {
            Some(Detail::RetryAfter(after)) => Some(*after),
            _ => None,
        }
    }

    /// The address of a table's owner, of a [`ErrorKind::NotOwner`].
    pub fn owner(&self) -> Option<&str> {
        match self.detail() {
            Some(Detail::Owner { address, .. }) => Some(address),
            _ => None,
        }
    }

    /// The address of the leader, of a [`ErrorKind::NotLeader`].
    pub fn leader(&self) -> Option<&str> {
        match self.detail() {
            Some(Detail::Leader(address)) => Some(address),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        for edge in self.deadlock().unwrap_or_default() {
            let victim = if edge.victim { " (this one)" } else { "" };
            write!(
                f,
                "; {}{victim} waits in {} for {} of {}",
                edge.waiter, edge.table, edge.item, edge.holder
            )?;
        }
        if let Some(blocker) = self.blocker() {
            write!(f, "; {blocker}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind.name())?;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_that_leads_back_to_it() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), Some(*kind));
        }
    }

    #[test]
    fn an_error_reads_as_a_sentence_and_debug_shows_its_causes() {
        let error = Error::new(
            ErrorKind::StoreUnusable,
            "cannot open the store: check the folder's permissions",
        )
        .with("path", "/x")
        .with_source(std::io::Error::other("denied"));
        assert_eq!(
            error.to_string(),
            "cannot open the store: check the folder's permissions (path: /x)"
        );
        assert_eq!(format!("{error:?}"), format!("store_unusable: {error}: denied"));
    }
}
