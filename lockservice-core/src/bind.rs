//! [`Bind`] and [`TokenBlock`]: what the allocator decides and the lock engine serves. Both know
//! these words and nothing else of each other.

use crate::id::{BindVersion, FencingToken, ServiceId, TableId, TableRef};

/// A lock table, or one partition of it, bound to an incarnation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bind {
    /// Group and name.
    pub table: TableRef,
    /// The table's number.
    pub id: TableId,
    /// The partition; 0 for a table that is not split.
    pub partition: u32,
    /// The owning incarnation.
    pub owner: ServiceId,
    /// The bind's version.
    pub version: BindVersion,
    /// The slot in which the allocator keeps it.
    pub slot: BindSlot,
}

/// The slot in which an allocator of this process keeps a bind, so that a commit finds it without a
/// look-up.
///
/// It says nothing about which bind it is, so any two are equal. A commit may present any: one
/// that is not the bind's, because another allocator leads by now or because the bind crossed the
/// network, costs a look-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct BindSlot(u32);

impl BindSlot {
    /// No slot: the bind is looked up.
    pub const NONE: Self = Self(0);

    /// The slot with this number, from 1.
    pub(crate) const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number; 0 if it is none.
    pub(crate) const fn get(self) -> u32 {
        self.0
    }
}

impl PartialEq for BindSlot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for BindSlot {}

/// A durable block of fencing tokens, `next..end` (F2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenBlock {
    /// The first token that has not been given out.
    pub next: FencingToken,
    /// One past the last token.
    pub end: FencingToken,
}

impl TokenBlock {
    /// The number of tokens that are left.
    pub const fn left(&self) -> u64 {
        self.end.get() - self.next.get()
    }

    /// Takes the next token, or `None` if the block is used up.
    pub fn take(&mut self) -> Option<FencingToken> {
        let token = self.next;
        if token >= self.end {
            return None;
        }
        self.next = FencingToken::new(token.get() + 1);
        Some(token)
    }
}
