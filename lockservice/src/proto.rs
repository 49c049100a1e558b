//! The messages and services of `lockservice.v1`, generated from
//! `proto/lockservice/v1/lockservice.proto`.

// Generated code follows no lints of ours.
#![allow(missing_docs, unreachable_pub, unused_qualifications, missing_debug_implementations)]
#![allow(clippy::all, clippy::clone_on_ref_ptr)]

tonic::include_proto!("lockservice.v1");

/// The descriptors of every message and service, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockservice.bin"));
