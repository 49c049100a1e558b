//! Notes for those who work on lockservice, or who want to know why it can be trusted.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("backend.md")]
pub mod backend {}

#[doc = include_str!("glossary.md")]
pub mod glossary {}

#[doc = include_str!("invariants.md")]
pub mod invariants {}

#[doc = include_str!("lock_order.md")]
pub mod lock_order {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}
