//! `lockservice lock` as its users meet it.
//!
//! | file | noun |
//! |---|---|
//! | `exclusion.rs` | the exclusion of commands |
//! | `ending.rs` | the end of the command with its lock |
//! | `stuck.rs` | processes that cannot be ended |
//! | `server.rs` | failures of the server |
//! | `connection.rs` | connections that break, and come back |
//! | `waiting.rs` | a waiter: its messages, and its end |
//! | `status.rs` | arguments and exit statuses |
//! | `streams.rs` | standard streams, and the environment |
//! | `nested.rs` | nested commands |

#[path = "../cli_support/mod.rs"]
mod cli_support;
mod connection;
mod ending;
mod exclusion;
mod nested;
mod server;
mod status;
mod streams;
mod stuck;
mod waiting;
