//! TLS of the real command: certificates that are accepted, refused, and replaced.
//!
//! | file | contents |
//! |---|---|
//! | `accepted.rs` | a client and a server that know each other |
//! | `refused.rs` | those that do not: the status, and a sentence that helps |
//! | `handshakes.rs` | handshakes of clients that are not ours |
//! | `replaced.rs` | certificates are replaced while sessions hold locks |
//! | `kit.rs` | certificates, and a proxy that cuts connections |

#[path = "../cli_support/mod.rs"]
mod cli_support;

mod accepted;
mod handshakes;
mod kit;
mod refused;
mod replaced;
