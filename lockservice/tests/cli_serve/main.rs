//! `lockservice serve`, the lists, and wrong usage.
//!
//! | file | noun |
//! |---|---|
//! | `usage.rs` | help, wrong usage, wrong settings |
//! | `start.rs` | the start, and the environment |
//! | `lists.rs` | the lists |
//! | `signals.rs` | signals |
//! | `restarts.rs` | stops after which the server is expected back |
//! | `log.rs` | the log |
//! | `store.rs` | a full, removed or replaced store |

#[path = "../cli_support/mod.rs"]
mod cli_support;
#[path = "../store_kit/disk.rs"]
mod disk;
mod lists;
mod log;
mod restarts;
mod signals;
mod start;
mod store;
mod usage;
