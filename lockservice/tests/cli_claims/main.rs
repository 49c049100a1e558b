//! Claims after a restart of the real server (P6), made by a client that is not ours.
//!
//! | file | noun |
//! |---|---|
//! | `foreign.rs` | the client, which sends what it likes |
//! | `accepted.rs` | claims of what was held |
//! | `refused.rs` | claims of what was not, or too late |
//! | `excluding.rs` | claims that exclude each other |

mod accepted;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod excluding;
mod foreign;
mod refused;

use cli_support::Server;

/// A server whose lease outlasts everything that a test does.
fn server() -> Server {
    Server::start_with(&["--lease-ttl=60s"])
}
