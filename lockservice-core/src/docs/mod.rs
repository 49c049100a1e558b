//! Notes for those who work on lockservice, or who want to know why it can be trusted.
//!
//! | file | noun |
//! |---|---|
//! | `architecture.md` | layers, entry points, code map |
//! | `protocol.md` | the safety rules by number |
//! | `invariants.md` | the enforcement and the checks of each rule |
//! | `lock_order.md` | the order of mutexes |
//! | `glossary.md` | terms |
//! | `backend.md` | the writing of a store |

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
