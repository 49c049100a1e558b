//! What the tests in `tests/` share: the real binary as processes, and the commands that run under its locks.
//!
//! Everything waits for an event, with [`LIMIT`] as the bound that fails a test which would hang.

pub mod allocators;
pub mod binary;
pub mod command;
pub mod containers;
pub mod server;
pub mod store;
pub mod timeline;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

/// No wait of a test is longer. Generous, for machines that do a lot else; nothing ever takes that long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The lease of the servers under test: as short as it may be without a busy machine losing it for want of a processor.
pub const LEASE: Duration = Duration::from_secs(3);

/// Waits for `future`, at most [`LIMIT`].
///
/// # Panics
/// When it takes longer: `what` was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    within_limit(LIMIT, what, future).await
}

/// Waits for `future`, at most `limit`.
///
/// # Panics
/// When it takes longer: `what` was waited for.
pub async fn within_limit<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {limit:?} in vain: {what}"),
    }
}

/// True on a machine whose tests count for everybody: what is missing there is a failure.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// Says loudly that a test is skipped, on stderr and to the test command, which repeats it at its end; fails in CI, where nothing may be.
///
/// # Panics
/// In CI.
pub fn skip(why: &str) {
    assert!(!is_ci(), "not to be skipped in CI: {why}");
    eprintln!("\n*** SKIPPED: {why}\n");
    if let Some(path) = std::env::var_os("INTEGRATION_SKIPPED") {
        let mut skipped =
            OpenOptions::new().append(true).open(path).expect("the test command's list of what is skipped");
        // One write, so that tests that run at once do not mix their lines.
        skipped.write_all(format!("{why}\n").as_bytes()).expect("a line can be added to it");
    }
}
