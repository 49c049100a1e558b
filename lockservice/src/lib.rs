//! The facade of lockservice: stores by URL, the gRPC API, the server, the client and the command line.

pub use lockservice_core as core;

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "server", feature = "client"))]
pub mod convert;
#[cfg(any(feature = "server", feature = "client"))]
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
pub mod store;
