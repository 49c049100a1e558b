//! Locks outlive their server (P6): the real binary, killed or stopped and started again on its
//! store and its address.
//!
//! | file | noun |
//! |---|---|
//! | `rounds.rs` | fifty commands over restarts within their guards |
//! | `late.rs` | a server that is away for longer |
//! | `thousand.rs` | a planned restart with 1,000 holders |

mod late;
mod rounds;
mod thousand;

/// The program that works under the locks.
const WRITER: &str = env!("CARGO_BIN_EXE_journal_writer");
