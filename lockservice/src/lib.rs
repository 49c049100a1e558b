//! lockservice facade.

#[cfg(any(feature = "server", feature = "client"))]
#[allow(missing_docs, unreachable_pub, unused_qualifications, missing_debug_implementations, clippy::all)]
pub mod proto {
    tonic::include_proto!("lockservice.v1");
    /// The descriptors of every message and service, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockservice.bin"));
}
