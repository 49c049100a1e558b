//! Maintenance of a store by an operator: a check, a dump, and the restore of a dump into any other
//! backend.
//!
//! | file | noun |
//! |---|---|
//! | `check/` | problems of the records of a store |
//! | `dump.rs` | the format of a dump, written and read |
//! | `restore.rs` | a dump becomes the content of a new store |
//!
//! Written once, above [`BindStore`](crate::store::BindStore): [`diagnose`], [`problems`] and
//! [`Dump`] are pure, [`restore`] leads the store while it writes.

mod check;
mod dump;
mod restore;

pub use self::check::{Problem, ProblemKind, diagnose, problems};
pub use self::dump::{DUMP_FORMAT, Dump};
pub use self::restore::{EPOCHS_SKIPPED, RestoreOptions, Restored, restore};
