//! The gRPC API: a real server and a real client in one process, over loopback.
//!
//! | file | noun |
//! |---|---|
//! | `support` | a real server, and a proxy that breaks connections |
//! | `fake` | a server that says what a test wants |
//! | `client` | the client, over connections that break |
//! | `wire` | clients that are not ours |
//! | `unary` | the unary calls |
//! | `streams`, `waits` | session streams; notices about waits |
//! | `bounds` | limits on callers |
//! | `health`, `leaving` | probes; a client that leaves work behind |
//! | `conformance` | the suite of the lock service, over real connections |

mod bounds;
mod client;
mod conformance;
mod fake;
mod health;
mod leaving;
mod streams;
mod support;
mod unary;
mod waits;
mod wire;
