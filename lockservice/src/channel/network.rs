//! [`Network`]: what carries calls in place of sockets.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};

/// The reason why a call was not carried, or not known to be.
pub type NetworkError = Box<dyn StdError + Send + Sync>;

/// The response to a call, when it comes.
pub type NetworkResponse =
    Pin<Box<dyn Future<Output = Result<Response<Body>, NetworkError>> + Send>>;

/// What carries calls in place of sockets, in a simulation.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Carries a call to the process at `address`.
    fn call(&self, address: &str, request: Request<Body>) -> NetworkResponse;
}
