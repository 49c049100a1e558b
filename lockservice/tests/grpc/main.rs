//! The gRPC API: a real server and a real client in one process, over loopback.

mod bounds;
mod client;
mod conformance;
mod health;
mod leaving;
mod streams;
mod support;
mod unary;
mod waits;
mod wire;
