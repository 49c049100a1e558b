//! Who may do what, at the real command: tokens, certificates, roles, limits, and their end.
//!
//! | file | contents |
//! |---|---|
//! | `allowed.rs` | callers that are known, and what each may do |
//! | `refused.rs` | those that are not, or may not: the status, and a sentence that helps |
//! | `wire.rs` | the statuses of calls, and commits that present tables |
//! | `revoked.rs` | tokens that are revoked or replaced while sessions hold locks |
//! | `sessions.rs` | whose a session is; the limits of an identity |
//! | `kit.rs` | servers with identities |

#[path = "../cli_support/mod.rs"]
mod cli_support;
#[path = "../cli_tls/kit.rs"]
mod tls_kit;

mod allowed;
mod kit;
mod refused;
mod revoked;
mod sessions;
mod wire;
