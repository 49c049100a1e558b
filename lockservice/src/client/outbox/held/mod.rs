//! What a transaction holds, by the account of its client: for the claims after a restart (P6).
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Held`]: the log of a transaction, and what it adds up to |
//! | `holds` | [`Holds`]: items with their modes and tokens; the effect of each operation |
//! | `order` | the order in which a call takes its items |
//!
//! # Implementation details
//! A response to a lock call moves the bytes of the request into a log; a release that is done
//! follows them. Nothing is decoded or copied then. The log is *replayed* when claims are made: the
//! same operations, in the order of their sequences, have the same effect as at the server.
//!
//! A log that has much of what is not held any more is replayed earlier, into the base of the next
//! replay: so a transaction that locks and unlocks in a loop keeps what it holds, and not its whole
//! history. One that only locks is not replayed: its log is what it holds.
//!
//! A hold remembers what lies beneath its upgrades, and since which operation. So a roll-back to a
//! savepoint has the effect that it has at the server, also after the replay.

mod holds;
mod order;
#[cfg(test)]
mod tests;

use lockservice_core::service::Granted;
use lockservice_core::{BindVersion, FencingToken, Key, KeyRange, Result, Sequence};

pub(super) use self::holds::{HeldItem, Holds};

/// The least that is dispensable in a log before it is replayed, in bytes.
const SPARE_BYTES_MIN: usize = 4 << 10;

/// A request of so many bytes may be dispensable: most of what it names may be held already.
const LARGE_BYTES: usize = 512;

/// The most that an entry costs beyond the bytes of its request.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// The operations of a transaction that changed what it holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What the operations before those in the log add up to.
    base: Holds,
    /// In the order of their responses, which is nearly that of their sequences.
    log: Vec<Entry>,
    /// The part of the log that may be dispensable, in bytes.
    spare_bytes: usize,
    /// The part from which on the log is replayed.
    spare_bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    sequence: Sequence,
    change: Change,
}

/// One operation that changed what its transaction holds. Requests are kept as they were encoded.
#[derive(Debug)]
pub(super) enum Change {
    /// A `LockOp`, and its grant.
    Lock(Vec<u8>, LockGrant),
    /// An `UnlockOp`.
    Unlock(Vec<u8>),
    /// A `DowngradeOp`.
    Downgrade(Vec<u8>),
    /// What was granted after this operation has ended.
    RollBackTo(Sequence),
    /// The grant of this operation was rolled back.
    Cancel(Sequence),
}

/// A [`Change`] that may have its bytes elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChangeRef<'a> {
    Lock(&'a [u8], &'a LockGrant),
    Unlock(&'a [u8]),
    Downgrade(&'a [u8]),
    RollBackTo(Sequence),
    Cancel(Sequence),
}

/// What is needed of a grant to claim its locks.
#[derive(Debug)]
pub(super) struct LockGrant {
    pub(super) version: BindVersion,
    pub(super) token: FencingToken,
    rare: Option<Box<RareGrant>>,
}

/// What few grants have.
#[derive(Debug)]
struct RareGrant {
    skipped: Vec<Key>,
    escalated: Option<KeyRange>,
}

impl LockGrant {
    /// `None` if the call added nothing: all of its rows were skipped, or held before.
    pub(super) fn of(granted: &Granted) -> Option<Self> {
        let grant = &granted.grant;
        if !grant.newly_locked {
            return None;
        }
        let is_rare = !grant.skipped.is_empty() || grant.escalated.is_some();
        let rare = is_rare.then(|| {
            let escalated = grant.escalated.as_deref().cloned();
            Box::new(RareGrant { skipped: grant.skipped.clone(), escalated })
        });
        Some(Self { version: grant.bind.version, token: grant.token, rare })
    }
}

impl Change {
    fn bytes(&self) -> usize {
        let message = match self {
            Self::Lock(message, _) | Self::Unlock(message) | Self::Downgrade(message) => {
                message.len()
            }
            Self::RollBackTo(_) | Self::Cancel(_) => 0,
        };
        ENTRY_BYTES + message
    }

    /// How much of a log it may make dispensable.
    fn spare_bytes(&self) -> usize {
        match self {
            Self::Lock(message, _) if message.len() < LARGE_BYTES => 0,
            Self::Lock(..) => self.bytes(),
            // With what it ends.
            _ => 2 * self.bytes(),
        }
    }

    pub(super) fn as_ref(&self) -> ChangeRef<'_> {
        match self {
            Self::Lock(message, grant) => ChangeRef::Lock(message, grant),
            Self::Unlock(message) => ChangeRef::Unlock(message),
            Self::Downgrade(message) => ChangeRef::Downgrade(message),
            Self::RollBackTo(to) => ChangeRef::RollBackTo(*to),
            Self::Cancel(cancelled) => ChangeRef::Cancel(*cancelled),
        }
    }
}

impl Held {
    /// Notes an operation that the server has done. True if much of the log may be dispensable:
    /// then it is to be [compacted](Self::compact).
    pub(super) fn note(&mut self, sequence: Sequence, change: Change) -> bool {
        self.spare_bytes += change.spare_bytes();
        self.log.push(Entry { sequence, change });
        self.spare_bytes > self.spare_bytes_max.max(SPARE_BYTES_MIN)
    }

    /// Replays the operations before `end`: all before it were noted, if they changed anything.
    pub(super) fn compact(&mut self, end: Sequence) {
        self.log.sort_by_key(|entry| entry.sequence);
        let done = self.log.partition_point(|entry| entry.sequence < end);
        for entry in self.log.drain(..done) {
            // These bytes were encoded here. If they cannot be read, the claim fails for it.
            let applied = self.base.apply(entry.sequence, entry.change.as_ref());
            self.base.is_broken |= applied.is_err();
        }
        self.spare_bytes = self.log.iter().map(|entry| entry.change.spare_bytes()).sum();
        // As much again as is left: a replay is paid for by what came since the last one.
        let left: usize = self.log.iter().map(|entry| entry.change.bytes()).sum();
        self.spare_bytes_max = 2 * (left + self.base.bytes());
    }

    /// What is held if the operations in `others` are done too.
    ///
    /// # Errors
    /// `Internal` if the bytes of a request cannot be read.
    pub(super) fn replay<'a>(
        &'a self,
        others: impl IntoIterator<Item = (Sequence, ChangeRef<'a>)>,
    ) -> Result<Holds> {
        let own = self.log.iter().map(|entry| (entry.sequence, entry.change.as_ref()));
        let mut all: Vec<_> = own.chain(others).collect();
        all.sort_by_key(|(sequence, _)| *sequence);
        let mut holds = self.base.clone();
        for (sequence, change) in all {
            holds.apply(sequence, change)?;
        }
        holds.check()?;
        Ok(holds)
    }

    /// The number of operations in the log.
    #[cfg(test)]
    pub(super) fn log_len(&self) -> usize {
        self.log.len()
    }
}
