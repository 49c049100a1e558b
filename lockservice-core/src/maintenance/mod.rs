//! What an operator does with a store: checking it, dumping it, and restoring a dump into any other
//! backend.
//!
//! Written once, above [`BindStore`](crate::store::BindStore): [`diagnose`], [`problems`] and
//! [`Dump`] are pure, [`restore`] leads the store while it writes.

mod check;
mod dump;
mod restore;

pub use self::check::{Problem, ProblemKind, diagnose, problems};
pub use self::dump::{DUMP_FORMAT, Dump};
pub use self::restore::{EPOCHS_SKIPPED, RestoreOptions, Restored, restore};
