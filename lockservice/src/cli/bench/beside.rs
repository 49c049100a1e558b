//! [`Beside`]: what to measure beside.

use super::echo::Echo;
use super::side::Side;
use crate::cli::exit::Failure;

/// What to measure beside, parsed once.
pub(crate) enum Beside {
    /// A bare gRPC stream that sends back what it gets.
    Echo,
}

impl Beside {
    /// Parses one `--beside`. What is wrong is said without repeating it: it may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "echo" => Ok(Self::Echo),
            _ => Err(Failure::usage("--beside names nothing that is known: write echo")),
        }
    }

    /// Connects.
    pub(super) async fn open(&self) -> Result<Box<dyn Side>, Failure> {
        Ok(match self {
            Self::Echo => Box::new(Echo::open().await?),
        })
    }
}
